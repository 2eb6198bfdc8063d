"""The command line: `deepjax COMMAND ...`. Arguments in, exit code out; the work is done elsewhere."""

import ast
import contextlib
import inspect
import io
import json
import logging
import os
import re
import runpy
import signal
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import tyro

import deepjax
from deepjax.config import Config, Options
from deepjax.errors import InputError, Stopped, TrainingFailed, choices

USAGE = """usage: deepjax COMMAND ...

  train NAME-or-FILE   train a config; `deepjax train` lists them, `deepjax train NAME --help` its options
  eval WORKDIR         test error of a trained run, class by class
  predict WORKDIR IMAGE...   the likeliest classes of image files or folders
  models               the networks and their options
  datasets             the data that can be trained on; `deepjax datasets prepare NAME` makes a TFDS set ready
  summary MODEL        the layers of a network: output shapes, parameters

`deepjax COMMAND --help` tells the rest; `deepjax --version` the version."""


def main(argv=None):
    """Run a command and return its exit code: 0, 1 (training failed), 2 (bad input), 128 + signal (stopped)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"deepjax {deepjax.__version__}")
        return 0
    for narrator in ("absl", "matplotlib"):  # what goes wrong there is raised anyway
        logging.getLogger(narrator).setLevel(logging.CRITICAL)
    try:
        if argv[0] not in COMMANDS:
            raise InputError(f"command {argv[0]!r} is unknown; {choices(argv[0], COMMANDS)}")
        code = COMMANDS[argv[0]](argv[1:])
        if sys.stdout:  # None where it was closed from the start
            sys.stdout.flush()  # while a closed pipe can still be caught
        return code
    except InputError as error:
        return _complain(error, 2)
    except BrokenPipeError:  # `deepjax models | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        return _complain(_describe(error), 2)
    except TrainingFailed as error:
        return _complain(error, 1)
    except Stopped as stop:
        return _complain(stop, 128 + stop.number)
    except KeyboardInterrupt:
        return _complain("interrupted; what was saved before stays", 128 + signal.SIGINT)


def train(arguments):
    """Train a config: one of those that come with deepjax, or a file of your own."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: deepjax train NAME-or-FILE [OPTIONS]; NAME is one of")
        for name, path in sorted(_configs().items()):
            print(f"  {name:<20} {_headline(path)}")
        print("`deepjax train NAME --help` lists the options")
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    name, *rest = arguments
    path = _configs().get(name) or Path(name)
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"config {name!r} is unknown and no file; {choices(name, _configs())}")
    config = _load_config(path)
    parsed = _parse(Config, rest, f"deepjax train {name}", description=_docstring(path), default=config)
    if parsed.model == config.model:
        parsed = replace(parsed, model_options=config.model_options | parsed.model_options)
    from deepjax.training import loop

    loop.train(parsed, path.stem, console=_console())
    return 0


def _console():
    from rich.console import Console

    class Unheard(Console):
        """Goes on in silence when its reader has gone: a run is worth more than its lines."""

        def on_broken_pipe(self):
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return Unheard()


def _configs():
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


def _docstring(path):
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def _headline(path):
    return _docstring(path).partition("\n")[0]


@dataclass(frozen=True)
class Eval:
    """Test error of a trained run, class by class; top-5 error too where there are more than five classes."""

    workdir: tyro.conf.Positional[str]
    """Folder of the run."""
    split: Literal["test", "validation", "train"] = "test"
    data_dir: str = ""
    """Where the images are. Empty: where the run found them."""
    json: bool = False
    """Print JSON."""


def evaluate(arguments):
    """Print a run's error on a split of its data."""
    options = _parse(Eval, arguments, "deepjax eval")
    from deepjax.training import inference

    run = inference.load_run(options.workdir, _warn)
    result = inference.evaluate_run(run, split=options.split, data_dir=options.data_dir)
    errors = [None if error != error else error for error in result.class_errors(len(run.classes)).tolist()]
    record = {
        "split": options.split,
        "step": run.step,
        "examples": len(result.labels),
        "error": result.error,
        "loss": result.loss,
        **({"top5_error": result.top5_error} if len(run.classes) > 5 else {}),
        "class_errors": dict(zip(run.classes, errors, strict=True)),
    }
    if options.json:
        print(json.dumps(record, indent=2))
        return 0
    counts = result.confusion(len(run.classes)).sum(1)
    rows = [
        (name, str(count), "-" if error is None else f"{100 * error:.2f}")
        for name, count, error in zip(run.classes, counts, errors, strict=True)
    ]
    _table(("class", "examples", "error %"), rows)
    top5 = f", top-5 error {100 * result.top5_error:.2f} %" if "top5_error" in record else ""
    print(
        f"{options.split} error {100 * result.error:.2f} %{top5}, loss {result.loss:.4f}, "
        f"{len(result.labels)} examples, checkpoint of step {run.step}"
    )
    return 0


@dataclass(frozen=True)
class Predict:
    """The likeliest classes of images, by a trained run."""

    workdir: tyro.conf.Positional[str]
    """Folder of the run."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files, or folders of them."""
    top: int = 5
    """How many classes to show."""
    json: bool = False
    """Print JSON."""


