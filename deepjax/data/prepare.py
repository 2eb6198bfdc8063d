"""Let TFDS download a data set and write it as array_record, in a separate process.

TFDS's generating code imports TensorFlow, which must never be imported in the process that trains.
"""

import importlib.util
import os
import subprocess
import sys
from typing import NoReturn

from deepjax.data.sources.original import ORIGINAL
from deepjax.data.sources.prepared import base_name, nearest
from deepjax.errors import InputError

# `python -m deepjax.data.prepare` would make runpy warn, because the package imports this module first.
CHILD = "from deepjax.data.prepare import child; child()"
FAILED = "deepjax-prepare-failed: "


def prepare(name: str, data_dir: str) -> None:
    """Download and prepare a data set in data_dir (empty: TFDS's default folder), showing TFDS's progress.

    Raise InputError if TensorFlow is missing or if TFDS fails: an unknown name, no network, a data set whose files
    must be downloaded by hand.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"datasets prepare {name}: needs TensorFlow; install deepjax's extra `prepare`, in its folder: "
            f"pip install '.[prepare]'"
        )
    command = [sys.executable, "-c", CHILD, name, data_dir]
    # TensorFlow must not allocate the GPU's memory.
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    # The child starts a new session, so that Ctrl-C in a terminal reaches only this process, which then ends the child.
    done = subprocess.run(
        command,
        env={**os.environ, **quiet},
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.startswith(FAILED)]
        reason = lines[-1].removeprefix(FAILED) if lines else f"the process ended with code {done.returncode}"
        raise InputError(f"datasets prepare {name}: {reason}")


def child() -> None:
    """Run in the separate process; its arguments are the name and the folder."""
    import tensorflow_datasets as tfds

    name, data_dir = sys.argv[1:]
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError:
        _fail(f"no such TFDS data set; {nearest(base_name(name), ORIGINAL)}")
    except Exception as error:  # of a download, a parser, the disk: the parent process shows it in one line
        _fail(" ".join(f"{type(error).__name__}: {error}".split())[:500])


def _fail(reason: str) -> NoReturn:
    print(FAILED + reason, flush=True)
    sys.exit(1)
