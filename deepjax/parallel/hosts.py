"""Several processes of one program: which one writes files."""

import jax


def is_main():
    """Return whether this process is the one that writes a run's files and prints."""
    return jax.process_index() == 0
