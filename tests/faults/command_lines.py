"""Run random command lines in this process: `python tests/faults/command_lines.py [COUNT] [SEED]`.

A line has a command, its arguments, and some of its options, with values of their types or odd ones. What takes long is
replaced: training and the range test end after `setup`; nothing is compiled by `plan`, measured by `bench` or
downloaded. Each line must end with exit code 0, or with 2 and one line on standard error. (`plan` ends with 1 where no
choice fits, `predict` with 1 and a line for each image that cannot be read.) Prints failures, then `N of COUNT`.
"""

import collections
import contextlib
import dataclasses
import importlib
import os
import random
import shlex
import sys
import tempfile
import typing

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

import numpy as np
from calls import call, is_one_line
from PIL import Image

ODD = ("", " ", "x", "-1", "0", "1e400", "nan", "-inf", "99999999999999999999999", "1e3", "0x10", "½", "猫", "\udc80")
ODD += (
    "None",
    "True",
    "[]",
    "{}",
    '{"a": 1}',
    "a=b",
    "=",
    "a=",
    "a=1e999",
    "/",
    "~",
    ".",
    "--",
    "-",
    "'",
    "$HOME",
    "\n",
)
WORDS = (
    "digits",
    "xor",
    "spirals",
    "run",
    "mlp",
    "cifar_resnet",
    "resnet18",
    "image.png",
    "x.safetensors",
    "x.pth",
    "8,8,1",
)
MLP = ["--model", "mlp", "--model-options", "depth=2", "width=8", "--devices.count", "1"]
# The dataclass of each command's options, and the words after the command.
KINDS = {"train": "config.Config", "plan": "cli.plan.PlanOptions", "find-lr": "cli.find_lr.FindLR"}
KINDS |= {"eval": "cli.evaluate.Eval", "predict": "cli.predict.Predict", "export": "cli.export.Export"}
KINDS |= {"models": "cli.models.Models", "datasets": "cli.datasets.Datasets", "summary": "cli.summary.Summary"}
KINDS |= {"convert": "cli.convert.Convert", "weights": "cli.weights.List", "compare": "cli.compare.Compare"}
KINDS |= {"bench": "cli.bench.Depth", "search": "cli.search.Search"}
KINDS |= {"figure": "cli.figure.Figure", "figures": "cli.figure.Figures"}
FIRST = {"train": "digits", "plan": "digits", "find-lr": "digits", "eval": "run", "predict": "run image.png"}
FIRST |= {"export": "run --format safetensors --out out.safetensors", "summary": "cifar_resnet20", "weights": "list"}
FIRST |= {"convert": "resnet18 x.pth x.safetensors", "compare": "run run", "bench": "depth"}
FIRST |= {"search": "digits --optimizer.learning-rate 0.1,0.2", "figure": "squared-error-sigmoid"}


