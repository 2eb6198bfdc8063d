"""Standardized inputs make the loss surface of a linear regression round, so that gradient descent goes straight."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.data import Standardizer
from deepjax.figures.experiment import Claim
from deepjax.runs.plots import new_figure

TITLE = "Loss surface of a linear regression with raw and standardized inputs"
SOURCE = "Deep learning: standardizing your inputs"
USES = ()
KINDS = {"raw": None, "min-max": "min_max", "z-score": "z_score"}
SAMPLES, START, STEPS, NEAR = 30, (10.0, 5.0), 2000, 0.01


@dataclass(frozen=True)
class Numbers:
    """For each kind of inputs: the quadratic loss, and the path of gradient descent at its best rate."""

    hessians: dict[str, tuple[tuple[float, ...], ...]]  # of the loss, over (intercept, slope)
    minima: dict[str, tuple[float, ...]]
    lowest: float  # the loss there, which is the same for all
    conditions: dict[str, float]  # largest over smallest eigenvalue
    paths: dict[str, tuple[tuple[float, ...], ...]]  # the first points
    steps: dict[str, int]  # until the distance from the minimum is 1 % of the first distance


def samples(seed, count=SAMPLES):
    """Return x [count] from U(0, 10) and y = 3x + 2 + U(-0.1, 0.1), float64. The lecture does not state x."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 10, count)
    return x, 3 * x + 2 + rng.uniform(-0.1, 0.1, count)


def quadratic(x, y):
    """Return Hessian [2, 2], minimum [2] and lowest value of the mean of (y - intercept - slope x)^2."""
    inputs = np.stack([np.ones_like(x), x], 1)
    minimum = np.linalg.lstsq(inputs, y, rcond=None)[0]
    return 2 * inputs.T @ inputs / len(x), minimum, np.mean((y - inputs @ minimum) ** 2)


def numbers(settings):
    """Return Numbers. The seed draws the samples."""
    x, y = samples(settings.seed)
    inputs = {name: _standardized(x, kind) for name, kind in KINDS.items()}
    surfaces = {name: quadratic(each, y) for name, each in inputs.items()}
    values = {name: np.linalg.eigvalsh(surface[0]) for name, surface in surfaces.items()}
    paths = {name: _descend(*surfaces[name][:2], 2 / values[name].sum()) for name in KINDS}
    far = {name: np.linalg.norm(paths[name] - surfaces[name][1], axis=1) for name in KINDS}
    return Numbers(
        {name: tuple(map(tuple, surface[0].tolist())) for name, surface in surfaces.items()},
        {name: tuple(surface[1].tolist()) for name, surface in surfaces.items()},
        float(surfaces["raw"][2]),
        {name: float(largest / smallest) for name, (smallest, largest) in values.items()},
        {name: tuple(map(tuple, path[:60].tolist())) for name, path in paths.items()},
        {name: int(np.argmax(each <= NEAR * each[0])) for name, each in far.items()},
    )


def _standardized(x, kind):
    """Standardize x; all weights then still describe lines over the same points."""
    return x if kind is None else np.asarray(Standardizer.fit(kind, x[:, None]).apply(x[:, None])[:, 0], float)


def _descend(hessian, minimum, rate):
    """Return the points of gradient descent, [STEPS + 1, 2]."""

    def step(point, _):
        moved = point - rate * hessian @ (point - minimum)
        return moved, moved

    _, points = jax.lax.scan(step, jnp.asarray(START), length=STEPS)
    return np.asarray([START, *points], float)


def table(numbers):
    """Return condition number and steps of each kind of inputs."""
    header = ("inputs", "condition number", f"steps to {NEAR:.0%} of the distance")
    return header, [(name, f"{numbers.conditions[name]:.4g}", f"{numbers.steps[name]:,}") for name in KINDS]


def claim(numbers):
    """Return whether z-scores make the surface round, and descent fast."""
    raw, scored = (numbers.conditions[name] for name in ("raw", "z-score"))
    slow, fast = (numbers.steps[name] for name in ("raw", "z-score"))
    text = (
        f"the condition number is {raw:.0f} (at least 30) with raw inputs and {scored:.4f} (at most 1.001) with "
        f"z-scores; gradient descent at its best rate takes {slow} steps (at least 30) and {fast} (at most 2)"
    )
    return Claim(text, raw >= 30 and scored <= 1.001 and slow >= 30 and 1 <= fast <= 2)


def draw(numbers):
    """Return the contours of each loss, in equal units of both axes, with the path of gradient descent."""
    figure = new_figure(12, 4.2)
    for axes, name in zip(figure.subplots(1, len(KINDS)), KINDS):
        path, minimum = np.asarray(numbers.paths[name]), np.asarray(numbers.minima[name])
        reach = 1.15 * np.abs(path - minimum).max()
        offsets = np.linspace(-reach, reach, 121)
        grid = np.stack(np.meshgrid(offsets, offsets), -1)
        loss = numbers.lowest + np.einsum("...i,ij,...j", grid, np.asarray(numbers.hessians[name]), grid) / 2
        levels = np.geomspace(loss.max() / 1e4, loss.max(), 14)
        axes.contour(minimum[0] + offsets, minimum[1] + offsets, loss, levels=levels, cmap="Greys", linewidths=0.8)
        axes.plot(*path.T, ".-", label="gradient descent")
        axes.plot(*minimum, "*", markersize=11, label="minimum")
        axes.set(xlabel="intercept", ylabel="slope", aspect="equal")
        axes.set_title(f"{name} inputs: condition number {numbers.conditions[name]:.3g}", fontsize=10)
        axes.legend(fontsize=8, loc="upper right")
    return figure
