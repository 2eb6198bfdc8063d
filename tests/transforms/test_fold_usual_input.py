"""A network that knows its own input is folded without one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.transforms import fold_batch_norm


@pytest.mark.slow
def test_a_network_of_the_zoo_is_folded_without_an_input():
    model = zoo.create("bn_inception", num_classes=5)
    x = jax.ShapeDtypeStruct((1, *model.usual_input), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    folding = fold_batch_norm(model, variables)
    assert (len(folding.folded), folding.left) == (len(fold_batch_norm(model, variables, x).folded), {})
    assert len(folding.folded) > 60


def test_another_model_needs_its_input():
    with pytest.raises(InputError, match="Dense has no usual_input; pass a batch"):
        fold_batch_norm(nn.Dense(3), {})
