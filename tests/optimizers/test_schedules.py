"""Schedules as PyTorch's over a run, and at points computed by hand; one_cycle's momentum; the state of plateau."""

import dataclasses
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from deepjax import config
from deepjax.errors import InputError
from deepjax.optimizers import SCHEDULES, make_optimizer, make_schedule, observe, rate_scale
from deepjax.optimizers.schedules import make_momentum, scale_by_plateau
from deepjax.optimizers.times import Times

PEAK = 0.8


def rates(schedule, steps, *, epochs=10, steps_per_epoch=4, **optimizer):
    optimizer = config.Optimizer(**{"learning_rate": PEAK} | optimizer)
    schedule = make_schedule(optimizer, schedule, epochs=epochs, steps_per_epoch=steps_per_epoch)
    return jax.jit(jax.vmap(lambda count: jnp.asarray(schedule(count))))(np.array(list(steps)))


def half_cosine(share):
    return 0.5 * (1 + math.cos(math.pi * share))


@pytest.mark.parametrize(
    ("fields", "points"),
    [
        ({}, {0: 0.8, 39: 0.8}),
        ({"warmup": 1.75}, {0: 0.1, 1: 0.2, 4: 0.5, 7: 0.8, 39: 0.8}),
        (
            {"name": "step", "milestones": (5.0, 7.5)},
            {0: 0.8, 19: 0.8, 20: 0.08, 29: 0.08, 30: 0.008, 39: 0.008},
        ),
        (
            {"name": "step", "milestones": (5.0,), "factor": 0.5, "warmup": 0.75},
            {0: 0.2, 2: 0.6, 3: 0.8, 19: 0.8, 20: 0.4},
        ),
        ({"name": "step", "milestones": (5.0, 20.0)}, {39: 0.08}),
        (
            {"name": "step", "period": 3.0, "factor": 0.5, "warmup": 0.75},
            {1: 0.4, 11: 0.8, 12: 0.4, 24: 0.2, 36: 0.1, 39: 0.1},
        ),
        ({"name": "exponential", "factor": 0.25, "warmup": 1.0}, {0: 0.16, 4: 0.8, 6: 0.4, 8: 0.2, 12: 0.05}),
        ({"name": "linear", "warmup": 2.0}, {3: 3.2 / 9, 8: 0.8, 24: 0.4, 40: 0.0, 50: 0.0}),
        ({"name": "polynomial", "power": 2.0, "final": 0.25}, {0: 0.8, 20: 0.35, 40: 0.2, 50: 0.2}),
        ({"name": "cosine"}, {0: 0.8, 10: 0.8 * half_cosine(1 / 4), 20: 0.4, 40: 0.0, 50: 0.0}),
        ({"name": "cosine", "final": 0.1}, {0: 0.8, 20: 0.44, 40: 0.08}),
        ({"name": "cosine", "warmup": 2.0}, {0: 0.8 / 9, 8: 0.8, 24: 0.4, 40: 0.0}),
        (
            {"name": "warm_restarts", "period": 2.0, "multiplier": 2.0, "warmup": 1.0},
            {2: 0.48, 4: 0.8, 8: 0.4, 12: 0.8, 20: 0.4, 28: 0.8, 44: 0.4},
        ),
        ({"name": "one_cycle"}, {0: 0.8 / 25, 11: 0.8, 25: 0.8 * (1 + 4e-6) / 2, 39: 0.8 / 25e4, 50: 0.8 / 25e4}),
        ({"name": "one_cycle", "warmup": 5.0}, {0: 0.8 / 25, 19: 0.8, 29: 0.4}),
        ({"name": "plateau", "warmup": 1.0}, {0: 0.16, 2: 0.48, 4: 0.8, 39: 0.8}),
    ],
)
def test_schedules_at_points(fields, points):
    assert_allclose(rates(config.Schedule(**fields), points), list(points.values()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "kind", "arguments"),
    [
        ({"name": "exponential", "factor": 0.5}, "ExponentialLR", {"gamma": 0.5 ** (1 / 4)}),
        (
            {"name": "step", "milestones": (5.0, 7.5), "factor": 0.3},
            "MultiStepLR",
            {"milestones": [20, 30], "gamma": 0.3},
        ),
        ({"name": "step", "period": 2.5, "factor": 0.5}, "StepLR", {"step_size": 10, "gamma": 0.5}),
        ({"name": "linear", "final": 0.1}, "LinearLR", {"start_factor": 1.0, "end_factor": 0.1, "total_iters": 40}),
        ({"name": "polynomial"}, "PolynomialLR", {"total_iters": 40}),
        ({"name": "polynomial", "power": 2.5}, "PolynomialLR", {"total_iters": 40, "power": 2.5}),
        ({"name": "cosine", "final": 0.1}, "CosineAnnealingLR", {"T_max": 40, "eta_min": 0.1 * PEAK}),
        ({"name": "warm_restarts", "period": 2.5}, "CosineAnnealingWarmRestarts", {"T_0": 10}),
        (
            {"name": "warm_restarts", "period": 1.0, "multiplier": 2.0, "final": 0.1},
            "CosineAnnealingWarmRestarts",
            {"T_0": 4, "T_mult": 2, "eta_min": 0.1 * PEAK},
        ),
        ({"name": "one_cycle"}, "OneCycleLR", {"max_lr": PEAK, "total_steps": 40}),
        ({"name": "one_cycle", "warmup": 1.7}, "OneCycleLR", {"max_lr": PEAK, "total_steps": 40, "pct_start": 0.17}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_schedules_are_torchs(fields, kind, arguments):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK, momentum=0.9)
    theirs = getattr(torch.optim.lr_scheduler, kind)(optimizer, **arguments)
    rate, momentum = [], []
    for _ in range(40):
        rate.append(theirs.get_last_lr()[0])
        momentum.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        theirs.step()
    schedule = config.Schedule(**fields)
    assert_allclose(rates(schedule, range(40)), rate, rtol=1e-5, atol=1e-6)
    if kind == "OneCycleLR":
        ours = make_momentum(schedule, Times(10, 4))
        assert_allclose(jax.jit(jax.vmap(ours))(np.arange(40)), momentum, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind", "arguments"),
    [
        ("momentum", "SGD", {"momentum": 0.5}),
        ("nesterov", "SGD", {"momentum": 0.5, "nesterov": True}),
        ("adamw", "AdamW", {"weight_decay": 0.1}),
        ("nadam", "NAdam", {"weight_decay": 0.1}),
        ("rmsprop", "RMSprop", {}),
    ],
)
def test_one_cycle_moves_momentum_as_torchs_does(name, kind, arguments):
    torch = pytest.importorskip("torch")
    gradients = np.random.default_rng(0).standard_normal((20, 5))
    leaf = torch.tensor(np.arange(5.0), requires_grad=True)
    theirs = getattr(torch.optim, kind)([leaf], lr=0.1, **arguments)
    cycle = torch.optim.lr_scheduler.OneCycleLR(theirs, 0.1, total_steps=20)
    with jax.enable_x64(True):
        optimizer = config.Optimizer(name=name, learning_rate=0.1, weight_decay=arguments.get("weight_decay", 0.0))
        schedule, times = config.Schedule("one_cycle"), {"epochs": 2, "steps_per_epoch": 10}
        transform = make_optimizer(optimizer, make_schedule(optimizer, schedule, **times), schedule, **times)
        params = {"kernel": np.arange(5.0)}
        state, update = jax.jit(transform.init)(params), jax.jit(transform.update)
        for gradient in gradients:
            updates, state = update({"kernel": gradient}, state, params)
            params = {"kernel": params["kernel"] + np.asarray(updates["kernel"])}
            leaf.grad = torch.tensor(gradient)
            theirs.step()
            cycle.step()
            assert_allclose(params["kernel"], leaf.detach(), rtol=1e-6, atol=1e-9)


def test_times_are_epochs_of_updates_when_batches_accumulate():
    schedule = config.Schedule("step", milestones=(5.0,), warmup=1.0)
    assert_allclose(rates(schedule, (1, 2, 9, 10), accumulate=2), [1.6 / 3, 0.8, 0.8, 0.08], rtol=1e-5)
    schedule = config.Schedule("exponential", factor=0.25)
    assert_allclose(rates(schedule, (0, 1, 2), accumulate=2), [0.8, 0.4, 0.2], rtol=1e-5)


def test_milestones_closer_than_an_update_both_count():
    schedule = config.Schedule("step", milestones=(0.9, 1.0))
    assert_allclose(rates(schedule, (3, 4)), [0.8, 0.008], rtol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_of_one_update_has_a_rate(name):
    fields = {"step": {"milestones": (1.0,)}, "warm_restarts": {"period": 1.0}}.get(name, {})
    schedule = config.Schedule(name, warmup=0.4, **fields)
    if name == "one_cycle":
        with pytest.raises(InputError, match="one_cycle needs at least 2 updates, the run has 1"):
            rates(schedule, [0], epochs=1, steps_per_epoch=1)
        return
    assert_allclose(rates(schedule, [0], epochs=1, steps_per_epoch=1), 0.4, rtol=1e-6)  # half of it, not none


def test_a_time_within_an_update_counts_from_its_end():
    """At one update an epoch, a milestone at 0.5 lets one update pass; a cycle of 1.5 ends at 2, 3, 5, ..."""
    once = {"epochs": 6, "steps_per_epoch": 1}
    assert_allclose(rates(config.Schedule("step", milestones=(0.5,)), (0, 1), **once), [0.8, 0.08], rtol=1e-5)
    restarts = rates(config.Schedule("warm_restarts", period=1.5), range(6), **once)
    assert [update for update in range(6) if restarts[update] > 0.799] == [0, 2, 3, 5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "linaer"}, "schedule.name .*did you mean 'linear'"),
        ({"warmup": -1.0}, "schedule.warmup"),
        ({"warmup": 10.0}, "schedule.warmup"),
        ({"name": "cosine", "final": -0.1}, "schedule.final"),
        ({"name": "cosine", "final": 1.1}, "schedule.final"),
        ({"name": "polynomial", "power": 0.0}, "schedule.power"),
        ({"name": "step", "milestones": (1.0,), "factor": 0.0}, "schedule.factor"),
        ({"name": "step"}, "schedule.milestones"),
        ({"name": "step", "milestones": (5.0, 3.0)}, "increasing order"),
        ({"name": "step", "milestones": (5.0, 5.0)}, "increasing order"),
        ({"name": "step", "milestones": (0.0,)}, "schedule.milestones"),
        ({"name": "step", "milestones": (1.0,), "warmup": 1.0}, "after warmup"),
        ({"name": "step", "milestones": (1.0,), "period": 1.0}, "leave one out"),
        ({"name": "step", "period": 1.0, "warmup": 1.0}, "schedule.period 1.0 must be longer than warmup"),
        ({"name": "warm_restarts"}, "schedule.period 0.0 must be greater than 0"),
        ({"name": "warm_restarts", "period": 0.01}, "schedule.period 0.01 is shorter than an update"),
        ({"name": "step", "period": 1e-9}, "schedule.period 1e-09 is shorter than an update"),
        ({"name": "step", "period": 9.8}, "schedule.period 9.8: no update of the run follows epoch 9.8"),
        ({"name": "step", "milestones": (1.0, 9.8)}, "schedule.milestones .*: no update .* follows epoch 9.8"),
        ({"name": "warm_restarts", "period": 1.0, "multiplier": 0.5}, "schedule.multiplier"),
        ({"name": "one_cycle", "momentum": (0.9, 1.0)}, "schedule.momentum"),
        ({"name": "plateau", "factor": 1.0}, "schedule.factor"),
        ({"name": "plateau", "patience": -1}, "schedule.patience"),
        ({"name": "plateau", "threshold": 1.0}, "schedule.threshold"),
        ({"name": "plateau", "cooldown": -1}, "schedule.cooldown"),
    ],
)
def test_schedule_errors(fields, message):
    with pytest.raises(InputError, match=message):
        make_schedule(config.Optimizer(), config.Schedule(**fields), epochs=10, steps_per_epoch=4)


