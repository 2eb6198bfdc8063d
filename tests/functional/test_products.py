"""The product of rows with a matrix: values, derivatives of first and second order, transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose

from deepjax.functional.products import product, tangent_product
from helpers import random_arrays

SHAPES = [(4,), (3, 4), (2, 3, 4), (2, 1, 3, 4), (0, 4), (2, 0, 4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_of_numpy(shape):
    x, kernel, weight = random_arrays(0, shape, (4, 5), (*shape[:-1], 5))
    y, pullback = jax.vjp(jax.jit(product), x, kernel)
    dx, dkernel = pullback(weight)
    wide, wide_kernel, dy = (each.astype(np.float64) for each in (x, kernel, weight))
    assert_allclose(y, wide @ wide_kernel, rtol=1e-5, atol=1e-6)
    assert_allclose(dx, dy @ wide_kernel.T, rtol=1e-5, atol=1e-6)
    assert_allclose(dkernel, wide.reshape(-1, 4).T @ dy.reshape(-1, 5), rtol=1e-5, atol=1e-6)
    assert_allclose(tangent_product(x, kernel), wide @ wide_kernel, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_tangents_and_second_derivatives_of_the_plain_product(shape):
    x, kernel, dx, dkernel = random_arrays(0, shape, (4, 5), shape, (4, 5))

    def derivatives(multiply):
        def loss(x, kernel):
            return jnp.tanh(multiply(x, kernel)).sum()

        tangent = jax.jvp(multiply, (x, kernel), (dx, dkernel))
        return tangent, jax.jit(jax.hessian(loss, (0, 1)))(x, kernel)

    ours, plain = derivatives(product), derivatives(jnp.matmul)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, plain)


@pytest.mark.parametrize(("shapes", "axes"), [
    (((2, 3, 4), (2, 4, 5)), (0, 0)), (((2, 2, 3, 4), (4, 5)), (1, None)), (((3, 4), (4, 2, 5)), (None, 1)),
])  # fmt: skip
def test_gradients_of_a_mapped_product(shapes, axes):
    x, kernel = random_arrays(0, *shapes)

    def mapped(multiply):
        gradients = jax.grad(lambda x, kernel: jnp.square(multiply(x, kernel)).sum(), (0, 1))
        return jax.vmap(gradients, axes)(x, kernel)

    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6), mapped(product), mapped(jnp.matmul))


def test_gradient_of_bfloat16():
    x, kernel = (jnp.asarray(each, jnp.bfloat16) for each in random_arrays(0, (2, 3, 4), (4, 5)))
    dx, dkernel = jax.grad(lambda x, kernel: product(x, kernel).sum(), (0, 1))(x, kernel)
    assert dx.dtype == dkernel.dtype == jnp.bfloat16
    assert_allclose(dkernel.astype(float), np.asarray(x, float).sum((0, 1))[:, None].repeat(5, 1), rtol=0.02)


def test_no_product_of_the_gradient_has_a_transposed_left_operand(monkeypatch):
    """That is what is slow on CPU. On other platforms the gradient is that of JAX."""

    def contracted():
        gradient = jax.grad(lambda kernel, x: product(x, kernel).sum())
        text = str(jax.make_jaxpr(gradient)(jnp.ones((4, 5)), jnp.ones((2, 3, 4))))
        return text.count("optimization_barrier"), text.count("dimension_numbers=(([0], [0])")

    assert contracted() == (1, 0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert contracted() == (0, 1)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_batch_split_over_devices(axis_type):
    x, kernel = random_arrays(0, (8, 3, 4), (4, 5))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))

    def gradients(x, kernel):
        return jax.grad(lambda x, kernel: jnp.square(product(x, kernel)).mean(), (0, 1))(x, kernel)

    with jax.set_mesh(mesh):
        split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        ours = jax.jit(gradients)(split, jax.device_put(kernel, NamedSharding(mesh, PartitionSpec())))
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, gradients(x, kernel))
