"""XOR from three kinds of first weights: a solution by hand, equal hidden units, and the claim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import xor_start as experiment


@pytest.mark.slow
def test_the_claim_holds_for_another_seed():
    assert experiment.claim(experiment.numbers(Settings(1))).holds


def test_a_solution_by_hand_is_one():
    """x1 or x2, but not x1 and x2; two hidden units have no output."""
    params = {
        "hidden": jnp.array([[20.0, 20, 0, 0], [20, 20, 0, 0]]),
        "hidden_bias": jnp.array([-10.0, -30, 0, 0]),
        "output": jnp.array([[20.0], [-20], [0], [0]]),
        "output_bias": jnp.array([-10.0]),
    }
    assert sum(each.size for each in jax.tree.leaves(params)) == 17
    np.testing.assert_allclose(jax.nn.sigmoid(experiment.logits(params, experiment.X)), experiment.Y, atol=1e-4)


def test_constant_weights_leave_the_hidden_units_equal_and_others_do_not():
    train = jax.jit(experiment._train, static_argnums=1)
    _, wrong, spread = train(jax.random.key(0), experiment.STARTS[experiment.CONSTANT])
    assert wrong
    assert spread < 1e-3
    assert train(jax.random.key(0), experiment.STARTS[experiment.NORMAL])[2] > 0.1
