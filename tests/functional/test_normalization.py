"""Normalization without a batch against PyTorch and float64 NumPy, in values and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional
from deepjax.errors import InputError
from helpers import random_arrays


def assert_are_torchs(torch, cases, channels_first=True):
    """Values and gradients in float64. Each case: (ours, PyTorch's function, x, *parameters); one program for all."""

    def to(array):
        return np.moveaxis(array, -1, 1).copy() if channels_first else array.copy()

    inputs = [[x, *parameters, *map(np.float64, random_arrays(99, x.shape))] for _, _, x, *parameters in cases]

    @jax.jit
    def run(inputs):
        pulled = []
        for (ours, *_), (*arguments, weights) in zip(cases, inputs, strict=True):
            y, pull = jax.vjp(ours, *arguments)
            pulled.append((y, *pull(weights)))
        return pulled

    with jax.enable_x64(True):
        results = run(inputs)
    for (_, theirs, *_), (x, *parameters, weights), (y, dx, *rest) in zip(cases, inputs, results, strict=True):
        tensors = [torch.tensor(a.copy(), requires_grad=True) for a in (to(x), *parameters)]
        ty = theirs(*tensors)
        (ty * torch.tensor(to(weights))).sum().backward()
        assert y.dtype == jnp.float64
        assert_allclose(to(np.asarray(y)), ty.detach(), rtol=1e-10, atol=1e-12)
        assert_allclose(to(np.asarray(dx)), tensors[0].grad, rtol=1e-8, atol=1e-10)
        for mine, tensor in zip(rest, tensors[1:], strict=True):
            assert_allclose(mine, tensor.grad, rtol=1e-8, atol=1e-10)


def wide_arrays(seed, *shapes):
    return [np.float64(a) for a in random_arrays(seed, *shapes)]


# Layer norm


def test_layer_norm_is_torchs():
    torch = pytest.importorskip("torch")
    cases = []
    for shape, axes in [((6,), 1), ((4, 6), 1), ((4, 5, 6), 2), ((2, 3, 4, 6), 3), ((2, 3, 4, 6), 4)]:
        theirs = partial(torch.nn.functional.layer_norm, eps=1e-3)
        x, scale, bias = wide_arrays(0, shape, shape[-axes:], shape[-axes:])
        ours = partial(functional.layer_norm, axes=axes, epsilon=1e-3)
        cases.append((ours, lambda x, *rest, s=shape[-axes:], f=theirs: f(x, s, *rest), 3 * x + 1, scale, bias))
    assert_are_torchs(torch, cases, channels_first=False)


def test_layer_norm_of_features_needs_no_parameters():
    (x,) = random_arrays(0, (4, 6))
    y = np.asarray(jax.jit(functional.layer_norm)(x))
    assert_allclose(y.mean(-1), 0, atol=1e-6)
    assert_allclose(y.var(-1), x.var(-1) / (x.var(-1) + 1e-5), rtol=1e-5)


# Group and instance norm

SHAPES = [(4, 6), (3, 5, 6), (2, 3, 5, 6), (2, 2, 3, 4, 6)]


def test_group_norm_is_torchs():
    torch = pytest.importorskip("torch")
    cases = []
    for shape, groups in [(0, 1), (0, 2), (1, 3), (2, 2), (2, 6), (3, 2)]:
        x, scale, bias = wide_arrays(1, SHAPES[shape], (6,), (6,))
        ours = partial(functional.group_norm, groups=groups, epsilon=1e-3)
        theirs = partial(torch.nn.functional.group_norm, eps=1e-3)
        cases.append((ours, lambda x, *rest, n=groups, f=theirs: f(x, n, *rest), 3 * x + 1, scale, bias))
    assert_are_torchs(torch, cases)


def test_instance_norm_is_torchs():
    torch = pytest.importorskip("torch")
    cases = []
    for shape in SHAPES[1:]:
        x, scale, bias = wide_arrays(2, shape, (6,), (6,))
        theirs = partial(torch.nn.functional.instance_norm, eps=1e-3)
        ours = partial(functional.instance_norm, epsilon=1e-3)
        cases.append((ours, lambda x, s, b, f=theirs: f(x, weight=s, bias=b), 3 * x + 1, scale, bias))
    assert_are_torchs(torch, cases)


def test_groups_are_a_bridge_from_layer_to_instance_norm():
    (x,) = random_arrays(3, (2, 4, 5, 6))

    @jax.jit
    def run(x):
        one, all_features = (functional.group_norm(x, groups=groups) for groups in (1, 6))
        return (one, functional.layer_norm(x, axes=3)), (all_features, functional.instance_norm(x))

    for ours, expected in run(x):
        assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


# Weight norm


def test_weight_norm_is_torchs():
    torch = pytest.importorskip("torch")
    cases = []
    for shape in [(5, 4), (3, 5, 4), (3, 3, 5, 4)]:
        last = len(shape) - 1
        theirs = lambda v, g, last=last: torch._weight_norm(v, g, last)  # noqa: E731
        cases.append((functional.weight_norm, theirs, *wide_arrays(4, shape, (4,))))
    assert_are_torchs(torch, cases, channels_first=False)


@pytest.mark.parametrize("shape", [(5, 4), (3, 3, 5, 4)])
def test_weight_norms_gradients_are_the_lectures(shape):
    """Salimans & Kingma 2016, eq. 3, feature by feature."""
    v, g, dw = wide_arrays(5, shape, (4,), shape)

    @jax.jit
    def run(v, g, dw):
        w, back = jax.vjp(functional.weight_norm, v, g)
        return w, *back(dw)

    with jax.enable_x64(True):
        w, dv, dg = map(np.asarray, run(v, g, dw))
    for o in range(4):
        length = np.sqrt((v[..., o] ** 2).sum())
        assert_allclose(np.linalg.norm(w[..., o]), abs(g[o]), rtol=1e-12)
        expected = (dw[..., o] * v[..., o]).sum() / length
        assert_allclose(dg[o], expected, rtol=1e-10)
        expected = g[o] / length * dw[..., o] - g[o] * expected / length**2 * v[..., o]
        assert_allclose(dv[..., o], expected, rtol=1e-9, atol=1e-12)
        assert_allclose((dv[..., o] * v[..., o]).sum(), 0, atol=1e-10)  # so |v| can only grow


# Local response norm


def test_local_response_norm_is_torchs():
    torch = pytest.importorskip("torch")
    options, cases = {"alpha": 0.3, "beta": 0.6, "k": 0.7}, []
    for shape, size in [((3, 5, 6), 1), ((3, 5, 6), 2), ((2, 3, 5, 6), 3), ((2, 2, 3, 4, 6), 5), ((3, 5, 6), 9)]:
        ours = partial(functional.local_response_norm, size=size, **options)
        cases.append((ours, torch.nn.LocalResponseNorm(size, **options), *wide_arrays(6, shape)))
    (x,) = wide_arrays(6, (2, 4, 6))
    cases.append((partial(functional.local_response_norm, size=5), torch.nn.LocalResponseNorm(5), 100 * x))  # defaults
    assert_are_torchs(torch, cases)


def test_local_response_norm_is_alexnets():
    """Krizhevsky et al. 2012, section 3.3: sums over five neighbours, n = 5, alpha = 1e-4, beta = 0.75, k = 2."""
    x = 50 * random_arrays(7, (7,))[0]
    expected = [a / (2 + 1e-4 * sum(x[max(0, i - 2) : i + 3] ** 2)) ** 0.75 for i, a in enumerate(x)]
    y = jax.jit(partial(functional.local_response_norm, size=5, alpha=5e-4, k=2.0))(x)
    assert_allclose(y, expected, rtol=1e-5)


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
    x = (500 + 4 * random_arrays(8, (3, 4, 50, 6))[0]).astype(jnp.bfloat16)
    function = FUNCTIONS[name]

    @jax.jit
    def run(x):
        alone = [function(row.astype(jnp.float32)) for row in x]
        return jax.vmap(function)(x), alone, jax.grad(lambda x: (function(x).astype(jnp.float32) ** 2 / 2).sum())(x[0])

    y, alone, gradient = run(x)
    assert y.dtype == jnp.bfloat16
    for row, expected in zip(np.float32(y), alone, strict=True):
        assert_allclose(row, expected, rtol=2**-8, atol=1e-5)
    assert np.isfinite(np.float32(gradient)).all()


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
