"""LSUV on models made of Flax's own modules, measured by Flax's own means."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.linen.recurrent import DenseParams
from flax.traverse_util import flatten_dict
from numpy.testing import assert_allclose

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.init_from_data import lsuv, output_variances
from deepjax.units import Drop, Reversible, Unit, stack
from init_from_data.networks import (
    KEY,
    MLP,
    NETS,
    Homemade,
    Lanes,
    Recurrent,
    features,
    images,
    spoiled,
)


def captured(model, variables, x, **call):
    """{path: first output} of each layer, by Flax's own means; where its kernel has an axis of units, not."""

    @jax.jit
    def capture(variables, x):
        return model.apply(variables, x, **call, capture_intermediates=True, mutable=["intermediates"])[1]

    params, outputs = flatten_dict(variables["params"]), flatten_dict(capture(variables, x)["intermediates"])
    return {
        path[:-1]: np.asarray(outputs[*path[:-1], "__call__"][0], np.float64)
        for path in params
        if path[-1] == "kernel" and (*path[:-1], "__call__") in outputs
    }


@functools.cache
def initialized(name):
    model, x, call = NETS[name]
    reached = {}
    return lsuv(model, KEY, x, report=reached.update, **call), reached


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


@pytest.mark.parametrize("name", NETS)
def test_every_layer_has_unit_variance(name):
    model, x, call = NETS[name]
    variables, reached = initialized(name)
    assert shapes(variables) == shapes(jax.eval_shape(lambda: model.init(KEY, x, **call)))
    kernels = [path[:-1] for path in flatten_dict(variables["params"]) if path[-1] == "kernel"]
    assert {tuple(path.split("/")) for path in reached} == set(kernels)
    for values in reached.values():
        assert_allclose(values, 1, atol=1e-3)
    if call.get("train"):
        return  # dropout draws again
    outputs = captured(model, variables, x, **call)
    assert outputs
    for path, y in outputs.items():
        assert_allclose(y.var(), 1, atol=1e-3, err_msg=str(path))
    if name == "scanned":
        for path, value in output_variances(model, variables, x, **call).items():
            assert_allclose(value, reached[path], rtol=1e-3)


