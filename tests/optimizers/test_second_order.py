"""Second-order methods against SciPy's, and against what is known of quadratic functions and saddles."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import optimize

from deepjax.errors import InputError
from deepjax.optimizers import second_order
from helpers import random_arrays


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def positive(n):
    (root,) = random_arrays(0, (n, n))
    return np.float64(root @ root.T + np.eye(n))


@pytest.mark.parametrize(
    ("ours", "theirs"), [("newton_cg", "Newton-CG"), ("nonlinear_cg", "CG"), ("bfgs", "BFGS"), ("newton", "Newton-CG")]
)
def test_rosenbrock_costs_about_what_it_costs_scipy(ours, theirs):
    x0 = np.array([-1.2, 1.0])
    result = jax.jit(partial(getattr(second_order, ours), rosenbrock))(x0)
    options = {"hessp": optimize.rosen_hess_prod} if theirs == "Newton-CG" else {}
    scipy = optimize.minimize(optimize.rosen, x0, method=theirs, jac=optimize.rosen_der, **options)
    assert_allclose(result.x, 1, atol=1e-4)
    assert result.iterations <= 1.3 * scipy.nit
    assert result.gradients <= 1.5 * scipy.njev
    assert result.products <= getattr(scipy, "nhev", result.products)
    values = np.array([optimize.rosen(x) for x in result.path[: int(result.iterations) + 1]])
    assert_allclose(values[[0, -1]], [optimize.rosen(x0), result.value], atol=1e-12)
    if ours != "newton":
        assert (np.diff(values) < 0).all()


def test_n_steps_of_conjugate_gradients_solve_a_quadratic():
    n, a = 5, positive(5)
    result = jax.jit(partial(second_order.nonlinear_cg, lambda x: x @ a @ x / 2 - x.sum(), tolerance=1e-9))(np.zeros(n))
    assert_allclose(result.x, np.linalg.solve(a, np.ones(n)), rtol=1e-8)
    assert (result.iterations, result.gradients, result.products) == (n, n + 1, n)  # every first step is taken


def test_the_inner_conjugate_gradients_reach_their_tolerance_and_see_negative_curvature():
    a, b = positive(5), np.arange(1.0, 6)
    cg = jax.jit(lambda a, b: second_order.truncated_cg(lambda v: a @ v, b, 250))
    d, bend, count = cg(a, b)
    assert np.linalg.norm(a @ d - b) <= 0.5 * np.linalg.norm(b)
    assert_allclose(bend, d @ a @ d, rtol=1e-10)
    small, _, more = cg(a, 1e-12 * b)
    assert_allclose(small, 1e-12 * np.linalg.solve(a, b), rtol=1e-4)
    assert count < more <= 6
    d, bend, count = cg(-a, b)
    assert_allclose(d, b * (b @ b) / (b @ a @ b), rtol=1e-10)
    assert_allclose([bend, count], [-((b @ b) ** 2) / (b @ a @ b), 1], rtol=1e-10)


def test_newton_jumps_to_a_saddle_and_its_saddle_free_version_away():
    def saddle(x):
        return x[0] ** 2 - x[1] ** 2

    x0 = np.array([1.0, 0.1])
    step = {"x0": x0, "steps": 1}
    assert_allclose(second_order.newton(saddle, **step).x, [0, 0], atol=1e-12)
    assert_allclose(second_order.saddle_free_newton(saddle, **step).x, [0, 0.2], atol=1e-12)
    assert abs(second_order.newton_cg(saddle, **step).x[1]) > 0.1


def test_the_update_of_bfgs_is_the_formula():
    a = positive(3)
    step, change, h = np.arange(3.0), a @ np.arange(3.0), positive(3)
    updated = second_order._updated(h, step, change, first=False)
    assert_allclose(updated @ change, step, atol=1e-10)  # the secant equation
    rho, one = 1 / (step @ change), np.eye(3)
    left = one - rho * np.outer(step, change)
    assert_allclose(updated, left @ h @ left.T + rho * np.outer(step, step), rtol=1e-10)
    assert_allclose(second_order._updated(h, step, -change, first=False), h)  # no positive curvature


def network(params, x):
    return jnp.tanh(x @ params["first"]) @ params["last"]


def small_network():
    x, y, first, last = (np.float64(array) for array in random_arrays(0, (20, 2), (20, 1), (2, 3), (3, 1)))
    return partial(network, x=x), lambda z: jnp.mean((z - y) ** 2), {"first": first, "last": last}


def test_products_are_those_with_the_whole_matrices():
    model, loss, params = small_network()
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    @jax.jit
    def compute(params, flat, v):
        hessian = second_order.hessian_product(lambda p: loss(model(p)), params)(unravel(v))
        gauss = second_order.gauss_newton_product(model, loss, params)(unravel(v))
        jacobian = jax.jacobian(lambda x: model(unravel(x)))(flat)[:, 0]
        whole = jax.hessian(lambda x: loss(model(unravel(x))))(flat)
        return [jax.flatten_util.ravel_pytree(p)[0] for p in (hessian, gauss)], whole, jacobian

    v = np.arange(9.0)
    (hessian, gauss), whole, jacobian = compute(params, flat, v)
    assert_allclose(hessian, whole @ v, rtol=1e-8)
    assert_allclose(gauss, jacobian.T @ (2 / 20 * (jacobian @ v)), rtol=1e-8)


def test_hessian_free_optimization_trains_a_network_of_a_pytree():
    model, _, params = small_network()
    target = jax.jit(model)(jax.tree.map(lambda w: w + 1, params))

    def loss(z):
        return jnp.mean((z - target) ** 2)

    product = partial(second_order.gauss_newton_product, model, loss)
    hessian_free = partial(second_order.newton_cg, damping=1.0, product=product, steps=150)
    result = jax.jit(partial(hessian_free, lambda p: loss(model(p))))(params)
    assert result.value < 1e-6
    assert result.x["first"].shape == (2, 3)
    assert result.products > result.iterations


def test_damping_follows_the_quadratic_model():
    """On a quadratic function the model without damping is exact; a damped step only loses a part of it."""
    a = positive(4)
    result = jax.jit(partial(second_order.newton_cg, lambda x: x @ a @ x / 2, damping=100.0, steps=60))(np.ones(4))
    assert_allclose(result.x, 0, atol=1e-4)
    assert result.iterations < 40  # with the damping unchanged, the flattest direction shrinks by 1 % a step


def test_inputs_are_checked():
    for options, match in (({"steps": 0}, "steps 0"), ({"tolerance": -1}, "tolerance -1")):
        with pytest.raises(InputError, match=match):
            second_order.bfgs(rosenbrock, np.ones(2), **options)
    with pytest.raises(InputError, match="int64"):
        second_order.newton(rosenbrock, np.array([1, 2]))
