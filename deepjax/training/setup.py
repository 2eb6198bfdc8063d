"""From a config to everything that a run needs, once and in order: `check`, then `setup`."""

import contextlib
import dataclasses
import itertools
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deepjax import data, init_from_data, tasks, zoo
from deepjax.config import Augment, Config
from deepjax.config import check as check_fields
from deepjax.data.sources.folder import is_folder
from deepjax.errors import InputError
from deepjax.optimizers import check_optimizer, check_schedule, make_optimizer, make_schedule, make_times
from deepjax.parallel import Mesh, make_mesh
from deepjax.runs.workdir import Statistics, key_of, read_statistics
from deepjax.trace import call_arguments, input_errors
from deepjax.training import averaging, distillation, fine_tuning, freezing, profile
from deepjax.training.evaluator import Evaluator
from deepjax.training.model import make_model
from deepjax.training.state import init_state, state_shapes
from deepjax.training.step import apply_model, eval_step, loss_function, train_step
from deepjax.weights import is_path

PARAMETERS, MOMENTS = 2**31, 2**31 + 1  # folded into the run's key; the steps' keys are folded from step numbers
CLOSED_FORM = ("least_squares", "rbf")  # initializations that need targets
PRETRAINING_IMAGES = 8192  # of those and init autoencoder and rbm, which learn from more than a batch


def check(config, model=None):
    """Return the Linen module of a config, before its number of outputs is known.

    Raise InputError for fields that are wrong or contradict each other. Nothing is loaded.

    Args:
      config: the experiment.
      model: a Linen module in place of the zoo's, which is returned as it is.
    """
    check_fields(config)
    tasks.find(config.task)
    network = make_model(config, None, model)
    averaging.check(config)
    distillation.check(config)
    freezing.check(config)
    if config.profile:
        profile.steps_of(config.profile)
    check_schedule(config.optimizer, config.schedule, config.epochs)
    check_optimizer(freezing.frozen_optimizer(config), config.schedule, config.epochs)
    if config.pretrained and config.init != "model":
        raise InputError(
            f"init {config.init} and pretrained {config.pretrained} both set the initial parameters; leave one out"
        )
    return network