@pytest.mark.parametrize("name", ["mixed", "encoder", "scanned"])
def test_kernels_are_orthonormal_up_to_their_scale(name):
    groups = {"grouped": 3, "depthwise": 12}
    for path, kernel in flatten_dict(initialized(name)[0]["params"]).items():
        if path[-1] != "kernel":
            continue
        kernel = np.asarray(kernel, np.float64)
        matrices = kernel if name == "scanned" and len(kernel) == 1000 else kernel[None]
        if {"query", "key", "value", "DenseGeneral_0"} & set(path):
            matrices = matrices.reshape(1, kernel.shape[0], -1)
        count = groups.get(path[0], 1)
        matrices = matrices.reshape(len(matrices), -1, count, matrices.shape[-1] // count)
        for matrix in np.moveaxis(matrices, 2, 1).reshape(-1, matrices.shape[1], matrices.shape[3]):
            singular = np.linalg.svd(matrix, compute_uv=False)
            assert_allclose(singular, singular[0], rtol=1e-3, err_msg=f"{name} {path}")


def test_a_layer_whose_bias_varies():
    model = nn.Dense(50, bias_init=nn.initializers.normal(0.6))
    x = features()
    params = jax.tree.map(np.asarray, lsuv(model, KEY, x, variance=1.5)["params"])
    assert_allclose((x @ params["kernel"] + params["bias"]).var(), 1.5, rtol=1e-4)
    with pytest.raises(InputError, match="not finite"):
        lsuv(nn.Dense(50, bias_init=nn.initializers.normal(2.0)), KEY, x)


class Cell(nn.Module):
    """A recurrent step of `DenseParams`, as the cells below have them."""

    @nn.compact
    def __call__(self, h, x):
        from_x, bias = DenseParams(3, name="x")(x)
        from_h, _ = DenseParams(3, use_bias=False, name="h")(h)
        h = nn.tanh(x @ from_x + h @ from_h + bias[None])
        return h, h


class Cells(nn.Module):
    """A cell that multiplies by several kernels at once: its DenseParams return kernels, not products."""

    @nn.compact
    def __call__(self, x):
        once = nn.OptimizedLSTMCell(4)((x[:, :4], x[:, 4:8]), x)[1]
        loop = nn.scan(Cell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        return once, loop(name="loop")(x[:, :3], x.reshape(len(x), 3, -1))[1]


@pytest.mark.parametrize("model", [Recurrent(), Lanes(shared=True), Lanes(shared=False), Cells()])
def test_layers_under_a_shared_or_mapped_transformation(model):
    """Also where they are the model's last."""
    reached = {}
    x = features()
    variables = lsuv(model, KEY, x, tolerance=0.03, report=reached.update)
    kernels = {path[:-1] for path in flatten_dict(variables["params"]) if path[-1] == "kernel"}
    assert {tuple(path.split("/")) for path in reached} == kernels
    for path, values in reached.items():
        assert np.abs(np.asarray(values) - 1).max() <= 0.031, path
    if isinstance(model, Recurrent):
        params = jax.tree.map(np.asarray, variables["params"])
        h, outputs = np.asarray(x) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], []
        for _ in range(5):
            outputs.append(h @ params["ScanUnit_0"]["Dense_0"]["kernel"])
            h = np.maximum(outputs[-1], 0)
        assert_allclose(reached["ScanUnit_0/Dense_0"], np.var(outputs), rtol=1e-4)
        assert_allclose(output_variances(model, variables, x)["ScanUnit_0/Dense_0"], np.var(outputs), rtol=1e-4)
    if model == Lanes(shared=True):
        assert_allclose(np.asarray(model.apply(variables, x)).var(), 1, atol=0.031)


def test_layers_whose_output_is_not_proportional_to_the_kernel():
    """A user's own layer, and one with a kernel for each position, whose bias has other axes."""
    model, reached = nn.Sequential([Homemade(), nn.DenseGeneral(4, batch_dims=0)]), {}
    variables = lsuv(model, KEY, features(), report=reached.update)
    y = captured(model, variables, features())
    assert_allclose([y[("layers_0",)].var(), y[("layers_1",)].var()], 1, atol=0.01)
    assert_allclose(list(reached.values()), [y[("layers_0",)].var(), y[("layers_1",)].var()], rtol=1e-4)


def test_a_network_of_the_zoo():
    model = zoo.create("cifar_plain", depth=8, width=4)
    variables = lsuv(model, KEY, images(4), train=True)
    assert set(variables) == {"params", "batch_stats"}
    for values in output_variances(model, variables, images(4), train=True).values():
        assert_allclose(values, 1, atol=1e-3)


class Half(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, mask=None):
        return nn.tanh(nn.Dense(x.shape[-1], name="dense")(x))


def test_every_unit_of_a_stack_that_recomputes():
    model, reached = stack(Reversible(Half(), Half()), 20, remat="reversible"), {}
    x = features()
    variables = lsuv(model, KEY, x, train=True, report=reached.update)
    params = jax.tree.map(np.asarray, variables["params"]["unit"])
    x1, x2 = np.split(np.asarray(x), 2, -1)
    for unit in range(20):
        z = x2 @ params["f"]["dense"]["kernel"][unit]
        x1 = x1 + np.tanh(z)
        w = x1 @ params["g"]["dense"]["kernel"][unit]
        x2 = x2 + np.tanh(w)
        assert_allclose([z.var(), w.var()], 1, atol=1e-3)
    assert_allclose([reached["unit/f/dense"], reached["unit/g/dense"]], 1, atol=1e-3)


def test_branches_that_a_whole_batch_drops():
    model = stack(Unit(Half(), Drop(per="batch")), 4, per_unit={"survival": [0.9, 0.8, 0.7, 0.6]})
    x = features()
    variables = lsuv(model, KEY, x, train=True)
    values = output_variances(model, variables, x, key=KEY, train=True)["unit/branch/dense"]
    assert_allclose(values[0], 1, atol=1e-3)
    assert values.shape == (4,)
    assert np.isfinite(values).all()


def test_the_same_key_gives_the_same_kernels_and_another_key_others():
    one, two, three = (
        flatten_dict(lsuv(nn.Dense(5), key, features())["params"]) for key in (KEY, KEY, jax.random.key(8))
    )
    assert all(np.array_equal(one[path], two[path]) for path in one)
    assert not np.array_equal(one["kernel",], three["kernel",])
    units = np.asarray(initialized("scanned")[0]["params"]["ScanCheckpointUnit_0"]["Dense_0"]["kernel"])
    assert np.abs(units[0] / units[0].std() - units[1] / units[1].std()).max() > 0.1


class Dying(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, bias_init=nn.initializers.constant(-100.0), name="killer")(x)
        return nn.Dense(4, name="dead")(nn.relu(x))


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.ones, (x.shape[-1], 7)), x


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(4))(x)


class Unused(nn.Module):
    @nn.compact
    def __call__(self, x):
        Lanes(shared=True)(x)
        return x


def test_a_layer_that_cannot_be_set_is_named():
    with pytest.raises(InputError, match="unit 1 of 3: its output has zero variance"):
        lsuv(scanned := stack(Half(), 3), KEY, np.zeros((8, 12), np.float32), train=True)
    with pytest.raises(InputError, match="layer unit/dense, unit 1 of 3: its output is not finite"):
        lsuv(scanned, KEY, spoiled(), train=True)
    with pytest.raises(InputError, match="layer dead: its output has zero variance"):
        lsuv(Dying(), KEY, features())
    with pytest.raises(InputError, match="layer Dense_0: its kernel is computed from other parameters"):
        lsuv(Normalized(), KEY, features())
    with pytest.raises(InputError, match="Pair owns a kernel and does not return one array"):
        lsuv(Pair(), KEY, features())
    with pytest.raises(InputError, match="the model's outputs do not depend on it"):
        lsuv(Unused(), KEY, features())
    with pytest.raises(InputError, match="no layer with a kernel"):
        lsuv(nn.LayerNorm(), KEY, features())


@pytest.mark.parametrize("wrong", [{"tolerance": 0.0}, {"variance": np.inf}, {"max_iterations": 0}])
def test_arguments_out_of_range(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        lsuv(MLP(), KEY, features(), **wrong)
