"""Can targets be told from inputs at all? Two simple predictors, and a test of whether predictions meet targets."""

import jax
import numpy as np

NEIGHBORS = 5
WORDS = 2048  # different indices that are counted, at most
PLACES = 256  # of an example with a target for each place, such as the pixels of a mask, that are compared, at most
RIDGE = 0.1  # penalty relative to the mean square of the features


def features(inputs) -> np.ndarray:
    """Return inputs, a pytree of arrays [examples, ...], as f64 [examples, features].

    Indices, such as words, become how often each of them occurs.
    """
    return np.concatenate([_features(np.asarray(leaf)) for leaf in jax.tree.leaves(inputs)], axis=1)


def _features(a):
    flat = a.reshape(len(a), -1)
    if a.dtype.kind in "iu" and a.dtype != np.uint8:
        values, place = np.unique(flat, return_inverse=True)
        if len(values) <= WORDS:
            counts = np.zeros((len(a), len(values)))
            np.add.at(counts, (np.arange(len(a))[:, None], place.reshape(flat.shape)), 1)
            return counts
    return flat.astype(np.float64)


def columns(targets, facts) -> tuple[np.ndarray, np.ndarray]:
    """Return the targets as f64 [examples, places, columns], and the places that are compared.

    A column is a class, or a number with mean 0 and variance 1 over the examples.

    Args:
      targets: array [examples, ...].
      facts: of the targets.
    """
    t = np.asarray(targets)
    if facts.kind in ("classes", "binary"):
        values = t.reshape(len(t), -1)
        t = (values[..., None] == np.arange(max(facts.classes, 2))).astype(np.float64)
    else:
        t = t.reshape(len(t), -1, t.shape[-1] if t.ndim > 1 else 1).astype(np.float64)
    places = np.unique(np.linspace(0, t.shape[1] - 1, PLACES).astype(int))
    t = t[:, places]
    return (t - t.mean(0)) / (t.std(0) + 1e-12), places


def paired(predictions, y, places) -> tuple[np.ndarray, np.ndarray] | None:
    """Return predictions [examples, ...] and columns of targets in one shape, or None if they do not fit.

    One output for a target of two classes is compared with the second class. Outputs of classes that no target has are
    left out.
    """
    p = np.nan_to_num(np.asarray(predictions, np.float64)).reshape(len(y), -1)
    size = int(places[-1]) + 1  # the last place is always one of them
    if p.shape[1] % size:
        return None
    p = p.reshape(len(y), size, -1)[:, places]
    if p.shape[2] == 1 and y.shape[2] == 2:
        return p, y[..., 1:]
    return (p[..., : y.shape[2]], y) if p.shape[2] >= y.shape[2] else None


def agreement(p, y) -> float:
    """Return by how many standard deviations predictions agree with their own targets more than with others.

    The statistic is sum_i p_i . y_i. Its mean and variance over all pairings of predictions and targets are those of
    Hoeffding (1951, "A combinatorial central limit theorem"): with G_ij = p_i . y_j less the means of its rows and
    columns, the variance is the sum of G_ij squared over N - 1.

    Args:
      p: predictions, f64 [examples, ...].
      y: targets, f64 of the same shape.
    """
    p, y = p.reshape(len(p), -1), y.reshape(len(y), -1)
    gram = (p - p.mean(0)) @ (y - y.mean(0)).T
    deviation = np.sqrt((gram**2).sum() / (len(p) - 1))
    return float(np.trace(gram) / deviation) if deviation > 0 else 0.0


def by_neighbors(x, y) -> np.ndarray:
    """Predict each example by its nearest neighbors among the others."""
    x = (x - x.mean(0)) / (x.std(0) + 1e-8)
    squares = (x**2).sum(1)
    distances = squares[:, None] + squares - 2 * x @ x.T
    np.fill_diagonal(distances, np.inf)
    nearest = np.argpartition(distances, NEIGHBORS, axis=1)[:, :NEIGHBORS]
    return np.mean([y[near] for near in nearest.T], axis=0)


def by_ridge(x, y) -> np.ndarray:
    """Predict each example by ridge regression on the other four fifths of the examples."""
    x, flat = (x - x.mean(0)) / (x.std(0) + 1e-8), y.reshape(len(y), -1)
    predictions, parts = np.zeros(flat.shape), np.arange(len(x)) % 5
    for part in range(5):
        train, test = x[parts != part], x[parts == part]
        gram = train @ train.T + len(train) * np.eye(len(train)) * RIDGE * max(1.0, x.shape[1] / len(train))
        predictions[parts == part] = test @ train.T @ np.linalg.solve(gram, flat[parts != part])
    return predictions.reshape(y.shape)
