"""Normalization without a batch against PyTorch and float64 NumPy, in values and gradients."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional, layers
from deepjax.errors import InputError

KEY = jax.random.key(0)


def arrays(seed, *shapes, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def compare(torch, ours, theirs, x, *parameters, channels_first=True):
    """Values and gradients of a function of x and its parameters, in float64."""
    if channels_first:
        to, back = (lambda a: np.moveaxis(a, -1, 1)), (lambda a: np.moveaxis(a, 1, -1))
    else:
        to = back = np.asarray
    (weights,) = arrays(99, x.shape, dtype=np.float64)
    tensors = [torch.tensor(a.copy(), requires_grad=True) for a in (to(x), *parameters)]
    ty = theirs(*tensors)
    (ty * torch.tensor(to(weights).copy())).sum().backward()
    with jax.enable_x64(True):

        def loss(*arguments):
            y = ours(*arguments)
            return (y * weights).sum(), y

        numbers = tuple(range(1 + len(parameters)))
        (dx, *rest), y = jax.jit(jax.grad(loss, numbers, has_aux=True))(x, *parameters)
    assert y.dtype == jnp.float64
    assert_allclose(y, back(ty.detach().numpy()), rtol=1e-10, atol=1e-12)
    assert_allclose(dx, back(tensors[0].grad.numpy()), rtol=1e-8, atol=1e-10)
    for mine, tensor in zip(rest, tensors[1:], strict=True):
        assert_allclose(mine, tensor.grad, rtol=1e-8, atol=1e-10)


# Layer norm


@pytest.mark.parametrize(
    ("shape", "axes"), [((6,), 1), ((4, 6), 1), ((4, 5, 6), 1), ((4, 5, 6), 2), ((2, 3, 4, 6), 3), ((2, 3, 4, 6), 4)]
)
def test_layer_norm_is_torchs(shape, axes):
    torch = pytest.importorskip("torch")
    x, scale, bias = arrays(0, shape, shape[-axes:], shape[-axes:], dtype=np.float64)
    ours = partial(functional.layer_norm, axes=axes, epsilon=1e-3)
    compare(
        torch,
        ours,
        lambda x, *parameters: torch.nn.functional.layer_norm(x, shape[-axes:], *parameters, eps=1e-3),
        3 * x + 1,
        scale,
        bias,
        channels_first=False,
    )


def test_layer_norm_of_features_needs_no_parameters():
    (x,) = arrays(0, (4, 6))
    y = functional.layer_norm(x)
    assert_allclose(y.mean(-1), 0, atol=1e-6)
    assert_allclose(y.var(-1), x.var(-1) / (x.var(-1) + 1e-5), rtol=1e-5)


# Group and instance norm

SHAPES = [(4, 6), (3, 5, 6), (2, 3, 5, 6), (2, 2, 3, 4, 6)]


@pytest.mark.parametrize(
    ("shape", "groups"),
    [(SHAPES[0], 1), (SHAPES[0], 2), (SHAPES[1], 3), (SHAPES[2], 1), (SHAPES[2], 2), (SHAPES[2], 6), (SHAPES[3], 2)],
)
def test_group_norm_is_torchs(shape, groups):
    torch = pytest.importorskip("torch")
    x, scale, bias = arrays(1, shape, 6, 6, dtype=np.float64)
    ours = partial(functional.group_norm, groups=groups, epsilon=1e-3)
    theirs = torch.nn.functional.group_norm
    compare(torch, ours, lambda x, *rest: theirs(x, groups, *rest, eps=1e-3), 3 * x + 1, scale, bias)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_instance_norm_is_torchs(shape):
    torch = pytest.importorskip("torch")
    x, scale, bias = arrays(2, shape, 6, 6, dtype=np.float64)
    ours = partial(functional.instance_norm, epsilon=1e-3)
    theirs = torch.nn.functional.instance_norm
    compare(torch, ours, lambda x, s, b: theirs(x, weight=s, bias=b, eps=1e-3), 3 * x + 1, scale, bias)


def test_groups_are_a_bridge_from_layer_to_instance_norm():
    (x,) = arrays(3, (2, 4, 5, 6))
    one = functional.group_norm(x, groups=1)
    assert_allclose(one, functional.layer_norm(x, axes=3), rtol=1e-5, atol=1e-5)
    assert_allclose(functional.group_norm(x, groups=6), functional.instance_norm(x), rtol=1e-5, atol=1e-5)


# Weight norm


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (3, 3, 5, 4)])
def test_weight_norm_is_torchs(shape):
    torch = pytest.importorskip("torch")
    v, g = arrays(4, shape, 4, dtype=np.float64)
    last = len(shape) - 1
    compare(torch, functional.weight_norm, lambda v, g: torch._weight_norm(v, g, last), v, g, channels_first=False)


@pytest.mark.parametrize("shape", [(5, 4), (3, 3, 5, 4)])
def test_weight_norms_gradients_are_the_lectures(shape):
    """Salimans & Kingma 2016, eq. 3, feature by feature."""
    v, g, dw = arrays(5, shape, 4, shape, dtype=np.float64)
    with jax.enable_x64(True):
        w, back = jax.vjp(functional.weight_norm, v, jnp.asarray(g))
        w, dv, dg = (np.asarray(a) for a in (w, *back(jnp.asarray(dw))))
    for o in range(4):
        length = np.sqrt((v[..., o] ** 2).sum())
        assert_allclose(np.linalg.norm(w[..., o]), abs(g[o]), rtol=1e-12)
        expected = (dw[..., o] * v[..., o]).sum() / length
        assert_allclose(dg[o], expected, rtol=1e-10)
        expected = g[o] / length * dw[..., o] - g[o] * expected / length**2 * v[..., o]
        assert_allclose(dv[..., o], expected, rtol=1e-9, atol=1e-12)
        assert_allclose((dv[..., o] * v[..., o]).sum(), 0, atol=1e-10)  # so |v| can only grow


# Local response norm


@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 5, 6), 1), ((3, 5, 6), 2), ((2, 3, 5, 6), 3), ((2, 3, 5, 6), 4), ((2, 2, 3, 4, 6), 5), ((3, 5, 6), 9)],
)
def test_local_response_norm_is_torchs(shape, size):
    torch = pytest.importorskip("torch")
    (x,) = arrays(6, shape, dtype=np.float64)
    options = {"alpha": 0.3, "beta": 0.6, "k": 0.7}
    theirs = torch.nn.LocalResponseNorm(size, **options)
    compare(torch, partial(functional.local_response_norm, size=size, **options), theirs, x)


def test_local_response_norms_defaults_are_torchs():
    torch = pytest.importorskip("torch")
    x = 100 * arrays(6, (2, 4, 6))[0]
    theirs = torch.nn.LocalResponseNorm(5)(torch.tensor(np.moveaxis(x, -1, 1).copy()))
    assert_allclose(functional.local_response_norm(x, 5), np.moveaxis(theirs.numpy(), 1, -1), rtol=1e-5)


def test_local_response_norm_is_alexnets():
    """Krizhevsky et al. 2012, section 3.3: sums over five neighbours, n = 5, alpha = 1e-4, beta = 0.75, k = 2."""
    x = 50 * arrays(7, (7,))[0].astype(np.float64)
    expected = [a / (2 + 1e-4 * sum(x[max(0, i - 2) : i + 3] ** 2)) ** 0.75 for i, a in enumerate(x)]
    assert_allclose(functional.local_response_norm(jnp.asarray(x), 5, alpha=5e-4, k=2.0), expected, rtol=1e-5)


# All of them

FUNCTIONS = {
    "layer": partial(functional.layer_norm, axes=2),
    "group": partial(functional.group_norm, groups=3),
    "instance": functional.instance_norm,
    "weight": lambda x: functional.weight_norm(x, jnp.ones(6)),
    "response": partial(functional.local_response_norm, size=3, alpha=1.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_precision_is_float32_rounded_and_vmap_a_loop(name):
    """With a mean of 500, sums in half precision, or a variance from squares, would be far off."""
    x = jnp.asarray(500 + 4 * arrays(8, (3, 4, 50, 6))[0], jnp.bfloat16)
    function = jax.jit(FUNCTIONS[name])
    y = jax.jit(jax.vmap(function))(x)
    assert y.dtype == jnp.bfloat16
    for i in range(3):
        expected = function(x[i].astype(jnp.float32))
        assert_allclose(y[i].astype(jnp.float32), expected, rtol=2**-8, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: (FUNCTIONS[name](x).astype(jnp.float32) ** 2 / 2).sum()))
    assert jnp.isfinite(gradient(x[0])).all()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: functional.layer_norm(x, axes=0), "axes 0"),
        (lambda x: functional.layer_norm(x, axes=4), "axes 4"),
        (lambda x: functional.layer_norm(x, jnp.ones(6), axes=2), r"scale has shape \(6,\)"),
        (lambda x: functional.layer_norm(x, bias=jnp.ones(5)), r"bias has shape \(5,\)"),
        (lambda x: functional.layer_norm(x, epsilon=-1.0), "epsilon -1.0"),
        (lambda x: functional.layer_norm(x.astype(int)), "int32"),
        (lambda x: functional.group_norm(x, groups=4), "groups 4 must divide the 6 features.*one of 1, 2, 3, 6"),
        (lambda x: functional.group_norm(x, groups=0), "groups 0"),
        (lambda x: functional.group_norm(x, groups=2.0), "groups 2.0"),
        (lambda x: functional.group_norm(x, jnp.ones(5), groups=2), r"scale has shape \(5,\)"),
        (lambda x: functional.group_norm(x[0, 0], groups=2), "must be .batch"),
        (lambda x: functional.instance_norm(x[0]), "at least two pixels"),
        (lambda x: functional.instance_norm(x[:, :1]), "at least two pixels"),
        (lambda x: functional.instance_norm(x, bias=jnp.ones(5)), r"bias has shape \(5,\)"),
        (lambda x: functional.weight_norm(x, jnp.ones(5)), r"g has shape \(5,\)"),
        (lambda x: functional.weight_norm(x, jnp.ones(())), r"g has shape \(\)"),
        (lambda x: functional.local_response_norm(x, 0), "size 0"),
        (lambda x: functional.local_response_norm(x, 2.5), "size 2.5"),
    ],
)
def test_errors(function, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(function, jnp.ones((2, 4, 6)))  # at trace time


# Modules


@pytest.mark.parametrize(
    ("module", "function", "shape"),
    [
        (layers.LayerNorm(axes=2, epsilon=0.1), partial(functional.layer_norm, axes=2, epsilon=0.1), (5, 6)),
        (layers.GroupNorm(3, epsilon=0.1), partial(functional.group_norm, groups=3, epsilon=0.1), (6,)),
        (layers.InstanceNorm(epsilon=0.1), partial(functional.instance_norm, epsilon=0.1), (6,)),
    ],
)
def test_modules_bind_names_to_the_functions(module, function, shape):
    x, scale, bias = arrays(9, (2, 5, 6), shape, shape)
    params = module.init(KEY, x)["params"]
    assert jax.tree.map(jnp.shape, params) == {"scale": shape, "bias": shape}
    y = module.apply({"params": {"scale": scale, "bias": bias}}, x)
    assert_allclose(y, function(x, scale, bias), rtol=1e-6)
    bare = module.clone(use_scale=False, use_bias=False)
    assert bare.init(KEY, x) == {}
    assert_allclose(bare.apply({}, x), function(x), rtol=1e-6)


def test_local_response_module():
    (x,) = arrays(9, (2, 5, 6))
    y = layers.LocalResponseNorm(3, alpha=0.1, beta=0.5, k=2.0).apply({}, x)
    assert_allclose(y, functional.local_response_norm(x, 3, alpha=0.1, beta=0.5, k=2.0), rtol=1e-6)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="dense")(nn.relu(layers.Conv(4, (3,), use_bias=True, name="conv")(x)))


def test_weight_norm_module_starts_as_the_layer_and_learns_direction_and_length():
    (x,) = arrays(9, (2, 5, 6))
    module = layers.WeightNorm(nn.Dense(4))
    params = module.init(KEY, x)["params"]
    assert_allclose(module.apply({"params": params}, x), nn.Dense(4).apply({"params": params["layer"]}, x), rtol=1e-5)
    known = layers.WeightNorm(nn.Dense(4, kernel_init=nn.initializers.constant(2.0)))
    y, variables = known.init_with_output(KEY, x)
    assert_allclose(y, 2 * x.sum(-1, keepdims=True) * np.ones((1, 1, 4)), rtol=1e-4, atol=1e-5)
    assert_allclose(variables["params"]["layer"]["kernel"], 2, rtol=1e-6)
    assert_allclose(variables["params"]["scale"], 2 * np.sqrt(6), rtol=1e-6)
    kernel, scale = arrays(10, (6, 4), 4)
    params = {"layer": {"kernel": kernel, "bias": np.ones(4, np.float32)}, "scale": scale}
    expected = x @ functional.weight_norm(kernel, scale) + np.ones((1, 1, 4))
    assert_allclose(module.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda params: (module.apply({"params": params}, x) ** 2).sum())(params)
    assert_allclose((gradient["layer"]["kernel"] * kernel).sum(0), 0, atol=1e-3)
    assert (abs(gradient["scale"]) > 1e-3).all()


def test_weight_norm_module_of_a_net():
    (x,) = arrays(9, (2, 5, 6))
    module = layers.WeightNorm(Net())
    params = module.init(KEY, x)["params"]
    assert params["conv_scale"].shape == (4,)
    assert params["dense_scale"].shape == (3,)
    assert_allclose(module.apply({"params": params}, x), Net().apply({"params": params["layer"]}, x), rtol=1e-5)
    doubled = {**params, "dense_scale": 2 * params["dense_scale"]}
    assert_allclose(
        module.apply({"params": doubled}, x), 2 * module.apply({"params": params}, x), rtol=1e-5
    )  # biases are 0
