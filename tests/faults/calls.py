"""Call a command in this process, and see what a user sees of it."""

import sys
import tempfile
import traceback
import warnings
from contextlib import ExitStack
from os import close, dup, dup2


def call(*arguments):
    """Return (exit code, standard output, standard error) of a command, as written by this process and its libraries.

    An exception that escapes is the exit code, as text. Python's warnings are shown as a new process shows them.
    """
    from deepjax import cli

    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
        before = [dup(number) for number in (1, 2)]
        for number, file in enumerate(files, 1):
            dup2(file.fileno(), number)
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("default")
                code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # of --help
            code = stop.code or 0
        except BaseException:
            code = traceback.format_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(before, 1):
                dup2(descriptor, number)
                close(descriptor)
        out, err = ((file.seek(0), file.read().decode(errors="replace"))[1] for file in files)
    return code, out, err + "".join(f"{each.category.__name__}: {each.message}\n" for each in warned)


def is_one_line(err):
    """Return whether standard error holds one line of deepjax, after its warnings."""
    lines = [line for line in err.splitlines() if not line.startswith("deepjax: warning: ")]
    return len(lines) == 1 and lines[0].startswith("deepjax: ")
