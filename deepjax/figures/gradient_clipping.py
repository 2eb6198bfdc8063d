"""The loss of a deep network of one unit per layer has a cliff, from which a step without clipping leads far away."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax.figures.experiment import Claim, plain
from deepjax.functional import sigmoid
from deepjax.runs.plots import new_figure

TITLE = "Gradient descent at a cliff of the loss, with and without gradient clipping"
SOURCE = "Deep learning: vanishing and exploding gradients; Pascanu et al. 2013, figure 6"
USES = ("full",)
LAYERS, INPUT, TARGET = 50, 0.5, 0.7  # the paper's
RATE, NORM, STEPS, SOLVED = 0.5, 1.0, 300, 1e-3
LOWEST, HIGHEST = (4.0, -4.0), (7.0, -1.0)  # of the starts (w, b), which lie on both sides of the cliff
KINDS = {"without clipping": optax.sgd(RATE), "clipped": optax.chain(optax.clip_by_global_norm(NORM), optax.sgd(RATE))}


@dataclass(frozen=True)
class Numbers:
    """Descents from the same starts, with and without clipping; the shown ones have the longest unclipped step."""

    starts: int
    solved: dict[str, float]  # share of the descents that end with a loss below SOLVED
    longest: dict[str, float]  # largest distance that one update moves (w, b), over all descents
    paths: dict[str, tuple[tuple[float, ...], ...]]  # of the shown descent, (w, b) before each update and at the end
    losses: dict[str, tuple[float, ...]]  # at these points


def loss(point):
    """Return the squared error of a network of LAYERS units whose weights are all w, and whose biases are all b.

    Args:
      point: [2], w and b.
    """
    last, _ = jax.lax.scan(lambda x, _: (point[0] * sigmoid(x) + point[1], None), INPUT, length=LAYERS)
    return (sigmoid(last) - TARGET) ** 2


def descend(optimizer, start):
    """Return the points [STEPS + 1, 2] of a descent, and their losses [STEPS + 1]."""

    def step(carry, _):
        point, state = carry
        updates, state = optimizer.update(jax.grad(loss)(point), state)
        return (optax.apply_updates(point, updates), state), point

    (end, _), points = jax.lax.scan(step, (start, optimizer.init(start)), length=STEPS)
    points = jnp.concatenate([points, end[None]])
    return points, jax.vmap(loss)(points)


def numbers(settings):
    """Return Numbers of 200 starts, in full 5,000. The seed draws them, uniformly between LOWEST and HIGHEST."""
    count = 5000 if settings.full else 200
    low, high = jnp.asarray(LOWEST), jnp.asarray(HIGHEST)
    starts = jax.random.uniform(jax.random.key(settings.seed), (count, 2), minval=low, maxval=high)
    found = {}
    for kind, optimizer in KINDS.items():
        descents = jax.jit(jax.vmap(lambda start, optimizer=optimizer: descend(optimizer, start)))
        found[kind] = [np.asarray(each, float) for each in descents(starts)]
    lengths = {kind: np.linalg.norm(np.diff(points, axis=1), axis=2).max(1) for kind, (points, _) in found.items()}
    shown = int(lengths["without clipping"].argmax())
    return Numbers(
        count,
        {kind: float((losses[:, -1] < SOLVED).mean()) for kind, (_, losses) in found.items()},
        {kind: float(each.max()) for kind, each in lengths.items()},
        {kind: plain(points[shown]) for kind, (points, _) in found.items()},
        {kind: plain(losses[shown]) for kind, (_, losses) in found.items()},
    )


def table(numbers):
    """Return longest step and share of solved descents of each kind."""
    rows = [(kind, f"{numbers.longest[kind]:.3g}", f"{numbers.solved[kind]:.0%}") for kind in KINDS]
    return ("gradient descent", "longest step", f"ends below a loss of {SOLVED:g}"), rows


def claim(numbers):
    """Return whether steps explode without clipping, and clipped descents solve the task more often."""
    (far, near), (few, many) = numbers.longest.values(), numbers.solved.values()
    text = (
        f"of {numbers.starts:,} descents, the longest step is {far:.3g} without clipping (at least 20) and {near:.2f} "
        f"with gradients of norm {NORM:g} at most (rate {RATE:g}); {few:.0%} without and {many:.0%} with clipping end "
        f"below a loss of {SOLVED:g} (at least 25 points more)"
    )
    return Claim(text, bool(far >= 20 and near <= 1.001 * RATE * NORM and many - few >= 0.25))


def draw(numbers):
    """Return the loss over w and b with the beginnings of two paths, and the losses of both."""
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    w, b = np.meshgrid(np.linspace(3, 8, 200), np.linspace(-5, 0, 200))
    values = jax.jit(jax.vmap(loss))(jnp.stack([w.ravel(), b.ravel()], 1))
    shades = left.contourf(w, b, np.asarray(values).reshape(w.shape), 20, cmap="Greys")
    figure.colorbar(shades, label="loss")
    for (kind, path), style, losses in zip(numbers.paths.items(), ("o-", "s-"), numbers.losses.values()):
        left.plot(*np.transpose(path), style, markersize=3, linewidth=1, label=kind)
        right.plot(losses, label=kind)
    left.set(xlabel="weight w", ylabel="bias b", xlim=(3, 8), ylim=(-5, 0))
    left.set_title("the path without clipping leaves the picture", fontsize=9)
    right.set(xlabel="updates", ylabel="loss", yscale="log")
    for axes in (left, right):
        axes.legend()
    return figure
