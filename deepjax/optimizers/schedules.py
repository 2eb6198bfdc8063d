"""The learning rate as a function of the number of updates, one_cycle's momentum, and the state of plateau.

A new schedule is one entry of SCHEDULES.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import ReduceLROnPlateauState

from deepjax import config
from deepjax.errors import InputError, choices
from deepjax.optimizers.times import Times, make_times


class Horizon(NamedTuple):
    """What a schedule depends on besides its own fields."""

    peak: float
    """The highest learning rate."""
    times: Times

    def after(self, warmup):
        """Return the number of updates after `warmup` epochs, at least 1."""
        return max(self.times.total - self.times.updates(warmup), 1)


class ScheduleEntry(NamedTuple):
    """What distinguishes one schedule from the others."""

    make: Callable[[config.Schedule, Horizon], optax.Schedule]
    """Make the learning rate as a function of the number of updates after the warm-up."""
    fields: tuple[str, ...] = ()
    """Fields of config.Schedule that belong to it, besides warmup."""
    warms_up: bool = False
    """Whether `make` includes the warm-up itself."""


def _constant(s, horizon):
    return optax.constant_schedule(horizon.peak)


def _exponential(s, horizon):
    return optax.exponential_decay(horizon.peak, horizon.times.updates_per_epoch, s.factor)


def _step(s, horizon):
    times, milestones = horizon.times, s.milestones
    if s.period:
        _check_period(s, horizon)
        milestones = [i * s.period for i in range(1, int(times.epochs / s.period) + 1)]
    for milestone in milestones[:1] if s.period else milestones:
        if milestone < times.epochs and times.updates(milestone) == times.total:
            field = "period" if s.period else "milestones"
            raise InputError(
                f"schedule.{field} {getattr(s, field)}: no update of the run follows epoch {milestone}, an epoch has "
                f"{times.updates_per_epoch}; set it earlier"
            )
    boundaries = [times.updates(milestone) - times.updates(s.warmup) for milestone in milestones]
    # Milestones that are closer than one update have one boundary, at which their factors are multiplied.
    return optax.piecewise_constant_schedule(horizon.peak, {b: s.factor ** boundaries.count(b) for b in boundaries})


def _linear(s, horizon):
    return optax.linear_schedule(horizon.peak, horizon.peak * s.final, horizon.after(s.warmup))


def _polynomial(s, horizon):
    return optax.polynomial_schedule(horizon.peak, horizon.peak * s.final, s.power, horizon.after(s.warmup))


def _cosine(s, horizon):
    return optax.cosine_decay_schedule(horizon.peak, horizon.after(s.warmup), alpha=s.final)


def _warm_restarts(s, horizon):
    _check_period(s, horizon)
    ends, length = [s.warmup], s.period
    while ends[-1] < horizon.times.epochs:
        ends.append(ends[-1] + length)
        length *= s.multiplier
    bounds = [horizon.times.updates(end) - horizon.times.updates(s.warmup) for end in ends]
    cosine = optax.cosine_decay_schedule(horizon.peak, 1, alpha=s.final)

    def rate(count):
        starts = jnp.asarray(bounds[:-1])
        cycle = jnp.searchsorted(starts, count, side="right") - 1
        return cosine((count - starts[cycle]) / jnp.diff(jnp.asarray(bounds))[cycle])

    return rate


def _check_period(s, horizon):
    if s.period * horizon.times.updates_per_epoch < 1:
        raise InputError(
            f"schedule.period {s.period} is shorter than an update, of which an epoch has "
            f"{horizon.times.updates_per_epoch}; make it longer"
        )


def _one_cycle(s, horizon):
    return _half_cosines(s, horizon.times, horizon.peak / 25, horizon.peak, horizon.peak / 25e4)


def _half_cosines(schedule, times, first, middle, last):
    """Join two half cosines, from `first` to `middle`, and from `middle` to `last` at the last update."""
    total = times.total
    if total < 2:
        raise InputError("schedule.name one_cycle needs at least 2 updates, the run has 1; use more epochs")
    share = schedule.warmup / times.epochs if schedule.warmup else 0.3
    top, end = share * total - 1, total - 1  # in PyTorch, the first phase is one update shorter than its share
    half = optax.cosine_decay_schedule(1.0, 1)

    def value(count):
        up = middle + (first - middle) * half(count / max(top, 1))
        down = last + (middle - last) * half((count - top) / (end - top))
        return jnp.where(count < top, up, down)

    return value


# The learning rates are those of PyTorch's schedulers, with n updates in the run after the warm-up.
SCHEDULES = {
    "constant": ScheduleEntry(_constant),
    # ExponentialLR with gamma = factor ** (1 / updates per epoch), stepped at every update.
    "exponential": ScheduleEntry(_exponential, ("factor",)),
    # MultiStepLR, or StepLR if there is a period.
    "step": ScheduleEntry(_step, ("factor", "milestones", "period")),
    # LinearLR from 1 to final over n updates.
    "linear": ScheduleEntry(_linear, ("final",)),
    # PolynomialLR over n updates, to final instead of 0.
    "polynomial": ScheduleEntry(_polynomial, ("final", "power")),
    # CosineAnnealingLR over n updates.
    "cosine": ScheduleEntry(_cosine, ("final",)),
    # CosineAnnealingWarmRestarts (Loshchilov & Hutter 2017, eq. 5).
    "warm_restarts": ScheduleEntry(_warm_restarts, ("final", "period", "multiplier")),
    # OneCycleLR of n steps (Smith & Topin 2017 in the form of fastai: two half cosines, from peak / 25, to
    # peak / 250,000). The peak is at update pct_start * n - 1, the lowest rate at update n - 1.
    "one_cycle": ScheduleEntry(_one_cycle, ("momentum",), warms_up=True),
    # ReduceLROnPlateau: constant here; `observe` reduces the factor in the optimizer's state.
    "plateau": ScheduleEntry(_constant, ("factor", "final", "patience", "threshold", "cooldown")),
}


def make_schedule(optimizer, schedule, *, epochs, steps_per_epoch):
    """Make the learning rate as a function of the number of updates: an entry of SCHEDULES after a linear warm-up.

    Args:
      optimizer: `config.Optimizer`: the highest learning rate, and batches per update.
      schedule: `config.Schedule`; its times are in epochs.
      epochs: length of the run.
      steps_per_epoch: batches in an epoch.

    Raises:
      InputError: a warm-up that does not end within the run, milestones out of order, a number out of range, a field
        that does not belong to the schedule, a schedule for rprop; times that are shorter than an update, where that
        would have no effect. Milestones after the run's end are allowed.

    >>> halved = config.Schedule("step", period=2, factor=0.5)
    >>> rate = make_schedule(config.Optimizer(learning_rate=0.8), halved, epochs=6, steps_per_epoch=10)
    >>> [round(float(rate(update)), 3) for update in (0, 19, 20, 40)]
    [0.8, 0.8, 0.4, 0.2]
    """
    check_schedule(optimizer, schedule, epochs)
    horizon = Horizon(optimizer.learning_rate, make_times(optimizer, epochs, steps_per_epoch))
    entry, warmup = SCHEDULES[schedule.name], horizon.times.updates(schedule.warmup)
    rate = entry.make(schedule, horizon)
    if entry.warms_up or not warmup:
        return rate
    # From peak / (n + 1), not from 0: an update at rate 0 trains nothing, and a warm-up may be one update.
    growth = optax.linear_schedule(horizon.peak / (warmup + 1), horizon.peak, warmup)
    return optax.join_schedules([growth, rate], [warmup])


def make_momentum(schedule, times):
    """Make one_cycle's momentum as a function of the number of updates: high, low at the peak of the rate, high."""
    low, high = schedule.momentum
    return _half_cosines(schedule, times, high, low, high)


