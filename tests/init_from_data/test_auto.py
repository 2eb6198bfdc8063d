"""`init_from_data.auto`: signal and gradient through nets that it has not been made for, measured here by hand."""

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


def through(model, variables, x):
    """(variance of z, norm of the gradient that arrives at z) of every unit, by Flax's own perturbations."""
    variables = {"params": variables["params"]}
    _, state = model.apply(
        variables, x, train=True, mutable=["perturbations", "intermediates"], capture_intermediates=True
    )
    zeros = jax.tree.map(jnp.zeros_like, state["perturbations"])
    weights = jax.random.normal(KEY, x.shape)
    gradient = jax.grad(lambda z: (model.apply(variables | {"perturbations": z}, x, train=True) * weights).sum())(
        zeros
    )["unit"]["z"]
    axes = tuple(range(1, gradient.ndim))
    layers = state["intermediates"]["unit"]
    values = (
        layers["__call__"][0]
        if "dense" not in layers and "conv" not in layers
        else next(layers[name]["__call__"][0] for name in ("dense", "conv") if name in layers)
    )
    return np.asarray(values.var(axes)), np.sqrt(np.asarray((gradient**2).sum(axes)))


CASES = {
    "relu": (Dense(nn.relu), "mirrored"),
    "gelu": (Dense(nn.gelu), "mirrored"),
    "leaky_relu": (Dense(functional.leaky_relu), "mirrored"),
    "tanh": (Dense(nn.tanh), "quiet"),
    "sigmoid": (Dense(nn.sigmoid), "quiet"),
    "residual": (Residual(), "quiet_branches"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_thousand_layers_keep_signal_and_gradient(case):
    unit, remedy = CASES[case]
    model, x, choices = stack(unit, 1000), jax.random.normal(KEY, (16, 32)), []
    variables = auto(model, jax.random.key(1), x, train=True, report=choices.append)
    signal, gradient = through(model, variables, x)
    assert signal.max() / signal.min() < 2
    assert gradient.max() / gradient.min() < 2
    assert choices[0].remedy == remedy
    assert choices[0].holds
    assert remedy in str(choices[0])
    naive = through(model, model.init(KEY, x, train=True), x)
    assert not all(values.max() < 2 * values.min() for values in naive)


@pytest.mark.parametrize("depth", [10, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("unit", [*(unit for unit, _ in CASES.values()), Convolution(nn.relu), Convolution(nn.tanh)])
def test_from_ten_to_ten_thousand_layers(unit, depth):
    shape = (4, 4, 4, 8) if isinstance(unit, Convolution) else (8, 16)
    model, x = stack(unit, depth), jax.random.normal(KEY, shape)
    signal, gradient = through(model, auto(model, jax.random.key(1), x, train=True), x)
    assert len(signal) == len(gradient) == depth
    assert signal.max() / signal.min() < 2
    assert gradient.max() / gradient.min() < 2


@pytest.mark.parametrize("activation", [nn.relu, nn.tanh])
def test_convolutions(activation):
    model, x = stack(Convolution(activation), 300), jax.random.normal(KEY, (4, 6, 6, 8))
    signal, gradient = through(model, auto(model, jax.random.key(1), x, train=True), x)
    assert signal.max() / signal.min() < 2
    assert gradient.max() / gradient.min() < 2


def test_what_is_good_already_is_left_alone():
    model = stack(Dense(lambda x: x), 3)
    x = jax.random.normal(KEY, (16, 32))
    choices = []
    variables = auto(model, KEY, x, train=True, within=3.0, report=choices.append)
    assert choices[0].remedy == "none"
    own = jax.tree.leaves(model.init(KEY, x, train=True)["params"])
    for a, b in zip(jax.tree.leaves(variables["params"]), own, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "last", "count"),
    [
        ("cifar_resnet20", {}, "norm2", 9),
        ("cifar_resnet20", {"scan": False, "shortcut": "B"}, "norm2", 9),
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
    with pytest.raises(InputError, match="by every remedy"):
        auto(stack(Dense(nn.relu), 3), KEY, jnp.zeros((4, 8)), train=True)
