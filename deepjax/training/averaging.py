"""Averages of weights: stochastic weight averaging, batch norms' moments for averaged weights, snapshots of a run."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from deepjax.errors import InputError
from deepjax.trace.batch_norm import observed_batch_moments
from deepjax.training import freezing


def check(config):
    """Raise InputError if SWA or snapshots do not fit the rest of a config."""
    if config.swa_start > config.epochs:
        raise InputError(f"swa_start {config.swa_start} must be an epoch, 1 to epochs {config.epochs}, or 0 for off")
    chosen = [f"{name} {getattr(config, name)}" for name in ("swa_start", "snapshots") if getattr(config, name)]
    if len(chosen) == 2:
        raise InputError(f"{' and '.join(chosen)} both determine what the run tests; set one of them to 0")
    if chosen and config.patience:
        raise InputError(
            f"{chosen[0]} needs all epochs, patience {config.patience} may end the run earlier; set one of them to 0"
        )
    if config.swa_start and config.ema:
        raise InputError(
            f"swa_start {config.swa_start} and ema {config.ema} both average weights; set one of them to 0"
        )
    if config.swa_start and config.freeze_moments:
        _check_moments(config)
    if config.snapshots:
        _check_cycles(config)


def _check_moments(config):
    """Raise InputError if moments that freeze_moments keeps to the end of the run would be estimated again."""
    freezing.check(config)
    for pattern, settings in freezing.frozen_optimizer(config).groups.items():
        if settings.get("frozen") or settings.get("frozen_until", 0) >= config.epochs:
            raise InputError(
                f"swa_start {config.swa_start} estimates the moments of all batch norms again, but freeze_moments True "
                f"keeps those of {pattern!r}; set swa_start 0 or freeze_moments False, or thaw {pattern!r} earlier"
            )


def _check_cycles(config):
    """Raise InputError if the schedule's cycles are not the snapshots'."""
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


def final_state(state, variables):
    """Return a TrainState with these variables and nothing that only training needs: what final checkpoints hold."""
    empty = {"opt_state": {}, "ema": {}, "swa": {}}
    return state.replace(params=variables["params"], batch_stats=variables["batch_stats"], **empty)


@jax.jit
def include(average, params, count):
    """Return the equal average of `count` trees and one more, leaf by leaf (Izmailov et al. 2018, algorithm 1)."""
    # Written so that the average of equal numbers, such as frozen parameters, is bit-identical to them.
    return jax.tree.map(lambda old, new: jnp.where(count == 0, new, old + (new - old) / (count + 1)), average, params)


def mean_parameters(trees: Sequence, names: Sequence[str]):
    """Return the mean of several trees of parameters, leaf by leaf.

    Args:
      trees: equal in structure and shapes.
      names: name of each tree, for the error message.

    Raises:
      InputError: a tree differs from the first one; the message names the first such parameter.

    >>> mean_parameters([{"kernel": jnp.ones(2)}, {"kernel": 3 * jnp.ones(2)}], ["a", "b"])["kernel"].tolist()
    [2.0, 2.0]
    """
    for tree, name in zip(trees[1:], names[1:], strict=True):
        if difference := first_difference(trees[0], tree):
            path, one, other = difference
            raise InputError(
                f"weights of different networks cannot be averaged: parameter {path} is {one} in {names[0]}, {other} "
                f"in {name}; average predictions"
            )

    def mean(*leaves):
        return jnp.stack(leaves).mean(0)

    return jax.tree.map(mean, *trees)


def first_difference(tree, other):
    """Return (path, shape in `tree`, shape in `other`) of the first leaf whose shapes differ, or None.

    A shape is "missing" where a tree does not have the leaf.
    """
    one, two = _shapes(tree), _shapes(other)
    paths = (path for path in sorted(one.keys() | two.keys()) if one.get(path) != two.get(path))
    return next(((path, one.get(path, "missing"), two.get(path, "missing")) for path in paths), None)


def _shapes(tree):
    return {keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}


def moments_step(variables, batch, key, count, *, model, task):
    """Average the moments of batch normalizations over one more batch of the training set.

    This is PyTorch's `update_bn`: the model is in training mode, and all batches have equal weight, including the last
    and smaller one. The variance is the one that the batch normalization keeps, by default the biased one (PyTorch's is
    unbiased). Other entries of `batch_stats` change as in training.

    Args:
      variables: {"params", "batch_stats"}: the moments are means over `count` batches (0: they do not count).
      batch: as in `train_step`; rows whose mask is False do not count.
      key: PRNG key of what is random in training, such as dropout.
      count: number of batches before this one.
      model: a Linen module, called with those of `train` and `mask` that it takes.
      task: gives the model's inputs, as in evaluation.

    Returns:
      batch_stats, of count + 1 batches.
    """
    inputs, _ = task.prepare(batch)
    moments, called = observed_batch_moments(
        model, variables, inputs, train=True, mask=batch["mask"], rngs={"dropout": key}
    )

    def average(old, new, called):
        mean = jnp.where(count == 0, new, old + (new - old) / (count + 1))
        return jnp.where(called, mean, new)

    return jax.tree.map(average, variables["batch_stats"], moments, called)


class MomentEstimator:
    """The function variables -> the same with batch norms' moments estimated by one pass over a training set.

    Without it, averaged weights would be evaluated with the moments of other weights (Izmailov et al. 2018, section
    3.2). Variables of a network without `batch_stats` are returned unchanged, and nothing is read.

    Args:
      step: jitted (variables, data, rows, count) -> batch_stats, around `moments_step`.
      loader: shuffled, because a sorted set would have batches of one class; the order is that of epoch 0.
      to_devices: places rows for the step.
    """

    def __init__(self, step, loader, to_devices):
        self.step, self.loader, self.to_devices = step, loader, to_devices

    def __call__(self, variables):
        """Estimate the moments of variables, which must be replicated on the step's devices."""
        if variables["batch_stats"]:
            for count, rows in enumerate(map(self.to_devices, self.loader.epoch(0))):
                # A longer queue of steps blocks the collectives of CPU devices that share threads.
                jax.block_until_ready(variables["batch_stats"])
                variables = variables | {"batch_stats": self.step(variables, self.loader.data, rows, count)}
        return variables
