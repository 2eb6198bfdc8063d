"""The CIFAR residual network in PyTorch: eager, with checkpointed units, or compiled. PyTorch is imported on use."""

import time
from itertools import pairwise

from deepjax.benchmarks import cells


def residual_net(units, width, classes, checkpoint):
    """Return the torch.nn.Module. With `checkpoint`, the backward pass recomputes each unit from its stored input."""
    import torch.nn.functional as F
    from torch import nn
    from torch.utils.checkpoint import checkpoint as recomputed

    class Unit(nn.Module):
        def __init__(self, features_in, features, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(features_in, features, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(features)
            self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(features)
            self.stride, self.more = stride, features - features_in

        def forward(self, x):
            y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
            if self.more:
                x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
            return F.relu(x + y)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
            features = [width] + [width * 2**stage for stage in range(3) for _ in range(units)]
            self.units = nn.ModuleList(Unit(a, b, 1 if a == b else 2) for a, b in pairwise(features))
            self.head = nn.Linear(4 * width, classes)

        def forward(self, x):
            x = F.relu(self.norm(self.conv(x)))
            for unit in self.units:
                x = recomputed(unit, x, use_reentrant=False) if checkpoint else unit(x)
            return self.head(x.mean((2, 3)))

    return Net()


class TorchProgram:
    """A cell's program in PyTorch, like `programs.Program`, on a GPU if there is one, else on all cores."""

    def __init__(self, cell):
        import torch

        self.torch, self.cell = torch, cell
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(cells.cores())
        self.net = residual_net((cell.depth - 2) // 6, cell.width, cells.CLASSES, cell.variant == "torch-checkpoint")
        for path, parameter in self.net.named_parameters():
            parameter.data.copy_(torch.from_numpy(_start(path, tuple(parameter.shape))))
        self.net.to(self.device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), cells.LEARNING_RATE, cells.MOMENTUM)
        images, labels = cells.images(cell.batch)
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(self.device)
        self.labels = torch.from_numpy(labels).long().to(self.device)
        self.forward = self.net

    def prepare(self):
        """Yield the record of the phase "compile". For torch.compile, its time is that of the first step."""
        platform = "gpu" if self.device == "cuda" else "cpu"
        if self.cell.variant != "torch-compile":
            yield {"phase": "compile", "platform": platform}
            return
        self.forward = self.torch.compile(self.net)
        start = time.perf_counter()
        loss = self.step()
        yield {"phase": "compile", "platform": platform, "seconds": time.perf_counter() - start, "loss": loss}

    def step(self):
        """Take one training step, wait for its end, and return the loss before the update."""
        loss = self.torch.nn.functional.cross_entropy(self.forward(self.images), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()  # waits for the GPU


def _start(path, shape):
    """Return the array of `cells.start` in PyTorch's layout."""
    if path.endswith("bias") or len(shape) == 1:
        return cells.start("bias" if path.endswith("bias") else "scale", shape)
    kernel = cells.start("kernel", (*shape[2:], shape[1], shape[0]))
    return kernel.transpose(-1, -2, *range(kernel.ndim - 2)).copy()
