"""The metrics of a run, written as it trains: metrics.jsonl, and the same in metrics.csv, TensorBoard and W&B."""

import csv
import importlib
import json
import socket
import time
import uuid
import warnings
from typing import Any

# These modules make their classes at run time, where a type checker cannot find them.
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from deepjax import files
from deepjax.errors import InputError, first_line
from deepjax.parallel import is_main

NAME = "metrics.jsonl"


class MetricsLog:
    """Append lines to metrics.jsonl and metrics.csv, and events for TensorBoard. Only the main process writes.

    Args:
      workdir: Path of the run.
      step: step of the state from which training continues. Lines of later steps, which a killed process left, are
        removed; training writes them again.
      warn: receives one line if there are lines that cannot be read, which are removed.
      project: project of Weights & Biases to which all is sent, too. Empty: none.
      config: config of the run, for Weights & Biases: what JSON can hold.
    """

    def __init__(self, workdir, step=0, warn=warnings.warn, *, project="", config=None):
        self.file = self.events = self.table = self.wandb = None
        if not is_main():
            return
        self.wandb = _WandB(workdir, project, config) if project else None
        kept = [line for line in read(workdir, warn) if line["step"] <= step]
        # Replaced atomically, so that a full disk does not destroy the lines that exist.
        files.write_text(workdir / NAME, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = (workdir / NAME).open("a", encoding="utf-8")
        self.table = _Table(workdir, kept)
        self.events = _Events(workdir / "tensorboard", step + 1)

    def write(self, kind, step, epoch, **values):
        """Write one line: its kind ("train", "train_epoch" or "validation"), step and epoch, and numbers by name."""
        if self.file and self.table and self.events:
            line = {"kind": kind, "step": step, "epoch": epoch, **values}
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
            self.table.write(line)
            scalars = {f"{kind}/{name}": value for name, value in values.items()}
            self.events.write(step, scalars)
            if self.wandb:
                self.wandb.write({"step": step, "epoch": epoch, **scalars})

    def summarize(self, summary):
        """Send the contents of summary.json to Weights & Biases, if it is used."""
        if self.wandb:
            self.wandb.run.summary.update(summary)

    def close(self):
        """Flush and close everything."""
        for opened in (self.file, self.table, self.events, self.wandb):
            if opened:
                opened.close()


class _Table:
    """metrics.csv: a row for each line of metrics.jsonl, a column for each name. A line with a new name rewrites it."""

    def __init__(self, workdir, lines):
        self.workdir = workdir
        self.file: Any = None
        self._restart(lines)

    def write(self, line):
        if line.keys() <= set(self.columns):
            self.writer.writerow(line)
            self.file.flush()
        else:
            self._restart(read(self.workdir))

    def _restart(self, lines):
        self.close()
        self.columns = list(dict.fromkeys(name for line in lines for name in line))
        self.file = (self.workdir / "metrics.csv").open("w", newline="", encoding="utf8")
        self.writer = csv.DictWriter(self.file, self.columns, lineterminator="\n")
        if self.columns:
            self.writer.writeheader()
        self.writer.writerows(lines)
        self.file.flush()

    def close(self):
        if self.file:
            self.file.close()


def import_wandb(project):
    """Return the package wandb. Raise InputError if it is not installed."""
    try:
        wandb = importlib.import_module("wandb")
        if not hasattr(wandb, "init"):  # a folder `wandb`, which the package makes, can be imported too
            raise ImportError("wandb is a folder without the package")
    except ImportError as error:
        reason = f"the package wandb is not installed ({first_line(error)})"
        raise InputError(f"wandb {project}: {reason}; run `pip install wandb`, or leave it out") from None
    return wandb


class _WandB:
    """A run of Weights & Biases, resumed by its id in the file `wandb_id`. WANDB_MODE=offline works as usual."""

    def __init__(self, workdir, project, config):
        wandb, record = import_wandb(project), workdir / "wandb_id"
        if not record.exists():
            files.write_text(record, uuid.uuid4().hex)
        options = {"name": workdir.name, "dir": str(workdir), "config": config, "resume": "allow"}
        try:
            self.run = wandb.init(project=project, id=record.read_text(encoding="utf-8").strip(), **options)
        except Exception as error:  # of a network, an account, a project
            raise InputError(
                f"wandb {project}: {first_line(error)}; run `wandb login`, or set WANDB_MODE=offline, or leave it out"
            ) from error
        # A resumed run repeats steps. wandb's own step may not go back, but a metric may.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def write(self, values):
        self.run.log(values)

    def close(self):
        self.run.finish()


class _Events:
    """One TensorBoard event file: records of protocol buffers. (TensorBoard's own writer would import TensorFlow.)"""

    def __init__(self, folder, first_step):
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self.records = RecordWriter((folder / name).open("wb"))
        self._add(file_version="brain.Event:2")
        # TensorBoard discards what an earlier process wrote from this step on; training writes it again.
        self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step, scalars):
        self._add(
            step=step,
            summary=Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in scalars.items()]),
        )
        self.records.flush()

    def close(self):
        self.records.close()

    def _add(self, **fields):
        self.records.write(Event(wall_time=time.time(), **fields).SerializeToString())


def read(workdir, warn=warnings.warn):
    """Return the lines of a run's metrics.jsonl as dicts, oldest first; [] if there is no such file.

    A last line that is incomplete, because the process was killed, is left out. Other lines that are not those of
    `MetricsLog` are left out too, and `warn` receives one line about them.
    """
    if not (workdir / NAME).exists():
        return []
    *complete, last = (workdir / NAME).read_bytes().split(b"\n")
    lines = [*map(_line, complete), *filter(None, [_line(last)])]
    if damaged := [number for number, line in enumerate(lines, 1) if line is None]:
        count = f"{len(damaged)} of {len(lines)} lines"
        warn(f"{workdir / NAME}: {count} are damaged and left out, the first is line {damaged[0]}")
    return [line for line in lines if line is not None]


def _line(text):
    """Return a line of metrics.jsonl as a dict, or None if it is damaged."""
    try:
        line = json.loads(text)
        numbers = {name: value for name, value in line.items() if name != "kind"}
        whole = isinstance(line["kind"], str) and isinstance(line["step"], int) and "epoch" in line
        return line if whole and all(type(value) in (int, float) for value in numbers.values()) else None
    except (ValueError, AttributeError, KeyError, RecursionError):  # not JSON, no object, without its fields
        return None
