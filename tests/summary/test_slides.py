"""The tables that the lectures print, number by number."""

import functools
import json

import flax.linen as nn
import pytest

from deepjax import cli, zoo
from deepjax.layers import Conv
from deepjax.summary import COUNTS, summarize
from deepjax.summary.slides import slide

RESNET34 = """
input(224, 3) | 0 | 0 | 224x224x3
conv(7, 64, p3, s2) | 9,472 | 118,816,768 | 112x112x64
pool(3, 2, p1) | 0 | 802,816 | 56x56x64
3 x res(3, 64) | 221,568 | 694,837,248 | 56x56x64
res(3, 128, s2) | 229,760 | 180,182,016 | 28x28x128
3 x res(3, 128) | 885,504 | 694,235,136 | 28x28x128
res(3, 256, s2) | 918,272 | 180,006,400 | 14x14x256
5 x res(3, 256) | 5,900,800 | 1,156,556,800 | 14x14x256
res(3, 512, s2) | 3,671,552 | 179,918,592 | 7x7x512
2 x res(3, 512) | 9,439,232 | 462,522,368 | 7x7x512
avg(7) | 0 | 25,088 | 512
fc(1000) | 513,000 | 513,000 | 1000
softmax | 0 | 1,000 | 1000
"""
RESNET101 = """
input(224, 3) | 0 | 0 | 224x224x3
conv(7, 64, p3, s2) | 9,472 | 118,816,768 | 112x112x64
pool(3, 2, p1) | 0 | 802,816 | 56x56x64
3 x res(3, (64, 256)) | 214,400 | 672,358,400 | 56x56x256
res(3, (128, 512), s2) | 378,112 | 296,640,512 | 28x28x512
3 x res(3, (128, 512)) | 837,888 | 656,904,192 | 28x28x512
res(3, (256, 1024), s2) | 1,509,888 | 296,038,400 | 14x14x1024
22 x res(3, (256, 1024)) | 24,544,256 | 4,810,674,176 | 14x14x1024
res(3, (512, 2048), s2) | 6,034,432 | 295,737,344 | 7x7x2048
2 x res(3, (512, 2048)) | 8,919,040 | 437,032,960 | 7x7x2048
avg(7) | 0 | 100,352 | 2048
fc(1000) | 2,049,000 | 2,049,000 | 1000
softmax | 0 | 1,000 | 1000
"""


def printed(line):
    name = f"{line.repeats} x {line.layer}" if line.repeats > 1 else line.layer
    return f"{name} | {line.parameters:,} | {line.operations:,} | {'x'.join(map(str, line.volume))}"


def lines_of(name, count):
    return slide(zoo.create(name), zoo.usual_input(name), count=count)


@pytest.mark.parametrize(("name", "table"), [("resnet34", RESNET34), ("resnet101_paper", RESNET101)])
def test_every_number_of_the_lectures_residual_networks(name, table):
    lines = lines_of(name, "conv-bias")
    assert [printed(line) for line in lines] == table.strip().splitlines()


@pytest.mark.parametrize("count", COUNTS)
def test_lines_have_the_sums_of_the_layers(count):
    """Zeros instead of projections, scanned units, norms of their own."""
    model = zoo.create("cifar_preact", depth=29, shortcut="A")
    lines, layers = slide(model, (32, 32, 3), count=count), summarize(model, (32, 32, 3), count=count)
    assert sum(line.parameters for line in lines) == sum(layer.parameters for layer in layers)
    assert sum(line.operations for line in lines) == sum(layer.macs for layer in layers)


def test_alexnet_layer_by_layer():
    """The slide cuts or rounds to its last digit. It counts convolution 4 without the two groups that it has."""
    theirs = [  # parameters and operations, from the image on
        (35e3, 1e3, 105e6, 1e6),
        (307e3, 1e3, 223e6, 1e6),
        (884e3, 1e3, 149e6, 1e6),
        (1.3e6, 1e5, 224e6, 1e6),
        (442e3, 1e3, 74e6, 1e6),
        (37e6, 1e6, 37e6, 1e6),
        (16e6, 1e6, 16e6, 1e6),
        (4e6, 1e6, 4e6, 1e6),
    ]
    ours = [[line.parameters, line.operations] for line in lines_of("alexnet_paper", "kernels") if line.parameters]
    assert ours[3] == [192 * 9 * 384, 192 * 9 * 384 * 13**2]
    ours[3] = [2 * n for n in ours[3]]  # without groups
    for (parameters, operations), (p, unit, ops, ops_unit) in zip(ours, theirs, strict=True):
        assert abs(parameters - p) < unit
        assert abs(operations - ops) < ops_unit


