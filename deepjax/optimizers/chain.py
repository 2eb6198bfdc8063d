"""The gradient transformation that a config describes, from Optax's parts."""

import dataclasses

import jax
import optax

from deepjax import config
from deepjax.errors import InputError, choices
from deepjax.optimizers import transforms
from deepjax.optimizers.groups import check_matches, freeze, per_group, read_groups
from deepjax.optimizers.schedules import make_momentum, scale_by_plateau, update_count

ADAM = {"momentum": 0.9, "second_moment": 0.999, "epsilon": 1e-8}

# What each optimizer takes besides a learning rate, with the usual numbers: PyTorch's defaults.
USUAL = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9},
    "adagrad": {"epsilon": 1e-10},
    "rmsprop": {"momentum": 0.0, "second_moment": 0.99, "epsilon": 1e-8},
    "adadelta": {"second_moment": 0.9, "epsilon": 1e-6},
    "adam": ADAM,
    "adamw": ADAM,
    "adamax": ADAM,
    "nadam": ADAM | {"momentum_decay": 0.004},
    "rprop": {},
    "lbfgs": {"history": 10},
    "lion": {"momentum": 0.9, "second_moment": 0.99},
}
DECOUPLED = ("adamw", "lion")


def make_optimizer(optimizer, learning_rate, schedule=config.Schedule(), *, epochs=None, steps_per_epoch=None):  # noqa: B008
    """The gradient transformation that `config.Optimizer` describes.

    In order: clip (adaptively, by value, by norm), add decayed kernels, find a direction, scale it by the learning
    rate, by the plateau's factor, search along it, look ahead; all of it on the mean gradient of `accumulate` batches.
    Each group has its own numbers; the norm is that of all gradients but frozen ones.

    Args:
      optimizer: `config.Optimizer`.
      learning_rate: a function of the number of updates, as `make_schedule` gives, or a number. A group's own
        learning_rate scales it by group.learning_rate / optimizer.learning_rate.
      schedule: `config.Schedule`: one_cycle moves momentum too (rmsprop's, which is usually 0, as well, as in PyTorch),
        plateau has a state here (see `observe`).
      epochs: length of the run; needed for one_cycle's momentum and for `frozen_until`.
      steps_per_epoch: batches in an epoch; as epochs.

    Twenty steps of each equal PyTorch's, except lion's, which PyTorch has not (Chen et al. 2023, algorithm 2).
    Definitions are PyTorch's where others differ:

      momentum, nesterov: the buffer is g + momentum * buffer (dampening 0), and nesterov steps by g + momentum * buffer
        with the new buffer. Sutskever et al. 2013 have the learning rate inside the buffer; a changing rate tells.
      weight decay joins the gradient before momentum; adamw's and lion's is decoupled, times the learning rate.
      rmsprop: epsilon outside the root, no correction of bias, momentum before the learning rate.
      adagrad: the sum starts at 0 (Optax: 0.1), epsilon outside the root (Optax: inside).
      adadelta: epsilon inside both roots; adamax: epsilon joins |g| under the maximum; both as in Optax.
      nadam: momentum grows by Dozat's schedule with PyTorch's decay of 0.004 (Optax: constant).
      rprop: factors 0.5 and 1.2, steps from 1e-6 to 50; the learning rate is the first step's size alone.
      lbfgs: one iteration per update (PyTorch: max_iter=1, history_size=history) of length learning_rate, the first
        one shortened by 1 / |g|_1; with line_search Optax's zoom in place of PyTorch's strong_wolfe, which needs the
        arguments `value`, `grad` and `value_fn` of `update`. It takes all parameters for one vector.

    Raises:
      InputError: a number out of its range or that does nothing, an unknown name; when the state is made, a group's
        pattern that matches no parameter.

    >>> import jax.numpy as jnp
    >>> transform = make_optimizer(config.Optimizer("sgd", groups={"head/*": {"learning_rate": 0.5}}), 0.1)
    >>> params = {"head": {"bias": jnp.ones(2)}, "stem": {"bias": jnp.ones(2)}}
    >>> updates, _ = transform.update(params, transform.init(params), params)
    >>> [round(float(updates[part]["bias"][0]), 3) for part in ("head", "stem")]
    [-0.5, -0.1]
    """
    o, groups = optimizer, read_groups(optimizer)
    for pattern, group in groups.items():
        _check(group.optimizer, schedule, f"optimizer.groups {pattern!r}: " if pattern else "")
    _check_together(o, groups, epochs)
    momentum, thaws = _in_updates(o, groups, schedule, epochs, steps_per_epoch)

    def first(pattern, group):
        return _until_thawed(optax.chain(*_clip_leaves(group.optimizer)), thaws[pattern])

    def then(pattern, group):
        rate = _scaled(learning_rate, group.optimizer.learning_rate / o.learning_rate)
        # The direction's count starts when the group thaws, the rate's with the run.
        direction = _direction(group.optimizer, rate, _from(momentum, thaws[pattern]))
        return optax.chain(_until_thawed(direction, thaws[pattern]), _by_rate(o, rate))

    trained = {pattern: group for pattern, group in groups.items() if not group.frozen}
    links = [
        per_group(trained, first),
        optax.identity() if o.clip_norm is None else optax.clip_by_global_norm(o.clip_norm),
        per_group(trained, then),
        scale_by_plateau() if schedule.name == "plateau" else optax.identity(),
        optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one") if o.line_search else optax.identity(),
        transforms.lookahead(o.lookahead, o.slow_rate) if o.lookahead else optax.identity(),
    ]
    chain = optax.chain(*links)
    if o.accumulate > 1:
        chain = optax.MultiSteps(chain, o.accumulate).gradient_transformation()
    transform = optax.with_extra_args_support(freeze(chain, groups))

    def init(params):
        check_matches(groups, params)
        return transform.init(params)

    return optax.GradientTransformationExtraArgs(init, transform.update)


