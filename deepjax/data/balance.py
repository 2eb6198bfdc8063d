"""Classes with unequal numbers of examples: weights of the loss, or an order in which all are equally frequent."""

from collections.abc import Sequence

import numpy as np

from deepjax import config
from deepjax.errors import InputError


def check_balance(data: config.Data, labels: np.ndarray) -> None:
    """Raise InputError if `data.balance` has no effect on a training set with these labels."""
    if not data.balance:
        return
    if np.issubdtype(labels.dtype, np.floating):
        raise InputError(f"data.balance {data.balance}: the targets are numbers, without classes; leave it out")
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    if counts.min() == counts.max():
        raise InputError(
            f"data.balance {data.balance} does nothing: each of the {len(counts)} classes has {counts[0]} training "
            f"examples; leave it out"
        )


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return a weight for each class, inverse to its number of examples: float32 [classes].

    The mean over all examples is 1, so that the loss keeps its scale. A class without examples has weight 0.

    >>> class_weights(np.array([0, 0, 0, 0, 1, 1]), 3).tolist()
    [0.75, 1.5, 0.0]
    """
    counts = np.bincount(labels, minlength=classes)
    found = counts > 0
    return np.where(found, len(labels) / (found.sum() * np.maximum(counts, 1)), 0).astype(np.float32)


def describe_balance(data: config.Data, labels: np.ndarray, classes: Sequence[str]) -> str:
    """Return in words how often an example counts in an epoch, for the most and the least frequent class.

    >>> describe_balance(config.Data(balance="loss"), np.array([0, 0, 0, 1]), ("cat", "dog"))
    'data.balance loss: an example of cat counts 0.667 times, one of dog 2 times'
    """
    weights = class_weights(labels, len(classes))
    found = np.flatnonzero(weights)
    least, most = found[weights[found].argmin()], found[weights[found].argmax()]
    counts = f"an example of {classes[least]} counts {weights[least]:.3g} times"
    return f"data.balance {data.balance}: {counts}, one of {classes[most]} {weights[most]:.3g} times"


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return as many indices as there are labels, in random order, with equally many of each class.

    Numbers of examples differ by at most one between classes, and so do the numbers of times that an example of a class
    is repeated: a small class is gone through again and again, of a large class a random part is taken.

    >>> labels = np.array([0, 0, 0, 0, 0, 1])
    >>> np.bincount(labels[balanced_order(labels, np.random.default_rng(0))]).tolist()
    [3, 3]
    """
    starts = np.cumsum(np.bincount(labels))[:-1]
    classes = [members for members in np.split(np.argsort(labels, kind="stable"), starts) if len(members)]
    counts = np.full(len(classes), len(labels) // len(classes))
    counts[rng.permutation(len(classes))[: len(labels) % len(classes)]] += 1
    drawn = []
    for members, count in zip(classes, counts, strict=True):
        rounds = [rng.permutation(members) for _ in range(-(-count // len(members)))]
        drawn.extend(np.concatenate(rounds)[:count] if rounds else ())
    return rng.permutation(np.array(drawn, np.int32))


def repeats(order: np.ndarray) -> np.ndarray:
    """Return how often each number of `order` [n] occurs before its place.

    >>> repeats(np.array([5, 3, 5, 5, 3])).tolist()
    [0, 0, 1, 2, 1]
    """
    places = np.argsort(order, kind="stable")
    new = np.concatenate([[True], np.diff(order[places]) != 0])
    firsts = np.flatnonzero(new)
    earlier = np.empty(len(order), np.int32)
    earlier[places] = np.arange(len(order)) - firsts[np.cumsum(new) - 1]
    return earlier
