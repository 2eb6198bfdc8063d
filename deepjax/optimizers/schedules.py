"""The learning rate as a function of the number of updates done, one-cycle's momentum, and the plateau's memory."""

import jax
import jax.numpy as jnp
import optax
from optax.contrib import ReduceLROnPlateauState

from deepjax import config
from deepjax.errors import InputError, choices

# The schedules that each field belongs to; warmup belongs to all.
BELONGS = {
    "milestones": ("step",),
    "period": ("step", "warm_restarts"),
    "multiplier": ("warm_restarts",),
    "factor": ("exponential", "step", "plateau"),
    "final": ("linear", "polynomial", "cosine", "warm_restarts", "plateau"),
    "power": ("polynomial",),
    "momentum": ("one_cycle",),
    "patience": ("plateau",),
    "threshold": ("plateau",),
    "cooldown": ("plateau",),
}
NAMES = (
    "constant", "exponential", "step", "linear", "polynomial", "cosine", "warm_restarts", "one_cycle", "plateau",
)  # fmt: skip


def update_count(length_in_epochs, optimizer, steps_per_epoch):
    """How many updates a time in epochs is: round(epochs * steps_per_epoch / optimizer.accumulate)."""
    return round(length_in_epochs * steps_per_epoch / optimizer.accumulate)


def make_schedule(optimizer, schedule, *, epochs, steps_per_epoch):
    """Learning rate as a function of the number of updates done.

    Args:
      optimizer: `config.Optimizer`: the highest rate, and batches per update.
      schedule: `config.Schedule`, whose times are epochs.
      epochs: length of the run.
      steps_per_epoch: batches in an epoch.

    With n updates in the run (those of the warm-up left out) the rates are PyTorch's:

      exponential: ExponentialLR, gamma = factor ** (updates per epoch)^-1, stepped at every update.
      step: MultiStepLR, or StepLR where there is a period.
      linear, polynomial, cosine: LinearLR from 1 to final, PolynomialLR (to final in place of 0), CosineAnnealingLR,
        over n updates.
      warm_restarts: CosineAnnealingWarmRestarts (Loshchilov & Hutter 2017, eq. 5).
      one_cycle: OneCycleLR of n steps (Smith & Topin 2017 in the form of fastai: two half cosines, from peak / 25, to
        peak / 250,000). The peak comes at update pct_start * n - 1, the lowest rate at update n - 1.
      plateau: constant here; `observe` keeps the factor, `rate_scale` tells it.

    Raises:
      InputError: a warmup that does not end within the run, milestones out of order, a number out of its range, or a
        field that does not belong to the schedule; a schedule for rprop. Milestones after the run's end are fine.

    >>> halved = config.Schedule("step", period=2, factor=0.5)
    >>> rate = make_schedule(config.Optimizer(learning_rate=0.8), halved, epochs=6, steps_per_epoch=10)
    >>> [round(float(rate(update)), 3) for update in (0, 19, 20, 40)]
    [0.8, 0.8, 0.4, 0.2]
    """
    _check(optimizer, schedule, epochs)
    peak, final = optimizer.learning_rate, schedule.final

    def updates(length_in_epochs):
        return update_count(length_in_epochs, optimizer, steps_per_epoch)

    total, warmup = max(updates(epochs), 1), updates(schedule.warmup)
    if schedule.name == "one_cycle":
        return _one_cycle(schedule, epochs, total, peak / 25, peak, peak / 25e4)
    left = max(total - warmup, 1)
    after_warmup = {
        "constant": lambda: optax.constant_schedule(peak),
        "plateau": lambda: optax.constant_schedule(peak),
        "exponential": lambda: optax.exponential_decay(peak, steps_per_epoch / optimizer.accumulate, schedule.factor),
        "step": lambda: _steps(
            peak, [updates(time) - warmup for time in _milestones(schedule, epochs)], schedule.factor
        ),
        "linear": lambda: optax.linear_schedule(peak, peak * final, left),
        "polynomial": lambda: optax.polynomial_schedule(peak, peak * final, schedule.power, left),
        "cosine": lambda: optax.cosine_decay_schedule(peak, left, alpha=final),
        "warm_restarts": lambda: _restarts(schedule, epochs, peak, updates),
    }[schedule.name]()
    if not warmup:
        return after_warmup
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after_warmup], [warmup])


def make_momentum(optimizer, schedule, *, epochs, steps_per_epoch):
    """One-cycle's momentum as a function of the number of updates done: high, low at the peak of the rate, high."""
    low, high = schedule.momentum
    return _one_cycle(schedule, epochs, max(update_count(epochs, optimizer, steps_per_epoch), 1), high, low, high)


