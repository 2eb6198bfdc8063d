"""A search over a grid of options: try each candidate for a few updates, and compare them on the validation set."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from deepjax import tasks
from deepjax.config import Config
from deepjax.errors import InputError
from deepjax.fields import replaced
from deepjax.optimizers import OPTIMIZERS
from deepjax.runs import workdir
from deepjax.training import setup
from deepjax.training.find_lr import batches
from deepjax.training.progress import Display

TRACED = ("optimizer.learning_rate", "optimizer.weight_decay")  # numbers in an otherwise equal program
Options = dict[str, Any]  # values by the dotted paths of their fields, such as {"optimizer.learning_rate": 0.1}


def search(
    config: Config,
    grid: Mapping[str, Sequence],
    name: str = "run",
    *,
    updates: int = 200,
    together: int = 16,
    log: Callable[[str], Any] | None = None,
) -> dict:
    """Try all combinations of some options for a few updates each, and name the best on the validation set.

    Every candidate starts as its own run would, from the config's seed, and its updates are the first of that run: a
    schedule's warm-up counts. Candidates that differ only in learning rate and weight decay are trained together, by
    one program that is vmapped over these two numbers. All others are trained one after another, each by a separate
    program. Except for rounding, the results do not depend on which candidates are trained together.

    Of the candidates whose loss is finite, and that are better than chance where the task knows what chance is, the
    best is the one with the lowest validation loss, or error, as `config.best` says. Of equals it is the first.

    Args:
      config: the experiment. It needs a validation set.
      grid: values of options by the dotted paths of their fields, such as {"optimizer.learning_rate": [0.01, 0.1]}.
      name: name of the run, as of `train`.
      updates: updates of each candidate, or those of a whole run, if they are fewer.
      together: the most candidates that are trained together. Fewer need less memory.
      log: receives each line of progress, for example `print`. None: nothing is printed.

    Returns:
      The contents of search.json: "best" (the options of the best candidate, or None), "by" (config.best), "updates"
      (the argument), and "candidates", each with its "options", its "result" in words, "metrics" of the validation set
      (None if it diverged), "above_chance", "losses" (of its training batches, up to the first that is not finite) and
      "updates". The file and the picture search.png are in the folder that the run of the best candidate has.

    Raises:
      InputError: something in the config or the grid cannot work. Nothing has been computed or written.
    """
    display = log if isinstance(log, Display) else Display(log)
    config = setup.with_absolute_paths(config)
    if wrong := [path for path, values in grid.items() if isinstance(values, str) or not hasattr(values, "__iter__")]:
        raise InputError(f"grid {wrong[0]} {grid[wrong[0]]!r} must be a list of values, such as [0.01, 0.1]")
    choices = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    configs = [_with_options(config, options) for options in choices]
    _check(configs, name, updates, together)
    found: dict[int, dict] = {}
    task = None
    for number, part in enumerate(programs := _programs(configs, choices, together), 1):
        display(f"program {number} of {len(programs)}: {len(part)} of {len(choices)} candidates")
        results, task = _try([configs[i] for i in part], updates, display)
        found |= dict(zip(part, results, strict=True))
    candidates = [{"options": options, **found[i]} for i, options in enumerate(choices)]
    best = _best(candidates, config.best)
    record = {
        "best": None if best is None else choices[best],
        "by": config.best,
        "updates": updates,
        "candidates": candidates,
    }
    folder, _ = workdir.find_workdir(configs[best or 0], name)
    _write(folder, record, task, config, display)
    return record


def _with_options(config, options):
    for path, value in options.items():
        config = replaced(config, path, value)
    return config


def _check(configs, name, updates, together):
    """Raise InputError for candidates that cannot be trained, and a folder that none of them may have."""
    if updates < 1 or together < 1:
        raise InputError(f"updates {updates} and together {together} must be at least 1")
    if not configs:
        raise InputError("the grid has an option without values; give each at least one")
    for config in configs:
        setup.check(config)
    if config.data.validation == 0:
        raise InputError("data.validation 0: a search compares candidates on validation images; give it a fraction")
    refused = []
    for config in configs:
        try:
            workdir.find_workdir(config, name)
        except InputError as error:
            refused.append(error)
    if len(refused) == len(configs):
        raise refused[0]


def _programs(configs, choices, together):
    """Return lists of positions of candidates that are trained together."""
    alike: dict[Any, list[int]] = {}
    for i, (config, options) in enumerate(zip(configs, choices, strict=True)):
        # In closed form, the weight decay determines where training starts.
        traced = ("optimizer.learning_rate",) if config.init in setup.CLOSED_FORM else TRACED
        rest = tuple(value for path, value in options.items() if path not in traced)
        alike.setdefault((rest, None if _takes_numbers(config.optimizer) else i), []).append(i)
    return [part[i : i + together] for part in alike.values() for i in range(0, len(part), together)]


def _takes_numbers(optimizer):
    """Return whether the optimizer's learning rate and weight decay may be traced."""
    own = {name for settings in optimizer.groups.values() for name in settings}
    fixed = OPTIMIZERS[optimizer.name].finds_step_sizes or optimizer.line_search
    return not fixed and not own & {"learning_rate", "weight_decay"}


