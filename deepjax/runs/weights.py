"""The weights that a run is used with, read from its folder without building the model or the optimizer."""

import contextlib
from pathlib import Path

from flax.traverse_util import flatten_dict

from deepjax.errors import InputError
from deepjax.foreign import check_finite
from deepjax.runs.checkpoint import Checkpoints, Weights


def final_checkpoints(config, folder, *, make=True):
    """Return the Checkpoints of what a run tests instead of its best state, or None if it tests the best state.

    `averaged/` has the one model of SWA, `snapshots/` one model for every finished cycle. Without `make`, return None
    if there is no such folder yet.
    """
    path = Path(folder) / ("averaged" if config.swa_start else "snapshots")
    if not (config.swa_start or config.snapshots) or not (make or path.exists()):
        return None
    return Checkpoints(path, max(config.snapshots, 1))


def read_weights(folder, config, warn) -> list[Weights]:
    """Return the weights that a run's summary has the test error of, oldest first.

    These are those of the state that validated best (the newest, without validation); the averaged weights of SWA; or
    all snapshots. While such a run is unfinished: the snapshots so far; before the first one, and for SWA, the best
    state.

    Args:
      folder: folder of the run.
      config: config of the run.
      warn: receives one line for each damaged checkpoint that is skipped.

    Raises:
      InputError: there is no checkpoint, none is complete, or one has weights that are not finite.
    """
    found = _read(folder, config, warn)
    for weights in found:
        leaves = {"/".join(path): leaf for path, leaf in flatten_dict(weights.variables).items()}
        check_finite(leaves, f"workdir {folder}: step {weights.step},")
    return found


def _read(folder, config, warn) -> list[Weights]:
    missing = InputError(f"workdir {folder} has no checkpoint yet; `deepjax train` with --workdir {folder} makes one")
    if not (Path(folder) / "checkpoints").exists():
        raise missing
    with contextlib.ExitStack() as stack:
        # The average of the epochs before, while a run has more epochs to do, is not that of its newest epochs.
        stale = config.swa_start and not (Path(folder) / "summary.json").exists()
        if not stale and (final := final_checkpoints(config, folder, make=False)):
            stack.callback(final.close)
            if weights := final.whole(None, warn):
                return weights
        checkpoints = Checkpoints(Path(folder) / "checkpoints", config.keep)
        stack.callback(checkpoints.close)
        best = checkpoints.best_or_newest(None, warn)
        if best is None:
            raise missing
        return [best]
