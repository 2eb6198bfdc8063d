"""deepjax: build, initialize, train and understand very deep neural networks in JAX.

Submodules load on first use, so that `deepjax --help` and a config file do not wait for JAX.
"""

import importlib

__version__ = "0.1.0"

_SUBMODULES = (
    "benchmarks", "config", "cpu", "data", "doctor", "errors", "fields", "figures", "files", "functional", "inference",
    "init_from_data", "initializers", "inside", "layers", "linear", "optimizers", "parallel", "plan", "runs", "summary",
    "tasks", "trace", "training", "transforms", "units", "weights", "zoo",
)  # fmt: skip


def __getattr__(name):
    if name in _SUBMODULES:
        return importlib.import_module(f"deepjax.{name}")
    raise AttributeError(f"module 'deepjax' has no attribute {name!r}")


def __dir__():
    return [*globals(), *_SUBMODULES]
