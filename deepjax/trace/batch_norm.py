"""Batch normalization in any Linen model: which modules it is, freezing it, and the moments of one batch.

Batch normalization is one of `deepjax.layers` (`BatchNorm`, `BatchRenorm`, ...) or Flax's `nn.BatchNorm`. All of them
keep `mean` and `var` in the collection `batch_stats`, wherever the module is: inside `ConvNorm`, `nn.scan`,
`nn.remat` or a stack of units.
"""

import contextlib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import layers
from deepjax.layers.normalization import SUMS, BatchNormBase
from deepjax.trace.arguments import call_arguments
from deepjax.trace.calls import around_calls

# The batch normalizations themselves, for what does not hold for every subclass of them.
NORM_CLASSES = (
    layers.BatchNorm,
    layers.BatchRenorm,
    layers.GhostBatchNorm,
    layers.MovingAverageBatchNorm,
    nn.BatchNorm,
)


def is_batch_norm(module: Any) -> bool:
    """Return whether a module is a batch normalization: one of `deepjax.layers`, Flax's, or a subclass of these.

    >>> from deepjax import layers
    >>> is_batch_norm(layers.GhostBatchNorm()), is_batch_norm(nn.BatchNorm()), is_batch_norm(nn.LayerNorm())
    (True, True, False)
    """
    return isinstance(module, BatchNormBase | nn.BatchNorm)


def normalizes_by_batch(module: Any, args: tuple, kwargs: Mapping[str, Any]) -> bool:
    """Return whether the call `module(*args, **kwargs)` of a batch normalization uses the statistics of the batch.

    >>> normalizes_by_batch(nn.BatchNorm(use_running_average=True), (), {})
    False
    """
    if not isinstance(module, nn.BatchNorm):
        return kwargs["train"]
    given = args[1] if len(args) > 1 else kwargs.get("use_running_average")
    return not nn.merge_param("use_running_average", module.use_running_average, given)


@contextlib.contextmanager
def frozen_batch_norms(frozen: Mapping[str, bool | jax.Array]):
    """Within the context, frozen batch normalizations use their running moments and keep them unchanged.

    This is PyTorch's `eval()` of single layers. It changes calls in training mode only, and not while a model is being
    initialized.

    Args:
      frozen: {pattern: whether normalizations are frozen}. A pattern is that of `fnmatch`, for the path of the
        normalization's scale, such as "stage1_first/branch/norm1/scale". The first pattern that matches counts; if
        none matches, the normalization is not frozen. A value may be a traced bool; both results are computed then.

    >>> norm, x = nn.BatchNorm(use_running_average=False), jnp.array([[1.0], [3.0]])
    >>> variables = jax.jit(norm.init)(jax.random.key(0), x)
    >>> with frozen_batch_norms({"*": True}):
    ...     y, new = norm.apply(variables, x, mutable="batch_stats")
    >>> bool(jnp.allclose(y, x, atol=1e-3)), float(new["batch_stats"]["mean"][0])
    (True, 0.0)
    """

    def rule(module, run, args, kwargs):
        if not is_batch_norm(module) or module.is_initializing() or not normalizes_by_batch(module, args, kwargs):
            return run(*args, **kwargs)
        path = "/".join((*module.path, "scale"))
        now = next((value for pattern, value in frozen.items() if fnmatchcase(path, pattern)), False)
        if now is False:
            return run(*args, **kwargs)
        evaluated = _evaluate(module, args, kwargs)
        if now is True:
            return evaluated
        before = dict(module.variables["batch_stats"])
        trained = run(*args, **kwargs)
        for name, value in before.items():
            module.put_variable("batch_stats", name, jnp.where(now, value, module.get_variable("batch_stats", name)))
        return jnp.where(now, evaluated, trained)

    with around_calls(rule):
        yield


def _evaluate(module, args, kwargs) -> Any:
    """Return the output of a batch normalization in evaluation mode."""
    if not isinstance(module, nn.BatchNorm):
        return module.clone(parent=None, name=None).apply(module.variables, *args, **{**kwargs, "train": False})
    twin = module.clone(parent=None, name=None, use_running_average=None)
    return twin.apply(module.variables, args[0], **{**kwargs, "use_running_average": True})