def _milestones(schedule, epochs):
    if not schedule.period:
        return schedule.milestones
    return [i * schedule.period for i in range(1, int(epochs / schedule.period) + 1)]


def _steps(peak, boundaries, factor):
    # Milestones closer than one update fall on one boundary, and multiply there.
    return optax.piecewise_constant_schedule(peak, {b: factor ** boundaries.count(b) for b in boundaries})


def _restarts(schedule, epochs, peak, updates):
    times, length = [schedule.warmup], schedule.period
    while times[-1] < epochs:
        times.append(times[-1] + length)
        length *= schedule.multiplier
    bounds = [updates(time) - updates(schedule.warmup) for time in times]
    if len(set(bounds)) < len(bounds):
        raise InputError(f"schedule.period {schedule.period} makes a cycle shorter than an update; make it longer")
    cosine = optax.cosine_decay_schedule(peak, 1, alpha=schedule.final)

    def rate(count):
        starts = jnp.asarray(bounds[:-1])
        cycle = jnp.searchsorted(starts, count, side="right") - 1
        return cosine((count - starts[cycle]) / jnp.diff(jnp.asarray(bounds))[cycle])

    return rate


def _one_cycle(schedule, epochs, total, first, middle, last):
    """Two half cosines, from `first` to `middle` and on to `last`, which the last of `total` updates has."""
    share = schedule.warmup / epochs if schedule.warmup else 0.3
    top, end = share * total - 1, total - 1  # PyTorch's, where the first phase is one update shorter than its share
    half = optax.cosine_decay_schedule(1.0, 1)

    def value(count):
        up = middle + (first - middle) * half(count / max(top, 1))
        down = last + (middle - last) * half((count - top) / (end - top))
        return jnp.where(count < top, up, down)

    return value


def _check(optimizer, schedule, epochs):
    s = schedule
    if s.name not in NAMES:
        raise InputError(f"schedule.name {s.name!r} is unknown; {choices(s.name, NAMES)}")
    if not 0 <= s.warmup < epochs:
        raise InputError(f"schedule.warmup {s.warmup} must be at least 0 and less than epochs {epochs}")
    if optimizer.name == "rprop" and (s.name != "constant" or s.warmup):
        raise InputError(
            f"schedule.name {s.name} with warmup {s.warmup} does nothing for rprop, whose steps find their own sizes; "
            f"set schedule.name constant and schedule.warmup 0"
        )
    for field, owners in BELONGS.items():
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
    """The link of the chain that keeps the plateau's memory, and multiplies updates by its factor."""

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda u: u * state.scale.astype(u.dtype), updates), state

    return optax.GradientTransformation(optax.contrib.reduce_on_plateau().init, update)


def observe(opt_state, loss, schedule):
    """The optimizer's state after it has seen an epoch's loss: where that is a plateau, rates shrink from now on.

    PyTorch's ReduceLROnPlateau (relative threshold, mode "min"), with `factor`, `patience`, `threshold` and `cooldown`
    of its own; its min_lr is final * optimizer.learning_rate. Any other schedule leaves the state as it is.

    Args:
      opt_state: of an optimizer that `make_optimizer` made for this schedule.
      loss: the lower the better: on the validation set, say.
      schedule: `config.Schedule`.

    >>> schedule = config.Schedule("plateau", factor=0.5, patience=1)
    >>> state = scale_by_plateau().init({"kernel": jnp.ones(3)})
    >>> for loss in (1.0, 1.0, 1.0):  # the best, one that is put up with, one too many
    ...     state = observe(state, loss, schedule)
    >>> float(rate_scale(state))
    0.5
    """
    if schedule.name != "plateau":
        return opt_state
    plateau = optax.contrib.reduce_on_plateau(
        schedule.factor,
        schedule.patience + 1,  # Optax reduces with this one, PyTorch after it
        rtol=max(schedule.threshold, 1e-12),  # Optax refuses 0; 1 - 1e-12 is 1 in float32
        cooldown=schedule.cooldown,
        min_scale=schedule.final,
    )

    def see(node):
        return plateau.update({}, node, value=jnp.asarray(loss))[1] if _is_plateau(node) else node

    return jax.tree.map(see, opt_state, is_leaf=_is_plateau)


def rate_scale(opt_state):
    """What the plateaus seen so far have multiplied the schedule's rate by; 1 with any other schedule."""
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_plateau) if _is_plateau(node)]
    return found[0].scale if found else 1.0


def _is_plateau(node):
    return isinstance(node, ReduceLROnPlateauState)
