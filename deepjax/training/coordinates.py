"""The coordinate check of a config: its network at several widths or depths."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax

from deepjax import zoo
from deepjax.config import Config, Schedule
from deepjax.doctor.coordinates import Coordinates, check_sizes, comparison, summarize
from deepjax.errors import InputError
from deepjax.runs.workdir import key_of
from deepjax.training import setup
from deepjax.training.find_lr import batches
from deepjax.training.progress import Display
from deepjax.training.step import apply_model


def coordinate_check(
    config: Config,
    axis: str,
    sizes: Sequence[int],
    *,
    steps: int = 4,
    seeds: int = 3,
    log: Callable[[str], Any] | None = None,
) -> Coordinates:
    """Train a config's network in memory for a few steps at several sizes, and fit how its activations scale.

    The learning rate is constant, without warm-up, and the same at all sizes. Activations are compared on the first
    batch, without augmentation, in training mode. Nothing is written.

    Args:
      config: the experiment.
      axis: "width" or "depth", an option of the network.
      sizes: at least two values of that option.
      steps: training steps.
      seeds: initializations over which the scales are averaged; the first is the config's seed.
      log: receives each line of progress, for example `print`. None: nothing is printed.

    Raises:
      InputError: the network has no such option or cannot have such a size, or something in the config cannot work.
    """
    display = log if isinstance(log, Display) else Display(log)
    check_sizes(axis, sizes, steps, seeds)
    setup.check(config)
    if axis not in zoo.options_of(config.model):
        raise InputError(f"model {config.model} has no option {axis}; choose a network that has one, such as mlp")
    config = replace(setup.with_absolute_paths(config), schedule=Schedule())
    configs = [replace(config, model_options=config.model_options | {axis: size}) for size in sizes]
    networks = [setup.check(one) for one in configs]  # all, before the first is trained
    found = []
    for size, one, network in zip(sizes, configs, networks, strict=True):
        display(f"{config.model}, {axis} {size}: {steps} steps for each of {seeds} seeds")
        found.append(_measured(setup.setup(one, network, None), steps, seeds, display))
    return summarize(axis, sizes, steps, found)


def _measured(exp, steps, seeds, display):
    """Return what `comparison` gives, for each seed."""
    following = batches(exp, 0)
    rows = [next(following) for _ in range(steps)]
    first = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows[0]) if exp.mesh.strategy == "pmap" else rows[0]
    batch = jax.device_get(exp.loader.fetch(exp.loader.data, first))
    inputs, _ = exp.task.prepare(batch)

    def forward(variables):
        options = {"mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(0)}}
        return apply_model(exp.model, variables, inputs, batch["mask"], train=True, **options)[0]

    compare, found = comparison(forward), []
    for seed in range(exp.config.seed, exp.config.seed + seeds):
        one = replace(exp, config=replace(exp.config, seed=seed))
        state, key = one.initial_state(display), key_of(one.config)
        before = jax.device_get(_variables(state))  # because the step donates its state
        for each in rows:
            state, _ = exp.step(state, exp.data, each, key)
        found.append(compare(before, jax.device_get(_variables(state))))
    return found


def _variables(state):
    return {"params": state.params, "batch_stats": state.batch_stats}
