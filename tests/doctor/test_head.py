"""The last layer of a model, and what follows it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import helpers
from deepjax import zoo
from deepjax.doctor.head import find_head
from deepjax.doctor.subject import subject

ACTIVATIONS = {
    "none": lambda z: z,
    "softmax": nn.softmax,
    "sigmoid": nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": lambda z: jnp.maximum(z, 0),
    "log softmax": nn.log_softmax,
}


class Net(nn.Module):
    """Two layers, an activation after the last, and dropout before it."""

    final: str
    outputs: int = 3

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(8, name="hidden")(x)))
        return ACTIVATIONS[self.final](nn.Dense(self.outputs, name="last")(x))


def made(model, shape=(6, 5)):
    (x,) = helpers.random_arrays(0, shape)
    found = subject(model, (x, np.zeros(len(x), np.float32)), lambda p, t: jnp.mean(p))
    return found, x, jax.jit(found.init)(jax.random.key(0))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_after_the_last_layer(name):
    found, x, variables = made(Net(name))
    head = find_head(found, variables, x, jax.random.key(1))
    assert head is not None
    assert (head.activation, head.shape, head.features, head.rectified) == (name, (3,), (8,), False)
    features, z, _ = jax.jit(head.split, static_argnums=2)(variables, x[:4], False, jax.random.key(0))
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    hidden = np.maximum(x[:4] @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    np.testing.assert_allclose(features, hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(z, hidden @ params["last"]["kernel"] + params["last"]["bias"], rtol=1e-5, atol=1e-6)


def test_a_softmax_over_one_unit_is_constant():
    found, x, variables = made(Net("softmax", outputs=1))
    head = find_head(found, variables, x, jax.random.key(1))
    assert head is not None
    assert head.activation == "constant"


def test_a_relu_before_the_softmax_is_seen():
    class Cut(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.softmax(nn.relu(nn.Dense(4)(x)))

    found, x, variables = made(Cut())
    head = find_head(found, variables, x, jax.random.key(1))
    assert head is not None
    assert (head.activation, head.rectified) == ("softmax", True)


def test_networks_of_the_zoo_return_logits():
    found, x, variables = made(zoo.create("cifar_resnet", depth=8, width=2, num_classes=3), (2, 8, 8, 3))
    head = find_head(found, variables, x, jax.random.key(1))
    assert head is not None
    assert (head.activation, head.shape) == ("none", (3,))


def test_training_gives_the_state_of_batch_norm():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(2)(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))

    found, x, variables = made(Normed())
    head = find_head(found, variables, x, jax.random.key(1))
    assert head is not None
    _, _, state = head.split(variables, x, True, jax.random.key(0))
    np.testing.assert_allclose(state["batch_stats"]["BatchNorm_0"]["mean"], 0.5 * x.mean(0), rtol=1e-5, atol=1e-6)


def test_a_model_without_layers_has_no_head():
    def scale(params, x):
        return x * params[None]

    found = subject(
        scale, (np.ones((4, 2)), np.ones((4, 2))), lambda p, t: optax.l2_loss(p, t).mean(), variables=jnp.ones(2)
    )
    assert find_head(found, found.init(jax.random.key(0)), found.inputs, jax.random.key(1)) is None
