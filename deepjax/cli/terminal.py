"""Input and output of commands: options, tables, errors, and the console of a run."""

import contextlib
import inspect
import io
import json
import os
import re
import sys

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

from deepjax import config
from deepjax.cli.hints import suggest
from deepjax.errors import InputError

REGISTRY = ConstructorRegistry()


def parse(kind, arguments, prog, description=None, **keywords):
    """Return the dataclass `kind` from command-line arguments, checked against its fields' types and ranges.

    Args:
      kind: a dataclass.
      arguments: a list of strings.
      prog: the command, such as "deepjax train digits", for messages.
      description: a docstring, printed by --help.
      **keywords: further arguments of `tyro.cli`.

    Raise InputError, as one line, for arguments that do not fit.
    """
    arguments = [_expanded(argument) for argument in arguments]
    complaint = io.StringIO()
    description = inspect.cleandoc(description or "")
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(kind, args=arguments, prog=prog, description=description, registry=REGISTRY, **keywords)
    except SystemExit as stop:
        if not stop.code:
            raise
        problem = suggest(kind, arguments) or _one_line(complaint.getvalue())
        raise InputError(f"{problem} (options: {prog} --help)") from None
    config.check(parsed)
    return parsed


def _expanded(argument):
    """Replace ~ by the home folder at the start of a path, also in --option=~/path, which shells leave alone."""
    option, equals, value = argument.partition("=")
    if option.startswith("--") and equals:
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(argument) if argument.startswith(("~/", "~\\")) else argument


def parse_options(words):
    """["depth=38", "shortcut=B", "scan=false"] -> {"depth": 38, "shortcut": "B", "scan": False}."""
    if not words:
        raise ValueError("NAME=VALUE is missing, such as depth=38")
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not NAME=VALUE, such as depth=38")
        try:
            options[name] = json.loads(value.lower())
        except ValueError:
            options[name] = value
    return options


def parse_groups(words):
    """['{"head/*": {"learning_rate": 0.5}}'] -> {"head/*": {"learning_rate": 0.5}}."""
    try:
        groups = json.loads(words[0])
    except ValueError as error:
        raise ValueError(f"{words[0]!r} is not JSON ({error})") from None
    if not isinstance(groups, dict) or not all(isinstance(fields, dict) for fields in groups.values()):
        raise ValueError(f'{words[0]!r} is not like {{"head/*": {{"learning_rate": 0.5}}}}')
    return groups


def _is_dict(value):
    return isinstance(value, dict)


@REGISTRY.primitive_rule
def _read_dicts(info):
    """Read `Options` and `Groups`. tyro by itself would make flags of the names in a default, and refuse all others."""
    if info.type == config.Options:
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="NAME=VALUE ...",
            instance_from_str=parse_options,
            is_instance=_is_dict,
            str_from_instance=lambda options: [f"{k}={json.dumps(v).strip(chr(34))}" for k, v in options.items()],
        )
    if info.type == config.Groups:
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="JSON",
            instance_from_str=parse_groups,
            is_instance=_is_dict,
            str_from_instance=lambda groups: [json.dumps(groups)],
        )
    return None


def _one_line(box):
    """Return the sentences in tyro's error box, without its title, its rules and its pointer to the help."""
    lines = [line.strip(" │|") for line in box.splitlines()]
    lines = [line for line in lines if line and not set(line) <= set("-─╭╮╰╯")]
    text = " ".join(lines[1:]).partition("For full helptext")[0]
    text = text.partition("Argument helptext:")[0]
    text = re.sub(r"^Missing from .*?: \S+ ", "missing argument: ", text)
    text = re.sub(r"\s*Perhaps you meant:\s*(\S+).*", r"; did you mean \1?", text)
    return text.strip()


def table(header, rows):
    """Print aligned columns without borders, so that other programs can read them."""
    widths = [max(len(str(row[i])) for row in [header, *rows] if i < len(row)) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip())


def warn(text):
    """Print a warning on standard error."""
    print(f"deepjax: warning: {text}", file=sys.stderr)


def complain(problem, code):
    """Print a problem as one line on standard error, and return `code`, the exit code."""
    print(f"deepjax: {' '.join(str(problem).split())}", file=sys.stderr)
    return code


def display():
    """Return the display to which a run reports: a live bar on a terminal, plain lines elsewhere."""
    from rich.console import Console

    from deepjax.training.progress import Display, LiveDisplay

    class SilentWithoutReader(Console):
        """A console that stops printing if its output is closed, so that the run continues."""

        def on_broken_pipe(self):
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    console = SilentWithoutReader()
    if console.is_terminal:
        return LiveDisplay(console)
    return Display(lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True))
