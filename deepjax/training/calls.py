"""Several training steps in one call of the compiled program, for networks whose step takes less time than a call."""

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.training import profile


class Calls:
    """The training steps of a run, as calls of one compiled program.

    With config.steps_per_call 1, a call is the step of the experiment. Above, it is a loop over up to so many steps, at
    most those of an epoch. A call ends early where the host has something to do: at a checkpoint, before a watch, at
    the first and the last step of a profile, and at the end of an epoch. The number of steps is an argument of the
    program, so a shorter call needs no other program.
    """

    def __init__(self, experiment, done, folder, display):
        """Take the arguments of `profile.step`, with the experiment in place of its step."""
        self.exp, self.config = experiment, experiment.config
        self.size = min(self.config.steps_per_call, experiment.loader.steps)
        step = experiment.step
        if self.size > 1:
            step = experiment.mesh.step(several(experiment.pure_step, self.size), axis=1)
        self.program = profile.step(step, self.config.profile, done, folder, display, self._count)
        self.traced = profile.steps_of(self.config.profile) if self.config.profile else (0, 0)

    def epoch(self, epoch, first):
        """Yield (data, rows, number of steps) of each call, from the step `first` of an epoch on."""
        loader, mesh = self.exp.loader, self.exp.mesh
        before, rows = epoch * loader.steps, iter(loader.epoch(epoch, first))
        if self.size == 1:
            yield from ((self.exp.data, mesh.to_devices(one), 1) for one in rows)
            return
        while first < loader.steps:
            end = next(step for step in range(first + 1, loader.steps + 1) if self._ends(before + step, step - first))
            yield self._call([next(rows) for _ in range(first, end)])
            first = end

    def checkpoint_is_due(self, step):
        """Return whether config.checkpoint_every asks for a checkpoint after this step of the run."""
        return self.config.checkpoint_every and step % self.config.checkpoint_every == 0

    def _ends(self, step, count):
        """Return whether a call ends after this step of the run, its `count`-th one."""
        first, last = self.traced
        whole = count == self.size or step % self.exp.loader.steps == 0
        watched = self.config.watch and step % self.config.watch == 0
        return whole or self.checkpoint_is_due(step) or watched or step in (first - 1, last)

    def _call(self, rows):
        """Return what `epoch` yields, for the rows of the steps of a call."""
        padded = rows + rows[-1:] * (self.size - len(rows))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
        return (self.exp.data, np.int32(len(rows))), self.exp.mesh.to_devices(stacked, axis=1), len(rows)

    def _count(self, _, data, *__):
        """Return the number of steps of a call with these arguments."""
        return 1 if self.size == 1 else int(data[1])


def several(step, size):
    """Return `step` as a function of the rows of up to `size` steps, which it computes one after the other.

    Args:
      step: (state, data, rows, key) -> (state, metrics).
      size: the largest number of steps.

    Returns:
      a function (state, (data, i32[] number of steps), rows, key) -> (state, metrics). Its rows are those of `size`
      steps, stacked along a new first axis; those after the number of steps are ignored. Its metrics are f32[size], and
      0 after the number of steps.
    """

    def steps(state, data_and_count, rows, key, **axis):
        data, count = data_and_count

        def one(state, number):
            selected = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), rows)
            return step(state, data, selected, key, **axis)

        def body(number, carried):
            state, metrics = one(carried[0], number)
            return state, jax.tree.map(lambda whole, value: whole.at[number].set(value), carried[1], metrics)

        _, shapes = jax.eval_shape(one, state, 0)
        metrics = jax.tree.map(lambda value: jnp.zeros((size, *value.shape), value.dtype), shapes)
        # The number of steps is not known to the compiler, which might unroll or remove a loop of a known length, and
        # compile the steps of a short call differently.
        return jax.lax.fori_loop(0, count, body, (state, metrics))

    return steps


def each_step(metrics, count):
    """Return [{name: float}] of the `count` steps of a call, from the metrics that it returned."""
    values = {name: np.atleast_1d(value).tolist() for name, value in jax.device_get(metrics).items()}
    return [{name: value[step] for name, value in values.items()} for step in range(count)]
