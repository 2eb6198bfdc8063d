"""Batch normalization makes a layer independent of the scale of its weights; larger weights get smaller gradients."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import functional
from deepjax.figures.experiment import Claim, plain
from deepjax.runs.plots import new_figure

TITLE = "A layer with batch normalization and its gradients, by the scale of its weights"
SOURCE = "Optimization and deeper architectures: batch normalization, weight scale (Ioffe and Szegedy 2015, 3.3)"
USES = ()
EXAMPLES, INPUTS, FEATURES = 64, 10, 5
SCALES = 10.0 ** np.arange(-6, 7)
EPSILONS = (0.0, 1e-5)
STARTS, RATE, UPDATES = (0.1, 1.0, 10.0), 1.0, 20  # scales of the first weights in gradient descent


@dataclass(frozen=True)
class Numbers:
    """BN((aW)u) against BN(Wu) for each a of SCALES, in float64, by epsilon; and gradient descent from aW.

    A difference is the largest one over the largest entry at a = 1.
    """

    outputs: dict[str, tuple[float, ...]]  # differences of the outputs
    inputs: dict[str, tuple[float, ...]]  # differences of the gradients in u
    weights: dict[str, tuple[float, ...]]  # differences of a times the gradient in aW from the gradient in W
    sizes: dict[str, tuple[float, ...]]  # norm of the gradient in aW
    norms: dict[str, tuple[float, ...]]  # {a: norm of the weights before each update and at the end}, epsilon 0


def numbers(settings):
    """Return Numbers. The seed draws 64 examples of 10 inputs, a layer of 5 units, and the gradient of its output."""
    rng = np.random.default_rng(settings.seed)
    u, w = rng.normal(size=(EXAMPLES, INPUTS)), rng.normal(size=(INPUTS, FEATURES)) / np.sqrt(INPUTS)
    dy, targets = rng.normal(size=(2, EXAMPLES, FEATURES))
    with jax.enable_x64(True):
        found = {f"{epsilon:g}": jax.device_get(_by_scale(u, w, dy, epsilon)) for epsilon in EPSILONS}
        norms = jax.device_get(_descent(u, np.multiply.outer(STARTS, w), targets))
    outputs, inputs, weights, sizes = ({name: plain(each[i]) for name, each in found.items()} for i in range(4))
    return Numbers(outputs, inputs, weights, sizes, {f"{start:g}": plain(each) for start, each in zip(STARTS, norms)})


def layer(u, w, epsilon):
    """Return the normalized outputs of a linear layer: u [examples, inputs], w [inputs, features]."""
    features = w.shape[1]
    running = functional.Moments(jnp.zeros(features), jnp.ones(features))
    return functional.batch_norm(u @ w, None, None, running, train=True, epsilon=epsilon)[0]


@partial(jax.jit, static_argnums=3)
def _by_scale(u, w, dy, epsilon):
    """Return the first four fields of Numbers, each [SCALES]."""

    def at(scale):
        y, back = jax.vjp(lambda u, w: layer(u, w, epsilon), u, scale * w)
        return (y, *back(dy))

    y, du, dw = at(1.0)

    def compare(scale):
        y_scaled, du_scaled, dw_scaled = at(scale)
        pairs = (y_scaled, y), (du_scaled, du), (scale * dw_scaled, dw)
        return *(abs(a - b).max() / abs(b).max() for a, b in pairs), jnp.linalg.norm(dw_scaled)

    return jax.vmap(compare)(jnp.asarray(SCALES))


@jax.jit
def _descent(u, starts, targets):
    """Return the norm of the weights in gradient descent on a squared error, [starts, UPDATES + 1]."""

    def loss(w):
        return ((layer(u, w, 0.0) - targets) ** 2).sum(1).mean() / 2

    def update(w, _):
        return w - RATE * jax.grad(loss)(w), jnp.linalg.norm(w)

    def run(w):
        w, norms = jax.lax.scan(update, w, length=UPDATES)
        return jnp.append(norms, jnp.linalg.norm(w))

    return jax.vmap(run)(starts)


def table(numbers):
    """Return the differences and the size of the gradient at some scales."""
    header = ("epsilon", "scale a", "output", "gradient in u", "a x gradient in aW", "norm of the gradient in aW")
    fields = (numbers.outputs, numbers.inputs, numbers.weights, numbers.sizes)
    shown = [i for i, scale in enumerate(SCALES) if scale in (1e-6, 1e-3, 1e-2, 1e2, 1e6)]
    return header, [
        (epsilon, f"{SCALES[i]:g}", *(f"{field[epsilon][i]:.1e}" for field in fields))
        for epsilon in numbers.outputs
        for i in shown
    ]


def claim(numbers):
    """Return whether the scale changes nothing without epsilon, and large ones nothing with it; and norms converge."""
    exact, usual = (
        np.max([field[epsilon] for field in (numbers.outputs, numbers.inputs, numbers.weights)], axis=0)
        for epsilon in numbers.outputs
    )
    large, small = usual[SCALES >= 1].max(), numbers.outputs["1e-05"][np.flatnonzero(SCALES == 1e-3)[0]]
    norms = np.array(list(numbers.norms.values()))
    first, last = (norms[:, i].max() / norms[:, i].min() for i in (0, -1))
    growth = np.diff(np.log(norms)).min()
    text = (
        f"for a from 1e-6 to 1e6, output, gradient in u and a times the gradient in aW change by at most "
        f"{exact.max():.1e} (at most 1e-12) with epsilon 0; with 1e-5 by {large:.1e} for a from 1 (at most 1e-4), but "
        f"the output by {small:.0%} at a = 1e-3 (at least 30 %); in gradient descent, norms of weights never fall (by "
        f"more than 1e-12), and {UPDATES} updates reduce the ratio of the largest to the smallest from {first:.0f} to "
        f"{last:.1f} (at most 12)"
    )
    invariant = exact.max() <= 1e-12 and large <= 1e-4 and small >= 0.3
    return Claim(text, bool(invariant and growth >= -1e-12 and last <= 12))


def draw(numbers):
    """Return differences and sizes of gradients over the scale, and norms over updates."""
    figure = new_figure(13, 4)
    left, middle, right = figure.subplots(1, 3)
    names = {"output": numbers.outputs, "gradient in u": numbers.inputs, "a x gradient in aW": numbers.weights}
    for epsilon, line in zip(numbers.outputs, (":", "-")):
        for (name, values), (marker, color) in zip(names.items(), (("o", "C0"), ("s", "C1"), ("^", "C2"))):
            shown = np.maximum(values[epsilon], 1e-17)
            left.plot(SCALES, shown, line + marker + color, markersize=4, label=name if line == "-" else None)
        middle.plot(SCALES, numbers.sizes[epsilon], line + "o", markersize=4, label=f"epsilon {epsilon}")
    middle.plot(SCALES, numbers.sizes["0"][len(SCALES) // 2] / SCALES, "k--", linewidth=0.8, label="1 / a")
    left.set(ylabel="largest difference from a = 1, relative")
    middle.set(ylabel="norm of the gradient in aW")
    for axes in (left, middle):
        axes.set(xscale="log", yscale="log", xlabel="scale a of the weights")
    for (start, norms), line in zip(numbers.norms.items(), ("o-", "s--", "^:")):
        right.plot(norms, line, markersize=4, label=f"from a = {start}")
    right.set(yscale="log", xlabel=f"updates, rate {RATE:g}, epsilon 0", ylabel="norm of the weights")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    left.get_legend().set_title("lines: epsilon 1e-5; dots: epsilon 0", {"size": 7})
    return figure
