"""The gradient transformation that a config describes, from Optax's parts."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from deepjax import config
from deepjax.errors import InputError, choices
from deepjax.optimizers import transforms
from deepjax.optimizers.catalogue import NUMBERS, OPTIMIZERS, with_usual
from deepjax.optimizers.groups import check_matches, freeze, per_group, read_groups
from deepjax.optimizers.schedules import make_momentum, scale_by_plateau
from deepjax.optimizers.times import make_times

CONSTANT = config.Schedule()


def make_optimizer(
    optimizer, learning_rate, schedule=CONSTANT, *, weight_decay=None, epochs=None, steps_per_epoch=None
):
    """Make the gradient transformation that `config.Optimizer` describes.

    Its links, in order: clip (adaptively, by value, by norm), add decayed kernels, find the direction
    (`catalogue.OPTIMIZERS`), scale by the learning rate, scale by the plateau's factor, search along the line, look
    ahead. All links work on the mean gradient of `accumulate` batches. Each group of parameters has its own numbers.
    clip_norm applies to the norm of all gradients except frozen ones.

    Weight decay is added to the gradient, before momentum. Decoupled weight decay (that of adamw) is added to the
    direction, and so multiplied by the learning rate.

    Args:
      optimizer: `config.Optimizer`.
      learning_rate: a function of the number of updates, as `make_schedule` returns, or a number. The learning rate of
        a group scales it by group.learning_rate / optimizer.learning_rate.
      schedule: `config.Schedule`. one_cycle also moves momentum (that of rmsprop too, as in PyTorch, although it is
        usually 0); plateau has a state in the chain (see `observe`).
      weight_decay: an array f32[], which may be traced, in place of the weight decay of all groups.
      epochs: length of the run; needed for one_cycle's momentum and for `frozen_until`.
      steps_per_epoch: batches in an epoch; needed for the same. If both are given, the last update of an epoch takes
        the batches that are left; else every update takes `accumulate`.

    With line_search, `update` needs the arguments `value`, `grad` and `value_fn`; with sam, `grad_fn` (params, number)
    -> the gradient of the same batch. Each of `accumulate` batches has its own ascent.

    Raises:
      InputError: a number that is out of range or has no effect, an unknown name; a time that no update follows; from
        `init`, a group's pattern that matches no parameter.

    >>> import jax.numpy as jnp
    >>> transform = make_optimizer(config.Optimizer("sgd", groups={"head/*": {"learning_rate": 0.5}}), 0.1)
    >>> params = {"head": {"bias": jnp.ones(2)}, "stem": {"bias": jnp.ones(2)}}
    >>> updates, _ = transform.update(params, transform.init(params), params)
    >>> [round(float(updates[part]["bias"][0]), 3) for part in ("head", "stem")]
    [-0.5, -0.1]
    """
    o = optimizer
    groups = check_optimizer(o, schedule, epochs)
    times = None if None in (epochs, steps_per_epoch) else make_times(o, epochs, steps_per_epoch)
    momentum, thaws = _in_updates(o, groups, schedule, times)

    def first(pattern, group):
        return _until_thawed(optax.chain(*_clip_leaves(group.optimizer)), thaws[pattern])

    def then(pattern, group):
        rate = _scaled(learning_rate, group.optimizer.learning_rate / o.learning_rate)
        # The count of the direction starts when the group thaws; the count of the learning rate starts with the run.
        thaw = thaws[pattern]
        decay = group.optimizer.weight_decay if weight_decay is None else weight_decay
        direction = _direction(group.optimizer, decay, _from(rate, thaw), _from(momentum, thaw))
        return optax.chain(_until_thawed(direction, thaw), _by_rate(o, rate))

    trained = {pattern: group for pattern, group in groups.items() if not group.frozen}
    chain = optax.chain(
        per_group(trained, first),
        optax.identity() if o.clip_norm is None else optax.clip_by_global_norm(o.clip_norm),
        per_group(trained, then),
        *_last_links(o, schedule),
    )
    if o.accumulate > 1:
        chain = optax.MultiSteps(chain, times.batches if times else o.accumulate).gradient_transformation()
    transform = optax.with_extra_args_support(freeze(chain, groups))
    if o.sam:
        starts = {pattern: times.first_batch(thaw) if times else 0 for pattern, thaw in thaws.items()}
        transform = optax.contrib.sam(transform, _ascent(o, groups, starts), reset_state=False, opaque_mode=True)
    return _checked(transform, groups, o.sam)


def _checked(transform, groups, sam):
    """Return a transformation that checks the groups' patterns. Its state shares no buffer with the parameters."""

    def init(params):
        check_matches(groups, params)
        # Copies: some states hold the parameters, and the state is donated; one buffer cannot be donated twice.
        return jax.tree.map(jnp.copy, transform.init(params))

    def update(updates, state, params=None, *, grad_fn=None, **extra):
        # SAM and a line search refuse each other's arguments.
        return transform.update(updates, state, params, **({"grad_fn": grad_fn} if sam else extra))

    return optax.GradientTransformationExtraArgs(init, update)