def check_schedule(optimizer, schedule, epochs):
    """Raise InputError as `make_schedule` does, as far as it does not depend on the number of batches."""
    s = schedule
    if s.name not in SCHEDULES:
        raise InputError(f"schedule.name {s.name!r} is unknown; {choices(s.name, SCHEDULES)}")
    if not 0 <= s.warmup < epochs:
        raise InputError(f"schedule.warmup {s.warmup} must be at least 0 and less than epochs {epochs}")
    if optimizer.name == "rprop" and (s.name != "constant" or s.warmup):
        raise InputError(
            f"schedule.name {s.name} with warmup {s.warmup} does nothing for rprop, which adapts its step sizes; set "
            f"schedule.name constant and schedule.warmup 0"
        )
    for field in sorted({field for entry in SCHEDULES.values() for field in entry.fields}):
        owners = [name for name, entry in SCHEDULES.items() if field in entry.fields]
        if getattr(s, field) != getattr(config.Schedule(), field) and s.name not in owners:
            raise InputError(
                f"schedule.{field} {getattr(s, field)} belongs to the schedule {' or '.join(owners)}, not {s.name}; "
                f"set schedule.name {owners[0]}"
            )
    config.check(s, "schedule.")
    if s.name == "plateau" and s.factor >= 1:
        raise InputError(f"schedule.factor {s.factor} must be less than 1 for plateau")
    if s.name == "warm_restarts" and not s.period:
        raise InputError(f"schedule.period {s.period} must be greater than 0 for warm_restarts")
    if s.name == "step":
        _check_milestones(s)


