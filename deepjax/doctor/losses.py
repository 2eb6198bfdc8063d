"""Recognize a loss by its gradients: at random predictions they point where those of a known loss point."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax.doctor.compiling import compile_quickly

EXAMPLES = 64  # on which a loss is compared
SAME = 1e-3  # sine of the angle between gradients that count as one direction; float32 rounding gives about 1e-6
EPS = 1e-7


class Loss(NamedTuple):
    """What a loss does with predictions and targets."""

    kind: str  # a key of KINDS, "negated " and such a key, "other", or "constant" where no prediction changes it
    expects: str  # "number", "rate" (above 0), "log rate", "probability", "log probability", "logit"; "": not known
    form: str  # of the targets: "index" (of a class), "dense" (one per output), "broadcast" (fewer than outputs)
    sums: bool  # whether the loss adds up over the examples, in place of their mean
    outer: bool  # whether predictions [N, 1] meet targets [N], or the reverse, so that each meets every other
    per_output: float  # the gradient's length over that of the mean over all outputs; 1 is a mean, 0 where not known


def _log(p):
    return jnp.log(jnp.clip(p, EPS, 1 - EPS))


def _binary(p, t):
    return -(t * _log(p) + (1 - t) * _log(1 - p))


def _categorical(p, t):
    return -t * _log(p)


def _normalized(p, t):
    return -t * _log(p / p.sum(-1, keepdims=True))


def _softmax(z, t):
    return -t * jax.nn.log_softmax(z)


# Kind -> (what it expects as predictions, loss of one output). A dense target has one value per output.
KINDS: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "mean squared error": ("number", lambda p, t: (p - t) ** 2),
    "mean absolute error": ("number", lambda p, t: jnp.abs(p - t)),
    "Huber loss": ("number", optax.huber_loss),
    "log-cosh loss": ("number", optax.log_cosh),
    "mean absolute percentage error": ("number", lambda p, t: jnp.abs(p - t) / jnp.maximum(jnp.abs(t), EPS)),
    "Poisson loss": ("rate", lambda p, t: p - t * jnp.log(jnp.maximum(p, 0) + EPS)),
    "Poisson loss of log rates": ("log rate", lambda p, t: jnp.exp(p) - t * p),
    "binary cross entropy of logits": ("logit", lambda p, t: jax.nn.softplus(p) - t * p),
    "cross entropy of logits": ("logit", _softmax),
    "binary cross entropy": ("probability", _binary),
    "cross entropy": ("probability", _normalized),
    "cross entropy without normalization": ("probability", _categorical),
    "hinge loss": ("number", lambda p, t: jnp.maximum(0, 1 - p * (2 * t - 1))),
    "hinge loss of signs": ("number", lambda p, t: jnp.maximum(0, 1 - p * t)),
    "negative log-likelihood": ("log probability", lambda p, t: -t * p),
}


def recognize(loss, shape, targets, key) -> Loss:
    """Find which known loss a function (predictions, targets) -> scalar is.

    Args:
      loss: the function.
      shape: of the predictions, [examples, ...].
      targets: array [examples, ...].
      key: PRNG key of the random predictions.

    Returns:
      `Loss`.
    """
    n = min(EXAMPLES, shape[0])
    targets, shape = jnp.asarray(targets[:n]), (n, *shape[1:])
    gradient = compile_quickly(jax.grad(lambda p, t: loss(p, t)))
    draws = [
        _probabilities(jax.random.fold_in(key, 0), shape),
        2 * jax.random.normal(jax.random.fold_in(key, 1), shape),
    ]
    found = [np.asarray(gradient(p, targets), np.float64) for p in draws]
    twice = [jnp.concatenate([a, a]) for a in (draws[0], targets)]
    sums = _ratio(loss(*twice), loss(draws[0], targets)) > 1.5
    outer = _outer(gradient, draws[0], targets)
    if all(np.abs(g[np.isfinite(g)]).max(initial=0) < 1e-6 / g[0].size for g in found):
        return Loss("constant", "", "dense", bool(sums), outer, 0.0)
    dense = _dense(jnp.asarray(targets), shape)
    ours = jax.device_get(_gradients(draws, dense))
    for sign, name in ((1, "{}"), (-1, "negated {}")):
        for kind, (expects, _) in KINDS.items():
            for form, t in dense.items():
                if kind == "negative log-likelihood" and bool((t < 0).any()):
                    continue  # a linear loss of other targets
                used = [0] if expects in ("probability", "rate") else [0, 1]
                if all(_same_direction(sign * found[i], ours[kind][form][i]) for i in used):
                    scale = float(np.linalg.norm(found[0]) / np.linalg.norm(ours[kind][form][0]))
                    return Loss(name.format(kind), expects, form.partition(",")[0], bool(sums), outer, scale)
    shifted = all(np.abs(g.sum(-1)).max() < 1e-4 * np.abs(g).max() for g in found) and shape[-1] > 1
    expects = "logit" if shifted else "rate" if _of_positive(loss, draws[0], targets) else ""
    return Loss("other", expects, "dense", bool(sums), outer, 0.0)


def _of_positive(loss, p, targets):
    """Whether a loss of numbers is finite for small and large positive predictions, and not for negative ones.

    Targets in [0, 1], or of another shape, may be those of a loss of probabilities, which has a logarithm too.
    """
    if targets.size != p.size or bool(((targets >= 0) & (targets <= 1)).all()):
        return False
    below, inside, above = (np.isfinite(loss(each, targets)) for each in (-p, p, 1 + p))
    return bool(inside and above and not below)


@compile_quickly
def _gradients(draws, dense):
    """Return {kind: {form: the gradients of the mean of this loss in each of the predictions}}."""

    def of(each, targets):
        return [jax.grad(lambda p: jnp.mean(each(p, targets)))(predictions) for predictions in draws]

    return {kind: {form: of(each, t) for form, t in dense.items()} for kind, (_, each) in KINDS.items()}


def _probabilities(key, shape):
    """Draw predictions in (0.05, 0.95); along the last axis they do not sum to 1."""
    return jax.random.uniform(key, shape, minval=0.05, maxval=0.95)


def _ratio(a, b):
    return float(a) / float(b) if float(b) else 1.0


def _dense(targets, shape):
    """Return {form: targets of the predictions' shape}."""
    forms = {}
    if targets.shape == shape:
        forms["dense"] = targets
    elif targets.size == np.prod(shape):
        forms["dense"] = targets.reshape(shape)
    if jnp.issubdtype(targets.dtype, jnp.integer):
        index = targets[..., 0] if targets.ndim == len(shape) and targets.shape[-1] == 1 else targets
        if index.shape == shape[:-1] and shape[-1] > 1:
            index = index.astype(jnp.int32)
            forms["index"] = jax.nn.one_hot(index, shape[-1])  # zeros for labels out of range
            if bool((index >= shape[-1]).any()):
                forms["index, clipped"] = jax.nn.one_hot(jnp.minimum(index, shape[-1] - 1), shape[-1])
    spread = targets
    while spread.ndim < len(shape):
        spread = spread[..., None]
    fits = spread.ndim == len(shape) and all(a in (1, b) for a, b in zip(spread.shape[1:], shape[1:], strict=True))
    if "dense" not in forms and fits:
        forms["broadcast"] = jnp.broadcast_to(spread, shape)
    return {form: jnp.asarray(t, jnp.float32) for form, t in forms.items()}


def _same_direction(a, b):
    good = np.isfinite(a) & np.isfinite(b)
    a, b = a[good], b[good].astype(np.float64)
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return good.mean() > 0.5 and lengths > 0 and a @ b / lengths > 1 - SAME**2 / 2


def _outer(gradient, predictions, targets):
    """Whether predictions [N, 1] meet targets [N], or the reverse, so that a gradient depends on others' targets."""
    if predictions.size != targets.size or predictions.shape == targets.shape or len(predictions) < 2:
        return False
    changed = targets.at[-1].set(jnp.roll(targets, 1, 0)[-1] + 1)
    try:
        first, second = (np.asarray(gradient(predictions, t))[0] for t in (targets, changed))
    except (TypeError, ValueError):  # a loss of classes takes only one of the two shapes
        return False
    return bool(np.abs(first - second).max() > 1e-4 * np.abs(first).max())
