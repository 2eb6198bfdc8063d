"""The paths of three optimizers on the lecture's linear regression."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax.config import Optimizer
from deepjax.figures.experiment import Claim, plain
from deepjax.figures.loss_surface import START, quadratic, samples
from deepjax.optimizers import make_optimizer
from deepjax.runs.plots import new_figure

TITLE = "Paths of SGD, momentum and Nesterov momentum on a linear regression"
SOURCE = "Deep learning: example regression problem, comparison of the 1st order methods"
RATE, UPDATES, NEAR = 0.005, 4000, 0.02
OPTIMIZERS = {
    "SGD": Optimizer("sgd"),
    "momentum 0.6": Optimizer("momentum", momentum=0.6),
    "Nesterov 0.8": Optimizer("nesterov", momentum=0.8),
}


@dataclass(frozen=True)
class Numbers:
    """The loss, and the path of each optimizer from the same start over the same examples."""

    hessian: tuple[tuple[float, ...], ...]  # of the loss over (intercept, slope)
    minimum: tuple[float, ...]
    lowest: float
    paths: dict[str, tuple[tuple[float, ...], ...]]  # the first points
    ends: dict[str, tuple[float, ...]]
    steps: dict[str, int]  # updates until the distance from the minimum is 2 % of the first distance


def numbers(settings):
    """Return Numbers. The seed draws the 30 samples, and the example of each update."""
    x, y = samples(settings.seed)
    hessian, minimum, lowest = quadratic(x, y)
    order = np.random.default_rng([settings.seed, 1]).integers(len(x), size=UPDATES)
    paths = {name: _descend(optimizer, x[order], y[order]) for name, optimizer in OPTIMIZERS.items()}
    far = {name: np.linalg.norm(path - minimum, axis=1) for name, path in paths.items()}
    return Numbers(
        plain(hessian),
        plain(minimum),
        float(lowest),
        {name: plain(path[:1000]) for name, path in paths.items()},
        {name: plain(path[-1]) for name, path in paths.items()},
        {name: int(np.argmax(each <= NEAR * each[0])) for name, each in far.items()},
    )


def _descend(optimizer, xs, ys):
    """Return the points (intercept, slope), [UPDATES + 1, 2]: one example for each update, squared error."""
    transform = make_optimizer(optimizer, RATE)

    def update(carry, example):
        point, state = carry
        x, y = example
        error = point[0] + point[1] * x - y
        updates, state = transform.update(2 * error * jnp.stack([jnp.ones_like(x), x]), state, point)
        point = optax.apply_updates(point, updates)
        return (point, state), point

    start = jnp.asarray(START)
    examples = jnp.asarray(xs, jnp.float32), jnp.asarray(ys, jnp.float32)
    _, points = jax.jit(lambda: jax.lax.scan(update, (start, transform.init(start)), examples))()
    return np.asarray([START, *np.asarray(points)], float)


def table(numbers):
    """Return where each optimizer ends, and after how many updates it is near the minimum."""
    header = ("optimizer", "end (intercept, slope)", f"updates to {NEAR:.0%} of the distance")
    rows = [(name, "{:.4f}, {:.4f}".format(*numbers.ends[name]), numbers.steps[name]) for name in OPTIMIZERS]
    return header, [*rows, ("(least squares)", "{:.4f}, {:.4f}".format(*numbers.minimum), "-")]


def claim(numbers):
    """Return whether all reach the line, and momentum needs fewer updates: about 1 - momentum times as many."""
    slow, momentum, nesterov = numbers.steps.values()
    far = max(np.abs(np.asarray(end) - (2, 3)).max() for end in numbers.ends.values())
    text = (
        f"all end within {far:.3f} (at most 0.15) of 2 and 3; momentum takes {momentum / slow:.2f} (0.25 to 0.6), "
        f"Nesterov {nesterov / slow:.2f} (0.1 to 0.35) times the {slow} updates of SGD"
    )
    return Claim(text, far <= 0.15 and 0.25 <= momentum / slow <= 0.6 and 0.1 <= nesterov / slow <= 0.35)


def draw(numbers):
    """Return the paths on the contours of the loss."""
    figure = new_figure(12, 4)
    minimum = np.asarray(numbers.minimum)
    reach = 1.15 * np.abs(np.concatenate([*numbers.paths.values()]) - minimum).max(0)
    first, second = (center + np.linspace(-each, each, 121) for center, each in zip(minimum, reach))
    away = np.stack(np.meshgrid(first, second), -1) - minimum
    loss = numbers.lowest + np.einsum("...i,ij,...j", away, np.asarray(numbers.hessian), away) / 2
    for axes, name in zip(figure.subplots(1, len(OPTIMIZERS), sharey=True), OPTIMIZERS):
        axes.contour(first, second, loss, levels=np.geomspace(loss.max() / 1e4, loss.max(), 14), cmap="Greys")
        axes.plot(*np.asarray(numbers.paths[name]).T, ".-", linewidth=0.7, markersize=2)
        axes.plot(*minimum, "*", color="C1", markersize=11)
        axes.set(xlabel="intercept")
        axes.set_title(f"{name}: {numbers.steps[name]} updates to {NEAR:.0%}", fontsize=10)
    figure.axes[0].set_ylabel("slope")
    return figure
