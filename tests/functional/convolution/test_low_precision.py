"""Gradients of kernels in half precision: they are rounded once, as JAX's own are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deepjax.functional import conv

# batch, pixels, window, stride, dilation: the kernel gradient on CPU is a sum over parts of a batch of 32 or more
FORMS = [(256, 8, 3, 1, 1), (64, 10, 3, 2, 1), (64, 9, 3, 1, 2), (256, 8, 1, 1, 1), (64, 9, 1, 2, 1)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_kernel_gradient_is_as_exact_as_jaxs(dtype):
    rng = np.random.default_rng(0)
    cases = []
    for batch, pixels, window, stride, dilation in FORMS:
        x = (rng.standard_normal((batch, pixels, pixels, 3)) + 0.5).astype(dtype)
        reach = (window - 1) * dilation
        out = (pixels + 2 * (reach // 2) - reach - 1) // stride + 1
        dy = ((rng.standard_normal((batch, out, out, 4)) + 0.5) / 64).astype(dtype)
        cases.append((x, np.zeros((window, window, 3, 4), dtype), dy))

    def theirs(x, kernel, padding, stride, dilation):
        layout = ("NHWC", "HWIO", "NHWC")
        pads = [(padding, padding)] * 2
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), pads, rhs_dilation=(dilation, dilation), dimension_numbers=layout
        )

    @jax.jit
    def gradients(cases):
        found = []
        for (x, kernel, dy), (_, _, window, stride, dilation) in zip(cases, FORMS, strict=True):
            padding = (window - 1) * dilation // 2
            ours = jax.vjp(lambda k, x=x: conv(x, k, stride=stride, padding=padding, dilation=dilation), kernel)  # noqa: B023
            jaxs = jax.vjp(lambda k, x=x: theirs(x, k, padding, stride, dilation), kernel)  # noqa: B023
            found.append((ours[1](dy)[0], jaxs[1](dy)[0]))
        return found

    exact = gradients([[np.asarray(a, np.float32) for a in case] for case in cases])
    for form, ((ours, jaxs), (wanted, _)) in zip(FORMS, zip(gradients(cases), exact, strict=True), strict=True):
        errors = [np.square(np.asarray(g, np.float64) - wanted).mean() ** 0.5 for g in (ours, jaxs)]
        assert errors[0] <= 1.1 * errors[1], (form, errors)
        assert ours.dtype == jnp.dtype(dtype)
