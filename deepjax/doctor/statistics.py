"""What is measured of one layer: its output, its units, its kernel. All of it is in float32.

Squares of float32 numbers below 1e-19 or above 1e19 are 0 or infinite. Deep networks reach both, so everything is
divided by the largest entry first.
"""

import jax
import jax.numpy as jnp
import numpy as np

ROWS = 256  # of activations that the effective rank is computed of, at most
SATURATED = {  # name: whether the unit is saturated, from its output
    "tanh": lambda a: jnp.abs(a) > 0.99,
    "sigmoid": lambda a: (a < 0.01) | (a > 0.99),
}
PROBES = 64  # vectors for the orthogonality of kernels with more features than these


def rms(x) -> jax.Array:
    """Return the root mean square of all entries, which is finite if they are."""
    x = x.astype(jnp.float32)
    scale = _scale(x)
    return scale * jnp.sqrt(jnp.mean(jnp.square(x / scale)))


def norm(x) -> jax.Array:
    """Return the Euclidean norm of all entries, which is finite if they are."""
    return rms(x) * np.float32(np.sqrt(x.size))


def non_finite(x) -> jax.Array:
    """Return the share of entries that are infinite or no number."""
    # Counted directly, because 1 - mean is not exactly 0 where the division by the number of entries is rounded.
    return jnp.mean((~jnp.isfinite(x.astype(jnp.float32))).astype(jnp.float32))


def _scale(x, axis=None, keepdims=False):
    largest = jnp.abs(x).max(axis, keepdims=keepdims)
    return jnp.where(largest > 0, largest, 1)


def arrange(x, examples, features):
    """Return an array as [examples, positions, features], from any order of these axes.

    The features are the last axis, unless only another one has their size. If no axis has the examples, the entries of
    the first axis are taken as examples.
    """
    axes = [axis for axis in range(x.ndim) if x.shape[axis] == features]
    if x.ndim > 1 and axes and x.ndim - 1 not in axes:
        x = jnp.moveaxis(x, axes[-1], -1)
    if x.ndim < 2:
        x = x.reshape(-1, 1)
    rows = [axis for axis in range(x.ndim - 1) if x.shape[axis] == examples]
    if rows and x.shape[0] % examples:
        x = jnp.moveaxis(x, rows[0], 0)
    first = examples if x.shape[0] % examples == 0 else x.shape[0]
    return x.reshape(first, -1, x.shape[-1]).astype(jnp.float32)


def of_output(z):
    """Measure a layer's output z of any shape."""
    z = jax.lax.stop_gradient(z).astype(jnp.float32)
    scale = _scale(z)
    mean = jnp.mean(z / scale)
    return {
        "mean": scale * mean,
        "std": scale * jnp.sqrt(jnp.mean(jnp.square(z / scale - mean))),
        "non_finite": non_finite(z),
    }


def of_units(a, rows, name):
    """Measure the activations a [examples, positions, features] of an activation, and keep some rows of them."""
    a = jax.lax.stop_gradient(a)
    flat = a.reshape(-1, a.shape[-1])
    saturated = SATURATED[name](a) if name in SATURATED else jnp.zeros_like(a, bool)
    at = np.linspace(0, len(flat) - 1, min(rows, len(flat))).astype(int)
    return {
        "ran": jnp.ones(()),  # 0 in a branch that is not taken
        "zeros": jnp.mean((a == 0).astype(jnp.float32)),
        "saturated": jnp.mean(saturated.astype(jnp.float32)),
        "low": flat.min(0),
        "high": flat.max(0),
        "cosine": cosine(a.reshape(len(a), -1)),
        "rows": flat[at],
    }


def cosine(x) -> jax.Array:
    """Return the mean cosine between two different rows of x [examples, features], without those that are 0."""
    x = x / _scale(x, -1, keepdims=True)
    lengths = jnp.linalg.norm(x, axis=-1, keepdims=True)
    unit = x / jnp.where(lengths > 0, lengths, 1)
    count = jnp.sum(lengths > 0)
    total = jnp.sum(jnp.square(unit.sum(0)))
    return jnp.where(count > 1, (total - count) / jnp.maximum(count * (count - 1), 1), jnp.nan)


def of_kernel(matrix):
    """Measure a kernel [..., fan_in, features]."""
    matrix = jax.lax.stop_gradient(matrix).astype(jnp.float32)
    matrix = matrix.reshape(-1, *matrix.shape[-2:])
    scale = _scale(matrix)
    scaled = matrix / scale
    return {
        "weight_rms": rms(matrix),
        "weight_std": scale * jnp.std(scaled),
        "weight_hash": hashes(matrix),
        "orthogonality": jnp.mean(jax.vmap(orthogonality)(scaled)),
    }


def hashes(matrix) -> jax.Array:
    """Return one uint32 per feature of [n, fan_in, features]. Equal columns have equal numbers, others hardly ever."""
    bits = jax.lax.bitcast_convert_type(matrix + 0.0, jnp.uint32)
    factors = np.random.default_rng(0).integers(1, 2**32, (*bits.shape[:2], 1), dtype=np.uint32)
    mixed = (bits ^ (bits >> 15)) * (factors | 1)
    mixed = (mixed ^ (mixed >> 13)) * np.uint32(0x85EBCA6B)
    return jnp.sum(mixed, (0, 1), dtype=jnp.uint32)


def orthogonality(matrix) -> jax.Array:
    """Return |G / s - I| / |I| of the smaller Gram matrix G of a kernel; s is the mean of G's diagonal.

    It is 0 for a multiple of an orthogonal matrix, and about sqrt(smaller / larger side) for independent entries. With
    more than `PROBES` features it is estimated from random signs (Hutchinson 1990).
    """
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    side = matrix.shape[1]
    probes = np.eye(side, dtype=np.float32)
    if side > PROBES:
        probes = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (side, PROBES))
    mean = jnp.sum(jnp.square(matrix)) / side
    rest = matrix.T @ (matrix @ probes) / jnp.where(mean > 0, mean, 1) - probes
    # the squares of each probe's column sum to |G / s - I|^2 in the mean, those of the identity's columns in sum
    per_probe = jnp.sum(jnp.square(rest)) / (1 if side <= PROBES else PROBES)
    return jnp.sqrt(per_probe / side)


def effective_rank(rows) -> float:
    """Return the effective rank of features, exp of the entropy of the singular values of rows [n, features].

    The rows are centered, and the singular values are divided by their sum (Roy & Vetterli 2007, "The effective rank").
    It is 0 if all rows are equal. NaN if an entry is not finite.
    """
    rows = np.asarray(rows, np.float64)
    if not np.isfinite(rows).all():
        return float("nan")
    rows = rows / max(np.abs(rows).max(), np.finfo(float).tiny)
    centered = rows - rows.mean(0)
    gram = centered @ centered.T if len(rows) < rows.shape[1] else centered.T @ centered
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))
    values = values[values > 1e-7 * max(np.sqrt(np.square(rows).sum()), np.finfo(float).tiny)]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))
