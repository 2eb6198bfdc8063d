"""Networks with PyTorch's names, and variables for them."""

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import zoo
from deepjax.units import Add
from deepjax.zoo.residual import imagenet


def small(**options):
    """The first two stages of resnet18 with torchvision's names, so that tracing it takes little."""
    return imagenet((2, 2), **({"num_classes": 10, "width": 16, "join": Add} | options))


def thin(**options):
    """A thin resnet18, for what names its network."""
    return zoo.create("resnet18", **({"num_classes": 10, "width": 4} | options))


def random_variables(network, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *network.usual_input)), train=False))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
