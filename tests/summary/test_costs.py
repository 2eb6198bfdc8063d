"""Multiply-adds against PyTorch's and torchvision's numbers, and the operations that the lectures count."""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from deepjax import functional, zoo
from deepjax.layers import Conv
from deepjax.summary import summarize
from deepjax.summary.costs import multiply_adds
from summary.tables import rows, summary_of, totals

# torchvision's table of its networks: pixels, and multiply-adds in units of 10**9, rounded to three places.
TORCHVISION = {
    "alexnet": (224, 0.714),
    "densenet121": (224, 2.834),
    "densenet161": (224, 7.728),
    "densenet169": (224, 3.36),
    "densenet201": (224, 4.291),
    "efficientnet_b0": (224, 0.386),
    "efficientnet_b1": (240, 0.687),
    "efficientnet_b2": (288, 1.088),
    "efficientnet_b3": (300, 1.827),
    "efficientnet_b4": (380, 4.394),
    "efficientnet_b5": (456, 10.266),
    "efficientnet_b6": (528, 19.068),
    "efficientnet_b7": (600, 37.746),
    "googlenet": (224, 1.498),
    "inception_v3": (299, 5.713),
    "mobilenet_v2": (224, 0.301),
    "mobilenet_v3_large": (224, 0.217),
    "mobilenet_v3_small": (224, 0.057),
    "resnet18": (224, 1.814),
    "resnet34": (224, 3.664),
    "resnet50": (224, 4.089),
    "resnet101": (224, 7.801),
    "resnet152": (224, 11.514),
    "resnext50_32x4d": (224, 4.23),
    "resnext101_32x8d": (224, 16.414),
    "resnext101_64x4d": (224, 15.46),
    "vgg11": (224, 7.609),
    "vgg11_bn": (224, 7.609),
    "vgg13": (224, 11.308),
    "vgg13_bn": (224, 11.308),
    "vgg16": (224, 15.47),
    "vgg16_bn": (224, 15.47),
    "vgg19": (224, 19.632),
    "vgg19_bn": (224, 19.632),
    "wide_resnet50_2": (224, 11.398),
    "wide_resnet101_2": (224, 22.753),
}


FAST = "alexnet efficientnet_b0 googlenet resnet18 resnext50_32x4d vgg11_bn"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST.split() else pytest.mark.slow) for name in TORCHVISION],
)
def test_torchvisions_networks_cost_what_it_says(name):
    pixels, billions = TORCHVISION[name]
    layers = summary_of(name, pixels)
    assert round(sum(layer.macs for layer in layers) / 1e9, 3) == billions


def test_imagenet_resolutions():
    layers = {layer.path: layer for layer in summary_of("resnext50_32x4d", 224)}
    outputs = [
        layers[path].output for path in ("stem_conv", "stage1_first/branch/conv3", "stage4_rest/unit/branch/conv3")
    ]
    assert outputs == [(112, 112, 64), (56, 56, 256), (7, 7, 2048)]


class Attention(nn.Module):
    """Queries from one sequence, keys and values from itself."""

    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(4, qkv_features=16, out_features=16)(x)


