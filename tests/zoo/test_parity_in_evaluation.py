"""torchvision's networks by name against ours in evaluation, with random weights, at a size that leaves odd maps."""

import jax
import numpy as np
import pytest

from deepjax import weights, zoo

EVALUATED = (
    "vgg11_bn", "vgg13", "inception_v3", "resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d",
    "wide_resnet50_2", "densenet121", "densenet169", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b1",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", EVALUATED)
def test_evaluation(parity, name):
    import torch

    module = parity.torch_network(name, 5).eval()
    x = np.random.default_rng(6).normal(size=(3, 81, 99, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = module(torch.tensor(np.moveaxis(x, -1, 1))).numpy()
    network = zoo.create(name)
    variables = weights.from_torch(network, module.state_dict())
    ours = jax.jit(lambda variables, x: network.apply(variables, x, train=False))(variables, x)
    assert parity.difference(ours, theirs) < 1e-4
