"""The configs that a command can run: those of the package by name, and files."""

import ast
import runpy
from dataclasses import replace
from pathlib import Path

import deepjax
from deepjax.cli.terminal import parse
from deepjax.config import Config
from deepjax.errors import InputError, choices, first_line


def chosen(command, arguments):
    """Return the path of the config that the first argument names.

    Without one, print how to use the command and the list of configs, and return None.
    """
    if not arguments or arguments[0].startswith("-"):
        print(f"usage: deepjax {command} NAME-or-FILE [OPTIONS]; NAME is one of")
        width = max(map(len, configs()))
        for name, path in sorted(configs().items()):
            print(f"  {name:<{width}}  {docstring(path).partition(chr(10))[0]}")
        print(f"`deepjax {command} NAME --help` lists the options")
        return None
    path = configs().get(arguments[0]) or Path(arguments[0])
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"config {arguments[0]!r} is unknown and no .py file; {choices(arguments[0], configs())}")
    return path


def without_config(arguments):
    """Return the exit code of a command whose config was not `chosen`: 0 if help was asked for, else 2."""
    return 0 if arguments[:1] in (["-h"], ["--help"]) else 2


def configured(command, path, arguments):
    """Return the Config of a file, changed by the options on the command line."""
    config = load(path)
    parsed = parse(Config, arguments[1:], f"deepjax {command} {arguments[0]}", docstring(path), default=config)
    return with_file_options(parsed, config)


def with_file_options(parsed, config):
    """Return a parsed Config whose model options are added to those of the config file, for the same model."""
    if parsed.model != config.model:
        return parsed
    return replace(parsed, model_options=config.model_options | parsed.model_options)


def configs():
    """Return {name: path} of the configs in the installed package or, in a checkout, in the folder `configs`."""
    here = Path(deepjax.__file__).parent
    folder = here / "configs" if (here / "configs").is_dir() else here.parent / "configs"
    return {path.stem: path for path in folder.glob("*.py")}


def load(path):
    """Return the Config that a file defines. Raise InputError if it defines none, or raises an exception."""
    try:
        config = runpy.run_path(str(path)).get("config")
    except (Exception, SystemExit) as error:  # the file is the user's, and so is any error in it
        raise InputError(f"config {path} cannot be run ({type(error).__name__}: {first_line(error)})") from error
    if not isinstance(config, Config):
        raise InputError(f"config {path} must define `config = deepjax.config.Config(...)`")
    return config


def docstring(path):
    """Return the docstring of a config file."""
    return ast.get_docstring(ast.parse(path.read_bytes())) or ""  # bytes: the file itself names its encoding
