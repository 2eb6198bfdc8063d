"""Dilated, depthwise, separable and factorized convolutions against the matrices that they are. Their errors."""

from functools import partial

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax.errors import InputError
from deepjax.functional import conv, depthwise_conv, factorized_conv, separable_conv
from helpers import linear_in_kernel, random_arrays

GEOMETRIES = [
    {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)},
    {"stride": (2, 1), "padding": ((0, 2), (1, 0)), "dilation": (1, 2)},
    {"stride": (3, 2), "padding": ((4, 3), (0, 0)), "dilation": (2, 1)},
]
X = (2, 5, 6, 2)


def matrix(kernel, **geometry):
    which, out = linear_in_kernel(X[1:-1], kernel.shape, **geometry)
    return np.where(which < 0, 0, kernel.ravel()[which]).astype(np.float64), out


def dense_of_conv(kernel, **geometry):
    return matrix(kernel, **geometry)[0]


def dense_of_separable(kernel, pointwise, **geometry):
    first, out = matrix(kernel, groups=2, **geometry)
    return np.kron(np.eye(np.prod(out)), pointwise[0, 0].T) @ first


def dense_of_factorized(across, down, **geometry):
    return dense_of_conv(np.einsum("jab,ibc->ijac", across[0], down[:, 0]), **geometry)


CASES = {  # name -> (function, its matrix, shapes of the kernels)
    "dilated": (conv, dense_of_conv, [(3, 2, 2, 4)]),
    "grouped": (partial(conv, groups=2), partial(dense_of_conv, groups=2), [(3, 2, 1, 4)]),
    "depthwise": (depthwise_conv, partial(dense_of_conv, groups=2), [(3, 2, 1, 2)]),
    "depthwise, three times": (depthwise_conv, partial(dense_of_conv, groups=2), [(3, 2, 1, 6)]),
    "separable": (separable_conv, dense_of_separable, [(3, 2, 1, 4), (1, 1, 4, 3)]),
    "factorized": (factorized_conv, dense_of_factorized, [(1, 2, 2, 3), (3, 1, 3, 2)]),
}


@pytest.mark.parametrize("name", CASES)
def test_convolutions_are_their_matrices(name):
    """Value and gradients. The matrix is linear in each kernel, so its derivative in an entry is its value there."""
    function, dense, shapes = CASES[name]
    x, *kernels = random_arrays(0, X, *shapes)
    functions = [partial(function, **geometry) for geometry in GEOMETRIES]
    dys = [random_arrays(1, jax.eval_shape(f, x, *kernels).shape)[0] for f in functions]

    @jax.jit
    def run(dys, *arrays):
        return [(f(*arrays), *jax.vjp(f, *arrays)[1](dy)) for f, dy in zip(functions, dys, strict=True)]

    for geometry, dy, ours in zip(GEOMETRIES, dys, run(dys, x, *kernels), strict=True):
        rows, columns = dy.reshape(2, -1).astype(np.float64), x.reshape(2, -1).astype(np.float64)
        value = dense(*kernels, **geometry)
        wanted = [(columns @ value.T).reshape(dy.shape), (rows @ value).reshape(x.shape)]
        for i, kernel in enumerate(kernels):
            slope = np.zeros(kernel.shape)
            for entry in np.ndindex(kernel.shape):
                unit = np.zeros_like(kernel)
                unit[entry] = 1
                at_unit = dense(*kernels[:i], unit, *kernels[i + 1 :], **geometry)
                slope[entry] = np.sum(rows * (columns @ at_unit.T))
            wanted.append(slope)
        for a, b in zip(ours, wanted, strict=True):
            assert_allclose(a, b, rtol=1e-4, atol=1e-5 * abs(b).max(), err_msg=str(geometry))


def test_factorized_conv_takes_every_padding_of_conv():
    x, across, down, bias = random_arrays(0, (2, 7, 6, 2), (1, 3, 2, 3), (3, 1, 3, 2), (2,))
    kernel = np.einsum("jab,ibc->ijac", across[0], down[:, 0])

    @jax.jit
    def both():
        results = []
        for padding in ("SAME", "VALID", 1, (0, 2), ((1, 0), 1)):
            y = factorized_conv(x, across, down, bias, stride=2, padding=padding)
            results.append((y, conv(x, kernel, bias, stride=2, padding=padding)))
        return results

    for y, expected in both():
        assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


IMAGES = (2, 8, 8, 4)


@pytest.mark.parametrize(
    ("function", "shapes", "options", "message"),
    [
        (depthwise_conv, [(3, 3, 2, 4)], {}, r"kernel of shape \(3, 3, 2, 4\) must be"),
        (depthwise_conv, [(3, 3, 1, 6)], {}, "multiple of the 4 features"),
        (depthwise_conv, [(3, 3, 1, 4)], {"stride": 0}, "stride 0"),
        (depthwise_conv, [(9, 9, 1, 4)], {"padding": "VALID"}, "spans"),
        (separable_conv, [(3, 3, 1, 4), (3, 3, 4, 5)], {}, r"pointwise .* must be \[1, 1, 4, features_out\]"),
        (separable_conv, [(3, 3, 1, 8), (1, 1, 4, 5)], {}, "pointwise"),
        (factorized_conv, [(3, 1, 4, 5), (3, 1, 5, 6)], {}, r"across \(3, 1, 4, 5\) must be \[1, columns"),
        (factorized_conv, [(1, 3, 4, 5), (1, 3, 5, 6)], {}, r"down \(1, 3, 5, 6\)"),
        (factorized_conv, [(1, 3, 4, 5), (3, 1, 4, 6)], {}, "across gives 5 features, down takes 4"),
        (factorized_conv, [(1, 3, 4, 5), (3, 1, 5, 6)], {"stride": (1, 2, 3)}, "factorized_conv: stride"),
        (factorized_conv, [(1, 3, 4, 5), (3, 1, 5, 6)], {"padding": -1}, "factorized_conv: padding -1"),
    ],
)
def test_input_errors(function, shapes, options, message):
    with pytest.raises(InputError, match=message) as error:
        function(*(np.zeros(shape, np.float32) for shape in (IMAGES, *shapes)), **options)
    assert "\n" not in str(error.value)
