"""Occlusion against a loop in NumPy."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import helpers
from deepjax import inside
from deepjax.errors import InputError

MODEL = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(3)])


def test_each_entry_is_the_probability_with_a_square_at_its_position():
    (x,) = helpers.random_arrays(1, (2, 5, 7, 2))
    variables = jax.jit(MODEL.init)(jax.random.key(0), x)
    found = inside.occlusion(MODEL, variables, x, [1, 2], window=3, stride=2, fill=np.array([0.5, -1.0]))
    dense = jax.tree.map(np.float64, variables["params"]["layers_1"])
    wanted = np.empty((2, 2, 3))
    for image, i, j in np.ndindex(2, 2, 3):
        hidden = np.float64(x[image])
        hidden[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] = 0.5, -1.0
        weights = np.exp(hidden.ravel() @ dense["kernel"] + dense["bias"])
        wanted[image, i, j] = weights[image + 1] / weights.sum()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 6}, "window 6 must be from 1 to the smaller side of the images, 5"),
        ({"window": 0}, "window 0 must be"),
        ({"window": 2, "stride": 0}, "stride 0 must be at least 1"),
        ({"window": 2, "label": 3}, "class 3 is not in 0 to 2"),
    ],
)
def test_arguments_are_checked(options, message):
    x = np.zeros((1, 5, 7, 2), np.float32)
    variables = jax.jit(MODEL.init)(jax.random.key(0), x)
    with pytest.raises(InputError, match=message):
        inside.occlusion(MODEL, variables, x, [options.pop("label", 0)], **options)
