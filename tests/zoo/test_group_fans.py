"""How depthwise and grouped kernels start: with their own fan, or as the published networks do."""

import jax
import numpy as np
import pytest

from deepjax import zoo

# (network, a grouped kernel, whether its groups divide the fan)
NETWORKS = {
    "mobilenet_v1": (("stage1_first", "branch", "depthwise"), True),
    "xception": (("entry1", "branch", "conv2", "depthwise"), True),
    "mobilenet_v2": (("stage2_first", "branch", "depthwise"), False),
    "resnext50_32x4d": (("stage1_first", "branch", "conv2"), False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_variance_of_grouped_kernels(name):
    path, divided = NETWORKS[name]
    model = zoo.create(name, num_classes=3, features_only=True)
    x = np.zeros((1, 33, 33, 3), np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False)["params"])
    found = [p for p, _ in jax.tree.leaves_with_path(shapes) if "kernel" in str(p[-1]) and len(p) >= 3]
    names = [tuple(key.key for key in p) for p in found]
    (where,) = [n for n in names if n[: len(path)] == path]

    @jax.jit
    def kernel(key):
        params = model.init(key, x, train=False)["params"]
        for part in where:
            params = params[part]
        return params

    values = np.asarray(kernel(jax.random.key(0)), np.float64)
    groups = {"resnext50_32x4d": 32}.get(name, values.shape[-1])
    fan_out = values.shape[0] * values.shape[1] * values.shape[-1] / (groups if divided else 1)
    assert abs(np.square(values).mean() * fan_out / 2 - 1) < 4 * np.sqrt(2 / values.size)
