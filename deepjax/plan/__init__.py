"""What a config needs, before anything runs: memory, operations, time to compile, and what fits into the device.

`plan` traces the training step on shapes (`step`), reads the trace as a graph of values with sizes (`graph`), and goes
through it as XLA would, noting what lies in memory when (`memory`). Nothing is compiled, no image is read.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from deepjax.errors import InputError
from deepjax.plan import graph, inputs, memory, step
from deepjax.summary import summarize
from deepjax.training.run import make_model
from deepjax.training.state import parameter_count

REMATS = ("none", "unit", "sqrt", "reversible")  # from the least computing to the least memory
SECONDS = (
    0.5,
    0.0085,
)  # of one core: to compile any step, and each of its kernels; measured with JAX 0.10 on a server's cores


class Choice(NamedTuple):
    """What a step needs with one value of the network's option `remat`. Bytes are those of one device."""

    remat: str
    activations: int  # that the forward pass leaves for the backward pass
    temporaries: int  # all that a step needs for itself: activations, gradients, copies of parameters
    total: int  # arguments, temporaries, and outputs that do not take an argument's place
    flops: int  # of a step, on all devices: 2 for each multiply-add of convolutions and matrix products, forward,
    # backward and computed again; as if nothing were dropped or frozen, and no line searched
    compile_seconds: float  # roughly
    fits: bool


class Plan(NamedTuple):
    """What a config needs. Bytes are those of one device."""

    model: str
    remat: str  # what the config says
    inputs: inputs.Inputs
    batch_size: int  # over all devices
    devices: int
    platform: str
    parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    other_bytes: int  # running moments, averages of parameters
    macs: int  # of one example's forward pass
    choices: tuple[Choice, ...]  # those that the network has, from the least computing to the least memory
    memory: int  # of the device
    memory_of: str  # where that is known from

    @property
    def best(self):
        """Of the choices that fit, the one that computes least, or None."""
        return next((choice for choice in self.choices if choice.fits), None)


def plan(config, *, shape: Sequence[int] | None = None, classes=None, limit=None):
    """The Plan of a config, whose training step is traced once for each remat that the network has.

    Args:
      config: a `deepjax.config.Config`.
      shape: of one example; None: as the config's data has it.
      classes: how many; None: as the config's data has it.
      limit: bytes of memory; None: those of the device where it tells, else the machine's.

    Raises:
      InputError: what training would refuse of the config's numbers, network and optimizer; data that cannot be found,
        without shape and classes. Whether `pretrained` is there, and fits, is not looked at.
    """
    if limit is not None and limit <= 0:
        raise InputError(f"memory {limit / 2**30:g} GiB must be above 0")
    step.check(config)
    found = inputs.find(config, shape, classes)
    own = make_model(config, found.classes)  # refuses what the config itself says of it
    models = {remat: model for remat in REMATS if (model := _model(config, found.classes, remat)) is not None}
    models = models or {"none": own}
    steps = {remat: step.trace(config, found, model) for remat, model in models.items()}
    first = next(iter(steps.values()))
    macs = sum(layer.macs for layer in summarize(next(iter(models.values())), first.shape))
    known, known_of = (limit, "as given") if limit else device_memory(first.devices)
    choices = tuple(_choice(remat, traced, first, macs * config.batch_size, known) for remat, traced in steps.items())
    state = first.state
    return Plan(
        model=config.model,
        remat=own.remat if own.remat in models else "none",
        inputs=found,
        batch_size=config.batch_size,
        devices=first.devices,
        platform=jax.default_backend(),
        parameters=parameter_count(state.params),
        parameter_bytes=step.size(state.params),
        optimizer_bytes=step.size(state.opt_state),
        other_bytes=step.size((state.batch_stats, state.ema, state.swa)),
        macs=macs,
        choices=choices,
        memory=known,
        memory_of=known_of,
    )


def _model(config, classes, remat):
    """The network with this remat; None where it has no such choice."""
    try:
        return make_model(step.with_remat(config, remat), classes)
    except InputError:
        return None


def _choice(remat, traced, plain, forward_macs, limit):
    need = memory.need(graph.of_step(traced.jaxpr, jax.default_backend(), traced.donated))
    total = traced.arguments + traced.metrics + need.temporaries
    again = step.macs(traced.jaxpr) - step.macs(plain.jaxpr)  # what remat computes again, on one device
    return Choice(
        remat=remat,
        activations=need.activations,
        temporaries=need.temporaries,
        total=total,
        flops=2 * (3 * forward_macs + again * traced.devices),
        compile_seconds=SECONDS[0] + SECONDS[1] * need.kernels,
        fits=total <= limit,
    )


def device_memory(devices=1):
    """(bytes of each of so many devices, where they are known from): as the device tells, else a share of the RAM.

    Raises InputError where neither tells.
    """
    device = jax.local_devices()[0]
    told = (device.memory_stats() or {}).get("bytes_limit")
    if told:
        return told, f"as {device.device_kind} tells"
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        raise InputError("memory: neither the device nor the system tells how much there is; give --memory") from None
    share = "" if devices == 1 else f", shared by {devices} devices"
    return int(min(whole, _container())) // devices, f"the machine's RAM{share}"


def _container():
    """Bytes that Linux allows this container; without limit, infinity."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # "max"
        return math.inf
