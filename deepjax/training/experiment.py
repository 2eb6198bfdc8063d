"""A config made real: the set, the model, the optimizer and the compiled steps."""

import contextlib
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from deepjax import data, init_from_data
from deepjax.config import Augment
from deepjax.config import check as check_fields
from deepjax.errors import InputError
from deepjax.optimizers import make_optimizer, make_schedule
from deepjax.runs.workdir import Statistics, key_of, read_statistics
from deepjax.training import averaging, freezing, pretrained, sharding
from deepjax.training.evaluate import Evaluator
from deepjax.training.run import make_model
from deepjax.training.state import init_state, state_shapes
from deepjax.training.step import eval_step, train_step


def check(config):
    """Raise InputError for fields out of range, or that contradict each other, before anything is loaded."""
    check_fields(config)
    averaging.check(config)
    freezing.check(config)
    if config.pretrained and config.init != "model":
        raise InputError(
            f"init {config.init} and pretrained {config.pretrained} both set the initial parameters; leave one out"
        )
    times = {"epochs": config.epochs, "steps_per_epoch": 1000}
    rate = make_schedule(config.optimizer, config.schedule, **times)
    make_optimizer(freezing.frozen_optimizer(config), rate, config.schedule, **times)


def with_absolute_paths(config):
    """So that `deepjax eval` finds the data from any folder."""
    path, data_dir = Path(config.data.name).expanduser(), config.data_dir
    if (path / "train").is_dir() or (path.suffix == ".npz" and path.exists()):
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, name=str(path.absolute())))
    if config.pretrained and (source := Path(config.pretrained).expanduser()).exists():
        config = dataclasses.replace(config, pretrained=str(source.absolute()))
    return dataclasses.replace(config, data_dir=str(Path(data_dir).expanduser().absolute()) if data_dir else "")


class Experiment(NamedTuple):
    """What the loop needs, and nothing that changes."""

    config: Any
    dataset: Any
    model: Any
    devices: list
    loader: Any  # of the training set
    step: Any  # jitted: (state, data, rows, key) -> (state, metrics)
    statistics: Statistics  # of the training set
    place: Any  # rows -> rows on the devices, for step
    init: Any  # (say=None) -> a fresh TrainState on the devices; `say` is told how `init_from_data.auto` chose
    shapes: Any  # of that TrainState
    schedule: Any  # updates -> learning rate

    def evaluator(self, split):
        """variables -> Evaluation on one of the dataset's splits; compiled once."""
        return make_evaluator(self.config, self.model, split, self.devices, self.statistics.standardizer)

    def moment_estimator(self):
        """variables -> the same with batch norms' moments estimated on the training set."""
        return make_moment_estimator(
            self.config,
            self.model,
            self.dataset.train,
            self.devices,
            self.statistics.standardizer,
            loader=self.loader,
        )


