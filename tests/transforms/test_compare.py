"""Two sets of weights, layer by layer: the first layer that differs is the one that was changed."""

import dataclasses
import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import helpers
from deepjax import cli, transforms, weights, zoo
from deepjax.errors import InputError
from deepjax.transforms.compare import OUTPUT
from deepjax.units import unstack_units
from deepjax.weights import files

SHAPE = (2, 8, 8, 3)


def small(**options):
    """A network with two units in the scan of each stage."""
    return zoo.create("cifar_resnet20", **({"num_classes": 10, "width": 4, "shortcut": "B"} | options))


def torchs(**options):
    """A network that torchvision has."""
    return zoo.create("resnet18", **({"num_classes": 10, "width": 4} | options))


def random_variables(network):
    """Draw kernels with He's variance, and all else from [0.5, 1.5]."""
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        if path[-1].key != "kernel":
            return rng.uniform(0.5, 1.5, shape.shape).astype(np.float32)
        fan_in = np.prod(shape.shape[-4:-1]) if len(shape.shape) > 2 else shape.shape[0]
        return (rng.normal(size=shape.shape) * (2 / fan_in) ** 0.5).astype(np.float32)

    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros(SHAPE), train=False))
    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.fixture(scope="module")
def variables():
    return random_variables(small())


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)


def changed(variables, collection, path, leaf, change):
    """Return a copy of the variables with one array changed."""
    variables = jax.tree.map(np.copy, variables)
    node = variables[collection]
    for name in path.split("/"):
        node = node[name]
    node[leaf] = change(node[leaf])
    return variables


def times(factor, unit=None):
    def change(leaf):
        leaf[unit] = leaf[unit] * factor
        return leaf

    return change


def test_equal_weights_agree(variables, x):
    """Stacked and unrolled ones too."""
    result = transforms.compare(small(scan=False), variables, unstack_units(variables), x)
    assert result.first is None
    assert {layer.difference for layer in result.layers} == {0.0}
    paths = [layer.path for layer in result.layers]
    assert paths[:3] == ["stem_conv", "stem_norm", "stage1_first/branch/conv1"]
    assert paths[-2:] == ["head", OUTPUT]
    assert paths.index("stage1_rest/unit1/branch/conv1") < paths.index("stage2_first/branch/conv1")
    layers = {"/".join(path[1:-1]) for path in flatten_dict(unstack_units(variables))}
    assert sorted(paths) == sorted([*layers, OUTPUT])
    assert result.layers[0].shape == (2, 8, 8, 4)


@pytest.mark.parametrize(
    ("collection", "path", "leaf", "change", "first"),
    [
        ("params", "stage2_rest/unit/branch/conv2", "kernel", times(3.0, 1), "stage2_rest/unit2/branch/conv2"),
        ("batch_stats", "stage3_first/shortcut/norm", "var", times(3.0), "stage3_first/shortcut/norm"),
        ("params", "head", "bias", lambda leaf: leaf + np.float32(0.01), "head"),
    ],
)
def test_first_layer_that_diverges(variables, x, collection, path, leaf, change, first):
    other = changed(variables, collection, path, leaf, change)
    result = transforms.compare(small(), variables, other, x)
    assert result.first.path == first
    before = result.layers[: result.layers.index(result.first)]
    assert {layer.difference for layer in before} <= {0.0}
    assert result._replace(tolerance=1e9).first is None
    if first == "head":  # the difference is relative to the largest value
        logits = jax.jit(lambda v: small().apply(v, x, train=False))
        largest = max(np.abs(logits(v)).max() for v in (variables, other))
        np.testing.assert_allclose(result.layers[-1].difference, 0.01 / largest, rtol=1e-2)


def test_values_that_are_not_finite_diverge(variables, x):
    other = changed(variables, "params", "stage1_first/branch/conv2", "kernel", times(np.nan, 0))
    result = transforms.compare(small(), other, other, x)
    assert result.first.path == "stage1_first/branch/conv2"
    assert result.first.difference == np.inf


def test_other_networks_variables(variables, x):
    with pytest.raises(InputError, match=r"head/bias have shape \(10,\), but the network's have \(3,\)"):
        transforms.compare(small(num_classes=3), variables, variables, x)
    with pytest.raises(InputError, match=r"images must be"):
        transforms.compare(small(), variables, variables, x[0])


# Against PyTorch


def test_torchvisions_network_agrees():
    """One with dropout, and with a Dense that reads a flattened map."""
    module = helpers.import_torchvision().models.get_model("alexnet", weights=None)  # PyTorch draws all of its weights
    variables = weights.from_torch("alexnet", module.state_dict())
    images = np.random.default_rng(2).normal(size=(1, 64, 96, 3))
    module.train()
    next(module.children()).eval()
    modes = [m.training for m in module.modules()]
    result = transforms.compare_with_torch("alexnet", variables, module, images)
    assert result.first is None
    assert len(result.layers) > 8
    assert [m.training for m in module.modules()] == modes
    assert not any(m._forward_hooks for m in module.modules())


def test_wrong_epsilon_is_found():
    torchvision = helpers.import_torchvision()
    import torch

    module = torchvision.models.get_model("resnet18", weights=None)
    helpers.randomize_torch(module)
    variables = weights.from_torch("resnet18", module.state_dict())
    images = np.random.default_rng(2).normal(size=(2, 64, 64, 3))
    module.layer2[0].bn1.eps = 1e-3
    result = transforms.compare_with_torch("resnet18", variables, module, images)
    assert result.first.path == "stage2_first/branch/norm1"
    module.layer3[1] = torch.nn.Identity()
    with pytest.raises(InputError, match=r"lacks layer layer3.1"):
        transforms.compare_with_torch("resnet18", variables, module, images)


