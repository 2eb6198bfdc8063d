"""The optimizers by name: the numbers that each takes, and the direction of its updates. A new one is one entry.

Each is PyTorch's optimizer of that name, unless its entry cites another source. Where definitions differ, PyTorch's is
used, as the comments say.

Of `optax.contrib`, those are here that are functions of gradients and parameters alone. Left out: sophia, momo,
mechanize, dpsgd and galore (they need a Hessian, the loss, another optimizer, a gradient for each example, the axes of
each parameter), schedule_free (it evaluates parameters other than those with which the moments of batch norms were
measured), cocob (the learning rate has no effect), madgrad (its step is not proportional to the learning rate, so that
a plateau could not scale it), simplified_ademamix (its step grows with its own settings, not with the learning rate).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import optax
from optax import contrib

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
    takes_schedule: bool = False
    """Whether the direction includes the learning rate. `learning_rate` is then a function of the number of updates."""


def _rmsprop(o):
    # optax.rmsprop applies the learning rate before momentum, so that the buffer depends on the schedule.
    moves = not isinstance(o.momentum, int | float)
    buffer = optax.trace(o.momentum) if moves or o.momentum else optax.identity()
    return optax.chain(optax.scale_by_rms(o.second_moment, o.epsilon, eps_in_sqrt=False), buffer)


def _adam(o):
    return optax.scale_by_adam(b1=o.momentum, b2=o.second_moment, eps=o.epsilon)


def _nadam(o):
    return transforms.scale_by_nadam(o.momentum, o.second_moment, o.epsilon, o.momentum_decay)


def _prodigy(o):
    return _ascending(contrib.prodigy(o.learning_rate, (o.momentum, o.second_moment), eps=o.epsilon))


def _dadapt_adamw(o):
    return _ascending(contrib.dadapt_adamw(o.learning_rate, (o.momentum, o.second_moment), o.epsilon))


def _ascending(descent):
    return optax.chain(descent, optax.scale(-1.0))


def _dog(o):
    return _ascending(contrib.dog(1.0, ("heuristic", 1e-6), o.epsilon))


def _dowg(o):
    return _ascending(contrib.dowg(1.0, eps=o.epsilon))


def _muon(o):
    numbers = {"beta": o.momentum, "adam_b2": o.second_moment, "eps": o.epsilon}
    shapes = {"muon_weight_dimension_numbers": transforms.matrices, "consistent_rms": 0.2}
    return _ascending(contrib.muon(1.0, **numbers, **shapes))


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
    # Those below are of optax.contrib. The first four estimate the learning rate; usual for `learning_rate` is 1.
    # Mishchenko & Defazio 2023: the distance to the solution by Adam's steps. Weight decay is added to the gradient.
    "prodigy": OptimizerEntry(_prodigy, ADAM, takes_schedule=True),
    # Defazio & Mishchenko 2023, algorithm 5. Weight decay is added to the gradient.
    "dadapt_adamw": OptimizerEntry(_dadapt_adamw, ADAM, takes_schedule=True),
    # Ivgi et al. 2023: SGD with the step distance / gradients. The first step is 1e-6 of the parameters' norm.
    "dog": OptimizerEntry(_dog, {"epsilon": 1e-8}),
    # Khaled et al. 2023. Epsilon is also the square of the first estimated distance.
    "dowg": OptimizerEntry(_dowg, {"epsilon": 1e-4}),
    # Taniguchi et al. 2024, with clipping by n^(1/4) at update n. The first update only measures the gradient.
    "adopt": OptimizerEntry(
        lambda o: contrib.scale_by_adopt(o.momentum, o.second_moment, o.epsilon),
        {"momentum": 0.9, "second_moment": 0.9999, "epsilon": 1e-6},
    ),
    # Pagliardini et al. 2024, with alpha 5 and beta3 0.9999 from the start: Adam with a second, slow momentum.
    "ademamix": OptimizerEntry(
        lambda o: contrib.scale_by_ademamix(o.momentum, o.second_moment, alpha=5.0, eps=o.epsilon),
        ADAM,
        decoupled=True,
    ),
    # Zhuang et al. 2021: AdaBelief with the variance of the previous update.
    "acprop": OptimizerEntry(
        lambda o: contrib.scale_by_acprop(o.momentum, o.second_moment, o.epsilon),
        ADAM | {"epsilon": 1e-16},
        decoupled=True,
    ),
    # Jordan 2024, with the scale of Liu et al. 2025, so that the learning rate is one of adamw. A kernel is a matrix
    # [window and features in, features]; all other parameters have Adam with Nesterov's momentum 0.9.
    "muon": OptimizerEntry(_muon, {"momentum": 0.95, "second_moment": 0.999, "epsilon": 1e-8}, decoupled=True),
}


def with_usual(optimizer):
    """Return config.Optimizer with the NUMBERS that are unset replaced by the optimizer's usual values."""
    usual = OPTIMIZERS[optimizer.name].usual
    return dataclasses.replace(optimizer, **{f: v for f, v in usual.items() if getattr(optimizer, f) is None})
