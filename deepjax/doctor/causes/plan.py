"""Causes in the plan of training: learning rate, number of steps, batch size, optimizer, size of the network.

They are looked for last, by runs: a cause is a finding only if the run without it is clearly better.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax.doctor import plan_changes, trials
from deepjax.doctor.evidence import FACTORS, LEARNS, LONG, SWEEP, Evidence, Remedy, Suspicion, updated
from deepjax.doctor.report import Finding

LONGEST = 64  # steps over which accumulation is recognized
GAIN = 0.1  # of skill, that a change must bring
IDLE = 1e-3  # share of the largest update, below which a step changes nothing
FEW = 100  # updates; with fewer, their number is named before the learning rate


def clearly_better(before: float, after: float) -> bool:
    """Whether a change makes a model learn: the gain is at least 0.1, and the missing skill halves."""
    return after >= LEARNS and after - before >= GAIN and 1 - after <= 0.5 * (1 - before)


def severity(evidence: Evidence, before: float, after: float, high: bool = False) -> str:
    """Return "serious" where training as planned reaches less than half of what it could, else "warning".

    A plan that was cut short by the budget is not judged while its loss falls. A high rate may fall late, so there
    (`high`) it is enough that the loss is lower at the end than in the middle.
    """
    planned = evidence.planned
    cut = evidence.falls and not (planned.complete and evidence.subject.epochs is not None)
    cut |= high and not planned.complete and _falls_late(planned.losses[0])
    return "serious" if before < 0.5 * after and not cut else "warning"


def _falls_late(losses):
    """Whether the loss of a run is lower, by a hundredth at least, at its end than in its middle."""
    middle, part = len(losses) // 2, max(1, len(losses) // 10)
    return bool(losses[-part:].mean() < 0.99 * losses[middle : middle + part].mean())


def _preference(evidence):
    """Return by how much a higher rate is preferred to more steps: both make up for each other."""
    return GAIN if trials.planned_steps(evidence.subject) >= FEW else -GAIN


def _known(evidence):
    """Whether the number of steps is known and was made, so that slow learning is a fault of the plan."""
    return evidence.subject.epochs is not None and evidence.planned.complete


def accumulation_that_sums(evidence: Evidence):
    """Find an optimizer that adds up the gradients of several steps, in place of their mean."""
    if not evidence.subject.planned:
        return
    params = evidence.variables["params"]
    ones = jax.tree.map(jnp.ones_like, params)
    optimizer, state = evidence.subject.optimizer, evidence.subject.optimizer.init(params)
    sums = False
    for step in range(1, LONGEST + 1):
        updates, state = updated(optimizer, ones, state, params)
        if any(np.any(np.asarray(u)) for u in jax.tree.leaves(updates)):
            break
        sums |= step == 2 and _holds_twice(state, params)
    states = jax.tree.leaves(state, is_leaf=lambda each: isinstance(each, optax.ApplyEvery))
    adds_updates = not sums and step > 1 and any(isinstance(each, optax.ApplyEvery) for each in states)
    if not sums and not (adds_updates and not evidence.healthy):
        return
    title = "Gradient accumulation adds up the gradients, so the rate grows with the number of steps."
    text = f"After two equal gradients the optimizer's state holds their sum; it updates after {step}."
    text = f"`optax.apply_every` adds up {step} updates, each of the full rate." if adds_updates else text
    advice = "Take the mean: `optax.MultiSteps(..., use_grad_mean=True)`."
    finding = Finding("accumulation_sums", "serious", title, text, advice)
    # Where updates are added up, momentum may have multiplied each of them.
    tried = [_divided(finding, step * more, certain=sums) for more in ((1, 10) if adds_updates else (1,))]
    yield evidence.best_of(tried) if adds_updates else tried[0]


def _divided(finding, number, certain):
    remedy = Remedy(f"updates divided by {number}", plan_changes.scaled_rate(1 / number))
    return Suspicion(finding, remedy, certain)


def _holds_twice(state, params):
    """Whether an optimizer's state has a tree like the parameters that is 2 everywhere."""
    like = jax.tree.structure(params)

    def fits(tree):
        return jax.tree.structure(tree) == like

    trees = [tree for tree in jax.tree.leaves(state, is_leaf=fits) if fits(tree)]
    return any(all(np.all(np.asarray(leaf) == 2) for leaf in jax.tree.leaves(tree)) for tree in trees)