# The command line


def check_refused(words, message, capsys):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_command_against_torchvision(tmp_path, capsys, monkeypatch):
    helpers.import_torchvision()
    monkeypatch.chdir(tmp_path)
    network = zoo.create("resnet18", num_classes=7)
    source = {"network": "resnet18", "options": {}}
    weights.save_pretrained("a.safetensors", weights.Pretrained(network, random_variables(network), None, None, source))
    line = ["compare", "a.safetensors", "torchvision", "--input", "40,56,3"]
    assert cli.main(line) == 0
    out = capsys.readouterr().out
    assert "a.safetensors and torchvision agree" in out
    assert out.count("\n") > 40
    weights.save_pretrained(
        "b.safetensors",
        weights.Pretrained(torchs(), random_variables(torchs()), None, None, source | {"options": {"width": 4}}),
    )
    plain = zoo.create("plain18", num_classes=7)  # named as in torchvision's resnet18, which is another network
    source = {"network": "plain18", "options": {}}
    weights.save_pretrained("p.safetensors", weights.Pretrained(plain, random_variables(plain), None, None, source))
    for name, message in (
        ("b", "torchvision's resnet18 does not take the weights"),
        ("c", "does not exist"),
        ("p", "torchvision has no plain18"),
    ):
        check_refused(["compare", f"{name}.safetensors", "torchvision"], message, capsys)


def test_command_without_torchvision(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = {"network": "resnet18", "options": {"width": 4}}
    weights.save_pretrained(
        "a.safetensors", weights.Pretrained(torchs(), random_variables(torchs()), None, None, source)
    )
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert cli.main(["compare", "a.safetensors", "torchvision"]) == 2
    assert "needs torch and torchvision" in capsys.readouterr().err


def test_command_takes_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = ["train", "digits", "--model", "mlp", "--model-options", "depth=2", "width=4", "--epochs", "1"]
    assert cli.main([*train, "--devices.count", "1", "--workdir", "run"]) == 0
    assert cli.main(["export", "run", "--format", "safetensors", "--out", "run.safetensors"]) == 0
    found = weights.load_file("run.safetensors", None)
    first = next(iter(found.variables["params"]))
    other = changed(found.variables, "params", first, "kernel", times(2.0))
    weights.save_pretrained("other.safetensors", dataclasses.replace(found, variables=other))
    capsys.readouterr()
    assert cli.main(["compare", "run", "run.safetensors"]) == 0
    assert cli.main(["compare", "run", "other.safetensors"]) == 1
    assert f"run and other.safetensors diverge first at {first}" in capsys.readouterr().out
    for words, message in (
        (["run", "run", "--options", "width=4"], "run is a run"),
        (["run", "."], "no run"),
        (["runs/none", "run"], "runs/none: no folder of a run"),
        (["run", "torchvision"], "torchvision has no such network"),
    ):
        check_refused(["compare", *words], message, capsys)


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables, source = random_variables(torchs()), {"network": "resnet18", "options": {"width": 4}}
    weights.save_pretrained("a.safetensors", weights.Pretrained(torchs(), variables, None, None, source))
    other = changed(variables, "params", "stage4_first/branch/conv1", "kernel", times(2.0))
    files.save_state_dict("b.safetensors", weights.to_torch(torchs(), other))
    options = ["--input", "32,48,3", "--options", "width=4", "--num-classes", "10"]
    line = ["compare", "a.safetensors", "b.safetensors", "--model", "resnet18", *options]
    assert cli.main(line) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["layer", "output", "difference"]
    assert "diverge first at stage4_first/branch/conv1 (tolerance 0.0001)" in out
    assert "stem_conv                       16x24x4" in out
    assert cli.main([*line, "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["diverges"] == "stage4_first/branch/conv1"
    assert record["layers"][-1]["path"] == OUTPUT
    for words, message in (
        (["compare", "a.safetensors", "a.safetensors", "--input", "32,32"], "--input '32,32'"),
        (["compare", "a.safetensors", "a.safetensors", "--batch", "0"], "batch 0"),
        (["compare", "a.safetensors", "b.safetensors"], "name the network"),
        (["compare", "a.safetensors", "c.safetensors"], "c.safetensors does not exist"),
    ):
        check_refused(words, message, capsys)


def test_json_of_outputs_that_overflow_is_valid(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = {"network": "resnet18", "options": {"width": 4}}
    large = changed(random_variables(torchs()), "params", "stem_conv", "kernel", times(1e38))
    weights.save_pretrained("a.safetensors", weights.Pretrained(torchs(), large, None, None, source))
    assert cli.main(["compare", "a.safetensors", "a.safetensors", "--input", "32,32,3", "--json"]) == 1

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    record = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert record["diverges"] == "stem_conv"
    assert record["layers"][0]["difference"] is None


def test_layers_inside_remat_are_seen(x):
    class Unit(nn.Module):
        @nn.compact
        def __call__(self, x, *, train, mask=None):
            return nn.Dense(x.shape[-1], name="dense")(x)

    class Net(zoo.network.Network):
        @nn.compact
        def __call__(self, x, *, train, mask=None):
            return self.classify(
                nn.remat(Unit, static_argnums=())(name="unit_a")(x.mean((1, 2)), train=train), train=train
            )

    network = Net(num_classes=4)
    values = helpers.draw_variables(network, x)
    assert [layer.path for layer in transforms.compare(network, values, values, x).layers] == [
        "unit_a/dense",
        "head",
        OUTPUT,
    ]


def test_images_that_the_network_does_not_take(variables):
    with pytest.raises(InputError, match=r"does not take an input of shape \(1, 8, 8, 1\)"):
        transforms.compare(small(), variables, variables, np.zeros((1, 8, 8, 1)))
