"""FitNets: layers and parameters of the paper's table."""

import jax
import jax.numpy as jnp
import pytest

from deepjax import zoo

PAPER = {"fitnet1": (11, 250e3, 251_194), "fitnet2": (11, 862e3, 864_122), "fitnet4": (19, 2.5e6, 2_548_602)}


@pytest.mark.parametrize("name", PAPER)
def test_layers_and_parameters(name):
    layers, rounded, exact = PAPER[name]
    params = jax.eval_shape(lambda: zoo.create(name).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))[
        "params"
    ]
    assert len(params) == layers
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == exact
    assert abs(exact / rounded - 1) < 0.02