def make_evaluator(config, model, split, devices, standardizer):
    """The Evaluator of a split, over devices, on which the variables must lie."""
    put = partial(sharding.replicate, devices=devices)
    # Rounded up to what the devices can share: unlike in training, the result does not depend on it.
    batch_size = -(-(config.eval_batch_size or config.batch_size) // len(devices)) * len(devices)
    loader = data.make_loader(split, config.data, batch_size, config.seed, train=False, put=put)

    def step(variables, whole, rows):
        batch = loader.fetch(whole, rows)
        return eval_step(variables, batch, model=model, preprocess=lambda _, image: standardizer.apply(image))

    return Evaluator(sharding.parallel_eval(step, devices), loader, partial(sharding.split_rows, devices=devices))


def make_moment_estimator(config, model, split, devices, standardizer, *, loader=None):
    """The MomentEstimator of a training set, by jit over devices; without augmentation, in batches of batch_size.

    `loader`: of that set, used where it gives images as they are, so that they need not lie on the device twice.
    """
    if loader is None or config.data.augment.area is not None:
        plain = dataclasses.replace(config.data, augment=Augment())
        put = partial(sharding.replicate, devices=devices)
        loader = data.make_loader(split, plain, config.batch_size, config.seed, train=True, put=put)
    key = jax.random.fold_in(key_of(config), 2**31 + 1)  # apart from the parameters' and the steps'

    def as_is(_, image):
        return standardizer.apply(image)

    def step(variables, whole, rows, count):
        batch, own = loader.fetch(whole, rows), jax.random.fold_in(key, count)
        return averaging.moments_step(variables, batch, own, count, model=model, preprocess=as_is)

    place = partial(sharding.split_rows, devices=devices)
    return averaging.MomentEstimator(sharding.parallel_moments(step, devices), loader, place)


def load(config, folder, *, schedule=None):
    """The Experiment of a config whose workdir is `folder`, its data loaded; writes nothing. `schedule` as for `build`.

    Raises InputError where anything does not fit: see `check`, `data.load`, `build`.
    """
    dataset = data.load(config.data, config.data_dir, config.seed)
    devices = sharding.select_devices(config.devices.count, config.batch_size)
    model = make_model(config, len(dataset.classes))
    source = variables = None
    saved = any(path.name.isdigit() for path in (Path(folder) / "checkpoints").glob("*"))  # whole, not half written
    if config.pretrained and not saved:  # a run that goes on needs it no more
        source = pretrained.read(config.pretrained, config.model)
        key, anew = _parameters_key(config), config.reset_head
        variables = pretrained.begin(source, model, config.model, dataset.shape, key, reset_head=anew)
    known = read_statistics(folder) or statistics(config, dataset, source)
    return build(config, dataset, model, devices, known, schedule=schedule, variables=variables)


def build(config, dataset, model, devices, statistics, *, schedule=None, variables=None):
    """The Experiment of a config. `schedule` (updates -> learning rate) takes the place of the config's, if given.

    `variables`: with which the model begins, if not as config.init says.

    Raises InputError where the batch is larger than the set or cannot be split, or the input does not fit the model.
    """
    if config.patience and not len(dataset.validation):
        raise InputError(f"patience {config.patience} needs a validation set; give data.validation a fraction above 0")
    if config.batch_size > len(dataset.train):
        raise InputError(
            f"batch_size {config.batch_size} is larger than the training set of {len(dataset.train)} examples; set "
            f"batch_size {len(dataset.train)} or less"
        )
    strategy = config.devices.strategy
    put = partial(sharding.replicate, devices=devices)
    loader = data.make_loader(dataset.train, config.data, config.batch_size, config.seed, train=True, put=put)
    times = {"epochs": config.epochs, "steps_per_epoch": loader.steps}
    schedule = schedule or make_schedule(config.optimizer, config.schedule, **times)
    optimizer = make_optimizer(freezing.frozen_optimizer(config), schedule, config.schedule, **times)

    augment, shape = config.data.augment, statistics.standardizer.output_shape(dataset.shape)

    def augmented(key, image):
        image = data.change_colors(key, image, augment, statistics.lighting)
        return data.augment(key, statistics.standardizer.apply(image), augment)

    def mix(key, image, label, mask):
        return data.mix(key, image, label, mask, augment, len(dataset.classes))

    pure_step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        preprocess=augmented,
        mix=mix if augment.mixup or augment.cutmix else None,
        smoothing=config.label_smoothing,
        ema=config.ema,
        accumulate=config.optimizer.accumulate,
        kept=freezing.kept_moments(config, loader.steps),
    )

    def step(state, whole, rows, key, axis_name=None):
        return pure_step(state, loader.fetch(whole, rows), key, axis_name=axis_name)

    def init(say=None):
        key, start = _parameters_key(config), variables
        if config.init != "model":
            start = _variables_from_data(config, model, key, loader, statistics.standardizer, say)
        return put(init_state(model, optimizer, key, shape, variables=start, **averages))

    averages = {"ema": config.ema > 0, "swa": config.swa_start > 0}
    # Refuses an input that the model does not take, and groups of parameters that it does not have.
    shapes = state_shapes(model, optimizer, shape, **averages)

    return Experiment(
        config=config,
        dataset=dataset,
        model=model,
        devices=devices,
        loader=loader,
        step=sharding.parallel_step(step, devices, strategy),
        statistics=statistics,
        place=partial(sharding.split_rows, devices=devices, strategy=strategy),
        init=init,
        shapes=shapes,
        schedule=schedule,
    )


def _parameters_key(config):
    return jax.random.fold_in(key_of(config), 2**31)  # apart from the steps' keys, folded from step numbers


def _variables_from_data(config, model, key, loader, standardizer, say):
    """Variables by `config.init` from the first batch of the first epoch, without augmentation."""
    with contextlib.closing(loader.epoch(0)) as batches:
        batch = jax.device_get(loader.fetch(loader.data, next(batches)))
    x = standardizer.apply(batch["image"][batch["mask"]])
    if config.init != "auto":
        return getattr(init_from_data, config.init)(model, key, x, train=True)
    return init_from_data.auto(model, key, x, report=lambda choice: say and say(f"init: {choice}"), train=True)


def statistics(config, dataset, source=None):
    """The Statistics of the training set, as far as the config asks for them.

    Mean and std may be the config's own, or those of `source`, a pretrained.Source, for whose network they are right.

    Raises InputError where only one of these is given, or not one per channel; where `source` has another standardize.
    """
    wanted, given = config.data, (config.data.mean, config.data.std)
    lighting = data.lighting_components(dataset.train) if wanted.augment.lighting else None
    if not any(given):
        return Statistics(_standardizer(wanted, dataset, source), lighting)
    if any(len(values) != dataset.shape[-1] for values in given) or min(given[1]) <= 0:
        raise InputError(
            f"data.mean {given[0]} and data.std {given[1]} must each have {dataset.shape[-1]} values, std above 0"
        )
    return Statistics(data.Standardizer("channel", *(np.asarray(values, np.float32) for values in given)), lighting)


def _standardizer(wanted, dataset, source):
    if source is None:
        return data.Standardizer.fit(wanted.standardize, dataset.train, epsilon=wanted.epsilon, limits=wanted.limits)
    if source.standardizer.kind != wanted.standardize:
        raise InputError(
            f"data.standardize {wanted.standardize} is not what pretrained {source.where} has been trained with; set "
            f"data.standardize {source.standardizer.kind}"
        )
    return source.standardizer
