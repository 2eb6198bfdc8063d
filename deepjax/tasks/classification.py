"""Classification: assign each image, or vector of features, to one of several classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import data, functional
from deepjax.errors import InputError
from deepjax.runs.plots import Curve
from deepjax.tasks.evaluation import Evaluation, Prediction, ScoredPrediction
from deepjax.tasks.inputs import fit_statistics, input_functions

__all__ = ["Classification", "ScoredClassification", "fit_statistics", "of_config", "of_record", "outputs"]

TOP = 5  # classes that evaluation keeps for each example
WORST = 16  # examples of the picture of the largest losses
MANY, HARDEST = 100, 30  # of more than MANY classes, a picture shows the HARDEST


class Taught(NamedTuple):
    """The targets of training with a teacher."""

    hard: Any  # labels [batch], or mixed ones [batch, classes]
    logits: Any  # of the teacher, f32[batch, classes]


@dataclass(frozen=True)
class Classification:
    """The task of classification. A batch has "image", "label" (int32 [batch]) and "mask" (bool [batch])."""

    classes: tuple[str, ...]
    standardize: Callable[[Any], Any] = jnp.asarray
    """Images as stored -> float inputs of the model."""
    augment: Callable[[Any, Any], Any] | None = None
    """(key, images as stored) -> inputs, in training. None: `standardize`."""
    mix: Callable[..., Any] | None = None
    """(key, inputs, labels, mask) -> (inputs, targets [batch, classes]), in training: Mixup and CutMix."""
    smoothing: float = 0.0
    """Label smoothing in training, in [0, 1]."""
    auxiliary_weight: float = 0.0
    """Weight of the losses of auxiliary heads."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class in the loss of training; a mixed target has the mean of its classes'. Empty: all are 1."""
    teach: Callable[[Any, Any], Any] | None = None
    """(batch, key) -> logits of a teacher for the same changed and mixed images, in training: distillation."""
    temperature: float = 1.0
    """Temperature of distillation."""
    teacher_share: float = 0.0
    """Weight of the teacher in the loss, in [0, 1]; the labels have the rest."""

    evaluated = ("label", "loss", "classes", "confidence")
    averaged = ("label", "log_probabilities")
    curves: ClassVar = {"loss": Curve("cross entropy (nats)", log=True), "error": Curve("error (%)", 100)}
    prediction: ClassVar = Prediction

    @staticmethod
    def abstract_batch(dataset, size):
        """Return the shapes and dtypes of a batch of `size` examples of a data set, without reading one."""
        kind = np.uint8 if isinstance(dataset.train, data.Records) else dataset.train.images.dtype
        row = jax.ShapeDtypeStruct((size,), jnp.int32)
        image, mask = jax.ShapeDtypeStruct((size, *dataset.shape), kind), jax.ShapeDtypeStruct((size,), bool)
        return {"image": image, "label": row, "mask": mask}

    def prepare(self, batch, key=None):
        """Return (inputs, targets): labels, or, if examples are mixed, a distribution over classes for each.

        With a teacher, the targets in training are `Taught`.
        """
        image, label = batch["image"], batch["label"]
        if key is None or self.augment is None:
            image = self.standardize(image)
        else:
            image = self.augment(jax.random.fold_in(key, 0), image)
        if key is None:
            return image, label
        targets = label
        if self.mix is not None:
            image, targets = self.mix(jax.random.fold_in(key, 2), image, label, batch["mask"])
        return image, targets if self.teach is None else Taught(targets, self.teach(batch, key))

    def measure(self, outputs, targets, mask):
        """Return the sums of loss (nats) and of wrong predictions over a batch, and the number of its examples.

        A network with auxiliary heads returns (logits, auxiliary logits, ...) in training. The loss is then that of
        the logits plus `auxiliary_weight` times that of each auxiliary head (Szegedy et al. 2014, section 5). With a
        teacher, it is (1 - teacher_share) times that, plus teacher_share T^2 KL(teacher || logits) at the temperature T
        (Hinton et al. 2015). A prediction is correct if it is the label, or the class with the largest share of a mixed
        target.

        Raise InputError for auxiliary heads without a weight.
        """
        heads = list(outputs) if isinstance(outputs, tuple) else [outputs]
        if len(heads) > 1 and not self.auxiliary_weight:
            raise InputError(
                f"the model returns {len(heads) - 1} auxiliary outputs in training, but has no auxiliary_weight for "
                f"their losses; give the module that attribute, such as 0.3"
            )
        hard = targets.hard if isinstance(targets, Taught) else targets
        losses = self._losses(heads, hard)
        if isinstance(targets, Taught):
            soft = functional.kl_distillation(heads[0], targets.logits, temperature=self.temperature)
            losses = (1 - self.teacher_share) * losses + self.teacher_share * soft
        targets = hard
        if self.class_weights:
            weights = jnp.asarray(self.class_weights, losses.dtype)
            losses *= weights[targets] if targets.ndim == 1 else targets @ weights
        label = targets if targets.ndim == 1 else targets.argmax(-1)
        wrong = mask & (heads[0].argmax(-1) != label)
        return {
            "loss": jnp.where(mask, losses, 0).sum(),
            "error": wrong.sum().astype(jnp.float32),
            "count": mask.sum().astype(jnp.float32),
        }

    @staticmethod
    def numbers(targets, outputs):
        """Return labels [batch] as numbers that `outputs` linear outputs can be fitted to: 1 for the class, else -1."""
        return signs(targets, outputs)

    def average_views(self, outputs):
        """Return logits of the mean probability of views: [views, batch, classes] -> [batch, classes]."""
        return jax.nn.logsumexp(jax.nn.log_softmax(outputs.astype(jnp.float32)), 0) - jnp.log(len(outputs))

    def _losses(self, heads, targets):
        """Return the loss of the logits, plus the weighted ones of auxiliary heads, for each example."""
        weights = [1.0, *[self.auxiliary_weight] * (len(heads) - 1)]
        losses: Any = [self._loss(logits, targets) for logits in heads]
        return jnp.asarray(sum(weight * loss for weight, loss in zip(weights, losses, strict=True)))

    def _loss(self, logits, targets):
        return functional.cross_entropy(logits, targets, smoothing=self.smoothing)

    def with_teacher(self, teach, temperature, share):
        """Return the task with these fields: `teach`, `temperature`, `teacher_share`."""
        return replace(self, teach=teach, temperature=temperature, teacher_share=share)

    def rows(self, outputs, batch):
        """Return what evaluation uses of each example. Rows of padding hold arbitrary values."""
        logits = outputs.astype(jnp.float32)
        return {
            "label": batch["label"],
            "loss": functional.cross_entropy(logits, batch["label"]),
            "classes": jax.lax.top_k(logits, min(TOP, logits.shape[-1]))[1],
            "confidence": jax.nn.softmax(logits).max(-1),
            "log_probabilities": jax.nn.log_softmax(logits),
        }

    @staticmethod
    def evaluate(rows) -> Evaluation:
        """Return the Evaluation of rows named by `evaluated`, or of those named by `averaged`.

        Of equally probable classes the first counts.

        >>> rows = {"label": np.array([1, 0]), "log_probabilities": np.log([[0.25, 0.75], [0.4, 0.6]])}
        >>> Classification.evaluate(rows).error
        0.5
        """
        labels = rows["label"]
        if "loss" in rows:
            return Evaluation(labels, rows["loss"], rows["classes"], rows["confidence"])
        logs = rows["log_probabilities"]
        likeliest = np.argsort(-logs, axis=-1, kind="stable")[:, :TOP]
        losses, confidences = -logs[np.arange(len(labels)), labels], np.exp(logs.max(-1))
        return Evaluation(labels, losses, likeliest.astype(np.int32), confidences)

    @staticmethod
    def average(members: Sequence[dict]) -> dict:
        """Return rows with the logarithm of the mean of several models' probabilities. Nothing underflows.

        >>> members = [{"label": [0], "log_probabilities": np.log([[p, 1 - p]])} for p in (0.5, 0.25)]
        >>> np.exp(Classification.average(members)["log_probabilities"]).round(3).tolist()
        [[0.375, 0.625]]
        """
        total = np.logaddexp.reduce([rows["log_probabilities"] for rows in members])
        return members[0] | {"log_probabilities": total - np.log(len(members)).astype(total.dtype)}

    def check_outputs(self, outputs):
        """Raise InputError unless a model's outputs for one example are logits [1, classes]."""
        shape = getattr(outputs, "shape", type(outputs).__name__)
        if shape != (1, len(self.classes)):
            raise InputError(
                f"the model returns outputs of shape {shape} for one example, but the data has {len(self.classes)} "
                f"classes; return logits [batch, {len(self.classes)}]"
            )

    @staticmethod
    def describe(dataset):
        """Return one line about a data set."""
        sizes = f"{len(dataset.train):,} training, {len(dataset.validation):,} validation, {len(dataset.test):,} test"
        shape = "x".join(map(str, dataset.shape))
        return f"{dataset.name}: {sizes} examples of {shape}, {len(dataset.classes)} classes"

    @staticmethod
    def text(metrics):
        """Return metrics in words.

        >>> Classification.text({"error": 0.0312, "loss": 0.1})
        'error 3.12 %, loss 0.1000'
        """
        return f"error {100 * metrics['error']:.2f} %, loss {metrics['loss']:.4f}"

    def figures(self, evaluation, title, split):
        """Return {file name: figure}: the confusion matrix, and the images of `split` that were classified worst.

        A matrix of all classes would be as large as their square. Of more than 100 classes, only the 30 with the most
        wrong predictions are drawn, the hardest first; shares are those of all examples of a class.
        """
        from deepjax.runs import plots

        total, heading = len(self.classes), title
        examples, wrong = evaluation.class_counts(total)
        shown = np.arange(total)
        if total > MANY:
            shown = np.argsort(-wrong, kind="stable")[:HARDEST]
            heading = f"{title}\nthe {HARDEST} of {total:,} classes with the most wrong predictions"
        counts = evaluation.confusion(total, shown)
        names = [self.classes[k] for k in shown]
        drawn = {"confusion.png": plots.confusion(counts, examples[shown], names, heading)}
        return drawn | ({"worst.png": self._worst(evaluation, title, split)} if _has_images(split) else {})

    def _worst(self, evaluation, title, split):
        """Draw the images with the largest losses."""
        from deepjax.runs.gallery import gallery

        worst = np.argsort(-evaluation.losses, kind="stable")[:WORST]
        images = split.images[worst] if isinstance(split, data.Arrays) else split.read(worst)
        captions = [
            f"{self.classes[evaluation.labels[i]]}\npredicted: {self.classes[evaluation.classes[i, 0]]}"
            + ("" if evaluation.confidences is None else f" {100 * evaluation.confidences[i]:.0f} %")
            for i in worst
        ]
        return gallery(list(images), captions, f"{title}\nthe {len(worst)} examples with the largest loss")

    def exported(self, members):
        """Return the logits of one model, or the logarithm of the mean probability of several, [models, batch, ...]."""
        return members[0] if len(members) == 1 else self.average_views(members)

    @staticmethod
    def predicted(logits):
        """Return what prediction averages over networks and crops: probabilities."""
        return jax.nn.softmax(logits)

    def predictions(self, paths, probabilities, top, problems) -> list[Prediction]:
        """Return the `top` most probable classes of each path, from probabilities [paths, classes].

        `problems`: {position of a path: why its file could not be read}.
        """
        found = []
        for i, (path, row) in enumerate(zip(paths, probabilities, strict=True)):
            best = np.argsort(-row, kind="stable")[:top]
            likely = self.prediction(str(path), tuple(self.classes[c] for c in best), tuple(row[best].tolist()))
            found.append(Prediction(str(path), problem=problems[i]) if i in problems else likely)
        return found