def with_absolute_paths(config):
    """Return the config with absolute paths, so that `deepjax eval` finds the data from any folder."""
    path, data_dir = Path(config.data.name).expanduser(), config.data_dir
    if is_folder(config.data.name) or (path.suffix.lower() in (".npz", ".csv") and path.exists()):
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, name=str(path.absolute())))
    for name in ("pretrained", "teacher"):
        if is_path(word := getattr(config, name)):
            config = dataclasses.replace(config, **{name: str(Path(word).expanduser().absolute())})
    return dataclasses.replace(config, data_dir=str(Path(data_dir).expanduser().absolute()) if data_dir else "")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a run needs and does not change."""

    config: Config
    mesh: Mesh
    dataset: data.Dataset
    statistics: Statistics  # of the training set
    model: Any  # Linen module
    task: Any  # see `deepjax.tasks`
    loader: Any  # of the training set
    schedule: Any  # updates -> learning rate
    optimizer: Any  # an Optax transformation
    variables: Any = None  # pretrained ones to begin with; None: as config.init determines
    teacher: Any = None  # variables of the teacher, on the devices, if there is one

    @cached_property
    def abstract_state(self):
        """Shapes of the TrainState, replicated on the devices, into which a checkpoint is restored.

        Raise InputError for inputs that the model does not accept, and for groups of parameters that it does not have.
        """
        shapes = state_shapes(self.model, self.optimizer, **self._state_options)
        place = partial(jax.ShapeDtypeStruct, sharding=self.mesh.replicated)
        return jax.tree.map(lambda leaf: place(leaf.shape, leaf.dtype), shapes)

    @property
    def data(self):
        """What the training step receives beside the state and the rows: the loader's data, the teacher's variables."""
        return self.loader.data, {} if self.teacher is None else {"teacher": self.teacher}

    @property
    def times(self):
        """The batches and updates of the run: `optimizers.Times`."""
        return make_times(self.config.optimizer, self.config.epochs, self.loader.steps)

    def initial_state(self, log):
        """Return a new TrainState on the devices; `log` receives what `init_from_data.auto` chose.

        Raise InputError if the pretrained weights were not read, since the run seemed to have a checkpoint.
        """
        if self.config.pretrained and self.variables is None:
            raise InputError(
                f"pretrained {self.config.pretrained} was not read, because the run has checkpoints, but none of them "
                f"can be restored; use another --workdir to start again"
            )
        key, variables = jax.random.fold_in(key_of(self.config), PARAMETERS), self.variables
        if self.config.init != "model":
            variables = self._variables_from_data(key, log)
        state = init_state(self.model, self.optimizer, key, variables=variables, **self._state_options)
        return self.mesh.replicate(state)

    @property
    def _state_options(self):
        inputs, _ = jax.eval_shape(self.task.prepare, self.task.abstract_batch(self.dataset, 1))
        averages = {"ema": self.config.ema > 0, "swa": self.config.swa_start > 0}
        return {"shape": inputs.shape[1:], "dtype": inputs.dtype, **averages}

    def _variables_from_data(self, key, log):
        """Return variables by `config.init` from the first batches of the first epoch, without augmentation.

        Pretraining and least squares take PRETRAINING_IMAGES, the others one batch.
        """
        loader, init, options = self.loader, self.config.init, call_arguments(self.model, train=True)
        several = init in ("autoencoder", "rbm", *CLOSED_FORM)
        count = -(-PRETRAINING_IMAGES // self.config.batch_size) if several else 1
        with contextlib.closing(loader.epoch(0)) as batches:
            taken = [jax.device_get(loader.fetch(loader.data, rows)) for rows in itertools.islice(batches, count)]
        parts = [self.task.prepare(jax.tree.map(lambda rows, b=b: rows[b["mask"]], b)) for b in taken]
        x, targets = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        if init in CLOSED_FORM:
            if not hasattr(self.task, "numbers"):
                raise InputError(f"init {init}: task {self.config.task} has no numbers to fit; leave it out")
            outputs = tasks.find(self.config.task).outputs(self.dataset.classes, self.dataset.shape)
            options |= {"numbers": self.task.numbers(targets, outputs)}
            options |= {"ridge": self.config.optimizer.weight_decay * len(x) / 2}  # the loss is a mean of squares
        if init != "auto":
            return getattr(init_from_data, init)(self.model, key, x, **options)
        return init_from_data.auto(self.model, key, x, report=lambda choice: log(f"init: {choice}"), **options)

    @cached_property
    def step(self):
        """Return the training step, jitted for the devices: (state, data, rows, key) -> (state, metrics)."""
        return self.mesh.step(self.pure_step)

    def pure_step(self, state, whole, rows, key, axis_name=None):
        """Return (state, metrics) after the batch that `rows` selects of `whole`, which is `data`. Pure."""
        examples, teacher = whole
        return train_step(
            state,
            self.loader.fetch(examples, rows) | teacher,
            key,
            model=self.model,
            task=self.task,
            optimizer=self.optimizer,
            schedule=self.schedule,
            ema=self.config.ema,
            updates_before=self.times.updates_before,
            frozen_moments=freezing.frozen_moments(self.config, self.times),
            axis_name=axis_name,
        )

    def with_numbers(self, learning_rate, weight_decay):
        """Return the Experiment with these arrays f32[], which may be traced, in place of the optimizer's numbers.

        Groups of parameters must not have such numbers of their own.
        """
        optimizer, schedule = freezing.frozen_optimizer(self.config), self.config.schedule

        def rates(count):
            return learning_rate / optimizer.learning_rate * self.schedule(count)

        lengths = {"epochs": self.config.epochs, "steps_per_epoch": self.loader.steps}
        chain = make_optimizer(optimizer, rates, schedule, weight_decay=weight_decay, **lengths)
        return dataclasses.replace(self, schedule=rates, optimizer=chain)

    def first_loss(self, state, batch, key):
        """Return the function params -> (loss, other results) of the first training step."""
        frozen = freezing.keep_moments(freezing.frozen_moments(self.config, self.times), 0)
        return loss_function(state, batch, key, self.model, self.task, None, frozen)

    def evaluator(self, split):
        """Return the function variables -> evaluation on one of the data set's splits, compiled at its first call."""
        return make_evaluator(self.config, self.model, self.task, split, self.mesh)

    def moment_estimator(self):
        """Return the function variables -> the same with batch norms' moments estimated on the training set."""
        loader = self.loader if self.config.data.augment.area is None else None
        return make_moment_estimator(self.config, self.model, self.task, self.dataset.train, self.mesh, loader)


def setup(config, network, folder, *, dataset=None, schedule=None) -> Experiment:
    """Return the Experiment of a config whose run is in `folder`. Reads data and pretrained weights, writes nothing.

    Args:
      config: has passed `check`.
      network: result of `check`. A network of the zoo gets as many outputs as the data set needs.
      folder: folder of the run. A run with a checkpoint uses the recorded statistics and reads no pretrained weights.
        None: a new run, which has no folder yet.
      dataset: a `data.Dataset` in place of the one that the config names.
      schedule: updates -> learning rate, in place of the config's.

    Raises:
      InputError: the parts do not fit each other: data, model, batch size, devices, pretrained weights.
    """
    mesh = make_mesh(config.devices.count, config.devices.strategy, config.batch_size)
    dataset = data.load(config.data, config.data_dir, config.seed, given=dataset)
    data.check_balance(config.data, dataset.train.labels)
    task = tasks.find(config.task)
    is_given = config.model not in zoo.MODELS
    if not is_given:
        network = network.clone(num_classes=task.outputs(dataset.classes, dataset.shape))
    source = variables = None
    if config.pretrained and not (folder and has_checkpoint(folder)):
        only = config.pretrained_layers
        source = fine_tuning.read(config.pretrained, config.model, only)
        key, reset = jax.random.fold_in(key_of(config), PARAMETERS), config.reset_head
        shape = data.cropped_shape(dataset.shape, config.data.center_crop)
        variables = fine_tuning.initial_variables(
            source, network, config.model, shape, key, reset_head=reset, only=only
        )
    statistics = (folder and read_statistics(folder)) or task.fit_statistics(config, dataset, source)
    teacher = distillation.read(config.teacher) if config.teacher else None
    experiment = assemble(
        config, mesh, dataset, statistics, network, schedule=schedule, variables=variables, teacher=teacher
    )
    if is_given:
        experiment.task.check_outputs(_outputs(experiment))
        _trace_loss(experiment)
    return experiment


