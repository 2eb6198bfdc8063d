"""`init_from_data.auto`: signal and gradient through several kinds of networks, measured here by Flax's own means."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import functional, zoo
from deepjax.errors import InputError
from deepjax.init_from_data import auto
from deepjax.init_from_data.branch_ends import branch_ends
from deepjax.layers import Conv
from deepjax.units import stack

KEY = jax.random.key(0)


def batch(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


class Dense(nn.Module):
    activation: object

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        y = nn.Dense(x.shape[-1], name="dense")(x)
        return self.activation(self.perturb("z", y))


class Convolution(nn.Module):
    activation: object

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        y = Conv(x.shape[-1], use_bias=True, name="conv")(x)
        return self.activation(self.perturb("z", y))


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, mask=None):
        y = nn.Dense(x.shape[-1], name="first")(x)
        y = nn.Dense(x.shape[-1], name="second")(nn.relu(y))
        return self.perturb("z", x + y)


@functools.cache
def meter(model, shape):
    """A function variables -> (variance of z, norm of the gradient that arrives at z) of every unit.

    By Flax's own perturbations, on x = features of this shape.
    """
    x, weights = batch(shape), batch(shape, seed=1)
    perturbations = jax.eval_shape(lambda: model.init(KEY, x, train=True))["perturbations"]

    def loss(z, params):
        variables = {"params": params, "perturbations": z}
        y, state = model.apply(variables, x, train=True, mutable=["intermediates"], capture_intermediates=True)
        return (y * weights).sum(), state["intermediates"]["unit"]

    @jax.jit
    def measure(params):
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), perturbations)
        gradient, layers = jax.grad(loss, has_aux=True)(zeros, params)
        values = next((layers[name]["__call__"][0] for name in ("dense", "conv") if name in layers), None)
        values, gradient = layers["__call__"][0] if values is None else values, gradient["unit"]["z"]
        axes = tuple(range(1, gradient.ndim))
        return values.var(axes), jnp.sqrt((gradient**2).sum(axes))

    return lambda variables: jax.device_get(measure(variables["params"]))


CASES = {
    "relu": (Dense(nn.relu), "mirrored"),
    "gelu": (Dense(nn.gelu), "mirrored"),
    "leaky_relu": (Dense(functional.leaky_relu), "mirrored"),
    "tanh": (Dense(nn.tanh), "quiet"),
    "sigmoid": (Dense(nn.sigmoid), "quiet"),
    "residual": (Residual(), "quiet_branches"),
    "relu_convolution": (Convolution(nn.relu), "mirrored"),
    "tanh_convolution": (Convolution(nn.tanh), "quiet"),
}


FAST = ("tanh", "residual", "relu_convolution")  # one for each remedy and kind of layer


@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_many_layers_keep_signal_and_gradient(case):
    unit, remedy = CASES[case]
    depth, shape = (300, (4, 4, 4, 8)) if isinstance(unit, Convolution) else (1000, (16, 32))
    model, x, choices = stack(unit, depth), batch(shape), []
    recomputing = stack(unit, depth, remat="sqrt")  # the variables are the same
    variables = auto(recomputing if case == "residual" else model, KEY, x, train=True, report=choices.append)
    signal, gradient = meter(model, shape)(variables)
    assert len(signal) == len(gradient) == depth
    assert signal.max() / signal.min() < 2
    assert gradient.max() / gradient.min() < 2
    assert choices[0].remedy == remedy
    assert choices[0].holds
    assert remedy in str(choices[0])
    assert max(choices[0].tried["none"]) > 2
    if case == "relu_convolution":
        drawn = jax.jit(lambda: model.init(KEY, x, train=True))()
        assert not all(values.max() < 2 * values.min() for values in meter(model, shape)(drawn))


@pytest.mark.parametrize(
    ("case", "depth"),
    [("leaky_relu", 10), *(pytest.param(case, 10_000, marks=pytest.mark.slow) for case in CASES)],
)
def test_from_ten_to_ten_thousand_layers(case, depth):
    unit = CASES[case][0]
    shape = (4, 4, 4, 8) if isinstance(unit, Convolution) else (8, 16)
    model, x = stack(unit, depth), batch(shape)
    signal, gradient = meter(model, shape)(auto(model, KEY, x, train=True))
    assert len(signal) == len(gradient) == depth
    assert signal.max() / signal.min() < 2
    assert gradient.max() / gradient.min() < 2


@pytest.mark.slow
def test_a_stack_that_recomputes_gives_the_same_variables():
    x, results = batch((8, 16)), {}
    for remat in ("none", "sqrt"):
        model, choices = stack(Residual(), 50, remat=remat), []
        variables = auto(model, jax.random.key(1), x, train=True, report=choices.append)
        results[remat] = variables["params"], choices[0]
    assert results["none"][1].remedy == "quiet_branches"
    for params, choice in results.values():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), params, results["none"][0])
        np.testing.assert_allclose(choice.gradient, results["none"][1].gradient, rtol=1e-3)


def test_what_is_good_already_is_left_alone():
    model = stack(Dense(lambda x: x), 3)
    x, choices = batch((16, 32)), []
    variables = auto(model, KEY, x, train=True, within=3.0, report=choices.append)
    assert choices[0].remedy == "none"
    drawn = jax.tree.leaves(jax.jit(lambda: model.init(KEY, x, train=True))()["params"])
    for a, b in zip(jax.tree.leaves(variables["params"]), drawn, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "last", "count"),
    [
        ("cifar_resnet20", {}, "norm2", 9),
        ("cifar_resnet", {"depth": 14, "scan": False, "shortcut": "B"}, "norm2", 6),
        ("cifar_resnet20", {"norm": "none"}, "conv2", 9),
        ("cifar_preact164", {}, "conv3", 54),
        ("cifar_plain20", {}, "", 0),
    ],
)
def test_where_branches_end(name, options, last, count):
    model, x = zoo.create(name, **options), jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(lambda: model.init(KEY, x, train=True))
    ends = branch_ends(model, variables, KEY, x, {"train": True})
    assert sum(ends.values()) == count
    assert all(path[-1] == last for path in ends)


def test_auto_errors():
    with pytest.raises(InputError, match="within 1 must be above 1"):
        auto(nn.Dense(3), KEY, jnp.ones((2, 3)), within=1)
    with pytest.raises(InputError, match="with every remedy"):
        auto(nn.Dense(3), KEY, np.zeros((4, 8), np.float32))
