"""Predictions for image files, or rows of CSV files, by a run, or by a network with pretrained weights."""

import warnings
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import data, weights, zoo
from deepjax.data.listing import describe_skipped
from deepjax.errors import InputError, choices
from deepjax.foreign import check_finite
from deepjax.inference.run import load_run
from deepjax.tasks import classification
from deepjax.training.step import apply_model

ROWS = 1024  # of a CSV file that are predicted together


class Classifier(NamedTuple):
    """A network with pretrained weights. `predict` and `export` accept it like a Run."""

    model: Any  # Linen module
    members: tuple  # variables; one
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # of one input
    standardizer: data.Standardizer
    preprocessing: weights.Preprocessing
    source: dict  # of the network and its weights, as of `weights.Pretrained`

    def inputs(self, images):
        """Return images [B, *shape] as the network gets them."""
        return self.standardizer.apply(images)

    @property
    def task(self):
        """The task, for evaluation."""
        return classification.of_record(self)

    @staticmethod
    def check_crops(crops):
        """Raise InputError unless crops is 1, 5 or 10."""
        data.check_crops(crops)

    def read(self, path, crops=1):
        """Return an image file as uint8 [crops, *shape], resized and cropped as the weights require."""
        cut = data.resizing(self.preprocessing.resize, self.preprocessing.interpolation)
        return data.read_crops(path, cut, self.shape, crops)


def load_classifier(name, path="") -> Classifier:
    """Return the network called `name` with the weights in the file `path`, or, without it, with those of the hub.

    Class names and preprocessing are those recorded with the weights. If none are, they are ImageNet's names for 1000
    logits (else numbers), and torchvision's preprocessing for the network.

    Raise InputError for an unknown network, or weights of another one.
    """
    if path and name not in zoo.MODELS:
        raise InputError(f"model {name!r} is unknown; {choices(name, zoo.MODELS)}")
    found = weights.load_file(path, name) if path else weights.load_pretrained(name)
    steps = found.preprocessing or zoo.preprocessing(found.source["network"])
    moments = (np.asarray(values, np.float32) for values in (steps.mean, steps.std))
    return Classifier(
        found.network,
        (found.variables,),
        found.classes or class_names(found.network.num_classes),
        (steps.crop, steps.crop, len(steps.mean)),
        data.Standardizer("channel", *moments),
        steps,
        found.source,
    )


def load_source(word, path="", *, warn=warnings.warn):
    """Return the Run in the folder `word`, or the Classifier of the network, or file of weights, with that name.

    `path` is a file with the weights of the network; `warn` is that of `load_run`. Raises InputError as these do.
    """
    if path or weights.kind_of(word) != "run":
        return load_classifier(word, path)
    return load_run(Path(word).expanduser(), warn=warn)


def class_names(count) -> tuple[str, ...]:
    """Return ImageNet's names, in torchvision's order, if `count` is 1000; else numbers."""
    if count != 1000:
        return tuple(map(str, range(count)))
    return tuple(
        resources.files("deepjax.data").joinpath("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    )


def predict(run, paths, *, top=None, crops=1, batch_size=64) -> list:
    """Return the task's predictions for image files and for the images in folders and their subfolders, in order.

    In classification these are `Prediction`s. For an image that cannot be read, the prediction has `problem`. The other
    images are still predicted. A run that was trained on features predicts every row of CSV files; see `read_features`.

    Args:
      run: a Run or a Classifier.
      paths: paths of files and folders.
      top: number of classes for each image, usually 5. A run that predicts a number takes none.
      crops: 1: the center. 5: corners and center; 10: these and their mirror images; probabilities are averaged.
      batch_size: maximum number of crops of one call, but never less than those of one image.

    Raises:
      InputError: a folder without images, a run that does not crop images or has no classes, a CSV file that does not
        fit, or outputs that are not finite.
    """
    if top is not None and top < 1:
        raise InputError(f"top {top} must be at least 1")
    if top is not None and not run.classes:
        raise InputError(f"top {top}: the run predicts a number, not classes; leave it out")
    top = 5 if top is None else top
    if len(run.shape) == 1:
        return [prediction for path in paths for prediction in _predict_rows(run, Path(path), top, crops)]
    run.check_crops(crops)
    files = [file for path in paths for file in _image_files(Path(path))]
    rows = max(1, min(len(files), batch_size // crops))  # the same for every call, so that it compiles once
    predicted, predictions = _mean_prediction(run), []
    for start in range(0, len(files), rows):
        images, problems = np.zeros((rows, crops, *run.shape), np.uint8), {}
        chunk = files[start : start + rows]
        for i, file in enumerate(chunk):
            try:
                images[i] = run.read(file, crops)
            except InputError as error:
                problems[i] = str(error)
        values = np.asarray(predicted(run.members, images))[: len(chunk)]
        check_finite({str(file): row for file, row in zip(chunk, values, strict=True)}, "the outputs for image")
        predictions += run.task.predictions(chunk, values, top, problems)
    return predictions


def _mean_prediction(run):
    """Return the jitted function (members, images [N, crops, *shape]) -> mean over members and crops, [N, ...]."""

    @jax.jit
    def predicted(members, images):
        flat = images.reshape(-1, *run.shape)
        mean = jnp.stack([run.task.predicted(outputs(run, variables, flat)) for variables in members]).mean(0)
        return mean.reshape(len(images), -1, *mean.shape[1:]).mean(1)

    return predicted


def read_features(run, path):
    """Return (number of each row in a CSV file, features float32 [rows, features]) as a run takes them.

    Columns are found by the names that the run was trained with, in any order; others are ignored. If it was trained on
    arrays, whose features have no names, all columns are taken, in their order.

    Raise InputError if columns are missing, are not as many, or hold something else than finite numbers.
    """
    if path.suffix.lower() != ".csv":
        raise InputError(f"{path}: the run was trained on {run.shape[0]} features, not on images; give a .csv file")
    table = data.read_table(path)
    names = run.columns[:-1] or table.columns
    if len(names) != run.shape[0]:
        raise InputError(f"{path}: has {len(names)} columns, the run takes {run.shape[0]} features; give as many")
    return table.numbers, table.features(names)


def _predict_rows(run, path, top, crops):
    """Return the task's prediction for each row of a CSV file, by the name PATH:ROW."""
    if crops > 1:
        raise InputError(f"crops {crops}: rows of features have no crops; leave it 1")
    numbers, features = read_features(run, path)
    size, predicted = min(len(features), ROWS), _mean_prediction(run)
    found = []
    for start in range(0, len(features), size):
        chunk = features[start : start + size]
        padded = np.pad(chunk, ((0, size - len(chunk)), (0, 0)))  # so that it compiles once
        found.append(np.asarray(predicted(run.members, padded[:, None]))[: len(chunk)])
    names, values = [f"{path}:{number}" for number in numbers], np.concatenate(found)
    check_finite(dict(zip(names, values, strict=True)), "the outputs for row")
    return run.task.predictions(names, values, top, {})


def outputs(run, variables, images):
    """Return float32 outputs, such as logits, of images as they are stored, by one member of a Run or Classifier."""
    x = run.inputs(images)
    mask = jnp.ones(images.shape[:1], bool)
    return apply_model(run.model, variables, x, mask, train=False).astype(jnp.float32)


def _image_files(path):
    if path.is_dir():
        files, skipped = data.find_images(path)
        if not files:
            why = f"; {describe_skipped(skipped)}" if skipped else ""
            raise InputError(f"folder {path} has no images ({', '.join(data.IMAGE_SUFFIXES)}){why}; check the path")
        return files
    return [path]
