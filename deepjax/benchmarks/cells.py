"""The cells that can be measured, and the images, labels and kernels that all systems share. Imports no JAX or PyTorch.

A cell of the benchmark's table is one program: a unit kind, a variant, a depth. Each cell is measured in a separate
process (`worker`), so that no program reuses code compiled for another.
"""

import importlib.util
import os
from typing import NamedTuple

import numpy as np

from deepjax.errors import InputError, choices

UNITS = ("basic", "preact", "plain", "reversible")
SCANNED = {"scan": "none", "unit": "unit", "sqrt": "sqrt", "reversible": "reversible"}  # variant: `remat` of `stack`
TORCH = ("torch", "torch-checkpoint", "torch-compile")
OF_BASIC = ("stochastic", "flax", *TORCH)  # variants of the basic unit only
VARIANTS = ("unrolled", *SCANNED, *OF_BASIC)
STAGES = {"dense": ("scan", "sqrt"), "conv": ("scan", "sqrt"), "reversible": ("reversible",)}  # unit: variants

PHASES = ("build", "trace", "lower", "compile")  # of a worker; PyTorch has the first and the last
CLASSES = 10
LEARNING_RATE, MOMENTUM = 0.01, 0.9


class Cell(NamedTuple):
    """One program to measure."""

    kind: str  # "net": the training step of a CIFAR net; "stage": loss and gradients of equal units, not run
    unit: str
    variant: str
    depth: int  # of a net: layers, 6n + 2; of a stage: units
    batch: int
    width: int


def job(cell):
    """Return the worker's job of a cell: a dict of JSON."""
    return {**cell._asdict(), "phases": (PHASES[0], PHASES[-1]) if cell.variant in TORCH else PHASES}


def load(job):
    """Return the program of a cell's job: a `programs.Program` or a `torch_net.TorchProgram`."""
    cell = Cell(**{name: job[name] for name in Cell._fields})
    if cell.variant in TORCH:
        from deepjax.benchmarks import torch_net

        return torch_net.TorchProgram(cell)
    from deepjax.benchmarks import programs

    return programs.Program(cell)


def nets(units, variants, depths, batch, width):
    """Return the cells of networks, in groups to be timed together: one list for each unit and depth.

    Args:
      units: names in `UNITS`.
      variants: names in `VARIANTS`. None: all, but PyTorch's only if PyTorch is installed.
      depths: numbers of layers, each 6n + 2.
      batch: images in a batch.
      width: features of the first stage.

    Raises:
      InputError: no unit or depth, an unknown unit or variant, a variant that goes with none of the units, a PyTorch
        variant without PyTorch, a depth that is not 6n + 2 with n at least 1, a batch below 2 or a width below 1.
    """
    _check_known("unit", units, UNITS)
    _check_known("variant", variants or (), VARIANTS)
    for depth in depths:
        if depth < 8 or depth % 6 != 2:
            raise InputError(f"depth {depth} is not 6n + 2 with n at least 1, such as 8, 20, 56, 110")
    if not units or not depths:
        raise InputError(f"units {list(units)} and depths {list(depths)}: name at least one of each")
    if batch < 2 or width < 1:
        raise InputError(f"batch {batch} must be at least 2, width {width} at least 1")
    asked = {name for name in variants or () if name in TORCH}
    if asked and not has_torch():
        raise InputError(f"variant {min(asked)}: PyTorch is not installed; install torch, or leave it out")
    chosen = variants or [name for name in VARIANTS if name not in TORCH or has_torch()]
    for name in variants or ():
        if not any(_goes(unit, name) for unit in units):
            needed = "reversible" if name == "reversible" else "basic"
            raise InputError(f"variant {name} is measured with unit {needed}; add that to the units {list(units)}")
    groups = [
        [Cell("net", unit, name, depth, batch, width) for name in dict.fromkeys(chosen) if _goes(unit, name)]
        for unit in dict.fromkeys(units)
        for depth in sorted(set(depths))
    ]
    return [group for group in groups if group]


def stages(units, depths, batch, width):
    """Return the cells of stages of equal units. Raise InputError for an unknown unit or a depth below 1."""
    _check_known("stage unit", units, STAGES)
    if any(depth < 1 for depth in depths):
        raise InputError(f"stage depths {list(depths)} must be at least 1")
    return [
        Cell("stage", unit, variant, depth, batch, width)
        for unit in units
        for variant in STAGES[unit]
        for depth in sorted(set(depths))
    ]


def cores():
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_torch():
    """Return whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def _goes(unit, variant):
    if variant == "reversible":
        return unit == "reversible"
    return unit == "basic" or variant not in OF_BASIC


def _check_known(what, names, known):
    for name in names:
        if name not in known:
            raise InputError(f"{what} {name!r} is unknown; {choices(name, known)}")


def images(batch):
    """Return (images [batch, 32, 32, 3] float32, labels [batch] int32)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, 32, 32, 3), np.float32), rng.integers(CLASSES, size=batch).astype(np.int32)


def start(name, shape):
    """Return the initial value of a parameter or running moment, which depends only on its name and shape.

    Kernels [..., features_in, features] have the standard deviation of He et al. 2015. Kernels of one shape are equal,
    so that networks of all systems, and stacks with a leading axis of units, compute the same numbers.
    """
    if name == "embedding":  # of words, which have no features in
        return np.random.default_rng(shape).standard_normal(shape, np.float32)
    if name == "gates":  # the kernel of an LSTM's four gates, side by side
        return np.tile(start("kernel", (shape[0], shape[1] // 4)), 4)
    if name != "kernel":
        return np.full(shape, name in ("scale", "var"), np.float32)
    core = shape[-4:] if len(shape) > 3 else shape[-2:]
    kernel = np.random.default_rng(core).standard_normal(core) * np.sqrt(2 / np.prod(core[:-1]))
    return np.broadcast_to(kernel.astype(np.float32), shape)
