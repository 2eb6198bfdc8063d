"""Activations against PyTorch and float64 NumPy, in values and gradients; their gains."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from deepjax import functional
from deepjax.errors import InputError
from helpers import random_arrays

# name: (ours, PyTorch's, given torch)
ELEMENTWISE = {
    "relu": (functional.relu, lambda torch: torch.relu),
    "leaky_relu": (functional.leaky_relu, lambda torch: torch.nn.functional.leaky_relu),
    "leaky_relu 0.3": (
        partial(functional.leaky_relu, slope=0.3),
        lambda torch: partial(torch.nn.functional.leaky_relu, negative_slope=0.3),
    ),
    "prelu": (
        lambda x: functional.prelu(x, 0.25),
        lambda torch: lambda x: torch.nn.functional.prelu(x, torch.tensor([0.25], dtype=x.dtype)),
    ),
    "elu": (functional.elu, lambda torch: torch.nn.functional.elu),
    "elu 0.5": (partial(functional.elu, alpha=0.5), lambda torch: partial(torch.nn.functional.elu, alpha=0.5)),
    "selu": (functional.selu, lambda torch: torch.selu),
    # PyTorch returns x itself above its threshold
    "softplus": (functional.softplus, lambda torch: partial(torch.nn.functional.softplus, threshold=50)),
    "sigmoid": (functional.sigmoid, lambda torch: torch.sigmoid),
    "tanh": (functional.tanh, lambda torch: torch.tanh),
    "lecun_tanh": (functional.lecun_tanh, lambda torch: lambda x: 1.7159 * torch.tanh(2 * x / 3)),
    "crelu": (
        functional.crelu,
        lambda torch: lambda x: torch.stack([torch.relu(x), torch.relu(-x)], -1).flatten(-2),
    ),
}
DTYPES = {"float32": 1e-6, "float64": 1e-13, "bfloat16": 2**-6}  # and the tolerance
EXTREMES = [0.0, -0.0, 1e4, -1e4, 30, -30]


def values_and_pullbacks(cases):
    """[(value of f, gradients of sum(f * weights), weights)] for all [(f, inputs)], in one program."""
    weights = [random_arrays(99, jax.eval_shape(f, *inputs).shape)[0] for f, inputs in cases]

    @jax.jit
    def run(all_inputs):
        results = []
        for (f, _), inputs, w in zip(cases, all_inputs, weights, strict=True):
            y, pull = jax.vjp(f, *inputs)
            results.append((y, pull(jnp.asarray(w, y.dtype))))
        return results

    results = run([list(inputs) for _, inputs in cases])
    return [(*result, w) for result, w in zip(results, weights, strict=True)]


def torch_pullback(torch, f, weights, *inputs):
    """The same in PyTorch, on NumPy inputs."""
    inputs = [torch.tensor(np.asarray(x), requires_grad=True) for x in inputs]
    y = f(*inputs)
    (y * torch.tensor(weights, dtype=y.dtype)).sum().backward()
    return y.detach().numpy(), [x.grad.numpy() for x in inputs]


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_gradients_and_dtypes_are_torchs(dtype):
    torch = pytest.importorskip("torch")
    with jax.enable_x64(dtype == "float64"):
        (sample,) = map(np.float64, random_arrays(0, (3, 2, 7)))
        inputs = {}
        for name in ELEMENTWISE:
            special = EXTREMES if name != "crelu" else EXTREMES[2:]  # its derivative at 0 is another
            inputs[name] = jnp.asarray(np.concatenate([3 * sample.ravel(), special]).reshape(2, -1), dtype)
        results = values_and_pullbacks([(ELEMENTWISE[name][0], (x,)) for name, x in inputs.items()])
        for (name, x), (y, (gradient,), weights) in zip(inputs.items(), results, strict=True):
            assert y.dtype == gradient.dtype == x.dtype, name
            assert np.isfinite(np.asarray(y, np.float64)).all(), name
            assert np.isfinite(np.asarray(gradient, np.float64)).all(), name
            if dtype == "bfloat16":
                weights = np.asarray(weights, jnp.bfloat16).astype(np.float64)
            theirs = ELEMENTWISE[name][1](torch)
            expected, (expected_gradient,) = torch_pullback(torch, theirs, weights, np.asarray(x, np.float64))
            tolerance = {"rtol": DTYPES[dtype], "err_msg": name}
            assert_allclose(np.asarray(y, np.float64), expected, atol=DTYPES[dtype], **tolerance)
            gradient = np.asarray(gradient, np.float64)
            assert_allclose(gradient, expected_gradient, atol=2 * DTYPES[dtype], **tolerance)


def test_any_number_of_leading_axes_and_vmap():
    (x,) = random_arrays(1, (2, 3, 2, 4))
    functions = {name: f for name, (f, _) in ELEMENTWISE.items()}

    @jax.jit
    def run(x):
        return {name: (f(x), jax.vmap(jax.vmap(f))(x), f(x[0, 1, 1])) for name, f in functions.items()}

    for name, (y, mapped, one) in jax.tree.map(np.asarray, run(x)).items():
        assert y.shape[:-1] == x.shape[:-1], name
        assert_allclose(mapped, y, rtol=1e-6, err_msg=name)
        assert_allclose(one, y[0, 1, 1], rtol=1e-6, err_msg=name)
        if name != "crelu":
            assert jax.eval_shape(functions[name], jnp.float32(1.5)).shape == (), name


KINK = np.float32([-2, 0, 3])


def test_relu_and_its_gradient():
    y, slope = jax.jit(lambda x: (functional.relu(x), jax.grad(lambda x: functional.relu(x).sum())(x)))(KINK)
    assert_allclose(y, [0, 0, 3])
    assert_allclose(slope, [0, 0, 1])


def test_slope_0_is_relu_in_its_gradient_too():
    leaky = partial(functional.leaky_relu, slope=0.0)
    y, slope = jax.jit(lambda x: (leaky(x), jax.grad(lambda x: leaky(x).sum())(x)))(KINK)
    assert_array_equal(y, [0, 0, 3])
    assert_array_equal(slope, [0, 0, 1])


def test_selus_fixed_point():
    """Klambauer et al. 2017: mean 0 and variance 1 stay, here by a sample of a million at four sigma."""
    y = np.float64(jax.jit(functional.selu)(np.random.default_rng(0).standard_normal((1000, 1000), np.float32)))
    assert abs(y.mean()) < 4 / 1e3
    assert abs((y**2).mean() - 1) < 4 * (y**2).std() / 1e3


# PReLU


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_prelu_is_torchs(dtype):
    torch = pytest.importorskip("torch")
    shapes = [(3,), (5, 3), (2, 4, 5, 3), (2, 2, 3, 4, 3)]
    with jax.enable_x64(dtype == "float64"):
        inputs = [
            [a.astype(dtype) for a in random_arrays(0, shape, slope)] for shape in shapes for slope in ((3,), (1,))
        ]
        results = values_and_pullbacks([(functional.prelu, pair) for pair in inputs])
        for (x, slope), (y, gradients, weights) in zip(inputs, results, strict=True):

            def theirs(x, slope, shape=x.shape):  # features are PyTorch's axis 1
                y = torch.nn.functional.prelu(torch.movedim(x.reshape(-1, *shape[1:-1], 3), -1, 1), slope)
                return torch.movedim(y, 1, -1).reshape(shape)

            expected, expected_gradients = torch_pullback(torch, theirs, weights, x, slope)
            tolerance = 1e-5 if dtype == "float32" else 1e-12
            assert_allclose(y, expected, rtol=tolerance)
            for ours, other in zip(gradients, expected_gradients, strict=True):
                assert_allclose(ours, other, rtol=tolerance, atol=tolerance)


def test_prelus_slope_takes_the_inputs_dtype():
    x, slope = np.ones((2, 3), jnp.bfloat16), np.ones(3, np.float32)
    for s in (slope, np.float32(0.1)):
        assert jax.eval_shape(functional.prelu, x, s).dtype == jnp.bfloat16
    assert jax.jit(functional.leaky_relu)(np.arange(-2, 2), 0.5).tolist() == [-1.0, -0.5, 0.0, 1.0]


@pytest.mark.parametrize("slope", [(2,), (2, 3), (1, 3), (4,)])
def test_prelu_errors(slope):
    with pytest.raises(InputError, match=r"prelu: slope of shape .* must be one number, or \(3,\)"):
        functional.prelu(np.ones((2, 3), np.float32), np.ones(slope, np.float32))
    with pytest.raises(InputError, match="prelu: slope"):
        functional.prelu(np.float32(1), np.ones(1, np.float32))
    with pytest.raises(InputError, match=r"leaky_relu: slope of shape \(3,\)"):
        functional.leaky_relu(np.ones((2, 3), np.float32), np.ones(3, np.float32))


# Maxout


def test_maxout_is_the_definition():
    torch = pytest.importorskip("torch")
    sizes = [(leading, pieces) for leading, pieces in (((), 2), ((6,), 1), ((2, 3), 5)) for _ in range(2)]
    inputs = [random_arrays(0, (*a, 4), (4, n, 3), *[(n, 3)] * (i % 2)) for i, (a, n) in enumerate(sizes)]
    results = values_and_pullbacks([(functional.maxout, arguments) for arguments in inputs])
    for (leading, pieces), arguments, (y, gradients, weights) in zip(sizes, inputs, results, strict=True):
        assert y.shape == (*leading, 3)

        def theirs(x, kernel, bias=None, pieces=pieces):
            affine = [x @ kernel[:, k] + (0 if bias is None else bias[k]) for k in range(pieces)]
            return torch.stack(affine).amax(0)

        wide = [a.astype(np.float64) for a in arguments]
        expected, expected_gradients = torch_pullback(torch, theirs, weights, *wide)
        assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
        for ours, other in zip(gradients, expected_gradients, strict=True):
            assert_allclose(ours, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "x64"), [("bfloat16", False), ("float64", True)])
def test_maxout_of_two_pieces_is_relu_and_the_absolute_value_exactly(dtype, x64):
    one, x = np.eye(3), random_arrays(0, (50, 3))[0].astype(dtype)
    pieces = [np.stack([one, other], 1).astype(dtype) for other in (0 * one, -one)]
    with jax.enable_x64(x64):
        maxout = jax.jit(lambda kernels: [functional.maxout(x, kernel) for kernel in kernels])
        relu, absolute = map(np.asarray, maxout(pieces))
    assert relu.dtype == absolute.dtype == x.dtype
    assert_array_equal(relu, np.maximum(x, 0))
    assert_array_equal(absolute, np.abs(x))


@pytest.mark.parametrize(
    ("x", "kernel", "bias", "message"),
    [
        ((2, 4), (4, 3), None, "kernel of shape"),
        ((2, 4), (4, 0, 3), None, "kernel of shape"),
        ((2, 4), (3, 2, 4), None, "3 features_in"),
        ((), (3, 2, 4), None, "3 features_in"),
        ((2, 4), (4, 2, 3), (3,), r"must be \(2, 3\)"),
        ((2, 4), (4, 2, 3), (3, 2), r"must be \(2, 3\)"),
    ],
)
def test_maxout_errors(x, kernel, bias, message):
    with pytest.raises(InputError, match=message):
        functional.maxout(*(a if a is None else np.ones(a, np.float32) for a in (x, kernel, bias)))


# CReLU


def test_crelu_interleaves_its_halves():
    x = np.float32([[1, -2, 3], [-4, 5, -6]])
    assert jax.jit(functional.crelu)(x).tolist() == [[1, 0, 0, 2, 3, 0], [0, 4, 5, 0, 0, 6]]
    with pytest.raises(InputError, match="features axis"):
        functional.crelu(np.float32(1))


@pytest.mark.parametrize("zeros", [False, True])
def test_crelu_keeps_the_norm_forward_and_backward(zeros):
    x, tangent, cotangent = map(np.float64, random_arrays(0, (5, 8), (5, 8), (5, 16)))
    if zeros:  # an isometry at the kink, too: a black image has many of them
        x[:, ::2] = 0

    @jax.jit
    def run(x):
        y, pull = jax.vjp(functional.crelu, x)
        _, pushed = jax.jvp(functional.crelu, (x,), (tangent,))
        return y, pushed, jax.jacobian(functional.crelu)(x[0]), pull(jnp.asarray(cotangent))[0], pull(pushed)[0]

    with jax.enable_x64(True):
        y, pushed, jacobian, pulled, back = map(np.asarray, run(x))
    assert_allclose(np.linalg.norm(y), np.linalg.norm(x), rtol=1e-14)
    assert_allclose(np.linalg.norm(pushed), np.linalg.norm(tangent), rtol=1e-14)
    assert_array_equal(jacobian.T @ jacobian, np.eye(8))
    # backward, the norm of what arrives at the halves in use
    used = np.where(x >= 0, cotangent[:, ::2], cotangent[:, 1::2])
    assert_allclose(np.linalg.norm(pulled), np.linalg.norm(used), rtol=1e-14)
    assert_allclose(back, tangent, rtol=1e-14)  # all of it, if it comes from there


def test_a_mirrored_orthogonal_kernel_keeps_the_gradient_of_crelu():
    """Looks-linear (Balduzzi et al. 2017): fifty layers are a linear map that keeps every norm."""
    with jax.enable_x64(True):
        x, cotangent, matrices = map(np.float64, random_arrays(0, (8,), (8,), (50, 8, 8)))
        x[0] = 0
        orthogonal = np.linalg.qr(matrices)[0]

        def net(x):
            def layer(x, q):
                return functional.crelu(x) @ jnp.stack([q, -q], 1).reshape(16, 8), None

            return jax.lax.scan(layer, x, orthogonal)[0]

        def both(x):
            y, pull = jax.vjp(net, x)
            return y, pull(jnp.asarray(cotangent))[0]

        y, pulled = jax.jit(both)(x)
        assert_allclose(y, x @ np.linalg.multi_dot(orthogonal), rtol=1e-12, atol=1e-13)
        assert_allclose(np.linalg.norm(pulled), np.linalg.norm(cotangent), rtol=1e-12)


# Gains

REFERENCES = {  # f(z) in float64
    "linear": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "prelu": lambda z: np.where(z > 0, z, 0.25 * z),
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "selu": lambda z: 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(np.minimum(z, 0))),
    "softplus": lambda z: np.logaddexp(z, 0),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "lecun_tanh": lambda z: 1.7159 * np.tanh(2 * z / 3),
    "crelu": lambda z: np.maximum(z, 0),  # each of its features
}


@pytest.mark.parametrize("name", REFERENCES)
def test_gain_is_the_inverse_second_moment(name):
    """By Gauss-Legendre quadrature on either side of the kink."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    z = np.concatenate([6 * (nodes - 1), 6 * (nodes + 1)])  # [-12, 0] and [0, 12]
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    moment = (6 * np.tile(weights, 2) * density * REFERENCES[name](z) ** 2).sum()
    assert_allclose(functional.gain(name), 1 / moment, rtol=1e-12)


