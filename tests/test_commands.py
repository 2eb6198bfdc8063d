"""Every command of the README and the docs runs, in order, in one folder for each document.

Training is shortened, and images are made small. What would be fetched from the hub is a file with random weights.
"""

import dataclasses
import functools
import re
import shlex
from importlib.util import find_spec

import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from deepjax import cli, training, weights, zoo
from deepjax.cli import hints
from deepjax.config import Config
from deepjax.data.sources import original
from deepjax.weights import hub
from deepjax.weights.files import save_state_dict

# Measurements, which take from minutes to hours
MEASURED = ("benchmarks.md", "parity.md")
NET = """
import flax.linen as nn

def make_model():
    return nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(16), nn.relu, nn.Dense(10)])
"""
HAS_TORCH = find_spec("torch") is not None
train, range_test, search = training.train, training.range_test, training.search


def commands(document):
    """The `deepjax` commands of a document's shell blocks, as lists of words."""
    blocks = re.findall(r"```sh\n(.*?)```", document.read_text(encoding="utf8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [line[1:] for line in words if line[:1] == ["deepjax"]]


def shortened(config):
    """The config with small images, and as few epochs as it allows."""
    data = dataclasses.replace(config.data, image_size=min(config.data.image_size, 32))
    if config.data.name == "digits":  # 1,297 images
        config = dataclasses.replace(config, model="mlp", model_options={"depth": 2, "width": 4})
    epochs = 1 if not config.thaw and not config.thaw_share else 6
    return dataclasses.replace(config, data=data, batch_size=8, epochs=epochs)


def small_train(config, name="run", **keywords):
    return train(shortened(config), name, **keywords)


def small_range_test(config, name="run", **keywords):
    return range_test(shortened(config), name, **keywords)


def small_search(config, grid, name="run", **keywords):
    return search(shortened(config), {"optimizer.learning_rate": [0.01, 0.1]}, name, **keywords)


def write_weights():
    """Files of random weights in PyTorch's layout: of ResNet-18, and of the layer of AlexNet that `monster` borrows."""
    network = zoo.create("resnet18")
    variables = helpers.draw_variables(network, jnp.zeros((1, 64, 64, 3)))
    state_dict = weights.to_torch(network, variables)
    save_state_dict("resnet18.safetensors", state_dict)
    if HAS_TORCH:
        save_state_dict("resnet18.pth", state_dict)
    layer = {"features.0.weight": np.zeros((64, 3, 11, 11), np.float32), "features.0.bias": np.zeros(64, np.float32)}
    save_state_dict("alexnet.safetensors", layer)


def tiny_cifar10(name, folder, classes):
    images, labels = np.zeros((20, 32, 32, 3), np.uint8), np.arange(20) % 10
    from deepjax import data

    return data.from_arrays(images, labels, images, labels, classes=classes, name=name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the documents name."""
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 6), ("val", 2)):
        helpers.write_images(tmp_path / "FOLDER" / split, {"cat": count, "dog": count}, size=(48, 40), suffix=".jpg")
    helpers.write_images(tmp_path, {".": 1}, size=(48, 40), suffix=".jpg")
    (tmp_path / "000.jpg").rename("photo.jpg")
    (tmp_path / "photo.png").write_bytes((tmp_path / "FOLDER/train/cat/000.jpg").read_bytes())
    (tmp_path / "FOLDER" / "data_batch_1.bin").touch()
    rows = "".join(f"{i},{i % 7},{3 * i}\n" for i in range(40))
    for name in ("housing.csv", "new.csv"):
        (tmp_path / name).write_text(f"rooms,age,price\n{rows}")
    monkeypatch.setitem(original.ORIGINAL, "cifar10", original.ORIGINAL["cifar10"]._replace(read=tiny_cifar10))
    monkeypatch.setattr(hub, "fetch", lambda name, **_: (tmp_path / f"{name.partition('.')[0]}.safetensors", {}))
    monkeypatch.setattr(training, "train", small_train)
    monkeypatch.setattr(training, "range_test", small_range_test)
    monkeypatch.setattr(training, "search", small_search)
    monkeypatch.setitem(zoo.MODELS, "resnet18", functools.partial(zoo.MODELS["resnet18"], width=4))
    write_weights()
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    return tmp_path


DOCUMENTS = [helpers.ROOT / "README.md", *sorted((helpers.ROOT / "docs").rglob("*.md"))]
DOCUMENTS = [path for path in DOCUMENTS if path.name not in MEASURED and commands(path)]


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_command_of_a_document_runs(document, folder, capsys):
    with helpers.empty_figures():
        for words in commands(document):
            if "torchvision" in words or (not HAS_TORCH and any(word.endswith(".pth") for word in words)):
                continue  # torchvision's own ResNet-18 is wider than ours here; tests/transforms compare with it
            code = cli.main(words)
            error = capsys.readouterr().err
            # A comparison of weights that differ ends with 1, and an examination with a serious finding.
            findings = words[0] in ("compare", "doctor")
            assert code == 0 or (code == 1 and findings and not error), (words, code, error)


def test_the_options_that_others_are_compared_with_exist():
    text = (helpers.ROOT / "docs" / "from_others.md").read_text(encoding="utf8")
    ours = [cell for line in text.splitlines() if line.startswith("| ") for cell in line.split(" | ")[1:2]]
    named = {option for cell in ours for option in re.findall(r"`(--[a-z.-]+)", cell)}
    assert len(named) > 30
    assert named <= set(hints.option_names(Config))


def test_every_config_names_its_own_command():
    for name, path in cli.configs.configs().items():
        text = cli.configs.docstring(path)
        found = re.findall(r"^    deepjax train (\w+)", text, re.MULTILINE)
        assert found, name
        assert set(found) == {name}
        for line in re.findall(r"^    deepjax (train .*)", text, re.MULTILINE):
            words = shlex.split(line)
            config = cli.configs.configured("train", path, words[1:])
            assert isinstance(config, Config)
