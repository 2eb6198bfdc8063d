"""The monster: a borrowed first layer, and its config, on a small folder."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from deepjax import cli, weights, zoo
from deepjax.cli.configs import configs, load
from deepjax.errors import InputError
from deepjax.runs.checkpoint import Checkpoints
from deepjax.training import fine_tuning
from helpers import draw_variables, random_arrays

KEY = jax.random.key(0)


def make_folder(folder, classes=("a", "b"), train=8, test=2, size=(40, 50)):
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", test)):
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (*size, 3), dtype=np.uint8)
                pixels[..., label % 3] += 100
                Image.fromarray(pixels).save(folder / split / name / f"{i}.jpg")
    return folder


def first_layer(seed=0):
    """What torchvision's AlexNet has as features.0, and a layer that the monster has no use for."""
    rng = np.random.default_rng(seed)
    return {
        "features.0.weight": rng.normal(0, 0.05, (64, 3, 11, 11)).astype(np.float32),
        "features.0.bias": rng.normal(0, 0.05, 64).astype(np.float32),
        "features.3.weight": np.zeros((192, 64, 5, 5), np.float32),
    }


def begin(tensors):
    model = zoo.create("monster", depth=1, width=8, num_classes=3)
    source = fine_tuning.Source("FILE", None, None, tensors, None)
    return model, fine_tuning.initial_variables(source, model, "monster", (32, 32, 3), KEY, reset_head=True)


@pytest.fixture(scope="module")
def begun():
    """(the source's tensors, the network, its variables at the start of training)."""
    return first_layer(), *begin(first_layer())


def test_parameters_are_counted_by_hand():
    model = zoo.create("monster")
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))["params"]
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in shapes.items()}
    norm = 2 * 64
    assert counts == {
        "features": 11 * 11 * 3 * 64 + 64,
        "converter": 9 * 64 * 64 + 64,
        "units": 16 * 2 * (9 * 64 * 64 + norm),
        "head": 64 * 10 + 10,
    }
    assert sum(counts.values()) == 1_244_618
    assert {leaf.shape[0] for leaf in jax.tree.leaves(shapes["units"])} == {16}  # one scan


def test_maps_and_the_minimum_size():
    def shapes(size, **options):
        model = zoo.create("monster", depth=2, **options)
        x = jnp.zeros((2, size, size, 3))
        return jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False)[0])

    maps = shapes(32, features_only=True)
    stages = ("features", "converter", "units")
    assert {name: leaf.shape for name, leaf in maps.items()} == dict.fromkeys(stages, (2, 7, 7, 64))
    assert shapes(32, return_logits=False).shape == (2, 64)
    assert shapes(7).shape == (2, 10)
    with pytest.raises(InputError, match="7x7"):
        shapes(6)
    for options, message in (({"depth": 0}, "depth 0"), ({"norm": "btch"}, "norm"), ({"dropout": 2.0}, "dropout")):
        with pytest.raises(InputError, match=message):
            zoo.create("monster", **options)


def test_it_computes_what_the_lectures_does():
    """AlexNet's convolution and ReLU, a converter without norm, x + b(x) without ReLU after the sum, mean, linear."""
    torch = pytest.importorskip("torch")
    f, tensor = torch.nn.functional, lambda leaf: torch.tensor(np.asarray(leaf))
    model = zoo.create("monster", depth=2, width=6, num_classes=3)
    x = random_arrays(1, (2, 32, 32, 3))[0]
    variables = draw_variables(model, x)
    p, moments = variables["params"], variables["batch_stats"]["units"]["unit"]["branch"]

    def conv(y, layer, **place):
        bias = tensor(layer["bias"]) if "bias" in layer else None
        return f.conv2d(y, tensor(layer["kernel"]).permute(3, 2, 0, 1), bias, **place)

    y = f.relu(conv(tensor(x).permute(0, 3, 1, 2), p["features"]["conv"], stride=4, padding=2))
    assert y.shape == (2, 64, 7, 7)
    y = f.relu(conv(y, p["converter"]["conv"], padding=1))
    for unit in (0, 1):
        branch, new = jax.tree.map(lambda leaf, unit=unit: leaf[unit], (p["units"]["unit"]["branch"], moments)), y
        for i in ("1", "2"):
            layer, seen = branch[0]["norm" + i], branch[1]["norm" + i]
            numbers = map(tensor, (seen["mean"], seen["var"], layer["scale"], layer["bias"]))
            new = f.batch_norm(conv(new, branch[0]["conv" + i], padding=1), *numbers)
            new = f.relu(new) if i == "1" else new
        y = y + new
    logits = f.avg_pool2d(y, 7).flatten(1) @ tensor(p["head"]["kernel"]) + tensor(p["head"]["bias"])
    ours = jax.jit(lambda v: model.apply(v, x, train=False))(variables)
    np.testing.assert_allclose(ours, logits.numpy(), rtol=1e-3, atol=1e-4)


