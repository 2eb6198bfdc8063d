"""torchvision's networks with random weights against ours. `python tests/parity --all` compares all, at any size."""

import pytest

import helpers
from deepjax import zoo

# Networks of torchvision by name, in evaluation and training. `test_parity_in_evaluation.py` has more of them.
TRAINED = ("alexnet", "googlenet", "mobilenet_v3_small", "efficientnet_b0")


def assert_holds(result):
    assert result.holds, result
    # These are computed in float64. PyTorch's gradient of the hard sigmoid has 1/6 in float32, off by 3e-8.
    assert max(result.train_logits, result.moments, result.gradients) < 1e-6, result


def pair_of(form):
    """(torchvision's, ours): the smallest network of a form, with random parameters."""
    models = helpers.import_torchvision().models
    if form == "dense":
        theirs = models.DenseNet(growth_rate=8, block_config=(2, 1, 2), num_init_features=16, num_classes=10)
        ours = zoo.dense.densenet((2, 1, 2), 10, growth=8, stem_features=16)
    else:
        unit, groups = (models.resnet.BasicBlock, 1) if form == "basic" else (models.resnet.Bottleneck, 2)
        theirs = models.resnet.ResNet(unit, (1, 1, 1, 1), num_classes=10, groups=groups, width_per_group=64 // groups)
        ours = zoo.residual.resnet((1, 1, 1, 1), 10, bottleneck=groups > 1, groups=groups)
    helpers.randomize_torch(theirs)
    return theirs, ours


@pytest.mark.parametrize("form", ["basic", *(pytest.param(f, marks=pytest.mark.slow) for f in ("bottleneck", "dense"))])
def test_one_unit_a_stage(parity, form):
    assert_holds(parity.compare(form, size=32, batch=4, pair=pair_of(form)))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_evaluation_and_training(parity, name):
    assert_holds(parity.compare(name, size=64, batch=2))


@pytest.mark.slow
def test_inception_in_training(parity):
    assert_holds(parity.compare("inception_v3", batch=2))  # at 299 pixels, which its auxiliary head needs
