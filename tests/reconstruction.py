"""A task that knows no classes, as a user would add it: give back the input. `deepjax.tasks` lists what it needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from deepjax.errors import InputError
from deepjax.runs.plots import Curve
from deepjax.tasks import Classification, classification


class Evaluation(NamedTuple):
    squares: np.ndarray  # [examples, ...]: squared differences

    @property
    def loss(self):
        return float(np.mean(self.squares, dtype=np.float64))

    @property
    def metrics(self):
        largest = self.squares.reshape(len(self.squares), -1).max(-1)
        return {"loss": self.loss, "largest": float(np.mean(largest))}


class Restored(NamedTuple):
    path: str
    brightness: float = 0.0
    problem: str = ""

    @property
    def texts(self):
        return [f"{self.brightness:.3f}"]

    @property
    def record(self):
        return {"image": self.path, **({"error": self.problem} if self.problem else {"brightness": self.brightness})}

    row = record


@dataclass(frozen=True)
class Reconstruction:
    standardize: Callable[[Any], Any] = jnp.asarray

    evaluated = averaged = ("input", "output")
    curves: ClassVar = {"loss": Curve("mean squared difference", log=True)}
    abstract_batch = staticmethod(Classification.abstract_batch)

    def prepare(self, batch, key=None):
        x = self.standardize(batch["image"])
        return x, x

    @staticmethod
    def measure(outputs, targets, mask):
        squares = jnp.square(outputs - targets).reshape(len(mask), -1)
        squares, size = jnp.where(mask[:, None], squares, 0), squares.shape[-1]
        return {"loss": squares.sum(), "largest": size * squares.max(-1).sum(), "count": mask.sum() * size}

    def rows(self, outputs, batch):
        return {"input": self.standardize(batch["image"]), "output": outputs}

    @staticmethod
    def evaluate(rows):
        return Evaluation(np.square(rows["output"] - rows["input"]))

    @staticmethod
    def average(members):
        return members[0] | {"output": np.mean([rows["output"] for rows in members], axis=0)}

    @staticmethod
    def check_outputs(outputs):
        if outputs.ndim < 2:
            raise InputError(f"the model returns outputs of shape {outputs.shape}; return those of its input")

    @staticmethod
    def describe(dataset):
        return f"{dataset.name}: {len(dataset.train)} training examples"

    @staticmethod
    def text(metrics):
        return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())

    @staticmethod
    def figures(evaluation, title, split):
        return {}

    @staticmethod
    def predicted(outputs):
        return outputs

    @staticmethod
    def exported(members):
        return members.mean(0)

    @staticmethod
    def predictions(paths, values, top, problems):
        return [Restored(str(path), float(values[i].mean()), problems.get(i, "")) for i, path in enumerate(paths)]


def outputs(classes, shape):
    return int(np.prod(shape))


fit_statistics = classification.fit_statistics


def of_config(config, dataset, statistics, model):
    if config.label_smoothing:
        raise InputError(f"label_smoothing {config.label_smoothing} has no effect on task reconstruction; leave it out")
    return Reconstruction(statistics.standardizer.apply)


def of_record(run):
    return Reconstruction(run.standardizer.apply)
