"""Exported networks, read back and compared."""

import dataclasses
import json
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

import helpers
from deepjax import cli, data, inference, weights, zoo
from deepjax.config import Config, Data, Devices
from deepjax.errors import InputError
from deepjax.inference import Classifier, Run, export
from deepjax.inference.export import forward, stablehlo, to_pretrained
from deepjax.weights.files import read_state_dict
from deepjax.zoo.residual import basic


def classifier(network, size, source=None):
    steps = weights.Preprocessing(size + 4, size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    return Classifier(
        network,
        (helpers.draw_variables(network, jnp.zeros((1, size, size, 3))),),
        tuple("abcde"),
        (size, size, 3),
        data.Standardizer("channel", np.array(steps.mean, np.float32), np.array(steps.std, np.float32)),
        steps,
        source or {},
    )


def small():
    """A classifier by a small network of the zoo."""
    options = {"depth": 8, "width": 2}
    network = zoo.create("cifar_resnet", num_classes=5, **options)
    return classifier(network, 16, {"network": "cifar_resnet", "options": options})


def by_hand(run, images):
    """Logits of uint8 images, standardized in NumPy."""
    x = (images / 255 - np.array(run.preprocessing.mean)) / np.array(run.preprocessing.std)
    return jax.jit(partial(run.model.apply, train=False))(run.members[0], x.astype(np.float32))


def photos(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "network",
    [
        basic((3,), num_classes=5, width=4),  # a max pool with padding, a scan
        zoo.create("cifar_asymmetric", num_classes=5, width=4),  # dense layers of flattened maps
    ],
    ids=["scan", "flattened"],
)
def test_stablehlo_at_two_batch_sizes(network):
    pytest.importorskip("flatbuffers")
    run = classifier(network, 16)
    exported = jax.export.deserialize(bytearray(stablehlo(run)))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    (images,) = exported.in_avals
    assert images.dtype == np.uint8
    assert str(images.shape[0]) == "batch"
    x = photos(3, 16)
    expected, call = by_hand(run, x), jax.jit(exported.call)
    for batch in (1, 3):
        found = call(x[:batch])
        assert found.shape == (batch, 5)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:batch], rtol=1e-4, atol=1e-5)


def test_stablehlo_of_snapshots_is_the_log_of_their_mean(tmp_path):
    pytest.importorskip("flatbuffers")
    network = zoo.create("mlp", depth=2, width=8, num_classes=3)
    members = tuple(helpers.draw_variables(network, jnp.zeros((1, 2)), gain) for gain in (1, 2))
    standardizer = data.Standardizer("channel", np.array([1.0, 2.0], np.float32), np.array([2.0, 4.0], np.float32))
    config = Config(model="mlp", model_options={"depth": 2, "width": 8}, workdir="runs/x")
    run = Run(config, network, members, (1, 2), tuple("abc"), (2,), standardizer, "whole")
    export(run, "stablehlo", tmp_path / "net", platforms=("cpu",))
    exported = jax.export.deserialize(bytearray((tmp_path / "net").read_bytes()))
    assert exported.platforms == ("cpu",)
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    logits = [network.apply(member, (x - [1, 2]) / np.array([2, 4], np.float32), train=False) for member in members]
    mean = np.mean([softmax(each, -1) for each in logits], 0)
    np.testing.assert_allclose(np.exp(exported.call(x)), mean, rtol=1e-5)
    with pytest.raises(InputError, match="runs/x has 2 snapshots"):
        to_pretrained(run)
    with pytest.raises(InputError, match="not square images"):
        to_pretrained(run._replace(members=members[:1]))
    white = data.Standardizer.fit("zca", np.random.default_rng(0).normal(size=(50, 4, 4, 1)))
    with pytest.raises(InputError, match="by zca"):
        to_pretrained(run._replace(members=members[:1], shape=(4, 4, 1), standardizer=white))


def test_safetensors_of_ours_are_read_back_whole(tmp_path):
    run = small()
    export(run, "safetensors", tmp_path / "net.safetensors")
    found = inference.load_classifier("cifar_resnet", tmp_path / "net.safetensors")
    assert found.classes == run.classes
    assert found.preprocessing == run.preprocessing
    assert found.shape == run.shape
    assert found.model.clone(usual_input=run.model.usual_input) == run.model
    chex.assert_trees_all_equal(found.members, run.members)
    x = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    np.testing.assert_array_equal(found.standardizer.apply(x), run.standardizer.apply(x))


