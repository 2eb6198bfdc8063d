"""Gradients of kernels, against autodiff example by example, and the memory that they take in a deep stack."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import helpers
from deepjax.init_from_data.gradients import squared_gradients
from deepjax.trace import find_layers
from deepjax.units import Reversible, stack
from init_from_data.networks import KEY, features


class Half(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, mask=None):
        return nn.tanh(nn.Dense(x.shape[-1])(nn.LayerNorm()(x)))


def test_squared_gradients_are_a_mean_over_random_functions():
    model, x = nn.Dense(3, use_bias=False), features(5, 4)
    layers = find_layers(model, KEY, x, {})
    variables = helpers.draw_variables(model, x)
    squares = jax.jit(lambda v: squared_gradients(model, v, KEY, x, {}, layers, draws=4000))(variables)
    # d sum(w * x k) / dk = x^T w with standard normal w: the expected square is 3 |x|^2.
    np.testing.assert_allclose(squares[()].item(), 3 * np.square(x).sum(), rtol=0.03)


@pytest.fixture(scope="module")
def compiled():
    """remat -> (bytes of temporaries, squared gradients of a stack of 100 units)."""
    x = features(512, 16)
    variables = helpers.draw_variables(stack(Reversible(Half(), Half()), 100), x)

    def measure(remat):
        model = stack(Reversible(Half(), Half()), 100, remat=remat)
        layers = find_layers(model, KEY, x, {"train": True})
        function = jax.jit(lambda v, x: squared_gradients(model, v, KEY, x, {"train": True}, layers, draws=2))
        run = function.lower(variables, x).compile()
        return run.memory_analysis().temp_size_in_bytes, run(variables, x)

    return {remat: measure(remat) for remat in ("none", "sqrt", "reversible")}


def test_gradients_of_a_deep_stack_keep_only_what_its_remat_keeps(compiled):
    everything = compiled["none"][0]
    assert everything > 100 * 512 * 16 * 4  # more than each unit's input
    assert compiled["sqrt"][0] < 0.4 * everything
    assert compiled["reversible"][0] < 0.1 * everything
    for _, squares in compiled.values():
        for path, square in squares.items():
            np.testing.assert_allclose(square, compiled["none"][1][path], rtol=1e-2)
