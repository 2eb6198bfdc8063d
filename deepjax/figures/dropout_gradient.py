"""The lecture's printed example of dropout: outputs and gradients of 27 ones, number by number, under its mask."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.figures.experiment import Claim, plain
from deepjax.functional import dropout
from deepjax.runs.plots import new_figure

TITLE = "Dropout of 27 ones, and the gradient of the sum of the rows' norms"
SOURCE = "Going deeper: dropout"
USES = ()
RATE = 0.75
MASK = np.array([[1, 0, 1, 1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 1, 0, 1]], bool)
PRINTED = np.where(MASK, np.array([[1.7889], [4.0], [2.3094]]), 0.0)  # the lecture's gradient; its outputs are 4 or 0
DRAWS = 200  # keys among which one is found for each entry


@dataclass(frozen=True)
class Numbers:
    """Outputs and gradients under the lecture's mask."""

    outputs: tuple[tuple[float, ...], ...]  # [3, 9]
    gradients: tuple[tuple[float, ...], ...]


def keys_of(key, mask, rate):
    """Find a key for each entry with which `dropout` keeps it where the mask is True, and drops it elsewhere.

    Args:
      key: PRNG key.
      mask: bool array.
      rate: probability to drop.

    Returns:
      An array of keys like the mask: the first suitable one of DRAWS for each entry.
    """
    keys = jax.random.split(key, (*mask.shape, DRAWS))
    kept = jnp.vectorize(lambda key: dropout(key, jnp.ones(()), rate, train=True) > 0)(keys)
    return jnp.take_along_axis(keys, jnp.argmax(kept == mask[..., None], -1)[..., None], -1)[..., 0]


def numbers(settings):
    """Return Numbers. The seed draws the keys that give the mask; the numbers do not depend on it."""
    keys = keys_of(jax.random.key(settings.seed), MASK, RATE)

    def drop(x):
        return jnp.vectorize(lambda key, x: dropout(key, x, RATE, train=True))(keys, x)

    def loss(x):
        return jnp.linalg.norm(drop(x), axis=1).sum()

    x = jnp.ones(MASK.shape)
    return Numbers(*map(plain, jax.jit(lambda x: (drop(x), jax.grad(loss)(x)))(x)))


def table(numbers):
    """Return the numbers of each row, beside the lecture's."""
    header = ("row", "kept", "output", "gradient", "the lecture's gradient")
    rows = []
    for i, (outputs, gradients, printed) in enumerate(zip(numbers.outputs, numbers.gradients, PRINTED), 1):
        rows.append((i, np.count_nonzero(outputs), f"{max(outputs):g}", f"{max(gradients):.4f}", f"{max(printed):.4f}"))
    return header, rows


def claim(numbers):
    """Return whether all 54 numbers are the lecture's, up to its rounding."""
    outputs = np.abs(np.asarray(numbers.outputs) - MASK / (1 - RATE)).max()
    gradients = np.abs(np.asarray(numbers.gradients) - PRINTED).max()
    text = (
        f"given the mask, the 27 outputs differ from the lecture's by at most {outputs:.1g} (at most 1e-6), and the 27 "
        f"gradients by at most {gradients:.1g} (at most 5.1e-5, the rounding of four digits)"
    )
    return Claim(text, bool(outputs <= 1e-6 and gradients <= 5.1e-5))


def draw(numbers):
    """Return both arrays as numbers."""
    figure = new_figure(9, 4)
    names = ("output y = x mask / (1 - p)", "gradient of the sum of the rows' norms: 4 / sqrt(kept)")
    for axes, name, values in zip(figure.subplots(2, 1), names, (numbers.outputs, numbers.gradients)):
        axes.imshow(np.asarray(values), cmap="Blues", vmin=0, vmax=8, aspect="auto")
        for (i, j), value in np.ndenumerate(np.asarray(values)):
            axes.text(j, i, f"{value:.4f}".rstrip("0").rstrip("."), ha="center", va="center")
        axes.set(xticks=[], yticks=[], title=name)
    return figure
