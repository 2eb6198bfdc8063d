"""The learning rate range test: train in memory with a rate that grows from step to step, and record the loss."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from deepjax.config import Config, Schedule
from deepjax.errors import InputError, TrainingFailed
from deepjax.runs import workdir
from deepjax.training import setup
from deepjax.training.progress import Display

DIVERGED = 4.0  # multiple of the lowest smoothed loss at which the test stops, as in fastai


class Point(NamedTuple):
    """One update of the test."""

    rate: float  # of this update
    loss: float  # of its batches, before it
    smoothed: float  # average of the losses so far, the latest counting most


def range_test(
    config: Config,
    name: str = "run",
    *,
    min_rate: float = 1e-7,
    max_rate: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.9,
    log: Callable[[str], Any] | None = None,
) -> dict:
    """Run the range test of a config (Smith 2017, section 3.3) and suggest a learning rate.

    The test trains with the config, but ignores its schedule: the learning rate grows by a constant factor from update
    to update. The test ends when the smoothed loss exceeds four times its lowest value or is not finite. Groups of
    parameters keep the ratios of their learning rates. If the workdir holds an unfinished run, the test starts from its
    newest state, else from a new one. It changes that state in memory only: nothing that `train` reads is written.

    The suggestion for optimizer.learning_rate is a tenth of the rate at which the smoothed loss is lowest. The rate at
    which it falls most steeply is reported too. Both are rules of thumb; look at the curve.

    Args:
      config: the experiment.
      name: name of the run, as of `train`.
      min_rate, max_rate: the first and the last rate.
      steps: updates, at least 10; each takes optimizer.accumulate batches, the last of an epoch those that are left.
      smoothing: decay of the average of losses, in [0, 1), corrected for its start at 0; 0 means no smoothing.
      log: receives each line of progress, for example `print`. None: nothing is printed.

    Returns:
      The contents of find_lr.json in the workdir: "suggestion", its other name "tenth_of_minimum", and
      "steepest_descent" (all None if the loss did not fall), the arguments, "start_step" (of the initial state),
      "stopped" (the reason), and "points", each with rate, loss and smoothed loss. find_lr.png in the workdir shows the
      curve.

    Raises:
      InputError: something in the config or the arguments cannot work, or the optimizer determines its step sizes.
      TrainingFailed: the loss is not finite before the first update.
    """
    display = log if isinstance(log, Display) else Display(log)
    _check(config, min_rate, max_rate, steps, smoothing)
    config = setup.with_absolute_paths(config)
    network = setup.check(config)
    folder, note = workdir.find_workdir(config, name)
    if note:
        display(note)
    resumed = setup.has_checkpoint(folder) and not workdir.finished(folder, config)
    if not resumed:  # a new state does not need the state of a schedule, and momentum must not change
        config = replace(config, schedule=Schedule())
    start = 0  # updates done before; set before `rates` is traced

    def rates(count):
        return min_rate * (max_rate / min_rate) ** ((count - start) / (steps - 1))

    exp = setup.setup(config, network, folder if resumed else None, schedule=rates)
    with workdir.locked(folder):
        state = (resumed and newest(exp, folder, display)) or exp.initial_state(display)
        start_step = int(state.step)
        if start_step:
            display(f"testing from step {start_step} of the unfinished run in {folder}")
        start = exp.times.updates_before(start_step)
        points, stopped = _sweep(exp, state, start_step, steps, smoothing)
        tenth, steepest = suggest(points, smoothing)
        record = {"suggestion": tenth, "tenth_of_minimum": tenth, "steepest_descent": steepest}
        record |= {"min_rate": min_rate, "max_rate": max_rate, "steps": steps, "smoothing": smoothing}
        record |= {"start_step": start_step, "stopped": stopped, "points": [point._asdict() for point in points]}
        _write(folder, record, points, exp, display.warn)
    display(f"{_verdict(points, tenth, steepest)}; see {folder / 'find_lr.png'} and {folder / 'find_lr.json'}")
    return record


def _check(config, min_rate, max_rate, steps, smoothing):
    if not 0 < min_rate < max_rate < math.inf:
        raise InputError(f"min_rate {min_rate} and max_rate {max_rate} must be finite, above 0, and in this order")
    if steps < 10:
        raise InputError(f"steps {steps} must be at least 10")
    if not 0 <= smoothing < 1:
        raise InputError(f"smoothing {smoothing} must be in [0, 1)")
    if config.optimizer.name == "rprop" or config.optimizer.line_search:
        cause = "rprop" if config.optimizer.name == "rprop" else "line_search"
        raise InputError(f"optimizer {cause} determines its step sizes itself; there is no learning rate to find")


def newest(exp, folder, display):
    """Return the newest complete state of the run in a folder, or None."""
    from deepjax.runs.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder / "checkpoints", exp.config.keep)
    try:
        restored = checkpoints.newest(exp.abstract_state, display.warn)
    finally:
        checkpoints.close()
    return restored and restored[0]


def _write(folder, record, points, exp, warn):
    from deepjax.runs import plots

    workdir.write_record(folder, "find_lr.json", record)
    title = f"{exp.config.model} on {exp.dataset.name}, {exp.config.optimizer.name}"
    rates, loss = (record["tenth_of_minimum"], record["steepest_descent"]), exp.task.curves["loss"].label
    plots.draw(folder, lambda: {"find_lr.png": plots.learning_rates(points, *rates, loss, title)}, warn)


def _verdict(points, tenth, steepest):
    if tenth is None:
        return (
            f"no learning rate can be suggested: from {points[0].rate:.2g} to {points[-1].rate:.2g} the loss fell by "
            f"no more than its noise; lower --min-rate or raise --steps"
        )
    return (
        f"suggested learning rate {tenth:.2g}, a tenth of the one with the lowest loss (which falls most steeply at "
        f"{steepest:.2g})"
    )


def _sweep(exp, state, start_step, steps, smoothing):
    """Train from a state, which is donated. Return (points, why the test ended)."""
    key, following = workdir.key_of(exp.config), batches(exp, start_step)
    points, average, lowest, updates_before = [], 0.0, math.inf, exp.times.updates_before
    for i in range(steps):
        losses, update = [], updates_before(start_step)
        while updates_before(start_step) == update:
            start_step += 1
            state, metrics = exp.step(state, exp.data, next(following), key)
            losses.append(metrics["loss"])
        loss, rate = float(np.mean(jax.device_get(losses))), float(metrics["learning_rate"])
        if not math.isfinite(loss):
            if not points:
                raise TrainingFailed(
                    f"the loss is {loss} before the first update, so the range test cannot begin; `deepjax doctor "
                    f"--nan` with the same config and options names the operation"
                )
            return points, f"the loss was {loss} at rate {rate:.3g}"
        average = smoothing * average + (1 - smoothing) * loss
        points.append(Point(rate, loss, average / (1 - smoothing ** (i + 1))))
        lowest = min(lowest, points[-1].smoothed)
        if points[-1].smoothed > DIVERGED * lowest:
            return points, f"the smoothed loss exceeded {DIVERGED:g} times its lowest at rate {rate:.3g}"
    return points, "all steps were done"


def batches(exp, step):
    """Yield what training would read from this step on, epoch after epoch without end."""
    epoch, first = divmod(step, exp.loader.steps)
    while True:
        yield from map(exp.mesh.to_devices, exp.loader.epoch(epoch, first))
        epoch, first = epoch + 1, 0


def suggest(points: Sequence[Point], smoothing: float) -> tuple[float, float] | tuple[None, None]:
    """Suggest two learning rates from the points of a range test.

    The first suggestion is a tenth of the learning rate with the lowest smoothed loss. The second one is the learning
    rate at which the smoothed loss, as a function of log(learning rate), falls most steeply. The first tenth of the
    points is ignored, because its averages are of too few losses. Both suggestions are None unless the smoothed loss
    falls by at least six times the standard deviation of its noise.

    >>> rates = np.logspace(-6, 1, 71)
    >>> losses = 2 - np.exp(-(np.log10(rates) + 1) ** 2)  # lowest at 0.1, steepest at 10**(-1 - 0.5**0.5)
    >>> tenth, steepest = suggest([Point(*each) for each in zip(rates, losses, losses)], smoothing=0.0)
    >>> round(tenth, 3), round(steepest, 3)
    (0.01, 0.02)
    """
    used = points[len(points) // 10 :]
    rates, raw, smoothed = np.array(used).T
    lowest = int(smoothed.argmin())
    if lowest < 3:
        return None, None
    # Second differences do not depend on a slope, and their median hardly on a few steep places.
    noise = 1.4826 * np.median(np.abs(np.diff(raw[: lowest + 1], 2))) / math.sqrt(6)
    if smoothed[0] - smoothed[lowest] < 6 * noise * math.sqrt((1 - smoothing) / (1 + smoothing)):
        return None, None
    slopes = np.gradient(smoothed, np.log(rates))[: lowest + 1]
    return float(rates[lowest] / 10), float(rates[slopes.argmin()])