def _try(configs, updates, display):
    """Return (results of candidates that differ in the numbers `TRACED` only, their task)."""
    exp = setup.setup(configs[0], setup.check(configs[0]), None)
    if not len(exp.dataset.validation):
        raise InputError(f"data set {exp.dataset.name} has no validation images, on which a search compares candidates")
    updates = min(updates, exp.times.total)
    if len(configs) == 1:
        carried, step = (exp.initial_state(display), None), _alone(exp)
    else:
        carried, step = _stacked_state(exp, configs, display), exp.mesh.step(_stacked_step(exp))
    key, losses = workdir.key_of(exp.config), []
    for rows in itertools.islice(batches(exp, 0), exp.times.first_batch(updates)):
        carried, metrics = step(carried, exp.data, rows, key)
        # One step late, as in `loop`: a longer queue of steps blocks the collectives of CPU devices that share threads.
        jax.block_until_ready(losses[-1:])
        losses.append(metrics["loss"])
    losses = np.stack(jax.device_get(losses)).reshape(len(losses), -1)
    variables = jax.device_get(carried[0].eval_variables)
    if len(configs) == 1:
        variables = jax.tree.map(lambda leaf: leaf[None], variables)
    evaluate = exp.evaluator(exp.dataset.validation)
    members = [jax.tree.map(lambda leaf: leaf[i], variables) for i in range(len(configs))]  # noqa: B023
    results = [_result(exp, evaluate, *one) for one in zip(members, losses.T.tolist(), strict=True)]
    return [result | {"updates": updates} for result in results], exp.task


def _alone(exp):
    def step(carried, *arguments):
        state, metrics = exp.step(carried[0], *arguments)
        return (state, None), metrics

    return step


def _stacked_state(exp, configs, display):
    """Return (the initial state, repeated along a new first axis, {number: f32[candidates]}), on the devices."""
    numbers = {
        field: np.asarray([getattr(config.optimizer, field) for config in configs], np.float32)
        for field in (path.partition(".")[2] for path in TRACED)
    }
    first = exp.with_numbers(**{field: values[0] for field, values in numbers.items()})
    state = jax.device_get(first.initial_state(display))
    stacked = jax.tree.map(lambda leaf: np.repeat(leaf[None], len(configs), 0), state)
    return exp.mesh.replicate((stacked.replace(step=state.step), numbers))


def _stacked_step(exp):
    """Return ((states, numbers), data, rows, key) -> the same with metrics [candidates]: the step, vmapped."""
    convolves = any(leaf.ndim > 3 for leaf in jax.tree.leaves(exp.abstract_state.params))
    # A vmapped convolution is a grouped one, which takes a hundred times as long on CPU.
    one_by_one = convolves and exp.mesh.devices[0].platform == "cpu"

    def step(carried, whole, rows, key, axis_name=None):
        states, numbers = carried

        def one(pair):  # `step` is not mapped, so that what depends on it alone, such as augmentation, is done once
            state, numbers = pair
            state = state.replace(step=states.step)
            return exp.with_numbers(**numbers).pure_step(state, whole, rows, key, axis_name)

        pairs = states.replace(step=()), numbers
        following, metrics = jax.lax.map(one, pairs) if one_by_one else jax.vmap(one)(pairs)
        return (following.replace(step=states.step + 1), numbers), metrics

    return step


def _result(exp, evaluate, variables, losses):
    """Return what is recorded of one candidate, beside its options."""
    finite = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    evaluation = evaluate(exp.mesh.replicate(variables)) if finite == len(losses) else None
    if evaluation is None or not math.isfinite(evaluation.loss):
        result = f"diverged at update {exp.times.updates_before(finite) + 1}"
        return {"result": result, "metrics": None, "above_chance": False, "losses": losses[:finite]}
    above = getattr(evaluation, "above_chance", True)  # a task need not know what chance is
    result = exp.task.text(evaluation.metrics)
    return {"result": result, "metrics": evaluation.metrics, "above_chance": above, "losses": losses}


def _best(candidates, best):
    """Return the position of the best candidate, or None if there is none to train."""
    able = [i for i, candidate in enumerate(candidates) if candidate["above_chance"]]
    return min(able, key=lambda i: tasks.rank(candidates[i]["metrics"], best), default=None)


def _write(folder, record, task, config, display):
    from deepjax.runs import plots

    with workdir.locked(folder):
        workdir.write_record(folder, "search.json", record)
        found = [(one["options"], one["metrics"] and one["metrics"][config.best]) for one in record["candidates"]]
        most = max(one["updates"] for one in record["candidates"])
        title = f"{config.model} on {config.data.name} after {most} updates"
        figure = lambda: {"search.png": plots.candidates(found, task.curves[config.best], title)}  # noqa: E731
        plots.draw(folder, figure, display.warn)
    display(f"see {folder / 'search.png'} and {folder / 'search.json'}")
