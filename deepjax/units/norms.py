"""What may stand where a normalization stands, by name."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.errors import InputError, choices
from deepjax.layers import BatchNorm, GroupNorm, InstanceNorm
from deepjax.units.joins import Plain, SkipInit

NORMS = ("batch", "zero_batch", "none", "fixup", "group", "layer", "instance")
GROUPS = 32  # of norm "group", as far as they divide the features


def check_norm(norm, *, order="post", join=None):
    """Raises InputError for a norm that is unknown, or that a branch of this order and join could not learn with."""
    if norm not in NORMS:
        raise InputError(f"norm {norm!r} is unknown; {choices(str(norm), NORMS)}")
    if norm == "zero_batch" and order == "pre":
        raise InputError(
            "norm zero_batch needs order post: in front of a ReLU, a scale of 0 never learns; use SkipInit (skip_init)"
        )
    if norm in ("zero_batch", "fixup") and join in (Plain, SkipInit):
        why = "has no skip" if join is Plain else "would start at 0 twice and never learn"
        raise InputError(
            f"norm {norm} starts a branch at 0, and with join {join.__name__} it {why}; use norm batch or none"
        )


def normalize(x, norm, *, train, mask, name, scale_init=initializers.ones, epsilon=1e-5, momentum=0.9):
    """What `norm` puts in the place of a normalization. The module in whose __call__ it is called owns it as `name`.

    "batch" keeps PyTorch's unbiased running variance. "group" has 32 groups, or as many as divide both 32 and the
    features; "layer" is one group, "instance" one for each feature (Wu & He 2018, figure 2).
    """
    if norm == "none":
        return x
    if norm == "fixup":
        return Shift(name=name)(x)
    if norm == "instance":
        return InstanceNorm(epsilon=epsilon, scale_init=scale_init, name=name)(x)
    if norm in ("group", "layer"):
        groups = math.gcd(GROUPS, x.shape[-1]) if norm == "group" else 1
        return GroupNorm(groups=groups, epsilon=epsilon, scale_init=scale_init, name=name)(x)
    batch_norm = BatchNorm(unbiased=True, epsilon=epsilon, momentum=momentum, scale_init=scale_init, name=name)
    return batch_norm(x, train=train, mask=mask)


class Shift(nn.Module):
    """x plus one learned number, which starts at 0 (Zhang et al. 2019, Fixup, section 3)."""

    @nn.compact
    def __call__(self, x):
        """Any shape -> the same shape and dtype."""
        return x + self.param("bias", initializers.zeros, (), jnp.float32).astype(x.dtype)


class NormActivation(nn.Module):
    """Normalization, then the activation."""

    activation: Callable = functional.relu
    norm: str = "batch"  # as of the branches

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, ..., features] -> the same shape."""
        check_norm(self.norm)
        return self.activation(normalize(x, self.norm, train=train, mask=mask, name="norm"))
