"""`deepjax weights list`."""

import json
from dataclasses import dataclass

from deepjax.cli.terminal import parse, table
from deepjax.errors import InputError


@dataclass(frozen=True)
class List:
    """Options of `deepjax weights list`."""

    json: bool = False
    """Print JSON."""


def weights(arguments):
    """List the pretrained weights on the hub, and which are in the cache: `deepjax weights list`."""
    if arguments[:1] not in (["list"], ["-h"], ["--help"]):
        raise InputError(f"weights {' '.join(arguments) or '(no subcommand)'} is unknown; use `deepjax weights list`")
    options = parse(List, arguments[arguments[0] == "list" :], "deepjax weights list", weights.__doc__)
    from deepjax.weights import hub

    rows = [
        {"weights": name, "repository": file.repository, "file": file.file, "cached": hub.is_cached(name)}
        for name, (_, file) in hub.PRETRAINED.items()
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        shown = [(row["weights"], row["repository"], row["file"], "yes" if row["cached"] else "no") for row in rows]
        table(("weights", "repository", "file", "cached"), shown)
        print(f"cache: {hub.cache_folder()}")
    return 0
