"""Draw a part of a data set at random, with the same fraction of every class."""

import math

import numpy as np

from deepjax.errors import InputError


def drawn_size(count: int, fraction: float, classes: int) -> int:
    """Return how many of `count` examples of so many classes `stratified` takes: at least one of each class."""
    return max(math.ceil(count * fraction), classes)


def stratified(labels: np.ndarray, fraction: float, seed: int, field: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted indices of the examples that remain, and of those that are taken.

    The same fraction of every class is taken, but at least one example of each. A class with a single example keeps it.

    Args:
      labels: int [N]; or float [N], numbers, among which examples are drawn without regard to them.
      fraction: fraction of the examples to take, rounded up to whole examples.
      seed: seed of the draw.
      field: the option that `fraction` comes from, for the message.

    Raise InputError if too many examples would be taken, or no class has two examples.

    >>> remaining, taken = stratified(np.array([0, 0, 0, 1, 1, 1]), 0.1, 0, "data.validation")
    >>> len(remaining), len(taken)
    (4, 2)
    """
    from sklearn.model_selection import train_test_split

    if np.issubdtype(labels.dtype, np.floating):
        labels = np.zeros(len(labels), np.int32)
    counts = np.bincount(labels)
    shared = np.flatnonzero(counts[labels] > 1)  # the other examples are the only ones of their class
    present = int((counts > 1).sum())
    size = drawn_size(len(labels), fraction, present)
    try:
        remaining, taken = train_test_split(shared, test_size=size, stratify=labels[shared], random_state=seed)
    except ValueError as error:  # more images to take than would leave one of each class
        raise InputError(
            f"{field} {fraction}: {len(labels)} examples of {present} classes cannot be split; give a smaller "
            f"fraction, add examples, or, if labels are the numbers of a regression, give floats"
        ) from error
    remaining = np.append(remaining, np.flatnonzero(counts[labels] == 1))
    rng = np.random.default_rng(seed)
    for label in np.setdiff1d(labels[shared], labels[taken]):  # of a small class, none may have been drawn
        moved = rng.choice(remaining[labels[remaining] == label])
        remaining, taken = remaining[remaining != moved], np.append(taken, moved)
    return np.sort(remaining), np.sort(taken)
