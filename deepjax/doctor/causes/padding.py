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


def find_mask(inputs) -> np.ndarray | None:
    """Return as bool the array [examples, steps] among the inputs that is 1 up to an end and 0 behind it, or None."""
    for leaf in jax.tree.leaves(inputs):
        a = np.asarray(leaf)
        if a.ndim == 2 and a.shape[1] > 1 and np.isin(a, (0, 1)).all():
            a = a.astype(np.int8)
            if a[:, 0].all() and (np.diff(a, axis=1) <= 0).all() and a.mean() < 1 - PADDED:
                return a.astype(bool)
    return None


def leaking_mask(evidence: Evidence):
    """Find models with a mask among their inputs whose outputs change when what is masked is exchanged."""
    mask = find_mask(evidence.batch[0])
    if mask is None:
        return
    order = np.random.default_rng(0).permutation(int((~mask).sum()))

    def exchanged(a):
        a = np.array(a)
        if a.shape[:2] == mask.shape and a.ndim > 2:
            a[~mask] = a[~mask][order]
        return a

    inputs = evidence.batch[0]
    before, after = (evidence.predict(evidence.variables, x) for x in (inputs, jax.tree.map(exchanged, inputs)))
    change = _difference(before, after, mask)
    if change is None or change <= CHANGED:
        return
    text = f"{100 * (1 - mask.mean()):.0f} % of the places are masked. When their values are exchanged, the outputs "
    text += f"change by {100 * change:.2g} % of their spread."
    title = "What is masked takes part in the result."
    advice = "Multiply by the mask before sums, take means over real places only, and mask the attention."
    found = Suspicion(Finding("padding_leakage", _grade(evidence), title, text, advice))
    zeroed = replace(found, remedy=Remedy("masked values set to 0", masked))
    yield zeroed if _helps(evidence, zeroed) else found


def masked(subject):
    """Set to 0 what the mask among the inputs leaves out."""
    mask = find_mask(subject.inputs)
    if mask is None:
        return subject

    def change(a):
        fits = a.shape[:2] == mask.shape and a.ndim > 2
        return np.where(mask.reshape(mask.shape + (1,) * (a.ndim - 2)), a, 0).astype(a.dtype) if fits else a

    return subject.with_(inputs=jax.tree.map(lambda a: change(np.asarray(a)), subject.inputs))


def _helps(evidence, suspicion):
    reached = evidence.skill(evidence.planned)
    if reached >= HEALTHY:
        return False
    changed = evidence.with_remedies([suspicion])
    return changed.skill(changed.planned) > reached + GAIN


def _grade(evidence):
    if evidence.skill(evidence.planned) < LEARNS:
        return "serious"
    return "note" if evidence.healthy else "warning"


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
    found = Suspicion(Finding("padding_leakage", _grade(evidence), title, text, advice))
    moved = replace(found, remedy=Remedy("padding in front of the sequences", partial(padding_first, padding=padding)))
    # Targets of every step would have to be moved too.
    of_steps = jax.tree.leaves(evidence.subject.targets)[0].shape[1:2] == (padding.steps,)
    yield found if of_steps or not _helps(evidence, moved) else moved


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
        before, after = (evidence.predict(evidence.variables, x) for x in (whole, short))
    except Exception:  # any model of the user's own
        return None

    def cut(a, b):  # outputs of every step
        return a[:, :steps] if a.shape != b.shape and a.ndim > 1 and a.shape[1] == padding.steps else a

    before = jax.tree.map(cut, before, after)
    return _difference(before, after, np.arange(steps) < padding.lengths[rows][:, None])


def _difference(before, after, real):
    """Return how much outputs differ, relative to their spread, or None if their shapes differ.

    Args:
      before: outputs, pytree of arrays [examples, ...].
      after: the same in another run.
      real: bool [examples, steps]; outputs of every step are compared where it is true.
    """
    worst = 0.0
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        a, b = (np.asarray(each, np.float64) for each in (a, b))
        if a.shape != b.shape:
            return None
        used = real if a.ndim > 1 and a.shape[1] == real.shape[1] else np.ones(a.shape[:1], bool)
        spread = max(a[used].std(0).max(), CHANGED * np.abs(a[used]).max())
        worst = max(worst, float(np.abs(a - b)[used].max() / (spread + 1e-30)))
    return worst


def leakage(evidence: Evidence):
    """Find padding that takes part in the result, by its length, or by a mask among the inputs."""
    yield from [*leaking_padding(evidence)] or leaking_mask(evidence)


CAUSES = (leakage,)