def signs(labels, classes):
    """Return 1 at the label and -1 elsewhere: integers [...] -> f32[..., classes].

    >>> signs(jnp.array([1]), 3).tolist()
    [[-1.0, 1.0, -1.0]]
    """
    return 2 * jax.nn.one_hot(labels, classes) - 1


def _squares(scores, labels):
    return functional.mse(scores, signs(labels, scores.shape[-1])).sum(-1)


SCORED: dict[str, Any] = {"perceptron": functional.perceptron, "mse": _squares}
"""Losses of outputs that are no logits of probabilities, by the values of config.loss."""


@dataclass(frozen=True)
class ScoredClassification(Classification):
    """Classification by the highest score, where scores are no logits: nothing has probabilities.

    Averages of views, networks and crops are means of scores.
    """

    loss: str = "perceptron"
    """A name in SCORED."""

    evaluated = ("label", "loss", "classes")
    averaged = ("label", "scores")
    curves: ClassVar = {"loss": Curve("loss"), "error": Curve("error (%)", 100)}
    prediction: ClassVar = ScoredPrediction

    def _loss(self, logits, targets):
        return SCORED[self.loss](logits, targets)

    def average_views(self, outputs):
        """Return the mean score of views: [views, batch, ...] -> [batch, ...]."""
        return outputs.mean(0)

    def rows(self, outputs, batch):
        """Return what evaluation uses of each example. Rows of padding hold arbitrary values."""
        return {"label": batch["label"], "scores": outputs.astype(jnp.float32)} | self._judged(outputs, batch["label"])

    def _judged(self, scores, labels):
        return {
            "loss": self._loss(scores, labels),
            "classes": jax.lax.top_k(scores.astype(jnp.float32), min(TOP, scores.shape[-1]))[1],
        }

    def evaluate(self, rows) -> Evaluation:
        """Return the Evaluation of rows named by `evaluated`, or of those named by `averaged`; no confidences."""
        labels = rows["label"]
        if "scores" in rows:
            rows = jax.jit(self._judged)(rows["scores"], labels)
        return Evaluation(labels, np.asarray(rows["loss"]), np.asarray(rows["classes"]))

    @staticmethod
    def average(members: Sequence[dict]) -> dict:
        """Return rows with the mean of several models' scores."""
        return members[0] | {"scores": np.mean([rows["scores"] for rows in members], axis=0)}

    @staticmethod
    def predicted(logits):
        """Return what prediction averages over networks and crops: scores."""
        return logits


