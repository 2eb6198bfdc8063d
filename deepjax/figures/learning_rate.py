"""Gradient descent diverges above the rate 2 / sharpness, and the best rate is just below."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from deepjax import zoo
from deepjax.figures.experiment import Claim, plain
from deepjax.figures.loss_surface import START, quadratic, samples
from deepjax.figures.small_runs import load
from deepjax.functional import losses
from deepjax.runs.plots import new_figure

TITLE = "Gradient descent with a learning rate that is too small, right, or too large"
SOURCE = "Deep learning: choosing a learning rate (LeCun et al. 1998, Bengio 2012)"
USES = ("full",)
SHOWN = {"too small": 0.01, "right": 0.95, "divergent": 1.02}  # in units of 2 / sharpness
RATES = 2 ** (np.arange(-97, 80, 2) / 16)  # in the same units, 8 per factor of 2; those next to 1 are 0.958 and 1.044
LINE_STEPS, NET_STEPS = 400, 200


@dataclass(frozen=True)
class Sweep:
    """Gradient descent on one loss at many rates."""

    sharpness: float  # largest eigenvalue of the Hessian at the start
    before: float  # loss at the start
    after: tuple[float | None, ...]  # loss at the end, for each of RATES; None if it is not finite
    largest: float  # the largest rate at which the loss does not grow, in units of 2 / sharpness
    best: float  # the rate with the lowest loss, in the same units


@dataclass(frozen=True)
class Numbers:
    """The lecture's regression and a small network: loss by rate; and losses of the regression at three rates."""

    curves: dict[str, tuple[float, ...]]
    sweeps: dict[str, Sweep]


def numbers(settings):
    """Return Numbers. The seed draws the samples of the regression, and the network's first weights."""
    hessian, minimum, lowest = quadratic(*samples(settings.seed))

    def line_loss(point):
        return lowest + (point - minimum) @ hessian @ (point - minimum) / 2

    line = jnp.asarray(START)
    sharpness = float(np.linalg.eigvalsh(hessian)[-1])
    shown = 2 / sharpness * np.asarray([*SHOWN.values()])
    curves = _descend(line_loss, line, shown, LINE_STEPS)
    net_loss, params = _network(settings)
    return Numbers(
        {name: plain(curve) for name, curve in zip(SHOWN, curves)},
        {
            "linear regression": _sweep(line_loss, line, sharpness, LINE_STEPS),
            "network": _sweep(net_loss, params, largest_eigenvalue(net_loss, params), NET_STEPS),
        },
    )


def _network(settings):
    """Return the mean loss of a net of tanh units over digits, as a function of its parameters, and its start."""
    options = {"depth": 3, "width": 64 if settings.full else 32, "activation": "tanh", "init": "lecun"}
    network = zoo.create("mlp", options, num_classes=10)
    train, _ = load("digits", size=None if settings.full else 300)
    params = jax.jit(partial(network.init, train=False))(jax.random.key(settings.seed), train.inputs[:1])["params"]

    def loss(params):
        return losses.cross_entropy(network.apply({"params": params}, train.inputs, train=False), train.labels).mean()

    return loss, params


def largest_eigenvalue(loss, params, steps=100):
    """Return the largest eigenvalue of the Hessian, by power iteration with Hessian-vector products.

    It is the largest in absolute value; a start near which the loss is not far from convex has a positive one.
    """
    flat, unflatten = jax.flatten_util.ravel_pytree(params)
    gradient = jax.grad(lambda flat: loss(unflatten(flat)))

    def product(_, carry):
        vector, _ = carry
        image = jax.jvp(gradient, (flat,), (vector,))[1]
        return image / jnp.linalg.norm(image), vector @ image

    vector = jax.random.normal(jax.random.key(0), flat.shape)
    start = vector / jnp.linalg.norm(vector), jnp.zeros(())
    return float(jax.jit(lambda: jax.lax.fori_loop(0, steps, product, start))()[1])


def _descend(loss, params, rates, steps):
    """Return the losses before each step and at the end, [rates, steps + 1]."""

    def run(rate):
        def step(params, _):
            value, gradient = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda p, g: p - rate * g, params, gradient), value

        end, values = jax.lax.scan(step, params, length=steps)
        return jnp.append(values, loss(end))

    return jax.jit(jax.vmap(run))(jnp.asarray(rates, jnp.float32))


def _sweep(loss, params, sharpness, steps):
    values = np.asarray(_descend(loss, params, 2 / sharpness * RATES, steps), float)
    before, after = values[0, 0], np.where(np.isfinite(values[:, -1]), values[:, -1], np.inf)
    written = tuple(value if np.isfinite(value) else None for value in after.tolist())
    return Sweep(sharpness, before, written, float(RATES[after <= before].max()), float(RATES[after.argmin()]))


def table(numbers):
    """Return for each loss the sharpness, the largest rate that does not diverge, and the best rate."""
    header = ("loss", "sharpness", "2 / sharpness", "largest rate / that", "best rate / that")
    rows = [
        (name, f"{sweep.sharpness:.4g}", f"{2 / sweep.sharpness:.4g}", f"{sweep.largest:.3g}", f"{sweep.best:.3g}")
        for name, sweep in numbers.sweeps.items()
    ]
    return header, rows


def claim(numbers):
    """Return whether both losses diverge where they should, and the best rate is near that.

    A network may diverge later than 2 / sharpness says, because a step that is too large moves it to where the loss is
    flatter: up to a factor of 12 was found (Lewkowycz et al. 2020, "The large learning rate phase", arXiv 2003.02218).
    """
    line, net = numbers.sweeps.values()
    text = (
        f"the largest rate that does not diverge is {line.largest:.3g} x 2 / sharpness (0.9 to 1) for a linear "
        f"regression, and {net.largest:.3g} x (1 to 12) for a network; the best rate is {line.best / line.largest:.0%} "
        f"(at least 90 %) and {net.best / net.largest:.0%} (at least 30 %) of the largest"
    )
    near = line.best >= 0.9 * line.largest and net.best >= 0.3 * net.largest
    return Claim(text, 0.9 <= line.largest <= 1 <= net.largest <= 12 and near)


def draw(numbers):
    """Return the three descents, and the loss after training over the rate."""
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2)
    for (name, curve), style in zip(numbers.curves.items(), ("-", "--", ":")):
        left.plot(curve, style, label=f"{name}: {SHOWN[name]:g} x 2 / sharpness")
    left.set(xlabel="step of gradient descent", ylabel="loss of the linear regression", yscale="log", ylim=(1e-3, 1e5))
    for (name, sweep), style in zip(numbers.sweeps.items(), ("-", "--")):
        right.plot(RATES, np.asarray(sweep.after, float) / sweep.before, style, label=name)
    right.axvline(1, color="0.5", linewidth=1, label="2 / sharpness at the start")
    right.set(xlabel="learning rate, in units of 2 / sharpness", ylabel="last loss / first loss", ylim=(1e-5, 1e2))
    right.set(xscale="log", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
