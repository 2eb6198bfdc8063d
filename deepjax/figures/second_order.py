"""Newton's method and its relatives on a saddle, and in the curved valley of Rosenbrock's function."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.figures.experiment import Claim
from deepjax.optimizers import second_order
from deepjax.runs.plots import new_figure

TITLE = "Second-order methods on a saddle and on Rosenbrock's function"
SOURCE = "Optimization and deeper architectures: second order, Hessian-free; Dauphin et al. 2014"
USES = ("full",)
METHODS = {
    "Newton": second_order.newton,
    "saddle-free Newton": second_order.saddle_free_newton,
    "Newton-CG": second_order.newton_cg,
    "nonlinear CG": second_order.nonlinear_cg,
    "BFGS": second_order.bfgs,
}
FUNCTIONS = ("saddle", "Rosenbrock")
STEPS = 200  # iterations of a method, and points of a path
DESCENT, UPDATES = "gradient descent", 40_000
RATES, SADDLE_RATE = (1e-4, 2e-4, 5e-4, 1e-3), 0.1
NEAR, BOTTOM, TIMES = 1e-3, 1e-6, 10  # distance from a point, value that counts as the minimum, ratio of costs


@dataclass(frozen=True)
class Numbers:
    """For each method: where it ends, what it costs, and its paths from one start."""

    at_saddle: dict[str, float]  # fraction of the starts near the saddle from which it ends at the saddle
    at_minimum: dict[str, float]  # and at a minimum
    reached: dict[str, float]  # Rosenbrock: fraction of the starts from which it ends at a value of at most BOTTOM
    gradients: dict[str, float]  # median of evaluations of the gradient, from these starts
    products: dict[str, float]  # median of products of the Hessian and a vector
    rate: float  # of gradient descent: the best of RATES on Rosenbrock's function
    paths: dict[str, dict[str, tuple[tuple[float, ...], ...]]]  # function -> method -> points from one start
    iterations: dict[str, dict[str, int]]  # function -> method -> iterations from that start


def saddle(p):
    """Return x^2 - y^2 + y^4 / 2: a saddle at 0, and minima at (0, -1) and (0, 1)."""
    return p[0] ** 2 - p[1] ** 2 + p[1] ** 4 / 2


def rosenbrock(p):
    """Return (1 - x)^2 + 100 (y - x^2)^2, whose minimum is at (1, 1)."""
    return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2


def numbers(settings):
    """Return Numbers. The seed draws the starts, in a box around the saddle and in one around Rosenbrock's valley."""
    rng, size = np.random.default_rng(settings.seed), 1000 if settings.full else 100
    near = np.vstack([(0.9, 0.05), rng.uniform((-1, -0.3), (1, 0.3), (size, 2))])
    around = np.vstack([(-1.2, 1.0), rng.uniform((-2, -1), (2, 3), (size, 2))])
    with jax.enable_x64(True):  # the minima are found to more digits than float32 has
        results: dict[str, Any] = {name: _from_all(method, near, around) for name, method in METHODS.items()}
        results[DESCENT], rate = _descents(near, around)
    ends = {name: np.abs(on_saddle.x) for name, (on_saddle, _) in results.items()}
    valley = {name: on_valley for name, (_, on_valley) in results.items()}
    return Numbers(
        {name: float((end < NEAR).all(1).mean()) for name, end in ends.items()},
        {name: float((np.abs(end - [0, 1]) < NEAR).all(1).mean()) for name, end in ends.items()},
        {name: _reached(result) for name, result in valley.items()},
        {name: float(np.median(result.gradients)) for name, result in valley.items()},
        {name: float(np.median(result.products)) for name, result in valley.items()},
        rate,
        {f: _paths(results, i) for i, f in enumerate(FUNCTIONS)},
        {f: {name: int(both[i].iterations[0]) for name, both in results.items()} for i, f in enumerate(FUNCTIONS)},
    )


def _from_all(method, *starts):
    """Return the Results of a method for the saddle and for the valley, from all starts in one program."""

    def run(valley, x):
        return method(lambda p: jnp.where(valley, rosenbrock(p), saddle(p)), x, steps=STEPS)

    valley = np.repeat([False, True], len(starts[0]))
    results = jax.device_get(jax.jit(jax.vmap(run))(valley, np.concatenate(starts)))
    return tuple(jax.tree.map(lambda rows, half=half: np.split(rows, 2)[half], results) for half in range(2))


