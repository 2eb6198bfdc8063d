"""The trained network in the folder of a run: where another run begins, or what teaches it."""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

from deepjax import data, tasks
from deepjax.runs import workdir
from deepjax.training.model import check_in_zoo, make_model


class Trained(NamedTuple):
    """A network of the zoo with the newest weights that its run is tested with."""

    name: str  # in the zoo
    network: Any  # Linen module
    variables: Any
    standardizer: data.Standardizer
    classes: tuple[str, ...]
    loss: str  # as in its config


def read_trained(folder: Path, argument: str) -> Trained:
    """Return the Trained of a run; `argument` begins the message of an error.

    Raise InputError for a folder without a complete run, and for the run of a module that is not in the zoo.
    """
    from deepjax.runs.weights import read_weights  # imports Orbax

    config, record = workdir.read_config(folder), workdir.read_data(folder)
    remedy = "weights of a module of your own cannot be used; name a run of a network of the zoo"
    check_in_zoo(argument, config.model, remedy)
    network = make_model(config, tasks.find(config.task).outputs(record.classes, record.shape))
    newest = read_weights(folder, config, warnings.warn)[-1]
    statistics: Any = workdir.read_statistics(folder)  # not None, since data.json exists
    return Trained(config.model, network, newest.variables, statistics.standardizer, record.classes, config.loss)
