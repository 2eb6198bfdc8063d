"""Averages of weights: stochastic weight averaging, batch norm's moments for averaged weights, snapshots of a run."""

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from deepjax.errors import InputError
from deepjax.runs.checkpoint import Checkpoints
from deepjax.trace.batch_norm import batch_moments


def check(config):
    """Raises InputError where SWA or snapshots do not go with the rest of a config."""
    if config.swa_start > config.epochs:
        raise InputError(f"swa_start {config.swa_start} must be an epoch, 1 to epochs {config.epochs}, or 0 for off")
    chosen = [f"{name} {getattr(config, name)}" for name in ("swa_start", "snapshots") if getattr(config, name)]
    if len(chosen) == 2:
        raise InputError(f"{' and '.join(chosen)} both define what the run tests; set one of them to 0")
    if chosen and config.patience:
        raise InputError(
            f"{chosen[0]} needs all epochs, patience {config.patience} may stop before; set one of them to 0"
        )
    if config.swa_start and config.ema:
        raise InputError(
            f"swa_start {config.swa_start} and ema {config.ema} both average weights; set one of them to 0"
        )
    if config.snapshots:
        _check_cycles(config)


def _check_cycles(config):
    """Raises InputError where the schedule's cycles are not the snapshots'."""
    schedule, cycle = config.schedule, config.epochs / config.snapshots
    if not cycle.is_integer():
        raise InputError(
            f"snapshots {config.snapshots} must divide epochs {config.epochs} into equal cycles; set, say, epochs "
            f"{math.ceil(cycle) * config.snapshots}"
        )
    wanted = {"name": "warm_restarts", "period": cycle, "multiplier": 1.0, "warmup": 0.0}
    for field, value in wanted.items():
        if getattr(schedule, field) != value:
            raise InputError(
                f"schedule.{field} {getattr(schedule, field)} does not go with snapshots {config.snapshots}, whose "
                f"cycles have {cycle:g} epochs; set schedule.name warm_restarts and schedule.period {cycle:g}, "
                f"and leave schedule.multiplier and schedule.warmup"
            )


def finals(config, folder, *, make=True):
    """The Checkpoints of what a run tests in place of its best state, or None where it tests that.

    `averaged/` has the one model of SWA, `snapshots/` one for every cycle done. Without `make`, None too where there is
    no such folder yet.
    """
    path = Path(folder) / ("averaged" if config.swa_start else "snapshots")
    if not (config.swa_start or config.snapshots) or not (make or path.exists()):
        return None
    return Checkpoints(path, max(config.snapshots, 1))


def final_state(state, variables):
    """A TrainState that holds variables and nothing that only training needs: what `finals` keep."""
    empty = {"opt_state": {}, "ema": {}, "swa": {}}
    return state.replace(params=variables["params"], batch_stats=variables["batch_stats"], **empty)


@jax.jit
def include(average, params, count):
    """The equal average of `count` trees and one more, leaf by leaf (Izmailov et al. 2018, algorithm 1)."""
    # Of equal numbers, such as frozen ones, the average is that number to the bit.
    return jax.tree.map(lambda old, new: jnp.where(count == 0, new, old + (new - old) / (count + 1)), average, params)


def mean_parameters(trees: Sequence, names: Sequence[str]):
    """The mean of several trees of parameters, leaf by leaf.

    Args:
      trees: alike in structure and shapes.
      names: what to call each in the message.

    Raises:
      InputError: naming the first parameter in which a tree differs from the first one.

    >>> mean_parameters([{"kernel": jnp.ones(2)}, {"kernel": 3 * jnp.ones(2)}], ["a", "b"])["kernel"].tolist()
    [2.0, 2.0]
    """
    first = _shapes(trees[0])
    for tree, name in zip(trees[1:], names[1:], strict=True):
        other = _shapes(tree)
        for path in sorted(first.keys() | other.keys()):
            if first.get(path) != other.get(path):
                raise InputError(
                    f"weights of different networks cannot be averaged: parameter {path} is "
                    f"{first.get(path, 'missing')} in {names[0]}, {other.get(path, 'missing')} in {name}; "
                    f"average predictions"
                )

    def mean(*leaves):
        return jnp.stack(leaves).mean(0)

    return jax.tree.map(mean, *trees)


def _shapes(tree):
    return {keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}


def moments_step(variables, batch, key, count, *, model, preprocess):
    """Average the moments of batch normalizations over one more batch of the training set.

    As PyTorch's `update_bn`: in training mode, all batches counting alike, the last and smaller one too. The variance
    is what the batch normalization keeps, ours the biased one if not told otherwise (PyTorch's is unbiased). Whatever
    else is in `batch_stats` moves on as in training.

    Args:
      variables: {"params", "batch_stats"}: the moments are means over `count` batches (0: they do not count).
      batch: as in `train_step`; rows whose mask is False do not count.
      key: PRNG key for what is random in training, such as dropout.
      count: batches done.
      model: a Linen module called as `model(x, train=...)`, given `mask=` too where it takes it.
      preprocess: (None, image) -> float input of the model.

    Returns:
      batch_stats, of count + 1 batches.
    """
    image, rngs = preprocess(None, batch["image"]), {"dropout": key}
    moments, called = batch_moments(model, variables, image, train=True, mask=batch["mask"], rngs=rngs)

    def average(old, new, called):
        mean = jnp.where(count == 0, new, old + (new - old) / (count + 1))
        return jnp.where(called, mean, new)

    return jax.tree.map(average, variables["batch_stats"], moments, called)


class MomentEstimator:
    """A function variables -> the same with batch norms' moments estimated by one pass over a training set.

    Without it, averaged weights would be evaluated with the moments of other weights (Izmailov et al. 2018, section
    3.2). Variables of a network without `batch_stats` come back as they are, and nothing is read.

    Args:
      step: jitted (variables, data, rows, count) -> batch_stats, around `moments_step`.
      loader: shuffled, as a sorted set would have batches of one class; the order is that of epoch 0.
      place: puts rows where the step wants them.
    """

    def __init__(self, step, loader, place):
        self.step, self.loader, self.place = step, loader, place

    def __call__(self, variables):
        """The variables must lie where the step wants them."""
        if variables["batch_stats"]:
            for count, rows in enumerate(map(self.place, self.loader.epoch(0))):
                variables = variables | {"batch_stats": self.step(variables, self.loader.data, rows, count)}
        return variables
