"""Gradient descent, momentum, RMSprop and Adam on a surface with a saddle, without and with noise."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import config
from deepjax.figures.experiment import Claim, plain
from deepjax.optimizers import make_optimizer
from deepjax.runs.plots import new_figure

TITLE = "Paths of gradient descent, momentum, RMSprop and Adam over two parameters"
SOURCE = "Optimization and deeper architectures: optimizers"
USES = ("full",)
METHODS = {
    "gradient descent": config.Optimizer("sgd"),
    "momentum": config.Optimizer("momentum", momentum=0.9),
    "RMSprop": config.Optimizer("rmsprop", second_moment=0.9),
    "Adam": config.Optimizer("adam"),
}
RATE, NOISY_RATE, SMALL_STEPS = 0.14, 0.07, 10  # the lecture's
START, ITERATIONS, SHOWN = (-0.05, 0.4), 100, 20
NOISE = 0.5  # standard deviation of each component of a gradient
LEFT = 0.5  # distance from the saddle, in x, at which a path has left it


@dataclass(frozen=True)
class Numbers:
    """Each method's paths, and what they show."""

    batch: dict[str, tuple[tuple[float, ...], ...]]  # first points of the path
    noisy: dict[str, tuple[tuple[float, ...], ...]]  # of one path, after each small step
    left: dict[str, int]  # iterations until the path is LEFT from the saddle; ITERATIONS if it stays
    cosines: dict[str, float]  # mean cosine of the angle between two consecutive small steps


def surface(point):
    """Return (1 - x^2)^2 / 8 + 6.5 y^2: a saddle at 0, minima at (-1, 0) and (1, 0), curvatures -1/2, 1 and 13."""
    x, y = point[0], point[1]
    return (1 - x**2) ** 2 / 8 + 6.5 * y**2


def numbers(settings):
    """Return Numbers. The seed draws the noise. The start is fixed."""
    keys = jax.random.split(jax.random.key(settings.seed), 1000 if settings.full else 100)
    batch = {name: np.asarray(_path(method, RATE, ITERATIONS, 0.0, keys[0])) for name, method in METHODS.items()}
    steps = SHOWN * SMALL_STEPS
    noisy = {
        name: jax.jit(jax.vmap(partial(_path, method, NOISY_RATE / SMALL_STEPS, steps, NOISE)))(keys)
        for name, method in METHODS.items()
    }
    return Numbers(
        {name: plain(path[: SHOWN + 1]) for name, path in batch.items()},
        {name: plain(paths[0]) for name, paths in noisy.items()},
        {name: _left(path) for name, path in batch.items()},
        {name: float(_cosine(np.asarray(paths))) for name, paths in noisy.items()},
    )


def _path(method, rate, steps, noise, key):
    """Return the points [steps + 1, 2] of one optimizer whose gradients have noise."""
    optimizer = make_optimizer(method, rate)

    def step(carry, key):
        point, state = carry
        gradient = jax.grad(surface)(point) + noise * jax.random.normal(key, (2,))
        updates, state = optimizer.update(gradient, state, point)
        return (point + updates, state), point + updates

    start = jnp.asarray(START)
    _, points = jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(key, steps))
    return jnp.concatenate([start[None], points])


def _left(path):
    far = np.abs(path[:, 0]) >= LEFT
    return int(far.argmax()) if far.any() else ITERATIONS


def _cosine(paths):
    """Return the mean cosine between consecutive steps of paths [..., steps + 1, 2]."""
    steps = np.diff(paths, axis=-2)
    directions = steps / np.linalg.norm(steps, axis=-1, keepdims=True)
    return (directions[..., 1:, :] * directions[..., :-1, :]).sum(-1).mean()


def table(numbers):
    """Return when each path leaves the saddle, where it is after the shown iterations, and how straight it is."""
    header = (
        "method",
        "iterations to leave the saddle",
        f"value after {SHOWN}",
        "cosine of two steps with noise",
    )
    rows = [
        (
            name,
            f"{numbers.left[name]}",
            f"{surface(numbers.batch[name][-1]):.4f}",
            f"{numbers.cosines[name]:.2f}",
        )
        for name in METHODS
    ]
    return header, rows


def claim(numbers):
    """Return whether the other methods leave the saddle earlier, and whether averages of gradients remove noise."""
    slow = numbers.left["gradient descent"]
    late = max(count for name, count in numbers.left.items() if name != "gradient descent")
    rough = max(numbers.cosines[name] for name in ("gradient descent", "RMSprop"))
    smooth = min(numbers.cosines[name] for name in ("momentum", "Adam"))
    text = (
        f"gradient descent leaves the saddle after {slow} iterations, the others after at most {late} (at most half as "
        f"many); with noise, consecutive steps of gradient descent and RMSprop have a mean cosine of at most "
        f"{rough:.2f} (at most 0.5), those of momentum and Adam at least {smooth:.2f} (at least 0.7)"
    )
    return Claim(text, late <= slow / 2 and rough <= 0.5 and smooth >= 0.7)


def draw(numbers):
    """Return all paths over the contours of the surface, and the value by iteration."""
    figure = new_figure(14, 4.2)
    left, middle, right = figure.subplots(1, 3)
    for axes, paths, rate in ((left, numbers.batch, RATE), (middle, numbers.noisy, NOISY_RATE)):
        _contours(axes)
        for name, path in paths.items():
            axes.plot(*np.transpose(path), ".-", markersize=3, linewidth=1, label=name)
        axes.set_title(f"{'batch' if paths is numbers.batch else 'ten noisy steps each'}, rate {rate:g}")
        axes.legend(fontsize=8)
    for name, path in numbers.batch.items():
        right.plot(surface(np.transpose(path)), label=name)
    right.set(xlabel="iteration", ylabel="value", yscale="log", title=f"batch, rate {RATE:g}")
    right.grid(alpha=0.3)
    return figure


def animate(numbers):
    """Return the animation of both kinds of paths, one frame per iteration."""
    from matplotlib.animation import FuncAnimation

    figure = new_figure(9, 4)
    lines = []
    for axes, paths, small in zip(figure.subplots(1, 2), (numbers.batch, numbers.noisy), (1, SMALL_STEPS)):
        _contours(axes)
        for name, path in paths.items():
            lines += [(axes.plot([], [], ".-", markersize=3, linewidth=1, label=name)[0], path, small)]
    figure.axes[0].legend(fontsize=8)
    title = figure.suptitle("")

    def frame(iteration):
        for line, path, small in lines:
            line.set_data(*np.transpose(path[: iteration * small + 1]))
        title.set_text(f"iteration {iteration}")

    return FuncAnimation(figure, frame, SHOWN + 1)


def _contours(axes):
    x, y = np.meshgrid(np.linspace(-2, 2, 201), np.linspace(-0.6, 0.6, 201))
    axes.contour(x, y, surface((x, y)), np.geomspace(0.01, 4, 13), colors="0.85")
    axes.set(xlim=(-2, 2), ylim=(-0.6, 0.6), xlabel="x", ylabel="y")
