"""`deepjax train`."""

from deepjax.cli.configs import chosen, configured, without_config
from deepjax.cli.terminal import display


def train(arguments):
    """Train a config: one of those that come with deepjax, or a .py file."""
    if (path := chosen("train", arguments)) is None:
        return without_config(arguments)
    config = configured("train", path, arguments)
    from deepjax import cpu, training

    cpu.keep_memory()
    training.train(config, path.stem, log=display())
    return 0
