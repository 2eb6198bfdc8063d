"""Estimate what a config needs before it runs: parameters, memory, FLOPs, compile time, and which `remat` fits.

Parameters, optimizer state, inputs and FLOPs follow exactly from shapes. Memory and compile time are XLA's own: the
training step is compiled, without data, once for each value of the network's option `remat`.
"""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from deepjax.errors import InputError
from deepjax.plan import inputs, step
from deepjax.plan.compiling import measure
from deepjax.summary import summarize
from deepjax.training.model import make_model
from deepjax.training.state import parameter_count

REMATS = ("none", "unit", "sqrt", "reversible")  # from the fewest FLOPs to the least memory


class RematChoice(NamedTuple):
    """What a training step needs with one value of the network's option `remat`. Bytes are those of one device.

    Only `flops` is set if nothing was compiled (`quick`) or compilation was stopped.
    """

    remat: str
    flops: int  # of a step, on all devices: 2 for each multiply-add of convolutions and matrix products, forward,
    # backward and recomputed. Dropped units, frozen layers and line searches are not taken into account.
    temporaries: int | None = None  # activations, gradients and copies that XLA allocates for a step
    total: int | None = None  # state and data, temporaries, outputs that do not reuse memory of the state
    compile_seconds: float | None = None
    fits: bool | None = None
    stopped: str = ""  # the reason why there is no result


class Plan(NamedTuple):
    """What a config needs. Bytes are those of one device."""

    model: str
    remat: str  # of the config
    inputs: inputs.Inputs
    batch_size: int  # over all devices
    devices: int
    platform: str
    parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    other_bytes: int  # running moments, averages of parameters
    macs: int  # of one example's forward pass
    memory: int  # of the device
    memory_source: str  # source of `memory`
    choices: tuple[RematChoice, ...]  # those that the network has, from the fewest FLOPs to the least memory

    @property
    def best(self):
        """RematChoice with the fewest FLOPs among those that fit, or None."""
        return next((choice for choice in self.choices if choice.fits), None)


def plan(
    config,
    *,
    shape: Sequence[int] | None = None,
    classes=None,
    limit=None,
    quick=False,
    seconds=300.0,
    report: Callable[[Plan], None] | None = None,
):
    """Return the Plan of a config.

    Args:
      config: a `deepjax.config.Config`.
      shape: shape of one example; None: that of the config's data.
      classes: number of classes; None: that of the config's data.
      limit: bytes of memory of a device; None: the memory that the device reports, else the machine's memory.
      quick: compile nothing, and compute only the numbers that follow from shapes.
      seconds: time limit of each compilation, which runs in a child process.
      report: function called with the Plan so far: first without choices, then after each choice.

    Raises:
      InputError: values, network or optimizer of the config that training would refuse; a data set that cannot be
        found, unless shape and classes are given. The weights that `pretrained` names need not exist.
    """
    if limit is not None and limit <= 0:
        raise InputError(f"memory {limit / 2**30:g} GiB must be above 0")
    if not 0 < seconds < math.inf:
        raise InputError(f"seconds {seconds:g} must be a number above 0")
    network = step.check(config)
    found = inputs.find(config, shape, classes)
    outputs = step.outputs(config, found)
    configured = network.clone(num_classes=outputs)
    models = {remat: model for remat in REMATS if (model := _with_remat(config, outputs, remat)) is not None}
    steps = {remat: step.make(config, found, model) for remat, model in (models or {"none": configured}).items()}
    plain = next(iter(steps.values()))
    planned = _without_choices(config, found, plain, configured if not models else next(iter(models.values())), limit)
    planned = planned._replace(remat=configured.remat if configured.remat in models else "none")
    report = report or (lambda planned: None)
    macs = {remat: abstract.macs() for remat, abstract in steps.items()}
    stored = next(iter(macs.values()))  # of the choice that recomputes nothing
    report(planned)
    for remat in steps:
        recomputed = (macs[remat] - stored) * planned.devices
        choice = RematChoice(remat, 2 * (3 * planned.macs * planned.batch_size + recomputed))
        if not quick:
            result = measure(config, found, remat if models else None, seconds)
            choice = _measured(choice, result, found.resident, planned.memory)
        planned = planned._replace(choices=(*planned.choices, choice))
        report(planned)
    return planned


def _without_choices(config, found, plain, model, limit):
    memory, source = (limit, "as given") if limit else device_memory(plain.devices)
    return Plan(
        model=config.model,
        remat="none",
        inputs=found,
        batch_size=config.batch_size,
        devices=plain.devices,
        platform=jax.default_backend(),
        parameters=parameter_count(plain.state.params),
        parameter_bytes=step.size(plain.state.params),
        optimizer_bytes=step.size(plain.state.opt_state),
        other_bytes=step.size((plain.state.batch_stats, plain.state.ema, plain.state.swa)),
        macs=sum(row.macs for row in summarize(model, plain.shape)),
        memory=memory,
        memory_source=source,
        choices=(),
    )


def _with_remat(config, outputs, remat):
    """Return the network with this remat, or None if it has no such choice."""
    try:
        return make_model(step.with_remat(config, remat), outputs)
    except InputError:
        return None


def _measured(choice, result, resident, limit):
    """Return the choice with the results of compiling it. `resident`: bytes of the training set on the device."""
    if "stopped" in result:
        return choice._replace(stopped=result["stopped"])
    total = result["arguments"] + resident + result["temporaries"] + result["outputs"] - result["aliased"]
    return choice._replace(
        temporaries=result["temporaries"], total=total, compile_seconds=result["seconds"], fits=total <= limit
    )


def device_memory(devices=1):
    """Return (bytes of memory of each device, source of this number).

    Args:
      devices: number of devices that share the machine's memory, if they have no separate memory.

    Raises:
      InputError: neither the device nor the operating system reports its memory.
    """
    device = jax.local_devices()[0]
    own = (device.memory_stats() or {}).get("bytes_limit")
    if own:
        return own, f"limit of {device.device_kind}"
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        raise InputError("memory: neither the device nor the system reports its memory; set --memory") from None
    share = "" if devices == 1 else f", shared by {devices} devices"
    return int(min(machine, _container_limit())) // devices, f"the machine's RAM{share}"


def _container_limit():
    """Return the bytes that Linux allows this container; infinity without a limit."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max"
        return math.inf