# Our model, the shape of its input, PyTorch's class and its arguments. PyTorch's input has the features first.
KINDS = {
    "dense": (nn.Dense(7), (3,), "Linear", (3, 7)),
    "1d": (nn.Conv(6, (5,), 2, "VALID"), (33, 3), "Conv1d", (3, 6, 5, 2)),
    "2d": (Conv(8, (3, 5), 2, 2, use_bias=True), (19, 17, 3), "Conv2d", (3, 8, (3, 5), 2, 2)),
    "3d": (nn.Conv(4, (3, 2, 3), padding="VALID"), (9, 8, 7, 2), "Conv3d", (2, 4, (3, 2, 3))),
    "grouped": (Conv(8, (3, 3), 1, 1, groups=4, use_bias=True), (9, 9, 12), "Conv2d", (12, 8, 3, 1, 1, 1, 4)),
    "depthwise": (nn.Conv(12, (5, 5), 2, 2, feature_group_count=6), (9, 9, 6), "Conv2d", (6, 12, 5, 2, 2, 1, 6)),
    "dilated": (Conv(4, (3, 3), 1, "VALID", 3, use_bias=True), (15, 15, 2), "Conv2d", (2, 4, 3, 1, 0, 3)),
    "transposed": (nn.ConvTranspose(4, (3, 5), (2, 3)), (9, 7, 2), "ConvTranspose2d", (2, 4, (3, 5), (2, 3))),
    "attention": (Attention(), (9, 16), "MultiheadAttention", (16, 4)),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_layer_counts_as_in_torch(name):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    model, shape, kind, arguments = KINDS[name]
    theirs = getattr(torch.nn, kind)(*arguments).to("meta")
    attention = name == "attention"
    x = torch.empty((9, 1, 16) if attention else (1, shape[-1], *shape[:-1]), device="meta")
    with FlopCounterMode(display=False) as counter:
        theirs(x, x, x) if attention else theirs(x)
    parameters = sum(p.numel() for p in theirs.parameters())
    assert totals(model, shape) == (parameters, counter.get_total_flops() // 2)


def test_layers_called_twice_and_scans_count_every_time():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(4, name="layer")
            step = nn.Dense(4, name="step")
            steps = nn.scan(
                lambda step, x, _: (step(x), None), variable_axes={"params": 0}, split_rngs={"params": True}, length=6
            )
            return steps(step, layer(layer(x)), None)[0]

    layers = rows(Net(), (4,))
    assert layers["layer"][3:6] == (1, 20, 2 * 16)
    assert layers["step"][3:6] == (6, 6 * 20, 6 * 16)


def test_the_most_expensive_branch_counts():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, wide):
            kernels = self.param("a", nn.initializers.ones, (3, 50)), self.param("b", nn.initializers.ones, (3, 2))
            return jax.lax.cond(wide, lambda x: (x @ kernels[0]).sum(), lambda x: (x @ kernels[1]).sum(), x)

    assert totals(Net(), (3,), wide=jnp.array(False)) == (156, 150)


def test_the_multiply_adds_of_a_gradient():
    """A product of matrices has two more of the same size, one for each factor."""
    jaxpr = jax.make_jaxpr(jax.grad(lambda w, x: (x @ w).sum(), (0, 1)))(jnp.ones((5, 7)), jnp.ones((3, 5))).jaxpr
    assert multiply_adds(jaxpr) == 3 * (3 * 5 * 7)


def test_mapped_modules_and_jitted_ones():
    heads = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=5)
    assert totals(heads(4), (3,)) == (5 * 16, 5 * 12)
    for _ in range(2):  # a jitted module is traced once
        (layer,) = summarize(nn.jit(nn.Dense)(4), (3,))
        assert layer[2:6] == ((4,), 1, 16, 12)


class Resampled(nn.Module):
    """Three changes of size, and a product with a matrix that is not fixed."""

    @nn.compact
    def __call__(self, x):
        x = functional.adaptive_avg_pool(nn.Conv(4, (3, 3), name="conv")(x), 7)
        x = nn.Conv(4, (1, 1), name="between")(x)
        x = functional.adaptive_avg_pool(jax.image.resize(x, (1, 9, 14, 4), "linear"), (3, 1))
        mixed = jnp.einsum("bhwc,hk->bkwc", x, self.param("rows", nn.initializers.ones, (3, 2)))
        return nn.Dense(2, name="head")(mixed.reshape(1, -1))


def test_resamplings_are_poolings_instead_of_products():
    """Reference: PyTorch's FlopCounterMode counts its AdaptiveAvgPool2d and Upsample as nothing."""
    by_path = rows(Resampled(), (13, 11, 3))
    assert [path for path in by_path if path != ""] == [
        "conv",
        "resample(1)",
        "between",
        "resample(2)",
        "head",
    ]
    assert by_path["resample(1)"][1:6] == ("resample", (7, 7, 4), 1, 0, 0)
    assert by_path["resample(2)"].output == (3, 1, 4)
    assert by_path["resample(2)"].field == ((13, 11), (0, 0), (0, 0))
    assert [by_path[path].macs for path in ("conv", "between", "", "head")] == [
        13 * 11 * 9 * 3 * 4,
        7 * 7 * 4 * 4,
        3 * 2 * 4,
        2 * 4 * 2,
    ]
    operations = {row.path: row.macs for row in summarize(Resampled(), (13, 11, 3), count="conv-bias")}
    assert (operations["resample(1)"], operations["resample(2)"]) == (13 * 11 * 4, 7 * 7 * 4)


