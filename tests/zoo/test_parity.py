"""torchvision's networks with random weights against ours. `python tests/parity --all` compares all, at any size."""

import importlib.util

import jax
import numpy as np
import pytest

import helpers
from deepjax import weights, zoo

# One network of each form, in evaluation and training.
TRAINED = (
    "alexnet", "vgg11_bn", "googlenet", "resnet50", "resnext50_32x4d", "densenet121", "mobilenet_v2",
    "mobilenet_v3_small", "efficientnet_b0",
)  # fmt: skip
# In evaluation, at a size that leaves odd maps.
EVALUATED = ("resnet34", "densenet169", "mobilenet_v3_large", "efficientnet_b1")


@pytest.fixture(scope="module")
def parity():
    """tests/parity/__main__.py, as a module."""
    helpers.import_torchvision()
    spec = importlib.util.spec_from_file_location("parity", helpers.ROOT / "tests" / "parity" / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_holds(result):
    assert result.holds, result
    # These are computed in float64. PyTorch's gradient of the hard sigmoid has 1/6 in float32, off by 3e-8.
    assert max(result.train_logits, result.moments, result.gradients) < 1e-6, result


def test_one_unit_a_stage(parity):
    """The smallest of torchvision's residual networks, with which the others' tests share all but the tables."""
    resnet = helpers.import_torchvision().models.resnet
    theirs = resnet.ResNet(resnet.BasicBlock, (1, 1, 1, 1), num_classes=10)
    helpers.randomize_torch(theirs)
    pair = theirs, zoo.residual.resnet((1, 1, 1, 1), 10)
    assert_holds(parity.compare("resnet10", size=64, batch=2, pair=pair))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_evaluation_and_training(parity, name):
    assert_holds(parity.compare(name, size=64, batch=2))


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


@pytest.mark.slow
def test_inception_in_training(parity):
    result = parity.compare("inception_v3", batch=2)  # at 299 pixels, for its auxiliary head
    assert result.holds, result
