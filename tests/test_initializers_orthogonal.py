"""Orthogonal initializers and identities over many shapes; layers that look linear."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from deepjax import functional, initializers
from helpers import draw_initializer, draw_initializers, random_arrays

KEY = jax.random.key(0)


def assert_semi_orthogonal(matrix, gain=1.0, atol=2e-5):
    matrix = np.asarray(matrix, np.float64) / gain
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    assert_allclose(short @ short.T, np.eye(len(short)), atol=atol)


def test_orthogonal():
    shapes = [(1, 1), (3, 8), (8, 3), (3, 2, 4), (2, 3, 2, 12), (2, 1, 2, 3, 20)]
    cases = {(gain, shape): (initializers.orthogonal(gain), shape) for gain, shape in zip((0.1, 1, 10) * 2, shapes)}
    for (gain, shape), kernel in draw_initializers(cases).items():
        assert kernel.shape == shape
        assert_semi_orthogonal(kernel.reshape(-1, shape[-1]), gain)


def test_delta_orthogonal():
    shapes = [(3, 4, 4), (1, 1, 7), (4, 5, 2, 9), (2, 1, 3, 5, 6)]
    for shape, kernel in draw_initializers(
        {shape: (initializers.delta_orthogonal(2.0), shape) for shape in shapes}
    ).items():
        centre = kernel[tuple((size - 1) // 2 for size in shape[:-2])]
        assert_semi_orthogonal(centre, 2.0)
        assert (kernel != 0).sum() == (centre != 0).sum()


@pytest.mark.parametrize("window", [(3,), (4, 5), (2, 1, 3)])
def test_a_delta_orthogonal_convolution_keeps_norms(window):
    (x,) = random_arrays(0, (2, *[6] * len(window), 3))

    @jax.jit
    def run(x):
        kernel = initializers.delta_orthogonal(2.0)(KEY, (*window, 3, 5))
        return functional.conv(x, kernel, padding="SAME")  # even windows too

    assert_allclose(np.square(run(x)).sum(-1), 4 * np.square(x).sum(-1), rtol=1e-4)


@pytest.mark.parametrize("window", [(), (3,), (3, 4)])
def test_groups_are_orthogonal_each(window):
    init = initializers.delta_orthogonal if window else initializers.orthogonal
    kernel = draw_initializer(init(groups=3), (*window, 4, 15))
    centre = kernel[tuple((size - 1) // 2 for size in window)]
    blocks = np.split(np.asarray(centre), 3, axis=-1)
    for block in blocks:
        assert_semi_orthogonal(block)
    assert not np.allclose(blocks[0], blocks[1])
    assert_allclose(np.square(kernel).sum(), np.square(centre).sum())


def test_orthogonal_is_uniform():
    """Entries of a Haar matrix have mean 0 and variance 1 / n; raw QR's diagonal would be of one sign."""
    kernels = jax.jit(jax.vmap(lambda key: initializers.orthogonal()(key, (4, 4))))(jax.random.split(KEY, 4000))
    kernels = np.asarray(kernels, np.float64)
    mean, square = kernels.mean(0), (kernels**2).mean(0)
    assert (abs(mean) < 4.5 * math.sqrt(1 / 4 / 4000)).all()
    assert (abs(square - 1 / 4) < 4.5 * (kernels**2).std(0) / math.sqrt(4000)).all()


def test_orthogonal_matches_pytorchs_meaning():
    """Both make the same matrix of a convolution's kernel orthogonal: one row per output feature."""
    torch = pytest.importorskip("torch")
    kernel = np.array(draw_initializer(initializers.orthogonal(1.5), (3, 3, 2, 8)))
    theirs = torch.nn.init.orthogonal_(torch.empty(8, 2, 3, 3), gain=1.5).reshape(8, -1)
    ours = torch.from_numpy(kernel).permute(3, 2, 0, 1).reshape(8, -1)
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, atol=1e-5, rtol=0)


def test_orthogonal_is_as_exact_as_its_type():
    with jax.enable_x64(True):
        kernel = draw_initializer(initializers.orthogonal(), (20, 30), jnp.float64)
        assert_semi_orthogonal(kernel, atol=1e-13)
    assert_semi_orthogonal(np.float64(draw_initializer(initializers.orthogonal(), (20, 30), jnp.bfloat16)), atol=2e-2)


