"""Radial basis function networks: how centers are placed, what each phase of learning adds, and XOR."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import functional, linear
from deepjax.figures.experiment import Claim
from deepjax.runs.plots import new_figure

TITLE = "Radial basis function networks: placement of the centers, three phases of learning, XOR"
SOURCE = "Deep learning: radial basis function networks, limits of linear classification"
USES = ("full",)
PLACEMENTS = ("uniform", "random", "k-means++")
PHASES = ("weights", "everything")  # what is fitted: the second phase of learning, and the third
SAMPLES, UNITS, NOISE = 200, 8, 0.1
XOR_UNITS = 8
GRID = np.linspace(-3, 3, 301, dtype=np.float32)


@dataclass(frozen=True)
class Numbers:
    """Errors of networks on many data sets, and the first data set with its curves."""

    errors: dict[str, dict[str, tuple[float, ...]]]  # by placement and phase: root mean square of (output - function)
    losses: dict[str, dict[str, tuple[float, ...]]]  # by placement and phase: mean squared error in training
    inputs: tuple[float, ...]
    targets: tuple[float, ...]
    curves: dict[str, tuple[float, ...]]  # by phase, of k-means++
    centers: dict[str, tuple[float, ...]]  # by phase, of k-means++
    xor: dict[str, tuple[float, ...]]  # test error by model: logistic regression, and a network with a sigmoid


def numbers(settings):
    """Return Numbers. The seed draws the samples, their noise and the centers."""
    keys = jax.random.split(jax.random.key(settings.seed), 200 if settings.full else 10)
    fits, xor = jax.device_get(jax.jit(jax.vmap(lambda key: (_regression(key), _xor(key))))(keys))
    x, y, phases = fits

    def each(name):
        return {p: {phase: tuple(phases[p][phase][name].tolist()) for phase in PHASES} for p in PLACEMENTS}

    def first(name):
        return {phase: tuple(phases["k-means++"][phase][name][0].tolist()) for phase in PHASES}

    errors = {model: tuple(values.tolist()) for model, values in xor.items()}
    inputs, targets = tuple(x[0, :, 0].tolist()), tuple(y[0].tolist())
    return Numbers(each("error"), each("loss"), inputs, targets, first("curve"), first("centers"), errors)


def _true(x):
    return jnp.sin(3 * x) * jnp.exp(-(x**2) / 4)


def _regression(key):
    """Return samples [samples, 1], targets [samples], and {placement: {phase: numbers}} of one data set."""
    inputs, noise, centers = jax.random.split(key, 3)
    x = jax.random.normal(inputs, (SAMPLES, 1)).clip(-3, 3)
    y = _true(x[:, 0]) + NOISE * jax.random.normal(noise, (SAMPLES,))
    placed = {
        "uniform": jnp.linspace(x.min(), x.max(), UNITS)[:, None],
        "random": jax.random.choice(centers, x, (UNITS,), replace=False),
        "k-means++": linear.kmeans(centers, x, UNITS)[0],
    }
    stacked = jax.vmap(lambda centers: _phases(centers, x, y))(jnp.stack([placed[name] for name in PLACEMENTS]))
    return x, y, {name: jax.tree.map(lambda a, i=i: a[i], stacked) for i, name in enumerate(PLACEMENTS)}


def _phases(centers, x, y):
    """Return {phase: error, loss, curve and centers} of a network that starts with these centers."""
    widths = linear.nearest_widths(centers)
    weights = linear.least_squares(linear.rbf_features(x, centers, widths), y)
    second = linear.RBF(centers, widths, weights)
    third, _ = linear.rbf_fit(second, x, y, functional.mse, everything=True, steps=60)
    return {"weights": _measure(second, x, y), "everything": _measure(third, x, y)}


def _measure(network, x, y):
    curve = linear.rbf_outputs(network, jnp.asarray(GRID)[:, None])
    density = jnp.exp(-(jnp.asarray(GRID) ** 2) / 2)  # of the inputs
    error = jnp.sqrt(jnp.sum(density * (curve - _true(jnp.asarray(GRID))) ** 2) / density.sum())
    loss = functional.mse(linear.rbf_outputs(network, x), y).mean()
    return {"error": error, "loss": loss, "curve": curve, "centers": network.centers[:, 0]}


def _xor(key):
    """Return the test error of logistic regression and of a network, from 200 points of the four quadrants."""
    train, test, place = jax.random.split(key, 3)
    x, x_test = (jax.random.uniform(k, (n, 2), minval=-1) for k, n in ((train, SAMPLES), (test, 2000)))
    y, y_test = ((a[:, 0] * a[:, 1] > 0).astype(jnp.float32) for a in (x, x_test))

    def loss(w):
        return functional.binary_cross_entropy(linear.with_bias(x) @ w, y).mean()

    w, _ = linear.minimize(loss, jnp.zeros(3))
    network = linear.rbf_place(place, x, XOR_UNITS)
    network, _ = linear.rbf_fit(network, x, y, functional.binary_cross_entropy, everything=False, steps=50)
    logits = {"logistic regression": linear.with_bias(x_test) @ w, "network": linear.rbf_outputs(network, x_test)}
    return {name: jnp.mean((z > 0) != (y_test > 0)) for name, z in logits.items()}


def table(numbers):
    """Return the medians over the data sets."""
    header = ("centers", "fitted", "training loss", "error of the function")
    rows = [
        (place, phase, f"{np.median(numbers.losses[place][phase]):.5f}", f"{np.median(error):.4f}")
        for place, by_phase in numbers.errors.items()
        for phase, error in by_phase.items()
    ]
    xor = [("XOR", model, "", f"{np.median(errors):.1%} wrong") for model, errors in numbers.xor.items()]
    return header, rows + xor


def claim(numbers):
    """Return whether the third phase improves on the second, and a network solves XOR, which a line does not."""
    before, after = (np.array([numbers.losses[p][phase] for p in PLACEMENTS]) for phase in PHASES)
    improved, third = float(np.mean(after < before)), float(np.median(numbers.errors["k-means++"]["everything"]))
    line, network = (float(np.median(numbers.xor[model])) for model in numbers.xor)
    text = (
        f"fitting everything after the weights lowers the training loss in {improved:.0%} of {after.size} cases "
        f"(all); from k-means++ the median error of the function is then {third:.3f} (at most half the noise of "
        f"{NOISE:g}); of XOR logistic regression gets {line:.0%} wrong (at least 30 %), a network {network:.1%} "
        f"(at most 10 %)"
    )
    return Claim(text, improved == 1 and third <= NOISE / 2 and line >= 0.3 and network <= 0.1)


def draw(numbers):
    """Return the first data set with the curves of two phases, the errors by placement, and XOR's."""
    figure = new_figure(13, 4)
    left, middle, right = figure.subplots(1, 3, width_ratios=(2, 1.5, 1))
    left.plot(numbers.inputs, numbers.targets, ".", color="0.7", label=f"{SAMPLES} samples")
    left.plot(GRID, np.sin(3 * GRID) * np.exp(-(GRID**2) / 4), "k--", linewidth=1, label="true function")
    for (phase, curve), mark, height in zip(numbers.curves.items(), ("^", "o"), (-1.4, -1.25)):
        (line,) = left.plot(GRID, curve, label=f"{phase} fitted")
        left.plot(numbers.centers[phase], [height] * UNITS, mark, color=line.get_color())
    left.set(xlabel="x (marks: centers, from k-means++)", ylim=(-1.5, 1.5), xlim=(-3, 3))
    left.legend(fontsize=8)
    for offset, (phase, hatch) in zip((-0.2, 0.2), zip(PHASES, ("//", ""))):
        medians = [np.median(numbers.errors[place][phase]) for place in PLACEMENTS]
        middle.bar(np.arange(3) + offset, medians, 0.4, hatch=hatch, label=f"{phase} fitted", alpha=0.8)
    middle.set_xticks(range(3), PLACEMENTS)
    middle.set(ylabel="error of the function, median", xlabel="placement of the centers")
    middle.legend(fontsize=8)
    right.bar(range(2), [100 * np.median(errors) for errors in numbers.xor.values()], 0.6, alpha=0.8)
    right.set_xticks(range(2), ["logistic\nregression", f"network of\n{XOR_UNITS} kernels"])
    right.set(ylabel="test error on XOR (%)")
    return figure