def test_gain_keeps_the_variance_of_a_sample():
    """Our own activations of 250,000 numbers, with fan in counted after them, at four sigma."""
    z = np.random.default_rng(1).standard_normal((500, 500), np.float32)
    names = [name for name in REFERENCES if name != "linear"]

    @jax.jit
    def run(z):
        return {name: getattr(functional, name)(z, *[0.25] * (name == "prelu")) for name in names}

    for name, y in run(z).items():
        squares = functional.gain(name) * np.square(np.asarray(y, np.float64))
        assert abs(squares.mean() - 1) < 4 * squares.std() / 500, name


def test_gain_of_slopes_and_pieces():
    for slope in (0.0, 0.2, -0.5, 1.0, 3):
        assert functional.gain("leaky_relu", slope) == functional.gain("prelu", slope=slope) == 2 / (1 + slope**2)
    assert functional.gain("leaky_relu", 0) == functional.gain("relu")
    # the closed forms of E[max^2] for up to four normals
    for pieces, moment in ((1, 1), (2, 1), (3, 1 + math.sqrt(3) / (2 * math.pi)), (4, 1 + math.sqrt(3) / math.pi)):
        assert_allclose(functional.gain("maxout", pieces=pieces), 1 / moment, rtol=1e-12)
    assert functional.gain("maxout") == functional.gain("maxout", pieces=2)
    for pieces in (5, 50):
        squares = np.square(np.random.default_rng(0).standard_normal((100_000, pieces)).max(-1))
        assert abs(1 / functional.gain("maxout", pieces=pieces) - squares.mean()) < 4 * squares.std() / math.sqrt(1e5)


