"""k-means, started by k-means++."""

import jax
import jax.numpy as jnp

from deepjax.errors import InputError


def kmeans_plus_plus(key, x, count):
    """Choose `count` examples as centers (Arthur & Vassilvitskii 2007, "k-means++").

    The first is uniform. Each further one is example i with a probability proportional to its squared distance from the
    nearest center so far.

    Args:
      key: PRNG key.
      x: [examples, features].
      count: number of centers. If there are fewer distinct examples, some centers repeat.

    Returns:
      [count, features].
    """
    x, keys = jnp.asarray(x), jax.random.split(key, count)
    first = x[jax.random.randint(keys[0], (), 0, len(x))]

    def choose(carry, key):
        center, nearest = carry
        nearest = jnp.minimum(nearest, jnp.square(x - center[None]).sum(1))
        center = x[jax.random.categorical(key, jnp.log(nearest))]
        return (center, nearest), center

    _, others = jax.lax.scan(choose, (first, jnp.full(len(x), jnp.inf, x.dtype)), keys[1:])
    return jnp.concatenate([first[None], others])


def kmeans(key, x, count, *, steps=100):
    """Return the centers of `count` clusters, by Lloyd's algorithm from `kmeans_plus_plus`.

    Each step moves every center to the mean of the examples that are nearest to it. A center with none stays.

    Args:
      key: PRNG key.
      x: [examples, features].
      count: number of clusters.
      steps: number of steps, unless the centers stop moving before.

    Returns:
      (centers [count, features], inertia): the inertia is the sum of squared distances from the nearest centers.

    Raises:
      InputError: fewer examples than clusters.
    """
    if not 1 <= count <= len(x):
        raise InputError(f"count {count} of clusters must be from 1 to the {len(x)} examples")
    x = jnp.asarray(x)
    middle = x.mean(0, keepdims=True)  # distances are differences of squares, which are small only around the origin
    centered = x - middle

    def step(carry):
        centers, _, i = carry
        nearest = jax.nn.one_hot(_distances(centered, centers).argmin(1), count, dtype=x.dtype)
        sizes = nearest.sum(0)[:, None]
        means = nearest.T @ centered / jnp.maximum(sizes, 1)
        return jnp.where(sizes > 0, means, centers), centers, i + 1

    def moves(carry):
        centers, before, i = carry
        return (i < steps) & jnp.any(centers != before)

    start = kmeans_plus_plus(key, centered, count)
    centers, _, _ = jax.lax.while_loop(moves, step, (start, jnp.full_like(start, jnp.inf), 0))
    return centers + middle, _distances(centered, centers).min(1).sum()


def _distances(x, centers):
    squares = jnp.square(x).sum(1)[:, None] + jnp.square(centers).sum(1)[None]
    return jnp.maximum(squares - 2 * x @ centers.T, 0)
