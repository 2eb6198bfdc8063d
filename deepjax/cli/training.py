"""`deepjax train` and `deepjax find-lr`: what starts from a config."""

import ast
import runpy
from dataclasses import dataclass, fields, replace
from pathlib import Path

import deepjax
from deepjax.cli.terminal import display, parse
from deepjax.config import Config
from deepjax.errors import InputError, choices


@dataclass(frozen=True)
class FindLR(Config):
    """A config, and how to look for its learning rate."""

    min_rate: float = 1e-7
    """The first learning rate tried."""
    max_rate: float = 10.0
    """The last one, if the loss allows."""
    steps: int = 100
    """Updates, each at a rate a constant factor above the one before."""
    smoothing: float = 0.9
    """Decay of the average that smooths the loss, in [0, 1)."""


def train(arguments):
    """Train a config: one of those that come with deepjax, or a file of your own."""
    if (path := chosen("train", arguments)) is None:
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    config = configured("train", path, arguments, Config)
    from deepjax.training import train

    train(config, path.stem, log=display())
    return 0


def find_lr(arguments):
    """Find a learning rate for a config by the range test, which trains nothing that stays; 1 if there is none."""
    if (path := chosen("find-lr", arguments)) is None:
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    options = configured("find-lr", path, arguments, FindLR)
    config = Config(**{field.name: getattr(options, field.name) for field in fields(Config)})
    from deepjax.training import range_test

    search = {name: getattr(options, name) for name in ("min_rate", "max_rate", "steps", "smoothing")}
    record = range_test(config, path.stem, **search, log=display())
    return 0 if record["suggestion"] is not None else 1


def chosen(command, arguments):
    """The file of the config that is named first, or None where only help is asked for, which is printed."""
    if not arguments or arguments[0].startswith("-"):
        print(f"usage: deepjax {command} NAME-or-FILE [OPTIONS]; NAME is one of")
        for name, path in sorted(configs().items()):
            print(f"  {name:<20} {_headline(path)}")
        print(f"`deepjax {command} NAME --help` lists the options")
        return None
    path = configs().get(arguments[0]) or Path(arguments[0])
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"config {arguments[0]!r} is unknown and no file; {choices(arguments[0], configs())}")
    return path


def configured(command, path, arguments, kind):
    """A config file's Config, as the dataclass `kind`, with what the command line changes."""
    config = _load_config(path)
    default = kind(**{field.name: getattr(config, field.name) for field in fields(config)})
    prog = f"deepjax {command} {arguments[0]}"
    parsed = parse(kind, arguments[1:], prog, description=docstring(path), default=default)
    if parsed.model == config.model:
        parsed = replace(parsed, model_options=config.model_options | parsed.model_options)
    return parsed


def configs():
    """{name: file} of the configs in the wheel, or beside the package in a checkout."""
    here = Path(deepjax.__file__).parent
    folder = here / "configs" if (here / "configs").is_dir() else here.parent / "configs"
    return {path.stem: path for path in folder.glob("*.py")}


def _load_config(path):
    try:
        config = runpy.run_path(str(path)).get("config")
    except Exception as error:  # whatever a user's file raises is a user's error
        raise InputError(f"config {path} cannot be run ({type(error).__name__}: {error})") from error
    if not isinstance(config, Config):
        raise InputError(f"config {path} must define `config = deepjax.config.Config(...)`")
    return config


def docstring(path):
    """What a config file says of itself."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def _headline(path):
    return docstring(path).partition("\n")[0]
