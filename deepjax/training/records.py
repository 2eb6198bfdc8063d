"""What a run writes as it goes: metrics.jsonl, and the same as TensorBoard events."""

import json

from tensorboardX import SummaryWriter


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
        # Written beside and renamed, so that a full disk does not cost the records there are.
        beside = path.with_suffix(".tmp")
        beside.write_text("".join(json.dumps(record) + "\n" for record in kept))
        beside.replace(path)
        self.file = path.open("a")
        self.events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if kept else None)

    def write(self, kind, step, epoch, **values):
        """One record: kind "train" or "validation", the step it was taken at, numbers by name."""
        self.file.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.events.add_scalar(f"{kind}/{name}", value, step)

    def close(self):
        """Flush and close both files."""
        self.file.close()
        self.events.close()


def read(path):
    """The records of a metrics.jsonl, oldest first. A last line cut short by a kill is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
