"""Draw random examples of classes, for models that are examined without a data set."""

import numpy as np

SEPARATION = 1.0  # standard deviation of a class's mean, for noise of standard deviation 1


def classes(examples: int, shape: tuple[int, ...], count: int, *, seed: int = 0):
    """Draw examples of classes that a network can learn: a random pattern per class plus normal noise.

    Args:
      examples: number of examples.
      shape: of one example.
      count: number of classes.
      seed: of the random numbers.

    Returns:
      (inputs f32 [examples, *shape] with mean 0 and variance 1, labels int32 [examples]).
    """
    rng = np.random.default_rng(seed)
    patterns = SEPARATION * rng.normal(size=(count, *shape))
    labels = (np.arange(examples) % count).astype(np.int32)
    rng.shuffle(labels)
    inputs = patterns[labels] + rng.normal(size=(examples, *shape))
    return ((inputs - inputs.mean()) / inputs.std()).astype(np.float32), labels