def test_a_field_that_does_not_belong_to_the_schedule_is_refused():
    fields = {field for entry in SCHEDULES.values() for field in entry.fields}
    assert fields | {"name", "warmup"} == {field.name for field in dataclasses.fields(config.Schedule)}
    for field in fields:
        value = {"milestones": (1.0,), "momentum": (0.8, 0.9), "cooldown": 1, "patience": 1}.get(field, 0.5)
        owner = next(name for name, entry in SCHEDULES.items() if field in entry.fields)
        for name in (name for name, entry in SCHEDULES.items() if field not in entry.fields):
            with pytest.raises(InputError, match=f"schedule.{field} .* belongs to the schedule {owner}"):
                make_schedule(config.Optimizer(), config.Schedule(name, **{field: value}), epochs=10, steps_per_epoch=4)


def test_what_a_schedule_and_an_optimizer_cannot_do_together_is_refused():
    with pytest.raises(InputError, match="schedule.name cosine .*does nothing for rprop"):
        make_schedule(config.Optimizer("rprop"), config.Schedule("cosine"), epochs=10, steps_per_epoch=4)
    with pytest.raises(InputError, match="optimizer.momentum 0.8 does nothing with schedule.name one_cycle"):
        make_optimizer(config.Optimizer(momentum=0.8), 0.1, config.Schedule("one_cycle"), epochs=1, steps_per_epoch=1)
    with pytest.raises(InputError, match="epochs and steps_per_epoch are needed"):
        make_optimizer(config.Optimizer(), 0.1, config.Schedule("one_cycle"))


