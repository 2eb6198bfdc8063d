"""Layers with the variables and numbers of Flax's layers."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from numpy.testing import assert_allclose

from deepjax.layers import BatchNorm, Conv
from helpers import draw_variables, random_arrays

KEY = jax.random.key(0)


def test_batch_norm_layer_is_flaxs_with_the_same_variables():
    (x,) = random_arrays(0, (8, 3, 3, 5))
    ours, theirs = BatchNorm(), nn.BatchNorm(momentum=0.9, epsilon=1e-5, use_fast_variance=False)
    variables = draw_variables(ours, x)
    shapes = jax.eval_shape(lambda: theirs.init(KEY, x, use_running_average=True))
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, variables)

    @jax.jit
    def run(variables):
        call = {"mutable": ["batch_stats"]}
        return [
            [
                ours.apply(variables, x, train=train, **call),
                theirs.apply(variables, x, use_running_average=not train, **call),
            ]
            for train in (True, False)
        ]

    for answers in run(variables):
        chex.assert_trees_all_close(*answers, rtol=1e-5, atol=1e-5)


def test_initialization_leaves_the_running_moments_alone():
    x = 5 + jnp.ones((8, 3))
    variables = jax.jit(lambda: BatchNorm(axis_name="data").init(KEY, x, train=True))()
    assert_allclose(variables["batch_stats"]["mean"], 0)
    assert_allclose(variables["batch_stats"]["var"], 1)


def test_conv_layer_is_flaxs():
    """Of equal keys they make equal variables."""
    (x,) = random_arrays(0, (2, 7, 7, 6))
    options = {"features": 8, "use_bias": True, "kernel_init": nn.initializers.lecun_normal()}
    ours = Conv(window=(3, 3), stride=2, padding=1, groups=2, bias_init=nn.initializers.ones, **options)
    theirs = nn.Conv(
        kernel_size=(3, 3), strides=2, padding=1, feature_group_count=2, bias_init=nn.initializers.ones, **options
    )
    chex.assert_trees_all_close(
        *jax.jit(lambda: [layer.init_with_output(KEY, x) for layer in (ours, theirs)])(), rtol=1e-5, atol=1e-5
    )