def _last_links(o, schedule):
    """Return the links that change the whole update: plateau, line search, lookahead."""
    return [
        scale_by_plateau() if schedule.name == "plateau" else optax.identity(),
        optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one") if o.line_search else optax.identity(),
        transforms.lookahead(o.lookahead, o.slow_rate) if o.lookahead else optax.identity(),
    ]


def _ascent(o, groups, starts):
    """Make SAM's step: minus `sam`, times the unit vector along the gradient of all parameters that are trained.

    `starts`: {pattern: batches before the group thaws}.
    """
    trained = {pattern: group for pattern, group in groups.items() if not group.frozen}
    moving = per_group(trained, lambda pattern, _: _until_thawed(optax.identity(), starts[pattern]))
    # The number prevents 0 / 0, as in PyTorch implementations of SAM.
    return freeze(optax.chain(moving, optax.normalize_by_update_norm(-o.sam, 1e-12)), groups)


def _in_updates(o, groups, schedule, times):
    """Return (one-cycle's momentum or None, {pattern: number of updates until the group thaws})."""
    cycles = schedule.name == "one_cycle" and "momentum" in OPTIMIZERS[o.name].usual
    thawing = any(group.frozen_until for group in groups.values())
    if times is None:
        if cycles or thawing:
            raise InputError("epochs and steps_per_epoch are needed for schedule.name one_cycle and for frozen_until")
        return None, dict.fromkeys(groups, 0)
    if o.lookahead > times.total:
        raise InputError(
            f"optimizer.lookahead {o.lookahead} is more than the {times.total} updates of the run, so that the slow "
            f"weights would never move; set optimizer.lookahead {times.total} or less"
        )
    for pattern, group in groups.items():
        if times.updates(group.frozen_until) >= times.total:
            raise InputError(
                f"optimizer.groups {pattern!r}: frozen_until {group.frozen_until} is within the last update of the "
                f"run, of which an epoch has {times.updates_per_epoch}; thaw earlier, or set frozen"
            )
    momentum = make_momentum(schedule, times) if cycles else None
    return momentum, {pattern: times.updates(group.frozen_until) for pattern, group in groups.items()}


def _scaled(learning_rate, factor):
    """Multiply a schedule by a number. A learning rate that is a number becomes a constant schedule."""
    if not callable(learning_rate):
        return optax.constant_schedule(factor * learning_rate)
    return learning_rate if factor == 1 else lambda count: factor * learning_rate(count)


def _from(schedule, start):
    """Shift a schedule (or None), so that count 0 becomes `start`."""
    return None if schedule is None else lambda count: schedule(count + start)


def _until_thawed(transform, thaw):
    """Return zeros, and leave the state unchanged, for the first `thaw` updates."""
    return optax.conditionally_mask(transform, lambda step, **_: step >= thaw) if thaw else transform


def _clip_leaves(o):
    steps = [optax.identity()]
    if o.clip_adaptive is not None:
        steps.append(transforms.clip_adaptively(o.clip_adaptive))
    if o.clip_value is not None:
        steps.append(optax.clip(o.clip_value))
    return steps


