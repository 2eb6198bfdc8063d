"""Words in and out: options, tables, complaints, the console of a run."""

import contextlib
import io
import os
import re
import sys

import tyro

from deepjax.errors import InputError


def parse(kind, arguments, prog, **keywords):
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


def table(header, rows):
    """Aligned columns, without borders, so that a pipe can cut them."""
    widths = [max(len(str(row[i])) for row in [header, *rows] if i < len(row)) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip())


def warn(text):
    """A line on standard error."""
    print(f"deepjax: warning: {text}", file=sys.stderr)


def complain(problem, code):
    """What went wrong, as one line on standard error. Returns the exit code that it is given."""
    print(f"deepjax: {' '.join(str(problem).split())}", file=sys.stderr)
    return code


def display():
    """Return the display that a run reports to: a live bar on a terminal, plain lines elsewhere."""
    from rich.console import Console

    from deepjax.training.progress import Display, LiveDisplay

    class Unheard(Console):
        """A console that becomes silent if its reader has gone, so that the run continues."""

        def on_broken_pipe(self):
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    console = Unheard()
    if console.is_terminal:
        return LiveDisplay(console)
    return Display(lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True))
