"""Checkpoints by Orbax: the newest few and the best, each checked before it is trusted."""

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from deepjax.errors import InputError

DIGESTS = "sha256.json"


class Checkpoints:
    """The folder `checkpoints/` of a run, one subfolder per step.

    Args:
      folder: made on the first save.
      keep: how many of the newest to keep, at least 1; the best by (validation error, loss) is always kept too.
    """

    def __init__(self, folder, keep=2):
        if keep < 1:
            raise InputError(f"keep {keep} must be at least 1")
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax narrates; what goes wrong is raised anyway
        self.folder = Path(folder).absolute()
        best = BestN(get_metric_fn=_rank, reverse=True, n=1, keep_checkpoints_without_metrics=False)
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(n=keep), best]),
                best_fn=lambda metrics: metrics["loss"],  # Orbax wants one to record metrics; `best` decides
                enable_async_checkpointing=False,
            ),
        )

    @property
    def steps(self):
        """Steps that have a checkpoint, in increasing order."""
        return sorted(self.manager.all_steps())

    def save(self, state, progress, metrics=None):
        """Keep a state, what else resuming needs (a JSON dict), and its validation {"error", "loss"}.

        A second save at the same step replaces the first. Raises OSError where the disk refuses.
        """
        step = int(state.step)
        self._check_space(state)
        if step in self.manager.all_steps():
            self.manager.delete(step)
        try:
            self.manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)),
                metrics=metrics,
                force=True,
            )
        except ValueError as error:  # TensorStore reports a full disk as a ValueError, in many words
            reason = re.search(r": ([^:\[]+?) \[os_error_code", str(error))
            reason = reason[1] if reason else _first_line(error)
            raise OSError(f"cannot write checkpoint {self.folder / str(step)}: {reason}") from error
        (self.folder / str(step) / DIGESTS).write_text(json.dumps(_digests(self.folder / str(step))))

    def _check_space(self, state):
        """Raises OSError for a full disk: TensorStore's threads would say it late, and in pages."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 2**18  # and a little for the rest
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"no space left for a checkpoint in {self.folder}: {free:,} of {needed:,} bytes are free")

    def restore(self, step, like):
        """(state, progress) of a step. `like` gives the tree, shapes, dtypes and placement.

        Raises InputError where the checkpoint is missing, damaged, or of another network.
        """
        folder = self.folder / str(step)
        if step not in self.manager.all_steps():
            raise InputError(f"there is no checkpoint {folder}")
        if damage := _damage(folder):
            raise InputError(f"checkpoint {folder} is damaged: {damage}")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            restored = self.manager.restore(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()),
            )
        except Exception as error:  # Orbax raises bare Exception for unreadable arrays
            raise InputError(f"checkpoint {folder} cannot be read: {_first_line(error)}") from error
        return restored["state"], restored["progress"]

    def newest(self, like, warn):
        """(state, progress) of the newest whole checkpoint, or None where there is none at all.

        Each damaged one on the way is told to `warn` (a function of one line), and deleted so that training can write
        its step again. Raises InputError where there are checkpoints but none is whole.
        """
        steps = self.steps
        for i, step in enumerate(reversed(steps)):
            try:
                restored = self.restore(step, like)
            except InputError as error:
                warn(str(error))
                continue
            for damaged in steps[len(steps) - i :]:
                self.manager.delete(damaged)
            return restored
        if steps:
            raise InputError(f"no checkpoint in {self.folder} is whole; use another --workdir to start anew")
        return None

    def best_or_newest(self, like, warn):
        """The state that validated best, or the newest where none was validated or that one is damaged.

        None where there is no checkpoint. Changes nothing on disk.
        """
        newest_first = self.steps[::-1]
        metrics = {step: self.manager.metrics(step) for step in newest_first}
        validated = [step for step in newest_first if metrics[step]]
        best = min(validated, key=lambda step: _rank(metrics[step]), default=None)
        order = newest_first if best is None else [best, *newest_first]
        for step in dict.fromkeys(order):
            try:
                return self.restore(step, like)[0]
            except InputError as error:
                warn(str(error))
        if order:
            raise InputError(f"no checkpoint in {self.folder} is whole; train again in another --workdir")
        return None

    def close(self):
        """Free Orbax's threads."""
        self.manager.close()


def _rank(metrics) -> Any:
    return metrics["error"], metrics["loss"]


def _digests(folder):
    """{relative path: sha256} of all files in a checkpoint."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != DIGESTS:
            with path.open("rb") as file:
                digests[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _damage(folder):
    """What is wrong with a checkpoint's files, in words; '' if nothing is.

    Orbax does notice, but late and with pages of TensorStore's own output. A checkpoint without digests was complete
    (Orbax renames it into place) when the process was killed, before they were written: Orbax judges it alone.
    """
    try:
        expected = json.loads((folder / DIGESTS).read_text())
    except FileNotFoundError:
        return ""
    except ValueError:
        return f"{DIGESTS} is truncated"
    found = _digests(folder)
    for name, digest in expected.items():
        if found.get(name) != digest:
            return f"{name} {'has changed or is truncated' if name in found else 'is missing'}"
    return ""


def _first_line(error):
    return str(error).strip().partition("\n")[0][:200]