def _has_images(split) -> bool:
    """Return whether the examples of a split are gray or color images, which can be drawn."""
    shape = split.shape if isinstance(split, data.Records) else split.images.shape[1:]
    return len(shape) == 3 and shape[-1] in (1, 3)


def outputs(classes, shape) -> int:
    """Return how many outputs a network has for examples of these classes and this shape: one logit a class."""
    return len(classes)


def of_config(config, dataset, statistics, model) -> Classification:
    """Return the task of a config: its loss, augmentation, mixing, label smoothing, balance, auxiliary weight."""
    if config.loss and config.loss not in SCORED:
        raise InputError(f"loss {config.loss} is for task regression, task is classification; leave it out")
    if not dataset.classes:
        raise InputError(f"task classification needs classes, {dataset.name} has numbers; set task regression")
    augment = config.data.augment
    _check_targets(config)
    standardized, augmented = input_functions(config, statistics)

    def mix(key, image, label, mask):
        return data.mix(key, image, label, mask, augment, len(dataset.classes))

    weights: Any = ()
    if config.data.balance == "loss":
        weights = data.class_weights(dataset.train.labels, len(dataset.classes)).tolist()
    return _kind(config.loss)(
        classes=tuple(dataset.classes),
        standardize=standardized,
        augment=augmented,
        mix=mix if augment.mixup or augment.cutmix else None,
        smoothing=config.label_smoothing,
        auxiliary_weight=getattr(model, "auxiliary_weight", 0.0),
        class_weights=tuple(weights),
    )


def _check_targets(config):
    """Raise InputError for a loss that compares scores with labels, and targets that are distributions."""
    augment = config.data.augment
    values = {"label_smoothing": config.label_smoothing, "mixup": augment.mixup, "cutmix": augment.cutmix}
    for name, value in values.items():
        if config.loss and value:
            raise InputError(f"{name} {value} needs probabilities, and loss {config.loss} has none; leave one out")


def of_record(run) -> Classification:
    """Return the task of a finished run, or of a network with pretrained weights."""
    loss = run.config.loss if hasattr(run, "config") else ""  # published weights are of logits
    return _kind(loss)(run.classes, run.inputs)


def _kind(loss):
    return partial(ScoredClassification, loss=loss) if loss else Classification
