"""How many mistakes a perceptron makes: at most (R / margin)^2 if the classes are separable, without end if not."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import linear
from deepjax.figures.experiment import Claim
from deepjax.runs.plots import new_figure

TITLE = "Mistakes of a perceptron, and the bound of the convergence theorem"
SOURCE = "Deep learning: perceptron, perceptron convergence theorem"
USES = ("full",)
MARGINS = (0.02, 0.04, 0.08, 0.16, 0.32)
EXAMPLES, FEATURES, EPOCHS = 50, 3, 400
ORTHOGONAL = 20


@dataclass(frozen=True)
class Numbers:
    """Mistakes of many perceptrons, by the margin of their problems."""

    margins: tuple[float, ...]
    mistakes: tuple[tuple[int, ...], ...]  # [margins, problems]
    bounds: tuple[tuple[float, ...], ...]  # [margins, problems]
    last_epoch: tuple[tuple[int, ...], ...]  # mistakes in the last epoch, [margins, problems]
    separable: tuple[int, ...]  # mistakes in each epoch of the first problem of the smallest margin
    xor: tuple[int, ...]  # mistakes in each epoch of a problem that is not separable
    orthogonal: int  # mistakes on orthonormal examples of class -1
    orthogonal_bound: float


def numbers(settings):
    """Return Numbers. Examples are uniform in a cube, and moved to a margin from a random plane through 0."""
    problems = 2000 if settings.full else 100
    problem_key, xor_key = jax.random.split(jax.random.key(settings.seed))
    keys = jax.random.split(problem_key, (len(MARGINS), problems))
    run = jax.jit(jax.vmap(jax.vmap(_mistakes, (0, None)), (0, 0)))
    mistakes, bounds = jax.device_get(run(keys, jnp.array(MARGINS)))
    xor, eye = np.array([[-1.0, -1], [1, 1], [-1, 1], [1, -1]], np.float32), np.eye(ORTHOGONAL, dtype=np.float32)
    order = linear.shuffled(xor_key, 4, EPOCHS)
    _, wrong = linear.perceptron(linear.with_bias(xor), np.array([-1, -1, 1, 1]), order)
    _, once = linear.perceptron(eye, -np.ones(ORTHOGONAL), np.tile(np.arange(ORTHOGONAL), 3))
    total, last = mistakes.sum(-1), mistakes[..., -1]
    return Numbers(
        MARGINS,
        tuple(map(tuple, total.tolist())),
        tuple(map(tuple, bounds.tolist())),
        tuple(map(tuple, last.tolist())),
        tuple(mistakes[0, 0].tolist()),
        tuple(np.asarray(wrong).reshape(EPOCHS, 4).sum(1).tolist()),
        int(once.sum()),
        float(linear.mistake_bound(eye, -np.ones(ORTHOGONAL), -np.ones(ORTHOGONAL, np.float32))),
    )


def _mistakes(key, margin):
    """Return (mistakes in each epoch, bound) of one separable problem."""
    plane, points, order = jax.random.split(key, 3)
    w = jax.random.normal(plane, (FEATURES,))
    w /= jnp.linalg.norm(w)
    x = jax.random.uniform(points, (EXAMPLES, FEATURES), minval=-1)
    y = linear.sign(x @ w)
    x += (margin - jnp.min(y * (x @ w))) * jnp.outer(y, w)  # the nearest example is then at the margin
    _, mistakes = linear.perceptron(x, y, linear.shuffled(order, EXAMPLES, EPOCHS))
    return mistakes.reshape(EPOCHS, EXAMPLES).sum(1), linear.mistake_bound(x, y, w)


def table(numbers):
    """Return mistakes and bounds by margin."""
    header = ("margin", "mistakes: median", "most", "bound: least", "most of mistakes / bound", "in the last epoch")
    rows = []
    for margin, made, bounds, last in zip(numbers.margins, numbers.mistakes, numbers.bounds, numbers.last_epoch):
        share = np.max(np.divide(made, bounds))
        rows.append(
            (f"{margin:g}", f"{np.median(made):.0f}", max(made), f"{min(bounds):.0f}", f"{share:.3f}", max(last))
        )
    orthogonal, bound = numbers.orthogonal, numbers.orthogonal_bound
    rows.append((f"{ORTHOGONAL} orthonormal", orthogonal, orthogonal, f"{bound:.0f}", f"{orthogonal / bound:.3f}", 0))
    rows.append(("XOR", sum(numbers.xor), sum(numbers.xor), "none", "", numbers.xor[-1]))
    return header, rows


def claim(numbers):
    """Return whether no bound is passed, all separable problems are solved, and XOR is not."""
    share = np.max(np.divide(numbers.mistakes, numbers.bounds))
    unsolved = np.count_nonzero(numbers.last_epoch)
    text = (
        f"of {np.size(numbers.mistakes)} separable problems none makes more mistakes than its bound (the most: "
        f"{share:.1%} of it), and {unsolved} make mistakes in epoch {EPOCHS} (none may); on orthonormal examples there "
        f"are {numbers.orthogonal} mistakes, as many as the bound {numbers.orthogonal_bound:.2f}; XOR has mistakes in "
        f"every epoch (at least {min(numbers.xor)})"
    )
    exact = abs(numbers.orthogonal - numbers.orthogonal_bound) < 0.01
    return Claim(text, bool(share <= 1 and unsolved == 0 and exact and min(numbers.xor) > 0))


def draw(numbers):
    """Return mistakes over the margin below their bound, and mistakes over epochs."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    left.plot(numbers.margins, [np.median(b) for b in numbers.bounds], "k--", label="bound, median")
    left.plot(numbers.margins, [max(m) for m in numbers.mistakes], "v", label="mistakes, the most of all problems")
    left.plot(numbers.margins, [np.median(m) for m in numbers.mistakes], "o", label="mistakes, median")
    left.set(xlabel="margin", ylabel="mistakes", xscale="log", yscale="log")
    left.set_xticks(numbers.margins, [f"{margin:g}" for margin in numbers.margins])
    left.set_xticks([], minor=True)
    epochs = np.arange(1, 51)
    right.plot(epochs, numbers.separable[:50], "o-", markersize=3, label=f"separable, margin {numbers.margins[0]:g}")
    right.plot(epochs, numbers.xor[:50], "s-", markersize=3, label="XOR, not separable (4 examples)")
    right.set(xlabel="epoch", ylabel="mistakes in the epoch")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
