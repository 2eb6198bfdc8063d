"""The LSTM against float64 NumPy, PyTorch and Flax, and its gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax.errors import InputError
from deepjax.functional import lstm
from deepjax.layers import LSTM
from helpers import random_arrays

BATCH, TIME, INPUTS, FEATURES = 3, 6, 4, 5
SHAPES = (BATCH, TIME, INPUTS), (INPUTS, 4 * FEATURES), (FEATURES, 4 * FEATURES), (4 * FEATURES,)
STATES = (BATCH, FEATURES), (BATCH, FEATURES)


def numpy_lstm(x, kernel, recurrent, bias, h, c):
    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    outputs = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias[None], 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, 1), h, c


def test_values_of_numpy():
    *arrays, h, c = random_arrays(0, *SHAPES, *STATES)
    y, (last_h, last_c) = jax.jit(lstm)(*arrays, (h, c))
    wanted = numpy_lstm(*(a.astype(np.float64) for a in (*arrays, h, c)))
    for ours, reference in zip((y, last_h, last_c), wanted, strict=True):
        assert_allclose(ours, reference, rtol=1e-5, atol=1e-6)


def test_gradients_of_pytorch():
    torch = pytest.importorskip("torch")
    x, kernel, recurrent, bias, h, c = random_arrays(0, *SHAPES, *STATES)
    (weight,) = random_arrays(1, (BATCH, TIME, FEATURES))

    def loss(x, kernel, recurrent, bias, h, c):
        y, (_, last) = lstm(x, kernel, recurrent, bias, (h, c))
        return (y * weight).sum() + jnp.square(last).sum()

    ours = jax.jit(jax.grad(loss, argnums=range(6)))(x, kernel, recurrent, bias, h, c)
    layer = torch.nn.LSTM(INPUTS, FEATURES, batch_first=True)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.tensor(kernel.T))
        layer.weight_hh_l0.copy_(torch.tensor(recurrent.T))
        layer.bias_ih_l0.copy_(torch.tensor(bias))
        layer.bias_hh_l0.zero_()
    inputs = [torch.tensor(a, requires_grad=True) for a in (x, h, c)]
    y, (_, last) = layer(inputs[0], (inputs[1][None], inputs[2][None]))
    ((y * torch.tensor(weight)).sum() + last.square().sum()).backward()
    wanted = (
        inputs[0].grad,
        layer.weight_ih_l0.grad.T,
        layer.weight_hh_l0.grad.T,
        layer.bias_ih_l0.grad,
        inputs[1].grad,
        inputs[2].grad,
    )
    for gradient, reference in zip(ours, wanted, strict=True):
        assert_allclose(gradient, reference.numpy(), rtol=1e-4, atol=1e-5)


def loop(x, kernel, recurrent, bias, state):
    """`lstm` as a Python loop, differentiated by JAX."""
    (h, c), outputs = state, []
    for t in range(x.shape[1]):
        i, f, g, o = jnp.split(x[:, t] @ kernel + h @ recurrent + bias[None], 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        outputs.append(h)
    return jnp.stack(outputs, 1), (h, c)


def test_tangents_and_second_derivatives_of_a_loop():
    *arrays, h, c = random_arrays(0, *SHAPES, *STATES)
    *tangents, dh, dc = random_arrays(1, *SHAPES, *STATES)
    arguments, directions = (*arrays, (h, c)), (*tangents, (dh, dc))

    def derivatives(lstm):
        def loss(*arguments):
            return sum(jnp.square(each).sum() for each in jax.tree.leaves(lstm(*arguments)))

        gradient = jax.grad(loss, range(5))
        along = jax.jvp(lstm, arguments, directions)[1]
        over = jax.jvp(gradient, arguments, directions)[1]  # forward over reverse, and reverse over reverse:
        twice = jax.grad(lambda *a: sum(map(jnp.vdot, *map(jax.tree.leaves, (gradient(*a), directions)))), range(5))
        return along, over, twice(*arguments)

    ours, wanted = jax.jit(lambda: derivatives(lstm))(), jax.jit(lambda: derivatives(loop))()
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, wanted)


def test_gradients_over_no_steps_are_zero():
    _, *arrays, h, c = random_arrays(0, *SHAPES, *STATES)
    x = np.zeros((BATCH, 0, INPUTS), np.float32)
    gradients = jax.grad(lambda *a: lstm(x, *a, (h, c))[0].sum(), range(3))(*arrays)
    assert [gradient.shape for gradient in gradients] == [*SHAPES[1:]]
    assert not any(gradient.any() for gradient in gradients)


def test_gradients_of_mapped_recurrent_kernels():
    x, kernel, recurrent, bias, h, c = random_arrays(0, *SHAPES[:2], (2, *SHAPES[2]), SHAPES[3], *STATES)

    def gradients(lstm):
        def of_one(recurrent):
            return jax.grad(lambda r: jnp.square(lstm(x, kernel, r, bias, (h, c))[0]).sum())(recurrent)

        return jax.jit(jax.vmap(of_one))(recurrent)

    assert_allclose(gradients(lstm), gradients(loop), rtol=1e-4, atol=1e-5)


def test_the_module_is_flaxs_cell():
    """With the same kernels, one for each gate in Flax."""
    (x,) = random_arrays(0, SHAPES[0])
    variables = LSTM(FEATURES, bias_init=nn.initializers.normal()).init(jax.random.key(0), x)
    params, cell = variables["params"], {}
    for name, part in (("i", params["kernel"]), ("h", params["recurrent_kernel"])):
        for gate, kernel in zip("ifgo", np.split(part, 4, axis=1), strict=True):
            cell[name + gate] = {"kernel": kernel}
    for gate, bias in zip("ifgo", np.split(params["bias"], 4), strict=True):
        cell["h" + gate]["bias"] = bias
    flax = nn.RNN(nn.OptimizedLSTMCell(FEATURES))
    wanted = flax.apply({"params": {"cell": cell}}, x)
    assert_allclose(LSTM(FEATURES).apply(variables, x)[0], wanted, rtol=1e-5, atol=1e-6)


def test_two_halves_are_the_whole():
    (x,) = random_arrays(0, SHAPES[0])
    layer = LSTM(FEATURES)
    variables = layer.init(jax.random.key(0), x)
    whole, last = layer.apply(variables, x)
    first, state = layer.apply(variables, x[:, :2])
    second, state = layer.apply(variables, x[:, 2:], state)
    assert_allclose(jnp.concatenate([first, second], 1), whole, rtol=1e-6)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-6), state, last)


def test_types_and_no_steps():
    layer = LSTM(FEATURES, dtype=jnp.bfloat16)
    y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((BATCH, 0, INPUTS)))
    assert y[0].shape == (BATCH, 0, FEATURES)
    assert {each.dtype for each in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert layer.apply(variables, jnp.ones(SHAPES[0]))[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("place", range(6))
def test_shapes_that_do_not_fit(place):
    arrays = [*map(np.zeros, (*SHAPES, *STATES))]
    arrays[place] = np.zeros((*arrays[place].shape[:-1], arrays[place].shape[-1] + 1))
    with pytest.raises(InputError, match="lstm: .* has shape .* must be"):
        lstm(*arrays[:4], tuple(arrays[4:]))
