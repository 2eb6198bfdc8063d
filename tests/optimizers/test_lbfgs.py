"""L-BFGS alone and with a line search."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.testing import assert_allclose

from deepjax import config
from deepjax.optimizers import make_optimizer
from deepjax.optimizers.transforms import scale_by_lbfgs


def test_lbfgs_finds_the_bottom_of_a_bowl():
    """With exact curvature, far faster than the gradient alone: 12 unknowns, condition 1,000."""
    bend, transform = np.geomspace(0.01, 10, 12), optax.chain(scale_by_lbfgs(12), optax.scale(-1.0))

    @jax.jit
    def descend(x):
        def step(_, carry):
            x, state = carry
            updates, state = transform.update(bend * x, state, x)
            return x + updates, state

        return jax.lax.fori_loop(0, 60, step, (x, transform.init(x)))[0]

    x = np.asarray(descend(np.ones(12, np.float32)))
    assert np.abs(x).max() < 0.01  # the gradient's own steps of at most 0.2 would leave 0.88 of the flattest


def test_lbfgs_descends_where_the_curvature_is_negative():
    """Optax's own direction climbs there: on a hill every pair has a negative product."""
    x, transform = np.float32([0.1, -0.2]), scale_by_lbfgs(5)
    state, update = jax.jit(transform.init)(x), jax.jit(transform.update)
    for _ in range(5):
        gradient = -x
        direction, state = update(gradient, state, x)
        assert np.vdot(direction, gradient) > 0
        x = x - np.float32(0.1) * np.asarray(direction)


def logistic(size=60):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((size, 5)), rng.integers(0, 2, size) * 2 - 1

    def loss(params):
        return jnp.mean(jax.nn.softplus(-y * (x @ params["kernel"]))) + 0.01 * jnp.sum(params["kernel"] ** 2)

    return loss, {"kernel": np.zeros(5)}


def test_each_searched_step_meets_the_strong_wolfe_conditions_and_leads_to_the_minimum():
    from scipy.optimize import minimize

    with jax.enable_x64(True):
        loss, params = logistic()
        transform = make_optimizer(config.Optimizer(name="lbfgs", line_search=True), 1.0)
        both = jax.jit(jax.value_and_grad(loss))

        @jax.jit
        def search(state, params):
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = transform.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
            return state, value, gradient, updates

        state = jax.jit(transform.init)(params)
        for _ in range(12):
            state, value, gradient, updates = search(state, params)
            step = np.asarray(updates["kernel"])
            params = {"kernel": params["kernel"] + step}
            after, gradient_after = both(params)
            before, there = (np.vdot(g["kernel"], step) for g in (gradient, gradient_after))
            assert float(after) <= float(value) + 1e-4 * before + 1e-12
            assert abs(there) <= 0.9 * abs(before) + 1e-12
        best = minimize(lambda x: float(both({"kernel": x})[0]), np.zeros(5), tol=1e-12)
        assert_allclose(params["kernel"], best.x, atol=1e-5)
