"""The command line: `deepjax COMMAND ...`. Each command is a function: list of arguments -> exit code."""

import inspect
import io
import logging
import os
import signal
import sys

import deepjax
from deepjax.cli import configs
from deepjax.cli.bench import bench
from deepjax.cli.compare import compare
from deepjax.cli.compile_cache import keep_compiled
from deepjax.cli.convert import convert
from deepjax.cli.datasets import datasets
from deepjax.cli.doctor import doctor
from deepjax.cli.evaluate import evaluate
from deepjax.cli.export import export
from deepjax.cli.figure import figure, figures
from deepjax.cli.find_lr import find_lr
from deepjax.cli.models import models
from deepjax.cli.plan import plan
from deepjax.cli.predict import predict
from deepjax.cli.search import search
from deepjax.cli.summary import summary
from deepjax.cli.terminal import complain
from deepjax.cli.train import train
from deepjax.cli.weights import weights
from deepjax.errors import InputError, Stopped, TrainingFailed, choices

COMMANDS = {
    "train": train,
    "plan": plan,
    "find-lr": find_lr,
    "search": search,
    "eval": evaluate,
    "predict": predict,
    "export": export,
    "models": models,
    "datasets": datasets,
    "summary": summary,
    "convert": convert,
    "weights": weights,
    "compare": compare,
    "figures": figures,
    "figure": figure,
    "doctor": doctor,
    "bench": bench,
}


def usage():
    """Return the list of commands, each with the first line of its docstring."""
    lines = (f"  {name:<9} {(inspect.getdoc(command) or '').splitlines()[0]}" for name, command in COMMANDS.items())
    return "\n".join(
        (
            "usage: deepjax COMMAND ...",
            "",
            *lines,
            "",
            "`deepjax COMMAND --help` lists the options of a command; `deepjax --version` prints the version.",
        )
    )


def main(argv=None):
    """Run a command and return its exit code: 0, 1 (training failed), 2 (bad input), 128 + signal (stopped)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for name in ("absl", "matplotlib"):  # their errors are raised as exceptions too
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # letters that the terminal's encoding lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(argv)
        if sys.stdout:  # None if it was closed before the process started
            sys.stdout.flush()  # while a closed pipe can still be caught
        return code
    except InputError as error:
        return complain(error, 2)
    except UnicodeEncodeError as error:
        if error.reason != "surrogates not allowed":
            raise
        what = f"{error.object!a:.200} has letters outside of this locale's encoding ({sys.getfilesystemencoding()})"
        return complain(f"{what}; set PYTHONUTF8=1, or rename it", 2)
    except BrokenPipeError:  # the reader has closed the pipe, such as `deepjax models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        return complain(_described(error), 2)
    except TrainingFailed as error:
        return complain(error, 1)
    except Stopped as stop:
        return complain(stop, 128 + stop.number)
    except KeyboardInterrupt as interrupt:  # raised by `training.signals.raising`, or where `main` is called by Python
        number = signal.Signals(next(iter(interrupt.args), signal.SIGINT))
        return complain(f"stopped by {number.name}; what was saved before is complete", 128 + number)


def _run(argv):
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"deepjax {deepjax.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        if argv[0] in configs.configs():
            raise InputError(f"{argv[0]} is a config, not a command; did you mean `deepjax train {' '.join(argv)}`?")
        raise InputError(f"command {argv[0]!r} is unknown; {choices(argv[0], COMMANDS)}")
    keep_compiled()
    return COMMANDS[argv[0]](argv[1:])


def _described(error):
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
