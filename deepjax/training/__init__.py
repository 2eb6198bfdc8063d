"""Training: the pure step, the state, the setup of a run, and the loop with all input and output.

A config reaches its first update on this path: `loop.train`, `setup.check`, `setup.setup`, `loop.Trainer.run`,
`step.train_step`.
"""

from deepjax.training.averaging import MomentEstimator, mean_parameters, moments_step
from deepjax.training.coordinates import coordinate_check
from deepjax.training.evaluator import Evaluator
from deepjax.training.find_lr import range_test
from deepjax.training.grid import search
from deepjax.training.loop import train
from deepjax.training.non_finite import FailedStep, first_non_finite
from deepjax.training.progress import NotebookDisplay
from deepjax.training.state import TrainState, init_state, parameter_count
from deepjax.training.step import eval_step, train_step

__all__ = [
    "Evaluator",
    "FailedStep",
    "MomentEstimator",
    "NotebookDisplay",
    "TrainState",
    "coordinate_check",
    "eval_step",
    "first_non_finite",
    "init_state",
    "mean_parameters",
    "moments_step",
    "parameter_count",
    "range_test",
    "search",
    "train",
    "train_step",
]
