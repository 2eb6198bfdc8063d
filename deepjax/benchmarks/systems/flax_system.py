"""The system flax: the workloads in plain Flax, as a user would write them, with nothing of deepjax in the networks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn

from deepjax.benchmarks.flax_net import FlaxResNet
from deepjax.benchmarks.programs import abstract_variables, start
from deepjax.benchmarks.systems.jax_program import Inference, Training, cast, count, option
from deepjax.benchmarks.workloads import Workload, data

HIDDEN = {"fcn_s": (2048, 2048, 2048), "fcn_r": (2048, 4096, 1024)}


def network(work, dtype="float32"):
    """Return the network of a workload."""
    dtype = option(dtype)
    return {
        "fcn_s": lambda: FCN(HIDDEN["fcn_s"], work.classes, dtype),
        "fcn_r": lambda: FCN(HIDDEN["fcn_r"], work.classes, dtype),
        "alexnet": lambda: AlexNet(work.classes, work.options.get("dropout", 0.5), dtype),
        "alexnet_r": lambda: AlexNetR(work.classes, dtype),
        "resnet50": lambda: ResNet50(work.classes, dtype=dtype),
        "cifar_resnet": lambda: FlaxResNet((work.options["depth"] - 2) // 6, 16, work.classes, dtype),
        "lstm": lambda: LSTM(**work.options, dtype=dtype),
    }[work.network]()


def load(job):
    """Return the program of a job."""
    work = Workload(**job["workload"])
    model = network(work, job["dtype"])
    if job["kind"] == "train":
        return Training(model, work)
    variables = start(abstract_variables(model, data(work)[0]))
    return Inference(
        lambda variables, x: model.apply(variables, x, train=False),
        cast(variables, job["dtype"]),
        work,
        count(variables["params"]),
    )


class FCN(nn.Module):
    """Flatten, dense layers of sigmoid units, the logits."""

    hidden: Sequence[int]
    classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x, *, train: bool):
        """x [batch, ...] -> logits [batch, classes]."""
        x = x.reshape(len(x), -1)
        for width in self.hidden:
            x = nn.sigmoid(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.classes, dtype=self.dtype)(x)


class AlexNet(nn.Module):
    """The AlexNet of Krizhevsky 2014 for images of 224x224."""

    classes: int
    dropout: float
    dtype: Any = None

    @nn.compact
    def __call__(self, x, *, train: bool):
        """x [batch, 224, 224, channels] -> logits [batch, classes]."""
        convs = ((64, 11, 4, 2, True), (192, 5, 1, 2, True), (384, 3, 1, 1, False), (256, 3, 1, 1, False))
        for features, window, stride, padding, pools in (*convs, (256, 3, 1, 1, True)):
            x = nn.relu(nn.Conv(features, (window, window), stride, padding, dtype=self.dtype)(x))
            x = nn.max_pool(x, (3, 3), (2, 2)) if pools else x
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.relu(nn.Dense(4096, dtype=self.dtype)(x))
        return nn.Dense(self.classes, dtype=self.dtype)(x)


class AlexNetR(nn.Module):
    """AlexNet-R of Shi et al. 2016."""

    classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x, *, train: bool):
        """x [batch, 32, 32, channels] -> logits [batch, classes]."""
        for features, pool in ((32, nn.max_pool), (32, nn.max_pool), (64, nn.avg_pool)):
            x = pool(nn.relu(nn.Conv(features, (5, 5), padding=2, dtype=self.dtype)(x)), (3, 3), (2, 2))
        return nn.Dense(self.classes, dtype=self.dtype)(x.reshape(len(x), -1))


class ResNet50(nn.Module):
    """ResNet-50 of He et al. 2015, with the stride in the 3x3 convolutions."""

    classes: int
    units: Sequence[int] = (3, 4, 6, 3)
    dtype: Any = None

    @nn.compact
    def __call__(self, x, *, train: bool):
        """x [batch, height, width, channels] -> logits [batch, classes]."""
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(nn.BatchNorm, not train, momentum=0.9, dtype=self.dtype)
        padding: Any = ((1, 1), (1, 1))  # which Flax takes, and its type does not say
        x = nn.relu(norm()(conv(64, (7, 7), 2, 3)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding)
        for stage, units in enumerate(self.units):
            for unit in range(units):
                features, stride = 64 * 2**stage, 2 if stage > 0 and unit == 0 else 1
                y = nn.relu(norm()(conv(features, (1, 1))(x)))
                y = nn.relu(norm()(conv(features, (3, 3), stride, 1)(y)))
                y = norm()(conv(4 * features, (1, 1))(y))
                x = x if unit else norm()(conv(4 * features, (1, 1), stride)(x))
                x = nn.relu(x + y)
        return nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2)))


class LSTM(nn.Module):
    """Embedding, layers of LSTM cells, logits at each step."""

    vocabulary: int
    width: int
    layers: int
    dtype: Any = None

    @nn.compact
    def __call__(self, words, *, train: bool):
        """int [batch, time] -> logits [batch, time, vocabulary]."""
        x: Any = nn.Embed(self.vocabulary, self.width, dtype=self.dtype)(words)
        for _ in range(self.layers):
            x = nn.RNN(nn.OptimizedLSTMCell(self.width, dtype=self.dtype))(x)
        return nn.Dense(self.vocabulary, dtype=self.dtype)(x)
