"""Let TFDS download a set and write it as array_record, in a process of its own.

TFDS's generating code imports TensorFlow, which must never enter the process that trains.
"""

import importlib.util
import os
import subprocess
import sys
from typing import NoReturn

from deepjax.data.files import ORIGINAL
from deepjax.data.prepared import nearest
from deepjax.errors import InputError

# Not `python -m deepjax.data.prepare`: the package imports this module first, and runpy warns of that.
CHILD = "from deepjax.data.prepare import child; child()"
FAILED = "deepjax-prepare-failed: "


def prepare(name: str, data_dir: str) -> None:
    """Download and prepare a set in data_dir (empty: TFDS's own folder), showing TFDS's progress.

    Raises InputError where TensorFlow is missing or TFDS fails: an unknown name, no network, a set whose
    files one must fetch by hand.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(f"datasets prepare {name}: needs TensorFlow to prepare; pip install 'deepjax[prepare]'")
    command = [sys.executable, "-c", CHILD, name, data_dir]
    quiet = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
    }  # TensorFlow must not take the GPU's memory
    done = subprocess.run(command, env={**os.environ, **quiet}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.startswith(FAILED)]
        reason = lines[-1].removeprefix(FAILED) if lines else f"the process ended with code {done.returncode}"
        raise InputError(f"datasets prepare {name}: {reason}")


def child() -> None:
    """What the process does; its arguments are the name and the folder."""
    import tensorflow_datasets as tfds

    name, data_dir = sys.argv[1:]
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError:
        _fail(f"no such TFDS set; {nearest(name.split('/')[0].split(':')[0], ORIGINAL)}")
    except Exception as error:  # of a download, a parser, the disk: the parent shows it as one line
        _fail(" ".join(f"{type(error).__name__}: {error}".split())[:500])


def _fail(reason: str) -> NoReturn:
    print(FAILED + reason, flush=True)
    sys.exit(1)
