"""Train in memory until a loss, a gradient or a parameter is not finite, and find the operation that made it so."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deepjax import data
from deepjax.config import Config
from deepjax.data import as_dataset
from deepjax.doctor import NonFinite, hunt
from deepjax.errors import InputError
from deepjax.runs import workdir
from deepjax.training import setup
from deepjax.training.find_lr import DIVERGED, batches, newest
from deepjax.training.model import with_given
from deepjax.training.progress import Display

HISTORY = 5  # steps before the failed one that are shown


class Step(NamedTuple):
    """The size of the numbers in one training step."""

    step: int
    loss: float
    grad_norm: float
    largest: float  # absolute value among the parameters, before the step


@dataclass(frozen=True)
class FailedStep:
    """The first training step with a loss, a gradient or a new parameter that is not finite."""

    step: Step
    """Counted from 1."""
    rate: float
    """Learning rate of that step."""
    history: tuple[Step, ...]
    """The steps before it."""
    finding: NonFinite | None
    """None if the step is finite when its operations are computed one by one."""

    @property
    def grew(self) -> bool:
        """Whether loss or parameters had grown to more than DIVERGED times their lowest value in the history."""
        losses = [one.loss for one in self.history]
        sizes = [one.largest for one in (*self.history, self.step) if math.isfinite(one.largest)]
        return any(len(values) > 1 and values[-1] > DIVERGED * min(values) for values in (losses, sizes))

    @property
    def remedy(self) -> str:
        """What to do."""
        if self.finding is None:
            return "computed operation by operation, the step is finite: values are close to the limit of their type"
        if self.grew and self.finding.overflow:
            return (
                f"the values grew from step to step until they were too large: the learning rate {self.rate:.3g} is "
                f"too high, or its warm-up too short; clipping the gradient helps too"
            )
        return self.finding.remedy

    def __str__(self):
        one = self.step
        lines = [f"step {one.step}: loss {one.loss:.6g}, gradient's norm {one.grad_norm:.6g}, rate {self.rate:.3g}"]
        if self.finding is not None:
            lines += str(self.finding).splitlines()[:-1]
        for before in self.history:
            lines += [
                f"  before     step {before.step}: loss {before.loss:.4g}, gradient's norm {before.grad_norm:.4g}, "
                f"largest parameter {before.largest:.4g}"
            ]
        return "\n".join([*lines, f"  remedy     {self.remedy}"])


def first_non_finite(
    config: Config,
    name: str = "run",
    *,
    model: Any = None,
    data: "data.Dataset | Mapping | None" = None,
    steps: int = 1000,
    log: Callable[[str], Any] | None = None,
) -> FailedStep | None:
    """Train a config in memory until something is not finite, and find the operation that made it so.

    If the workdir holds an unfinished run of this config, such as one that failed, training continues from its newest
    state. Otherwise it starts from initial weights. The steps are those of `train`, one at a time. Nothing is written.

    Args:
      config: the experiment.
      name: name of the run, as of `train`.
      model, data: as of `train`.
      steps: training steps at most.
      log: receives each line of progress, for example `print`. None: nothing is printed.

    Returns:
      The failed step, with the finding of `doctor.hunt`; None if all steps are finite.

    Raises:
      InputError: something in the config cannot work, or `steps` is below 1.
    """
    if steps < 1:
        raise InputError(f"steps {steps} must be at least 1")
    display = log if isinstance(log, Display) else Display(log)
    dataset = as_dataset(data)
    config = with_given(setup.with_absolute_paths(config), model, dataset)
    network = setup.check(config, model)
    folder, _ = workdir.find_workdir(config, name)
    resumed = setup.has_checkpoint(folder) and not workdir.finished(folder, config)
    exp = setup.setup(config, network, folder if resumed else None, dataset=dataset)
    state = None
    if resumed:
        with workdir.locked(folder):
            state = newest(exp, folder, display)
    state = state or exp.initial_state(display)
    if int(state.step):
        display(f"training from step {int(state.step)} of the unfinished run in {folder}")
    return _train(exp, state, steps)


def _train(exp, state, steps):
    """Train up to a step that is not finite. The state is donated."""
    first, key = int(state.step), workdir.key_of(exp.config)
    copy, largest = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree)), jax.jit(_largest)
    history, size = deque(maxlen=HISTORY), float(largest(state.params))
    last = min(first + steps, exp.times.steps_per_epoch * exp.config.epochs)
    for number, rows in zip(range(first + 1, last + 1), batches(exp, first), strict=False):
        kept = copy(state)  # because the step donates its state
        state, metrics = exp.step(state, exp.data, rows, key)
        loss, norm, rate, after = map(
            float, (metrics["loss"], metrics["grad_norm"], metrics["learning_rate"], largest(state.params))
        )
        step = Step(number, loss, norm, size)
        if not all(map(math.isfinite, (loss, norm, after))):
            return FailedStep(step, rate, tuple(history), _hunted(exp, kept, rows, key))
        history.append(step)
        size = after
    return None


def _largest(params):
    """Return the largest absolute value of all parameters; NaN if one of them is."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)).astype(jnp.float32) for leaf in jax.tree.leaves(params)]))


def _hunted(exp, state, rows, key):
    if exp.mesh.strategy == "pmap":  # the whole batch on one device
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    def step(state, data, rows, key):  # the names are those of the finding
        return exp.pure_step(state, data, rows, key)

    return hunt(step, state, exp.data, rows, key)
