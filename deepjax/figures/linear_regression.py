"""SGD, momentum and Nesterov's momentum on a line through 30 samples."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import config
from deepjax.figures.experiment import Claim, plain
from deepjax.figures.loss_surface import START, quadratic, samples
from deepjax.optimizers import make_optimizer
from deepjax.runs.plots import new_figure

TITLE = "A line through 30 samples by SGD, momentum and Nesterov's momentum"
SOURCE = "Deep learning: first order methods, example regression problem"
USES = ("full",)
RATE, EPOCHS = 0.005, 500
METHODS = {
    "SGD": config.Optimizer("sgd"),
    "momentum 0.6": config.Optimizer("momentum", momentum=0.6),
    "Nesterov 0.8": config.Optimizer("nesterov", momentum=0.8),
}
LECTURE = {"SGD": (1.9882, 2.9975), "momentum 0.6": (1.9837, 2.9933), "Nesterov 0.8": (1.9738, 2.9914)}
NEAR = (0.05, 0.05)  # of intercept and slope, from the least squares solution
SHOWN = 300  # updates in the drawing


@dataclass(frozen=True)
class Numbers:
    """Each method's path over (intercept, slope), and the loss that it minimizes."""

    hessian: tuple[tuple[float, ...], ...]
    minimum: tuple[float, ...]  # least squares
    paths: dict[str, tuple[tuple[float, ...], ...]]  # the first SHOWN updates
    ends: dict[str, tuple[float, ...]]


def numbers(settings):
    """Return Numbers. The seed draws the samples and their order in each epoch, which is the same for all methods."""
    x, y = samples(settings.seed)
    hessian, minimum, _ = quadratic(x, y)
    epochs = EPOCHS * (10 if settings.full else 1)
    keys = jax.random.split(jax.random.key(settings.seed), epochs)
    order = jax.vmap(lambda key: jax.random.permutation(key, len(x)))(keys).ravel()
    paths = {name: np.asarray(descend(method, x, y, order)) for name, method in METHODS.items()}
    return Numbers(
        plain(hessian),
        plain(minimum),
        {name: plain(path[: SHOWN + 1]) for name, path in paths.items()},
        {name: plain(path[-1]) for name, path in paths.items()},
    )


def descend(method, x, y, order):
    """Return (intercept, slope) before each update on one sample and at the end, [updates + 1, 2].

    Args:
      method: `config.Optimizer`.
      x, y: samples [N].
      order: sample of each update, int [updates].
    """
    optimizer = make_optimizer(method, RATE)
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)

    def update(carry, sample):
        theta, state = carry
        gradient = jax.grad(lambda theta: (y[sample] - theta[0] - theta[1] * x[sample]) ** 2)(theta)
        updates, state = optimizer.update(gradient, state, theta)
        return (theta + updates, state), theta

    start = jnp.asarray(START)
    (end, _), path = jax.jit(lambda order: jax.lax.scan(update, (start, optimizer.init(start)), order))(order)
    return jnp.concatenate([path, end[None]])


def table(numbers):
    """Return where each method ends, and the lecture's numbers."""
    header = ("method", "intercept", "slope", "the lecture's")
    rows = [(name, *(f"{value:.4f}" for value in end), str(LECTURE[name])) for name, end in numbers.ends.items()]
    return header, [*rows, ("least squares", *(f"{value:.4f}" for value in numbers.minimum), "")]


def claim(numbers):
    """Return whether all methods end near the least squares solution, as far as single samples allow."""
    far = np.abs(np.asarray([*numbers.ends.values()]) - numbers.minimum).max(0)
    text = (
        f"all three end near the least squares solution ({numbers.minimum[0]:.4f}, {numbers.minimum[1]:.4f}): within "
        f"{far[0]:.3f} (at most {NEAR[0]}) of its intercept and {far[1]:.4f} (at most {NEAR[1]}) of its slope"
    )
    return Claim(text, bool((far <= NEAR).all()))


def draw(numbers):
    """Return the paths over the contours of the loss, and the distance from its minimum by update."""
    figure = new_figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    hessian, minimum = np.asarray(numbers.hessian), np.asarray(numbers.minimum)
    grid = np.stack(np.meshgrid(np.linspace(0, 11, 101), np.linspace(0, 6, 101)))
    offset = grid - minimum[:, None, None]
    heights = np.einsum("i...,ij,j...", offset, hessian, offset) / 2
    left.contour(*grid, heights, np.geomspace(0.1, 300, 12), colors="0.85")
    for name, path in numbers.paths.items():
        left.plot(*np.transpose(path), ".-", markersize=3, linewidth=0.8, label=name)
        right.plot(np.linalg.norm(np.asarray(path) - minimum, axis=1), linewidth=1, label=name)
    left.set(xlabel="intercept", ylabel="slope", xlim=(0, 11), ylim=(0, 6))
    right.set(xlabel="updates on one sample", ylabel="distance from least squares", yscale="log")
    right.grid(alpha=0.3)
    left.legend()
    return figure
