"""The workloads of `deepjax bench frameworks`: networks, batches, and first weights. Imports no JAX or PyTorch.

Shi et al. 2016, "Benchmarking state-of-the-art deep learning software tools" (arXiv 1608.07249), table 7.
"""

from typing import NamedTuple

import numpy as np

from deepjax.errors import InputError, choices

DTYPES = ("float32", "bfloat16")
LEARNING_RATE, MOMENTUM = 1e-3, 0.9  # so small that the gradients of a batch that never changes do not vanish


class Workload(NamedTuple):
    """One network and its batch."""

    name: str
    network: str  # of the zoo
    shape: tuple[int, ...]  # of one example; of a network of words: (steps,)
    classes: int
    batch: int
    options: dict = {}  # noqa: RUF012  of the network, the same in every system


LSTM = {"vocabulary": 10_000, "width": 256, "layers": 2}
OF_SHI = (
    Workload("fcn_s", "fcn_s", (1, 1, 26752), 26752, 64),
    Workload("alexnet_s", "alexnet", (224, 224, 3), 1000, 16),
    Workload("resnet50", "resnet50", (224, 224, 3), 1000, 16),
    Workload("fcn_r", "fcn_r", (28, 28, 1), 10, 1024),
    Workload("alexnet_r", "alexnet_r", (32, 32, 3), 10, 1024),
    Workload("resnet56", "cifar_resnet", (32, 32, 3), 10, 128, {"depth": 56}),
    Workload("lstm", "lstm", (32,), LSTM["vocabulary"], 128, LSTM),
)
WORKLOADS = {work.name: work for work in OF_SHI}
OF_INFERENCE, BATCHES = ("resnet50", "mobilenet_v2"), (1, 32)


def choose(names, batch=None, inference=False):
    """Return the workloads of these names.

    Args:
      names: keys of `WORKLOADS`, or networks of the zoo. Empty: all of `WORKLOADS`; for inference, `OF_INFERENCE`.
      batch: examples in a batch. None: the workload's own, 32 for networks of the zoo; for inference, `BATCHES`.
      inference: whether only forward passes are measured.

    Raises:
      InputError: an unknown name, or a batch below 1 (training: below 2).
    """
    if batch is not None and batch < (1 if inference else 2):
        raise InputError(f"batch {batch} must be at least {1 if inference else 2}")
    names = list(dict.fromkeys(names)) or (OF_INFERENCE if inference else WORKLOADS)
    works = [_workload(name) for name in names]
    if inference and any(work.network == "lstm" for work in works):
        raise InputError("workload lstm is for training; leave it out of --inference")
    batches = [batch] if batch else BATCHES if inference else [None]
    return [work._replace(batch=each or work.batch) for work in works for each in batches]


def _workload(name):
    if name in WORKLOADS:
        return WORKLOADS[name]
    from deepjax import zoo  # imports JAX, which the other workloads do not need here

    if name not in zoo.MODELS:
        raise InputError(f"workload {name!r} is unknown; {choices(name, [*WORKLOADS, *zoo.MODELS])}")
    network = zoo.create(name)
    return Workload(name, name, tuple(network.usual_input), network.num_classes, 32)


def data(work):
    """Return (inputs, labels): float32 [batch, *shape] and int32 [batch], or words and next words [batch, steps]."""
    rng = np.random.default_rng(0)
    if len(work.shape) == 1:
        words = rng.integers(work.classes, size=(work.batch, work.shape[0] + 1)).astype(np.int32)
        return words[:, :-1], words[:, 1:]
    images = rng.standard_normal((work.batch, *work.shape), np.float32)
    return images, rng.integers(work.classes, size=work.batch).astype(np.int32)
