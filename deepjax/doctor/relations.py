"""Can targets be told from inputs at all? Simple predictors, and tests of whether predictions and targets agree."""

import jax
import numpy as np

NEIGHBORS = 5
WORDS = 2048  # different indices that are counted, at most
PLACES = 256  # of an example with a target for each place, such as the pixels of a mask, that are compared, at most
RIDGE = 0.1  # penalty relative to the mean square of the features
FOLDS = 5


def features(inputs) -> list[np.ndarray]:
    """Return inputs, a pytree of arrays [examples, ...], as one or two arrays f64 [examples, features].

    The second one, where there are indices such as words, has how often each of them occurs in their place.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(inputs)]
    flat = [np.nan_to_num(leaf.reshape(len(leaf), -1).astype(np.float64)) for leaf in leaves]
    counted = [_counts(leaf) for leaf in leaves]
    forms = [flat]
    if any(each is not None for each in counted):
        forms.append([a if b is None else b for a, b in zip(flat, counted, strict=True)])
    return [np.concatenate(form, axis=1) for form in forms]


def _counts(a):
    """Return how often each index occurs in each example, f64 [examples, indices], or None for other arrays."""
    if a.dtype.kind not in "iu" or a.dtype == np.uint8 or a.ndim > 2:
        return None
    values, place = np.unique(a, return_inverse=True)
    if len(values) > WORDS:
        return None
    counts = np.zeros((len(a), len(values)))
    np.add.at(counts, (np.arange(len(a))[:, None], place.reshape(len(a), -1)), 1)
    return counts


def columns(targets, facts) -> tuple[np.ndarray, np.ndarray]:
    """Return the targets as f64 [examples, places, columns], and the places that are compared.

    A column is a class, or a number; each has mean 0 and variance 1 over the examples.

    Args:
      targets: array [examples, ...].
      facts: of the targets.
    """
    t = np.asarray(targets)
    together = facts.kind in ("one-hot", "shares") or (t.ndim == 2 and t.shape[1] <= PLACES and not facts.classes > 2)
    t = t.reshape(len(t), -1, t.shape[-1] if together and t.ndim > 1 else 1)
    places = np.unique(np.linspace(0, t.shape[1] - 1, PLACES).astype(int))
    t = t[:, places]
    if facts.kind in ("classes", "binary"):
        t = t.reshape(len(t), -1, 1) == np.arange(max(facts.classes, 2))
    t = t.astype(np.float64)
    return (t - t.mean(0)) / (t.std(0) + 1e-12), places


def paired(predictions, y, places, facts) -> tuple[np.ndarray, np.ndarray] | None:
    """Return predictions [examples, ...] and columns of targets in one shape, or None if they do not fit.

    Of several classes, the most probable one is predicted. One output for a target of two classes is compared with the
    second class.
    """
    p = np.asarray(predictions, np.float64).reshape(len(y), -1)
    size = int(places[-1]) + 1  # the last place is always one of them
    if p.shape[1] % size:
        return None
    p = p.reshape(len(y), size, -1)[:, places]
    if facts.kind in ("classes", "binary", "one-hot") and p.shape[2] >= y.shape[2]:
        return (p.argmax(-1)[..., None] == np.arange(y.shape[2])).astype(np.float64), y
    if not np.isfinite(p).all():
        return None
    if p.shape[2] == 1 and y.shape[2] == 2 and facts.classes:
        return p, y[..., 1:]
    return (p, y) if p.shape == y.shape else None


def agreement(p, y) -> float:
    """Return by how many standard deviations predictions agree with their own targets more than with others.

    The statistic is sum_i p_i . y_i. Its mean and variance over all pairings of predictions and targets are those of
    Hoeffding (1951, "A combinatorial central limit theorem"): with G_ij = p_i . y_j less the means of its rows and
    columns, the variance is the sum of G_ij squared over N - 1.

    Args:
      p: predictions, f64 [examples, ...], of a model that was trained on other examples.
      y: targets, f64 of the same shape.
    """
    p, y = p.reshape(len(p), -1), y.reshape(len(y), -1)
    gram = (p - p.mean(0)) @ (y - y.mean(0)).T
    deviation = np.sqrt((gram**2).sum() / (len(p) - 1))
    return float(np.trace(gram) / deviation) if deviation > 0 else 0.0


def agreement_of_smoother(weights, y) -> float:
    """Return the same for predictions that are weighted sums of the targets of other examples, p = W y.

    The statistic is sum_ij W_ij K_ij with K_ij = y_i . y_j. Its mean over all orders of the targets is exact. Its
    variance is twice the mean square of K_ij, i != j, times the sum of squares of W, made symmetric and centered: the
    leading term for large N (Mantel 1967, "The detection of disease clustering"), because both have means of 0 in
    every row.

    Args:
      weights: f64 [examples, examples]; 0 on the diagonal.
      y: targets, f64 [examples, ...].
    """
    y = y.reshape(len(y), -1)
    y = y - y.mean(0)
    kernel, n = y @ y.T, len(y)
    a = (weights + weights.T) / 2
    statistic, mean = (a * kernel).sum(), -a.sum() * np.trace(kernel) / (n * (n - 1))
    a = a - a.mean(0) - a.mean(1, keepdims=True) + a.mean()
    apart = ~np.eye(n, dtype=bool)
    deviation = np.sqrt(2 * (a[apart] ** 2).sum() * (kernel[apart] ** 2).mean())
    return float((statistic - mean) / deviation) if deviation > 0 else 0.0


def neighbors(x) -> np.ndarray:
    """Return the weights of a prediction of each example by its nearest neighbors among the others."""
    x = (x - x.mean(0)) / (x.std(0) + 1e-8)
    squares = (x**2).sum(1)
    distances = squares[:, None] + squares - 2 * x @ x.T
    np.fill_diagonal(distances, np.inf)
    nearest = np.argpartition(distances, NEIGHBORS, axis=1)[:, :NEIGHBORS]
    weights = np.zeros(distances.shape)
    np.put_along_axis(weights, nearest, 1 / NEIGHBORS, axis=1)
    return weights


def ridge(x) -> np.ndarray:
    """Return the weights of a prediction of each example by ridge regression on the other four fifths."""
    x = (x - x.mean(0)) / (x.std(0) + 1e-8)
    weights, parts = np.zeros((len(x), len(x))), np.arange(len(x)) % FOLDS
    for part in range(FOLDS):
        train, test = np.flatnonzero(parts != part), np.flatnonzero(parts == part)
        gram, cross = x[train] @ x[train].T, x[train] @ x[test].T
        gram += len(train) * RIDGE * max(1.0, x.shape[1] / len(train)) * np.eye(len(train))
        weights[np.ix_(test, train)] = np.linalg.solve(gram, cross).T
    return weights
