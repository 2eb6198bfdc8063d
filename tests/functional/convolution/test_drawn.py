"""Convolutions of drawn shapes against `jax.lax`: values, gradients and second derivatives."""

from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from deepjax.functional import conv
from helpers import lax_conv, random_arrays

RELATIVE = 1e-5


@st.composite
def convolutions(draw):
    """Draw (shape of x, shape of the kernel, arguments) of a convolution that has outputs."""
    axes = draw(st.integers(1, 3))
    per_axis = [draw(st.tuples(st.integers(1, 11), st.integers(1, 5), st.integers(1, 3))) for _ in range(axes)]
    window = tuple(w for _, w, _ in per_axis)
    dilation = tuple(d for _, _, d in per_axis)
    padding = tuple(draw(st.tuples(st.integers(0, 3), st.integers(0, 3))) for _ in range(axes))
    spans = [d * (w - 1) + 1 - sum(p) for w, d, p in zip(window, dilation, padding, strict=True)]
    size = tuple(max(s, span) for (s, _, _), span in zip(per_axis, spans, strict=True))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inward, outward = groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 5))
    options = {
        "stride": tuple(draw(st.integers(1, 3)) for _ in range(axes)),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }
    return (draw(st.integers(1, 3)), *size, inward), (*window, inward // groups, outward), options


def everything(function, x, kernel, dx, dkernel):
    """Return the value, both gradients of a sum of cubes, and the Hessian times a direction."""

    def total(x, kernel):
        return jnp.sum(function(x, kernel) ** 3)

    gradients, curved = jax.jvp(jax.grad(total, (0, 1)), (x, kernel), (dx, dkernel))
    return function(x, kernel), *gradients, *curved


def assert_agrees(case):
    shape, kernel_shape, options = case
    arrays = random_arrays(0, shape, kernel_shape, shape, kernel_shape)

    @jax.jit
    def both(*arrays):
        return [everything(partial(f, **options), *arrays) for f in (conv, lax_conv)]

    for ours, reference in zip(*both(*arrays), strict=True):
        assert_allclose(ours, reference, rtol=0, atol=RELATIVE * max(1.0, float(np.abs(reference).max())))


@hypothesis.settings(max_examples=15, derandomize=True, deadline=None, database=None)
@hypothesis.given(convolutions())
def test_a_few(case):
    assert_agrees(case)


@pytest.mark.slow
@hypothesis.settings(max_examples=100, derandomize=True, deadline=None, database=None)
@hypothesis.given(convolutions())
def test_many(case):
    assert_agrees(case)
