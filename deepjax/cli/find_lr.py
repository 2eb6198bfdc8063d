"""`deepjax find-lr`."""

from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from deepjax.cli.configs import chosen, docstring, load, with_file_options, without_config
from deepjax.cli.terminal import display, parse
from deepjax.config import Config
from deepjax.fields import option


@dataclass(frozen=True)
class FindLR:
    """A config, and the range of learning rates to test."""

    config: Annotated[Config, tyro.conf.arg(name="")] = option(inline=True)
    min_rate: float = option(1e-7, above=0)
    """The first learning rate."""
    max_rate: float = option(10.0, above=0)
    """The last learning rate, unless the loss diverges before."""
    steps: int = option(100, at_least=10)
    """Number of updates. The learning rate grows by the same factor at each."""
    smoothing: float = option(0.9, at_least=0, below=1)
    """Decay of the moving average of the loss."""


def find_lr(arguments):
    """Find a learning rate for a config by the range test: a plot and a suggestion."""
    if (path := chosen("find-lr", arguments)) is None:
        return without_config(arguments)
    default = FindLR(load(path))
    options = parse(FindLR, arguments[1:], f"deepjax find-lr {arguments[0]}", docstring(path), default=default)
    options = replace(options, config=with_file_options(options.config, default.config))
    from deepjax.training import range_test

    record = range_test(
        options.config,
        path.stem,
        min_rate=options.min_rate,
        max_rate=options.max_rate,
        steps=options.steps,
        smoothing=options.smoothing,
        log=display(),
    )
    return 0 if record["suggestion"] is not None else 1
