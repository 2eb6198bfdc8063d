"""Figures that look inside a network: filters, saliency, guided-backprop, deconvnet, occlusion, receptive-field."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from deepjax import cli, weights, zoo
from deepjax.errors import InputError
from deepjax.figures import Settings, filters, find, looking, occlusion, receptive_field
from deepjax.figures.small_runs import Examples

MAPS = ("saliency", "guided-backprop", "deconvnet", "occlusion")


# All claims in one process with XLA's optimizer; the network is trained once.
PROGRAM = """
import functools, json, sys
from deepjax.figures import Settings, find, looking
looking.trained = functools.cache(looking.trained)
claims = {name: find(name).claim(find(name).numbers(Settings(1))) for name in sys.argv[1:]}
print(json.dumps(claims))
"""


@pytest.mark.slow
def test_the_claims_hold_for_another_seed():
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-c", PROGRAM, *MAPS, "filters", "receptive-field"]
    done = subprocess.run(command, env=environment, timeout=600, capture_output=True, text=True)
    claims = json.loads(done.stdout)
    assert len(claims) == 6
    assert all(holds for _, holds in claims.values()), claims


def test_the_claims_can_fail():
    numbers = looking.Numbers("", (), (), (), 3, 0.9, 0.5, 0.75)
    assert looking.claim(numbers).holds
    assert not looking.claim(dataclasses.replace(numbers, without_random=0.69)).holds
    assert not looking.claim(dataclasses.replace(numbers, without_marked=0.95, without_random=0.98)).holds
    found = filters.Numbers("", "", (), 0.5, (0.0, 0.1, -0.1))
    assert filters.claim(found).holds
    assert not filters.claim(dataclasses.replace(found, trained=0.3)).holds
    depths = {f"{depth}": depth for depth in (5, 10, 20)}
    theory = {name: (2 * depth / 3) ** 0.5 for name, depth in depths.items()}
    fields = receptive_field.Numbers("", {name: 2 * d + 1 for name, d in depths.items()}, theory, theory, {})
    assert receptive_field.claim(fields).holds
    linear = {name: depth / 3 for name, depth in depths.items()}
    assert not receptive_field.claim(dataclasses.replace(fields, deviations=linear)).holds


def test_the_largest_pixels_are_chosen():
    maps = np.array([[[3.0, 1.0], [2.0, 5.0]], [[0.0, 0.0], [0.0, 1.0]]])
    assert looking._largest(maps, 2).tolist() == [[[True, False], [False, True]], [[True, False], [False, True]]]


def test_a_pixel_has_the_mean_of_the_squares_that_cover_it():
    falls = np.random.default_rng(0).random((2, 3, 2))
    found = occlusion._per_pixel(falls, (8, 7), 4, 2)
    for n, y, x in np.ndindex(2, 8, 7):
        covering = [falls[n, i, j] for i in range(3) for j in range(2) if 0 <= y - 2 * i < 4 and 0 <= x - 2 * j < 4]
        assert found[n, y, x] == pytest.approx(np.mean(covering) if covering else 0)


def test_digits_keep_their_pixels_on_the_canvas():
    images = np.float32(np.random.default_rng(0).random((4, 8, 8, 1)))
    placed = looking._on_canvas(Examples(jax.numpy.asarray(images), np.arange(4)), jax.random.key(0))
    assert placed.inputs.shape == (4, 24, 24, 1)
    inputs = np.asarray(placed.inputs)
    assert abs(inputs.mean()) < 1e-5
    assert inputs.std() == pytest.approx(1, abs=1e-3)
    for image, canvas in zip(images, inputs):
        windows = np.lib.stride_tricks.sliding_window_view(canvas[..., 0], (8, 8)).reshape(-1, 64)
        assert max(np.corrcoef(image.ravel(), window)[0, 1] for window in windows) > 0.9999


def test_the_correlation_of_neighbors_is_that_of_a_smooth_kernel():
    wave = np.cos(2 * np.pi * np.arange(16) / 16)[:, None, None, None] * np.ones((1, 16, 1, 1))
    # Along the wave cos(2 pi / 16) over whole periods, without the step at the end; across it 1.
    along = (wave[1:] * wave[:-1]).sum()
    across = (wave[:, 1:] ** 2).sum()
    assert filters.correlation(wave) == pytest.approx((along + across) / (15 * 16 * 2) / (wave**2).mean())
    rng = np.random.default_rng(0)
    assert abs(filters.correlation(rng.normal(size=(7, 7, 3, 64)))) < 4 / np.sqrt(2 * 6 * 7 * 3 * 64)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("saliency", Settings(image="cat.png"), "cat.png is for a given network; add --model"),
        ("occlusion", Settings(model="resnet18"), "model resnet18 needs an image to look at; give --image FILE"),
        ("filters", Settings(weights="net.pth"), "weights net.pth are for a given network; add --model"),
        ("receptive-field", Settings(weights="net.pth"), "weights net.pth are for a given network; add --model"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, settings, message):
    with pytest.raises(InputError, match=message):
        find(name).numbers(settings)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """A small residual network with random weights, and an image."""
    folder = tmp_path_factory.mktemp("network")
    options = {"depth": 8, "width": 4}
    model = zoo.create("cifar_resnet", options, num_classes=10)
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), np.zeros((1, 32, 32, 3)), train=False)
    steps = weights.Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bilinear")
    source = {"network": "cifar_resnet", "options": options}
    weights.save_pretrained(folder / "net.safetensors", weights.Pretrained(model, variables, steps, None, source))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / "image.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MAPS, "filters", "receptive-field"])
def test_any_network_with_given_weights(name, weights_file, tmp_path, capsys):
    words = ["figure", name, "--model", str(weights_file / "net.safetensors"), "--out", str(tmp_path)]
    words += ["--image", str(weights_file / "image.png")] if name in MAPS else []
    assert cli.main(words) in (0, 1)  # weights are random, so that a claim need not hold
    assert not capsys.readouterr().err
    numbers = json.loads((tmp_path / f"{name}.json").read_text())["numbers"]
    assert "net.safetensors" in numbers["subject"]
    if name in MAPS:
        assert np.shape(numbers["maps"]) == (1, 32, 32)
    elif name == "receptive-field":
        assert list(numbers["theoretical"]) == ["stem", "stage1", "stage2", "stage3"]
