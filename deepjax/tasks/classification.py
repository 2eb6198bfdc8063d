"""Classification: assign each image, or vector of features, to one of several classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import data, functional
from deepjax.errors import InputError
from deepjax.runs.plots import Curve
from deepjax.runs.workdir import Statistics

TOP = 5  # classes that evaluation keeps for each example
MANY, HARDEST = 100, 30  # of more than MANY classes, a picture shows the HARDEST


class Evaluation(NamedTuple):
    """Predictions for a data set, one row per example."""

    labels: np.ndarray  # i64[examples]
    losses: np.ndarray  # f32[examples], nats
    classes: np.ndarray  # i32[examples, k]: the k = min(5, classes) most probable, best first

    @property
    def error(self):
        """Fraction of examples whose most probable class is wrong."""
        return float(np.mean(self.classes[:, 0] != self.labels))

    @property
    def loss(self):
        """Mean cross entropy in nats."""
        return float(np.mean(self.losses, dtype=np.float64))

    @property
    def metrics(self):
        """The numbers that a run records."""
        return {"error": self.error, "loss": self.loss}

    @property
    def rank(self):
        """Of two evaluations, the one with the lower rank is better."""
        return self.error, self.loss

    @property
    def top5_error(self):
        """Fraction of examples whose class is not among the five most probable."""
        return float(np.mean(~(self.classes == self.labels[:, None]).any(-1)))

    def class_counts(self, num_classes):
        """Return (examples, wrong predictions) of each class, two arrays i64[classes]."""
        wrong = self.labels[self.classes[:, 0] != self.labels]
        return tuple(np.bincount(labels, minlength=num_classes) for labels in (self.labels, wrong))

    def class_errors(self, num_classes):
        """Return the error of each class, f64[classes]; NaN for a class without examples."""
        examples, wrong = self.class_counts(num_classes)
        return np.where(examples > 0, wrong / np.maximum(examples, 1), np.nan)

    def confusion(self, num_classes, shown=None):
        """Return counts i64[true class, predicted class], of all classes or of the classes `shown`, in that order.

        An example whose class or prediction is not in `shown` is not counted.
        """
        shown = np.arange(num_classes) if shown is None else np.asarray(shown)
        place = np.full(num_classes, -1)
        place[shown] = np.arange(len(shown))
        pairs = place[[self.labels, self.classes[:, 0]]]
        counts = np.zeros((len(shown), len(shown)), int)
        np.add.at(counts, tuple(pairs[:, (pairs >= 0).all(0)]), 1)
        return counts


class Prediction(NamedTuple):
    """The most probable classes of one image file, or why the file could not be read."""

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str = ""

    @property
    def texts(self):
        """The classes with their probabilities in words, for a table."""
        return [f"{name} {100 * p:.1f} %" for name, p in zip(self.classes, self.probabilities, strict=True)]

    @property
    def record(self):
        """What JSON holds of it."""
        if self.problem:
            return {"image": self.path, "error": self.problem}
        likely = zip(self.classes, self.probabilities, strict=True)
        return {"image": self.path, "classes": [{"class": name, "probability": p} for name, p in likely]}


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

    evaluated = ("label", "loss", "classes")
    averaged = ("label", "log_probabilities")
    curves: ClassVar = {"loss": Curve("cross entropy (nats)", log=True), "error": Curve("error (%)", 100)}

    @staticmethod
    def abstract_batch(dataset, size):
        """Return the shapes and dtypes of a batch of `size` examples of a data set, without reading one."""
        kind = np.uint8 if isinstance(dataset.train, data.Records) else dataset.train.images.dtype
        row = jax.ShapeDtypeStruct((size,), jnp.int32)
        image, mask = jax.ShapeDtypeStruct((size, *dataset.shape), kind), jax.ShapeDtypeStruct((size,), bool)
        return {"image": image, "label": row, "mask": mask}

    def prepare(self, batch, key=None):
        """Return (inputs, targets): labels, or, if examples are mixed, a distribution over classes for each."""
        image, label = batch["image"], batch["label"]
        if key is None or self.augment is None:
            image = self.standardize(image)
        else:
            image = self.augment(jax.random.fold_in(key, 0), image)
        if key is None or self.mix is None:
            return image, label
        return self.mix(jax.random.fold_in(key, 2), image, label, batch["mask"])

    def measure(self, outputs, targets, mask):
        """Return the sums of loss (nats) and of wrong predictions over a batch, and the number of its examples.

        A network with auxiliary heads returns (logits, auxiliary logits, ...) in training. The loss is then that of
        the logits plus `auxiliary_weight` times that of each auxiliary head (Szegedy et al. 2014, section 5). A
        prediction is correct if it is the label, or the class with the largest share of a mixed target.

        Raise InputError for auxiliary heads without a weight.
        """
        heads = list(outputs) if isinstance(outputs, tuple) else [outputs]
        if len(heads) > 1 and not self.auxiliary_weight:
            raise InputError(
                f"the model returns {len(heads) - 1} auxiliary outputs in training, but has no auxiliary_weight for "
                f"their losses; give the module that attribute, such as 0.3"
            )
        weights = [1.0, *[self.auxiliary_weight] * (len(heads) - 1)]
        losses = sum(
            weight * functional.cross_entropy(logits, targets, smoothing=self.smoothing)
            for logits, weight in zip(heads, weights, strict=True)
        )
        label = targets if targets.ndim == 1 else targets.argmax(-1)
        wrong = mask & (heads[0].argmax(-1) != label)
        return {
            "loss": jnp.where(mask, losses, 0).sum(),
            "error": wrong.sum().astype(jnp.float32),
            "count": mask.sum().astype(jnp.float32),
        }

    def rows(self, outputs, batch):
        """Return what evaluation uses of each example. Rows of padding hold arbitrary values."""
        logits = outputs.astype(jnp.float32)
        return {
            "label": batch["label"],
            "loss": functional.cross_entropy(logits, batch["label"]),
            "classes": jax.lax.top_k(logits, min(TOP, logits.shape[-1]))[1],
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
            return Evaluation(labels, rows["loss"], rows["classes"])
        logs = rows["log_probabilities"]
        likeliest = np.argsort(-logs, axis=-1, kind="stable")[:, :TOP]
        return Evaluation(labels, -logs[np.arange(len(labels)), labels], likeliest.astype(np.int32))

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

    def figures(self, evaluation, title):
        """Return {file name: figure}: the confusion matrix.

        A matrix of all classes would be as large as their square. Of more than 100 classes, only the 30 with the most
        wrong predictions are drawn, the hardest first; shares are those of all examples of a class.
        """
        from deepjax.runs import plots

        total = len(self.classes)
        examples, wrong = evaluation.class_counts(total)
        shown = np.arange(total)
        if total > MANY:
            shown = np.argsort(-wrong, kind="stable")[:HARDEST]
            title = f"{title}\nthe {HARDEST} of {total:,} classes with the most wrong predictions"
        counts = evaluation.confusion(total, shown)
        names = [self.classes[k] for k in shown]
        return {"confusion.png": plots.confusion(counts, examples[shown], names, title)}

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
            likely = Prediction(str(path), tuple(self.classes[c] for c in best), tuple(row[best].tolist()))
            found.append(Prediction(str(path), problem=problems[i]) if i in problems else likely)
        return found


def outputs(classes, shape) -> int:
    """Return how many outputs a network has for examples of these classes and this shape: one logit a class."""
    return len(classes)


def of_config(config, dataset, statistics, model) -> Classification:
    """Return the task of a config: its augmentation, mixing, label smoothing, and the model's auxiliary weight."""
    augment, standardizer = config.data.augment, statistics.standardizer

    def augmented(key, image):
        image = data.change_colors(key, image, augment, statistics.lighting)
        return data.augment(key, standardizer.apply(image), augment)

    def mix(key, image, label, mask):
        return data.mix(key, image, label, mask, augment, len(dataset.classes))

    return Classification(
        classes=tuple(dataset.classes),
        standardize=standardizer.apply,
        augment=augmented,
        mix=mix if augment.mixup or augment.cutmix else None,
        smoothing=config.label_smoothing,
        auxiliary_weight=getattr(model, "auxiliary_weight", 0.0),
    )


def of_record(run) -> Classification:
    """Return the task of a finished run, or of a network with pretrained weights."""
    return Classification(run.classes, run.standardizer.apply)


def fit_statistics(config, dataset, source=None) -> Statistics:
    """Return the Statistics of the training set that the config requires.

    Args:
      config: the experiment. If it sets mean and std, they are used.
      dataset: data set whose training split is measured.
      source: a `fine_tuning.Source` of pretrained weights. Its standardization is used, since they depend on it.

    Raises:
      InputError: only one of mean and std is given, or not one value per channel; the source's images were standardized
        in another way.
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
            f"data.standardize {wanted.standardize} differs from that of pretrained {source.where}; set "
            f"data.standardize {source.standardizer.kind}"
        )
    return source.standardizer
