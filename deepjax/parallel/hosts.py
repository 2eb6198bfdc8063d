"""Several processes of one program: which one writes files, and how they wait for each other."""

import jax
from jax.experimental import multihost_utils


def is_main():
    """Return whether this process is the one that writes a run's files and prints."""
    return jax.process_index() == 0


def barrier(name):
    """Wait until every process has reached the barrier with this name. A single process does not wait."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
