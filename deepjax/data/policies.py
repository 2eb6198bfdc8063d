"""RandAugment, TrivialAugment and AugMix with torchvision's operations and magnitudes, in pure JAX."""

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.data.operations import bilinear, nearest, operations

STRONGEST = 30  # RandAugment and TrivialAugment have magnitudes 0 to 30
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")

Space = dict[str, np.ndarray]
"""The magnitudes [bins] of each operation of a policy. Those of SIGNED operations may be negative, too."""


def randaugment_space(height: int, width: int) -> Space:
    """Return torchvision's magnitudes of RandAugment, 31 of each, as `operations` takes them."""
    space = _space(31, shear=0.3, down=150 / 331 * height, right=150 / 331 * width, turn=30, enhance=0.9, bits=(8, 4))
    return {"Identity": np.zeros(31)} | space


def trivialaugment_space(height: int, width: int) -> Space:
    """Return torchvision's magnitudes of TrivialAugmentWide: 31, up to shifts of 32 pixels and turns by 135 degrees."""
    space = _space(31, shear=0.99, down=32, right=32, turn=135, enhance=0.99, bits=(8, 6))
    return {"Identity": np.zeros(31)} | space


def augmix_space(height: int, width: int) -> Space:
    """Return torchvision's magnitudes of AugMix, 10 of each; there is no Identity."""
    return _space(10, shear=0.3, down=height / 3, right=width / 3, turn=30, enhance=0.9, bits=(4, 4))


def _space(bins, *, shear, down, right, turn, enhance, bits):
    most = {"ShearX": shear, "ShearY": shear, "TranslateX": right, "TranslateY": down, "Rotate": turn}
    most |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), enhance)
    space = {name: np.linspace(0, value, bins) for name, value in most.items()}
    for name in ("TranslateX", "TranslateY"):
        space[name] = np.trunc(space[name])
    space["Posterize"] = bits[0] - np.round(np.arange(bins) * bits[1] / (bins - 1))
    space["Solarize"] = np.linspace(1, 0, bins)
    return space | dict.fromkeys(("AutoContrast", "Equalize"), np.zeros(bins))


def randaugment(key: jax.Array, images: jax.Array, count: int, magnitude: int) -> jax.Array:
    """Apply `count` random operations, one after the other, to each image of [B, H, W, C], C = 1 or 3.

    Cubuk et al. 2020. Each of the 14 operations is equally likely, and so are its two directions.

    >>> jax.eval_shape(lambda key, x: randaugment(key, x, 2, 9), jax.random.key(0), jnp.ones((5, 8, 8, 3))).shape
    (5, 8, 8, 3)
    """
    space = randaugment_space(*images.shape[1:3])
    choices, magnitudes = _draw(key, (len(images), count), space, least=magnitude, bins=1)
    return _apply(nearest, space, images, choices, magnitudes)


def trivialaugment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Apply one random operation of random strength to each image of [B, H, W, C], C = 1 or 3.

    Müller & Hutter 2021, with the wide magnitudes.
    """
    space = trivialaugment_space(*images.shape[1:3])
    choices, magnitudes = _draw(key, (len(images), 1), space, least=0, bins=STRONGEST + 1)
    return _apply(nearest, space, images, choices, magnitudes)


def augmix(key: jax.Array, images: jax.Array, severity: int, width: int = 3, depth: int = 3) -> jax.Array:
    """Blend each image of [B, H, W, C], C = 1 or 3, with images of several chains of random operations.

    Hendrycks et al. 2020, without the consistency loss. A chain has 1 to `depth` operations. The weights of the `width`
    chains are uniform on the simplex, the share of the original image is uniform in [0, 1].

    Args:
      key: PRNG key.
      images: [B, H, W, C] in [0, 1].
      severity: number of the 10 magnitudes that are drawn, the least first: 1 to 10, usually 3.
      width: number of chains.
      depth: largest number of operations in a chain.
    """
    batch, shape = len(images), images.shape[1:]
    space = augmix_space(*shape[:2])
    choices, magnitudes = _draw(jax.random.fold_in(key, 0), (batch * width, depth), space, least=0, bins=severity)
    lengths = jax.random.randint(jax.random.fold_in(key, 1), (batch * width, 1), 1, depth + 1)
    space |= {"Identity": np.zeros(10)}  # where a chain has ended
    choices = jnp.where(jnp.arange(depth)[None] < lengths, choices, len(space) - 1)
    chains = _apply(bilinear, space, jnp.repeat(images, width, 0), choices, magnitudes)
    weights = jax.random.dirichlet(jax.random.fold_in(key, 2), jnp.ones(width), (batch,))
    share = jax.random.uniform(jax.random.fold_in(key, 3), (batch, 1, 1, 1))
    weighted = weights.reshape(batch, width, 1, 1, 1) * chains.reshape(batch, width, *shape)
    return share * images + (1 - share) * weighted.sum(1)


def _draw(key, shape, space, *, least, bins):
    """Return (numbers of operations, their magnitudes with random signs), both of `shape`, of `bins` magnitudes."""
    choices = jax.random.randint(jax.random.fold_in(key, 0), shape, 0, len(space))
    signs = jax.random.rademacher(jax.random.fold_in(key, 1), shape, jnp.float32)
    strengths = least if bins == 1 else least + jax.random.randint(jax.random.fold_in(key, 2), shape, 0, bins)
    values = jnp.asarray(np.stack(list(space.values())), jnp.float32)[choices, strengths]
    signed = jnp.asarray([name in SIGNED for name in space])[choices]
    return choices, jnp.where(signed, signs * values, values)


def _apply(sample, space, images, choices, magnitudes):
    """Apply operations choices [B, n] of a space, one after the other, to images [B, H, W, C]."""
    table = operations(sample, *images.shape[1:3])
    table = [table[name] for name in space]

    def change(image, numbers):
        return jax.lax.switch(numbers[0], table, image, numbers[1]), None

    return jax.vmap(lambda image, *numbers: jax.lax.scan(change, image, numbers)[0])(images, choices, magnitudes)