# Plateau


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({}, {}),
        ({"patience": 0, "factor": 0.5}, {"patience": 0, "factor": 0.5}),
        (
            {"patience": 2, "factor": 0.3, "threshold": 0.02, "cooldown": 3, "final": 0.05},
            {"patience": 2, "factor": 0.3, "threshold": 0.02, "cooldown": 3, "min_lr": 0.05},
        ),
        ({"patience": 1, "factor": 0.9, "threshold": 0.0}, {"patience": 1, "factor": 0.9, "threshold": 0.0}),
    ],
)
def test_the_plateau_is_torchs(fields, arguments):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **arguments, eps=0.0)
    schedule = config.Schedule("plateau", **fields)
    state = (optax.EmptyState(), scale_by_plateau().init({"kernel": np.ones(2, np.float32)}))
    step = jax.jit(partial(observe, schedule=schedule))
    ours, expected = [], []
    rng = np.random.default_rng(0)
    for epoch in range(60):
        # It falls, stays, and falls again. Some values occur twice, which is no improvement even with threshold 0.
        loss = float(np.float32(max(3 - 0.1 * epoch, 1.5) + 0.2 * rng.integers(0, 4) / 4 - (epoch > 45) * 0.5))
        theirs.step(loss)
        state = step(state, loss)
        ours.append(float(rate_scale(state)))
        expected.append(optimizer.param_groups[0]["lr"])
    assert_allclose(ours, expected, rtol=1e-5)
    assert ours[-1] < 1


def test_a_plateau_scales_the_whole_update():
    """Including the decoupled weight decay of adamw, as the learning rate does."""
    optimizer, schedule = config.Optimizer("adamw", weight_decay=0.1, accumulate=2), config.Schedule("plateau")
    params = {"kernel": np.arange(4, dtype=np.float32)}
    made = [make_optimizer(optimizer, rate, schedule) for rate in (0.1, 0.02)]
    states = jax.jit(lambda: [transform.init(params) for transform in made])()
    state = jax.tree.map(lambda x: x, states[0])
    step = jax.jit(partial(observe, schedule=dataclasses.replace(schedule, factor=0.2)))
    for _ in range(12):
        state = step(state, 1.0)
    assert_allclose(rate_scale(state), 0.2, rtol=1e-6)
    states[0] = state
    updates = [jax.jit(transform.update) for transform in made]
    for _ in range(4):
        (a, states[0]), (b, states[1]) = (
            update(params, state, params) for update, state in zip(updates, states, strict=True)
        )
        chex.assert_trees_all_close(a, b, rtol=1e-5)
    assert rate_scale(make_optimizer(optimizer, 0.1).init(params)) == 1.0
