"""Optimizers as PyTorch's, step for step; weight decay, accumulated batches, clipping and lookahead."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from numpy.testing import assert_allclose

from deepjax import config
from deepjax.optimizers import OPTIMIZERS, kernels, make_optimizer, slow_params
from deepjax.optimizers.transforms import clip_adaptively, lookahead


def random_params(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = {"dense": {"kernel": (3, 4), "bias": (4,)}}
    return jax.tree.map(lambda s: rng.standard_normal(s).astype(dtype), shapes, is_leaf=lambda s: isinstance(s, tuple))


def run(optimizer, learning_rate, gradients, params):
    """The parameters after each update. `gradients`: a list, or a function of (parameters, step) for 20 updates."""
    transform = make_optimizer(optimizer, learning_rate)

    @jax.jit
    def update(params, state, gradient):
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state, trajectory = transform.init(params), []
    for step in range(20 if callable(gradients) else len(gradients)):
        gradient = gradients(params, step) if callable(gradients) else gradients[step]
        params, state = update(params, state, gradient)
        params = jax.tree.map(np.asarray, params)
        trajectory.append(params)
    return trajectory


def slope(params, step):
    """Gradient of a bowl whose center moves a little, so that gradients shrink, change sign and are noisy."""
    rng = np.random.default_rng(100 + step)
    bend = np.random.default_rng(99).uniform(0.2, 3, 100)
    return jax.tree.map(
        lambda p: (bend[: p.size].reshape(p.shape) * np.asarray(p) + 0.1 * rng.standard_normal(p.shape)).astype(
            p.dtype
        ),
        params,
    )


# Optimizers

# Our name and fields, PyTorch's class and arguments. The first case of a name has the usual numbers.
TORCH = [
    ("sgd", {}, "SGD", {}),
    ("momentum", {}, "SGD", {"momentum": 0.9}),
    ("momentum", {"momentum": 0.8}, "SGD", {"momentum": 0.8}),
    ("nesterov", {}, "SGD", {"momentum": 0.9, "nesterov": True}),
    ("nesterov", {"momentum": 0.8}, "SGD", {"momentum": 0.8, "nesterov": True}),
    ("adagrad", {}, "Adagrad", {}),
    ("adagrad", {"epsilon": 0.1}, "Adagrad", {"eps": 0.1}),
    ("rmsprop", {}, "RMSprop", {}),
    ("rmsprop", {"second_moment": 0.9, "epsilon": 0.1}, "RMSprop", {"alpha": 0.9, "eps": 0.1}),
    (
        "rmsprop",
        {"momentum": 0.8, "second_moment": 0.9, "epsilon": 0.1},
        "RMSprop",
        {"momentum": 0.8, "alpha": 0.9, "eps": 0.1},
    ),
    ("adadelta", {}, "Adadelta", {}),
    ("adadelta", {"second_moment": 0.95, "epsilon": 1e-3}, "Adadelta", {"rho": 0.95, "eps": 1e-3}),
    *[
        case
        for name, kind in (("adam", "Adam"), ("adamw", "AdamW"), ("adamax", "Adamax"), ("nadam", "NAdam"))
        for case in (
            (name, {}, kind, {}),
            (
                name,
                {"momentum": 0.8, "second_moment": 0.95, "epsilon": 0.1},
                kind,
                {"betas": (0.8, 0.95), "eps": 0.1},
            ),
        )
    ],
    ("nadam", {"momentum_decay": 0.5}, "NAdam", {"momentum_decay": 0.5}),
    ("rprop", {}, "Rprop", {}),
    ("lbfgs", {}, "LBFGS", {"max_iter": 1, "history_size": 10}),
    ("lbfgs", {"history": 3}, "LBFGS", {"max_iter": 1, "history_size": 3}),
]


def torch_trajectory(torch, kind, arguments, rates, decay, params):
    """PyTorch's parameters for the same problem. Classes without weight decay get that of kernels by hand."""
    leaves = [torch.tensor(leaf, requires_grad=True) for leaf in jax.tree.leaves(params)]
    decayed = jax.tree.leaves(kernels(params))
    groups = [{"params": leaves}]
    by_hand = kind in ("Rprop", "LBFGS")
    if not by_hand:
        groups = [
            {"params": [leaf], "weight_decay": decay if is_kernel else 0.0}
            for leaf, is_kernel in zip(leaves, decayed, strict=True)
        ]
    optimizer = getattr(torch.optim, kind)(groups, lr=rates(0), **arguments)
    structure, trajectory = jax.tree.structure(params), []
    for step in range(20):
        now = jax.tree.unflatten(structure, [leaf.detach().numpy().copy() for leaf in leaves])
        for leaf, g, is_kernel in zip(leaves, jax.tree.leaves(slope(now, step)), decayed, strict=True):
            leaf.grad = torch.tensor(g)
            if by_hand and is_kernel:
                leaf.grad += decay * leaf.detach()
        for group in optimizer.param_groups:
            group["lr"] = rates(step)
        optimizer.step(lambda: torch.zeros(()))  # gradients are there; only LBFGS asks
        trajectory.append(jax.tree.unflatten(structure, [leaf.detach().numpy().copy() for leaf in leaves]))
    return trajectory


