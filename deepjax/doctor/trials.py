"""Short runs of training: the plan as it is, with other learning rates, for more steps, and with a remedy."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax.doctor.compiling import compile_quickly
from deepjax.doctor.facts import Targets, quality
from deepjax.doctor.subject import Subject
from deepjax.trace import Interpreter

EVALUATED = 1024  # examples on which a run is evaluated, at most
CHUNK = 100  # steps that one compiled call makes, at most
UNPLANNED = 200  # steps of a run whose number of epochs is not known
# A nominal machine, so that the number of steps that a run is given does not depend on the clock.
SECONDS_PER_EQUATION, SECONDS_PER_ELEMENT, SECONDS_PER_PRODUCT = 1e-6, 1e-9, 5e-11


@dataclass(frozen=True)
class Run:
    """What runs side by side gave; the first axis of every array is that of the runs."""

    factors: tuple[float, ...]  # by which the updates of the optimizer are multiplied
    losses: Any  # f32 [runs, steps], in training mode, before each update
    loss: Any  # f32 [runs], at the end, in evaluation mode
    quality: Any  # f64 [runs], as of `facts.quality`, at the end
    predictions: Any  # [runs, examples, ...], at the end, in evaluation mode
    complete: bool  # whether all planned steps were made

    @property
    def best(self) -> int:
        """Index of the run that ends best: with the best quality, and then with the lowest loss."""
        quality = np.round(np.nan_to_num(np.asarray(self.quality, float), nan=0.0), 3)
        loss = np.where(np.isfinite(self.loss), self.loss, np.inf)
        return int(np.lexsort((loss, -quality))[0])


class Trainer:
    """Train copies of a subject side by side, each with the optimizer's updates multiplied by a factor.

    All copies start from the same weights and see the same batches.
    """

    def __init__(self, subject: Subject, facts: Targets, expects: str, key: Any, factors=(1.0,)):
        self.subject, self.facts, self.expects, self.factors = subject, facts, expects, tuple(factors)
        self.key, self.done, self.losses = key, 0, []
        self.data = jax.tree.map(jnp.asarray, (subject.inputs, subject.targets))
        # XLA runs convolutions inside of loops, and those with a kernel for each run, many times slower on a CPU.
        self.apart = has_convolution(subject)
        self.start = compile_quickly(functools.partial(_start, subject))(key)
        self.carries = [self.start] * len(self.factors)
        if not self.apart:
            self.carries = jax.tree.map(lambda a: jnp.stack([a] * len(self.factors)), self.start)

    def advance(self, steps: int) -> "Trainer":
        """Make so many further steps."""
        chunk = -(-steps // max(1, -(-steps // CHUNK)))
        while steps > 0:
            rows = self.rows(min(chunk, steps))
            self.losses.append(self._run(rows))
            self.done, steps = self.done + len(rows), steps - len(rows)
            if not np.isfinite(self.losses[-1][:, -1]).any():
                break  # nothing changes any more
        return self

    def result(self) -> Run:
        """Evaluate all runs on the examples, or on the first EVALUATED of them in the order of a fixed shuffle."""
        inputs, targets = self.subject.rows(evaluated_rows(self.subject, self.key))
        evaluate = _evaluation(self.subject)
        found = [evaluate(self.variables(i), inputs, targets) for i in range(len(self.factors))]
        predictions = [jax.tree.map(np.asarray, p) for _, p in found]
        return Run(
            factors=self.factors,
            losses=np.concatenate(self.losses, axis=1) if self.losses else np.zeros((len(self.factors), 0)),
            loss=np.array([float(value) for value, _ in found]),
            quality=np.array([quality(p, targets, self.facts, self.expects) for p in predictions]),
            predictions=predictions,
            complete=self.done >= planned_steps(self.subject),
        )

    def variables(self, i: int) -> dict:
        """Return the present variables of one of the runs."""
        params, state, *_ = self.carries[i] if self.apart else jax.tree.map(lambda a: a[i], self.carries)
        return {"params": params, **state}

    def rows(self, steps):
        """Return the indices of the examples of the next steps, int [steps, batch]. Every epoch has its own order."""
        n, size = self.subject.examples, self.subject.batch_size
        per_epoch = max(1, n // size)
        first, last = self.done // per_epoch, (self.done + steps - 1) // per_epoch
        orders = [
            np.random.default_rng([*np.asarray(jax.random.key_data(self.key)), epoch]).permutation(n)[
                : per_epoch * size
            ]
            for epoch in range(first, last + 1)
        ]
        rows = np.concatenate(orders).reshape(-1, size)
        begin = self.done - first * per_epoch
        return rows[begin : begin + steps]

    def _run(self, rows):
        step = _stepper(self.subject)
        if self.apart:
            losses = np.zeros((len(self.factors), len(rows)))
            for i, factor in enumerate(self.factors):
                values = []
                for row in rows:
                    self.carries[i], value = step(self.carries[i], row, self.data, factor, self.key)
                    values.append(value)
                losses[i] = np.asarray(jnp.stack(values))
            return losses
        self.carries, losses = _loop(self.subject)(self.carries, rows, self.data, jnp.array(self.factors), self.key)
        return np.asarray(losses)


def evaluated_rows(subject: Subject, key) -> Any:
    """Return the indices of the examples on which the runs with this key are evaluated."""
    return np.asarray(jax.random.permutation(jax.random.fold_in(key, 2), subject.examples))[:EVALUATED]


def initial_variables(subject: Subject, key) -> dict:
    """Return the variables from which all runs with this key start."""
    return compile_quickly(lambda key: subject.init(jax.random.fold_in(key, 0)))(key)


def _start(subject, key):
    variables = subject.init(jax.random.fold_in(key, 0))
    params = variables["params"]
    state = {name: tree for name, tree in variables.items() if name != "params"}
    return params, state, subject.optimizer.init(params), jnp.zeros((), jnp.int32)


def train_step(subject: Subject, carry, rows, data, factor, key):
    """Return ((params, state, optimizer state, step), loss) after one update by these rows, multiplied by a factor."""
    params, state, memory, step = carry
    inputs, targets = jax.tree.map(lambda a: a[rows], data)
    key = jax.random.fold_in(jax.random.fold_in(key, 1), step)

    def objective(params):
        value, (_, new) = subject.value({"params": params, **state}, inputs, targets, key)
        return value, new

    (value, new), gradient = jax.value_and_grad(objective, has_aux=True)(params)
    optimizer = optax.with_extra_args_support(subject.optimizer)
    extra = {"value": value, "grad": gradient, "value_fn": lambda p: objective(p)[0]}
    updates, memory = optimizer.update(gradient, memory, params, **extra)
    params = optax.apply_updates(params, jax.tree.map(lambda u: factor * u, updates))
    return (params, {**state, **new}, memory, step + 1), value


@functools.lru_cache(maxsize=64)
def _cached(build, identity):
    return build(identity.subject)


class _Identity:
    """A subject as the key of a cache: subjects hold arrays and cannot be hashed."""

    def __init__(self, subject):
        self.subject = subject

    def __hash__(self):
        return id(self.subject)

    def __eq__(self, other):
        return self.subject is other.subject


def _stepper(subject):
    return _cached(_build_step, _Identity(subject))


def _build_step(subject):
    return jax.jit(functools.partial(train_step, subject))


def _loop(subject):
    return _cached(_build_loop, _Identity(subject))


def _build_loop(subject):
    def run(carry, rows, data, factor, key):
        return jax.lax.scan(lambda c, row: train_step(subject, c, row, data, factor, key), carry, rows)

    return jax.jit(jax.vmap(run, (0, None, None, 0, None)))


def _evaluation(subject):
    return _cached(_build_evaluation, _Identity(subject))


def _build_evaluation(subject):
    def evaluate(variables, inputs, targets):
        value, (predictions, _) = subject.value(variables, inputs, targets, jax.random.key(0), train=False)
        return value, predictions

    # Without XLA's optimizer, convolutions of many examples take longer than the optimizer.
    return jax.jit(evaluate) if has_convolution(subject) else compile_quickly(evaluate)


def planned_steps(subject: Subject) -> int:
    """Return the number of updates of the plan, or `UNPLANNED` where the number of epochs is not known."""
    return UNPLANNED if subject.epochs is None else subject.epochs * max(1, subject.examples // subject.batch_size)


class _Work(Interpreter):
    """Count the nominal seconds of a program on one run."""

    def __init__(self):
        self.seconds, self.convolutions = 0.0, 0

    def equation(self, eqn, values, where):
        name = eqn.primitive.name
        elements = sum(int(np.prod(getattr(v.aval, "shape", ()))) for v in eqn.outvars)
        products = 0
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            products = elements * int(np.prod([eqn.invars[0].aval.shape[i] for i in contracted]))
        elif name == "conv_general_dilated":
            self.convolutions += 1
            kernel = eqn.invars[1].aval.shape
            products = elements * int(np.prod(kernel)) // max(kernel[eqn.params["dimension_numbers"].rhs_spec[0]], 1)
        seconds = SECONDS_PER_EQUATION + SECONDS_PER_ELEMENT * elements + SECONDS_PER_PRODUCT * products
        self.seconds += where.times * seconds
        return [None] * len(eqn.outvars)

    def join(self, values, shape, choice=None):
        return None


def _work(function, *arguments):
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    work = _Work()
    work.run(jaxpr, [None] * len(jaxpr.invars))
    return work


def has_convolution(subject: Subject) -> bool:
    """Return whether a model has convolutions."""
    variables = jax.eval_shape(subject.init, jax.random.key(0))
    inputs = subject.rows(slice(0, 1))[0]
    return _work(lambda v: subject.apply(v, inputs, False, jax.random.key(0))[0], variables).convolutions > 0


def step_seconds(subject: Subject) -> float:
    """Return the nominal seconds of one training step."""
    carry = jax.eval_shape(functools.partial(_start, subject), jax.random.key(0))
    data = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, (subject.inputs, subject.targets)))
    rows = np.arange(subject.batch_size)
    return _work(functools.partial(train_step, subject), carry, rows, data, 1.0, jax.random.key(0)).seconds
