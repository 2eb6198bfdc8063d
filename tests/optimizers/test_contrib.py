"""Optimizers of optax.contrib by name, and sharpness-aware minimization."""

import chex
import jax
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose
from optax import contrib

from deepjax import config
from deepjax.errors import InputError
from deepjax.optimizers import kernels, make_optimizer
from deepjax.optimizers.transforms import matrices


def start():
    rng = np.random.default_rng(0)
    shapes = {"dense": {"kernel": (3, 4), "bias": (4,)}, "unit": {"kernel": (2, 1, 3, 5)}}
    return jax.tree.map(rng.standard_normal, shapes, is_leaf=lambda x: isinstance(x, tuple))


def bowl(params, center=0.3):
    """Half the squared distance from a center, each parameter with a different curvature."""
    leaves = jax.tree.leaves(params)
    return sum((np.linspace(0.5, 2, p.size).reshape(p.shape) * (p - center) ** 2).sum() / 2 for p in leaves)


def run(transform, params, steps=12, **options):
    """The parameters after some updates on a bowl whose center moves, as one jitted program."""

    def step(carry, center):
        params, state = carry
        updates, state = transform.update(jax.grad(bowl)(params, center), state, params, **options)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    centers = np.random.default_rng(1).normal(0.3, 0.2, steps)
    return jax.jit(lambda params: jax.lax.scan(step, (params, transform.init(params)), centers)[1])(params)


def rate(count):
    return 0.2 / (1 + 0.1 * count)


def matrix_axes(params):
    return jax.tree.map(lambda p: contrib.MuonDimensionNumbers() if p.ndim == 2 else None, params)


