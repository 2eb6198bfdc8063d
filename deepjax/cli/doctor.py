"""`deepjax doctor`."""

import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from deepjax.cli.configs import chosen, docstring, load, with_file_options, without_config
from deepjax.cli.terminal import display, parse
from deepjax.config import Config
from deepjax.errors import InputError, first_line
from deepjax.fields import option


@dataclass(frozen=True)
class Doctor:
    """A config, and what is examined of it."""

    config: Annotated[Config, tyro.conf.arg(name="")] = option(inline=True)
    out: Path | None = None
    """File of the report: .html or .json. None: it is only printed."""
    json: bool = False
    """Print the report as JSON."""
    budget: float = option(60.0, above=0)
    """Seconds of the examination on a nominal machine; it limits the steps of its runs."""
    nan: bool = False
    """Train in memory until something is not finite, and find the operation that made it so."""
    steps: int = option(1000, at_least=1)
    """Training steps of --nan, at most."""
    widths: str = ""
    """Widths of a coordinate check, such as 32,64,128: do activations and updates keep their scale?"""
    depths: str = ""
    """Depths of a coordinate check, such as 10,100,1000."""
    plot: Path = Path("coordinates.png")
    """Figure of the coordinate check, .png or .svg."""


@dataclass(frozen=True)
class Module:
    """A Python function that makes a Linen or NNX model, examined on random examples of classes that can be learned."""

    input: str = ""
    """Shape of an example, such as 32,32,3."""
    classes: int = option(10, at_least=2)
    """Number of classes."""
    examples: int = option(512, at_least=8)
    """Number of examples that are drawn."""
    seed: int = option(0, at_least=0)
    """Seed of the examples and of the weights."""
    out: Path | None = None
    """File of the report: .html or .json. None: it is only printed."""
    json: bool = False
    """Print the report as JSON."""
    budget: float = option(60.0, above=0)
    """Seconds of the examination on a nominal machine; it limits the steps of its runs."""


def doctor(arguments):
    """Find out why a model does not train: of a config, or of FILE.py:FUNCTION."""
    if arguments and not arguments[0].startswith("-") and ".py:" in arguments[0]:
        return _module(arguments)
    if (path := chosen("doctor", arguments)) is None:
        return without_config(arguments)
    default = Doctor(load(path))
    options = parse(Doctor, arguments[1:], f"deepjax doctor {arguments[0]}", docstring(path), default=default)
    config = with_file_options(options.config, default.config)
    _check_out(options.out)
    if options.nan:
        from deepjax.cli.doctor_nan import hunt_nan

        return hunt_nan(config, path.stem, options.steps)
    if options.widths or options.depths:
        return _coordinates(config, options)
    from deepjax.doctor.examine import examine_subject
    from deepjax.runs.workdir import key_of
    from deepjax.training.examined import examined
    from deepjax.training.signals import raising

    with raising():
        report = examine_subject(examined(config, display()), key_of(config), options.budget)
    return _show(report, options)


def _coordinates(config, options):
    from deepjax.cli.doctor_coordinates import read_sizes, show_coordinates

    widths, depths = read_sizes("--widths", options.widths), read_sizes("--depths", options.depths)
    return show_coordinates(config, widths=widths, depths=depths, plot=str(options.plot))


def _module(arguments):
    options = parse(Module, arguments[1:], f"deepjax doctor {arguments[0]}")
    file, _, name = arguments[0].rpartition(":")
    shape = _shape(options.input)
    _check_out(options.out)
    model = _made(file, name)
    import jax

    from deepjax.doctor import examine
    from deepjax.doctor.examples import classes
    from deepjax.functional.losses import cross_entropy
    from deepjax.training.signals import raising

    key = jax.random.key(options.seed)
    batch = classes(options.examples, shape, options.classes, seed=options.seed)
    with raising():
        report = examine(model, batch, lambda p, t: cross_entropy(p, t).mean(), key=key, budget=options.budget)
    return _show(report, options)


def _shape(text):
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise InputError(f"--input {text!r} must be the shape of an example, such as 32,32,3 or 784")
    return tuple(int(word) for word in words)


def _made(file, name):
    """Return the model that a function of a user's file returns."""
    if not Path(file).is_file():
        raise InputError(f"{file}: no such file; give FILE.py:FUNCTION")
    try:
        found = runpy.run_path(file)
    except (Exception, SystemExit) as error:
        raise InputError(f"{file} cannot be run ({type(error).__name__}: {first_line(error)})") from error
    if not callable(found.get(name)):
        raise InputError(f"{file} has no function {name}")
    try:
        return found[name]()
    except Exception as error:
        raise InputError(f"{file}:{name}() raises {type(error).__name__}: {first_line(error)}") from error


def _check_out(out):
    if out is not None and out.suffix not in (".html", ".json"):
        raise InputError(f"--out {out} must end in .html or .json")
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.absolute().parent}")


def _show(report, options):
    """Print and save a report. Return the exit code: 1 if something serious was found."""
    if options.out is not None:
        report.save(options.out)
    print(report.to_json() if options.json else report)
    if options.out is not None and not options.json:
        print(f"see {options.out}")
    return 1 if report.serious else 0
