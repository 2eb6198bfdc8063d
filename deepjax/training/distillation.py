"""A teacher: a trained network whose answers a run learns, beside the labels (Hinton et al. 2015)."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from deepjax import data, tasks, weights, zoo
from deepjax.config import Config
from deepjax.errors import InputError
from deepjax.trace import input_errors
from deepjax.training.step import apply_model
from deepjax.training.trained import read_trained


class Teacher(NamedTuple):
    """A trained network, and how its images are standardized."""

    where: str  # as in config.teacher
    model: Any  # Linen module
    variables: Any
    standardizer: data.Standardizer
    classes: tuple[str, ...] | None  # names of its logits; None: unknown
    count: int  # of its logits


def check(config):
    """Raise InputError if teacher, temperature, teacher_share, task and loss do not go together."""
    default = Config()
    for name in ("temperature", "teacher_share"):
        if getattr(config, name) != getattr(default, name) and not config.teacher:
            raise InputError(f"{name} {getattr(config, name)} does nothing without teacher; name a run or a network")
    if config.teacher and config.task != "classification":
        raise InputError(f"teacher {config.teacher} needs task classification, task is {config.task}; leave it out")
    if config.teacher and config.loss:
        raise InputError(
            f"teacher {config.teacher} needs probabilities, and loss {config.loss} has none; leave one out"
        )


def read(where) -> Teacher:
    """Return the Teacher that `config.teacher` names: the folder of a run, a file of ours, or a pretrained network.

    Of a run with snapshots it is the last one.

    Raise InputError for anything else, for the run of a module that is not in the zoo, and for a run without
    probabilities.
    """
    path, kind = Path(where).expanduser(), weights.kind_of(where, "teacher")
    if kind == "run":
        run = read_trained(path, f"teacher {where}")
        if run.loss:
            raise InputError(f"teacher {where} was trained with loss {run.loss} and has no probabilities; use another")
        return Teacher(where, run.network, run.variables, run.standardizer, run.classes, len(run.classes))
    found = weights.load_pretrained(str(path) if kind == "file" else where)
    steps = found.preprocessing or zoo.preprocessing(found.source["network"])
    standardizer = data.Standardizer("channel", *(np.asarray(v, np.float32) for v in (steps.mean, steps.std)))
    return Teacher(where, found.network, found.variables, standardizer, found.classes, found.network.num_classes)


def taught(task, teacher, config, dataset, statistics):
    """Return the task with a teacher, whose variables are in the batch: `batch["teacher"]`.

    The teacher sees what the student sees: images are changed and mixed with the same random numbers, but standardized
    in the teacher's way. It is called as in evaluation.

    Raise InputError if the teacher's classes are not those of the data set, or the images do not fit the teacher.
    """
    where = f"teacher {teacher.where}"
    if teacher.count != len(dataset.classes):
        raise InputError(f"{where} has {teacher.count} classes, {dataset.name} has {len(dataset.classes)}; use another")
    if teacher.classes and teacher.classes != tuple(dataset.classes):
        pairs = zip(teacher.classes, dataset.classes, strict=True)
        number, (theirs, ours) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        raise InputError(f"{where}: its class {number} is {theirs!r}, that of {dataset.name} is {ours!r}; use another")
    view = tasks.find(config.task).of_config(
        config, dataset, statistics._replace(standardizer=teacher.standardizer), teacher.model
    )

    def teach(batch, key):
        inputs, _ = view.prepare(batch, key)
        return apply_model(teacher.model, batch["teacher"], inputs, batch["mask"], train=False)

    batch = task.abstract_batch(dataset, 1) | {"teacher": teacher.variables}
    try:
        with input_errors((1, *dataset.shape)):
            jax.eval_shape(teach, batch, jax.eval_shape(lambda: jax.random.key(0)))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return task.with_teacher(teach, config.temperature, config.teacher_share)
