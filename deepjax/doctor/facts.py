"""What the data are: kinds of targets, ranges of inputs, and how well predictions fit."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from scipy.special import softmax

LARGEST = 50.0  # logarithm of a rate; larger ones are cut
FEW = 100  # more distinct integers than this, or than half of the examples, are numbers, not classes


@dataclass(frozen=True)
class Targets:
    """Facts of the targets."""

    # "classes" (integers), "one-hot", "shares" (of classes, with the sum 1), "binary" (0 and 1), "labels" (several 0 or
    # 1 per example), "signs" (-1 and 1), "numbers" or "other".
    kind: str
    classes: int  # number of classes; 2 for binary; 0 for numbers
    low: float
    high: float
    constant: bool  # whether all targets are equal
    majority: float  # what the best constant prediction gets: share of the commonest class; 0 for numbers
    finite: bool
    ignored: float | None = None  # the negative number that stands for "no label" among classes of positions


@dataclass(frozen=True)
class Inputs:
    """Facts of one array of inputs. Features are the last axis."""

    indices: bool  # whether they are integers
    low: float
    high: float
    rms: float  # root mean square over all values
    spread: float  # largest over smallest standard deviation among features that vary
    offset: float  # largest |mean| / standard deviation of a feature that varies
    largest: float  # largest root mean square of a feature
    varied: float  # share of the examples that differ from the first one
    finite: bool


def describe_targets(targets) -> Targets:
    """Return the facts of an array of targets."""
    leaves = jax.tree.leaves(targets)
    if len(leaves) != 1:
        return Targets("other", 0, 0.0, 0.0, False, 0.0, all(np.isfinite(np.asarray(a, float)).all() for a in leaves))
    t = np.asarray(leaves[0])
    values = t.astype(np.float64)
    finite = bool(np.isfinite(values).all())
    low, high = (float(f(values[np.isfinite(values)], initial=0)) for f in (np.min, np.max)) if not finite else (
        float(values.min()), float(values.max()))  # fmt: skip
    constant = bool(np.ptp(values.reshape(len(t), -1), axis=0).max(initial=0) == 0) and len(t) > 1
    ignored = _ignored(t)
    kind, classes, majority = _kind(t, values) if ignored is None else _classes(values[values >= 0])
    return Targets(kind, classes, low, high, constant, majority, finite, ignored)


def _ignored(t):
    """Return the one negative number among labels of positions, such as -1 or -100 behind the end of a sequence."""
    if t.dtype.kind != "i" or t.ndim < 2 or t[0].size == 1:
        return None
    distinct = np.unique(t)
    one = 2 < len(distinct) <= FEW and distinct[0] < 0 <= distinct[1]
    return float(distinct[0]) if one else None


def _classes(values):
    counts = np.bincount(values.astype(int).ravel())
    return "classes", len(counts), float(counts.max() / counts.sum())


def _kind(t, values):
    """Return (kind, number of classes, share of the commonest)."""
    whole = bool(np.isfinite(values).all()) and bool((values == np.rint(values)).all())
    if t.dtype.kind in "iub" or whole:
        distinct = np.unique(values)
        zero_one = set(distinct) <= {0.0, 1.0}
        if zero_one and t.ndim >= 2 and t.shape[-1] > 1 and (values.sum(-1) == 1).all():
            share = values.reshape(-1, t.shape[-1]).mean(0).max()
            return "one-hot", t.shape[-1], float(share)
        if zero_one and t.ndim >= 2 and int(np.prod(t.shape[1:])) > 1:
            share = values.reshape(len(t), -1).mean(0)
            return "labels", 2, float(np.maximum(share, 1 - share).mean())
        if zero_one and len(distinct) > 1:
            return "binary", 2, float(max(values.mean(), 1 - values.mean()))
        if t.dtype.kind in "iu" and distinct[0] >= 0 and len(distinct) <= min(FEW, max(2, t.size // 2)):
            return _classes(values)
        if set(distinct) == {-1.0, 1.0}:
            return "signs", 2, float(max((values > 0).mean(), (values < 0).mean()))
    if t.ndim >= 2 and t.shape[-1] > 1 and values.min() >= 0 and np.allclose(values.sum(-1), 1, atol=1e-3):
        return "shares", 0, 0.0
    return "numbers", 0, 0.0


def describe_inputs(inputs) -> list[Inputs]:
    """Return the facts of each array among the inputs."""
    return [_inputs(np.asarray(leaf)) for leaf in jax.tree.leaves(inputs)]


def _inputs(a):
    x = a.astype(np.float64)
    finite = bool(np.isfinite(x).all())
    x = np.where(np.isfinite(x), x, 0)
    flat = x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x[:, None]
    deviation, mean = flat.std(0), flat.mean(0)
    moving = deviation > 1e-12 * max(np.abs(flat).max(initial=0), 1e-300)
    spread = float(deviation[moving].max() / deviation[moving].min()) if moving.any() else 1.0
    return Inputs(
        indices=a.dtype.kind in "iu",
        low=float(x.min()),
        high=float(x.max()),
        rms=float(np.sqrt((x**2).mean())),
        spread=spread,
        offset=float((np.abs(mean[moving]) / deviation[moving]).max()) if moving.any() else 0.0,
        largest=float(np.sqrt((flat**2).mean(0)).max()),
        varied=float((x.reshape(len(x), -1) != x.reshape(len(x), -1)[:1]).any(1).sum() / max(len(x) - 1, 1)),
        finite=finite,
    )


def quality(predictions: Any, targets: Any, facts: Targets, expects: str) -> float:
    """Return how well predictions fit: the share of right classes or labels, or R squared cut at 0, in [0, 1].

    Args:
      predictions: array [examples, ...] of the model in evaluation mode.
      targets: array [examples, ...].
      facts: of the targets.
      expects: what the loss takes. "logit" puts the border between two classes at 0, all others at 1/2; a "log rate"
        is the logarithm of a prediction.
    """
    leaves = jax.tree.leaves(predictions)
    if len(leaves) != 1 or facts.kind == "other":
        return float("nan")
    p = np.nan_to_num(np.asarray(leaves[0], np.float64), nan=0.0, posinf=1e30, neginf=-1e30)
    t = np.asarray(jax.tree.leaves(targets)[0], np.float64)
    if facts.kind == "shares" and expects == "logit":
        p = softmax(p, -1)
    elif expects == "log rate" or (facts.kind == "shares" and expects == "log probability"):
        p = np.exp(np.minimum(p, LARGEST))
    if facts.kind in ("numbers", "shares"):
        # What an unknown loss makes of predictions of another shape, such as moments, cannot be told.
        return float("nan") if not expects and p.size != t.size else _r_squared(p, t)
    border = 0.0 if expects == "logit" or facts.kind == "signs" else 0.5
    t = (t > 0).astype(float) if facts.kind == "signs" else t
    if facts.kind == "labels":
        return float(((p.ravel() > border) == (t.ravel() > 0.5)).mean()) if p.size == t.size else 0.0
    if facts.kind == "one-hot":
        t = t.argmax(-1)
    elif t.ndim > 1 and t.shape[-1] == 1:
        t = t[..., 0]
    if p.ndim > t.ndim and p.shape[-1] > 1:
        p = p.argmax(-1)
    else:
        p = p[..., 0] if p.ndim > t.ndim else p
        p = p > border if facts.classes == 2 else np.clip(np.rint(p), 0, facts.classes - 1)
    if p.ndim != t.ndim:
        t = t.reshape(*t.shape, *[1] * (p.ndim - t.ndim))
    if any(a != b and 1 not in (a, b) for a, b in zip(p.shape, t.shape, strict=True)):
        return float("nan")
    return float((p == t)[np.broadcast_to(t != facts.ignored, np.broadcast_shapes(p.shape, t.shape))].mean())


def _r_squared(p, t):
    p, t = p.reshape(len(p), -1), t.reshape(len(t), -1)
    if p.shape[1] not in (1, t.shape[1]) and t.shape[1] != 1:
        return 0.0
    total = ((t - t.mean(0)) ** 2).sum() * (p.shape[1] if t.shape[1] == 1 else 1)
    with np.errstate(all="ignore"):
        value = 1 - ((p - t) ** 2).sum() / total if total else 0.0
    return float(np.clip(np.nan_to_num(value, nan=0.0, neginf=0.0), 0, 1))
