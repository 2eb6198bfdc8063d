"""Optimizers as PyTorch's, step for step, and schedules at points computed by hand."""

import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from deepjax import config
from deepjax.errors import InputError
from deepjax.optimizers import kernels, make_optimizer, make_schedule


def random_params(seed):
    rng = np.random.default_rng(seed)
    shapes = {"dense": {"kernel": (3, 4), "bias": (4,)}, "norm": {"scale": (4,), "bias": (4,)}}
    return jax.tree.map(
        lambda s: rng.standard_normal(s).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


def run(optimizer, learning_rate, gradients, params):
    """The parameters after each update."""
    transform = make_optimizer(optimizer, learning_rate)

    @jax.jit
    def update(params, state, gradient):
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state, trajectory = transform.init(params), []
    for gradient in gradients:
        params, state = update(params, state, gradient)
        trajectory.append(params)
    return trajectory


# Optimizers

# name -> our fields, PyTorch's class and arguments
TORCH = {
    "sgd": ({}, "SGD", {}),
    "momentum": ({"momentum": 0.8}, "SGD", {"momentum": 0.8}),
    "nesterov": ({"momentum": 0.8}, "SGD", {"momentum": 0.8, "nesterov": True}),
    "adam": ({"momentum": 0.8, "second_moment": 0.95}, "Adam", {"betas": (0.8, 0.95)}),
    "adamw": ({"momentum": 0.8, "second_moment": 0.95}, "AdamW", {"betas": (0.8, 0.95)}),
    "rmsprop": ({"momentum": 0.9, "second_moment": 0.95}, "RMSprop", {"momentum": 0.9, "alpha": 0.95}),
    "rmsprop without momentum": ({"momentum": 0.0, "second_moment": 0.95}, "RMSprop", {"alpha": 0.95}),
}


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("case", TORCH)
def test_twenty_updates_are_torchs(case, decay):
    """With a learning rate that changes, gradients that do, and weight decay of the kernel alone."""
    torch = pytest.importorskip("torch")
    fields, kind, arguments = TORCH[case]
    epsilon, eps = ({}, {}) if kind == "SGD" else ({"epsilon": 1e-3}, {"eps": 1e-3})
    optimizer = config.Optimizer(name=case.split()[0], weight_decay=decay, **epsilon, **fields)
    params, gradients = random_params(0), [random_params(i + 1) for i in range(20)]

    def rate(step):
        return 0.05 / (1 + step)

    trajectory = run(optimizer, rate, gradients, params)

    leaves = [torch.tensor(leaf, requires_grad=True) for leaf in jax.tree.leaves(params)]
    decayed = jax.tree.leaves(kernels(params))
    groups = [
        {"params": [leaf], "weight_decay": decay if is_kernel else 0.0}
        for leaf, is_kernel in zip(leaves, decayed, strict=True)
    ]
    theirs = getattr(torch.optim, kind)(groups, lr=rate(0), **arguments, **eps)
    for step, (gradient, ours) in enumerate(zip(gradients, trajectory, strict=True)):
        for group in theirs.param_groups:
            group["lr"] = rate(step)
        for leaf, g in zip(leaves, jax.tree.leaves(gradient), strict=True):
            leaf.grad = torch.tensor(g)
        theirs.step()
        for a, b in zip(jax.tree.leaves(ours), leaves, strict=True):
            assert_allclose(a, b.detach(), rtol=1e-4, atol=1e-6)


def test_weight_decay_is_of_kernels():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            shift = self.param("shift", lambda key: [jnp.zeros((1, 4)), {"kernel": jnp.zeros(4)}])
            x = nn.LayerNorm()(nn.Dense(4)(x)) + shift[0]
            return nn.Embed(3, 4).attend(x)

    params = jax.eval_shape(lambda: Net().init(jax.random.key(0), jnp.zeros((1, 2))))["params"]
    flagged = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, flag in jax.tree_util.tree_leaves_with_path(kernels(params))
        if flag
    ]
    assert flagged == ["Dense_0/kernel", "shift/1/kernel"]


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw", "rmsprop"])
def test_accumulated_batches_are_one_of_the_sum_of_their_sizes(name):
    params, gradients = random_params(0), [random_params(i + 1) for i in range(8)]
    halves = run(config.Optimizer(name=name, accumulate=2, weight_decay=0.1), 0.01, gradients, params)
    means = [
        jax.tree.map(lambda a, b: (a + b) / 2, *pair) for pair in zip(gradients[::2], gradients[1::2], strict=True)
    ]
    whole = run(config.Optimizer(name=name, weight_decay=0.1), 0.01, means, params)
    chex.assert_trees_all_equal(halves[0], params)
    chex.assert_trees_all_close(halves[1::2], whole, rtol=1e-5, atol=1e-6)


