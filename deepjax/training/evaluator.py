"""Evaluation of a model, or of several together, on a data set, for any task."""

import time
from typing import Any

import jax
import numpy as np

SECONDS_PER_LINE = 0.002  # of StableHLO: seven networks took 1.4 to 3.9 ms on two CPU cores, most of them 2


class Compiled:
    """A jitted function that is compiled before it runs, so that compile time is measured on its own."""

    def __init__(self, function):
        self.function, self.seconds = function, 0.0
        self.compiled: Any = None

    def compile(self, *arguments, announce=None):
        """Compile for arguments of these shapes. Return the seconds it took.

        `announce`: receives the seconds that it will roughly take, estimated from the size of the program.
        """
        started = time.monotonic()
        lowered = self.function.lower(*arguments)
        if announce:
            announce(SECONDS_PER_LINE * lowered.as_text().count("\n"))
        self.compiled = lowered.compile()
        self.seconds = time.monotonic() - started
        return self.seconds

    def __call__(self, *arguments):
        """Call the function, compiled for the first call's shapes."""
        if not self.seconds:
            self.compile(*arguments)
        return self.compiled(*arguments)

    def close(self):
        """Do nothing: there is nothing open."""


class Evaluator:
    """The function variables -> evaluation on one data set; compiled at its first call, which takes `seconds`.

    Args:
      task: what is evaluated; see `deepjax.tasks`.
      step: jitted (variables, data, rows) -> rows of the task and their mask, from `eval_step`.
      loader: in order, from `deepjax.data.make_loader`.
      to_devices: places rows for the step.
    """

    def __init__(self, task, step, loader, to_devices):
        self.task, self.step, self.loader, self.to_devices = task, Compiled(step), loader, to_devices

    @property
    def seconds(self):
        """Seconds that compiling took."""
        return self.step.seconds

    def __call__(self, variables):
        """Evaluate variables, which must be replicated on the step's devices."""
        return self.task.evaluate(self.rows(variables, self.task.evaluated))

    def ensemble(self, members):
        """Evaluate several variables: return (each alone, the average of the first, the first two, ...)."""
        rows = [self.rows(variables, self.task.averaged) for variables in members]
        alone = [self.task.evaluate(one) for one in rows]
        return alone, [self.task.evaluate(self.task.average(rows[: n + 1])) for n in range(len(rows))]

    def rows(self, variables, names):
        """Return the task's rows with these names, of all examples, as NumPy arrays."""
        pending, done = None, []
        for rows in map(self.to_devices, self.loader.epoch(0)):
            values = self.step(variables, self.loader.data, rows)
            if pending is not None:  # fetched one step late, so that the device does not wait for the host
                done.append(jax.device_get(pending))
            pending = {name: values[name] for name in ("mask", *names)}
        done.append(jax.device_get(pending))
        real = np.concatenate([value["mask"] for value in done])
        return {name: np.concatenate([value[name] for value in done])[real] for name in names}
