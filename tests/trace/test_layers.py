"""Layers are found, named and observed inside every transformation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from deepjax.errors import InputError
from deepjax.layers import Conv
from deepjax.trace import find_layers, find_shared, observer
from deepjax.units import Reversible, stack

KEY = jax.random.key(0)


class Unit(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=True, mask=None):
        return nn.tanh(nn.Dense(x.shape[-1], name="dense")(nn.LayerNorm()(x)))


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(x.shape[-1], name="dense")(x), None


class Net(nn.Module):
    """A layer in each of Flax's and deepjax's transformations."""

    @nn.compact
    def __call__(self, x):  # [batch, 6]
        shared = nn.Dense(6, name="twice")
        x = shared(nn.tanh(shared(x)))
        x = nn.jit(nn.Dense)(6, name="jit")(nn.remat(Unit)(name="remat")(x))
        x = nn.scan(nn.remat(Step), length=3, variable_axes={"params": 0}, split_rngs={"params": True})(name="scan")(
            x, None
        )[0]
        x = nn.scan(Step, length=2, variable_axes={"params": 1}, split_rngs={"params": True})(name="across")(x, None)[0]
        x = nn.scan(Step, length=4, variable_broadcast="params", split_rngs={"params": False})(name="loop")(x, None)[0]
        x = stack(Unit(), 5, remat="sqrt", name="sqrt")(x, train=True)
        x = stack(Reversible(Unit(), Unit()), 5, remat="reversible", name="reversible")(x, train=True)
        x = stack(stack(Unit(), 2), 3, name="nested")(x, train=True)
        x = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})(6, name="lanes")(x)
        x = nn.vmap(nn.Dense, variable_axes={"params": None}, split_rngs={"params": False})(6, name="one_lane")(x)
        x = Conv(4, (3,), groups=2, name="conv")(x[..., None].repeat(2, -1))
        return nn.MultiHeadDotProductAttention(2, name="attention")(x)


NAMES = [
    *("twice", "remat/dense", "jit", "scan/dense", "across/dense", "loop/dense", "sqrt/unit/dense"),
    *("reversible/unit/f/dense", "reversible/unit/g/dense", "nested/unit/unit/dense", "lanes", "one_lane", "conv"),
    *("attention/query", "attention/key", "attention/value", "attention/out"),
]


@pytest.fixture(scope="module")
def found():
    return find_layers(Net(), KEY, jnp.ones((8, 6)), {})


def test_every_layer_is_found_in_the_order_of_calls(found):
    assert [layer.name for layer in found] == NAMES
    layers = {layer.name: layer for layer in found}
    assert all(layer.affine and layer.writable for layer in found)
    conv, out = layers["conv"], layers["attention/out"]
    assert (conv.shape, conv.groups, conv.window, conv.inputs, conv.fan_in) == ((3, 1, 4), 2, (3,), 1, 3)
    assert (out.shape, out.outputs, out.fan_in, out.features) == ((2, 2, 4), (2,), 4, 4)
    assert layers["attention/query"].outputs == (1, 2)
    assert layers["scan/dense"].shape == (6, 6)  # without an axis of units


def test_shared_parameters_are_found(found):
    assert find_shared(Net(), KEY, jnp.ones((8, 6)), {}, found) == {("loop", "dense"), ("one_lane",)}


def test_values_are_those_that_flax_captures(found):
    model, (x,) = Net(), helpers.random_arrays(0, (8, 6))
    variables = helpers.draw_variables(model, x)
    observe = observer(
        model, found, lambda layer, y, *_: {"mean": y.mean()}, {}, shared={("loop", "dense"), ("one_lane",)}
    )
    notes = {"/".join(path): note["mean"] for path, note in observe(variables, KEY, x).items()}
    assert set(notes) == set(NAMES)
    capture = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True)[1])
    captured = jax.device_get(capture(variables, x))["intermediates"]
    for name, axes in {"twice": (), "sqrt/unit/dense": (1, 2), "nested/unit/unit/dense": (2, 3)}.items():
        values = captured
        for part in name.split("/"):
            values = values[part]
        expected = values["__call__"][0].mean(axes or None)
        np.testing.assert_allclose(notes[name].reshape(expected.shape), expected, rtol=1e-4, atol=1e-6)
    shapes = {name: notes[name].shape for name in ("scan/dense", "across/dense", "loop/dense", "one_lane")}
    assert shapes == {"scan/dense": (3, 1, 1), "across/dense": (1, 2, 1), "loop/dense": (4,), "one_lane": (8,)}


class Hidden(nn.Module):
    """Its layer's output goes nowhere."""

    @nn.compact
    def __call__(self, x):
        nn.vmap(nn.Dense, variable_axes={"params": None}, split_rngs={"params": False})(3, name="unused")(x)
        return x


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.ones, (3, 3)), x


def test_what_cannot_be_observed_is_refused():
    x = jnp.ones((2, 3))
    with pytest.raises(InputError, match="layer the model itself: Pair owns a kernel"):
        find_layers(Pair(), KEY, x, {})
    layers = find_layers(Hidden(), KEY, x, {})
    observe = observer(Hidden(), layers, lambda layer, y, *_: {"mean": y.mean()}, {}, shared={("unused",)})
    with pytest.raises(InputError, match="layer unused: the model's outputs do not depend on it"):
        observe(Hidden().init(KEY, x), KEY, x)
