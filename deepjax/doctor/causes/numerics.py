"""Causes of values that are not finite."""

import jax
import numpy as np

from deepjax.doctor import rewrites
from deepjax.doctor.causes.weights import DEPTH
from deepjax.doctor.evidence import Evidence, Remedy, Suspicion
from deepjax.doctor.non_finite import hunt
from deepjax.doctor.report import Finding
from deepjax.doctor.trials import Trainer


def non_finite(evidence: Evidence):
    """Find the operation that makes the first NaN or infinity, before training or in its course."""
    measured = evidence.measured
    if not np.isfinite(measured.loss) or not np.isfinite(measured.gradient_norm):
        yield from _hunted(evidence, evidence.variables, *evidence.batch, "before training")
        return
    losses = evidence.planned.losses[0]
    if np.isfinite(losses).all() or np.isfinite(evidence.sweep.loss[:2]).any():
        return  # lower rates stay finite: the rate is the cause
    step = int(np.flatnonzero(~np.isfinite(losses))[0])
    trainer = Trainer(evidence.subject, evidence.targets, evidence.loss.expects, evidence.key).advance(max(step - 1, 0))
    for now in (step - 1, step):
        rows = trainer.rows(1)[0]
        found = list(_hunted(evidence, trainer.variables(0), *evidence.subject.rows(rows), f"at step {now}"))
        if found:
            yield from found
            return
        trainer.advance(1)


def _hunted(evidence, variables, inputs, targets, when):
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def value(params, inputs, targets):
        return evidence.subject.value({"params": params, **rest}, inputs, targets, evidence.key)[0]

    found = hunt(jax.value_and_grad(value), variables["params"], inputs, targets)
    if found is not None and not (found.overflow and _grows(evidence)):
        title = f"Values become NaN or infinite {when}: {found.what}."
        finding = Finding("non_finite", "serious", title, str(found), found.remedy, found.layer or "")
        yield Suspicion(finding, Remedy("operands of logarithms, roots and quotients kept positive", rewrites.guarded))


def _grows(evidence):
    """Whether activations grow from layer to layer until they overflow, so that the weights are the cause."""
    stds = [row.std for row in evidence.measured.rows if np.isfinite(row.std) and row.std > 0]
    return len(stds) > 2 and max(stds) / stds[0] > DEPTH


CAUSES = (non_finite,)