@pytest.mark.parametrize(
    ("name", "fields", "kind", "arguments", "decay"),
    [(*case, 0.1) for case in TORCH] + [("adam", {}, "Adam", {}, 0.0)],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_twenty_updates_are_torchs(name, fields, kind, arguments, decay):
    """In float64, with a learning rate that changes, and weight decay of the kernel alone."""
    torch = pytest.importorskip("torch")
    scale = 5.0 if name == "adadelta" else 0.3
    tolerance = 1e-7 if name == "nadam" else 1e-10  # PyTorch keeps nadam's product of momenta in float32

    def rate(step):
        return scale if name == "rprop" else scale / (1 + 0.1 * step)

    with jax.enable_x64(True):
        params = random_params(0, np.float64)
        ours = run(config.Optimizer(name=name, weight_decay=decay, **fields), rate, slope, params)
        theirs = torch_trajectory(torch, kind, arguments, rate, decay, params)
        for a, b in zip(ours, theirs, strict=True):
            jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=tolerance, atol=tolerance), a, b)
        assert np.abs(ours[-1]["dense"]["kernel"] - params["dense"]["kernel"]).max() > 0.01


def test_lion_is_the_papers():
    """Chen et al. 2023, algorithm 2, in NumPy."""
    b1, b2, decay, rate = 0.8, 0.95, 0.1, lambda step: 0.1 / (1 + step)
    with jax.enable_x64(True):
        params = random_params(0, np.float64)
        optimizer = config.Optimizer(name="lion", momentum=b1, second_moment=b2, weight_decay=decay)
        ours = run(optimizer, rate, slope, params)
        for leaf in ("kernel", "bias"):
            w, m, expected = params["dense"][leaf], 0.0, []
            for step in range(20):
                g = slope({"dense": params["dense"] | {leaf: w}}, step)["dense"][leaf]
                w = w - rate(step) * (np.sign(b1 * m + (1 - b1) * g) + (decay * w if leaf == "kernel" else 0))
                m = b2 * m + (1 - b2) * g
                expected.append(w)
            assert_allclose([p["dense"][leaf] for p in ours], expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_and_states_keep_their_types_also_under_vmap(name, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), random_params(0))
        schedule = config.Schedule("one_cycle" if "momentum" in OPTIMIZERS[name].usual else "plateau")
        if name == "rprop":
            schedule = config.Schedule()
        transform = make_optimizer(
            config.Optimizer(name=name, weight_decay=0.1, lookahead=2, clip_adaptive=0.01),
            optax.linear_schedule(0.1, 0.0, 10),
            schedule,
            epochs=10,
            steps_per_epoch=1,
        )

        def update(params):
            state = transform.init(params)
            return state, transform.update(params, state, params)

        several = jax.tree.map(lambda p: jax.ShapeDtypeStruct((2, *p.shape), dtype), params)
        f, x = (update, params) if dtype == jnp.float64 else (jax.vmap(update), several)
        state, (updates, after) = jax.eval_shape(f, x)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, x)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


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