def _descents(near, around):
    """Return the Results of gradient descent as `_from_all` does, and the best of RATES in the valley."""
    descend = jax.jit(jax.vmap(_descend, (None, None, None, 0)), static_argnums=(0, 1))
    sweep = [jax.device_get(descend(rosenbrock, UPDATES, rate, around)) for rate in RATES]
    best = min(range(len(RATES)), key=lambda i: (-_reached(sweep[i]), np.median(sweep[i].gradients)))
    return (jax.device_get(descend(saddle, STEPS, SADDLE_RATE, near)), sweep[best]), RATES[best]


def _descend(f, length, rate, x):
    """Return the Result of gradient descent, which stops in the valley at values of at most BOTTOM."""

    def update(_, carry):
        x, count = carry
        value, gradient = jax.value_and_grad(f)(x)
        going = (value > BOTTOM) | (f is saddle)
        return x - jnp.where(going, rate, 0) * gradient, count + going

    def updates(carry, _):
        carry = jax.lax.fori_loop(0, length // STEPS, update, carry)
        return carry, carry[0]

    (end, count), path = jax.lax.scan(updates, (x, 0), length=STEPS)
    return second_order.Result(end, f(end), jnp.concatenate([x[None], path]), count, count, jnp.zeros_like(count))


def _reached(results):
    """Return the fraction of the starts from which the minimum of the valley was reached."""
    return float((results.value <= BOTTOM).mean())


def _paths(results, which):
    """Return the path of each method from the first start, whose last point is not repeated."""
    paths = {name: both[which].path[0].tolist() for name, both in results.items()}
    return {
        name: tuple(tuple(p) for i, p in enumerate(path) if i == 0 or p != path[i - 1]) for name, path in paths.items()
    }


def table(numbers):
    """Return where each method ends, and what it costs in the valley."""
    header = ("method", "saddle", "minimum", "valley's minimum", "gradients", "Hessian products")
    rows = [
        (
            name,
            f"{numbers.at_saddle[name]:.0%}",
            f"{numbers.at_minimum[name]:.0%}",
            f"{numbers.reached[name]:.0%}",
            f"{numbers.gradients[name]:,.0f}",
            f"{numbers.products[name]:,.0f}",
        )
        for name in (*METHODS, DESCENT)
    ]
    return header, rows


def claim(numbers):
    """Return whether Newton finds the saddle, the others minima, and all of them are faster than gradient descent."""
    others = [name for name in METHODS if name != "Newton"]
    costs = {name: numbers.gradients[name] + 2 * numbers.products[name] for name in METHODS}
    dearest = max(costs, key=costs.__getitem__)
    minimum = min(numbers.at_minimum[name] for name in others)
    reached = min(numbers.reached[name] for name in METHODS)
    ratio = numbers.gradients[DESCENT] / costs[dearest]
    text = (
        f"near the saddle, Newton's update ends there from {numbers.at_saddle['Newton']:.0%} (at least 99 %) of the "
        f"starts, each other method at a minimum from {minimum:.0%} (at least 99 %); on Rosenbrock's function each "
        f"reaches the minimum from {reached:.0%} (at least 80 %) within {STEPS} iterations, and gradient descent at "
        f"its best rate ({numbers.rate:g}) needs {ratio:.0f} times (at least {TIMES}) the gradients of the dearest "
        f"of them ({dearest}; a product counts as two gradients)"
    )
    holds = numbers.at_saddle["Newton"] >= 0.99 and minimum >= 0.99 and reached >= 0.8 and ratio >= TIMES
    return Claim(text, holds)


def draw(numbers):
    """Return the paths of all methods over the contours of both functions."""
    figure = new_figure(12, 5)
    boxes: Any = {
        "saddle": (saddle, (-1, 1), (-0.3, 1.3), 20),
        "Rosenbrock": (rosenbrock, (-1.6, 1.4), (-0.6, 2), None),
    }
    for axes, (name, (f, wide, high, levels)) in zip(figure.subplots(1, 2), boxes.items()):
        x, y = np.meshgrid(np.linspace(wide[0], wide[1], 201), np.linspace(high[0], high[1], 201))
        heights = f((x, y))
        axes.contour(x, y, heights, np.geomspace(0.1, 1000, 13) if levels is None else levels, colors="0.85")
        styles = zip(numbers.paths[name].items(), ("o-", "s-", "^-", "v-", "D-", "--"))
        for (method, path), style in styles:
            axes.plot(
                *np.transpose(path),
                style,
                markersize=4,
                linewidth=1.2,
                label=f"{method} ({numbers.iterations[name][method]:,})",
            )
        axes.set(xlim=wide, ylim=high, xlabel="x", ylabel="y")
        axes.legend(fontsize=8)
    left, right = figure.axes
    left.set_title("x² - y² + y⁴/2: saddle at 0, minimum at (0, 1)")
    right.set_title("Rosenbrock: minimum at (1, 1)")
    return figure
