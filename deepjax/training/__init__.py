"""Training: state, step (pure), sharding (all device placement), loop (all input and output), checkpoints."""

from deepjax.runs.checkpoint import Checkpoints
from deepjax.training.averaging import MomentEstimator, mean_parameters, moments_step
from deepjax.training.evaluate import Evaluation, Evaluator
from deepjax.training.find_lr import range_test
from deepjax.training.loop import train
from deepjax.training.sharding import parallel_eval, parallel_step, replicate, select_devices, split_rows
from deepjax.training.state import TrainState, init_state, parameter_count
from deepjax.training.step import eval_step, train_step

__all__ = [
    "Checkpoints",
    "Evaluation",
    "Evaluator",
    "MomentEstimator",
    "TrainState",
    "eval_step",
    "init_state",
    "mean_parameters",
    "moments_step",
    "parallel_eval",
    "parallel_step",
    "parameter_count",
    "range_test",
    "replicate",
    "select_devices",
    "split_rows",
    "train",
    "train_step",
]
