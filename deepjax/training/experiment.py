"""A config made real: the set, the model, the optimizer and the compiled steps."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import data, zoo
from deepjax.errors import InputError
from deepjax.optimizers import make_optimizer, make_schedule
from deepjax.training import sharding
from deepjax.training.evaluate import Evaluator
from deepjax.training.state import init_state
from deepjax.training.step import eval_step, train_step
from deepjax.training.workdir import key_of


def check(config):
    """Raises InputError for numbers that cannot work, before anything is loaded."""
    for field, least in (
        ("epochs", 1), ("batch_size", 1), ("eval_batch_size", 0), ("patience", 0), ("seed", 0), ("log_every", 1),
        ("checkpoint_every", 0), ("keep", 1),
    ):  # fmt: skip
        if getattr(config, field) < least:
            raise InputError(f"{field} {getattr(config, field)} must be at least {least}")
    if not 0 <= config.ema < 1:
        raise InputError(f"ema {config.ema} must be in [0, 1)")
    if not 0 <= config.label_smoothing <= 1:
        raise InputError(f"label_smoothing {config.label_smoothing} must be in [0, 1]")
    make_optimizer(
        config.optimizer,
        make_schedule(config.optimizer, config.schedule, epochs=config.epochs, steps_per_epoch=1000),
    )


def make_model(config, num_classes):
    """The network of a config for a set of `num_classes`. Raises InputError where they do not go together."""
    options = dict(config.model_options)
    if "dtype" in options:
        raise InputError("model_options dtype is set by --dtype")
    wanted = options.pop("num_classes", num_classes)
    if wanted != num_classes:
        raise InputError(
            f"model_options num_classes {wanted} differs from the {num_classes} classes of {config.data.name}; "
            f"leave it out"
        )
    dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
    return zoo.create(config.model, num_classes=num_classes, dtype=dtype, **options)


class Experiment(NamedTuple):
    """What the loop needs, and nothing that changes."""

    config: Any
    dataset: Any
    model: Any
    devices: list
    loader: Any  # of the training set
    step: Any  # jitted: (state, data, rows, key) -> (state, metrics)
    mean: np.ndarray  # f32[channels] of the training set
    std: np.ndarray
    place: Any  # rows -> rows on the devices, for step
    init: Any  # () -> a fresh TrainState on the devices
    schedule: Any  # updates -> learning rate

    def evaluator(self, split):
        """variables -> Evaluation on one of the dataset's splits; compiled once."""
        return make_evaluator(self.config, self.model, split, self.devices, self.mean, self.std)


def make_evaluator(config, model, split, devices, mean, std):
    """The Evaluator of a split, over devices, on which the variables must lie."""
    put = partial(sharding.replicate, devices=devices)
    # Rounded up to what the devices can share: unlike in training, the result does not depend on it.
    batch_size = -(-(config.eval_batch_size or config.batch_size) // len(devices)) * len(devices)
    loader = data.make_loader(split, config.data, batch_size, config.seed, train=False, put=put)

    def step(variables, whole, rows):
        batch = loader.fetch(whole, rows)
        return eval_step(variables, batch, model=model, preprocess=lambda _, image: data.standardize(image, mean, std))

    return Evaluator(sharding.parallel_eval(step, devices), loader, partial(sharding.split_rows, devices=devices))


def build(config, dataset, model, devices, mean, std):
    """The Experiment of a config.

    Raises InputError where the batch is larger than the set or cannot be split, or the input does not fit the model.
    """
    if config.patience and not len(dataset.validation):
        raise InputError(f"patience {config.patience} needs a validation set; give data.validation a fraction above 0")
    if config.batch_size > len(dataset.train):
        raise InputError(
            f"batch_size {config.batch_size} is larger than the training set of {len(dataset.train)} examples"
        )
    strategy = config.devices.strategy
    put = partial(sharding.replicate, devices=devices)
    loader = data.make_loader(dataset.train, config.data, config.batch_size, config.seed, train=True, put=put)
    schedule = make_schedule(config.optimizer, config.schedule, epochs=config.epochs, steps_per_epoch=loader.steps)
    optimizer = make_optimizer(config.optimizer, schedule)

    def augmented(key, image):
        return data.augment(key, data.standardize(image, mean, std), config.data.augment)

    pure_step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        preprocess=augmented,
        smoothing=config.label_smoothing,
        ema=config.ema,
        accumulate=config.optimizer.accumulate,
    )

    def step(state, whole, rows, key, axis_name=None):
        return pure_step(state, loader.fetch(whole, rows), key, axis_name=axis_name)

    def init():
        key = jax.random.fold_in(key_of(config), 2**31)  # apart from the steps' keys, folded from step numbers
        return put(init_state(model, optimizer, key, dataset.shape, ema=config.ema > 0))

    # Refuses an input that the model does not take.
    jax.eval_shape(lambda: model.init(key_of(config), jnp.zeros((1, *dataset.shape)), train=False))

    return Experiment(
        config=config,
        dataset=dataset,
        model=model,
        devices=devices,
        loader=loader,
        step=sharding.parallel_step(step, devices, strategy),
        mean=mean,
        std=std,
        place=partial(sharding.split_rows, devices=devices, strategy=strategy),
        init=init,
        schedule=schedule,
    )


def statistics(config, dataset):
    """(mean, std) per channel: the config's own, or those of the training set.

    Raises InputError where only one is given, or not one per channel.
    """
    given = config.data.mean, config.data.std
    if not any(given):
        return data.channel_statistics(dataset.train)
    if any(len(values) != dataset.shape[-1] for values in given) or min(given[1]) <= 0:
        raise InputError(
            f"data.mean {given[0]} and data.std {given[1]} must each have {dataset.shape[-1]} values, std above 0"
        )
    return np.asarray(given[0], np.float32), np.asarray(given[1], np.float32)
