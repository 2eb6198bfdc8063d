"""Mixup and CutMix: mix training examples with each other, and their targets in the same proportions."""

import jax
import jax.numpy as jnp

from deepjax import config
from deepjax.functional.arrays import per_example


def mix(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array | None,
    augment: config.Augment,
    num_classes: int,
) -> tuple[jax.Array, jax.Array]:
    """Apply mixup or CutMix to a batch, with the parameters in `augment`.

    If both are set, each batch gets one of them, with probability one half. If neither is set, the images are returned
    unchanged.

    Args:
      key: PRNG key.
      images: float [B, ...].
      labels: int [B]; or float [B], numbers, of which the same mixtures are made.
      mask: bool [B], False for padding; see `mixup`.
      augment: `config.Augment`.
      num_classes: number of classes.

    Returns:
      (images [B, ...], target distributions [B, classes]; of numbers float [B, 1]).
    """
    is_number = jnp.issubdtype(labels.dtype, jnp.floating)
    targets = labels[:, None] if is_number else jax.nn.one_hot(labels, num_classes)
    ways = []
    if augment.mixup:
        ways.append(lambda key: mixup(key, images, targets, mask, augment.mixup))
    if augment.cutmix:
        ways.append(lambda key: cutmix(key, images, targets, mask, augment.cutmix))
    if len(ways) < 2:
        return ways[0](key) if ways else (images, targets)
    coin, key = jax.random.split(key)
    return jax.lax.cond(jax.random.bernoulli(coin), *ways, key)


def mixup(
    key: jax.Array, x: jax.Array, targets: jax.Array, mask: jax.Array | None, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Return share x + (1 - share) x[partner], and the same mixture of the targets (Zhang et al. 2018, eq. 1).

    `share` is drawn from Beta(alpha, alpha), once for the batch, as in the paper's code. The rows that are examples
    form a random ring, and the partner of a row is its neighbor. No row is its own partner, unless it is the only one.

    Args:
      key: PRNG key.
      x: float [B, ...].
      targets: float [B, classes].
      mask: bool [B], False for padding, which is neither mixed nor used as a partner. None: all rows are examples.
      alpha: greater than 0. With 1, every share is equally likely; less prefers shares near 0 and 1.

    >>> x, y = jax.jit(mixup)(jax.random.key(0), jnp.array([[0.0], [1.0]]), jnp.eye(2), None, 1.0)
    >>> bool((x == y[:, 1:]).all()), bool(0 < x[0, 0] < 1)
    (True, True)
    """
    share = jax.random.beta(jax.random.fold_in(key, 0), alpha, alpha)
    partner = _partners(jax.random.fold_in(key, 1), mask, len(x))
    return _blend(x, partner, share, mask), _blend(targets, partner, share, mask)


def cutmix(
    key: jax.Array, images: jax.Array, targets: jax.Array, mask: jax.Array | None, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Replace a box of each image by that of its partner, and mix targets by area: Yun et al. 2019, eq. 1 and 2.

    The box is drawn once for the batch. Its area is 1 - share of the image, with share from Beta(alpha, alpha); it has
    the aspect ratio of the image, and is centered at a uniformly drawn pixel. The part outside the image is cut off.
    Targets are mixed by the fraction of pixels that were not replaced.

    Arguments are those of `mixup`, with images float [B, H, W, C].

    >>> images = jnp.zeros((2, 8, 8, 1)).at[1].set(1.0)
    >>> x, y = jax.jit(cutmix)(jax.random.key(0), images, jnp.eye(2), None, 1.0)
    >>> bool(jnp.allclose(x.mean((1, 2)), y[:, 1:]))
    True
    """
    height, width = images.shape[1:3]
    side = jnp.sqrt(1 - jax.random.beta(jax.random.fold_in(key, 0), alpha, alpha))
    partner = _partners(jax.random.fold_in(key, 1), mask, len(images))
    rows = _interval(jax.random.fold_in(key, 2), jnp.floor(side * height), height)
    columns = _interval(jax.random.fold_in(key, 3), jnp.floor(side * width), width)
    box = (rows[:, None] & columns[None, :])[None, :, :, None]
    changed = box if mask is None else box & mask[:, None, None, None]
    return jnp.where(changed, images[partner], images), _blend(targets, partner, 1 - box.mean(), mask)


def _interval(key, length, size):
    """Return bool [size]: an interval of this length around a uniformly drawn position, cut off at the ends."""
    first = jax.random.randint(key, (), 0, size) - length // 2
    position = jnp.arange(size)
    return (position >= first) & (position < first + length)


def _partners(key, mask, size):
    """Return int [B]: for each row that is an example, the next one in a random ring of them."""
    draws = jax.random.uniform(key, (size,))
    if mask is None:
        mask = jnp.ones(size, bool)
    ring = jnp.argsort(jnp.where(mask, draws, 2.0))  # examples first, in random order
    following = ring[(jnp.arange(size) + 1) % jnp.maximum(mask.sum(), 1)]
    return jnp.zeros_like(ring).at[ring].set(following)


def _blend(x, partner, share, mask):
    share = share.astype(x.dtype)
    mixed = share * x + (1 - share) * x[partner]
    return mixed if mask is None else jnp.where(per_example(mask, x.ndim), mixed, x)
