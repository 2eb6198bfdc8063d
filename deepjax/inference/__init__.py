"""Use of a trained network: load a run or pretrained weights, evaluate, predict, export."""

from deepjax.inference.evaluate import Evaluated, average_weights, evaluate_run, evaluate_runs, load_dataset
from deepjax.inference.export import export
from deepjax.inference.predict import Classifier, load_classifier, load_source, predict
from deepjax.inference.run import Run, load_run
from deepjax.tasks.evaluation import Evaluation, Prediction

__all__ = [
    "Classifier",
    "Evaluated",
    "Evaluation",
    "Prediction",
    "Run",
    "average_weights",
    "evaluate_run",
    "evaluate_runs",
    "export",
    "load_classifier",
    "load_dataset",
    "load_run",
    "load_source",
    "predict",
]