def _direction(o, decay, rate, moving):
    """Chain the optimizer's direction with its weight decay; `moving` is the schedule of momentum, or None."""
    entry, o = OPTIMIZERS[o.name], with_usual(o)
    if entry.finds_step_sizes:
        o = dataclasses.replace(o, learning_rate=rate(0))
    if entry.takes_schedule:
        o = dataclasses.replace(o, learning_rate=rate)

    def make(momentum):
        return entry.direction(dataclasses.replace(o, momentum=momentum))

    steps = [optax.inject_hyperparams(make)(moving) if moving else entry.direction(o)]
    if not isinstance(decay, int | float) or decay:  # an array may be 0
        steps.insert(len(steps) if entry.decoupled else 0, optax.add_decayed_weights(decay, mask=kernels))
    return optax.chain(*steps)


def _by_rate(o, rate):
    entry = OPTIMIZERS[o.name]
    has_rate = entry.finds_step_sizes or entry.takes_schedule
    return optax.scale(-1.0) if has_rate else optax.scale_by_learning_rate(rate)


def kernels(params):
    """Return a tree like params that is True at the kernels: the parameters to which weight decay applies."""
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", None) == "kernel", params)


def check_optimizer(optimizer, schedule, epochs=None):
    """Return the groups of `groups.read_groups`.

    Raise InputError as `make_optimizer` does, except for patterns that match no parameter.
    """
    if optimizer.name not in OPTIMIZERS:
        name, known = optimizer.name, OPTIMIZERS
        raise InputError(f"optimizer.name {name!r} is not one of {', '.join(known)}; {choices(name, known)}")
    groups = read_groups(optimizer)
    for pattern, group in groups.items():
        _check(group.optimizer, schedule, f"optimizer.groups {pattern!r}: " if pattern else "")
    _check_together(optimizer, groups, epochs)
    return groups


def _check(o, schedule, where):
    for field in NUMBERS:
        if getattr(o, field) is not None and field not in OPTIMIZERS[o.name].usual:
            raise InputError(f"{where}optimizer.{field} {getattr(o, field)} does nothing for {o.name}; leave it out")
    if schedule.name == "one_cycle" and o.momentum is not None:
        raise InputError(
            f"{where}optimizer.momentum {o.momentum} does nothing with schedule.name one_cycle; set schedule.momentum "
            f"instead, to {o.momentum} {o.momentum} for a constant one"
        )
    config.check(o, f"{where}optimizer.")


def _check_together(o, groups, epochs):
    """Raise InputError for settings that exclude each other."""
    if o.slow_rate != config.Optimizer().slow_rate and not o.lookahead:
        raise InputError(f"optimizer.slow_rate {o.slow_rate} does nothing without optimizer.lookahead; set that too")
    for pattern, group in groups.items():
        if epochs is not None and group.frozen_until >= epochs:
            raise InputError(
                f"optimizer.groups {pattern!r}: frozen_until {group.frozen_until} is not within the {epochs} epochs; "
                f"set frozen for the whole run"
            )
        if o.name == "lbfgs" and pattern and not group.frozen:
            raise InputError(
                f"optimizer.groups {pattern!r}: lbfgs treats all parameters as one vector; a group can only be frozen"
            )
    if o.line_search:
        _check_line_search(o)


def _check_line_search(o):
    if o.name != "lbfgs":
        raise InputError(f"optimizer.line_search does nothing for {o.name}; leave it out")
    for field in ("weight_decay", "clip_adaptive", "clip_value", "clip_norm", "groups", "sam"):
        if getattr(o, field):
            raise InputError(
                f"optimizer.line_search needs the unchanged gradient of the loss, which optimizer.{field} "
                f"{getattr(o, field)} changes; leave one of them out"
            )
    if o.accumulate > 1:
        raise InputError(
            f"optimizer.line_search searches on one batch, optimizer.accumulate {o.accumulate} averages several; "
            f"leave one of them out"
        )
