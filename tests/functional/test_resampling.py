"""Affine resampling against PyTorch's."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional
from deepjax.errors import InputError

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)


def test_grids_samples_and_gradients_are_torchs():
    theta = RNG.normal([[1, 0, 0.2], [0.1, 0.8, 0]], 0.4, (3, 2, 3)).astype(np.float32)
    x = RNG.standard_normal((3, 5, 7, 2)).astype(np.float32)
    weights = RNG.standard_normal((3, 6, 4, 2)).astype(np.float32)

    @jax.jit
    def ours(theta, x):
        def loss(theta, x):
            y = functional.grid_sample(x, functional.affine_grid(theta, (6, 4)))
            return (y * weights).sum(), y

        (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(theta, x)
        return y, gradients

    y, (d_theta, d_x) = ours(theta, x)
    t = torch.tensor(theta, requires_grad=True)
    tx = torch.tensor(np.moveaxis(x, -1, 1), requires_grad=True)
    grid = torch.nn.functional.affine_grid(t, (3, 2, 6, 4), align_corners=False)
    ty = torch.nn.functional.grid_sample(tx, grid, align_corners=False)
    (ty * torch.tensor(np.moveaxis(weights, -1, 1))).sum().backward()
    assert_allclose(y, np.moveaxis(ty.detach().numpy(), 1, -1), rtol=1e-4, atol=1e-5)
    assert_allclose(d_theta, t.grad.numpy(), rtol=1e-3, atol=1e-4)
    assert_allclose(d_x, np.moveaxis(tx.grad.numpy(), 1, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functional.affine_grid(np.ones((2, 3)), (4, 4)), r"theta must be \[batch, 2, 3\]"),
        (lambda: functional.grid_sample(np.ones((2, 4, 4)), np.ones((2, 4, 4, 2))), r"x must be \[batch, H, W"),
        (lambda: functional.grid_sample(np.ones((2, 4, 4, 1)), np.ones((3, 4, 4, 2))), r"\(3, 4, 4, 2\)"),
    ],
)
def test_shapes_that_do_not_fit(call, message):
    with pytest.raises(InputError, match=message):
        call()