def options_of(kind, prefix=""):
    """Yield (flag, type) of each option of a dataclass, as tyro names them."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        flag = f"{prefix}{field.name}".replace("_", "-")
        inline = field.metadata.get("inline")
        if dataclasses.is_dataclass(hints[field.name]):
            yield from options_of(hints[field.name], prefix if inline else f"{flag}.")
        else:
            yield f"--{flag}", hints[field.name]


def all_options():
    """Return {command: [(flag, type)]}."""
    found = {}
    for command, kind in KINDS.items():
        module, _, name = f"deepjax.{kind}".rpartition(".")
        found[command] = list(options_of(getattr(importlib.import_module(module), name)))
    return found


def values(kind, rng):
    """Return words for an option of a type."""
    arguments = typing.get_args(kind)
    if rng.random() < 0.25:
        return rng.choices((*ODD, *WORDS), k=rng.choice((0, 1, 1, 1, 2)))
    if kind is bool:
        return []
    if kind is int:
        return [str(rng.choice((0, 1, 2, 3, 10, 64, 1000)))]
    if kind is float:
        return [str(rng.choice((0, 0.001, 0.1, 0.5, 0.9, 1, 2.5, 30)))]
    if typing.get_origin(kind) is typing.Literal:
        return [str(rng.choice(arguments))]
    if typing.get_origin(kind) is tuple:
        return [word for _ in range(rng.choice((1, 2, 2, 3))) for word in values(arguments[0], rng)]
    if typing.get_origin(kind) is dict:
        return rng.choices(
            ("depth=3", "width=4", "norm=batch", "scan=false", "drop=0.1", '{"*": {"frozen": true}}'),
            k=rng.choice((1, 2)),
        )
    if arguments:
        return values(rng.choice(arguments), rng)
    return ["None"] if kind is type(None) else [rng.choice(WORDS)]


def line(options, rng):
    """Return a random command line."""
    command = rng.choice(list(KINDS))
    words = [command, *FIRST.get(command, "").split()]
    if command in ("train", "plan", "find-lr", "search") and rng.random() < 0.6:
        words += MLP
    for flag, kind in rng.sample(options[command], min(rng.choice((0, 1, 1, 2, 3, 5)), len(options[command]))):
        if kind is bool and rng.random() < 0.5:
            head, dot, tail = flag.rpartition(".")
            flag = f"{head}.no-{tail}" if dot else f"--no-{flag[2:]}"
        words += [flag, *values(kind, rng)]
    if rng.random() < 0.1:
        words[rng.randrange(len(words))] = rng.choice((*ODD, *WORDS, "--help", "-h", "--version", "--epoch", "--lr"))
    if rng.random() < 0.05:
        del words[rng.randrange(len(words))]
    return words


def replace_what_takes_long():
    """Replace training, the range test, searches, figures, compilations, measurements and downloads."""
    from deepjax import figures, plan, training
    from deepjax.benchmarks import depth
    from deepjax.errors import InputError
    from deepjax.fields import replaced
    from deepjax.runs import workdir
    from deepjax.training import setup
    from deepjax.weights import hub

    def train(config, name, log=None, **ignored):
        config = setup.with_absolute_paths(config)
        network = setup.check(config)
        folder, _ = workdir.find_workdir(config, name)
        setup.setup(config, network, folder)
        return {"suggestion": 0.1}

    def search(config, grid, name, log=None, **ignored):
        for field, values in grid.items():
            train(replaced(config, field, values[-1]), name)
        return {"best": {}, "by": config.best, "candidates": []}

    def refuse(*arguments, **keywords):
        raise InputError("replaced")

    training.train, training.range_test, training.search = train, train, search
    experiment = figures.find("squared-error-sigmoid")
    found = experiment.numbers(figures.Settings())
    experiment.numbers = lambda settings: found
    plan.measure = lambda *arguments: {"stopped": "replaced"}
    depth.measure = depth.start_twice = hub._download = refuse


def is_allowed(words, code, out, err):
    """Return whether a line has ended as it should."""
    if code == 2:
        return is_one_line(err) or (not err and out.startswith("usage: deepjax"))
    if code == 1:
        return "plan" in words or (
            "predict" in words and all(text.startswith("deepjax: ") for text in err.splitlines())
        )
    return code == 0 and all(text.startswith("deepjax: warning: ") for text in err.splitlines())


def main(count=2000, seed=0):
    """Run the lines. Return the exit code."""
    rng, options, codes, failed = random.Random(seed), all_options(), collections.Counter(), 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ |= {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache", "HF_HUB_OFFLINE": "1", "HOME": folder}
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save("image.png")
        trained = call("train", "digits", *MLP, "--epochs", "1", "--workdir", "run")
        assert trained[0] == 0, trained
        replace_what_takes_long()
        for number in range(count):
            words = line(options, rng)
            code, out, err = call(*words)
            codes[code if isinstance(code, int) else "exception"] += 1
            if not is_allowed(words, code, out, err):
                failed += 1
                print(f"line {number}: deepjax {shlex.join(words)!a}: {code}: {err[-1500:]!a}", flush=True)
    print(f"{count - failed} of {count}; exit codes {dict(codes)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