def _check_milestones(s):
    times = s.milestones
    if s.period and times:
        raise InputError(
            f"schedule.milestones {times} and schedule.period {s.period} exclude each other; leave one out"
        )
    if s.period and s.period <= s.warmup:
        raise InputError(f"schedule.period {s.period} must be longer than warmup {s.warmup}")
    if not s.period and (list(times) != sorted(set(times)) or not times or times[0] <= s.warmup):
        raise InputError(
            f"schedule.milestones {times} must be epochs in increasing order, the first after warmup {s.warmup}; "
            f"or give schedule.period"
        )


# Plateau


def scale_by_plateau():
    """Make the link of the chain that holds the state of plateau, and multiplies updates by its factor."""

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda u: u * state.scale.astype(u.dtype), updates), state

    return optax.GradientTransformation(optax.contrib.reduce_on_plateau().init, update)


def observe(opt_state, loss, schedule):
    """Update the optimizer's state at the end of an epoch. Reduce the learning rate if the loss is on a plateau.

    This is PyTorch's ReduceLROnPlateau (relative threshold, mode "min"). `factor`, `patience`, `threshold` and
    `cooldown` are fields of the schedule; min_lr is final * optimizer.learning_rate. With any other schedule, the state
    is returned unchanged.

    Args:
      opt_state: state of an optimizer that `make_optimizer` made for this schedule.
      loss: loss of this epoch, for example on the validation set.
      schedule: `config.Schedule`.

    Returns:
      The new optimizer state.

    >>> schedule = config.Schedule("plateau", factor=0.5, patience=1)
    >>> state = scale_by_plateau().init({"kernel": jnp.ones(3)})
    >>> for loss in (1.0, 1.0, 1.0):  # the second is within the patience, the third is not
    ...     state = observe(state, loss, schedule)
    >>> float(rate_scale(state))
    0.5
    """
    if schedule.name != "plateau":
        return opt_state
    plateau = optax.contrib.reduce_on_plateau(
        schedule.factor,
        schedule.patience + 1,  # Optax reduces at the last epoch of the patience, PyTorch at the next one
        rtol=max(schedule.threshold, 1e-12),  # Optax refuses 0; 1 - 1e-12 is 1 in float32
        cooldown=schedule.cooldown,
        min_scale=schedule.final,
    )

    def step(node):
        return plateau.update({}, node, value=jnp.asarray(loss))[1] if _is_plateau(node) else node

    return jax.tree.map(step, opt_state, is_leaf=_is_plateau)


def rate_scale(opt_state):
    """Return the factor by which `observe` has reduced the learning rate so far; 1 with any other schedule."""
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_plateau) if _is_plateau(node)]
    return found[0].scale if found else 1.0


def _is_plateau(node):
    return isinstance(node, ReduceLROnPlateauState)
