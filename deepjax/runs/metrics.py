"""The metrics of a run, written as it trains: metrics.jsonl, and the same as TensorBoard events."""

import json
import socket
import time
import warnings

# These modules make their classes at run time, where a type checker cannot find them.
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from deepjax import files
from deepjax.parallel import is_main

NAME = "metrics.jsonl"


class MetricsLog:
    """Append lines to metrics.jsonl and events for TensorBoard. Only the main process writes.

    Args:
      workdir: Path of the run.
      step: step of the state from which training continues. Lines of later steps, which a killed process left, are
        removed; training writes them again.
      warn: receives one line if there are lines that cannot be read, which are removed.
    """

    def __init__(self, workdir, step=0, warn=warnings.warn):
        self.file = self.events = None
        if not is_main():
            return
        kept = [line for line in read(workdir, warn) if line["step"] <= step]
        # Replaced atomically, so that a full disk does not destroy the lines that exist.
        files.write_text(workdir / NAME, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = (workdir / NAME).open("a", encoding="utf-8")
        self.events = _Events(workdir / "tensorboard", step + 1)

    def write(self, kind, step, epoch, **values):
        """Write one line: its kind ("train", "train_epoch" or "validation"), step and epoch, and numbers by name."""
        if self.file and self.events:
            self.file.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **values}) + "\n")
            self.file.flush()
            self.events.write(step, {f"{kind}/{name}": value for name, value in values.items()})

    def close(self):
        """Flush and close both files."""
        for opened in (self.file, self.events):
            if opened:
                opened.close()


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