def _outputs(experiment):
    """Return the shape and dtype of the model's outputs for one example."""
    batch = experiment.task.abstract_batch(experiment.dataset, 1)
    inputs, _ = jax.eval_shape(experiment.task.prepare, batch)
    apply = partial(apply_model, experiment.model, train=False)
    return jax.eval_shape(apply, experiment.abstract_state.eval_variables, inputs, batch["mask"])


def _trace_loss(experiment):
    """Trace the loss of a training step; nothing is computed.

    Raise InputError for a model that cannot be called in training, or whose outputs in training do not fit the task.
    """
    batch_size = experiment.config.batch_size

    def loss(state, batch, key):
        return experiment.first_loss(state, batch, key)(state.params)

    batch = experiment.task.abstract_batch(experiment.dataset, batch_size) | experiment.data[1]
    with input_errors((batch_size, *experiment.dataset.shape)):
        jax.eval_shape(loss, experiment.abstract_state, batch, jax.eval_shape(lambda: jax.random.key(0)))


def assemble(config, mesh, dataset, statistics, model, *, schedule=None, variables=None, teacher=None) -> Experiment:
    """Return the Experiment of parts that have been read; `teacher` is a `distillation.Teacher` or None.

    Raise InputError if the batch is larger than the data set, or the input does not fit the model or the teacher.
    """
    if config.patience and not len(dataset.validation):
        raise InputError(f"patience {config.patience} needs a validation set; give data.validation a fraction above 0")
    if config.best != "loss" and not len(dataset.validation):
        raise InputError(f"best {config.best} needs a validation set; give data.validation a fraction above 0")
    if config.batch_size > len(dataset.train):
        raise InputError(
            f"batch_size {config.batch_size} is larger than the training set of {len(dataset.train)} examples; set "
            f"batch_size {len(dataset.train)} or less"
        )
    task = tasks.find(config.task).of_config(config, dataset, statistics, model)
    if config.best not in task.curves:
        raise InputError(f"best {config.best}: task {config.task} has no {config.best}; set best loss")
    if teacher is not None:
        task = distillation.taught(task, teacher, config, dataset, statistics)
    loader = data.make_loader(
        dataset.train, config.data, config.batch_size, config.seed, train=True, put=mesh.replicate
    )
    profile.check_steps(config.profile, config.epochs * loader.steps)
    times = {"epochs": config.epochs, "steps_per_epoch": loader.steps}
    schedule = schedule or make_schedule(config.optimizer, config.schedule, **times)
    optimizer = make_optimizer(freezing.frozen_optimizer(config), schedule, config.schedule, **times)
    teacher = None if teacher is None else mesh.replicate(teacher.variables)
    experiment = Experiment(
        config, mesh, dataset, statistics, model, task, loader, schedule, optimizer, variables, teacher
    )
    experiment.abstract_state  # noqa: B018, computed here so that its errors come before anything is written
    return experiment


def has_checkpoint(folder):
    """Return whether a folder holds a run with a complete checkpoint."""
    return any(path.name.isdigit() for path in (Path(folder) / "checkpoints").glob("*"))


def make_evaluator(config, model, task, split, mesh, views=1):
    """Return the Evaluator of a split; the variables must be replicated on the mesh. `views`: as in `eval_step`."""
    # Rounded up to a multiple of the devices. Unlike in training, the result does not depend on it.
    batch_size = -(-(config.eval_batch_size or config.batch_size) // len(mesh)) * len(mesh)
    loader = data.make_loader(split, config.data, batch_size, config.seed, train=False, put=mesh.replicate)

    def step(variables, whole, rows):
        return eval_step(variables, loader.fetch(whole, rows), model=model, task=task, views=views)

    return Evaluator(task, mesh.evaluation(step), loader, mesh.split_rows)


def make_moment_estimator(config, model, task, split, mesh, loader=None):
    """Return the MomentEstimator of a training set: by jit, without augmentation, in batches of batch_size.

    `loader`: of that set, without random crops, if there is one on the devices already.
    """
    if loader is None:
        plain = dataclasses.replace(config.data, augment=Augment())
        loader = data.make_loader(split, plain, config.batch_size, config.seed, train=True, put=mesh.replicate)
    key = jax.random.fold_in(key_of(config), MOMENTS)

    def step(variables, whole, rows, count):
        batch, batch_key = loader.fetch(whole, rows), jax.random.fold_in(key, count)
        return averaging.moments_step(variables, batch, batch_key, count, model=model, task=task)

    return averaging.MomentEstimator(mesh.moments(step), loader, mesh.split_rows)
