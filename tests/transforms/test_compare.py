"""Two sets of weights, layer by layer: the first layer that diverges is the one that was changed."""

import importlib.util
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

REFERENCE = helpers.REFERENCE
SHAPE = (2, 32, 32, 3)


def small(**options):
    return zoo.create("resnet18", **({"num_classes": 10, "width": 4} | options))


def random_variables(network):
    """Kernels as He's, all else in [0.5, 1.5]."""
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
    """A copy, with a change of one array."""
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
    result = transforms.compare(small(), variables, variables, x)
    assert result.first is None
    assert {layer.difference for layer in result.layers} == {0.0}
    paths = [layer.path for layer in result.layers]
    assert paths[:3] == ["stem_conv", "stem_norm", "stage1_first/branch/conv1"]
    assert paths[-2:] == ["head", OUTPUT]
    assert paths.index("stage1_rest/unit1/branch/conv1") < paths.index("stage2_first/branch/conv1")
    layers = {"/".join(path[1:-1]) for path in flatten_dict(unstack_units(variables))}
    assert sorted(paths) == sorted([*layers, OUTPUT])
    assert result.layers[0].shape == (2, 16, 16, 4)


@pytest.mark.parametrize(
    ("collection", "path", "leaf", "unit", "first"),
    [
        ("params", "stem_conv", "kernel", None, "stem_conv"),
        ("params", "stage2_rest/unit/branch/conv2", "kernel", 0, "stage2_rest/unit1/branch/conv2"),
        ("batch_stats", "stage3_first/shortcut/norm", "var", None, "stage3_first/shortcut/norm"),
        ("params", "head", "bias", 0, "head"),
    ],
)
def test_first_layer_that_diverges(variables, x, collection, path, leaf, unit, first):
    other = changed(variables, collection, path, leaf, times(3.0, unit))
    result = transforms.compare(small(), variables, other, x)
    assert result.first.path == first
    before = result.layers[: result.layers.index(result.first)]
    assert {layer.difference for layer in before} <= {0.0}
    assert transforms.compare(small(), variables, other, x, tolerance=1e9).first is None


def test_units_of_a_scan_are_told_apart(x):
    network = zoo.create("resnet34", num_classes=10, width=4)
    variables = random_variables(network)
    other = changed(variables, "params", "stage3_rest/unit/branch/conv1", "kernel", times(2.0, 3))
    assert transforms.compare(network, variables, other, x).first.path == "stage3_rest/unit4/branch/conv1"


def test_stacked_and_unrolled_variables(variables, x):
    assert transforms.compare(small(scan=False), variables, unstack_units(variables), x).first is None


def test_difference_is_relative_to_the_largest_value(variables, x):
    other = changed(variables, "params", "head", "bias", lambda leaf: leaf + np.float32(0.01))
    result = transforms.compare(small(), variables, other, x)
    logits = [small().apply(v, x, train=False) for v in (variables, other)]
    largest = max(np.abs(y).max() for y in logits)
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


def reference():
    pytest.importorskip("torch")
    if importlib.util.find_spec("torchvision") is None or not REFERENCE.exists():
        pytest.skip("needs torchvision, and the reference script beside the checkout")
    spec = importlib.util.spec_from_file_location("torchvision_reference", REFERENCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["resnet18", "alexnet"])
def test_torchvisions_network_agrees(name):
    script = reference()
    module = script.import_torchvision_models().get_model(name, weights=None)
    script.randomize(module, 0)
    variables = weights.from_torch(name, module.state_dict())
    images = np.random.default_rng(2).normal(size=(2, 80, 96, 3))
    module.train()
    next(module.children()).eval()
    modes = [m.training for m in module.modules()]
    result = transforms.compare_with_torch(name, variables, module, images)
    assert result.first is None
    assert len(result.layers) > 8
    assert [m.training for m in module.modules()] == modes
    assert not any(m._forward_hooks for m in module.modules())


def test_wrong_epsilon_is_found():
    script = reference()
    import torch

    module = script.import_torchvision_models().get_model("resnet18", weights=None)
    script.randomize(module, 0)
    variables = weights.from_torch("resnet18", module.state_dict())
    images = np.random.default_rng(2).normal(size=(2, 64, 64, 3))
    module.layer2[0].bn1.eps = 1e-3
    result = transforms.compare_with_torch("resnet18", variables, module, images)
    assert result.first.path == "stage2_first/branch/norm1"
    module.layer2[0].bn1.eps = 1e-5
    module.layer3[1] = torch.nn.Identity()
    with pytest.raises(InputError, match=r"has no layer layer3.1"):
        transforms.compare_with_torch("resnet18", variables, module, images)


