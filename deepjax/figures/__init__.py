"""The lectures' experiments: numbers computed from a seed, a claim about them that is checked, and a drawing of them.

An experiment is one module with

- TITLE: what it shows, as one line.
- SOURCE: the lecture's topic, or the paper, that it comes from.
- USES: which of `full`, `data_dir`, `model`, `weights` and `image` it reads; `deepjax figure` refuses the others.
- numbers(settings) -> a frozen dataclass of plain numbers, texts, tuples and dicts, which is written as JSON. It is a
  pure function of `experiment.Settings`, except for measured times. The usual size takes less than a minute on two
  CPU cores, or the docstring says how long.
- table(numbers) -> (header, rows): what is printed.
- claim(numbers) -> a `experiment.Claim`: what the numbers are to show, with its tolerance, and whether they do.
- draw(numbers) -> a matplotlib Figure.
- animate(numbers) -> a matplotlib Animation, optional; it becomes a GIF beside the drawing.

and one line in FIGURES. `figures/squared_error_sigmoid.py` is the example to follow.
"""

from importlib import import_module
from typing import Any

from deepjax.errors import InputError, choices
from deepjax.figures.experiment import Claim, Settings
from deepjax.figures.result import Result

__all__ = ["FIGURES", "Claim", "Result", "Settings", "find", "run"]

FIGURES = (
    "batch-norm-backward",
    "batch-norm-speed",
    "batch-vs-loop",
    "bn-scale-invariance",
    "color-pca",
    "covariate-shift",
    "data-parallel",
    "deconvnet",
    "degradation",
    "delta-rule",
    "dropconnect",
    "dropout-features",
    "dropout-gradient",
    "dropout-width",
    "filters",
    "forward-reverse",
    "gradient-clipping",
    "group-norm-batch-size",
    "guided-backprop",
    "he-xavier",
    "kernel-factorization",
    "kernel-perceptron",
    "learning-rate",
    "lesions",
    "linear-pieces",
    "linear-regression",
    "looks-linear",
    "loss-surface",
    "lsuv",
    "minibatch-size",
    "occlusion",
    "optimizer-paths",
    "path-lengths",
    "perceptron-bound",
    "pretraining",
    "rbf-l1-l2",
    "rbf-network",
    "receptive-field",
    "relu-vs-tanh",
    "saliency",
    "sawtooth",
    "second-order",
    "shattered-gradients",
    "singular-values",
    "space-folding",
    "spatial-dropout",
    "squared-error-sigmoid",
    "stochastic-depth",
    "universal-approximation",
    "variance-by-depth",
    "weight-scale-disc",
    "xor",
)
"""Names of the experiments. The module of `squared-error-sigmoid` is `figures/squared_error_sigmoid.py`."""


def find(name: str) -> Any:
    """Return the module of an experiment. Raises InputError if there is none of that name."""
    if name not in FIGURES:
        raise InputError(f"figure {name!r} is unknown; {choices(name, FIGURES)}")
    return import_module(f"deepjax.figures.{name.replace('-', '_')}")


def run(name: str, settings: Settings = Settings()) -> Result:
    """Compute an experiment and check its claim. A notebook displays the Result with its table and drawing.

    Raises:
      InputError: there is no experiment of that name, or it cannot be computed.

    >>> run("batch-norm-backward").claim.holds
    True
    """
    experiment = find(name)
    numbers = experiment.numbers(settings)
    return Result(experiment, numbers, experiment.claim(numbers))
