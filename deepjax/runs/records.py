"""What a run writes as it goes: metrics.jsonl, and the same as TensorBoard events."""

import json
import socket
import time

# These modules make their classes at run time, unseen by a type checker.
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from deepjax import files


class Records:
    """Appends records to metrics.jsonl and TensorBoard.

    Args:
      workdir: Path of the run.
      step: of the state that training continues from. Records of later steps, left by a process that was killed, are
        dropped: they come again.
    """

    def __init__(self, workdir, step=0):
        path = workdir / "metrics.jsonl"
        kept = [record for record in read(path) if record["step"] <= step] if path.exists() else []
        files.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.file = path.open("a")
        self.events = _Events(workdir / "tensorboard", step + 1)

    def write(self, kind, step, epoch, **values):
        """One record: kind "train" or "validation", the step it was taken at, numbers by name."""
        self.file.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **values}) + "\n")
        self.file.flush()
        self.events.write(step, {f"{kind}/{name}": value for name, value in values.items()})

    def close(self):
        """Flush and close both files."""
        self.file.close()
        self.events.close()


class _Events:
    """One TensorBoard event file: records of protocol buffers. (TensorBoard's own writer would import TensorFlow.)"""

    def __init__(self, folder, first_step):
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self.records = RecordWriter((folder / name).open("wb"))
        self._add(file_version="brain.Event:2")
        # What an earlier process wrote from this step on does not count: it comes again.
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


def read(path):
    """The records of a metrics.jsonl, oldest first. A last line cut short by a kill is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
