"""Predictions for image files: by a run, or by a network with pretrained weights."""

from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import data, weights, zoo
from deepjax.errors import InputError, choices
from deepjax.training.step import apply_model

SUFFIXES = data.IMAGE_SUFFIXES


class Classifier(NamedTuple):
    """A network with pretrained weights, for `predict` in a Run's place."""

    model: Any  # Linen module
    members: tuple  # variables; one
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # of one input
    standardizer: data.Standardizer
    preprocessing: weights.Preprocessing
    source: dict  # of the network and its weights, as of `weights.Pretrained`

    @staticmethod
    def check_crops(crops):
        """Raises InputError unless crops is 1, 5 or 10."""
        data.check_crops(crops)

    def read(self, path, crops=1):
        """An image file as uint8 [crops, *shape], resized and cropped as the weights want it."""
        cut = data.resizing(self.preprocessing.resize, self.preprocessing.interpolation)
        return data.read_crops(path, cut, self.shape, crops)


def load_classifier(name, path="") -> Classifier:
    """The network called `name` with the weights in the file `path`, or, without it, with those of the hub.

    Class names and preprocessing are those recorded with the weights; else ImageNet's, where there are 1000 logits, and
    those of torchvision's weights of the network.

    Raises InputError for an unknown network, or weights that are not its own.
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


def class_names(count) -> tuple[str, ...]:
    """ImageNet's names, in torchvision's order, where `count` is 1000; else numbers."""
    if count != 1000:
        return tuple(map(str, range(count)))
    return tuple(resources.files("deepjax.data").joinpath("imagenet_classes.txt").read_text("utf8").splitlines())


class Prediction(NamedTuple):
    """The likeliest classes of one image file, or why it could not be read."""

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str = ""


def predict(run, paths, *, top=5, crops=1, batch_size=64):
    """Predictions for image files and for the images in folders (not in their subfolders), in order.

    An image that cannot be read gives a Prediction with `problem`; the others are predicted all the same.

    Args:
      run: a Run or a Classifier.
      paths: of files and folders.
      top: classes to tell.
      crops: 1: the centre. 5: corners and centre; 10: these and their mirror images; probabilities are averaged.
      batch_size: most crops to look at together, though never less than those of one image.

    Raises:
      InputError: a folder without images, a run that was not trained on images, or does not crop them.
    """
    if top < 1:
        raise InputError(f"top {top} must be at least 1")
    run.check_crops(crops)
    files = [file for path in paths for file in _image_files(Path(path))]
    rows = max(1, min(len(files), batch_size // crops))  # of one call; always as many, so that it compiles once

    @jax.jit
    def probabilities(members, images):
        flat = images.reshape(-1, *run.shape)
        mean = jnp.stack([answer(variables, flat) for variables in members]).mean(0)
        return mean.reshape(len(images), -1, mean.shape[-1]).mean(1)

    def answer(variables, images):
        x = run.standardizer.apply(images)
        logits = apply_model(run.model, variables, x, jnp.ones(len(images), bool), train=False)
        return jax.nn.softmax(logits.astype(jnp.float32))

    predictions = []
    for start in range(0, len(files), rows):
        images, problems = np.zeros((rows, crops, *run.shape), np.uint8), {}
        chunk = files[start : start + rows]
        for i, file in enumerate(chunk):
            try:
                images[i] = run.read(file, crops)
            except InputError as error:
                problems[i] = str(error)
        likely = np.asarray(probabilities(run.members, images))
        for i, file in enumerate(chunk):
            best = np.argsort(-likely[i], kind="stable")[:top]
            predictions.append(
                Prediction(str(file), problem=problems[i])
                if i in problems
                else Prediction(str(file), tuple(run.classes[c] for c in best), tuple(likely[i, best].tolist()))
            )
    return predictions


def _image_files(path):
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            raise InputError(f"folder {path} has no images ({', '.join(SUFFIXES)})")
        return files
    return [path]