def ended_schedule(evidence: Evidence):
    """Find a learning rate that is (almost) 0 for most of the planned steps."""
    subject, steps = evidence.subject, trials.planned_steps(evidence.subject)
    if not subject.planned or subject.epochs is None or evidence.healthy:
        return
    sizes = np.array(_update_sizes(subject.optimizer, evidence.variables["params"], steps))
    last = int(np.flatnonzero(sizes > IDLE * sizes.max()).max(initial=0)) + 1
    if not sizes.max() > 0 or 2 * last > steps:
        return
    title = "The learning rate falls to 0 long before training ends."
    text = f"For a constant gradient, updates are below {IDLE:g} of the largest after step {last} of {steps}."
    finding = Finding("learning_rate_too_low", "serious", title, text, f"Let the schedule last {steps} steps.")
    yield Suspicion(finding, Remedy("Adam with a rate of 0.001", plan_changes.with_adam(1e-3)), certain=False)


def _update_sizes(optimizer, params, steps):
    """Return the largest update in each step for gradients of 1, f32 [steps]. One number stands for every array."""
    ones = jax.tree.map(lambda a: jnp.ones(1), params)

    def step(state, _):
        updates, state = updated(optimizer, ones, state, ones)
        return state, jnp.max(jnp.stack([jnp.abs(u).max() for u in jax.tree.leaves(updates)]))

    return jax.lax.scan(step, optimizer.init(ones), length=steps)[1]


def rate_and_steps(evidence: Evidence):
    """Compare training as planned with other rates, and with more steps."""
    if evidence.healthy:
        return
    before, sweep = evidence.skill(evidence.planned), evidence.sweep
    skills = [evidence.skill(sweep, i) for i in range(len(FACTORS))]
    low = max((s, -f, f) for s, f in zip(skills, FACTORS, strict=True) if f < 1)
    high = max((s, -f, f) for s, f in zip(skills, FACTORS, strict=True) if f > 1)
    longer = evidence.longer if _known(evidence) else {}
    long, times = max(((evidence.skill(r), -n) for n, r in longer.items()), default=(-1.0, 0))
    found = []
    if clearly_better(before, low[0]) and low[0] >= high[0]:
        found.append((low[0], other_rate("high", evidence, before, low[0], low[2])))
    elif clearly_better(before, high[0]) and (_known(evidence) or before < LEARNS or not evidence.falls):
        found.append((high[0] + _preference(evidence), other_rate("low", evidence, before, high[0], high[2])))
    if clearly_better(before, long):
        found.append((long, _steps(evidence, before, long, -times)))
    found = [suspicion for _, suspicion in sorted(found, key=lambda pair: -pair[0])]
    found = found or _rate_again(evidence, before)
    yield from found
    if not found and _known(evidence) and before < LEARNS:
        yield from _rate_with_steps(evidence, before)


def _rate_again(evidence, before):
    """Train as long as planned with the lower and the higher rate that are best in the sweep, which has fewer steps."""
    run, found = evidence.sweep, []
    if run.losses.shape[1] >= evidence.planned.losses.shape[1]:
        return found
    for which in ("high", "low"):
        side = [i for i, f in enumerate(FACTORS) if (f < 1) == (which == "high") and np.isfinite(run.loss[i])]
        if not side or (which == "low" and not _known(evidence) and before >= LEARNS and evidence.falls):
            continue
        factor = FACTORS[min(side, key=lambda i: run.loss[i])]
        changed = evidence.with_remedies([other_rate(which, evidence, before, before, factor)])
        after = changed.skill(changed.planned)
        if clearly_better(before, after):
            found.append((after, other_rate(which, evidence, before, after, factor)))
    return [suspicion for _, suspicion in sorted(found, key=lambda pair: -pair[0])][:1]