# Identities


def test_identity_is_torchs():
    torch = pytest.importorskip("torch")
    shapes = [(4, 4), (3, 5), (5, 3)]
    for shape, ours in draw_initializers({shape: (initializers.identity(2.0), shape) for shape in shapes}).items():
        assert_array_equal(np.asarray(ours) / 2, torch.nn.init.eye_(torch.empty(shape[::-1])).numpy().T)


def test_dirac_is_torchs():
    torch = pytest.importorskip("torch")
    sizes = [(1, 3, 3), (1, 5, 2), (1, 2, 5), (3, 6, 12), (2, 8, 4)]  # groups, features in, features out
    cases = {
        (gain, groups, (*window, features_in // groups, features))
        for gain in (1.0, 0.5)
        for groups, features_in, features in sizes
        for window in ((3,), (4, 5), (1, 3, 2))
    }
    for (gain, groups, shape), ours in draw_initializers(
        {c: (initializers.dirac(c[0], c[1]), c[2]) for c in cases}
    ).items():
        *window, part, features = shape
        weight = torch.nn.init.dirac_(torch.empty(features, part, *window), groups)
        assert_array_equal(ours, gain * np.moveaxis(weight.numpy(), (0, 1), (-1, -2)))


def test_a_dirac_convolution_passes_its_input():
    x = np.random.default_rng(0).standard_normal((2, 5, 5, 6), np.float32)

    @jax.jit
    def run(x):
        results = []
        for groups in (1, 2, 6):
            for window, padding in (((3, 5), "SAME"), ((4, 2), [(2, 1), (1, 0)])):
                kernel = initializers.dirac(groups=groups)(KEY, (*window, 6 // groups, 6))
                results.append(functional.conv(x, kernel, padding=padding, groups=groups))
        return results

    for y in run(x):
        assert_array_equal(y, x)


# Looks linear


def test_looks_linear_dense():
    sizes = [(1, 3), (4, 4), (5, 9), (6, 2)]  # half of the features in, features out
    kernels = draw_initializers({(n, out): (initializers.looks_linear(), (2 * n, out)) for n, out in sizes})
    for (half, features), kernel in kernels.items():
        core = kernel[::2]
        assert_semi_orthogonal(core)
        (x,) = random_arrays(0, (5, half))
        y = np.maximum(x, 0) @ core + np.maximum(-x, 0) @ kernel[1::2]
        assert_allclose(y, x @ core, atol=1e-5)
        if features >= half:
            assert_allclose(np.square(y).sum(-1), np.square(x).sum(-1), rtol=1e-4)


@pytest.mark.parametrize(
    ("core", "groups"),
    [(None, 1), (initializers.he_normal(), 1), (initializers.delta_orthogonal(groups=2), 2)],
)
def test_looks_linear_convolution(core, groups):
    x, z = random_arrays(0, (2, 5, 5, 6), (2, 5, 5, 6))

    @jax.jit
    def run(x, z):
        kernel = initializers.looks_linear(core)(KEY, (3, 3, 12 // groups, 8))
        of_x, of_z, of_both = (functional.conv(functional.crelu(v), kernel, groups=groups) for v in (x, z, x - 2 * z))
        return of_x, of_z, of_both, functional.conv(x, kernel[:, :, ::2], groups=groups)

    of_x, of_z, of_both, linear = map(np.asarray, run(x, z))
    assert_allclose(of_both, of_x - 2 * of_z, atol=1e-4)
    assert_allclose(of_x, linear, atol=1e-5)
    if core is None or groups == 2:
        assert_allclose(np.square(of_x).sum(-1), np.square(x).sum(-1), rtol=1e-4)


def test_fifty_looks_linear_layers_are_an_isometry():
    (x,) = random_arrays(0, (3, 16))

    @jax.jit
    def run(x):
        kernels = jax.vmap(lambda key: initializers.looks_linear()(key, (32, 16)))(jax.random.split(KEY, 50))
        return jax.lax.scan(lambda x, kernel: (functional.crelu(x) @ kernel, None), x, kernels)[0]

    y = np.asarray(run(x))
    assert_allclose(y @ y.T, x @ x.T, atol=1e-3)
