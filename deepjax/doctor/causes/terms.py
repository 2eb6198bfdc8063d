"""Causes in losses that are sums of terms: a term without the targets may outweigh those that compare with them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, Var

from deepjax.doctor.evidence import Evidence, Remedy, Suspicion
from deepjax.doctor.head import SHAPED, inlined, run_flat
from deepjax.doctor.report import Finding
from deepjax.doctor.trials import evaluated_rows

LINEAR = (*SHAPED, "reduce_sum", "neg", "mul", "div")  # of an array and, for the last two, a number
WEAKER = 0.01  # factor of the term in the remedy
FAR = 1e6  # standard deviation of random predictions
LITTLE, MUCH = 0.15, 0.4  # of `_known`: as planned, and with the remedy


class Term(NamedTuple):
    """A term of a loss that does not depend on the targets."""

    eqn: Any  # the sum or difference of which it is an operand
    operand: int


def outweighing_term(evidence: Evidence):
    """Find a term without targets, such as a divergence or a penalty, because of which the other terms do not fall."""
    subject = evidence.subject
    if evidence.loss.kind != "other":
        return
    inputs, targets = subject.rows(evaluated_rows(subject, evidence.key))
    untrained = evidence.predict(evidence.variables, inputs)
    if find_term(*_traced(subject.loss, untrained, targets)) is None:
        return
    if not _is_loss(with_term(subject.loss, 0.0), untrained, targets, evidence.key):
        return
    before = _known(evidence, targets)
    if not before < LITTLE:
        return
    title = "A term of the loss that does not depend on the targets outweighs the others."
    advice = "Give it a smaller weight, or the same reduction (mean or sum) as the other terms."
    remedy = Remedy("a hundredth of that term", lambda s: s.with_(loss=with_term(s.loss, WEAKER)))
    suspicion = Suspicion(Finding("regularization_too_strong", "serious", title, "", advice), remedy)
    after = _known(evidence.with_remedies([suspicion]), targets)
    if after > MUCH:
        text = f"After training, the other terms are {max(before, 0):.0%} lower than for shuffled targets, "
        text += f"and {after:.0%} with a hundredth of this one."
        yield Suspicion(Finding("regularization_too_strong", "serious", title, text, advice), remedy)


def _is_loss(others, predictions, targets, key):
    """Whether the other terms are a loss by themselves. A cross entropy without its log-sum-exp has no lower bound."""
    leaves, tree = jax.tree.flatten(predictions)
    for i, leaf in enumerate(leaves):
        noise = FAR * jax.random.normal(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)
        for far in (noise, -noise):
            value = float(others(jax.tree.unflatten(tree, [*leaves[:i], far, *leaves[i + 1 :]]), targets))
            if value < 0:  # it is NaN where predictions are not in their range
                return False
    return True


def _known(evidence, targets):
    """Return by which share the other terms are lower for the targets than for shuffled ones, after training."""
    others, predictions = with_term(evidence.subject.loss, 0.0), evidence.planned.predictions[0]
    order = np.random.default_rng(0).permutation(len(jax.tree.leaves(targets)[0]))
    shuffled = float(others(predictions, jax.tree.map(lambda t: t[order], targets)))
    return 1 - float(others(predictions, targets)) / shuffled if shuffled > 0 else np.nan


def with_term(loss, factor):
    """Return a loss whose term that does not depend on the targets is multiplied by a factor."""

    def changed(predictions, targets):
        closed, count = _traced(loss, predictions, targets)
        term = find_term(closed, count) or Term(None, 0)

        def scaled(*operands):
            operands = list(operands)
            one = operands[term.operand]
            operands[term.operand] = factor * one if factor else jnp.zeros_like(one)  # also of infinity
            return term.eqn.primitive.bind(*operands)

        def replace(eqn):
            return scaled if eqn is term.eqn else None

        return run_flat(closed, jax.tree.leaves((predictions, targets)), replace)[0]

    return changed


def _traced(loss, predictions, targets):
    """Return (jaxpr of the loss without calls, number of arrays of predictions)."""
    flat, tree = jax.tree.flatten((predictions, targets))
    return inlined(lambda *leaves: loss(*jax.tree.unflatten(tree, leaves)), flat), len(jax.tree.leaves(predictions))


def find_term(closed, count) -> Term | None:
    """Return the first term of a loss that depends on the first `count` arguments and on none of the others."""
    jaxpr = closed.jaxpr
    made = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    predicted, compared = (_depending(jaxpr, part) for part in (jaxpr.invars[:count], jaxpr.invars[count:]))
    waiting = [v for v in jaxpr.outvars if isinstance(v, Var)]
    while waiting:
        eqn = made.get(waiting.pop())
        if eqn is None:
            continue
        operands = [a if isinstance(a, Var) else None for a in eqn.invars]
        if eqn.primitive.name in ("add", "sub"):
            for i, (one, other) in enumerate((operands, operands[::-1])):
                if one in predicted and one not in compared and other in compared:
                    return Term(eqn, i)
            waiting += [a for a in operands if a in compared]
        elif eqn.primitive.name in LINEAR and sum(a in predicted or a in compared for a in operands) == 1:
            waiting += [a for a in operands if a in compared]
    return None


def _depending(jaxpr, start):
    found = set(start)
    for eqn in jaxpr.eqns:
        if any(not isinstance(a, Literal) and a in found for a in eqn.invars):
            found.update(eqn.outvars)
    return found


CAUSES = (outweighing_term,)
