"""The programs of `deepjax bench loop`: an epoch of `deepjax train`, and its training step alone."""

import contextlib
import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np

from deepjax import data
from deepjax.benchmarks.cells import PHASES
from deepjax.config import Augment, Config, Data, Optimizer
from deepjax.training import setup
from deepjax.training.loop import Trainer
from deepjax.training.progress import Display

EPOCHS = 10**6  # more than are measured
SIDE = 224  # pixels of the images of a folder
SOURCES = {
    "digits": Config(data=Data(augment=Augment(translate=1.0, scale=0.1)), model="cifar_resnet32", batch_size=64),
    "small": Config(model="mlp", model_options={"depth": 3, "width": 64}, batch_size=16),
    "memory": Config(data=Data(augment=Augment(flip=True, crop=4)), model="cifar_resnet20", batch_size=128),
    "jpeg": Config(
        data=Data("folder", image_size=SIDE, augment=Augment(flip=True, area=(0.08, 1.0))),
        model="resnet18",
        batch_size=16,
    ),
}
"""Configs by source of images: the digits with the network of config `digits`, and with a small one; arrays of 32x32
colors, as CIFAR's; a folder of JPEG files."""
MEMORY_IMAGES = 2560


def job(source, folder, program, steps_per_call, workers, cpu=False):
    """Return the worker's job.

    `folder`: for the runs; its folder "images" has those of source "jpeg". `program`: "step", "input" or "train".
    `cpu`: whether to measure processor time.
    """
    found = {"kind": "loop", "source": source, "folder": str(folder), "program": program, "workers": workers}
    return {
        **found,
        "steps_per_call": steps_per_call,
        "phases": (PHASES[0], PHASES[-1]),
        "watch": not workers,
        "cpu": cpu,
    }


def load(job):
    """Return the program of a job."""
    return Loop(job)


class Loop:
    """Epochs of a source's config, without validation and checkpoints.

    program "step": the compiled step on one batch again and again. "input": the same, on the batches of the loader.
    "train": the loop of `deepjax train`, which also records and displays metrics.
    """

    def __init__(self, job):
        folder = Path(job["folder"]) / f"{job['source']}-{job['program']}-{job['steps_per_call']}"
        self.trainer = Trainer(experiment(job), folder, Display(lambda line: None))
        self.experiment, self.program = self.trainer.exp, job["program"]
        self.state, self.metrics, self.rows = self.trainer.state, None, None
        self.epochs = itertools.count()

    def prepare(self):
        """Compile, and yield the record of the phase "compile"."""
        self.step()
        facts = {"steps": self.experiment.loader.steps, "batch": self.experiment.config.batch_size}
        yield {"phase": "compile", "platform": jax.default_backend(), **facts, "model": self.experiment.config.model}

    def step(self):
        """Compute one epoch, wait for its end, and return its number."""
        epoch = next(self.epochs)
        getattr(self, f"_{self.program}")(epoch)
        return float(epoch)

    def _train(self, epoch):
        signals = SimpleNamespace(received=0, released=contextlib.nullcontext)
        self.trainer._train_epoch(signals)
        self.trainer.progress.epochs = epoch + 1
        jax.block_until_ready(self.trainer.state)

    def _input(self, epoch):
        for rows in map(self.experiment.mesh.to_devices, self.experiment.loader.epoch(epoch)):
            self._update(rows)
        jax.block_until_ready(self.state)

    def _step(self, epoch):
        if self.rows is None:
            self.rows = self.experiment.mesh.to_devices(next(iter(self.experiment.loader.epoch(epoch))))
        for _ in range(self.experiment.loader.steps):
            self._update(self.rows)
        jax.block_until_ready(self.state)

    def _update(self, rows):
        before = self.metrics
        self.state, self.metrics = self.trainer.step(self.state, self.experiment.data, rows, self.trainer.key)
        jax.block_until_ready(before)  # as in training, one step is computed while the next one is prepared


def experiment(job):
    """Return the Experiment of a job: its source's config, with random arrays as images of source "memory"."""
    config, arrays = SOURCES[job["source"]], None
    wanted = replace(config.data, workers=job["workers"])
    config = replace(config, data=wanted, optimizer=Optimizer(learning_rate=1e-3), epochs=EPOCHS)
    config = replace(config, steps_per_call=job["steps_per_call"], log_every=10)
    if job["source"] == "jpeg":
        config = replace(config, data_dir=str(Path(job["folder"], "images")))
    if job["source"] == "memory":
        rng = np.random.default_rng(0)
        images = rng.integers(256, size=(MEMORY_IMAGES, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(MEMORY_IMAGES) % 10
        arrays = {"x_train": images, "y_train": labels, "x_test": images[:128], "y_test": labels[:128]}
    return setup.setup(config, setup.check(config), None, dataset=data.as_dataset(arrays))
