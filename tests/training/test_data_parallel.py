"""A call that is split over devices, against the same call on the whole batch."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.training.data_parallel import data_parallel, print_example
from helpers import draw_variables


@pytest.mark.parametrize("devices", [1, 8])
def test_each_device_sees_its_share_and_the_result_is_that_of_the_whole_batch(devices):
    model, x = zoo.create("mlp", num_classes=5, depth=4, width=6), np.random.default_rng(0).normal(size=(16, 10))
    variables, seen = draw_variables(model, x), []

    def function(variables, x):
        return model.apply(variables, x, train=False)

    split = data_parallel(function, devices=devices, see=lambda device, shape: seen.append((device, shape)))
    expected, slope = jax.jit(jax.value_and_grad(lambda v: (function(v, x) ** 2).sum()))(variables)
    y = split(variables, x)
    jax.effects_barrier()
    assert sorted(seen) == [(device, (16 // devices, 10)) for device in range(devices)]
    assert y.shape == (16, 5)
    assert len(y.addressable_shards) == devices
    assert_allclose(y, jax.jit(function)(variables, x), rtol=1e-5, atol=1e-6)
    value, gradient = jax.value_and_grad(lambda v: (split(v, x) ** 2).sum())(variables)
    assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradient, slope)


def test_the_rows_stay_in_order_and_trees_are_split():
    def function(variables, x):
        return {"row": x["row"], "device": x["row"] * 0 + jax.lax.axis_index("data"), "sum": x["image"].sum((1, 2))}

    x = {"row": np.arange(8), "image": np.ones((8, 3, 2))}
    shapes = []
    y = data_parallel(function, devices=4, see=lambda device, shape: shapes.append(shape))({}, x)
    jax.effects_barrier()
    assert y["row"].tolist() == list(range(8))
    assert y["device"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert y["sum"].tolist() == [6] * 8
    assert shapes == [{"row": (2,), "image": (2, 3, 2)}] * 4


def test_a_batch_norm_in_training_has_the_statistics_of_each_share():
    norm = nn.BatchNorm(use_running_average=False, use_bias=False, use_scale=False)
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    variables = {"batch_stats": {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}}

    def function(variables, x):
        return norm.apply(variables, x, mutable=["batch_stats"])[0]

    shares = x.reshape(2, 4, 3).astype(np.float64)
    expected = (shares - shares.mean(1, keepdims=True)) / np.sqrt(shares.var(1, keepdims=True) + 1e-5)
    assert_allclose(data_parallel(function, devices=2)(variables, x), expected.reshape(8, 3), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(InputError, match="batch_size 50 cannot be split over 8 devices"):
        data_parallel(lambda v, x: x)({}, np.zeros((50, 10)))
    with pytest.raises(InputError, match=r"devices.count 9: this machine has 8"):
        data_parallel(lambda v, x: x, devices=9)


def test_the_lectures_example(capsys):
    print_example()
    assert capsys.readouterr().out.splitlines() == [
        "1 device: output (50, 5)",
        "  device 0 gets (50, 10)",
        "2 devices: output (50, 5)",
        "  device 0 gets (25, 10)",
        "  device 1 gets (25, 10)",
    ]
