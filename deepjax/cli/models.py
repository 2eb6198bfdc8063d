"""`deepjax models`."""

import inspect
import json
from dataclasses import dataclass

from deepjax.cli.terminal import parse, table


@dataclass(frozen=True)
class Models:
    """Options of `deepjax models`."""

    json: bool = False
    """Print JSON."""


def models(arguments):
    """List the networks and their options."""
    options = parse(Models, arguments, "deepjax models", models.__doc__)
    from deepjax import zoo

    known = {name: {k: v for k, v in zoo.options_of(name).items() if k != "dtype"} for name in zoo.MODELS}
    if options.json:
        print(json.dumps(known, indent=2))
    else:
        rows = [(name, " ".join(f"{k}={_plain(v)}" for k, v in found.items())) for name, found in known.items()]
        table(("model", "options and their defaults"), rows)
    return 0


def _plain(value):
    return "" if value is inspect.Parameter.empty else value