def _rate_with_steps(evidence, before):
    """Try higher rates and more steps together, where neither alone helps, nor another optimizer."""
    for other in optimizer(evidence):
        changed = evidence.with_remedies([other])
        if clearly_better(before, changed.skill(changed.planned)):
            return
    factors = tuple(f for f in FACTORS if f > 1)
    steps = LONG[0] * evidence.planned.losses.shape[1]
    if evidence.steps(evidence.subject.with_(epochs=10**9), SWEEP, len(factors)) < steps:
        return
    trainer = trials.Trainer(evidence.subject, evidence.targets, evidence.loss.expects, evidence.key, factors)
    run = trainer.advance(steps).result()
    after = evidence.skill(run, run.best)
    if clearly_better(before, after):
        found = [
            _steps(evidence, before, after, LONG[0]),
            other_rate("low", evidence, before, after, factors[run.best]),
        ]
        yield from found if _preference(evidence) < 0 else reversed(found)


def other_rate(which, evidence, before, after, factor) -> Suspicion:
    """Return the suspicion of a rate that is too "high" or "low"; with `factor` times it the skill is `after`."""
    if not evidence.subject.planned:
        before, which = -1.0, which
    code = f"learning_rate_too_{which}"
    text = f"As planned, training reaches {_percent(evidence, before)}; "
    text += f"with {factor:g} times the rate {_percent(evidence, after)}"
    last = evidence.planned.losses[0][-1]
    text += ", and its loss is not finite as planned." if not np.isfinite(last) else "."
    title = f"The learning rate is too {which}."
    finding = Finding(
        code,
        severity(evidence, before, after, factor < 1),
        title,
        text,
        f"Multiply the learning rate by {factor:g}.",
    )
    return Suspicion(finding, Remedy(f"{factor:g} times the learning rate", plan_changes.scaled_rate(factor)))


def _percent(evidence, skill):
    """Return a skill as the accuracy, or R squared, that it is."""
    base = evidence.targets.majority
    share = base + max(skill, -base) * (1 - base)
    return f"{100 * share:.1f} % right" if evidence.targets.classes else f"R squared {max(share, 0):.3f}"


def _steps(evidence, before, after, times):
    steps = evidence.planned.losses.shape[1]
    text = f"After the planned {steps} steps training reaches {_percent(evidence, before)}, "
    text += f"after {times * steps} steps {_percent(evidence, after)}."
    title = "Training ends too early: the loss still falls."
    advice = f"Train for at least {times} times as many epochs."
    finding = Finding("too_few_steps", severity(evidence, before, after), title, text, advice)
    return Suspicion(finding, Remedy(f"{times} times the epochs", plan_changes.more_epochs(times)))


def gradients_in_training(evidence: Evidence):
    """Suspect gradients that explode while training, where the loss is not finite or grows."""
    losses = evidence.planned.losses[0]
    if evidence.healthy or (np.isfinite(losses[-1]) and losses[-1] <= losses[0]):
        return
    title = "Gradients explode while training."
    text = f"The loss goes from {losses[0]:.3g} to {losses[-1]:.3g}."
    finding = Finding("exploding_gradients", "serious", title, text, "Clip them: `optax.clip_by_global_norm(1.0)`.")
    yield Suspicion(finding, Remedy("gradients clipped to a norm of 1", plan_changes.clipped), certain=False)


def batch_size(evidence: Evidence):
    """Suspect batches that are (almost) the whole set, or single examples."""
    size, examples = evidence.subject.batch_size, evidence.subject.examples
    if evidence.healthy or examples < 64 or not (size <= 2 or size * 4 > examples) or not _known(evidence):
        return
    text = f"The batch size is {size} for {examples} examples: {max(1, examples // size)} steps in an epoch."
    title = f"The batch is too {'small' if size <= 2 else 'large'} for this set."
    finding = Finding("batch_size", "serious", title, text, "Use a batch size of about 32.")
    yield Suspicion(finding, Remedy("batches of 32", plan_changes.batches_of(32)), certain=False)


def optimizer(evidence: Evidence):
    """Suspect the optimizer, where Adam with its usual rate does better than all rates of the planned one."""
    if evidence.healthy or not evidence.subject.planned or not _known(evidence):
        return
    title = "Another optimizer trains this network where the planned one does not."
    text = "Adam with a rate of 0.001 was tried for the same number of steps."
    finding = Finding("wrong_optimizer", "serious", title, text, "Use `optax.adam(1e-3)`.")
    yield Suspicion(finding, Remedy("Adam with a rate of 0.001", plan_changes.with_adam(1e-3)), certain=False)


CAUSES = (ended_schedule, rate_and_steps, gradients_in_training, batch_size, optimizer)
