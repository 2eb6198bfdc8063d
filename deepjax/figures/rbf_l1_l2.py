"""What L2 and L1 penalties do to a network with a Gaussian at each of its 30 noisy training inputs."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import linear
from deepjax.figures.experiment import Claim
from deepjax.runs.plots import new_figure

TITLE = "L2 and L1 penalties of a radial basis function network with a kernel per sample"
SOURCE = "Deep learning: regularization, L2 penalty, L1 penalty"
USES = ("full",)
SAMPLES, NOISE, WIDTH = 30, 0.03, 0.05  # noise of the inputs, and width of the Gaussians, both for inputs in [0, 1]
L2, L1, SWEEPS = 2.0, 0.003, 3000
FITS = ("no penalty", f"L2, alpha {L2:g}", f"L1, alpha {L1:g}")
GRID = np.linspace(0, 1, 401, dtype=np.float32)


@dataclass(frozen=True)
class Numbers:
    """Fits of many noisy data sets, and the first of them as curves. Every dict is by fit."""

    training: dict[str, tuple[float, ...]]  # root mean square errors on the training samples, for each data set
    test: dict[str, tuple[float, ...]]  # root mean square distance from the true function over [0, 1]
    norms: dict[str, tuple[float, ...]]  # of the weights, without the bias
    nonzero: dict[str, tuple[int, ...]]  # weights that are not 0
    inputs: tuple[float, ...]
    targets: tuple[float, ...]
    curves: dict[str, tuple[float, ...]]
    weights: dict[str, tuple[float, ...]]


def numbers(settings):
    """Return Numbers. The targets are sin(2 pi x); the seed draws the noise that is added to x afterwards."""
    keys = jax.random.split(jax.random.key(settings.seed), 2000 if settings.full else 100)
    (inputs, targets), fits = jax.device_get(jax.jit(jax.vmap(_fit))(keys))

    def parts(name):
        return {fit: tuple(values[name].tolist()) for fit, values in fits.items()}

    def first(name):
        return {fit: tuple(values[name][0].tolist()) for fit, values in fits.items()}

    return Numbers(
        training=parts("training"),
        test=parts("test"),
        norms=parts("norm"),
        nonzero=parts("nonzero"),
        inputs=tuple(inputs[0].tolist()),
        targets=tuple(targets[0].tolist()),
        curves=first("curve"),
        weights=first("weights"),
    )


def _true(x):
    return jnp.sin(2 * jnp.pi * x)


def _fit(key):
    """Return the samples of one data set, and {fit: numbers of it}."""
    x = jnp.linspace(0, 1, SAMPLES)
    y = _true(x)
    x += NOISE * jax.random.normal(key, x.shape)
    centers, grid = x[:, None], jnp.asarray(GRID)
    phi, phi_grid = (linear.rbf_features(at[:, None], centers, WIDTH) for at in (x, grid))
    weighted = jnp.ones(1 + SAMPLES).at[0].set(0)  # the bias is not penalized
    solutions = (
        linear.least_squares(phi, y),
        linear.least_squares(phi, y, ridge=L2 * weighted),
        linear.lasso(phi, y, penalty=L1 * weighted, sweeps=SWEEPS),
    )
    fits = {}
    for name, w in zip(FITS, solutions):
        curve, kernels = phi_grid @ w, w[1:]
        fits[name] = {
            "training": jnp.sqrt(jnp.mean((phi @ w - y) ** 2)),
            "test": jnp.sqrt(jnp.mean((curve - _true(grid)) ** 2)),
            "norm": jnp.linalg.norm(kernels),
            "nonzero": jnp.count_nonzero(kernels),
            "curve": curve,
            "weights": kernels,
        }
    return (x, y), fits


def table(numbers):
    """Return medians over the data sets."""
    header = ("penalty", "training error", "error of the function", "norm of the weights", "weights that are not 0")
    rows = [
        (
            fit,
            *(f"{np.median(values[fit]):.3f}" for values in (numbers.training, numbers.test)),
            f"{np.median(numbers.norms[fit]):.3g}",
            f"{np.median(numbers.nonzero[fit]):.0f} of {SAMPLES}",
        )
        for fit in FITS
    ]
    return header, rows


def claim(numbers):
    """Return whether both penalties trade training error for a better function, by small or by few weights."""
    none, l2, l1 = (float(np.median(numbers.test[fit])) for fit in FITS)
    training = [float(np.median(numbers.training[fit])) for fit in FITS]
    norms = [float(np.median(numbers.norms[fit])) for fit in FITS]
    kept = float(np.median(numbers.nonzero[FITS[2]]))
    text = (
        f"medians of {len(numbers.test[FITS[0]])} data sets: without a penalty the training error is the lowest "
        f"({training[0]:.3f}; {training[1]:.3f} with L2, {training[2]:.3f} with L1) and the error of the function is "
        f"{none:.2f} (at least twice that with L2, {l2:.2f}, and L1, {l1:.2f}); L2 shrinks the norm of the weights "
        f"from {norms[0]:.0f} to {norms[1]:.2f} (at most a tenth), L1 keeps {kept:.0f} of {SAMPLES} (at most 20)"
    )
    better = none >= 2 * max(l2, l1) and training[0] < min(training[1:])
    return Claim(text, better and norms[1] <= norms[0] / 10 and kept <= 20)


def draw(numbers):
    """Return, by fit, the function above the weights."""
    figure = new_figure(11, 5.5)
    axes = figure.subplots(2, 3)
    for column, fit in enumerate(FITS):
        above, below = axes[:, column]
        above.plot(GRID, np.sin(2 * np.pi * GRID), "k--", linewidth=1, label="true function")
        above.plot(numbers.inputs, numbers.targets, "o", markersize=4, label=f"{SAMPLES} samples")
        above.plot(GRID, numbers.curves[fit], label="network")
        above.set(title=fit, ylim=(-2, 2), xlabel="x")
        below.stem(range(1, SAMPLES + 1), numbers.weights[fit], basefmt="k-")
        count = np.count_nonzero(numbers.weights[fit])
        below.set(xlabel=f"kernel ({count} weights are not 0)", ylabel="weight" if column == 0 else "")
        for part in (above, below):
            part.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    return figure