DECAY = {"weight_decay": 0.1, "mask": kernels}
THEIRS = {
    "prodigy": lambda: contrib.prodigy(rate),
    "dadapt_adamw": lambda: contrib.dadapt_adamw(rate),
    "dog": lambda: contrib.dog(rate),
    "dowg": lambda: contrib.dowg(rate),
    "adopt": lambda: contrib.adopt(rate),
    "ademamix": lambda: contrib.ademamix(rate, **DECAY),
    "acprop": lambda: contrib.acprop(rate, **DECAY),
    "muon": lambda: contrib.muon(
        rate,
        weight_decay=0.1,
        weight_decay_mask=kernels,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=matrix_axes,
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_updates_are_those_of_optax(name):
    decoupled = name in ("ademamix", "acprop", "muon")
    with jax.enable_x64(True):
        params = start() | {"unit": {}}  # in a stack of units, Optax would need other axes
        optimizer = config.Optimizer(name, learning_rate=0.2, weight_decay=0.1 if decoupled else 0.0)
        ours, theirs = (run(transform, params) for transform in (make_optimizer(optimizer, rate), THEIRS[name]()))
        chex.assert_trees_all_close(ours, theirs, rtol=1e-9, atol=1e-12)
        assert np.abs(ours["dense"]["kernel"][-1] - params["dense"]["kernel"]).max() > 1e-6


def test_muon_turns_each_kernel_of_a_stack_into_a_matrix_of_its_own():
    """Of [units, *window, in, out], each unit's step is nearly orthogonal; their root mean squares are 0.2."""
    transform = make_optimizer(config.Optimizer("muon"), 1.0)
    params = jax.tree.map(np.float32, start())
    updates, _ = jax.jit(lambda g: transform.update(g, transform.init(g), g))(params)
    for unit in np.asarray(updates["unit"]["kernel"], np.float64).reshape(2, 3, 5):
        sizes = np.linalg.svd(unit, compute_uv=False) / (0.2 * 5**0.5)
        assert (abs(sizes - 1) < 0.35).all()  # Newton-Schulz is stopped early
    assert matrices({"unit": {"kernel": np.zeros((4, 3))}}) == {"unit": {"kernel": None}}  # depthwise: no matrix


def test_a_group_thaws_into_the_runs_rate():
    """prodigy, whose direction includes the learning rate, starts again at the thaw, with its learning rate."""
    groups = {"dense/*": {"frozen_until": 2}}
    optimizer = config.Optimizer("prodigy", learning_rate=0.2, groups=groups)
    with jax.enable_x64(True):
        params = start()
        trajectory = run(make_optimizer(optimizer, rate, epochs=12, steps_per_epoch=1), params)
        late = contrib.prodigy(lambda count: rate(count + 2))
        centers = np.random.default_rng(1).normal(0.3, 0.2, 12)
        part, state = params["dense"], late.init(params["dense"])
        for center in centers[2:5]:
            curve = jax.tree.map(lambda p: np.linspace(0.5, 2, p.size).reshape(p.shape), part)
            gradient = jax.tree.map(lambda c, p: c * (p - center), curve, part)  # noqa: B023
            updates, state = late.update(gradient, state, part)
            part = jax.tree.map(lambda p, u: p + np.asarray(u), part, updates)
        chex.assert_trees_all_close(jax.tree.map(lambda p: p[4], trajectory["dense"]), part, rtol=1e-9)
        chex.assert_trees_all_equal(jax.tree.map(lambda p: p[1], trajectory["dense"]), params["dense"])


# Sharpness-aware minimization


def quadratic():
    rng = np.random.default_rng(3)
    root = rng.standard_normal((6, 6))
    return root @ root.T / 6, rng.standard_normal(6), rng.standard_normal((8, 6))


def sam_run(optimizer, **times):
    """Eight batches with gradients A w + noise, at the parameters w = [head (2), body (4)]."""
    matrix, begin, noise = quadratic()
    transform = make_optimizer(optimizer, 0.1, **times)

    def gradient(params, noise):
        whole = matrix @ jax.numpy.concatenate([params["head"]["bias"], params["body"]["bias"]]) + noise
        return {"head": {"bias": whole[:2]}, "body": {"bias": whole[2:]}}

    def step(carry, noise):
        params, state = carry
        updates, state = transform.update(
            gradient(params, noise), state, params, grad_fn=lambda params, _: gradient(params, noise)
        )
        params = optax.apply_updates(params, updates)
        return (params, state), jax.numpy.concatenate([params["head"]["bias"], params["body"]["bias"]])

    params = {"head": {"bias": begin[:2]}, "body": {"bias": begin[2:]}}
    return jax.jit(lambda: jax.lax.scan(step, (params, transform.init(params)), noise)[1])()


@pytest.mark.parametrize("case", ["plain", "frozen", "thawed", "accumulated", "accumulated, thawed"])
def test_sam_is_foret_et_als(case):
    """Algorithm 1 with momentum, in NumPy: g(w + rho g(w) / |g(w)|), over the parameters that are trained."""
    fields, times, size = {}, {"epochs": 4, "steps_per_epoch": 2}, 1
    if case == "frozen":
        fields = {"groups": {"head/*": {"frozen": True}}}
    if "thawed" in case:
        fields = {"groups": {"head/*": {"frozen_until": 1}}}
    if "accumulated" in case:
        fields, size = fields | {"accumulate": 2}, 2
    with jax.enable_x64(True):
        ours = sam_run(config.Optimizer("momentum", sam=0.3, **fields), **times)
    matrix, w, noise = quadratic()
    buffer, waiting, expected = np.zeros(6), [], []
    for batch in range(8):
        free = np.ones(6)
        if case == "frozen" or ("thawed" in case and batch < 2):
            free[:2] = 0
        g = (matrix @ w + noise[batch]) * free
        waiting.append(free * (matrix @ (w + 0.3 * g / np.linalg.norm(g)) + noise[batch]))
        if len(waiting) == size:
            buffer = np.mean(waiting, 0) + 0.9 * buffer
            w, waiting = w - 0.1 * buffer, []
        expected.append(w)
    assert_allclose(ours, expected, rtol=1e-6 if "accumulated" in case else 1e-9)  # sums of batches are float32


def test_a_gradient_of_zero_is_no_direction():
    transform = make_optimizer(config.Optimizer("sgd", sam=0.1), 0.1)
    zero = {"bias": np.zeros(3, np.float32)}
    updates, _ = jax.jit(lambda: transform.update(zero, transform.init(zero), zero, grad_fn=lambda p, _: p))()
    assert_allclose(updates["bias"], 0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sam": -0.1}, "optimizer.sam -0.1 must be at least 0"),
        (
            {"name": "lbfgs", "line_search": True, "sam": 0.1},
            "line_search needs the unchanged gradient .*optimizer.sam",
        ),
    ],
)
def test_sam_errors(fields, message):
    with pytest.raises(InputError, match=message):
        make_optimizer(config.Optimizer(**fields), 0.1)
