"""Regression: predict one number for each image, or vector of features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import data, functional
from deepjax.errors import InputError
from deepjax.runs.plots import Curve
from deepjax.tasks.classification import Classification
from deepjax.tasks.inputs import fit_statistics as fit_input_statistics
from deepjax.tasks.inputs import input_functions
from deepjax.tasks.scores import r2_score

LOSSES: dict[str, Any] = {"mse": functional.mse, "mae": functional.mae, "huber": functional.huber}
"""By the values of config.loss. The arguments are standardized predictions and targets."""


class NumberEvaluation(NamedTuple):
    """Predictions for a data set, one row per example."""

    targets: np.ndarray  # f32[examples], in the user's units
    predictions: np.ndarray  # f32[examples], in the user's units
    losses: np.ndarray  # f32[examples], of standardized targets

    @property
    def residuals(self):
        """Prediction minus target, f64[examples]."""
        return self.predictions.astype(np.float64) - self.targets

    @property
    def loss(self):
        """Mean loss of standardized targets."""
        return float(np.mean(self.losses, dtype=np.float64))

    @property
    def metrics(self):
        """The numbers that a run records; mae and rmse are in the user's units."""
        residuals = self.residuals
        return {
            "loss": self.loss,
            "r2": r2_score(self.targets, self.predictions),
            "mae": float(np.abs(residuals).mean()),
            "rmse": float(np.sqrt(np.square(residuals).mean())),
        }


class PredictedNumber(NamedTuple):
    """The number that is predicted for one example, or why the example could not be read."""

    path: str
    name: str = "target"
    value: float = 0.0
    problem: str = ""

    @property
    def column(self):
        """Name of the number's column, which differs from those of the example and of the problem."""
        return f"predicted {self.name}" if self.name in ("example", "error") else self.name

    @property
    def texts(self):
        """The number in words, for a table."""
        return [f"{self.value:.6g}"]

    @property
    def record(self):
        """What JSON holds of it."""
        return {"example": self.path, **({"error": self.problem} if self.problem else {self.column: self.value})}

    @property
    def row(self):
        """One row of a table, as {column: value}."""
        return {"example": self.path, self.column: "" if self.problem else self.value, "error": self.problem}


@dataclass(frozen=True)
class Regression:
    """The task of regression. A batch has "image", "label" (float32 [batch]) and "mask" (bool [batch]).

    The network learns the standardized target, (target - mean) / deviation, so that the same learning rates suit all
    units. The loss is of standardized targets. Everything else is in the user's units.
    """

    mean: float
    """Mean of the training targets."""
    deviation: float
    """Standard deviation of the training targets."""
    name: str = "target"
    """Of the target."""
    loss: str = "mse"
    """A name in LOSSES."""
    standardize: Callable[[Any], Any] = jnp.asarray
    """Inputs as stored -> float inputs of the model."""
    augment: Callable[[Any, Any], Any] | None = None
    """(key, images as stored) -> inputs, in training. None: `standardize`."""
    mix: Callable[..., Any] | None = None
    """(key, inputs, targets, mask) -> (inputs, targets [batch, 1]), in training: Mixup and CutMix."""

    evaluated = averaged = ("target", "prediction")
    curves: ClassVar = {
        "loss": Curve("loss of the standardized target", log=True),
        "r2": Curve("R2"),
        "mae": Curve("mean absolute error"),
        "rmse": Curve("root mean squared error"),
    }

    @staticmethod
    def abstract_batch(dataset, size):
        """Return the shapes and dtypes of a batch of `size` examples of a data set, without reading one."""
        batch = Classification.abstract_batch(dataset, size)
        return batch | {"label": jax.ShapeDtypeStruct((size,), jnp.float32)}

    def prepare(self, batch, key=None):
        """Return (inputs, standardized targets [batch])."""
        image, target = batch["image"], (batch["label"] - self.mean) / self.deviation
        if key is None or self.augment is None:
            image = self.standardize(image)
        else:
            image = self.augment(jax.random.fold_in(key, 0), image)
        if key is None or self.mix is None:
            return image, target
        image, mixed = self.mix(jax.random.fold_in(key, 2), image, target, batch["mask"])
        return image, mixed[:, 0]

    def measure(self, outputs, targets, mask):
        """Return the sums over a batch of loss, R2 and absolute error (in the user's units), and its examples' number.

        R2 is relative to the variance of the training targets, so its mean over the training set is R2 of that set.

        Raise InputError for outputs of another shape than [batch] or [batch, 1].
        """
        predictions = _numbers(outputs)
        errors = jnp.where(mask, predictions - targets, 0)
        return {
            "loss": LOSSES[self.loss](predictions, targets, mask=mask).sum(),
            "r2": jnp.where(mask, 1 - jnp.square(errors), 0).sum(),
            "mae": self.deviation * jnp.abs(errors).sum(),
            "count": mask.sum().astype(jnp.float32),
        }

    @staticmethod
    def numbers(targets, outputs):
        """Return standardized targets [batch] as numbers that one linear output can be fitted to: [batch, 1]."""
        return targets[:, None]

    @staticmethod
    def average_views(outputs):
        """Return the mean over views: [views, batch, ...] -> [batch, ...]."""
        return outputs.mean(0)

    def rows(self, outputs, batch):
        """Return what evaluation uses of each example. Rows of padding hold arbitrary values."""
        return {"target": batch["label"], "prediction": self.predicted(outputs)}

    def evaluate(self, rows) -> NumberEvaluation:
        """Return the NumberEvaluation of rows named by `evaluated`.

        >>> found = Regression(0.0, 2.0).evaluate({"target": np.array([0.0, 4.0]), "prediction": np.array([2.0, 4.0])})
        >>> {name: round(value, 3) for name, value in found.metrics.items()}
        {'loss': 0.5, 'r2': 0.5, 'mae': 1.0, 'rmse': 1.414}
        """
        targets, predictions = (np.asarray(rows[name], np.float32) for name in self.evaluated)
        # In float64, because a mean far from 0 would cancel digits.
        standard = [((each.astype(np.float64) - self.mean) / self.deviation) for each in (predictions, targets)]
        losses = jax.jit(LOSSES[self.loss])(*(each.astype(np.float32) for each in standard))
        return NumberEvaluation(targets, predictions, np.asarray(losses))

    @staticmethod
    def average(members: Sequence[dict]) -> dict:
        """Return rows with the mean of several models' predictions."""
        return members[0] | {"prediction": np.mean([rows["prediction"] for rows in members], axis=0)}

    @staticmethod
    def check_outputs(outputs):
        """Raise InputError unless a model's outputs for one example are one number, [1] or [1, 1]."""
        _check_shape(outputs, 1)

    def describe(self, dataset):
        """Return one line about a data set."""
        sizes = f"{len(dataset.train):,} training, {len(dataset.validation):,} validation, {len(dataset.test):,} test"
        shape = "x".join(map(str, dataset.shape))
        target = f"{self.name} has mean {self.mean:.4g} and standard deviation {self.deviation:.4g}"
        return f"{dataset.name}: {sizes} examples of {shape}; {target}"

    @staticmethod
    def text(metrics):
        """Return metrics in words.

        >>> Regression.text({"loss": 0.5, "r2": 0.5, "mae": 41.25, "rmse": 52.0})
        'R2 0.5000, MAE 41.25, RMSE 52, loss 0.5000'
        """
        rmse = f", RMSE {metrics['rmse']:.4g}" if "rmse" in metrics else ""  # of an epoch of training, it is unknown
        return f"R2 {metrics['r2']:.4f}, MAE {metrics['mae']:.4g}{rmse}, loss {metrics['loss']:.4f}"

    def figures(self, evaluation, title, split):
        """Return {file name: figure}: predicted over true numbers, and residuals over predicted ones."""
        from deepjax.runs import plots

        numbers = evaluation.targets, evaluation.predictions
        return {
            "predictions.png": plots.predictions(*numbers, self.name, title),
            "residuals.png": plots.residuals(*numbers, self.name, title),
        }

    def predicted(self, outputs):
        """Return predictions in the user's units, float32 [batch]."""
        return self.mean + self.deviation * _numbers(outputs)

    def exported(self, members):
        """Return what an exported program returns: the mean prediction of models with outputs [models, batch, ...]."""
        return jax.vmap(self.predicted)(members).mean(0)

    def predictions(self, paths, values, top, problems) -> list[PredictedNumber]:
        """Return the number for each path, from predictions [paths]. `problems`: as in classification."""
        return [
            PredictedNumber(str(path), self.name, float(values[i]), problems.get(i, "")) for i, path in enumerate(paths)
        ]


