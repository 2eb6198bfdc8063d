"""The metrics of a run, written as it trains: metrics.jsonl, and the same as TensorBoard events."""

import json
import socket
import time

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
    """

    def __init__(self, workdir, step=0):
        self.file = self.events = None
        if not is_main():
            return
        kept = [line for line in read(workdir) if line["step"] <= step]
        # Replaced atomically, so that a full disk does not destroy the lines that exist.
        files.write_text(workdir / NAME, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = (workdir / NAME).open("a")
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


def read(workdir):
    """Return the lines of a run's metrics.jsonl as dicts, oldest first; [] if there is no such file.

    A last line that is incomplete, because the process was killed, is left out.
    """
    lines = []
    if not (workdir / NAME).exists():
        return lines
    for line in (workdir / NAME).read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
