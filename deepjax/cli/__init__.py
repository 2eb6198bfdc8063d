"""The command line: `deepjax COMMAND ...`. Arguments in, exit code out; the work is done elsewhere."""

import logging
import os
import signal
import sys

import deepjax
from deepjax.cli import bench, catalogue, export, plan, runs, training, weights
from deepjax.cli.compile_cache import keep_compiled
from deepjax.cli.terminal import complain
from deepjax.errors import InputError, Stopped, TrainingFailed, choices

USAGE = """usage: deepjax COMMAND ...

  train NAME-or-FILE   train a config; `deepjax train` lists them, `deepjax train NAME --help` its options
  plan NAME-or-FILE    what a config needs before it runs: memory, operations, and which remat fits
  find-lr NAME-or-FILE   the learning rate range test of a config: a plot and a suggestion
  eval WORKDIR...      test error of a trained run, class by class; of several runs, each and averaged
  predict WORKDIR-or-NAME IMAGE...   the likeliest classes of image files or folders, by a run or a pretrained network
  export WORKDIR-or-NAME --format FORM --out FILE   a network as StableHLO or as a weights file
  models               the networks and their options
  datasets             the data that can be trained on; `deepjax datasets prepare NAME` makes a TFDS set ready
  summary MODEL        the layers of a network: output shapes, parameters, operations, receptive fields
  convert NAME SOURCE DESTINATION   a file of weights from PyTorch's layout to deepjax's, or back
  weights list         the pretrained weights that can be fetched
  compare A B          two sets of weights, layer by layer: where do they diverge?
  bench depth          what depth costs: compile time, memory and step time, beside plain Flax and PyTorch

`deepjax COMMAND --help` tells the rest; `deepjax --version` the version."""

COMMANDS = {
    "train": training.train,
    "plan": plan.plan,
    "find-lr": training.find_lr,
    "eval": runs.evaluate,
    "predict": runs.predict,
    "export": export.export,
    "models": catalogue.models,
    "datasets": catalogue.datasets,
    "summary": catalogue.summary,
    "convert": weights.convert,
    "weights": weights.weights,
    "compare": weights.compare,
    "bench": bench.bench,
}


def main(argv=None):
    """Run a command and return its exit code: 0, 1 (training failed), 2 (bad input), 128 + signal (stopped)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for narrator in ("absl", "matplotlib"):  # what goes wrong there is raised anyway
        logging.getLogger(narrator).setLevel(logging.CRITICAL)
    try:
        code = _run(argv)
        if sys.stdout:  # None where it was closed from the start
            sys.stdout.flush()  # while a closed pipe can still be caught
        return code
    except InputError as error:
        return complain(error, 2)
    except BrokenPipeError:  # `deepjax models | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        return complain(_described(error), 2)
    except TrainingFailed as error:
        return complain(error, 1)
    except Stopped as stop:
        return complain(stop, 128 + stop.number)
    except KeyboardInterrupt:
        return complain("interrupted; what was saved before stays", 128 + signal.SIGINT)


def _run(argv):
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"deepjax {deepjax.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise InputError(f"command {argv[0]!r} is unknown; {choices(argv[0], COMMANDS)}")
    keep_compiled()
    return COMMANDS[argv[0]](argv[1:])


def _described(error):
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
