"""Checkpoints by Orbax: the newest few and the best, each checked before it is used."""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from deepjax.errors import InputError, first_line
from deepjax.files import read_json, write_json
from deepjax.parallel import is_main

DIGESTS = "sha256.json"


class Damaged(InputError):
    """A checkpoint whose files are not those that were written."""


class Weights(NamedTuple):
    """What evaluation needs of a checkpoint."""

    step: int
    variables: dict
    """{"params", "batch_stats"}; the moving average or lookahead's slow weights replace the parameters."""


class Checkpoints:
    """The folder `checkpoints/` of a run, one subfolder per step.

    Args:
      folder: created if it does not exist.
      keep: number of the newest checkpoints to keep, at least 1. The best by validation is always kept too.
    """

    def __init__(self, folder, keep=2):
        if keep < 1:
            raise InputError(f"keep {keep} must be at least 1")
        self.folder, self.keep = Path(folder).absolute(), keep
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def steps(self):
        """Steps that have a checkpoint, in increasing order."""
        return sorted(self.manager.all_steps())

    def save(self, state, progress):
        """Save a state, and what else resuming needs. A second save at the same step replaces the first.

        Args:
          state: a TrainState.
          progress: a JSON dict; its ["best"]["step"], if "best" is not None, is the step of the best checkpoint.

        Raise OSError if the disk is full or cannot be written.
        """
        step = int(state.step)
        self._check_space(state)
        if step in self.steps:
            self.manager.delete(step)
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        try:
            self.manager.save(step, args=items, force=True)
        except ValueError as error:  # TensorStore reports a full disk as a ValueError, in many words
            reason = re.search(r": ([^:\[]+?) \[os_error_code", str(error))
            reason = reason[1] if reason else first_line(error)
            raise OSError(f"cannot write checkpoint {self.folder / str(step)}: {reason}") from error
        if is_main():
            write_json(self.folder / str(step) / DIGESTS, _digests(self.folder / str(step)))
        best = progress["best"] and progress["best"]["step"]
        for old in self.steps[: -self.keep]:
            if old != best:
                self.manager.delete(old)

    def _check_space(self, state):
        """Raise OSError for a full disk, which TensorStore's threads would report late and in many lines."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 2**18  # and a little for the rest
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"no space left for a checkpoint in {self.folder}: {free:,} of {needed:,} bytes are free")

    def restore(self, step, like=None) -> tuple[Any, dict]:
        """Return (state, progress) of a step.

        Args:
          step: of the checkpoint.
          like: a state, or its shapes, which gives the tree, dtypes and placement. None: only the weights to evaluate
            are read, as `Weights`, which needs neither the model nor the optimizer.

        Raises:
          InputError: the checkpoint is missing or of another network.
          Damaged: (an InputError) its files are not those that were written.
        """
        folder = self.folder / str(step)
        if step not in self.steps:
            raise InputError(f"there is no checkpoint {folder}")
        expected = _read_digests(folder)
        if expected and (damage := _difference(expected, _digests(folder))):
            raise Damaged(f"checkpoint {folder} is damaged: {damage}")
        try:
            if like is None:
                progress = self.manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))
                return _read_weights(folder / "state"), _checked(progress["progress"])
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
            items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
            restored = self.manager.restore(step, args=items)
            return restored["state"], _checked(restored["progress"])
        except Exception as error:  # Orbax raises bare Exception for unreadable arrays
            kind = InputError if expected else Damaged
            raise kind(f"checkpoint {folder} cannot be read: {first_line(error)}") from error

    def newest(self, like, warn, *, repair=False):
        """Return (state, progress) of the newest complete checkpoint, or None if there is no checkpoint.

        Args:
          like: as in `restore`.
          warn: receives one line for each damaged checkpoint that is skipped.
          repair: whether to move damaged checkpoints to the sibling folder `damaged/`, so that training can write
            their steps again.

        Raise InputError if there are checkpoints, but none is complete.
        """
        steps, damaged = self.steps[::-1], []
        for step in steps:
            try:
                restored = self.restore(step, like)
            except Damaged as error:
                warn(str(error))
                damaged.append(step)
                continue
            if repair and damaged:
                self._set_aside(damaged)
            return restored
        if steps:
            raise InputError(f"no checkpoint in {self.folder} is complete; use another --workdir to start again")
        return None

    def _set_aside(self, steps):
        aside = self.folder.parent / "damaged"
        aside.mkdir(exist_ok=True)
        for step in steps if is_main() else ():
            shutil.rmtree(aside / str(step), ignore_errors=True)
            (self.folder / str(step)).rename(aside / str(step))
        self.manager.reload()

    def best_or_newest(self, like, warn):
        """Return the state that validated best, or the newest if none was validated or the best one is damaged.

        Return None if there is no checkpoint. Nothing on disk changes.
        """
        newest = self.newest(like, warn)
        if newest is None:
            return None
        state, progress = newest
        if progress["best"] and progress["best"]["step"] != int(state.step):
            try:
                return self.restore(progress["best"]["step"], like)[0]
            except InputError as error:
                warn(f"{error}; using the newest state instead of the best")
        return state

    def whole(self, like, warn):
        """Return the states of all checkpoints, oldest first, without damaged ones, each of which `warn` receives.

        Raise InputError if there are checkpoints, but none is complete.
        """
        states = []
        for step in self.steps:
            try:
                states.append(self.restore(step, like)[0])
            except Damaged as error:
                warn(f"{error}; left out")
        if self.steps and not states:
            raise InputError(f"no checkpoint in {self.folder} is complete; use another --workdir to train again")
        return states

    def close(self):
        """Free Orbax's threads."""
        self.manager.close()


