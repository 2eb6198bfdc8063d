"""The system torch: eager PyTorch, and the parts that torch-compile shares."""

import contextlib

import numpy as np
import torch
from torch import nn

from deepjax.benchmarks import cells
from deepjax.benchmarks.systems import torch_nets
from deepjax.benchmarks.workloads import LEARNING_RATE, MOMENTUM, Workload, data

# Networks that are faster with features last in memory (measured; see docs/benchmarks.md).
CHANNELS_LAST = frozenset(("alexnet", "resnet50", "cifar_resnet", "alexnet_r", "mobilenet_v2"))


def load(job):
    """Return the program of a job."""
    return (Training if job["kind"] == "train" else Inference)(job)


class Base:
    """A network with its batch, on a GPU if there is one, else on the cores of the job."""

    def __init__(self, job):
        torch.set_num_threads(job["threads"])
        self.work, self.dtype = Workload(**job["workload"]), getattr(torch, job["dtype"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.net = torch_nets.network(self.work)
        start(self.net)
        self.net.to(self.device)
        inputs, labels = (torch.from_numpy(np.ascontiguousarray(each)) for each in data(self.work))
        if inputs.is_floating_point():
            inputs = inputs.permute(0, 3, 1, 2)
            if self.work.network in CHANNELS_LAST:
                self.net.to(memory_format=torch.channels_last)
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            inputs = inputs.contiguous() if self.work.network not in CHANNELS_LAST else inputs
        self.inputs, self.labels = inputs.to(self.device), labels.long().to(self.device)

    def prepare(self):
        """Yield the record of the phase "compile"."""
        count = sum(parameter.numel() for parameter in self.net.parameters() if parameter.requires_grad)
        yield {"phase": "compile", "platform": "gpu" if self.device == "cuda" else "cpu", "parameters": count}


class Training(Base):
    """Training steps. In bfloat16, the forward pass runs under autocast, and parameters stay in float32."""

    def __init__(self, job):
        super().__init__(job)
        self.net.train()
        learned = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(learned, LEARNING_RATE, MOMENTUM, fused=True)
        self.loss = torch_nets.loss_of

    def step(self):
        """Take one training step, wait for its end, and return the loss before the update."""
        with self.precision():
            loss = self.loss(self.net, self.inputs, self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()  # waits for the GPU

    def precision(self):
        """Return the context of the forward pass."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device, self.dtype)


class Inference(Base):
    """Forward passes in evaluation mode, without gradients. In bfloat16, parameters are stored in it."""

    def __init__(self, job):
        super().__init__(job)
        self.net.eval().to(self.dtype)
        self.inputs, self.forward = self.inputs.to(self.dtype), self.net

    @torch.no_grad()
    def step(self):
        """Run one forward pass, wait for its end, and return the mean absolute logit."""
        return self.forward(self.inputs).float().abs().mean().item()


def start(net):
    """Set the parameters of a network to the values of `cells.start`, in PyTorch's layout."""
    maps = None  # (features, height, width) of the maps that are flattened
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            maps = module.out_channels
        if isinstance(module, nn.Linear):
            _set(module.weight, _dense(module.in_features, module.out_features, maps))
            maps = None
        elif isinstance(module, nn.LSTM):
            for name, parameter in module.named_parameters():
                _set(
                    parameter,
                    np.zeros(parameter.shape) if "bias" in name else cells.start("gates", parameter.shape[::-1]).T,
                )
        elif isinstance(module, nn.Conv2d):
            features, before, *window = module.weight.shape
            _set(module.weight, cells.start("kernel", (*window, before, features)).transpose(3, 2, 0, 1))
        elif isinstance(module, nn.Embedding):
            _set(module.weight, cells.start("embedding", tuple(module.weight.shape)))
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            _set(bias, np.zeros(bias.shape))


def _dense(inputs, outputs, maps):
    """Return the kernel [outputs, inputs]; PyTorch flattens features first where the other systems have them last."""
    kernel = cells.start("kernel", (inputs, outputs))
    if maps and inputs > maps:
        side = int((inputs // maps) ** 0.5)
        kernel = kernel.reshape(side, side, maps, outputs).transpose(2, 0, 1, 3).reshape(inputs, outputs)
    return kernel.T


def _set(parameter, value):
    parameter.data.copy_(torch.from_numpy(np.ascontiguousarray(value, np.float32)))
