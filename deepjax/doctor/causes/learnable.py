"""Causes that keep any training from success: targets without relation to the inputs, networks that are too small."""

import jax
import numpy as np

from deepjax.doctor import changes, facts
from deepjax.doctor.evidence import HEALTHY, Evidence, Remedy, Suspicion
from deepjax.doctor.plan_runs import fits
from deepjax.doctor.report import Finding
from deepjax.doctor.trials import Trainer

EXAMPLES = 64  # fewer examples do not show whether a relation exists
SIGMAS = 2.0  # of the best of three predictors, which a relation must exceed on examples that were held out
NEIGHBORS = 5
FITS = 0.3  # skill on the examples of training from which a model counts as having learned them
UNITS = 64  # that are tried in narrow layers
WORDS = 2048  # different indices that are counted, at most
FEW = 16  # examples that every network should be able to learn by heart


def unrelated_targets(evidence: Evidence):
    """Find targets that neither neighbors, nor a linear map, nor the model itself can predict on held-out examples."""
    subject, targets = evidence.subject, evidence.targets
    leaves = jax.tree.leaves(subject.inputs)
    known = targets.kind in ("classes", "one-hot", "binary", "numbers", "shares", "signs") and not targets.constant
    if not known or subject.examples < EXAMPLES:
        return
    x = np.concatenate([_features(np.asarray(leaf)) for leaf in leaves], axis=1)
    y = _columns(jax.tree.leaves(subject.targets)[0], targets)
    if y is None or targets.ignored is not None:
        return
    order = np.random.default_rng(0).permutation(len(x))[:2048]
    x, y = x[order], y[order]
    scores = [_score(predict(x, y), y, targets) for predict in (_by_neighbors, _by_ridge)]
    if max(scores) > SIGMAS:
        return
    of_model = _score_of_model(evidence, order, y)
    who = f"{NEIGHBORS} nearest neighbors and ridge regression"
    if of_model is not None:
        who, scores = f"{NEIGHBORS} nearest neighbors, ridge regression and the model itself", [*scores, of_model]
    if max(scores) > SIGMAS:
        return
    values = ", ".join(f"{s:.1f}" for s in scores)
    text = f"On examples that were held out, {who} are {values} standard deviations above chance."
    title = "The targets have no visible relation to the inputs: they may be shuffled."
    advice = "Check that inputs and targets are in the same order, and that only both are shuffled together."
    # A model that learns nothing says nothing about the targets: then other causes come first.
    severity = "warning" if of_model is None else "serious"
    finding = Finding("shuffled_labels", severity, title, text, advice)
    yield Suspicion(finding, certain=of_model is not None, otherwise="last")


def _features(a):
    """Return an array of inputs as [examples, features]; indices, such as words, as how often each occurs."""
    flat = a.reshape(len(a), -1)
    if a.dtype.kind in "iu" and a.dtype != np.uint8:
        values, place = np.unique(flat, return_inverse=True)
        if len(values) <= WORDS:
            counts = np.zeros((len(a), len(values)))
            np.add.at(counts, (np.arange(len(a))[:, None], place.reshape(flat.shape)), 1)
            return counts
    return flat.astype(np.float64)


def _columns(t, targets):
    """Return the targets as [examples, classes] or [examples, numbers], or None if there is one for each position."""
    t = t.reshape(len(t), -1)
    if targets.kind in ("classes", "binary"):
        return np.eye(max(targets.classes, 2))[t[:, 0].astype(int)] if t.shape[1] == 1 else None
    return t.astype(np.float64)


def _by_neighbors(x, y):
    """Predict each example by its nearest neighbors among the others."""
    x = (x - x.mean(0)) / (x.std(0) + 1e-8)
    squares = (x**2).sum(1)
    distances = squares[:, None] + squares - 2 * x @ x.T
    np.fill_diagonal(distances, np.inf)
    return y[np.argsort(distances, axis=1)[:, :NEIGHBORS]].mean(1)


def _by_ridge(x, y):
    """Predict each example by ridge regression on the other four fifths of the examples."""
    x = (x - x.mean(0)) / (x.std(0) + 1e-8)
    predictions, parts = np.zeros(y.shape), np.arange(len(x)) % 5
    for part in range(5):
        train, test = x[parts != part], x[parts == part]
        mean = y[parts != part].mean(0)
        gram = train @ train.T + len(train) * np.eye(len(train)) * 0.1 * max(1.0, x.shape[1] / len(train))
        predictions[parts == part] = mean + test @ train.T @ np.linalg.solve(gram, y[parts != part] - mean)
    return predictions


def _score(predictions, y, targets):
    """Return how far the predictions are above chance, in standard deviations."""
    n = len(y)
    if targets.kind in ("numbers", "shares", "signs"):
        pairs = [np.corrcoef(p, t)[0, 1] for p, t in zip(predictions.T, y.T, strict=True) if p.std() and t.std()]
        return float(max(pairs, default=0.0) * np.sqrt(n))
    base = float(y.mean(0).max())
    right = float((predictions.argmax(1) == y.argmax(1)).mean())
    return (right - base) / np.sqrt(base * (1 - base) / n + 1e-12)


def _score_of_model(evidence, order, y):
    """Train the model as planned on three quarters of the examples, and score it on the others.

    Return None if it does not learn the examples that it is trained on.
    """
    subject, targets, expects = evidence.subject, evidence.targets, evidence.loss.expects
    cut = 3 * len(order) // 4
    (inputs, goals), held = subject.rows(order[:cut]), subject.rows(order[cut:])
    part = subject.with_(inputs=inputs, targets=goals, batch_size=min(subject.batch_size, cut))
    trainer = Trainer(part, targets, expects, evidence.key).advance(evidence.steps(part, 0.1))
    if evidence.skill(trainer.result()) < FITS:
        return None
    predictions = jax.tree.leaves(evidence.predict(trainer.variables(0), held[0]))[0]
    if targets.kind in ("numbers", "shares", "signs"):
        flat = np.asarray(predictions, np.float64).reshape(len(y) - cut, -1)
        return _score(flat, y[cut:], targets) if flat.shape[1] == y.shape[1] else None
    right, base = facts.quality(predictions, held[1], targets, expects), targets.majority
    return (right - base) / np.sqrt(base * (1 - base) / (len(y) - cut) + 1e-12)


def small_network(evidence: Evidence):
    """Find networks that cannot learn a few examples by heart, at any rate."""
    if evidence.healthy or evidence.subject.examples < 4:
        return
    widths = [row.features for row in evidence.measured.rows[:-1] if row.kind != "embedding"]
    if not widths or min(widths) > FEW:
        return
    skill = fits(evidence, FEW)
    text = f"The narrowest layer has {min(widths)} units; trained on at most {FEW} examples only, "
    text += f"with Adam at the best of three rates, it reaches a skill of {skill:.2f}."
    title = "The network is too small for these examples."
    finding = Finding("too_few_units", "serious", title, text, "Use more units in the narrowest layers.")
    yield Suspicion(finding, _wider(evidence), certain=skill < HEALTHY)


def _wider(evidence):
    """Return the remedy of more units, where a model can be widened."""
    if evidence.subject.module is None:
        return None
    change = changes.wider(evidence.measured.rows[-1].layer, FEW, UNITS)
    return Remedy(f"{UNITS} units in layers of at most {FEW}", change)


CAUSES = (unrelated_targets,)
LAST = (small_network,)
