"""The system torch-compile: PyTorch with the loss (training) or the network (inference) compiled by Inductor."""

import time

import torch

from deepjax.benchmarks.systems import torch_system as eager


def load(job):
    """Return the program of a job."""
    return (Training if job["kind"] == "train" else Inference)(job)


def first_step(program, record):
    """Return the record of the phase "compile", whose time is that of the first step."""
    begin = time.perf_counter()
    loss = program.step()
    return {**record, "seconds": time.perf_counter() - begin, "loss": loss}


class Training(eager.Training):
    """See `torch_system`."""

    def prepare(self):
        """Yield the record of the phase "compile"."""
        self.loss = torch.compile(self.loss)
        for record in super().prepare():
            yield first_step(self, record)


class Inference(eager.Inference):
    """See `torch_system`."""

    def prepare(self):
        """Yield the record of the phase "compile"."""
        self.forward = torch.compile(self.net)
        for record in super().prepare():
            yield first_step(self, record)