def predict(arguments):
    """Print the likeliest classes of each image; 1 if an image could not be read."""
    options = _parse(Predict, arguments, "deepjax predict")
    if not options.images:
        raise InputError("predict needs images: deepjax predict WORKDIR IMAGE...")
    from deepjax.training import inference

    predictions = inference.predict(inference.load_run(options.workdir, _warn), options.images, top=options.top)
    problems = [p for p in predictions if p.problem]
    if options.json:
        rows = [
            {"image": p.path, "error": p.problem}
            if p.problem
            else {
                "image": p.path,
                "classes": [{"class": c, "probability": q} for c, q in zip(p.classes, p.probabilities, strict=True)],
            }
            for p in predictions
        ]
        print(json.dumps(rows, indent=2))
    else:
        shown = [
            (p.path, *(f"{c} {100 * q:.1f} %" for c, q in zip(p.classes, p.probabilities, strict=True)))
            for p in predictions
            if not p.problem
        ]
        if shown:
            _table(("image", *(f"{i + 1}." for i in range(len(shown[0]) - 1))), shown)
    for prediction in problems:
        _complain(prediction.problem, 1)
    return 1 if problems else 0


@dataclass(frozen=True)
class Models:
    """The networks that `--model` and `deepjax.zoo.create` know."""

    json: bool = False
    """Print JSON."""


def models(arguments):
    """Print every network with its options."""
    options = _parse(Models, arguments, "deepjax models")
    from deepjax import zoo

    known = {name: {k: v for k, v in zoo.options_of(name).items() if k != "dtype"} for name in zoo.MODELS}
    if options.json:
        print(json.dumps(known, indent=2))
    else:
        rows = [(name, " ".join(f"{k}={_plain(v)}" for k, v in found.items())) for name, found in known.items()]
        _table(("model", "options and their defaults"), rows)
    return 0


def _plain(value):
    return "" if value is inspect.Parameter.empty else value


@dataclass(frozen=True)
class Datasets:
    """The data that --data.name can name: built in, prepared by TFDS, or as original files."""

    data_dir: str = ""
    """Folder to look in. Empty: TFDS's own."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Prepare:
    """Download and prepare a TFDS set once, so that it can be read without TensorFlow. Needs the extra `prepare`."""

    name: tyro.conf.Positional[str]
    """TFDS's name of the set, such as cifar10."""
    data_dir: str = ""
    """Folder to prepare it in. Empty: TFDS's own."""


def datasets(arguments):
    """Print what can be trained on, or prepare a TFDS set."""
    from deepjax import data

    if arguments[:1] == ["prepare"]:
        options = _parse(Prepare, arguments[1:], "deepjax datasets prepare")
        data.prepare(options.name, options.data_dir)
        print(f"{options.name} is ready")
        return 0
    options = _parse(Datasets, arguments, "deepjax datasets")
    rows = data.available(options.data_dir)
    if options.json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
    else:
        _table(rows[0]._fields, rows)
    return 0


@dataclass(frozen=True)
class Summary:
    """The layers of a network: output shape of one example, parameters."""

    model: tyro.conf.Positional[str]
    """A name that `deepjax models` lists."""
    input: str = ""
    """Shape of one example: height,width,channels. Empty: 224,224,3 for ImageNet's networks, else 32,32,3."""
    num_classes: int | None = None
    """Logits. Unset: the network's usual number."""
    options: Options = field(default_factory=dict)
    """Options of the model: --options depth=38 shortcut=B."""
    json: bool = False
    """Print JSON."""


def summary(arguments):
    """Print the layers of a network."""
    options = _parse(Summary, arguments, "deepjax summary")
    from deepjax import zoo
    from deepjax.summary import summarize

    model = zoo.create(options.model, num_classes=options.num_classes, **options.options)
    text = options.input or ",".join(map(str, zoo.usual_input(options.model)))
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise InputError(f"--input {text!r} must be numbers with commas between, such as 32,32,3")
    layers = summarize(model, tuple(map(int, text.split(","))))
    total = sum(layer.parameters for layer in layers)
    if options.json:
        record = {
            "model": options.model,
            "parameters": total,
            "layers": [layer._asdict() for layer in layers],
        }
        print(json.dumps(record, indent=2))
        return 0
    rows = [
        (
            layer.path,
            layer.kind,
            "x".join(map(str, layer.output)) or "-",
            f"x{layer.repeats}" if layer.repeats > 1 else "",
            f"{layer.parameters:,}" if layer.parameters else "",
        )
        for layer in layers
    ]
    _table(("layer", "kind", "output", "repeats", "parameters"), rows)
    print(f"{options.model}: {total:,} parameters")
    return 0


COMMANDS = {
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "models": models,
    "datasets": datasets,
    "summary": summary,
}


def _parse(kind, arguments, prog, **keywords):
    """tyro's parse, with its boxed complaint turned into one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=arguments, prog=prog, **keywords)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(f"{_one_line(complaint.getvalue())} (options: {prog} --help)") from None


def _one_line(box):
    """The sentences in tyro's box: without its title, rules and pointer to the help."""
    lines = [line.strip(" │|") for line in box.splitlines()]
    lines = [line for line in lines if line and not set(line) <= set("-─╭╮╰╯")]
    text = " ".join(lines[1:]).partition("For full helptext")[0]
    text = text.partition("Argument helptext:")[0]
    text = re.sub(r"^Missing from .*?: \S+ ", "missing argument: ", text)
    text = re.sub(r"\s*Perhaps you meant:\s*(\S+).*", r"; did you mean \1?", text)
    return text.strip()


def _table(header, rows):
    """Aligned columns, without borders, so that a pipe can cut them."""
    widths = [max(len(str(row[i])) for row in [header, *rows] if i < len(row)) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip())


def _warn(text):
    print(f"deepjax: warning: {text}", file=sys.stderr)


def _complain(problem, code):
    print(f"deepjax: {' '.join(str(problem).split())}", file=sys.stderr)
    return code


def _describe(error):
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


if __name__ == "__main__":
    sys.exit(main())
