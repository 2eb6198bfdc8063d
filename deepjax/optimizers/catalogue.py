"""The optimizers by name: the numbers that each takes, and the direction of its updates. A new one is one entry.

Each is PyTorch's optimizer of that name, unless its entry cites another source. Where definitions differ, PyTorch's is
used, as the comments say.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import optax

from deepjax import config
from deepjax.optimizers import transforms

NUMBERS = ("momentum", "second_moment", "epsilon", "momentum_decay", "history")
"""Fields of config.Optimizer that only some optimizers take."""


class OptimizerEntry(NamedTuple):
    """What distinguishes one optimizer from the others."""

    direction: Callable[[config.Optimizer], optax.GradientTransformation]
    """Make the transformation from gradients to directions, which are then multiplied by -learning_rate.

    All NUMBERS of its argument that the optimizer takes are set. A momentum that one_cycle moves is an array."""
    usual: dict[str, float] = {}  # noqa: RUF012
    """Fields of NUMBERS that it takes, with the values that unset ones get: PyTorch's defaults."""
    decoupled: bool = False
    """Whether decayed weights are added to the direction (decoupled weight decay) or to the gradient."""
    finds_step_sizes: bool = False
    """Whether the direction already has the length of the step. `learning_rate` is then the first step's size."""


def _rmsprop(o):
    # optax.rmsprop applies the learning rate before momentum, so that the buffer depends on the schedule.
    moves = not isinstance(o.momentum, int | float)
    buffer = optax.trace(o.momentum) if moves or o.momentum else optax.identity()
    return optax.chain(optax.scale_by_rms(o.second_moment, o.epsilon, eps_in_sqrt=False), buffer)


def _adam(o):
    return optax.scale_by_adam(b1=o.momentum, b2=o.second_moment, eps=o.epsilon)


def _nadam(o):
    return transforms.scale_by_nadam(o.momentum, o.second_moment, o.epsilon, o.momentum_decay)


ADAM = {"momentum": 0.9, "second_moment": 0.999, "epsilon": 1e-8}

OPTIMIZERS = {
    "sgd": OptimizerEntry(lambda o: optax.identity()),
    # buffer = gradient + momentum * buffer (dampening 0). In Sutskever et al. 2013 the buffer includes the learning
    # rate, which differs if the learning rate changes.
    "momentum": OptimizerEntry(lambda o: optax.trace(o.momentum), {"momentum": 0.9}),
    # Steps by gradient + momentum * buffer, with the new buffer.
    "nesterov": OptimizerEntry(lambda o: optax.trace(o.momentum, nesterov=True), {"momentum": 0.9}),
    # The sum starts at 0 (Optax: 0.1), and epsilon is outside the root (Optax: inside).
    "adagrad": OptimizerEntry(lambda o: transforms.scale_by_adagrad(o.epsilon), {"epsilon": 1e-10}),
    # Epsilon is outside the root, without bias correction; momentum is applied before the learning rate.
    "rmsprop": OptimizerEntry(_rmsprop, {"momentum": 0.0, "second_moment": 0.99, "epsilon": 1e-8}),
    # Epsilon is inside both roots.
    "adadelta": OptimizerEntry(
        lambda o: optax.scale_by_adadelta(o.second_moment, o.epsilon), {"second_moment": 0.9, "epsilon": 1e-6}
    ),
    "adam": OptimizerEntry(_adam, ADAM),
    "adamw": OptimizerEntry(_adam, ADAM, decoupled=True),
    # Epsilon is added to |gradient| inside the maximum.
    "adamax": OptimizerEntry(lambda o: optax.scale_by_adamax(b1=o.momentum, b2=o.second_moment, eps=o.epsilon), ADAM),
    # Momentum follows Dozat's schedule, with PyTorch's decay (Optax: constant).
    "nadam": OptimizerEntry(_nadam, ADAM | {"momentum_decay": 0.004}),
    # Factors 0.5 and 1.2, steps from 1e-6 to 50.
    "rprop": OptimizerEntry(lambda o: transforms.scale_by_rprop(o.learning_rate), finds_step_sizes=True),
    # One iteration per update (PyTorch: max_iter=1, history_size=history) of length learning_rate, the first one
    # shortened by 1 / |gradient|_1. All parameters form one vector. With line_search, Optax's zoom line search takes
    # the place of PyTorch's strong_wolfe.
    "lbfgs": OptimizerEntry(lambda o: transforms.scale_by_lbfgs(o.history), {"history": 10}),
    # Chen et al. 2023, algorithm 2.
    "lion": OptimizerEntry(
        lambda o: optax.scale_by_lion(o.momentum, o.second_moment),
        {"momentum": 0.9, "second_moment": 0.99},
        decoupled=True,
    ),
}


def with_usual(optimizer):
    """Return config.Optimizer with the NUMBERS that are unset replaced by the optimizer's usual values."""
    usual = OPTIMIZERS[optimizer.name].usual
    return dataclasses.replace(optimizer, **{f: v for f, v in usual.items() if getattr(optimizer, f) is None})