def _in_updates(o, groups, schedule, epochs, steps_per_epoch):
    """(one-cycle's momentum or None, {pattern: updates until the group thaws})."""
    cycles = schedule.name == "one_cycle" and "momentum" in USUAL[o.name]
    thawing = any(group.frozen_until for group in groups.values())
    if (cycles or thawing) and None in (epochs, steps_per_epoch):
        raise InputError("epochs and steps_per_epoch are needed for schedule.name one_cycle and for frozen_until")
    momentum = make_momentum(o, schedule, epochs=epochs, steps_per_epoch=steps_per_epoch) if cycles else None
    if not thawing:
        return momentum, dict.fromkeys(groups, 0)
    return momentum, {p: update_count(group.frozen_until, o, steps_per_epoch) for p, group in groups.items()}


def _scaled(learning_rate, factor):
    """A schedule times a number. A rate that is a number is a schedule too."""
    if not callable(learning_rate):
        return optax.constant_schedule(factor * learning_rate)
    return learning_rate if factor == 1 else lambda count: factor * learning_rate(count)


def _from(schedule, start):
    """A schedule (or None) whose count begins at `start`."""
    return None if schedule is None else lambda count: schedule(count + start)


def _until_thawed(transform, thaw):
    """Zeros, and a state that stands still, for the first `thaw` updates."""
    return optax.conditionally_mask(transform, lambda step, **_: step >= thaw) if thaw else transform


def _clip_leaves(o):
    steps = [optax.identity()]
    if o.clip_adaptive is not None:
        steps.append(transforms.clip_adaptively(o.clip_adaptive))
    if o.clip_value is not None:
        steps.append(optax.clip(o.clip_value))
    return steps


def _direction(o, rate, moving):
    """Weight decay and the direction of ascent as the optimizer has it; `moving` is momentum's schedule, or None."""
    usual = {field: value for field, value in USUAL[o.name].items() if getattr(o, field) is None}
    o = dataclasses.replace(o, **usual)

    def make(momentum):
        adam = {"b1": momentum, "b2": o.second_moment, "eps": o.epsilon}
        return {
            "sgd": lambda: optax.identity(),
            "momentum": lambda: optax.trace(momentum),
            "nesterov": lambda: optax.trace(momentum, nesterov=True),
            "adagrad": lambda: transforms.scale_by_adagrad(o.epsilon),
            # optax.rmsprop takes the learning rate before momentum, which then remembers the schedule.
            "rmsprop": lambda: optax.chain(
                optax.scale_by_rms(o.second_moment, o.epsilon, eps_in_sqrt=False),
                optax.trace(momentum) if moving or o.momentum else optax.identity(),
            ),
            "adadelta": lambda: optax.scale_by_adadelta(o.second_moment, o.epsilon),
            "adam": lambda: optax.scale_by_adam(**adam),
            "adamw": lambda: optax.scale_by_adam(**adam),
            "adamax": lambda: optax.scale_by_adamax(**adam),
            "nadam": lambda: transforms.scale_by_nadam(momentum, o.second_moment, o.epsilon, o.momentum_decay),
            "rprop": lambda: transforms.scale_by_rprop(rate(0)),
            "lbfgs": lambda: transforms.scale_by_lbfgs(o.history),
            "lion": lambda: optax.scale_by_lion(momentum, o.second_moment),
        }[o.name]()

    steps = [optax.inject_hyperparams(make)(moving) if moving else make(o.momentum)]
    if o.weight_decay:
        steps.insert(len(steps) if o.name in DECOUPLED else 0, optax.add_decayed_weights(o.weight_decay, mask=kernels))
    return optax.chain(*steps)


def _by_rate(o, rate):
    # Rprop's direction has its length already.
    return optax.scale(-1.0) if o.name == "rprop" else optax.scale_by_learning_rate(rate)


def kernels(params):
    """A tree like params, True at the kernels: what weight decay applies to."""
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", None) == "kernel", params)


def _check(o, schedule, where):
    if o.name not in USUAL:
        raise InputError(f"optimizer.name {o.name!r} is not one of {', '.join(USUAL)}; {choices(o.name, USUAL)}")
    for field in ("momentum", "second_moment", "epsilon", "momentum_decay", "history"):
        if getattr(o, field) is not None and field not in USUAL[o.name]:
            raise InputError(f"{where}optimizer.{field} {getattr(o, field)} does nothing for {o.name}; leave it out")
    if schedule.name == "one_cycle" and o.momentum is not None:
        raise InputError(
            f"{where}optimizer.momentum {o.momentum} does nothing with schedule.name one_cycle; set schedule.momentum "
            f"in its place, to {o.momentum} {o.momentum} for one that stands still"
        )
    config.check(o, f"{where}optimizer.")


def _check_together(o, groups, epochs):
    """What each group may set, but not with the rest."""
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
                f"optimizer.groups {pattern!r}: lbfgs takes all parameters for one vector; a group can only be frozen"
            )
    if not o.line_search:
        return
    if o.name != "lbfgs":
        raise InputError(f"optimizer.line_search does nothing for {o.name}; leave it out")
    for field in ("weight_decay", "clip_adaptive", "clip_value", "clip_norm", "groups"):
        if getattr(o, field):
            raise InputError(
                f"optimizer.line_search needs the gradient of the loss as it is, which optimizer.{field} "
                f"{getattr(o, field)} changes; leave one of them out"
            )
    if o.accumulate > 1:
        raise InputError(
            f"optimizer.line_search searches on one batch, optimizer.accumulate {o.accumulate} averages several; "
            f"leave one of them out"
        )
