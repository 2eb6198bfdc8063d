"""The Optax chain and the schedule that a config describes.

Configs speak of epochs, schedules of updates: `make_schedule` is the one place that converts.
"""

import jax
import optax

from deepjax import config
from deepjax.errors import InputError


def make_schedule(optimizer, schedule, *, epochs, steps_per_epoch):
    """Learning rate as a function of the number of updates done.

    Args:
      optimizer: `config.Optimizer`: the highest rate, and batches per update.
      schedule: `config.Schedule`, whose times are epochs.
      epochs: length of the run.
      steps_per_epoch: batches in an epoch.

    Raises:
      InputError: a warmup that does not end within the run, milestones out of order, a factor or final rate out
        of its range, or a field that does not belong to the schedule. Milestones after the run's end are fine.
    """
    _check_schedule(schedule, epochs)
    peak = optimizer.learning_rate

    def updates(length_in_epochs):
        return round(length_in_epochs * steps_per_epoch / optimizer.accumulate)

    total, warmup = max(updates(epochs), 1), updates(schedule.warmup)
    if schedule.name == "one_cycle":
        # Smith & Topin 2017, with the cosine form and the factors that PyTorch and fastai use.
        share = schedule.warmup / epochs if schedule.warmup else 0.3
        return optax.cosine_onecycle_schedule(total, peak, pct_start=share, div_factor=25.0, final_div_factor=1e4)
    after_warmup = {
        "constant": lambda: optax.constant_schedule(peak),
        "step": lambda: _steps(peak, [updates(epoch) - warmup for epoch in schedule.milestones], schedule.factor),
        "cosine": lambda: optax.cosine_decay_schedule(peak, max(total - warmup, 1), alpha=schedule.final),
    }[schedule.name]()
    if not warmup:
        return after_warmup
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after_warmup], [warmup])


def _steps(peak, boundaries, factor):
    # Milestones closer than one update fall on one boundary, and multiply there.
    return optax.piecewise_constant_schedule(peak, {b: factor ** boundaries.count(b) for b in boundaries})


def _check_schedule(schedule, epochs):
    if schedule.name not in ("constant", "step", "cosine", "one_cycle"):
        raise InputError(f"schedule.name {schedule.name!r} is not one of constant, step, cosine, one_cycle")
    if not 0 <= schedule.warmup < epochs:
        raise InputError(f"schedule.warmup {schedule.warmup} must be at least 0 and less than epochs {epochs}")
    belongs = {"milestones": "step", "factor": "step", "final": "cosine"}
    for field, owner in belongs.items():
        if getattr(schedule, field) != getattr(config.Schedule(), field) and schedule.name != owner:
            raise InputError(
                f"schedule.{field} {getattr(schedule, field)} belongs to the schedule {owner}, not {schedule.name}; "
                f"set schedule.name {owner}"
            )
    if not schedule.factor > 0:
        raise InputError(f"schedule.factor {schedule.factor} must be greater than 0")
    if not 0 <= schedule.final <= 1:
        raise InputError(f"schedule.final {schedule.final} must be in [0, 1]")
    times = schedule.milestones
    if schedule.name == "step" and (list(times) != sorted(set(times)) or not times or times[0] <= schedule.warmup):
        raise InputError(
            f"schedule.milestones {times} must be epochs in increasing order, the first after warmup {schedule.warmup}"
        )


def make_optimizer(optimizer, learning_rate):
    """The gradient transformation that `config.Optimizer` describes: clip, decay kernels, update.

    Args:
      optimizer: `config.Optimizer`.
      learning_rate: a schedule, or a number.

    Definitions are PyTorch's where they differ: momentum is g + momentum * buffer, weight decay joins the
    gradient before momentum (adamw: decoupled, times the learning rate), rmsprop's epsilon stands outside the
    root and its momentum before the learning rate.

    Raises:
      InputError: a number out of its range, or an unknown name.
    """
    _check_optimizer(optimizer)
    o = optimizer
    steps = []
    if o.clip_norm is not None:
        steps.append(optax.clip_by_global_norm(o.clip_norm))
    if o.weight_decay and o.name != "adamw":
        steps.append(optax.add_decayed_weights(o.weight_decay, mask=kernels))
    adam = {"b1": o.momentum, "b2": o.second_moment, "eps": o.epsilon}
    steps.append(
        {
            "sgd": lambda: optax.sgd(learning_rate),
            "momentum": lambda: optax.sgd(learning_rate, o.momentum),
            "nesterov": lambda: optax.sgd(learning_rate, o.momentum, nesterov=True),
            "adam": lambda: optax.adam(learning_rate, **adam),
            "adamw": lambda: optax.adamw(learning_rate, **adam, weight_decay=o.weight_decay, mask=kernels),
            # optax.rmsprop takes the learning rate before momentum, which then remembers the schedule.
            "rmsprop": lambda: optax.chain(
                optax.scale_by_rms(o.second_moment, o.epsilon, eps_in_sqrt=False),
                optax.trace(o.momentum),
                optax.scale_by_learning_rate(learning_rate),
            ),
        }[o.name]()
    )
    chain = optax.chain(*steps)
    if o.accumulate == 1:
        return chain
    return optax.MultiSteps(chain, o.accumulate).gradient_transformation()


def kernels(params):
    """A tree like params, True at the kernels: what weight decay applies to."""
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", None) == "kernel", params)


def _check_optimizer(o: config.Optimizer):
    names = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop")
    if o.name not in names:
        raise InputError(f"optimizer.name {o.name!r} is not one of {', '.join(names)}")
    unused = {"sgd": ("momentum", "second_moment", "epsilon")}
    unused |= dict.fromkeys(("momentum", "nesterov"), ("second_moment", "epsilon"))
    for field in unused.get(o.name, ()):
        if getattr(o, field) != getattr(config.Optimizer(), field):
            raise InputError(f"optimizer.{field} {getattr(o, field)} does nothing for {o.name}; leave it out")
    if not o.learning_rate > 0:
        raise InputError(f"optimizer.learning_rate {o.learning_rate} must be greater than 0")
    for field in ("momentum", "second_moment"):
        if not 0 <= getattr(o, field) < 1:
            raise InputError(f"optimizer.{field} {getattr(o, field)} must be in [0, 1)")
    if not o.epsilon > 0:
        raise InputError(f"optimizer.epsilon {o.epsilon} must be greater than 0")
    if not o.weight_decay >= 0:
        raise InputError(f"optimizer.weight_decay {o.weight_decay} must be at least 0")
    if o.clip_norm is not None and not o.clip_norm > 0:
        raise InputError(f"optimizer.clip_norm {o.clip_norm} must be greater than 0")
    if o.accumulate < 1:
        raise InputError(f"optimizer.accumulate {o.accumulate} must be at least 1")
