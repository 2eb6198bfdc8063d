"""Networks of CReLUs that are linear functions at initialization."""

import flax.linen as nn
import jax
import numpy as np
from numpy.testing import assert_allclose

import helpers
from deepjax.functional import crelu
from deepjax.init_from_data import looks_linear
from init_from_data.networks import KEY, features, images, scan


class CReLUUnit(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Conv(8, (3, 3))(crelu(x)), None


class CReLUNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3))(x)
        x, _ = scan(CReLUUnit, 20)()(x, None)
        x = nn.Conv(16, (2, 2), strides=2, feature_group_count=2, padding="VALID")(crelu(x))
        x = nn.avg_pool(crelu(x), (2, 2), (2, 2))
        return nn.Dense(5)(x.reshape(len(x), -1))


def test_a_network_of_crelus_is_linear():
    model = CReLUNet()
    variables = looks_linear(model, KEY, images())
    a, b = images(seed=1), images(seed=2)
    f = jax.jit(model.apply)
    scale = np.abs(f(variables, a)).max()
    assert scale > 0.1
    combined, *parts = (np.asarray(f(variables, x)) for x in (2 * a - 3 * b, a, b))
    assert_allclose(combined, 2 * parts[0] - 3 * parts[1], atol=1e-4 * scale)
    # It can fail: the same network with other random kernels is far from linear.
    drawn = helpers.draw_variables(model, a)
    assert np.abs(np.asarray(f(drawn, -a)) + np.asarray(f(drawn, a))).max() > 0.01


def test_a_deep_network_keeps_norms_forward_and_backward():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(16)(x)
            for _ in range(3):
                x = nn.Dense(16)(crelu(x))
            return x

    x = features(size=16)
    variables = looks_linear(Deep(), KEY, x)

    @jax.jit
    def run(x):
        return Deep().apply(variables, x), jax.jacrev(lambda x: Deep().apply(variables, x[None])[0])(x[0])

    y, jacobian = map(np.asarray, run(x))
    assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-3)
    assert_allclose(jacobian @ jacobian.T, np.eye(16), atol=1e-3)