def test_safetensors_of_pytorch(tmp_path):
    run = classifier(zoo.create("resnet18", num_classes=5, width=4), 32)
    export(run, "safetensors", tmp_path / "net.safetensors", layout="torch")
    state = read_state_dict(tmp_path / "net.safetensors")
    kernel = run.members[0]["params"]["stem_conv"]["kernel"]
    np.testing.assert_array_equal(state["conv1.weight"], kernel.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(state["fc.bias"], run.members[0]["params"]["head"]["bias"])
    back = weights.from_torch(zoo.create("resnet18", num_classes=5, width=4), tmp_path / "net.safetensors")
    jax.tree.map(np.testing.assert_array_equal, back, run.members[0])
    with pytest.raises(InputError, match="torchvision has no such network"):
        export(small(), "safetensors", tmp_path / "x.pth", layout="torch")
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        export(run, "safetensors", tmp_path / "net.pth")
    with pytest.raises(InputError, match="choose stablehlo"):
        export(run, "onnx", tmp_path / "net.onnx")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on the center of grey images, and one of them as a file."""
    folder = tmp_path_factory.mktemp("export")
    config = Config(
        data=Data(name="digits", center_crop=6),
        model="mlp",
        model_options={"depth": 2, "width": 8},
        devices=Devices(count=1),
        epochs=1,
        batch_size=100,
    )
    helpers.train(config, folder / "run")
    from sklearn.datasets import load_digits

    pixels = (load_digits().images[0] * 255 / 16).round().astype(np.uint8)
    Image.fromarray(pixels).save(folder / "zero.png")
    return folder


def told(capsys, *command):
    assert cli.main(list(map(str, command))) == 0
    (row,) = json.loads(capsys.readouterr().out)
    return {one["class"]: one["probability"] for one in row["classes"]}


def test_a_run_exported_by_the_command_predicts_the_same(digits, capsys):
    command = ["export", digits / "run", "--format", "safetensors", "--out", digits / "net.safetensors"]
    assert cli.main(list(map(str, command))) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{digits / 'net.safetensors'}: {digits / 'run'} as safetensors, ")
    run = told(capsys, "predict", digits / "run", digits / "zero.png", "--json")
    file = told(capsys, "predict", "mlp", "--weights", digits / "net.safetensors", digits / "zero.png", "--json")
    assert run.keys() == file.keys()
    for name, probability in run.items():
        assert abs(file[name] - probability) < 1e-6


def test_a_run_as_stablehlo_by_the_command(digits, capsys):
    pytest.importorskip("flatbuffers")
    command = ["export", digits / "run", "--format", "stablehlo", "--out", digits / "net.stablehlo"]
    assert cli.main(list(map(str, command))) == 0
    capsys.readouterr()
    exported = jax.export.deserialize(bytearray((digits / "net.stablehlo").read_bytes()))
    image = np.asarray(Image.open(digits / "zero.png"))[None, ..., None]
    run = told(capsys, "predict", digits / "run", digits / "zero.png", "--json", "--top", 10)
    logits = np.asarray(exported.call(image))[0]
    probabilities = np.exp(logits) / np.exp(logits).sum()
    for i, name in enumerate(inference.load_run(digits / "run").classes):
        assert abs(probabilities[i] - run[name]) < 1e-5


def test_a_bfloat16_run_is_exported_with_float32_weights_and_logits(digits):
    run = inference.load_run(digits / "run")
    half = run._replace(model=zoo.create("mlp", depth=2, width=8, num_classes=10, dtype=jnp.bfloat16))
    images = np.zeros((1, 8, 8, 1), np.uint8)
    assert jax.eval_shape(forward(half), images).dtype == np.float32
    assert to_pretrained(half).network.dtype is None
    config = dataclasses.replace(run.config, workdir="x")
    tall = run._replace(config=config, shape=(8, 6, 1))
    with pytest.raises(InputError, match="not square"):
        to_pretrained(tall)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere", "--format", "stablehlo", "--out", "x"], "nowhere is no folder of a run"),
        (["resnt18", "--format", "stablehlo", "--out", "x"], "did you mean 'resnet18'"),
        (["run", "--format", "onnx", "--out", "x"], "onnx"),
        (["run", "--format", "stablehlo"], "missing argument: PATH The file to write"),
        (["run", "--format", "stablehlo", "--out", "none/x"], "the folder none does not exist"),
        (["run", "--format", "stablehlo", "--layout", "torch", "--out", "x"], "--layout torch is for"),
        (["run", "--format", "safetensors", "--out", "x.bin"], "must end in .safetensors"),
        (["run", "--format", "safetensors", "--layout", "torch", "--out", "x.pth"], "torchvision has no such network"),
    ],
)
def test_what_cannot_be_exported_is_one_line(digits, options, message, capsys, monkeypatch):
    monkeypatch.chdir(digits)
    capsys.readouterr()
    assert cli.main(["export", *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
    assert not (digits / "x").exists()
