"""Predictions by pretrained networks: preprocessing held against torchvision, crops, names, the command line."""

import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import helpers
from deepjax import cli, data, weights, zoo
from deepjax.errors import InputError
from deepjax.inference.predict import class_names, load_classifier, predict
from deepjax.weights.files import save_state_dict


@pytest.fixture(scope="module")
def torchvision():
    return helpers.import_torchvision()


def photograph(path, width, height, seed=0):
    """Smooth colours and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9 + y / 17), np.cos(y / 11), np.sin((x - y) / 23)], -1)
    pixels = 127 + 80 * waves + rng.normal(0, 25, waves.shape)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


SIZES = [(61, 83), (83, 61), (40, 40), (36, 50), (37, 36), (301, 75)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES)
def test_crops_are_torchvisions(torchvision, tmp_path, size, interpolation):
    from torchvision.transforms import functional as F
    from torchvision.transforms.functional import InterpolationMode

    path = photograph(tmp_path / "photo.png", *size)
    image = F.resize(Image.open(path), 36, InterpolationMode(interpolation))
    cut = data.resizing(36, interpolation)
    expected = {1: [F.center_crop(image, 31)], 5: F.five_crop(image, 31), 10: F.ten_crop(image, 31)}
    for count, crops in expected.items():
        ours = data.read_crops(path, cut, (31, 31, 3), count)
        assert ours.dtype == np.uint8
        assert np.abs(ours.astype(int) - np.stack([np.asarray(crop, int) for crop in crops])).max() <= 1


def test_a_whole_recipe_is_torchvisions(torchvision, tmp_path):
    """Files to network input: what `resnet18`'s and `efficientnet_b0`'s own transforms give."""
    path = photograph(tmp_path / "photo.jpg", 333, 250)
    for name in ("resnet18", "efficientnet_b0"):
        steps = zoo.preprocessing(name)
        transform = torchvision.models.get_model_weights(name).IMAGENET1K_V1.transforms()
        theirs = transform(Image.open(path)).permute(1, 2, 0).numpy()
        standardizer = data.Standardizer("channel", *(np.array(v, np.float32) for v in (steps.mean, steps.std)))
        cut = data.resizing(steps.resize, steps.interpolation)
        ours = standardizer.apply(data.read_crops(path, cut, (steps.crop, steps.crop, 3)))[0]
        np.testing.assert_allclose(ours, theirs, atol=1.01 / 255 / 0.224)


def test_class_names_are_torchvisions(torchvision):
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    assert list(class_names(1000)) == _IMAGENET_CATEGORIES
    assert class_names(3) == ("0", "1", "2")


def test_crops_in_their_order(tmp_path):
    """Of a picture whose colours tell where a pixel lies."""
    y, x = np.mgrid[:40, :60]
    Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8)).save(tmp_path / "a.png")
    crops = data.read_crops(tmp_path / "a.png", data.resizing(40, "bilinear"), (10, 10, 3), 10)
    corners = [tuple(int(v) for v in crop[0, 0, :2]) for crop in crops]
    assert corners[:5] == [(0, 0), (50, 0), (0, 30), (50, 30), (25, 15)]
    # Of the mirror image, whose corners are the others.
    mirrored = [tuple(int(v) for v in crop[0, -1, :2]) for crop in crops[5:]]
    assert mirrored == [(50, 0), (0, 0), (50, 30), (0, 30), (25, 15)]
    with pytest.raises(InputError, match="crops 3 must be 1"):
        data.read_crops(tmp_path / "a.png", data.resizing(40, "bilinear"), (10, 10, 3), 3)
    with pytest.raises(InputError, match="resize 8"):
        data.read_crops(tmp_path / "a.png", data.resizing(8, "bilinear"), (10, 10, 3))
    with pytest.raises(InputError, match="did you mean 'bicubic'"):
        data.read_crops(tmp_path / "a.png", data.resizing(40, "bicubik"), (10, 10, 3))


def test_a_photographs_centre_is_as_in_training(tmp_path):
    path = photograph(tmp_path / "a.png", 70, 90)
    one = data.read_image(path, (32, 32, 3), "photograph")
    five = data.read_crops(path, data.photograph_crops, (32, 32, 3), 5)
    np.testing.assert_array_equal(five[4], one)
    np.testing.assert_array_equal(data.read_crops(path, data.photograph_crops, (32, 32, 3))[0], one)
    whole = np.asarray(Image.open(path).resize((37, 47), Image.Resampling.BILINEAR), int)  # 36.57 x 47.02
    assert np.abs(five[0][:8, :8].astype(int) - whole[:8, :8]).mean() < 12
    assert np.abs(five[3][-8:, -8:].astype(int) - whole[-8:, -8:]).mean() < 12
    assert np.abs(five[3][-8:, -8:].astype(int) - whole[:8, :8]).mean() > 20


NAME, OPTIONS = "cifar_resnet", {"depth": 8, "width": 2}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """(folder, Pretrained): FOLDER/net.safetensors in our layout, with names and a recipe, and photographs."""
    folder = tmp_path_factory.mktemp("predict")
    network = zoo.create(NAME, num_classes=4, **OPTIONS)
    variables = helpers.draw_variables(network, jnp.zeros((1, 24, 24, 3)))
    steps = weights.Preprocessing(28, 24, (0.5, 0.4, 0.3), (0.2, 0.3, 0.1), "bicubic")
    found = weights.Pretrained(
        network, variables, steps, ("oak", "elm", "ash", "yew"), {"network": NAME, "options": OPTIONS}
    )
    weights.save_pretrained(folder / "net.safetensors", found)
    (folder / "photos").mkdir()
    for i, size in enumerate(((50, 40), (30, 60), (33, 33))):
        photograph(folder / "photos" / f"{i}.jpg", *size, seed=i)
    return folder, found


def by_hand(found, path, count):
    steps = found.preprocessing
    crops = data.read_crops(path, data.resizing(steps.resize, steps.interpolation), (24, 24, 3), count)
    x = (crops / 255 - np.array(steps.mean)) / np.array(steps.std)
    padded = np.zeros((10, 24, 24, 3), np.float32)  # one program for any number of crops
    padded[:count] = x
    apply = jax.jit(partial(found.network.apply, train=False))
    logits = np.asarray(apply(found.variables, padded), np.float64)[:count]
    exps = np.exp(logits - logits.max(-1, keepdims=True))
    return (exps / exps.sum(-1, keepdims=True)).mean(0)


@pytest.mark.parametrize("crops", [1, 10])
def test_predict_by_a_weights_file(pretrained, capsys, crops):
    folder, found = pretrained
    command = ["predict", NAME, "--weights", folder / "net.safetensors", folder / "photos", "--crops", crops, "--json"]
    assert cli.main(list(map(str, command))) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [Path(row["image"]).name for row in rows] == ["0.jpg", "1.jpg", "2.jpg"]
    for row in rows:
        told = {one["class"]: one["probability"] for one in row["classes"]}
        expected = dict(zip(found.classes, by_hand(found, Path(row["image"]), crops), strict=True))
        assert told.keys() == expected.keys()
        assert [one["class"] for one in row["classes"]] == sorted(expected, key=expected.get, reverse=True)
        for name, probability in told.items():
            assert abs(probability - expected[name]) < 1e-5


def test_many_images_in_small_batches_are_the_same(pretrained):
    folder, _ = pretrained
    classifier = load_classifier(NAME, folder / "net.safetensors")
    one, other = (predict(classifier, [folder / "photos"], crops=5, batch_size=size) for size in (1, 64))
    for a, b in zip(one, other, strict=True):
        assert a.classes == b.classes
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-6)


def test_torchs_layout_has_imagenets_names_and_its_own_number_of_classes(tmp_path):
    for count in (1000, 7):
        network = zoo.create("resnet18", num_classes=count)
        shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))  # noqa: B023
        variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
        save_state_dict(tmp_path / "net.safetensors", weights.to_torch(network, variables))
        found = load_classifier("resnet18", tmp_path / "net.safetensors")
        assert found.classes == class_names(count)
        assert found.shape == (224, 224, 3)
        assert found.model.num_classes == count


def test_the_last_layer_of_every_torchvision_network_is_called_head(torchvision):
    for name in torchvision.models.list_models(torchvision.models):
        if name in zoo.MODELS:
            assert "head" in zoo.create(name).torch_names(), name


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["resnt18", "x.png"], "did you mean 'resnet18'"),
        (["resnt18", "--weights", "net.safetensors", "x.png"], "did you mean 'resnet18'"),
        (["resnet18", "--weights", "none.safetensors", "x.png"], "none.safetensors does not exist"),
        (["resnet18", "--weights", "net.safetensors", "x.png"], "cifar_resnet"),
        (["cifar_resnet", "--weights", "net.safetensors"], "predict needs images"),
        (["cifar_resnet", "--weights", "net.safetensors", "x.png", "--crops", "3"], "3"),
        (["cifar_resnet", "--weights", "net.safetensors", "x.png", "--top", "0"], "top 0"),
        (["cifar_resnet", "x.png"], "there are no pretrained weights for 'cifar_resnet'"),
        (["nowhere", "x.png"], "nowhere is no folder of a run, no file of weights and no network"),
    ],
)
def test_bad_input_is_one_line(pretrained, command, message, capsys, monkeypatch):
    monkeypatch.chdir(pretrained[0])
    assert cli.main(["predict", *command]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_an_image_that_cannot_be_read_does_not_end_the_others(pretrained, capsys):
    folder, _ = pretrained
    photo = str(folder / "photos" / "0.jpg")
    command = ["predict", NAME, "--weights", str(folder / "net.safetensors"), photo, str(folder / "none.jpg")]
    assert cli.main(command) == 1
    out, err = capsys.readouterr()
    assert photo in out
    assert "none.jpg" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "net.safetensors: params/head/bias: 4 of 4 values are not finite"),
        (3e38, "the outputs for image .*0.jpg: 4 of 4 values are not finite"),
    ],
)
def test_numbers_that_are_not_finite_are_no_prediction(tmp_path, pretrained, capsys, value, message):
    folder, found = pretrained
    variables = jax.tree.map(np.array, found.variables)
    variables["params"]["head"]["bias"][:] = value
    variables["params"]["head"]["kernel"][:] = 3e38
    weights.save_pretrained(tmp_path / "net.safetensors", dataclasses.replace(found, variables=variables))
    command = ["predict", NAME, "--weights", tmp_path / "net.safetensors", folder / "photos", "--json"]
    assert cli.main(list(map(str, command))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(message, err)
