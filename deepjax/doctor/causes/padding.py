"""Padding of sequences that takes part in the result."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from deepjax.doctor.causes.plan import GAIN
from deepjax.doctor.evidence import HEALTHY, LEARNS, MEASURED, Evidence, Remedy, Suspicion
from deepjax.doctor.report import Finding

PADDED = 0.1  # share of the steps, behind the longest example, from which a set counts as padded
INSIDE = 0.01  # share of the steps before the padding that may look like padding
CHANGED = 1e-3  # of the spread of the outputs; a model that masks its padding changes them by rounding only


class Padding(NamedTuple):
    """Where the sequences of a set end."""

    value: float  # that fills the steps behind the end
    lengths: np.ndarray  # int [examples]
    steps: int  # of an example with its padding


def find_padding(inputs) -> Padding | None:
    """Return the padding of sequences, integers [examples, steps] or numbers [examples, steps, features], or None."""
    for leaf in jax.tree.leaves(inputs):
        array = np.asarray(leaf)
        tokens = array.ndim == 2 and array.dtype.kind in "iu"
        if not tokens and not (array.ndim == 3 and array.dtype.kind == "f"):
            continue
        steps = array[..., None] if tokens else array
        values, counts = np.unique(steps[:, -1, 0], return_counts=True)
        value = values[counts.argmax()]
        filled = (steps == value).all(-1)
        lengths = steps.shape[1] - np.cumprod(filled[:, ::-1], axis=1).sum(1)
        longest = lengths.max()
        inside = filled & (np.arange(steps.shape[1]) < lengths[:, None])
        if longest and 1 - lengths.mean() / longest > PADDED and inside.sum() <= INSIDE * lengths.sum():
            return Padding(float(value), lengths, steps.shape[1])
    return None


def leaking_padding(evidence: Evidence):
    """Find models whose outputs change when steps of padding behind the end of a sequence are cut off."""
    padding = find_padding(evidence.subject.inputs)
    if padding is None:
        return
    below = np.unique(padding.lengths[(padding.lengths > 0) & (padding.lengths < padding.lengths.max())])
    if not len(below):
        return
    steps = int(below[len(below) // 2])
    rows = np.flatnonzero((padding.lengths <= steps) & (padding.lengths > 0))[:MEASURED]
    change = _change(evidence, rows, padding, steps)
    if change is None or change <= CHANGED:
        return
    share = 1 - padding.lengths.mean() / padding.steps
    text = f"{100 * share:.0f} % of the steps are padding with {padding.value:g}. When {padding.steps - steps} steps "
    text += f"of padding are cut off, the outputs change by {100 * change:.2g} % of their spread."
    title = "Padding takes part in the result: the same sequence with more padding gives another output."
    advice = "Mask it: pass `seq_lengths` to `nn.RNN`, a mask to attention, and take means over real steps only."
    reached = evidence.skill(evidence.planned)
    severity = "serious" if reached < LEARNS else "note" if evidence.healthy else "warning"
    found = Suspicion(Finding("padding_leakage", severity, title, text, advice))
    moved = replace(found, remedy=Remedy("padding in front of the sequences", partial(padding_first, padding=padding)))
    yield moved if reached < HEALTHY and _helps(evidence, moved, padding) else found


def _helps(evidence, moved, padding):
    if jax.tree.leaves(evidence.subject.targets)[0].shape[1:2] == (padding.steps,):
        return False  # targets of every step
    changed = evidence.with_remedies([moved])
    return changed.skill(changed.planned) > evidence.skill(evidence.planned) + GAIN


def padding_first(subject, padding):
    """Move the padding of every sequence in front of it, where a layer that reads step by step forgets it.

    Masks that end where the sequences end are moved too.
    """
    behind = np.arange(padding.steps) >= padding.lengths[:, None]
    place = (np.arange(padding.steps) + padding.lengths[:, None]) % padding.steps

    def move(a):
        if a.ndim < 2 or a.shape[1] != padding.steps or np.ptp(a[behind].astype(np.float64)) > 0:
            return a
        return np.take_along_axis(a, place.reshape(place.shape + (1,) * (a.ndim - 2)), axis=1)

    return subject.with_(inputs=jax.tree.map(lambda a: move(np.asarray(a)), subject.inputs))


def _change(evidence, rows, padding, steps):
    """Return how much outputs change, relative to their spread, or None where the model takes one length only."""
    whole = jax.tree.map(lambda a: a[rows], evidence.subject.inputs)
    short = jax.tree.map(lambda a: a[:, :steps] if a.ndim > 1 and a.shape[1] == padding.steps else a, whole)
    try:
        pair = [jax.tree.leaves(evidence.predict(evidence.variables, x)) for x in (whole, short)]
    except Exception:  # any model of the user's own
        return None
    worst = 0.0
    for a, b in zip(*pair, strict=True):
        a, b = (np.asarray(each, np.float64) for each in (a, b))
        if a.shape != b.shape and a.ndim > 1 and a.shape[1] == padding.steps:  # outputs of every step
            a = a[:, :steps]
        if a.shape != b.shape:
            return None
        real = np.ones(a.shape[:1], bool)
        if a.ndim > 1 and a.shape[1] == steps:
            real = np.arange(steps) < padding.lengths[rows][:, None]
        spread = max(a[real].std(0).max(), CHANGED * np.abs(a[real]).max())
        worst = max(worst, float(np.abs(a - b)[real].max() / (spread + 1e-30)))
    return worst


CAUSES = (leaking_padding,)
