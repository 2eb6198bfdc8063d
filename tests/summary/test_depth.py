"""The number of layers, against the lecture's list of networks."""

import json

import flax.linen as nn
import pytest

from deepjax import cli, zoo
from deepjax.errors import InputError
from deepjax.summary.depth import count_layers

PRINTED = {
    "lenet5_modern": 5,
    "alexnet_paper": 8,
    "vgg11": 11,
    "vgg19": 19,
    "googlenet": 22,
    "inception_v4": 76,
    "resnet34": 34,
    "resnet152": 152,
    "cifar_preact1001": 1001,
    "stochastic_depth1202": 1202,
}
SLOW = ("googlenet", "inception_v4", "resnet152", "cifar_preact1001", "stochastic_depth1202")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in PRINTED])
def test_networks_have_the_printed_number_of_layers(name):
    assert count_layers(zoo.create(name), zoo.usual_input(name)) == PRINTED[name]


def test_scanned_units_count_like_unrolled_ones():
    nets = [zoo.create("cifar_resnet", depth=26, scan=scan) for scan in (True, False)]
    assert [count_layers(net, (32, 32, 3)) for net in nets] == [26, 26]


def test_only_products_with_parameters_on_the_longest_way_count():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            a = nn.Dense(4)(nn.Dense(4)(x))
            b = nn.WeightNorm(nn.Dense(4))(x)
            self.param("unused", nn.initializers.ones, (3, 3))
            return nn.LayerNorm()(a + b) @ b.T @ nn.initializers.ones(None, (1, 2))

    assert count_layers(Net(), (3,)) == 2
    with pytest.raises(InputError, match="every axis must be at least 1"):
        count_layers(Net(), (0,))


def test_the_command(capsys):
    assert cli.main(["models", "lenet5_modern", "mlp", "--layers"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["model", "layers", "parameters", "input", "trained", "weights"]
    assert lines[1] == ["mlp", "3", "855,050", "32x32x3", "-"]
    assert lines[2][:2] == ["lenet5_modern", "5"]
    assert cli.main(["models", "mlp", "--layers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mlp"]["layers"] == 3