@pytest.mark.slow
def test_googlenets_rows():
    """A K is 1,024 there. Parameters of 4a to 5b, the first convolution, and operations of 4a and 5a are slips."""
    lines = {line.layer: line for line in lines_of("googlenet_paper", "kernels")}
    reduced = [lines["conv(1, 64)"], lines["conv(3, 192, p1)"]]
    assert sum(line.parameters for line in reduced) == 112 * 1024
    assert round(sum(line.operations for line in reduced) / 1e6) == 360
    for name, kilo in (("stage3a", 159), ("stage3b", 380), ("fc(1000)", 1000)):
        assert abs(lines[name].parameters / 1024 - kilo) < 1.01
    exact = {  # from the table's own numbers of filters
        "stage4a": 375_552,
        "stage4b": 448_512,
        "stage4c": 509_440,
        "stage4d": 604_672,
        "stage4e": 867_328,
        "stage5a": 1_042_432,
        "stage5b": 1_442_816,
    }
    assert {name: lines[name].parameters for name in exact} == exact
    operations = {"3a": 128, "3b": 304, "4b": 88, "4c": 100, "4d": 119, "4e": 170, "5b": 71}
    assert {name: round(lines[f"stage{name}"].operations / 1e6) for name in operations} == operations
    volumes = [line.volume for name, line in lines.items() if name.startswith("stage")]
    assert [volume[-1] for volume in volumes] == [256, 480, 512, 512, 512, 528, 832, 832, 1024]
    assert [volume[0] for volume in volumes] == [28] * 2 + [14] * 5 + [7] * 2


@pytest.mark.parametrize(
    ("network", "parameters"),
    [("vgg11_lrn", 133), ("vgg13", 133), ("vgg16_1x1", 134), ("vgg16", 138), ("vgg19", 144)],
)
def test_vgg_has_the_printed_millions_of_parameters(network, parameters):
    assert round(zoo.parameter_count(network) / 1e6) == parameters


def test_the_growing_receptive_field():
    """Two 3x3, a pool to half the size, two 3x3: 3, 5, 6, 10, 14 pixels."""
    conv = functools.partial(nn.Conv, 4, (3, 3))
    net = nn.Sequential([conv(), conv(), lambda x: nn.max_pool(x, (2, 2), (2, 2)), conv(), conv()])
    layers = summarize(net, (28, 28, 1))
    assert [layer.output[0] for layer in layers] == [28, 28, 14, 14, 14]
    assert [layer.field.size[0] for layer in layers] == [3, 5, 6, 10, 14]


def test_words_for_other_layers():
    def words(model, shape):
        lines = slide(model, shape, count="conv-bias")
        return [line.layer for line in lines[1:]]

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = Conv(4, (1, 7), (1, 2), (0, 3), name="wide")(x)
            x = nn.LayerNorm()(Conv(8, (3, 3), 1, 2, 2, groups=4, name="grouped")(x))
            x = nn.avg_pool(x, (2, 2), (2, 2)).mean((1, 2))
            return nn.Dense(5)(x)

    assert words(Net(), (16, 8, 3)) == [
        "conv(1x7, 4, p0x3, s1x2)",
        "conv(3, 8, p2, g4, d2)",
        "avg(2, 2)",
        "avg(8x2)",
        "fc(5)",
    ]


def test_the_command(capsys):
    assert cli.main(["summary", "cifar_resnet20", "--style", "slide"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "parameters", "operations", "Mflop", "volume"]
    assert lines[3].split("  ")[0] == "3 x res(3, 16)"
    assert lines[-1] == "cifar_resnet20: 268,336 parameters, 40,551,040 operations (0.041 G)"
    assert cli.main(["summary", "cifar_resnet20", "--style", "slide", "--count", "conv-bias", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["operations"] == sum(line["operations"] for line in record["lines"])
    assert record["lines"][-1] == {
        "layer": "softmax",
        "repeats": 1,
        "parameters": 0,
        "operations": 10,
        "volume": [10],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--style", "slides"], "style 'slides' is unknown; did you mean 'slide'"),
        (["--style", "slide", "--level", "1"], "--level 1 is for style layers; leave it out"),
        (["--style", "slide", "--count", "flops"], "count 'flops' is unknown"),
    ],
)
def test_options_are_checked(options, message, capsys):
    assert cli.main(["summary", "mlp", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mnist_highway", "mobilenet_v3_small"])
def test_units_of_dense_layers_and_with_squeeze_and_excitation(name):
    lines = slide(zoo.create(name), zoo.usual_input(name))
    assert sum(line.parameters for line in lines) > 0
