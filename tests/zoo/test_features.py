"""Networks over features: the polynomial one against the kernel perceptron, radial basis functions by their formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional, linear, zoo
from deepjax.errors import InputError
from deepjax.zoo.parameters import traced_count

RNG = np.random.default_rng(0)


def test_a_polynomial_network_decides_as_the_kernel_perceptron():
    x, new = RNG.standard_normal((40, 2)).astype(np.float32), RNG.standard_normal((60, 2)).astype(np.float32)
    labels = (x[:, 0] * x[:, 1] + 0.2 * RNG.standard_normal(40) > 0).astype(np.int32)
    order = np.asarray(linear.shuffled(jax.random.key(0), 40, 3))
    model = zoo.create("polynomial", degree=3, num_classes=2)

    def step(variables, example):
        def loss(variables):
            x, label = example
            return functional.perceptron(model.apply(variables, x[None], train=True), label[None]).sum()

        return jax.tree.map(jnp.subtract, variables, jax.grad(loss)(variables)), None

    @jax.jit
    def both(seen):
        variables = model.init(jax.random.key(0), x, train=True)
        variables, _ = jax.lax.scan(step, variables, seen)
        logits = model.apply(variables, new, train=False)
        gram = linear.polynomial_kernel(x, x, degree=3)
        a, mistakes = linear.kernel_perceptron(gram, 1 - 2 * labels, order)  # class 0 is y = 1, also at 0
        return logits, linear.polynomial_kernel(new, x, degree=3) @ a, mistakes

    logits, decisions, mistakes = jax.device_get(both((x[order], labels[order])))
    assert 10 < mistakes.sum() < 60
    assert_allclose(logits[:, 0] - logits[:, 1], 2 * decisions, rtol=1e-3, atol=1e-3)


def test_radial_basis_functions_by_their_formula():
    model = zoo.create("rbf", units=3, num_classes=2)
    x = RNG.standard_normal((5, 2, 2, 1)).astype(np.float32)
    centers, widths = RNG.standard_normal((3, 4)), np.array([0.5, 1.0, 2.0])
    kernel, bias = RNG.standard_normal((3, 2)), RNG.standard_normal(2)
    params = {"basis": {"centers": centers, "widths": widths}, "head": {"kernel": kernel, "bias": bias}}
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    squares = ((x.reshape(5, 1, 4) - centers) ** 2).sum(-1)
    expected = np.exp(-squares / (2 * widths**2)) @ kernel + bias

    def call(params):
        outputs = model.apply({"params": params}, x, train=True)
        return jnp.square(outputs).sum(), outputs

    (_, outputs), gradients = jax.jit(jax.value_and_grad(call, has_aux=True))(params)
    assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert all(np.abs(leaf).min() > 0 for leaf in jax.tree.leaves(gradients))


def test_counts_in_closed_form_and_limits():
    assert traced_count("polynomial") == 47_905 * 10  # C(64 + 3, 3) monomials
    assert traced_count("rbf") == 10 * 64 + 10 + 11 * 10
    with pytest.raises(InputError, match="784 features have 308,505 monomials up to degree 2, above the limit"):
        jax.eval_shape(lambda: linear.polynomial_features(jnp.zeros((1, 784)), degree=2))
    for name in ("polynomial", "rbf"):
        option = {"polynomial": "degree", "rbf": "units"}[name]
        with pytest.raises(InputError, match=f"{name}: {option} 0 must be at least 1"):
            zoo.create(name, {option: 0})