def _numbers(outputs):
    """Return outputs [batch] or [batch, 1] as float32 [batch]. Raise InputError for others."""
    _check_shape(outputs, outputs.shape[0] if hasattr(outputs, "shape") else "several")
    return outputs.reshape(outputs.shape[0]).astype(jnp.float32)


def _check_shape(outputs, batch):
    shape = getattr(outputs, "shape", type(outputs).__name__)
    if shape not in ((batch,), (batch, 1)):
        raise InputError(
            f"the model returns outputs of shape {shape} for {batch} examples; return one number for each, [batch, 1]"
        )


def outputs(classes, shape) -> int:
    """Return how many outputs a network has: one."""
    return 1


def fit_statistics(config, dataset, source=None):
    """Return the Statistics of the training set: those of classification, mean and deviation of the targets.

    Raise InputError as in classification, for targets that are classes, and for targets that are all equal.
    """
    _check_targets(dataset)
    targets = dataset.train.labels.astype(np.float64)
    if targets.min() == targets.max():
        raise InputError(f"task regression: all training targets of {dataset.name} are {targets[0]:g}; add other ones")
    statistics = fit_input_statistics(config, dataset, source)
    return statistics._replace(target=(float(targets.mean()), float(targets.std())))


def _check_targets(dataset):
    if dataset.classes:
        raise InputError(
            f"task regression needs numbers as targets, {dataset.name or 'the data'} has {len(dataset.classes)} "
            f"classes; give floats, or set task classification"
        )


def of_config(config, dataset, statistics, model) -> Regression:
    """Return the task of a config: its loss, augmentation and mixing, and what was fitted on the targets."""
    _check_targets(dataset)
    if config.label_smoothing:
        raise InputError(f"label_smoothing {config.label_smoothing} is for classes, task is regression; leave it out")
    if config.loss and config.loss not in LOSSES:
        raise InputError(f"loss {config.loss} is for task classification, task is regression; leave it out")
    augment = config.data.augment
    standardized, augmented = input_functions(config, statistics)

    def mix(key, image, target, mask):
        return data.mix(key, image, target, mask, augment, 0)

    return Regression(
        *statistics.target,
        name=_name(dataset.columns),
        loss=config.loss or "mse",
        standardize=standardized,
        augment=augmented,
        mix=mix if augment.mixup or augment.cutmix else None,
    )


def of_record(run) -> Regression:
    """Return the task of a finished run. Raise InputError if its record lacks what was fitted on the targets."""
    if not run.target:
        raise InputError(f"{run.config.workdir}/data.json: target is missing; restore the file")
    return Regression(*run.target, name=_name(run.columns), loss=run.config.loss or "mse", standardize=run.inputs)


def _name(columns):
    return columns[-1] if columns else "target"
