"""Penalties on kernels against NumPy and PyTorch's weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze
from numpy.testing import assert_allclose, assert_array_equal

from deepjax import functional
from helpers import random_arrays


def parameters(dtype=np.float32):
    kernel, stacked, bias, scale = random_arrays(0, (4, 3), (5, 3, 3, 2), (3,), (3,))
    tree = {"dense": {"kernel": kernel, "bias": bias}, "norm": {"scale": scale}, "rest": {"unit": {"kernel": stacked}}}
    return jax.tree.map(lambda a: a.astype(dtype), tree)


@pytest.mark.parametrize("container", [dict, freeze])
def test_penalties_see_kernels_only(container):
    params = parameters()
    kernels = [np.asarray(params["dense"]["kernel"]), np.asarray(params["rest"]["unit"]["kernel"])]
    tree = container(params)
    sums = sum(np.abs(k).sum() for k in kernels), sum((k**2).sum() for k in kernels) / 2
    pulled = jax.jit(lambda tree: [jax.value_and_grad(p)(tree) for p in (functional.l1_penalty, functional.l2_penalty)])
    for (value, gradient), total, expected in zip(pulled(tree), sums, (np.sign, lambda k: k), strict=True):
        assert_allclose(value, total, rtol=1e-6)
        assert_allclose(gradient["dense"]["kernel"], expected(kernels[0]), rtol=1e-6)
        assert_allclose(gradient["rest"]["unit"]["kernel"], expected(kernels[1]), rtol=1e-6)
        assert_array_equal(gradient["dense"]["bias"], 0)
        assert_array_equal(gradient["norm"]["scale"], 0)


def test_a_rate_of_l2_penalty_is_torchs_weight_decay():
    torch = pytest.importorskip("torch")
    (w,) = random_arrays(0, (4, 3))
    theirs = torch.nn.Parameter(torch.tensor(w))
    theirs.grad = torch.zeros_like(theirs)
    torch.optim.SGD([theirs], lr=0.5, weight_decay=0.01).step()
    gradient = jax.jit(jax.grad(lambda p: 0.01 * functional.l2_penalty(p)))({"kernel": w})["kernel"]
    assert_allclose(w - 0.5 * gradient, theirs.detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize(("penalty", "expected"), [(functional.l1_penalty, 5000), (functional.l2_penalty, 1250)])
def test_penalties_sum_in_float32_at_least(penalty, expected):
    params = {"kernel": np.full((100, 100), 0.5, jnp.bfloat16), "bias": np.ones(3, np.float32)}
    value, gradient = jax.jit(jax.value_and_grad(penalty))(params)
    assert value.dtype == jnp.float32
    assert value == expected
    assert gradient["kernel"].dtype == jnp.bfloat16
    assert penalty({"bias": params["bias"]}) == 0
    with jax.enable_x64(True):
        assert jax.eval_shape(penalty, parameters(np.float64)).dtype == jnp.float64
