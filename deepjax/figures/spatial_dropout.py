"""Dropped units of a map can be predicted from their neighbors; a dropped map cannot (SpatialDropout)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import functional
from deepjax.figures import small_runs
from deepjax.figures.experiment import Claim, plain
from deepjax.runs.plots import new_figure

TITLE = "What dropout and SpatialDropout hide of maps whose neighbors are correlated"
SOURCE = "Going deeper: dropout; Tompson et al. 2015 (arXiv 1411.4280), section 3.2"
USES = ("full",)
PRINTED = ((0, 0, 2), (2, 0, 2))  # value of each map [example, channel] of 2x2 in the lecture's example
RATE, RIDGE = 0.5, 1e-6
WAYS = ("dropout", "SpatialDropout", "dropout, pixels without correlation")


@dataclass(frozen=True)
class Numbers:
    """The lecture's example under its mask, and how much of the dropped units is hidden from the kept ones."""

    example: tuple  # [2, 3, 2, 2]: example, channel, row, column
    neighbors: tuple[float, ...]  # correlation of horizontal neighbors, one for each feature
    hidden: dict[str, tuple[float, ...]]  # by way: unexplained share of the dropped variance, of each feature
    maps: dict[str, tuple]  # by way: one map after dropping


def printed_example(key):
    """Return `functional.spatial_dropout` of ones [2, 2, 2, 3] under the lecture's mask, as [2, 3, 2, 2]."""
    drop = jax.vmap(lambda key: functional.spatial_dropout(key, jnp.ones((1, 2, 2, 1)), RATE, train=True)[0, ..., 0])
    keys = jax.random.split(key, 200)
    maps = drop(keys)
    kept = maps[:, 0, 0] > 0
    return jnp.stack([jnp.stack([maps[jnp.argmax(kept == bool(v))] for v in row]) for row in PRINTED])


def hidden_share(covariance, kept):
    """Return which share of the dropped units' variance a linear estimate from the kept ones leaves unexplained.

    Args:
      covariance: of the units of a map, float64 [units, units].
      kept: bool [units].

    Returns:
      trace(C_dd - C_dk C_kk^-1 C_kd) / trace(C_dd) of the dropped d and the kept k; NaN if none is dropped.
    """
    inside, between = covariance[np.ix_(kept, kept)], covariance[np.ix_(kept, ~kept)]
    inside = inside + RIDGE * np.trace(covariance) / len(kept) * np.eye(len(inside))
    dropped = np.trace(covariance[np.ix_(~kept, ~kept)])
    explained = np.sum(between * np.linalg.solve(inside, between)) if kept.any() else 0.0
    return 1 - explained / dropped if dropped else float("nan")


def numbers(settings):
    """Return Numbers. The seed draws the kernels of the convolution and the masks."""
    features, draws = (64, 20) if settings.full else (16, 5)
    example, kernel, *masks, shuffle = jax.random.split(jax.random.key(settings.seed), 5)
    images = small_runs.load("digits")[0].inputs
    kernels = jax.random.normal(kernel, (3, 3, 1, features)) * np.sqrt(2 / 9)
    maps = np.asarray(functional.relu(functional.conv(images, kernels)), np.float64)
    ones, rng = jnp.ones((draws, *maps.shape[1:])), np.random.default_rng(int(jax.random.bits(shuffle)))
    units = np.asarray(functional.dropout(masks[0], ones, RATE, train=True)) > 0
    whole = np.asarray(functional.spatial_dropout(masks[1], ones, RATE, train=True)) > 0
    ways = dict(zip(WAYS, ((maps, units), (maps, whole), (rng.permuted(maps, axis=0), units))))
    return Numbers(
        plain(printed_example(example)),
        tuple(float(np.corrcoef(maps[:, :, :-1, f].ravel(), maps[:, :, 1:, f].ravel())[0, 1]) for f in range(features)),
        {way: _hidden(of, kept) for way, (of, kept) in ways.items()},
        {way: plain((of[0] * kept[0])[..., :4].transpose(2, 0, 1)) for way, (of, kept) in ways.items()},
    )


def _hidden(maps, kept):
    """Return the hidden share of each feature of which something is dropped, the mean over these masks."""
    shares = []
    for f in range(maps.shape[-1]):
        covariance = np.cov(maps[..., f].reshape(len(maps), -1), rowvar=False)
        each = [hidden_share(covariance, mask.ravel()) for mask in kept[..., f] if not mask.all()]
        if each:
            shares.append(float(np.mean(each)))
    return tuple(shares)


def table(numbers):
    """Return the mean share that each way hides."""
    header = ("way", "hidden share of the dropped units' variance: mean", "least", "most of the features")
    rows = [(way, *(f"{f(each):.1%}" for f in (np.mean, min, max))) for way, each in numbers.hidden.items()]
    return header, [*rows, ("correlation of neighbors", *(f"{f(numbers.neighbors):.2f}" for f in (np.mean, min, max)))]


def claim(numbers):
    """Return whether dropout hides little of correlated maps, and SpatialDropout everything it drops."""
    unit, whole, shuffled = (float(np.mean(numbers.hidden[way])) for way in WAYS)
    same = np.array_equal(
        np.asarray(numbers.example), np.broadcast_to(np.array(PRINTED)[..., None, None], (2, 3, 2, 2))
    )
    text = (
        f"the lecture's example is {'the same' if same else 'NOT the same'} given its mask; of the dropped units' "
        f"variance, {unit:.0%} cannot be estimated from the kept units of the map (at most 70 %), {whole:.0%} with "
        f"SpatialDropout (100 %), and {shuffled:.0%} with dropout if pixels have no correlation (at least 90 %)"
    )
    return Claim(text, bool(same and unit <= 0.7 and whole > 1 - 1e-9 and shuffled >= 0.9))


def draw(numbers):
    """Return maps after each way of dropping, and the hidden shares."""
    figure = new_figure(11, 5)
    grid = figure.subplots(len(WAYS), 6)
    for row, way in zip(grid, WAYS):
        for axes, image in zip(row, numbers.maps[way]):
            axes.imshow(np.asarray(image), cmap="Greys", vmin=0, vmax=2.5)
        row[0].set_ylabel(way.replace(", ", ",\n"), fontsize=7)
        for axes in row:
            axes.set(xticks=[], yticks=[])
        row[4].axis("off")
        row[5].axis("off")
    axes = figure.add_axes((0.74, 0.12, 0.24, 0.76))
    axes.boxplot([numbers.hidden[way] for way in WAYS])
    axes.set_xticks(range(1, 4), [way.replace(" ", "\n") for way in WAYS], fontsize=6)
    axes.set_ylabel("hidden share of the dropped units' variance", fontsize=8)
    return figure
