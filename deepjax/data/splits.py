"""Draw a part of a data set at random, with the same fraction of every class."""

import math
from collections.abc import Sequence

import numpy as np

from deepjax.errors import InputError


def stratified(
    labels: np.ndarray, fraction: float, seed: int, classes: Sequence[str], field: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted indices of the examples that remain, and of those that are taken.

    The same fraction of every class is taken, but at least one example of each.

    Args:
      labels: int [N].
      fraction: fraction of the examples to take, rounded up to whole examples.
      seed: seed of the draw.
      classes: names of the classes.
      field: the option that `fraction` comes from, for the message.

    Raise InputError if a class has a single example, or too many examples would be taken.

    >>> remaining, taken = stratified(np.array([0, 0, 0, 1, 1, 1]), 0.1, 0, ("a", "b"), "data.validation")
    >>> len(remaining), len(taken)
    (4, 2)
    """
    from sklearn.model_selection import train_test_split

    counts = np.bincount(labels, minlength=len(classes))
    present = int((counts > 0).sum())
    if present and counts[counts > 0].min() < 2:
        single = ", ".join(repr(classes[i]) for i in np.flatnonzero(counts == 1)[:3])
        raise InputError(
            f"{field} {fraction}: only one training image of {single} is there to split; add images"
            + (" or set data.validation 0" if field == "data.validation" else "")
        )
    size = max(math.ceil(len(labels) * fraction), present)
    try:
        remaining, taken = train_test_split(np.arange(len(labels)), test_size=size, stratify=labels, random_state=seed)
    except ValueError as error:  # more images to take than would leave one of each class
        raise InputError(
            f"{field} {fraction}: {len(labels)} images of {present} classes cannot be split; give a smaller fraction "
            f"or add images"
        ) from error
    rng = np.random.default_rng(seed)
    for label in np.setdiff1d(labels, labels[taken]):  # of a small class, none may have been drawn
        moved = rng.choice(remaining[labels[remaining] == label])
        remaining, taken = remaining[remaining != moved], np.append(taken, moved)
    return np.sort(remaining), np.sort(taken)
