"""Normalizations as module factories, and checks of the initial values of residual branches."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.errors import InputError, choices
from deepjax.functional.arrays import spread
from deepjax.layers import BatchNorm, GroupNorm, InstanceNorm
from deepjax.trace import call_arguments
from deepjax.trace.batch_norm import is_batch_norm
from deepjax.units.joins import Add, Plain, SkipInit

Norm = Callable[..., nn.Module]  # called as factory(name=..., scale_init=...); scale_init only for `branch_init`

# Values of the option `norm` on the command line. `batch` updates its running variance with the unbiased variance, as
# PyTorch does. `group` uses 32 groups, or the greatest common divisor of 32 and the number of features. `layer` is one
# group, and `instance` is one group per feature (Wu & He 2018, figure 2).
NORMS: dict[str, Norm | None] = {
    "batch": partial(BatchNorm, unbiased=True),
    "group": partial(GroupNorm, fit_groups=True),
    "layer": partial(GroupNorm, groups=1),
    "instance": InstanceNorm,
    "none": None,
}
BRANCH_INITS = ("default", "zero_scale", "fixup", "skip_init")
USUAL = {"epsilon": 1e-5, "momentum": 0.9}


def norm_factory(norm: Any, *, epsilon: float = USUAL["epsilon"], momentum: float = USUAL["momentum"]) -> Norm | None:
    """Return the module factory for a name in `NORMS`.

    Equal arguments return the same object, so networks that hold it compare equal and can be hashed.

    Args:
      norm: a key of `NORMS`, a factory of your own, such as `functools.partial(nn.LayerNorm)`, or None for no
        normalization. A factory and None are returned unchanged.
      epsilon: added to the variance, by the normalizations of `NORMS`.
      momentum: share of the old running moments that batch normalization keeps, for the name "batch".

    Raises:
      InputError: an unknown name.

    >>> norm_factory("none") is None, norm_factory(nn.LayerNorm) is nn.LayerNorm
    (True, True)
    >>> norm_factory("batch", epsilon=1e-3)(name="norm").epsilon
    0.001
    """
    if norm is None or callable(norm):
        return cast("Norm | None", norm)
    if not isinstance(norm, str) or norm not in NORMS:
        raise InputError(f"norm {norm!r} is unknown; {choices(str(norm), NORMS)}")
    return _with_numbers(norm, float(epsilon), float(momentum))


@cache
def _with_numbers(word, epsilon, momentum):
    factory = NORMS[word]
    numbers = {"epsilon": epsilon} | ({"momentum": momentum} if word == "batch" else {})
    if factory is None or all(USUAL[name] == value for name, value in numbers.items()):
        return factory
    return partial(factory, **numbers)


def makes_batch_norm(norm: Norm | None) -> bool:
    """Return whether a factory makes batch normalizations.

    >>> makes_batch_norm(nn.BatchNorm), makes_batch_norm(nn.LayerNorm), makes_batch_norm(None)
    (True, False, False)
    """
    return norm is not None and bool(_Made(norm, parent=None).apply({}, method="is_batch_norm"))


class _Made(nn.Module):
    """A parent for a module of the factory, which takes a name alone, wherever it is called."""

    norm: Norm

    @nn.compact
    def is_batch_norm(self):
        return is_batch_norm(self.norm(name="norm"))


def normalize(x, norm: Norm | None, *, train, mask, name, scale_init=None):
    """Normalize x by a module that `norm` makes; return x where `norm` is None.

    Call it in `__call__` of the module to which the normalization belongs. Its submodule name is `name`.

    Args:
      x: [batch, ..., features].
      norm: a module factory (see `norm_factory`), or None.
      train: whether batch normalization uses the statistics of this batch.
      mask: bool [batch], False for rows that are padding; or None. Batch normalizations leave these rows out.
      name: name of the submodule.
      scale_init: initializer of the scale; None: that of the factory.

    Raises:
      InputError: `norm` is neither a factory nor None; for example, it is a string.
    """
    if norm is None:
        return x
    if not callable(norm):
        raise InputError(f"norm {norm!r} must be a module factory or None; for a word, pass norm_factory({norm!r})")
    module = norm(name=name) if scale_init is None else norm(name=name, scale_init=scale_init)
    if isinstance(module, nn.BatchNorm):  # Flax's mask has the shape of x
        rows = None if mask is None else mask.reshape(-1, *[1] * (x.ndim - 1))
        return module(x, use_running_average=not train, mask=rows)
    if isinstance(module, PER_EXAMPLE):
        return module(x)
    return module(x, **call_arguments(module, train=train, mask=mask))


PER_EXAMPLE = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm)  # their `mask` is one of positions, not rows


def check_branch_init(branch_init: str, *, norm: Norm | None, order: str = "post", join: type | None = None) -> None:
    """Raise InputError for an unknown `branch_init`, or one with which a branch could not learn.

    Args:
      branch_init: a name in `BRANCH_INITS`; see `Branch` and `SkipInit`.
      norm: factory of the branch's normalizations, or None.
      order: order of the branch, "post" or "pre".
      join: class of the unit's join, or None if it is not known yet.
    """
    if branch_init not in BRANCH_INITS:
        raise InputError(f"branch_init {branch_init!r} is unknown; {choices(str(branch_init), BRANCH_INITS)}")
    remedy = _remedy(branch_init, norm, order, join)
    if remedy:
        raise InputError(f"branch_init {branch_init} {remedy}")


def _remedy(branch_init, norm, order, join):
    """Return why this `branch_init` cannot work and what to use instead, or None if it can work."""
    zero = branch_init in ("zero_scale", "fixup")
    if branch_init == "fixup" and norm is not None:
        return "takes the place of normalization; set norm none, or use branch_init zero_scale"
    if branch_init == "zero_scale" and norm is None:
        return "needs a normalization, whose scale starts at 0; set norm batch, or use branch_init skip_init"
    if branch_init == "zero_scale" and order == "pre":
        return "needs order post: a scale of 0 before a ReLU never learns; use branch_init skip_init"
    if zero and join is SkipInit:
        return "and the join SkipInit start the branch at 0 twice, so it never learns; use one of them"
    if branch_init != "default" and join is Plain:
        return "needs a skip, and the join Plain has none; use branch_init default"
    if branch_init == "skip_init" and join not in (None, Add, SkipInit):
        return f"is itself a join and cannot replace {getattr(join, '__name__', join)}; use branch_init zero_scale"
    return None


def branch_and_join(branch_init: str, join: Any) -> tuple[str, Any]:
    """Return the `branch_init` of the branches and the join that implement a network's `branch_init`.

    >>> branch_and_join("skip_init", Add), branch_and_join("fixup", Add)
    (('default', <class 'deepjax.units.joins.SkipInit'>), ('fixup', <class 'deepjax.units.joins.Add'>))
    """
    return ("default", SkipInit) if branch_init == "skip_init" else (branch_init, join)


class Shift(nn.Module):
    """Add one learned number to x, which starts at 0 (Zhang et al. 2019, "Fixup initialization", section 3.2)."""

    @nn.compact
    def __call__(self, x):
        """Any shape -> the same shape and dtype."""
        return x + spread(self.param("bias", initializers.zeros, (), jnp.float32), x)


class NormActivation(nn.Module):
    """Apply a normalization, then an activation."""

    activation: Callable = functional.relu
    norm: Norm | None = NORMS["batch"]

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, ..., features] -> the same shape."""
        return self.activation(normalize(x, self.norm, train=train, mask=mask, name="norm"))
