"""The table of layers: its parameters are the model's, its shapes those that the layers give."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.summary import summarize


def rows(model, shape, **call):
    layers = summarize(model, shape, **call)
    by_path = {layer.path: layer for layer in layers}
    assert len(by_path) == len(layers)
    return by_path


def parameter_count(model, shape, **call):
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), **call))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet50", "plain18", "mlp"])
def test_rows_sum_to_the_models_parameters(name, scan):
    model = zoo.create(name, scan=scan)
    layers = summarize(model, (32, 32, 3))
    assert sum(layer.parameters for layer in layers) == parameter_count(model, (32, 32, 3), train=False)


def test_a_residual_nets_rows():
    layers = rows(zoo.create("cifar_resnet", depth=20), (32, 32, 3))
    assert layers["stem_conv"] == ("stem_conv", "Conv", (32, 32, 16), 1, 432)
    assert layers["stage2_first/branch/conv1"] == (
        "stage2_first/branch/conv1",
        "Conv",
        (16, 16, 32),
        1,
        9 * 16 * 32,
    )
    assert layers["stage3_rest/unit/branch/conv2"][2:] == ((8, 8, 64), 2, 2 * 9 * 64 * 64)
    assert layers["stage3_rest/unit/branch/norm2"][1:] == ("BatchNorm", (8, 8, 64), 2, 2 * 128)
    assert layers["head"] == ("head", "Dense", (10,), 1, 650)
    order = list(layers)
    assert order[0] == "stem_conv"
    assert order[-1] == "head"
    assert order.index("stage1_rest/unit/branch/conv1") < order.index("stage1_rest/unit/branch/norm1")
    assert layers["stage2_first/shortcut"].parameters == 0


def test_imagenet_resolutions():
    layers = rows(zoo.create("resnet50"), (224, 224, 3))
    outputs = [
        layers[path].output for path in ("stem_conv", "stage1_first/branch/conv3", "stage4_rest/unit/branch/conv3")
    ]
    assert outputs == [(112, 112, 64), (56, 56, 256), (7, 7, 2048)]


class Users(nn.Module):
    """Without `train`; parameters of its own, a layer called twice, an output that is not one array."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (1, 5))
        hidden = nn.Dense(5, name="hidden")
        x = hidden(hidden(nn.Dense(5, name="first")(x) * scale))
        return {"logits": nn.Dense(2, name="head")(x)}


def test_a_users_model():
    layers = summarize(Users(), (3,))
    assert [tuple(layer) for layer in layers] == [
        ("", "Users", (2,), 1, 5),
        ("first", "Dense", (5,), 1, 20),
        ("hidden", "Dense", (5,), 1, 30),
        ("head", "Dense", (2,), 1, 12),
    ]


def test_a_recurrent_model():
    model = nn.RNN(nn.LSTMCell(4))
    layers = summarize(model, (7, 3))
    assert sum(layer.parameters for layer in layers) == parameter_count(model, (7, 3))


def test_further_arguments_reach_the_model():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, extra, *, train):
            assert train
            return nn.Dense(extra)(x)

    assert summarize(Net(), (3,), extra=6, train=True)[0].output == (6,)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("cifar_resnet20", (0, 32, 3), "every axis must be at least 1"),
        ("cifar_resnet20", (32, -1, 3), "every axis must be at least 1"),
        ("cifar_resnet20", (32, 32), "images must be"),
        ("cifar_resnet20", (), "images must be"),
    ],
)
def test_bad_input(name, shape, message):
    with pytest.raises(InputError, match=message):
        summarize(zoo.create(name), shape)


def test_an_input_that_a_users_model_does_not_take():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x.reshape(-1, 7))

    with pytest.raises(InputError, match=r"does not take an input of shape \(3,\)"):
        summarize(Net(), (3,))
