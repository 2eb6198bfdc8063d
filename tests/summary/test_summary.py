"""The table of layers: parameters against the model's, shapes against the layers'."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from deepjax import cli, functional, zoo
from deepjax.errors import InputError
from deepjax.summary import summarize
from summary.tables import parameter_count, rows, summary_of, sums, totals


@pytest.mark.parametrize(
    ("name", "scan"), [("cifar_resnet20", True), ("cifar_resnet20", False), ("resnet18", True), ("mlp", False)]
)
def test_rows_sum_to_the_models_parameters(name, scan):
    model = zoo.create(name, scan=scan)
    layers = summarize(model, (32, 32, 3))
    assert sum(layer.parameters for layer in layers) == parameter_count(model, (32, 32, 3), train=False)


def test_a_residual_nets_rows():
    layers = {layer.path: layer for layer in summary_of("cifar_resnet20", count="macs")}
    assert layers["stem_conv"][:6] == ("stem_conv", "Conv", (32, 32, 16), 1, 432, 432 * 32**2)
    assert layers["stage2_first/branch/conv1"][:6] == (
        "stage2_first/branch/conv1",
        "Conv",
        (16, 16, 32),
        1,
        9 * 16 * 32,
        9 * 16 * 32 * 16**2,
    )
    assert layers["stage3_rest/unit/branch/conv2"][2:6] == ((8, 8, 64), 2, 2 * 9 * 64 * 64, 2 * 9 * 64 * 64 * 8**2)
    assert layers["stage3_rest/unit/branch/norm2"][1:6] == ("BatchNorm", (8, 8, 64), 2, 2 * 128, 0)
    assert layers["head"] == ("head", "Dense", (10,), 1, 650, 640, ((32, 32), (0, 0), (0, 0)))
    order = list(layers)
    assert order[0] == "stem_conv"
    assert order[-1] == "head"
    assert order.index("stage1_rest/unit/branch/conv1") < order.index("stage1_rest/unit/branch/norm1")
    assert layers["stage2_first/shortcut"].parameters == 0


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
        ("", "Users", (2,), 1, 5, 0, ((), (), ())),
        ("first", "Dense", (5,), 1, 20, 15, ((), (), ())),
        ("hidden", "Dense", (5,), 1, 30, 50, ((), (), ())),
        ("head", "Dense", (2,), 1, 12, 10, ((), (), ())),
    ]


def test_a_recurrent_model():
    model = nn.RNN(nn.LSTMCell(4))
    layers = summarize(model, (7, 3))
    assert sum(layer.parameters for layer in layers) == parameter_count(model, (7, 3))
    assert {layer.repeats for layer in layers} == {7}
    assert sum(layer.macs for layer in layers) == 7 * 4 * (3 * 4 + 4 * 4)


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


class Two(nn.Module):
    """Parts inside of nn.jit, of remat, and behind a method."""

    def setup(self):
        self.first = nn.jit(Part)(name=None)
        self.second = nn.remat(Part)()

    def encode(self, x):
        return self.second(self.first(x))

    def __call__(self, x):
        return self.encode(x), x.sum()


class Part(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(3)(x))


def test_parts_are_found_however_they_are_called():
    for _ in range(2):
        assert [layer[:6] for layer in summarize(Two(), (3,))] == [
            ("first/Dense_0", "Dense", (3,), 1, 12, 9),
            ("second/Dense_0", "Dense", (3,), 1, 12, 9),
        ]


def test_equal_jitted_parts_keep_the_sums():
    jitted = nn.jit(Part)
    for model, expected in ((nn.Sequential([jitted(), jitted()]), (24, 18)), (jitted(), (12, 9))):
        assert totals(model, (3,)) == expected


def test_outputs_of_several_arrays_and_none():
    class Silent(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("unused", nn.initializers.ones, (7,))
            return None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            Silent(name="silent")(x)
            x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(4, name="hidden")(x))
            return {"logits": nn.Dense(2, name="head")(x), "aux": (nn.Dense(3, name="aux")(x), None)}

    for train in (True, False):
        layers = rows(Net(), (5,), train=train)
        assert layers["silent"][1:] == ("Silent", (), 1, 7, 0, None)
        assert [layers[name].macs for name in ("hidden", "head", "aux")] == [20, 8, 12]
        assert sum(layer.parameters for layer in layers.values()) == parameter_count(Net(), (5,), train=train)


def test_integer_inputs():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            return nn.Dense(3)(nn.Embed(10, 4)(tokens))

    assert totals(Net(), jax.ShapeDtypeStruct((6,), jnp.int32)) == (40 + 15, 6 * 12)


def test_poolings_that_are_functions_have_rows():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = functional.max_pool(nn.Conv(4, (3, 3), name="conv")(x), 2)
            x = functional.layer_norm(functional.local_response_norm(x, 3))  # windows and means over features
            x = nn.GroupNorm(2, name="norm")(nn.max_pool(x, (3, 3), (2, 2)))
            return nn.avg_pool(x, (2, 2)).mean((1, 2))

    layers = summarize(Net(), (16, 16, 3))
    assert [(layer.path, layer.output) for layer in layers] == [
        ("conv", (16, 16, 4)),
        ("max_pool(1)", (8, 8, 4)),
        ("max_pool(2)", (3, 3, 4)),
        ("norm", (3, 3, 4)),
        ("avg_pool(1)", (2, 2, 4)),
        ("global_avg_pool(1)", (4,)),
    ]


# Merged rows, and the command


@pytest.mark.parametrize("count", ["macs", "conv-bias"])
def test_merged_rows_have_the_same_sums(count):
    layers, stages = (summary_of("cifar_resnet20", count=count, **level) for level in ({}, {"level": 1}))
    assert sums(stages, "") == sums(layers, "")
    stage = next(layer for layer in stages if layer.path == "stage2_rest")
    assert stage[:4] == ("stage2_rest", "Stack", (16, 16, 32), 1)
    assert stage[4:6] == sums(layers, "stage2_rest/")
    assert stage.field == next(layer for layer in layers if layer.path == "stage2_rest/unit/join").field


def test_the_command(capsys):
    assert cli.main(["summary", "resnet18", "--num-classes", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    assert " ".join(lines[0].split()) == "layer kind output repeats parameters MACs field stride offset"
    assert " ".join(lines[1].split()) == "stem_conv Conv 112x112x64 9,408 118,013,952 7 2 -3"
    total = 11_689_512 - 513 * 993, 1_814_073_344 - 512 * 993
    assert lines[-1] == f"resnet18: {total[0]:,} parameters, {total[1]:,} MACs (1.814 G)"


def test_the_commands_json(capsys):
    command = ["summary", "cifar_resnet20", "--input", "32,40,3", "--json"]
    assert cli.main(command) == 0
    record = json.loads(capsys.readouterr().out)
    layers = summarize(zoo.create("cifar_resnet20"), (32, 40, 3))
    assert (record["input"], record["count"]) == ([32, 40, 3], "macs")
    assert (record["parameters"], record["macs"]) == sums(layers, "")
    for found, layer in zip(record["layers"], layers, strict=True):
        assert found == {
            "path": layer.path,
            "kind": layer.kind,
            "output": list(layer.output),
            "repeats": layer.repeats,
            "parameters": layer.parameters,
            "macs": layer.macs,
            "receptive_field": {name: list(values) for name, values in layer.field._asdict().items()},
        }
    assert cli.main([*command, "--count", "conv-bias", "--level", "1"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["layers"][0]["operations"] == 28 * 16 * 32 * 40
    assert "macs" not in record["layers"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": "flops"}, "count 'flops' is unknown; choose from"),
        ({"count": "convbias"}, "did you mean 'conv-bias'"),
        ({"level": 0}, "level 0 must be at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        summarize(nn.Dense(3), (4,), **options)