def observed_batch_moments(model: nn.Module, variables: Mapping[str, Any], *args: Any, **call: Any) -> tuple[Any, Any]:
    """Compute the moments of one training batch at the batch normalizations of a model.

    If a normalization is called several times, because its weights are shared or it is a step of a loop, the moments
    are the means over its calls. The variance is the one that the normalization keeps: biased, or unbiased if its field
    `unbiased` is set.

    Args:
      model: a Linen module.
      variables: variables of the model; batch normalizations have their moments in "batch_stats".
      *args: further positional arguments of `model.apply`.
      **call: further arguments of `model.apply`, such as `rngs`, `mask` and, if the model takes it, `train=True`.
        Those that the model does not take are left out.

    Returns:
      (moments, called), both like `variables["batch_stats"]`. In `moments`, the mean and variance of a normalization
      that was called in training mode are those of the batch. Everything else is as one step of training leaves it.
      `called` has a bool for each array: whether it is a moment of the batch.

    >>> norm, x = nn.BatchNorm(use_running_average=False), jnp.array([[1.0], [3.0]])
    >>> moments, called = observed_batch_moments(norm, jax.jit(norm.init)(jax.random.key(0), x), x)
    >>> print(moments["mean"], moments["var"], called["var"])
    [2.] [1.] [ True]
    """
    options = {name: call.pop(name) for name in ("rngs", "method") if name in call}
    started = {**variables, "batch_stats": _with_sums(variables["batch_stats"])}
    with around_calls(_publish_flax):
        offered = call_arguments(model, **call)
        _, updated = model.apply(started, *args, **options, **offered, mutable=["batch_stats"])
    return _means(updated["batch_stats"]), _called(updated["batch_stats"])


def _publish_flax(module, run, args, kwargs):
    """Add the moments of the batch to the sums, for Flax's batch normalization; deepjax's do so themselves."""
    sums = isinstance(module, nn.BatchNorm) and module.has_variable("batch_stats", SUMS[-1])
    if sums and normalizes_by_batch(module, args, kwargs):
        zeros = {name: jnp.zeros_like(module.get_variable("batch_stats", name)) for name in ("mean", "var")}
        twin = module.clone(parent=None, name=None, momentum=0.0)
        variables = {**module.variables, "batch_stats": zeros}  # without sums, so that the twin publishes nothing
        _, new = twin.apply(variables, *args, **kwargs, mutable=["batch_stats"])
        published = new["batch_stats"]
        for name, value in zip(SUMS, (published["mean"], published["var"], 1.0), strict=True):
            module.put_variable("batch_stats", name, module.get_variable("batch_stats", name) + value)
    return run(*args, **kwargs)


def _with_sums(tree):
    """Return `batch_stats` with sums for every pair of moments. The sums start at 0 and have the moments' shapes."""
    if not isinstance(tree, Mapping):
        return tree
    inner = {name: _with_sums(branch) for name, branch in tree.items()}
    return inner | {name: jnp.zeros_like(tree["mean"]) for name in SUMS} if _has_moments(tree) else inner


def _means(tree):
    """Return `batch_stats` without sums. The moments of normalizations that were called are the means over calls."""
    if not isinstance(tree, Mapping):
        return tree
    if not _has_moments(tree):
        return {name: _means(branch) for name, branch in tree.items()}
    *sums, calls = (tree[name] for name in SUMS)
    means = {name: total / jnp.maximum(calls, 1) for name, total in zip(("mean", "var"), sums, strict=True)}
    rest = {name: _means(branch) for name, branch in tree.items() if name not in SUMS}
    return rest | {name: jnp.where(calls > 0, mean, tree[name]) for name, mean in means.items()}


def _called(tree, called=False):
    """Return, like `batch_stats` without sums, whether each array is a moment of a normalization that was called."""
    if not isinstance(tree, Mapping):
        return jnp.full(jnp.shape(tree), called)
    calls = tree[SUMS[-1]] > 0 if _has_moments(tree) else False
    return {
        name: _called(branch, calls if name in ("mean", "var") else False)
        for name, branch in tree.items()
        if name not in SUMS or not _has_moments(tree)
    }


def _has_moments(tree):
    return {"mean", "var"} <= set(tree) and not isinstance(tree["mean"], Mapping)