@pytest.mark.parametrize("name", ["nesterov", "adamw", "lbfgs"])
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


# Clipping


def test_clip_norm_scales_the_whole_gradient_before_weight_decay():
    params = {"dense": {"kernel": np.float32([[2]]), "bias": np.float32([1])}}
    gradient = {"dense": {"kernel": np.float32([[3]]), "bias": np.float32([4])}}
    optimizer = config.Optimizer(name="sgd", clip_norm=0.5, weight_decay=0.1)
    (after,) = run(optimizer, 1.0, [gradient], params)
    assert_allclose(after["dense"]["kernel"], [[2 - 0.3 - 0.2]], rtol=1e-6)
    assert_allclose(after["dense"]["bias"], [1 - 0.4], rtol=1e-6)
    small = jax.tree.map(lambda g: g / 100, gradient)
    (after,) = run(config.Optimizer(name="sgd", clip_norm=0.5), 1.0, [small], params)
    assert_allclose(after["dense"]["bias"], [0.96], rtol=1e-6)


@pytest.mark.parametrize(("field", "function"), [("clip_norm", "clip_grad_norm_"), ("clip_value", "clip_grad_value_")])
def test_clipping_is_torchs(field, function):
    torch = pytest.importorskip("torch")
    params, gradient = random_params(0), random_params(1)
    (after,) = run(config.Optimizer(name="sgd", **{field: 0.7}), 1.0, [gradient], params)
    leaves = [torch.zeros(g.shape, requires_grad=True) for g in jax.tree.leaves(gradient)]
    for leaf, g in zip(leaves, jax.tree.leaves(gradient), strict=True):
        leaf.grad = torch.tensor(g)
    getattr(torch.nn.utils, function)(leaves, 0.7)
    for a, p, leaf in zip(jax.tree.leaves(after), jax.tree.leaves(params), leaves, strict=True):
        assert_allclose(a - p, -leaf.grad, rtol=1e-4, atol=1e-6)


def test_values_are_cut_before_the_norm_is_taken():
    params = {"kernel": np.zeros(2, np.float32)}
    optimizer = config.Optimizer(name="sgd", clip_value=3.0, clip_norm=1.0)
    (after,) = run(optimizer, 1.0, [{"kernel": np.float32([100, 4])}], params)
    assert_allclose(after["kernel"], -np.array([1, 1]) / np.sqrt(2), rtol=1e-6)


def test_adaptive_clipping_is_of_units():
    """Brock et al. 2021, eq. 3, in NumPy; what is below the limit passes untouched."""
    cases = {  # path: shape of the parameter, axes of one unit
        ("head", "kernel"): ((6, 4), (0,)),
        ("conv1", "kernel"): ((3, 6, 4), (0, 1)),
        ("conv2", "kernel"): ((3, 3, 6, 4), (0, 1, 2)),
        ("conv3", "kernel"): ((2, 3, 3, 6, 4), (0, 1, 2, 3)),
        ("norm", "scale"): ((6,), (0,)),
        ("join", "gain"): ((), ()),
        ("rest", "unit", "norm", "scale"): ((5, 6), (1,)),
        ("rest", "unit", "conv", "kernel"): ((5, 3, 3, 6, 4), (1, 2, 3)),
        ("rest", "unit", "join", "gain"): ((5,), ()),
    }
    rng = np.random.default_rng(0)
    w = {path: np.asarray(rng.standard_normal(shape)) for path, (shape, _) in cases.items()}
    g = {path: np.asarray(rng.standard_normal(shape) * 0.05) for path, (shape, _) in cases.items()}
    for path in cases:
        if path[-1] == "kernel":  # a unit at zero moves by the minimum norm, and one is not clipped
            w[path][..., 0], g[path][..., 1] = 0, g[path][..., 1] / 100
    with jax.enable_x64(True):
        clip = clip_adaptively(0.01)
        update = jax.jit(lambda g, w: clip.update(g, clip.init({}), w)[0])
        clipped = jax.tree.map(np.asarray, update(*map(traverse_util.unflatten_dict, (g, w))))
        clipped = traverse_util.flatten_dict(clipped)
        theirs = optax.adaptive_grad_clip(0.01)
        both = {path: (g[path], w[path]) for path in (("head", "kernel"), ("conv2", "kernel"))}
        optaxs = jax.jit(lambda both: {p: theirs.update(g, theirs.init({}), w)[0] for p, (g, w) in both.items()})(both)
    for path, (_, axes) in cases.items():
        w_norm, g_norm = (np.sqrt(np.sum(x[path] ** 2, axis=axes, keepdims=True)) for x in (w, g))
        limit = 0.01 * np.maximum(w_norm, 1e-3)
        expected = np.where(g_norm > limit, g[path] * limit / g_norm, g[path])
        assert_allclose(clipped[path], expected, rtol=1e-12, err_msg=str(path))
        if path[-1] == "kernel":
            assert np.array_equal(clipped[path][..., 1], g[path][..., 1])
        if path in both:
            assert_allclose(clipped[path], optaxs[path], rtol=1e-5)


