"""The configs that come with deepjax."""

import dataclasses
import json
import os
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import zoo
from deepjax.cli.configs import configs, docstring
from deepjax.config import Config, flatten
from deepjax.optimizers import make_optimizer, make_schedule

CONFIGS = configs()
DEEP = ("resnet1202", "preact1001", "stochastic_depth_1202")
CASES = {  # what each is for: classes, and the shape of an image
    "digits": (10, (8, 8, 1)),
    "mnist_resnet": (10, (28, 28, 1)),
    **{f"mnist_plain_{depth}": (10, (28, 28, 1)) for depth in (10, 100, 1000, 10000)},
    **{f"cifar10_{net}": (10, (32, 32, 3)) for net in (*DEEP, "resnet20")},
    "imagenet_resnet50": (1000, (224, 224, 3)),
    **dict.fromkeys(("mnist_convnet", "mnist_highway_100"), (10, (28, 28, 1))),
    **dict.fromkeys(("toy", "disc", "kernel_perceptron", "logistic_regression", "rbf_network"), (2, (2,))),
    **dict.fromkeys(("perceptron", "adaline", "softmax_regression"), (10, (8, 8, 1))),
    **dict.fromkeys(("housing", "linear_regression", "ridge_regression"), (1, (10,))),
    "photos": (3, (96, 96, 3)),
    "finetune": (3, (224, 224, 3)),
    "monster": (10, (32, 32, 3)),
    **{f"mnist_dropconnect_{drop}": (10, (28, 28, 1)) for drop in ("none", "dropout", "dropconnect")},
    **{
        f"cifar10_mlp_{net}": (10, (32, 32, 3))
        for net in ("linear", "two_layer", "eight_layer_gaussian", "eight_layer_he", "eight_layer_he_bn")
    },
    **{f"cifar100_{step}": (100, (32, 32, 3)) for step in ("base", "bn", "augmented", "regularized")},
}


def load(name):
    return runpy.run_path(str(CONFIGS[name]))["config"]


def test_every_config_is_known_here():
    assert set(CONFIGS) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_config_says_what_it_is_and_fits_together(name):
    config, (classes, shape) = load(name), CASES[name]
    assert isinstance(config, Config)
    doc = docstring(CONFIGS[name])
    assert f"deepjax train {name}" in doc
    model = zoo.create(config.model, num_classes=classes, **config.model_options)
    logits, _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, *shape)), train=False))
    assert logits.shape == (2, classes)
    schedule = make_schedule(config.optimizer, config.schedule, epochs=config.epochs, steps_per_epoch=100)
    make_optimizer(config.optimizer, schedule)


def test_cifar_schedule_is_the_papers():
    config = load("cifar10_resnet20")
    steps = -(-45_000 // config.batch_size)
    schedule = make_schedule(config.optimizer, config.schedule, epochs=config.epochs, steps_per_epoch=steps)
    assert abs(steps * config.epochs - 64_000) < steps
    for updates, rate in ((0, 0.1), (31_500, 0.1), (32_500, 0.01), (47_500, 0.01), (48_500, 0.001)):
        np.testing.assert_allclose(schedule(updates), rate, rtol=1e-6)


def differences(*names):
    """{field: values} where configs differ."""
    configs = [flatten(dataclasses.asdict(load(name))) for name in names]
    return {
        field: values
        for field in sorted(set().union(*configs))
        for values in [[config.get(field) for config in configs]]
        if any(value != values[0] for value in values)
    }


def test_drop_configs_differ_in_what_they_drop():
    found = differences(*(f"mnist_dropconnect_{drop}" for drop in ("none", "dropout", "dropconnect")))
    assert found == {"model_options.drop": [None, "dropout", "dropconnect"]}


def test_eight_layer_configs_differ_in_their_start_and_norm():
    found = differences(*(f"cifar10_mlp_eight_layer_{how}" for how in ("gaussian", "he", "he_bn")))
    found = {field: values for field, values in found.items() if not field.startswith("optimizer.")}  # searched
    assert found == {
        "model_options.init": ["gaussian", "he", "he"],
        "model_options.norm": [None, None, "batch"],
        "model_options.scale": [1e-4, None, None],
    }


def test_cifar100_configs_each_add_one_thing_to_the_lectures_base():
    def added(to):
        return {field: values[1] for field, values in differences("cifar100_base", f"cifar100_{to}").items()}

    assert added("bn") == {"model_options.norm": "batch"}
    assert added("augmented") == {
        "data.augment.flip": True,
        "data.center_crop": 32,
        "data.augment.translate": 5.0,
        "data.augment.scale": 0.2,
    }
    assert added("regularized") == {
        "label_smoothing": 0.1,
        "model_options.dropout": 0.5,
        "optimizer.weight_decay": 0.0025,
    }


def test_cifar100_rate_is_halved_every_50_epochs():
    config = load("cifar100_base")
    assert (config.batch_size, config.optimizer.name, config.optimizer.momentum) == (32, "momentum", 0.9)
    assert (config.data.validation, config.patience > 0) == (0.2, True)
    rate = make_schedule(config.optimizer, config.schedule, epochs=config.epochs, steps_per_epoch=10)
    rates = [float(rate(10 * epoch)) for epoch in (0, 49, 50, 99, 100, 149)]
    np.testing.assert_allclose(rates, [0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025], rtol=1e-6)


def test_the_lectures_small_experiments_have_its_settings():
    convnet, disc = load("mnist_convnet"), load("disc")
    assert (convnet.optimizer.name, convnet.batch_size, convnet.epochs) == ("sgd", 100, 10)
    assert convnet.data.validation == 0  # all 60,000 images are for training
    assert (disc.optimizer.name, disc.optimizer.learning_rate) == ("sgd", 0.1)
    assert {"depth": 1 + 16 + 1, "width": 32, "init": "gaussian_all"}.items() <= disc.model_options.items()
    assert load("mnist_highway_100").model_options == {"depth": 100}


def test_plain_configs_differ_in_depth_and_rate():
    found = differences(*(f"mnist_plain_{depth}" for depth in (10, 100, 1000, 10000)))
    assert set(found) == {"model_options.depth", "optimizer.learning_rate"}
    assert found["model_options.depth"] == [10, 100, 1000, 10000]


@pytest.mark.slow
@pytest.mark.parametrize("name", DEEP)
def test_a_thousand_layers_learn_in_twenty_steps_of_eight_small_images(tmp_path, name):
    """In a process of its own, with XLA's optimizer; the config's settings, but at a rate that such batches bear."""
    rng = np.random.default_rng(0)
    y = np.arange(180) % 2
    x = (rng.integers(0, 40, (180, 16, 16, 3)) + 215 * y[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "set.npz", x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    command = f"""train cifar10_{name} --data.name {tmp_path / "set.npz"} --data.validation {20 / 180} --batch-size 8
        --eval-batch-size 8 --epochs 1 --optimizer.learning-rate 5e-4 --schedule.warmup 0 --log-every 1
        --workdir {tmp_path / "run"}"""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-m", "deepjax", *command.split()], env=environment, text=True)
    assert done.returncode == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