def test_the_schedule_counts_updates_not_batches():
    gradients = [random_params(1)] * 4
    trajectory = run(config.Optimizer(name="sgd", accumulate=2), lambda n: 10.0**-n, gradients, random_params(0))
    steps = [b["dense"]["bias"] - a["dense"]["bias"] for a, b in zip([random_params(0), *trajectory], trajectory)]
    g = gradients[0]["dense"]["bias"]
    for step, factor in zip(steps, (0, 1, 0, 0.1), strict=True):
        assert_allclose(step, -factor * g, rtol=1e-4, atol=1e-6)


def test_clip_norm_scales_the_whole_gradient_before_weight_decay():
    params = {"dense": {"kernel": jnp.array([[2.0]]), "bias": jnp.array([1.0])}}
    gradient = {"dense": {"kernel": jnp.array([[3.0]]), "bias": jnp.array([4.0])}}
    optimizer = config.Optimizer(name="sgd", clip_norm=0.5, weight_decay=0.1)
    (after,) = run(optimizer, 1.0, [gradient], params)
    assert_allclose(after["dense"]["kernel"], [[2 - 0.3 - 0.2]], rtol=1e-6)
    assert_allclose(after["dense"]["bias"], [1 - 0.4], rtol=1e-6)
    small = jax.tree.map(lambda g: g / 100, gradient)
    (after,) = run(config.Optimizer(name="sgd", clip_norm=0.5), 1.0, [small], params)
    assert_allclose(after["dense"]["bias"], [0.96], rtol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "sdg"},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"second_moment": 1.0},
        {"epsilon": 0.0},
        {"weight_decay": -1e-4},
        {"clip_norm": 0.0},
        {"accumulate": 0},
    ],
)
def test_optimizer_errors(fields):
    (field,) = fields
    with pytest.raises(InputError, match=f"optimizer.{field}"):
        make_optimizer(config.Optimizer(**{"name": "adam"} | fields), 0.1)


@pytest.mark.parametrize(("name", "field"), [("sgd", "momentum"), ("nesterov", "second_moment"), ("sgd", "epsilon")])
def test_a_field_that_does_nothing_is_refused(name, field):
    with pytest.raises(InputError, match=f"optimizer.{field} 0.5 does nothing for {name}"):
        make_optimizer(config.Optimizer(name=name, **{field: 0.5}), 0.1)


# Schedules


def rates(schedule, steps, *, epochs=10, steps_per_epoch=4, **optimizer):
    f = make_schedule(
        config.Optimizer(**{"learning_rate": 0.8} | optimizer),
        schedule,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
    )
    return [float(f(step)) for step in steps]


def half_cosine(share):
    return 0.5 * (1 + math.cos(math.pi * share))