def test_borrowing_takes_one_layer_and_draws_the_rest(begun):
    tensors, model, variables = begun
    drawn = jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False))(KEY)
    layer, drawn["params"]["features"] = variables["params"]["features"]["conv"], variables["params"]["features"]
    np.testing.assert_array_equal(layer["kernel"], tensors["features.0.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(layer["bias"], tensors["features.0.bias"])
    jax.tree.map(np.testing.assert_array_equal, dict(variables), dict(drawn))
    with pytest.raises(InputError, match=r"FILE lacks features\.0\.bias"):
        begin({name: value for name, value in tensors.items() if name != "features.0.bias"})
    with pytest.raises(InputError, match=r"\(11, 11, 3, 32\).*\(11, 11, 3, 64\)"):
        begin(tensors | {"features.0.weight": tensors["features.0.weight"][:32]})


def test_a_whole_alexnet_of_ours_will_do(tmp_path):
    alexnet = zoo.create("alexnet")
    shapes = jax.eval_shape(lambda: alexnet.init(KEY, jnp.zeros((1, 224, 224, 3)), train=False))
    variables = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0.25), leaf.shape), shapes)
    source = fine_tuning.Source("FILE", "alexnet", alexnet, variables, None)
    model = zoo.create("monster", depth=1, width=4)
    found = fine_tuning.initial_variables(source, model, "monster", (32, 32, 3), KEY, reset_head=True)
    found = jax.device_get(found["params"])
    assert (found["features"]["conv"]["kernel"] == 0.25).all()
    assert (found["head"]["kernel"] != 0.25).all()


def state_at(folder, step):
    checkpoints = Checkpoints(folder / "checkpoints")
    state = checkpoints.manager.restore(step)["state"]
    checkpoints.close()
    return jax.tree.map(np.asarray, state["params"])


def train(folder, *options):
    command = f"""train monster --data.name folder --data-dir {folder / "set"} --data.image-size 32
        --model-options depth=1 width=4 --batch-size 8 --epochs 4 --keep 10 --data.validation 0.25 --log-every 1
        --devices.count 1 --workdir {folder / "run"}"""
    return cli.main([*command.split(), *map(str, options)])


def test_features_are_frozen_to_the_bit_for_half_of_the_epochs(tmp_path, capsys):
    make_folder(tmp_path / "set")
    tensors = first_layer()
    save_file(tensors, tmp_path / "alexnet.safetensors")
    assert train(tmp_path, "--pretrained", tmp_path / "alexnet.safetensors") == 0
    kernel = tensors["features.0.weight"].transpose(2, 3, 1, 0)
    steps = 2  # in an epoch
    for epoch in (1, 2):
        params = state_at(tmp_path / "run", epoch * steps)
        np.testing.assert_array_equal(params["features"]["conv"]["kernel"], kernel)
        np.testing.assert_array_equal(params["features"]["conv"]["bias"], tensors["features.0.bias"])
    first, second, third = (state_at(tmp_path / "run", epoch * steps) for epoch in (1, 2, 3))
    assert (first["converter"]["conv"]["kernel"] != second["converter"]["conv"]["kernel"]).mean() > 0.5
    assert (third["features"]["conv"]["kernel"] != kernel).mean() > 0.5
    record = json.loads((tmp_path / "run" / "data.json").read_text())
    np.testing.assert_allclose(record["mean"], weights.Preprocessing(256, 224).mean, rtol=1e-6)
    out = capsys.readouterr().out
    assert "monster" in out
    (tmp_path / "alexnet.safetensors").unlink()  # a run that goes on needs it no more
    assert train(tmp_path, "--pretrained", tmp_path / "alexnet.safetensors") == 0
    assert "finished" in capsys.readouterr().out


def test_without_weights_nothing_is_frozen_or_written(tmp_path, capsys):
    make_folder(tmp_path / "set", train=4)
    for options, message in (
        ((), "would keep random numbers"),
        (("--pretrained", tmp_path / "none.pth"), "does not exist"),
        (("--pretrained", tmp_path), "holds no run"),
        (("--pretrained", "alexnt"), "no network; did you mean 'alexnet'"),
    ):
        assert train(tmp_path, *options) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert message in err
    assert not (tmp_path / "run").exists()


def test_the_config_is_the_lectures():
    from deepjax.training.freezing import frozen_optimizer

    config = load(configs()["monster"])
    assert (config.optimizer.name, config.optimizer.learning_rate, config.epochs) == ("sgd", 0.01, 100)
    assert (config.data.image_size, config.schedule.name, config.model_options) == (32, "constant", {})
    for epochs in (100, 7):
        groups = frozen_optimizer(dataclasses.replace(config, pretrained="x", epochs=epochs)).groups
        assert groups == {"features/*": {"frozen_until": epochs / 2}}
