"""The workloads in plain torch.nn, as a user would write them. Without torchvision."""

import torch
import torch.nn.functional as F
from torch import nn

from deepjax.benchmarks.torch_net import residual_net

HIDDEN = {"fcn_s": (2048, 2048, 2048), "fcn_r": (2048, 4096, 1024)}


def network(work):
    """Return the torch.nn.Module of a workload. It takes images [batch, channels, height, width], or words."""
    inputs = 1
    for size in work.shape:
        inputs *= size
    return {
        "fcn_s": lambda: fcn(inputs, HIDDEN["fcn_s"], work.classes),
        "fcn_r": lambda: fcn(inputs, HIDDEN["fcn_r"], work.classes),
        "alexnet": lambda: alexnet(work.classes, work.options.get("dropout", 0.5)),
        "alexnet_r": lambda: alexnet_r(work.classes),
        "resnet50": lambda: resnet((3, 4, 6, 3), work.classes),
        "cifar_resnet": lambda: residual_net((work.options["depth"] - 2) // 6, 16, work.classes, checkpoint=False),
        "lstm": lambda: LSTM(**work.options),
        "mobilenet_v2": lambda: mobilenet_v2(work.classes),
    }[work.network]()


def fcn(inputs, hidden, classes):
    """Return the net of dense layers of sigmoid units."""
    layers, features = [nn.Flatten()], inputs
    for width in hidden:
        layers += [nn.Linear(features, width), nn.Sigmoid()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


def alexnet(classes, dropout):
    """Return the AlexNet of Krizhevsky 2014 for images of 224x224."""
    convs = ((64, 11, 4, 2, True), (192, 5, 1, 2, True), (384, 3, 1, 1, False), (256, 3, 1, 1, False))
    layers, before = [], 3
    for features, window, stride, padding, pools in (*convs, (256, 3, 1, 1, True)):
        layers += [nn.Conv2d(before, features, window, stride, padding), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)] if pools else []
        before = features
    layers.append(nn.Flatten())
    for inputs in (256 * 6 * 6, 4096):
        layers += [nn.Dropout(dropout), nn.Linear(inputs, 4096), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4096, classes))


def alexnet_r(classes):
    """Return AlexNet-R of Shi et al. 2016 for images of 32x32."""
    layers, before = [], 3
    for features, pool in ((32, nn.MaxPool2d), (32, nn.MaxPool2d), (64, nn.AvgPool2d)):
        layers += [nn.Conv2d(before, features, 5, padding=2), nn.ReLU(), pool(3, 2)]
        before = features
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 3 * 3, classes))


def conv_norm(before, features, window, stride=1, groups=1):
    """Return a convolution without bias, and its batch norm."""
    conv = nn.Conv2d(before, features, window, stride, window // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(features)


class Residual(nn.Module):
    """activation(shortcut(x) + branch(x))."""

    def __init__(self, branch, shortcut=None, activation=None):
        super().__init__()
        self.branch, self.shortcut = branch, shortcut or nn.Identity()
        self.activation = activation or nn.Identity()

    def forward(self, x):
        """x -> the branch's shape."""
        return self.activation(self.shortcut(x) + self.branch(x))


def resnet(units, classes):
    """Return the bottleneck ResNet of He et al. 2015, with the stride in the 3x3 convolutions."""
    layers, before = [*conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for stage, depth in enumerate(units):
        for unit in range(depth):
            features, stride = 64 * 2**stage, 2 if stage > 0 and unit == 0 else 1
            branch = nn.Sequential(
                *conv_norm(before, features, 1),
                nn.ReLU(),
                *conv_norm(features, features, 3, stride),
                nn.ReLU(),
                *conv_norm(features, 4 * features, 1),
            )
            shortcut = None if unit else nn.Sequential(*conv_norm(before, 4 * features, 1, stride))
            layers.append(Residual(branch, shortcut, nn.ReLU()))
            before = 4 * features
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def mobilenet_v2(classes):
    """Return MobileNet v2 of Sandler et al. 2018, table 2."""
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    layers, before = [*conv_norm(3, 32, 3, 2), nn.ReLU6()], 32
    for factor, features, depth, first in table:
        for unit in range(depth):
            hidden, stride = factor * before, 1 if unit else first
            expand = [*conv_norm(before, hidden, 1), nn.ReLU6()] if factor > 1 else []
            depthwise = [*conv_norm(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
            branch = nn.Sequential(*expand, *depthwise, *conv_norm(hidden, features, 1))
            layers.append(Residual(branch) if stride == 1 and before == features else branch)
            before = features
    layers += [*conv_norm(before, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(1280, classes))


class LSTM(nn.Module):
    """Embedding, layers of LSTM cells, logits at each step. Each gate has one bias; PyTorch's second one stays 0."""

    def __init__(self, vocabulary, width, layers):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.cells = nn.LSTM(width, width, layers, batch_first=True)
        for name, parameter in self.cells.named_parameters():
            if name.startswith("bias_ih"):
                parameter.requires_grad_(False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, words):
        """int [batch, time] -> logits [batch, time, vocabulary]."""
        return self.head(self.cells(self.embedding(words))[0])


def loss_of(net, inputs, labels):
    """Return the mean cross entropy of all labels."""
    logits = net(inputs)
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())


def shape_of(work, net):
    """Return the shape of the output for a batch, computed without arrays."""
    shape = work.shape if len(work.shape) == 1 else (work.shape[2], *work.shape[:2])
    kind = torch.long if len(work.shape) == 1 else torch.float32
    return tuple(net.to("meta")(torch.zeros((work.batch, *shape), dtype=kind, device="meta")).shape)