# Lookahead


@pytest.mark.parametrize("inner", ["sgd", "adam"])
def test_lookahead_is_the_papers_two_loops(inner):
    """Zhang et al. 2019, algorithm 1: the inner optimizer's state goes on, the weights start again from the slow."""
    period, rate = 3, 0.4
    params = random_params(0)
    ours = run(config.Optimizer(name=inner, lookahead=period, slow_rate=rate), 0.2, slope, params)
    alone = make_optimizer(config.Optimizer(name=inner), 0.2)
    state, slow, update = jax.jit(alone.init)(params), params, jax.jit(alone.update)
    for outer in range(20 // period):
        fast = slow
        for step in range(outer * period, (outer + 1) * period):
            updates, state = update(slope(fast, step), state, fast)
            fast = jax.tree.map(lambda w, u: w + np.asarray(u), fast, updates)
        slow = jax.tree.map(lambda slow, fast: slow + rate * (fast - slow), slow, fast)
        chex.assert_trees_all_close(ours[(outer + 1) * period - 1], slow, rtol=1e-4, atol=1e-5)


def test_lookahead_is_optaxs():
    params = random_params(0)
    theirs = optax.lookahead(optax.sgd(0.2, 0.9), 4, 0.5)
    ours = optax.chain(optax.sgd(0.2, 0.9), lookahead(4, 0.5))

    @jax.jit
    def both(gradients, params, state, pairs, their_state):
        updates, their_state = theirs.update(gradients[1], their_state, pairs)
        pairs = optax.apply_updates(pairs, updates)
        updates, state = ours.update(gradients[0], state, params)
        params = optax.apply_updates(params, updates)
        return params, state, pairs, their_state, slow_params(state, params)

    pairs = optax.LookaheadParams.init_synced(params)
    state, their_state = jax.jit(lambda: (ours.init(params), theirs.init(pairs)))()
    for step in range(10):
        gradients = slope(params, step), slope(pairs.fast, step)
        params, state, pairs, their_state, slow = both(gradients, params, state, pairs, their_state)
        chex.assert_trees_all_close(params, pairs.fast, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(slow, pairs.slow, rtol=1e-5, atol=1e-6)
        if (step + 1) % 4 == 0:
            chex.assert_trees_all_equal(slow, params)


def test_decoupled_decay_is_that_of_the_optimizers_that_have_it():
    """Without a gradient only decay moves a kernel; joined to the gradient, Adam would make a whole step of it."""
    params = {"kernel": np.full(3, 2, np.float32)}
    for name in ("adam", "adamw", "lion"):
        (after,) = run(
            config.Optimizer(name=name, weight_decay=0.1), 0.01, [{"kernel": np.zeros(3, np.float32)}], params
        )
        expected = 2 - 0.01 * 0.1 * 2 if name in ("adamw", "lion") else 2 - 0.01
        assert_allclose(after["kernel"], expected, rtol=1e-6)