# The command line


def check_refused(words, message, capsys):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_command_against_torchvision(tmp_path, capsys, monkeypatch):
    script = reference()
    models = script.import_torchvision_models()  # kept by Python, so that a plain import finds it
    monkeypatch.chdir(tmp_path)
    network = zoo.create("resnet18", num_classes=7)
    source = {"network": "resnet18", "options": {}}
    weights.save_pretrained("a.safetensors", weights.Pretrained(network, random_variables(network), None, None, source))
    line = ["compare", "a.safetensors", "torchvision", "--input", "40,56,3"]
    assert cli.main(line) == 0
    out = capsys.readouterr().out
    assert "a.safetensors and torchvision agree" in out
    assert out.count("\n") > 40
    get_model = models.get_model

    def shifted(*args, **kwargs):
        module = get_model(*args, **kwargs)
        module.layer3[0].bn2.eps = 0.1
        return module

    monkeypatch.setattr(models, "get_model", shifted)
    assert cli.main(line) == 1
    assert "diverge first at stage3_first/branch/norm2" in capsys.readouterr().out
    weights.save_pretrained(
        "b.safetensors",
        weights.Pretrained(small(), random_variables(small()), None, None, source | {"options": {"width": 4}}),
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


def test_command_without_torchvision(tmp_path, capsys, monkeypatch, variables):
    monkeypatch.chdir(tmp_path)
    source = {"network": "resnet18", "options": {"width": 4}}
    weights.save_pretrained("a.safetensors", weights.Pretrained(small(), variables, None, None, source))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert cli.main(["compare", "a.safetensors", "torchvision"]) == 2
    assert "needs torch and torchvision" in capsys.readouterr().err


def test_command_takes_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = ["train", "digits", "--model", "cifar_resnet", "--model-options", "depth=8", "width=4", "--epochs", "1"]
    for seed in ("0", "1"):
        assert cli.main([*train, "--seed", seed, "--workdir", f"run{seed}"]) == 0
    export = ["export", "run0", "--format", "safetensors", "--out", "run0.safetensors"]
    assert cli.main(export) == 0
    capsys.readouterr()
    assert cli.main(["compare", "run0", "run0.safetensors"]) == 0
    assert cli.main(["compare", "run0", "run1"]) == 1
    assert "run0 and run1 diverge first at stem_conv" in capsys.readouterr().out
    for words, message in (
        (["run0", "run1", "--options", "width=4"], "run0 is a run"),
        (["run0", "."], "no run"),
        (["runs/none", "run0"], "runs/none: no folder of a run"),
        (["run0", "torchvision"], "torchvision has no such network"),
    ):
        check_refused(["compare", *words], message, capsys)


def test_command(tmp_path, variables, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = {"network": "resnet18", "options": {"width": 4}}
    weights.save_pretrained("a.safetensors", weights.Pretrained(small(), variables, None, None, source))
    other = changed(variables, "params", "stage4_first/branch/conv1", "kernel", times(2.0))
    files.save_state_dict("b.safetensors", weights.to_torch(small(), other))
    same = ["compare", "a.safetensors", "a.safetensors", "--input", "32,48,3"]
    assert cli.main(same) == 0
    assert "a.safetensors and a.safetensors agree (tolerance 0.0001)" in capsys.readouterr().out
    options = ["--input", "32,48,3", "--options", "width=4", "--num-classes", "10"]
    line = ["compare", "a.safetensors", "b.safetensors", "--model", "resnet18", *options]
    assert cli.main(line) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["layer", "output", "difference"]
    assert "diverge first at stage4_first/branch/conv1" in out
    assert "stem_conv                       16x24x4" in out
    assert cli.main([*line, "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["diverges"] == "stage4_first/branch/conv1"
    assert record["layers"][-1]["path"] == OUTPUT
    for words, message in (
        ([*same[:3], "--input", "32,32"], "--input '32,32'"),
        ([*same, "--batch", "0"], "--batch 0"),
        (["compare", "a.safetensors", "b.safetensors"], "name the network"),
        (["compare", "a.safetensors", "c.safetensors"], "c.safetensors does not exist"),
    ):
        check_refused(words, message, capsys)


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
    values = jax.device_get(network.init(jax.random.key(0), x, train=False))
    assert [layer.path for layer in transforms.compare(network, values, values, x).layers] == [
        "unit_a/dense",
        "head",
        OUTPUT,
    ]


def test_images_that_the_network_does_not_take(variables):
    with pytest.raises(InputError, match="do not take x"):
        transforms.compare(small(), variables, variables, np.zeros((1, 32, 32, 1)))
