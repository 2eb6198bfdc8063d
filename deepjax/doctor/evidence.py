"""What the causes look at. Everything is computed when it is first asked for, and then kept."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import Literal

from deepjax.doctor import facts, head, losses, trials
from deepjax.doctor.compiling import compile_quickly
from deepjax.doctor.measure import Measurement, measure
from deepjax.doctor.report import Finding, Outcome
from deepjax.doctor.subject import Subject
from deepjax.errors import InputError

# Shares of the budget: of nominal seconds (see `trials`), so that the numbers of steps do not depend on the clock.
PLANNED, SWEEP, LONGER = 0.1, 0.3, 0.2
FACTORS = (1e-3, 1e-2, 1e-1, 1e1, 1e2, 1e3, 1e4, 1e6)  # of the learning rate, in the sweep
LONG = (4, 16, 64)  # times the planned steps, of the longer runs
POINTS = 200  # of a curve in the report, at most
MEASURED = 64  # examples on which layers are measured, at most

# Skill is 0 for the best constant prediction and 1 for perfect ones.
HEALTHY = 0.9  # training as planned that reaches this skill is not questioned
LEARNS = 0.25  # skill from which a run counts as learning, as in the published benchmark of real programs


@dataclass(frozen=True)
class Remedy:
    """A change that may cure a cause."""

    description: str
    change: Any  # function of a subject -> changed subject


@dataclass(frozen=True)
class Suspicion:
    """A finding whose remedy has not been tried yet."""

    finding: Finding
    remedy: Remedy | None = None
    certain: bool = True  # whether it is a finding without a trial; else only if the remedy clearly helps
    otherwise: str = ""  # if the remedy does not help: "note", or "last", a finding if the model does not learn at all


class Evidence:
    """All that is known of a subject."""

    def __init__(self, subject: Subject, key, budget: float, remedies: tuple[str, ...] = ()):
        self.subject, self.key, self.budget = subject, key, budget
        self.remedies = remedies  # that have been applied to the subject, as texts
        self._changed = {}  # evidence of this subject with further remedies

    @cached_property
    def targets(self) -> facts.Targets:
        """Facts of the targets."""
        described = facts.describe_targets(self.subject.targets)
        counts = described.kind == "classes" and self.loss.expects in ("rate", "log rate")
        if counts or (described.ignored is not None and self.loss.expects == "number"):
            return replace(described, kind="numbers", classes=0, majority=0.0, ignored=None)
        if described.kind in ("labels", "binary") and self.loss.form == "index":
            t = np.asarray(jax.tree.leaves(self.subject.targets)[0])
            counts = np.bincount(t.astype(int).ravel())
            share = float(counts.max() / counts.sum())
            return replace(described, kind="classes", classes=len(counts), majority=share)
        return described

    @cached_property
    def inputs(self) -> list[facts.Inputs]:
        """Facts of the arrays of inputs, those of indices left out."""
        described = facts.describe_inputs(self.subject.inputs)
        return [each for each, used in zip(described, self._sensitive, strict=True) if used and not each.indices]

    @cached_property
    def _sensitive(self) -> list[bool]:
        """For each array of inputs: whether the outputs have a gradient in it. Indices, such as words, have none."""
        leaves, tree = jax.tree.flatten(self.batch[0])
        variables = self.variables  # computed before anything is traced
        real = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

        def value(moving):
            moving = iter(moving)
            given = [next(moving) if each else leaf for leaf, each in zip(leaves, real, strict=True)]
            out, _ = self.subject.apply(variables, jax.tree.unflatten(tree, given), False, self.key)
            return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(out))

        moving = [leaf for leaf, each in zip(leaves, real, strict=True) if each]
        zero = iter(zeros(head.inlined(lambda *a: jax.grad(value)(list(a)), moving).jaxpr))
        # Images are given as uint8 too; a model that takes these divides them itself.
        return [not next(zero) if each else leaf.dtype == np.uint8 for leaf, each in zip(leaves, real, strict=True)]

    @cached_property
    def loss(self) -> losses.Loss:
        """What the loss is."""
        leaves = jax.tree.leaves(self.predicted)
        goals = jax.tree.leaves(self.subject.targets)
        if len(leaves) != 1 or len(goals) != 1:
            return losses.Loss("other", "", "dense", False, False, 0.0)
        return losses.recognize(self.subject.loss, leaves[0].shape, goals[0], jax.random.fold_in(self.key, 3))

    @cached_property
    def predicted(self) -> Any:
        """Shapes of the predictions for all examples."""
        subject = self.subject
        return jax.eval_shape(lambda v: subject.apply(v, subject.inputs, False, self.key)[0], self.variables)

    @cached_property
    def variables(self) -> dict:
        """Variables before training."""
        return trials.initial_variables(self.subject, self.key)

    def moved(self, factor: float) -> dict:
        """Return the variables with random parts added to all parameters, and these then multiplied by a factor."""
        leaves, tree = jax.tree.flatten(self.variables["params"])
        keys = [jax.random.fold_in(self.key, 200 + i) for i in range(len(leaves))]
        moved = [factor * (a + 0.1 * jax.random.normal(k, a.shape, a.dtype)) for k, a in zip(keys, leaves, strict=True)]
        return {**self.variables, "params": jax.tree.unflatten(tree, moved)}

    @cached_property
    def batch(self) -> tuple[Any, Any]:
        """The batch on which layers are measured."""
        rows = np.random.default_rng(0).permutation(self.subject.examples)[:MEASURED]
        return self.subject.rows(rows)

    @cached_property
    def head(self) -> head.Head | None:
        """The last layer and what follows it, where it is visible."""
        if len(jax.tree.leaves(self.predicted)) != 1:
            return None
        return head.find_head(self.subject, self.variables, self.batch[0], jax.random.fold_in(self.key, 4))

    @property
    def outputs(self) -> int:
        """Number of outputs along the last axis; 1 if there is only the batch axis."""
        shape = jax.tree.leaves(self.predicted)[0].shape
        return shape[-1] if len(shape) > 1 else 1

    @cached_property
    def gradient(self) -> Any:
        """Gradient of the loss on the batch in the parameters, before training."""
        subject = self.subject

        def value(params, rest, inputs, targets):
            return subject.value({"params": params, **rest}, inputs, targets, jax.random.fold_in(self.key, 6))[0]

        rest = {name: tree for name, tree in self.variables.items() if name != "params"}
        return compile_quickly(jax.grad(value))(self.variables["params"], rest, *self.batch)

    @cached_property
    def input_gradient(self) -> Any:
        """Gradient of the loss on the batch in the inputs, one array of real numbers, before training."""
        subject, (inputs, targets) = self.subject, self.batch

        def value(inputs):
            return subject.value(self.variables, inputs, targets, jax.random.fold_in(self.key, 6))[0]

        return jax.tree.leaves(compile_quickly(jax.grad(value))(jax.tree.map(jnp.asarray, inputs)))[0]

    def updates(self, gradient, step: int = 0) -> Any:
        """Return the updates of the planned optimizer for a gradient: the first ones, or those of a later step.

        For the later step, only the counters of the optimizer's state differ, so that a schedule has warmed up.
        """
        params, optimizer = self.variables["params"], self.subject.optimizer
        state = jax.tree.map(
            lambda leaf: leaf + step if jnp.issubdtype(leaf.dtype, jnp.integer) and leaf.ndim == 0 else leaf,
            optimizer.init(params),
        )
        return updated(optimizer, gradient, state, params)[0]

    @cached_property
    def measured(self) -> Measurement:
        """The layers before training."""
        return measure(self.subject, self.variables, *self.batch, jax.random.fold_in(self.key, 5))

    @cached_property
    def step_seconds(self) -> float:
        """Nominal seconds of a planned step."""
        return trials.step_seconds(self.subject)

    def steps(self, subject, share, runs=1, seconds=None) -> int:
        """Return how many steps of a subject fit into a share of the budget, at most the planned ones."""
        affordable = int(share * self.budget / (runs * (seconds or self.step_seconds)))
        return max(1, min(trials.planned_steps(subject), affordable))

    @cached_property
    def trainer(self) -> trials.Trainer:
        """Training as planned, after the planned steps or as many as the budget allows."""
        return trials.Trainer(self.subject, self.targets, self.loss.expects, self.key).advance(
            self.steps(self.subject, PLANNED)
        )

    @cached_property
    def planned(self) -> trials.Run:
        """The result of training as planned."""
        return self.trainer.result()

    @cached_property
    def longer(self) -> dict[int, trials.Run]:
        """The planned run continued to LONG times its steps, as far as the budget allows and until it is healthy."""
        steps, runs = self.trainer.done, {}
        if not self.planned.complete:
            return runs
        affordable = self.steps(self.subject.with_(epochs=10**9), LONGER)
        for times in LONG:
            if affordable < (times - 1) * steps or (runs and self.skill(runs[max(runs)]) >= HEALTHY):
                break
            runs[times] = self.trainer.advance(times * steps - self.trainer.done).result()
        return runs

    @cached_property
    def sweep(self) -> trials.Run:
        """Runs with the planned rate multiplied by each of FACTORS, for as many steps as fit."""
        trainer = trials.Trainer(self.subject, self.targets, self.loss.expects, self.key, FACTORS)
        return trainer.advance(self.steps(self.subject, SWEEP, len(FACTORS))).result()

    def predict(self, variables, inputs) -> Any:
        """Return the predictions in evaluation mode."""
        return compile_quickly(lambda v, x: self.subject.apply(v, x, False, self.key)[0])(variables, inputs)

    @property
    def falls(self) -> bool:
        """Whether the loss falls, by a tenth at least, while training as planned."""
        losses = self.planned.losses[0]
        part = max(1, len(losses) // 10)
        return bool(losses[-part:].mean() < 0.9 * losses[:part].mean())

    @property
    def unfinished(self) -> bool:
        """Whether training as planned was cut short by the budget while its loss fell."""
        return self.falls and not self.planned.complete

    def skill(self, run: trials.Run, i: int = 0) -> float:
        """Return the skill of a run: 0 for the best constant prediction, 1 for perfect ones."""
        if not np.isfinite(run.loss[i]):
            return 0.0
        quality, base = float(run.quality[i]), self.targets.majority
        if np.isnan(quality):
            return self._fallen(run, i)
        skill = float(np.clip((quality - base) / (1 - base + 1e-9), -1, 1))
        # Whether predictions fit may not be what a loss that is not recognized asks for.
        return max(skill, self._fallen(run, i)) if self.loss.kind == "other" else skill

    def _fallen(self, run, i):
        """Return by which share of its first absolute value the loss of a run has fallen, at most 1."""
        first, last = run.losses[i][: max(1, run.losses.shape[1] // 20)].mean(), run.loss[i]
        return float(np.clip((first - last) / (abs(first) + 1e-30), 0, 1))

    @property
    def healthy(self) -> bool:
        """Whether training as planned reaches HEALTHY skill."""
        return self.skill(self.planned) >= HEALTHY

    def with_remedies(self, found) -> "Evidence":
        """Return the evidence of the subject with the remedies of these suspicions, each applied once.

        A remedy that does not fit the model, such as one that changes a shape which is needed, is left out.
        """
        wanted = {each.remedy.description: each.remedy for each in found if each.remedy is not None}
        key = tuple(wanted)
        if key not in self._changed:  # a remedy may compute, such as weights from data
            self._changed[key] = self._changed_by(wanted.values())
        return self._changed[key]

    def best_of(self, suspicions: list[Suspicion]) -> Suspicion:
        """Return the suspicion whose remedy gives the highest skill, in tenths; of equal ones the first."""

        def skill(suspicion):
            changed = self.with_remedies([suspicion])
            return round(changed.skill(changed.planned), 1)

        return max(suspicions, key=skill)

    def _changed_by(self, remedies):
        changed, used = self.subject, []
        for remedy in remedies:
            try:
                candidate = remedy.change(changed)
            except InputError:
                continue
            if runs(candidate):
                changed = candidate
                used.append(remedy.description)
        return Evidence(changed, self.key, self.budget, (*self.remedies, *used)) if used else self

    def outcome(self, description: str, changed: "Evidence", run: trials.Run | None = None, i: int = 0) -> Outcome:
        """Compare training with a change with training as planned.

        Args:
          description: of the change.
          changed: the evidence of the changed subject.
          run: one of its runs; None: training as planned.
          i: which of the runs side by side.
        """
        planned, run = self.planned, changed.planned if run is None else run
        before, after = self.skill(planned), changed.skill(run, i)
        return Outcome(
            description=description,
            before=curve(planned.losses[0]),
            after=curve(run.losses[i]),
            quality_before=float(planned.quality[0]),
            quality_after=float(run.quality[i]),
            steps=run.losses.shape[1],
            learns=bool(after >= LEARNS and (after > before or before >= HEALTHY)),
        )


def updated(optimizer, gradient, state, params) -> tuple[Any, Any]:
    """Return (updates, state) of an optimizer, also of one that asks for the value of the loss, which is 0 here."""
    extra = {"value": jnp.zeros(()), "grad": gradient, "value_fn": lambda params: jnp.zeros(())}
    return optax.with_extra_args_support(optimizer).update(gradient, state, params, **extra)


def runs(subject: Subject) -> bool:
    """Whether a changed subject can be initialized and called, its loss is a number, and its optimizer fits."""
    rows = subject.rows(slice(0, subject.batch_size))
    try:
        variables = jax.eval_shape(subject.init, jax.random.key(0))
        jax.eval_shape(subject.optimizer.init, variables["params"])
        value, _ = jax.eval_shape(lambda v: subject.value(v, *rows, jax.random.key(0)), variables)
    except Exception:  # any model and loss of the user's own
        return False
    return value.shape == ()


def zeros(jaxpr) -> list[bool]:
    """Return, for every result of a jaxpr without calls, whether it is made of zeros and of nothing else."""
    made = {v for eqn in jaxpr.eqns if _is_zero(eqn) for v in eqn.outvars}
    return [isinstance(v, Literal) or v in made for v in jaxpr.outvars]


def _is_zero(eqn):
    first = eqn.invars[0] if eqn.invars else None
    return eqn.primitive.name == "broadcast_in_dim" and isinstance(first, Literal) and bool(np.all(first.val == 0))


def curve(values) -> tuple[float, ...]:
    """Return at most POINTS numbers of a curve, each the mean of a stretch."""
    parts = np.array_split(np.asarray(values, float), min(POINTS, len(values))) if len(values) else []
    return tuple(float(part.mean()) for part in parts)