@pytest.mark.parametrize(
    ("fields", "points"),
    [
        ({}, {0: 0.8, 39: 0.8}),
        ({"warmup": 2.0}, {0: 0, 1: 0.1, 4: 0.4, 8: 0.8, 39: 0.8}),
        (
            {"name": "step", "milestones": (5.0, 7.5)},
            {0: 0.8, 19: 0.8, 20: 0.08, 29: 0.08, 30: 0.008, 39: 0.008},
        ),
        (
            {"name": "step", "milestones": (5.0,), "factor": 0.5, "warmup": 1.0},
            {0: 0, 2: 0.4, 4: 0.8, 19: 0.8, 20: 0.4},
        ),
        ({"name": "step", "milestones": (5.0, 20.0)}, {39: 0.08}),
        ({"name": "cosine"}, {0: 0.8, 10: 0.8 * half_cosine(1 / 4), 20: 0.4, 40: 0.0, 50: 0.0}),
        ({"name": "cosine", "final": 0.1}, {0: 0.8, 20: 0.44, 40: 0.08}),
        ({"name": "cosine", "warmup": 2.0}, {0: 0, 4: 0.4, 8: 0.8, 24: 0.4, 40: 0.0}),
        ({"name": "one_cycle"}, {0: 0.8 / 25, 6: 0.8 * 26 / 50, 12: 0.8, 26: 0.4, 40: 0.8 / 25e4}),
        ({"name": "one_cycle", "warmup": 5.0}, {0: 0.8 / 25, 20: 0.8, 30: 0.4}),
    ],
)
def test_schedules_at_points(fields, points):
    assert_allclose(rates(config.Schedule(**fields), points), list(points.values()), rtol=1e-4, atol=1e-7)


def test_one_cycle_is_torchs():
    """PyTorch counts to the last step, Optax one past it; with that the curves are one."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.8, total_steps=41, pct_start=13 / 41)
    expected = []
    for _ in range(40):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert_allclose(rates(config.Schedule("one_cycle"), range(40)), expected, rtol=1e-4, atol=1e-6)


def test_times_are_epochs_of_updates_when_batches_accumulate():
    schedule = config.Schedule("step", milestones=(5.0,), warmup=1.0)
    assert_allclose(rates(schedule, (1, 2, 9, 10), accumulate=2), [0.4, 0.8, 0.8, 0.08], rtol=1e-5)


def test_milestones_closer_than_an_update_both_count():
    schedule = config.Schedule("step", milestones=(1.0, 1.1))
    assert_allclose(rates(schedule, (3, 4)), [0.8, 0.008], rtol=1e-5)


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "one_cycle"])
def test_a_run_of_one_update_has_a_rate(name):
    milestones = (0.5,) if name == "step" else ()
    (rate,) = rates(config.Schedule(name, milestones=milestones), [0], epochs=1, steps_per_epoch=1)
    assert 0 < rate < 0.801


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "linear"}, "schedule.name"),
        ({"warmup": -1.0}, "schedule.warmup"),
        ({"warmup": 10.0}, "schedule.warmup"),
        ({"milestones": (1.0,)}, "schedule.milestones .* belongs to the schedule step"),
        ({"final": 0.1}, "schedule.final .* belongs to the schedule cosine"),
        ({"name": "cosine", "final": -0.1}, "schedule.final"),
        ({"name": "cosine", "final": 1.1}, "schedule.final"),
        ({"name": "step", "milestones": (1.0,), "factor": 0.0}, "schedule.factor"),
        ({"name": "step"}, "schedule.milestones"),
        ({"name": "step", "milestones": (5.0, 3.0)}, "increasing order"),
        ({"name": "step", "milestones": (5.0, 5.0)}, "increasing order"),
        ({"name": "step", "milestones": (0.0,)}, "schedule.milestones"),
        ({"name": "step", "milestones": (1.0,), "warmup": 1.0}, "after warmup"),
    ],
)
def test_schedule_errors(fields, message):
    with pytest.raises(InputError, match=message):
        make_schedule(config.Optimizer(), config.Schedule(**fields), epochs=10, steps_per_epoch=4)