def _checked(progress):
    """Return a checkpoint's progress. Raise ValueError unless it is an object whose "best" has a step, or is None."""
    best = progress["best"] if isinstance(progress, dict) else ()
    if best is not None and not (isinstance(best, dict) and isinstance(best.get("step"), int)):
        raise ValueError("its progress names no best step")
    return progress


def _read_weights(path) -> Weights:
    """Read what evaluation needs from a stored TrainState. Shapes and types are those that the checkpoint records."""
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as reader:
        stored: Any = handler.metadata(path).tree
        wanted = {name: stored[name] for name in ("step", "params", "batch_stats", "ema")}
        if _lookahead(stored["opt_state"]):
            wanted["opt_state"] = stored["opt_state"]
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted)
        arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
        found = reader.restore(
            path, args=ocp.args.PyTreeRestore(abstract, restore_args=arguments, partial_restore=True)
        )
    slow = _lookahead(found.get("opt_state"))
    params = found["ema"] or (_over(found["params"], slow["slow"]) if slow else found["params"])
    variables = {"params": params, "batch_stats": found["batch_stats"]}
    return Weights(int(found["step"]), jax.tree.map(jnp.asarray, variables))


def _lookahead(opt_state):
    """Return the stored `optimizers.transforms.LookaheadState`, or None if there is none."""
    if isinstance(opt_state, dict) and opt_state.keys() == {"count", "slow"}:
        return opt_state
    children = opt_state.values() if isinstance(opt_state, dict) else opt_state if isinstance(opt_state, list) else ()
    return next((found for child in children if (found := _lookahead(child))), None)


def _over(params, slow):
    """Return slow weights; frozen parameters have none, and stay."""
    if isinstance(params, dict):
        return {name: _over(value, slow and slow.get(name)) for name, value in params.items()}
    return params if slow is None else slow


def _digests(folder):
    """Return {relative path: sha256} of all files in a checkpoint."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != DIGESTS:
            with path.open("rb") as file:
                digests[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _read_digests(folder):
    """Return {relative path: sha256} as recorded, or {} if there is no such record or it is damaged.

    A process that is killed before it writes the record leaves none. Orbax notices damage too, but late and with pages
    of TensorStore's own output. It renames a complete checkpoint into place; one without digests is therefore complete,
    and Orbax judges it alone.
    """
    try:
        found = read_json(folder / DIGESTS)
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}


def _difference(expected, found):
    """Return the first file that is missing or has changed, in words; '' if there is none."""
    for name, digest in expected.items():
        if found.get(name) != digest:
            return f"{name} {'has changed or is truncated' if name in found else 'is missing'}"
    return ""
