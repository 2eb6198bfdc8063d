"""Causes that keep any training from success: targets without relation to the inputs, networks that are too small."""

import jax
import numpy as np

from deepjax.doctor import changes, relations
from deepjax.doctor.evidence import HEALTHY, Evidence, Remedy, Suspicion
from deepjax.doctor.plan_runs import fits
from deepjax.doctor.report import Finding
from deepjax.doctor.trials import Trainer

EXAMPLES, LOOKED_AT = 64, 2048  # fewer examples do not show whether a relation exists; more are not needed
SIGMAS = 2.0  # of the best of the predictors, which a relation must exceed on examples that were held out
FITS = 0.3  # skill on the examples of training from which a model counts as having learned them
UNITS = 64  # that are tried in narrow layers
FEW = 16  # examples that every network should be able to learn by heart


def unrelated_targets(evidence: Evidence):
    """Find targets that neither neighbors, nor a linear map, nor the model itself can predict on held-out examples."""
    subject, targets = evidence.subject, evidence.targets
    if targets.kind == "other" or targets.constant or subject.examples < EXAMPLES:
        return
    order = np.random.default_rng(0).permutation(subject.examples)[:LOOKED_AT]
    inputs, goals = subject.rows(order)
    y, places = relations.columns(jax.tree.leaves(goals)[0], targets)
    forms = relations.features(inputs)
    weights = [predictor(x) for x in forms for predictor in (relations.neighbors, relations.ridge)]
    scores = [relations.agreement_of_smoother(each, y) for each in weights]
    if max(scores) > SIGMAS:
        return
    of_model = _score_of_model(evidence, order, y, places)
    who = f"{relations.NEIGHBORS} nearest neighbors and ridge regression"
    who += " (also on the numbers of words)" if len(forms) > 1 else ""
    if of_model is not None:
        who, scores = who.replace(" and", ",", 1) + " and the model itself", [*scores, of_model]
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


def _score_of_model(evidence, order, y, places):
    """Train the model as planned on three quarters of the examples, and score it on the others.

    Return None if it does not learn the examples that it is trained on, or its outputs are not those of the targets.
    """
    subject, targets, expects = evidence.subject, evidence.targets, evidence.loss.expects
    cut = 3 * len(order) // 4
    (inputs, goals), held = subject.rows(order[:cut]), subject.rows(order[cut:])
    part = subject.with_(inputs=inputs, targets=goals, batch_size=min(subject.batch_size, cut))
    trainer = Trainer(part, targets, expects, evidence.key).advance(evidence.steps(part, 0.1))
    if evidence.skill(trainer.result()) < FITS:
        return None
    leaves = jax.tree.leaves(evidence.predict(trainer.variables(0), held[0]))
    pair = relations.paired(leaves[0], y[cut:], places, targets) if len(leaves) == 1 else None
    return None if pair is None else relations.agreement(*pair)


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