@pytest.mark.parametrize(
    ("pool", "operations"),
    [
        (lambda x: functional.adaptive_avg_pool(x, 7), 13 * 11 * 8),
        (lambda x: functional.adaptive_avg_pool(x, (13, 11)), 13 * 11 * 8),
        (lambda x: functional.adaptive_avg_pool(x, (13, 5)), 13 * 11 * 8),
        (lambda x: functional.avg_pool(x, 2), 13 * 11 * 8),
        (lambda x: functional.avg_pool(x, 1), 13 * 11 * 8),
        (lambda x: functional.max_pool(x, 1, stride=2), 13 * 11 * 8),
        (lambda x: nn.max_pool(x, (1, 1)), 13 * 11 * 8),
        (lambda x: x[:, ::2, ::2], 7 * 6 * 8),
    ],
)
def test_a_module_that_only_pools(pool, operations):
    class Pooling(nn.Module):
        @nn.compact
        def __call__(self, x):
            return pool(x)

    assert totals(Pooling(), (13, 11, 8)) == (0, 0)
    assert totals(Pooling(), (13, 11, 8), count="conv-bias") == (0, operations)


@pytest.mark.parametrize("pixels", [6, 7])
def test_a_pooling_that_changes_nothing_has_a_row_too(pixels):
    """AlexNet and VGG pool to the size that their maps already have at 224 pixels."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = functional.max_pool(nn.Conv(4, (3, 3), name="conv")(x), 1)
            return nn.Dense(2, name="head")(functional.adaptive_avg_pool(x, 6).reshape(len(x), -1))

    by_path = rows(Net(), (pixels, pixels, 3))
    pooled = "avg_pool(1)" if pixels == 6 else "resample(1)"
    assert [path for path in by_path if path] == ["conv", "max_pool(1)", pooled, "head"]
    assert by_path["max_pool(1)"][1:6] == ("max_pool", (pixels, pixels, 4), 1, 0, 0)
    assert (by_path[pooled].output, by_path[pooled].macs) == ((6, 6, 4), 0)
    operations = {row.path: row.macs for row in summarize(Net(), (pixels, pixels, 3), count="conv-bias")}
    assert (operations["max_pool(1)"], operations[pooled]) == (pixels**2 * 4, pixels**2 * 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar_resnet1202", "resnet152"])
def test_it_takes_seconds(name):
    begin = time.process_time()
    summarize(zoo.create(name, scan=name != "resnet152"), (64, 64, 3))
    assert time.process_time() - begin < 20


# The lectures' count


def test_the_lectures_count_of_other_layers():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.InstanceNorm(name="norm")(nn.Conv(4, (3, 3), use_bias=False, name="conv")(x))
            x = nn.Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x)
            x = nn.Conv(6, (1, 1), 2, use_bias=False, name="strided")(nn.avg_pool(x, (2, 2), (2, 2)))
            return nn.Dense(3, use_bias=False, name="head")(x.max((1, 2)))

    layers = {layer.path: layer[4:6] for layer in summarize(Net(), (16, 16, 2), count="conv-bias")}
    assert layers == {
        "conv": (76, 76 * 256),
        "norm": (0, 0),
        "depthwise": (40, 40 * 256),
        "avg_pool(1)": (0, 4 * 256),
        "strided": (30, 30 * 16 + 4 * 16),
        "global_max_pool(1)": (0, 6 * 16),
        "head": (18, 18),
    }


def test_the_lectures_count_of_shortcuts_without_parameters():
    layers = {layer.path: layer for layer in summary_of("cifar_resnet20", count="conv-bias")}
    assert layers["stage2_first/shortcut"][4:6] == (0, 16 * 16**2)
    assert layers["stage3_rest/unit/branch/conv2"][4:6] == (2 * 36_928, 2 * 36_928 * 64)
