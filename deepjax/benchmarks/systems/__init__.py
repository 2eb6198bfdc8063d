"""The systems that `deepjax bench frameworks` compares, one file each. Imports none of them.

Each file has `load(job)`, which returns the program of a job: `prepare()` yields the records of its phases, `step()`
takes one step. To add a system, write its file and add a line to `SYSTEMS`.
"""

import importlib.util
from typing import NamedTuple

from deepjax.benchmarks.cells import PHASES
from deepjax.errors import InputError, choices

OF_SHI = frozenset(("fcn_s", "alexnet", "resnet50", "fcn_r", "alexnet_r", "cifar_resnet", "lstm"))


class System(NamedTuple):
    """A system to measure."""

    package: str  # that must be installed
    networks: frozenset[str] | None  # that it can train; None: all of the zoo
    inference: frozenset[str] | None  # that it can run forward only
    phases: tuple[str, ...] = (PHASES[0], PHASES[-1])


SYSTEMS = {
    "deepjax": System("jax", None, None, PHASES),
    "flax": System("flax", OF_SHI, OF_SHI, PHASES),
    "torch": System("torch", OF_SHI, OF_SHI | {"mobilenet_v2"}),
    "torch-compile": System("torch", OF_SHI, OF_SHI | {"mobilenet_v2"}),
    "keras": System("keras", OF_SHI, frozenset(), PHASES),
}


def choose(names):
    """Return names of systems: those given, or all that are installed.

    Raises:
      InputError: an unknown system, or one that is not installed.
    """
    for name in names:
        if name not in SYSTEMS:
            raise InputError(f"system {name!r} is unknown; {choices(name, SYSTEMS)}")
        if not is_installed(name):
            raise InputError(f"system {name}: {SYSTEMS[name].package} is not installed; install it, or leave it out")
    return list(dict.fromkeys(names)) or [name for name in SYSTEMS if is_installed(name)]


def is_installed(name):
    """Return whether the package of a system is installed."""
    return importlib.util.find_spec(SYSTEMS[name].package) is not None


def lacks(name, work, inference=False):
    """Return why a system cannot measure a workload, or None."""
    networks = SYSTEMS[name].inference if inference else SYSTEMS[name].networks
    if networks is not None and work.network not in networks:
        return f"the benchmark has no {work.network} in {name}{' for inference' if inference else ''}"
    if name == "deepjax":
        from deepjax import zoo

        if work.network not in zoo.MODELS and work.network != "lstm":
            return f"the zoo has no network {work.network}"
    return None


def load(job):
    """Return the program of a job of kind "train" or "infer"."""
    return importlib.import_module(f"{__name__}.{job['system'].replace('-', '_')}_system").load(job)