def test_gain_beside_torchs():
    calculate_gain = pytest.importorskip("torch").nn.init.calculate_gain
    for name in ("linear", "relu", "leaky_relu"):
        assert_allclose(math.sqrt(functional.gain(name)), calculate_gain(name), rtol=1e-12)
    assert_allclose(math.sqrt(functional.gain("leaky_relu", 0.3)), calculate_gain("leaky_relu", 0.3), rtol=1e-12)
    ours = [round(math.sqrt(functional.gain(name)), 3) for name in ("tanh", "selu", "sigmoid")]
    assert ours == [1.593, 1.0, 1.846]  # as the docstring says, beside
    assert [calculate_gain(name) for name in ("tanh", "selu", "sigmoid")] == [5 / 3, 0.75, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("relo",), "did you mean 'relu'"),
        (("relu", 0.1), "slope 0.1 of relu"),
        (("leaky_relu", math.nan), "slope nan"),
        (("leaky_relu", math.inf), "slope inf"),
    ],
)
def test_gain_errors(arguments, message):
    with pytest.raises(InputError, match=message):
        functional.gain(*arguments)
    for name, pieces in (("maxout", 0), ("maxout", 1.5), ("relu", 2)):
        with pytest.raises(InputError, match=f"pieces {pieces} of {name}"):
            functional.gain(name, pieces=pieces)
