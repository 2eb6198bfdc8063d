"""The examination: facts first, then what they cannot explain, each step with the remedies of those before it."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from deepjax.doctor import causes, spectra
from deepjax.doctor.causes.plan import GAIN, clearly_better, other_rate, rate_and_steps, severity
from deepjax.doctor.evidence import FACTORS, HEALTHY, LEARNS, Evidence, Suspicion, curve
from deepjax.doctor.measure import measure
from deepjax.doctor.report import SEVERITIES, Finding, Outcome, Report, Sweep
from deepjax.doctor.subject import Subject, parameter_count, subject
from deepjax.errors import InputError

UNLEARNABLE = ("constant_labels", "shuffled_labels", "wrong_input_encoding")
LOWER, FELL = 0.1, 0.5  # factor of the rate; share of the first loss, below which a run has learned before it diverged
# Causes whose remedies change the network itself.
ALONE = ("missing_normalization", "missing_flatten", "too_many_layers", "too_few_units")


def examine(
    model: Any,
    batch: tuple[Any, Any],
    loss: Any,
    *,
    key: Any,
    variables: Any = None,
    optimizer: Any = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    budget: float = 60,
) -> Report:
    """Find out why a model does not train, and try the remedies.

    Args:
      model: a Linen module; a Flax NNX module; or a function (params, inputs) -> predictions, with `variables` its
        parameters. A Linen module may take `train`, `training`, `is_training` or `deterministic`.
      batch: (inputs, targets): arrays [examples, ...] of the training set, or of one batch. Inputs may be a pytree.
      loss: function (predictions, targets) -> scalar, the mean over the examples.
      key: PRNG key of the initial weights, the order of the examples and dropout.
      variables: initial or trained variables. None: those of `model.init`.
      optimizer: the planned Optax transformation. None: Adam with a rate of 0.001; the optimizer is not judged then.
      batch_size: examples of a planned step. None: at most 32.
      epochs: planned passes over the examples. None: not known; whether there are too few steps is not judged then.
      budget: seconds that the examination may take on a nominal machine: it limits the steps of its runs.

    Returns:
      `Report`.

    Raises:
      InputError: the model cannot be called on the batch, the loss is not a scalar, or the arrays do not fit.

    >>> import flax.linen as nn, jax.numpy as jnp, optax
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> labels = (x[:, 0] > 0).astype(jnp.int32)
    >>> net = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(2), nn.softmax])
    >>> def loss(p, t):
    ...     return optax.softmax_cross_entropy_with_integer_labels(p, t).mean()
    >>> report = examine(net, (x, labels), loss, key=jax.random.key(1), budget=5)
    >>> report.findings[0].code, report.findings[0].outcome.learns
    ('wrong_output_activation', True)
    """
    if not budget > 0:
        raise InputError(f"budget {budget} must be above 0 seconds")
    made = subject(model, batch, loss, variables=variables, optimizer=optimizer, batch_size=batch_size, epochs=epochs)
    return examine_subject(made, key, budget)


def examine_subject(made: Subject, key: Any, budget: float) -> Report:
    """Examine a model that has been brought to the form of a `Subject`; the arguments are those of `examine`."""
    return _report(*diagnose(made, key, budget))


def diagnose(made: Subject, key: Any, budget: float) -> tuple[Evidence, Evidence, tuple[Finding, ...], Outcome | None]:
    """Return (evidence of the subject, evidence with all remedies, findings, outcome of all remedies)."""
    start = Evidence(made, key, budget)
    evidence, found, unproved = start, [], []
    for group in (causes.FIRST, causes.SCALES, causes.SECOND, causes.THIRD):
        if _unlearnable(found) or (group is causes.THIRD and _cured(evidence, found)):
            break
        new, left = _proved(start, evidence, group)
        found, unproved = found + new, unproved + left
        evidence = evidence.with_remedies(new)
    together = [] if _unlearnable(found) else _together(start, evidence, unproved)
    found, evidence = found + together, evidence.with_remedies(together)
    unproved = [each for each in unproved if each.finding.code not in {other.finding.code for other in together}]
    last = [each for each in unproved if each.otherwise == "last" and evidence.skill(evidence.planned) < LEARNS]
    evidence = evidence.with_remedies(last)
    notes = [_unproved(each) for each in unproved if each.otherwise == "note"]
    found += [*last, *notes]
    outcome = _cure(start, evidence)
    findings = [_with_outcome(each, outcome, evidence.remedies) for each in found]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    findings = list({(finding.code, finding.layer): finding for finding in reversed(findings)}.values())[::-1]
    return start, evidence, tuple(findings), outcome


def _unlearnable(found):
    """Whether the data have nothing to learn, so that better training would only learn them by heart."""
    return any(each.finding.code in UNLEARNABLE and each.finding.severity == "serious" for each in found)


def _cured(evidence, found):
    """Whether there are findings, and the model learns well with their remedies."""
    return bool(found) and evidence.healthy


def _proved(start: Evidence, evidence: Evidence, group: Iterable) -> tuple[list[Suspicion], list[Suspicion]]:
    """Return the suspicions of a group that are certain or whose remedy helps clearly, and the others."""
    found, left = [], []
    for cause in group:
        for suspicion in cause(evidence):
            if suspicion.certain:
                found.append(suspicion)
            elif proved := _tried(start, evidence, suspicion, found):
                found += proved
            else:
                left.append(suspicion)
    return found, left


def _tried(start, evidence, suspicion, found):
    base = evidence.with_remedies(found)
    if base.healthy or suspicion.remedy is None:
        return []
    changed = evidence.with_remedies([*found, suspicion])
    before, after = base.skill(base.planned), changed.skill(changed.planned)
    # What was measured weighs too: then it is enough that a model that does not learn begins to.
    begins = suspicion.otherwise == "last" and before < LEARNS <= after and after - before >= GAIN
    if not (begins or clearly_better(before, after)):
        return _with_lower_rate(start, base, changed, suspicion)
    text = f"{suspicion.finding.evidence} Without it, the model reaches a skill of {after:.2f} instead of {before:.2f}."
    outcome = start.outcome(suspicion.remedy.description, changed)
    grade = severity(start, before, after)
    finding = dataclasses.replace(suspicion.finding, severity=grade, evidence=text, outcome=outcome)
    return [dataclasses.replace(suspicion, finding=finding)]


def _with_lower_rate(start, base, changed, suspicion):
    """Return a suspicion whose remedy makes the loss fall until it is not finite, and a lower rate; or nothing.

    A lower rate must not suffice without the remedy.
    """
    losses = changed.planned.losses[0]
    if np.isfinite(losses[-1]) or not np.nanmin(losses) < FELL * losses[0]:
        return []
    before = base.skill(base.planned)
    rate = other_rate("high", base, before, before, LOWER)
    alone, both = base.with_remedies([rate]), changed.with_remedies([rate])
    after = both.skill(both.planned)
    if not clearly_better(max(before, alone.skill(alone.planned)), after):
        return []
    rate = other_rate("high", changed, 0.0, after, LOWER)
    return [_joint(start, both, suspicion, before, alone.skill(alone.planned)), _in_plan(rate)]


def _together(start: Evidence, evidence: Evidence, left: list[Suspicion]) -> list[Suspicion]:
    """Return the suspicions whose remedies make a model learn together, where none does so alone.

    All are applied, and then a better plan. Those without which the model learns as well are then left out.
    """
    kept = [each for each in left if each.remedy is not None and each.finding.code not in ALONE]
    before = evidence.skill(evidence.planned)
    if before >= LEARNS or not kept:
        return []
    kept += [_in_plan(each) for each in rate_and_steps(evidence.with_remedies(kept))]
    after = _reached(evidence, kept)
    if not clearly_better(before, after):
        return []
    for each in tuple(reversed(kept)):
        rest = [other for other in kept if other is not each]
        if _reached(evidence, rest) > after - GAIN:
            kept = rest
    changed = evidence.with_remedies(kept)
    without = [_reached(evidence, [other for other in kept if other is not each]) for each in kept]
    return [_joint(start, changed, each, before, less) for each, less in zip(kept, without, strict=True)]


def _reached(evidence, found):
    changed = evidence.with_remedies(found)
    return changed.skill(changed.planned)


def _in_plan(suspicion):
    """Return a suspicion about the plan without its numbers, which are those of a model with all other remedies."""
    text = "The plan was changed after all other remedies."
    return dataclasses.replace(suspicion, finding=dataclasses.replace(suspicion.finding, evidence=text))


def _joint(start, changed, suspicion, before, without):
    """Return a suspicion as a finding that is proved by all remedies of `changed` together."""
    after = changed.skill(changed.planned)
    text = f"{suspicion.finding.evidence} The model reaches a skill of {after:.2f} instead of {before:.2f} with: "
    text += f"{'; '.join(changed.remedies)}. Without this one it is {without:.2f}."
    outcome = start.outcome("; ".join(changed.remedies), changed)
    grade = severity(start, before, after)
    finding = dataclasses.replace(suspicion.finding, severity=grade, evidence=text, outcome=outcome)
    return dataclasses.replace(suspicion, finding=finding)


def _unproved(suspicion: Suspicion) -> Suspicion:
    """Return the note that remains of a suspicion that is not proved to matter."""
    text = f"{suspicion.finding.evidence} It is not shown that this matters here."
    finding = dataclasses.replace(suspicion.finding, severity="note", evidence=text)
    return dataclasses.replace(suspicion, finding=finding, remedy=None)


def _cure(start: Evidence, evidence: Evidence) -> Outcome | None:
    """Return what all remedies together change; with another learning rate, if they do not suffice."""
    if not evidence.remedies:
        return None
    text = "; ".join(evidence.remedies)
    if evidence.skill(evidence.planned) >= HEALTHY:
        return start.outcome(text, evidence)
    best = evidence.sweep.best
    if evidence.skill(evidence.sweep, best) <= evidence.skill(evidence.planned):
        return start.outcome(text, evidence)
    text += f"; {FACTORS[best]:g} times the learning rate"
    return start.outcome(text, evidence, evidence.sweep, best)


def _with_outcome(suspicion: Suspicion, outcome: Outcome | None, tried: tuple[str, ...]) -> Finding:
    finding, remedy = suspicion.finding, suspicion.remedy
    if finding.outcome or remedy is None or remedy.description not in tried:
        return finding
    return dataclasses.replace(finding, outcome=outcome)


def _report(start, evidence, findings, outcome):
    inputs, targets = evidence.batch
    after = measure(evidence.subject, evidence.trainer.variables(0), inputs, targets, evidence.key)
    planned = start.outcome("as planned", start)
    return Report(
        verdict=_verdict(start, findings, outcome),
        findings=findings,
        facts=_facts(start),
        rows=start.measured.rows,
        after=after.rows,
        parameters=start.measured.parameters,
        planned=planned,
        cure=outcome,
        sweep=_sweep(start),
        spectrum=spectra.jacobian(start),
        sharpness=spectra.sharpness(start),
    )


def _sweep(start):
    """Return the sweep of rates around the plan, if it was run."""
    run = start.__dict__.get("sweep")
    if run is None:
        return None
    runs, planned = range(len(run.factors)), start.planned
    order = sorted([*runs, -1], key=lambda i: 1.0 if i < 0 else run.factors[i])

    def pick(of):
        return tuple(of(planned, 0) if i < 0 else of(run, i) for i in order)

    return Sweep(
        factors=tuple(1.0 if i < 0 else run.factors[i] for i in order),
        losses=pick(lambda r, i: curve(r.losses[i])),
        quality=pick(lambda r, i: float(r.quality[i])),
        final=pick(lambda r, i: float(r.loss[i])),
    )


def _facts(start: Evidence) -> dict[str, str]:
    made, targets, loss = start.subject, start.targets, start.loss
    shapes = [list(leaf.shape[1:]) for leaf in jax.tree.leaves(made.inputs)]
    facts = {
        "examples": f"{made.examples}, inputs of shape {', '.join(map(str, shapes))}",
        "targets": f"{targets.kind}, {targets.classes} classes" if targets.classes else targets.kind,
        "loss": f"{loss.kind}" + (f" (expects a {loss.expects})" if loss.expects else ""),
        "output": start.head.activation if start.head else "not recognized",
        "layers": f"{len(start.measured.rows)}, {parameter_count(start.variables)} parameters",
        "loss before training": f"{start.measured.loss:.4g}",
        "steps": f"{start.planned.losses.shape[1]} of a batch of {made.batch_size}"
        + ("" if start.planned.complete else ", as many as the budget allows"),
    }
    if targets.kind in ("classes", "one-hot") and targets.classes > 1:
        facts["loss before training"] += f" (log of {targets.classes} classes: {np.log(targets.classes):.4g})"
    return facts


def _verdict(start, findings, outcome):
    planned = start.planned
    reached = start.skill(planned)
    if not findings:
        if reached >= HEALTHY:
            return "Nothing is wrong: the model learns as planned."
        if reached >= LEARNS:
            return f"No fault was found. The model learns: its skill is {reached:.2f} (0 is a constant, 1 is perfect)."
        return "The model does not learn, and no cause was found among those that are known here."
    serious = [finding for finding in findings if finding.severity == "serious"]
    text = (serious or findings)[0].title
    if not serious and reached < LEARNS:
        return f"The model does not learn, and the cause is not certain; worth a look: {text}"
    if not serious:
        return f"The model trains; worth a look: {text}"
    if outcome is not None and outcome.learns:
        if not np.isfinite([outcome.quality_before, outcome.quality_after]).all():
            return f"{text} With the remedies it learns."
        change = f"{outcome.quality_before:.3g} to {outcome.quality_after:.3g}"
        return f"{text} With the remedies it learns: its share of right predictions (or R squared) goes from {change}."
    return text
