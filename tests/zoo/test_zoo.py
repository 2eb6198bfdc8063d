"""What all networks share, as one table: counts, shapes, gradients, options, and what bad input gets."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import layers, zoo
from deepjax.errors import InputError
from deepjax.units import makes_batch_norm
from deepjax.zoo.network import GENERAL
from helpers import draw_variables

KEY = jax.random.key(0)
ROWS, CLASSES = 6, 5

COUNTS = {  # parameters as published, in the papers' text or by torchvision; other families' are in their tests
    "cifar_resnet20": 269_722,
    "cifar_resnet32": 464_154,
    "cifar_resnet44": 658_586,
    "cifar_resnet56": 853_018,
    "cifar_resnet110": 1_727_962,
    "cifar_resnet1202": 19_421_274,
    "cifar_preact164": 1_703_258,
    "cifar_preact1001": 10_327_706,
    "stochastic_depth110": 1_727_962,
    "stochastic_depth1202": 19_421_274,
    "wrn_28_10": 36_479_194,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet50_paper": 25_557_032,
    "resnet101_paper": 44_549_160,
    "resnet152_paper": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "shake_shake26_2x96d": 26_192_922,
    "lenet5_modern": 61_706,
    "mnist_convnet": 105_506,
    "mnist_cnn": 207_356,
    "cifar_asymmetric": 549_156,
    "cifar_asymmetric_2m": 2_038_564,
    "alexnet_r": 85_098,
    "fcn_s": 117_997_696,
    "fcn_r": 14_205_962,
}
ROUNDED = {  # millions, in the papers' tables
    "wrn_40_4": 8.9,
    "wrn_16_8": 11.0,
    "resnext29_8x64d": 34.4,
    "resnext29_16x64d": 68.1,
    "shake_shake26_2x32d": 2.9,
    "shake_shake26_2x64d": 11.7,
}
FIXUP = {"norm": "none", "branch_init": "fixup"}
SKIP_INIT = {"norm": "none", "branch_init": "skip_init"}
SMALL = {  # one of each kind, as small as it can be: the network, then what differs; "name: what" is a second form
    "cifar_resnet": {"depth": 14, "width": 4},
    "cifar_resnet: fixup": {"depth": 8, "width": 4, "shortcut": "B", **FIXUP},
    "cifar_resnet: skip_init": {"depth": 8, "width": 4, "shortcut": "C", **SKIP_INIT},
    "cifar_plain": {"depth": 14, "width": 4},
    "cifar_preact": {"depth": 20, "width": 4},
    "cifar_preact: fixup": {"depth": 11, "width": 4, **FIXUP},
    "wide_resnet": {"depth": 10, "widen": 1},
    "cifar_resnext": {"depth": 11, "groups": 2, "group_width": 2},
    "stochastic_depth": {"depth": 14, "width": 4, "survival": 1.0},
    "resnet18": {"width": 4},
    "resnet50": {"width": 4},
    "plain18": {"width": 8},
    "cifar_revnet": {"depth": 14, "width": 8},
    "shake_shake": {"depth": 8, "width": 4},
    "highway": {"depth": 5, "width": 8},
    "mnist_highway": {"depth": 4, "width": 4},
    "cifar_highway": {"depth": 4, "width": 4, "norm": "batch"},
    "mlp": {"depth": 4, "width": 16},
    "mlp: batch norm": {"depth": 4, "width": 16, "norm": "batch"},
    "plain_cnn": {"depth": 4, "width": 8},
    "polynomial": {"degree": 2},
    "rbf": {"units": 3},
    "mnist_cnn": {"width": 4},
    "cifar_asymmetric": {"width": 4, "norm": "batch"},
    "monster": {"depth": 1, "width": 8},
    "lenet5": {},
    "lenet5_modern": {"norm": "batch", "order": "last"},
    "mnist_convnet": {},
    "fcn_r": {},
    "alexnet_r": {},
    "nin": {},
    "all_cnn_c": {"input_dropout": 0.0},
    "cifar_densenet": {"depth": 10, "growth": 4},
    "mobilenet_v1": {"width": 0.1},
    "mobilenet_v3_small": {"width": 0.1},
    "efficientnet_b0": {"width": 0.1, "depth": 0.1, "survival": 1.0},
    "xception": {"width": 0.02, "middle": 1},
    "fitnet1": {"norm": "batch"},
    "mcdnn": {"columns": 2},
    "st_cnn": {"width": 4},
}
# One of each family. Masks and gradients of the large families' networks are tested in these families' own files.
COMPUTED = (
    "cifar_resnet", "wide_resnet", "cifar_revnet", "shake_shake", "mnist_highway", "cifar_densenet", "mlp: batch norm",
    "mnist_cnn", "lenet5_modern", "monster", "alexnet_r", "all_cnn_c",
)  # fmt: skip


def small(case, **options):
    name = case.split(":")[0]
    rates = {"dropout": 0.0} if "dropout" in zoo.options_of(name) else {}
    return zoo.create(name, SMALL[case] | rates | options, num_classes=CLASSES)


def smallest(model, rows=ROWS):
    """Images of the smallest size that a network takes, but at least 4x4 pixels, so that batch norms have numbers."""
    side = max(model.min_size, 4)
    return np.random.default_rng(1).standard_normal((rows, side, side, model.usual_input[-1])).astype(np.float32)


# Shapes and counts, without computing


@pytest.mark.parametrize("name", COUNTS | ROUNDED)
def test_logits_and_parameters_at_the_usual_size(name):
    model = zoo.create(name)
    x = jnp.zeros((2, *model.usual_input))
    output, variables = jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False))
    assert output.shape == (2, model.num_classes)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == COUNTS.get(name, count)
    assert abs(count / 1e6 - ROUNDED.get(name, count / 1e6)) < 0.06


@pytest.mark.parametrize("case", SMALL)
def test_features_logits_and_the_minimum_size(case):
    model = small(case)
    x = smallest(model, 2)

    def call(model, x):
        return jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False))

    logits, variables = call(model, x)
    assert logits.shape == (2, CLASSES)
    maps, without = call(small(case, features_only=True), x)
    assert {map.shape[0] for map in maps.values()} == {2}
    assert set(without.get("params", ())) < set(variables["params"]) or "head" not in variables["params"]
    pooled = jax.eval_shape(partial(small(case, return_logits=False).apply, train=False), variables, x)
    assert pooled.ndim == 2
    assert pooled.shape[0] == 2
    if model.min_size > 1:
        with pytest.raises(InputError, match=f"is below this network's minimum of {model.min_size}x{model.min_size}"):
            call(model, x[:, : model.min_size - 1])
    if case.split(":")[0] not in ("mlp", "highway", "fcn_r", "polynomial", "rbf"):  # these flatten inputs of any shape
        with pytest.raises(InputError, match="images must be"):
            call(model, x[0])


# Numbers, in one program for each network


@pytest.mark.parametrize("case", COMPUTED)
def test_forward_and_backward(case):
    """Evaluation sees one row at a time; masked rows do not reach training; every parameter of each unit learns."""
    model = small(case)
    if len(getattr(model, "depths", ())) == len(getattr(model, "features", ())) == 3:  # of stages, two will do
        model = model.clone(depths=(1, 2), features=model.features[:2])
    x, mask = smallest(model), np.arange(ROWS) < ROWS - 1
    variables = draw_variables(model, x, gain=2.0)
    weights = np.random.default_rng(2).standard_normal((ROWS - 1, CLASSES)).astype(np.float32)

    @jax.jit
    def run(x):
        def loss(params):
            call = {"train": True, "mask": mask, "mutable": ["batch_stats"], "rngs": {"dropout": KEY}}
            logits, new = model.apply({**variables, "params": params}, x, **call)
            return (logits[: ROWS - 1] * weights).sum(), (logits[: ROWS - 1], new)

        (_, trained), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return model.apply(variables, x, train=False), trained, gradients

    other = x.copy()
    other[-1] = 30 * x[-1] + 3
    (logits, trained, gradients), (others, *same) = (jax.device_get(run(each)) for each in (x, other))
    assert np.isfinite(logits).all()
    assert_allclose(others[:-1], logits[:-1], rtol=1e-5, atol=1e-5)
    assert not np.allclose(others[-1], logits[-1])
    chex.assert_trees_all_close(same, [trained, gradients], rtol=1e-4, atol=1e-5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        units = leaf.reshape(len(leaf), -1) if "['unit']" in jax.tree_util.keystr(path) else leaf.reshape(1, -1)
        assert np.isfinite(leaf).all(), path
        assert (np.abs(units).max(1) > 0).all(), path


# Options


def test_options_are_those_that_the_name_leaves_open():
    common = {"width", "shortcut", "norm", "dropout", "scan", "dtype", *GENERAL}
    assert set(zoo.options_of("cifar_resnet20")) == {"stem_stride", "branch_init", "order", *common}
    assert set(zoo.options_of("cifar_preact164")) == {"stem_stride", "branch_init", *common}
    assert set(zoo.options_of("resnext50_32x4d")) == {"branch_init", "order", *common}
    assert set(zoo.options_of("plain34")) == {"order", *common}
    assert zoo.options_of("mlp") == GENERAL | {
        "depth": 3,
        "width": 256,
        "init": "he",
        "scale": 0.01,
        "norm": "none",
        "order": "post",
        "activation": "relu",
        "dropout": 0.0,
        "scan": True,
        "dtype": None,
    }


def test_networks_are_values():
    """Equal options make equal networks; numbers may come from NumPy; options as a mapping or by name."""
    for name in zoo.MODELS:
        assert zoo.create(name) == zoo.create(name)
        hash(zoo.create(name))
    assert zoo.create("resnet18").num_classes == 1000
    assert zoo.create("mlp", {"dropout": 0}, num_classes=np.int64(3)) == zoo.create("mlp", num_classes=3, dropout=0.0)


def test_a_norm_of_your_own():
    def names(norm):
        model = zoo.create("cifar_resnet", depth=8, width=4, norm=norm)
        variables = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 8, 8, 3)), train=False))
        return {collection: set(tree["stem_norm"]) for collection, tree in variables.items() if "stem_norm" in tree}

    both = {"params": {"scale", "bias"}, "batch_stats": {"mean", "var"}}
    assert names(layers.GhostBatchNorm) == names("batch") == both
    assert names("layer") == {"params": {"scale", "bias"}}
    assert names(None) == names("none") == {}


def test_a_factory_need_not_take_more_than_a_name_and_a_scale():
    def own(kind):
        return lambda name, scale_init=None: kind(name=name)

    class Inside(nn.Module):
        @nn.compact
        def __call__(self, x):
            found = [makes_batch_norm(own(kind)) for kind in (nn.BatchNorm, layers.BatchNorm, nn.LayerNorm)]
            return nn.LayerNorm(name="norm")(x), found  # the name is still free

    (_, found), _ = Inside().init_with_output(KEY, jnp.zeros((1, 3)))
    assert found == [True, True, False]
    assert zoo.create("resnet18", norm=own(nn.BatchNorm)).torch_names() == zoo.create("resnet18").torch_names()
    with pytest.raises(InputError, match="torchvision has no such network"):
        zoo.create("resnet18", norm=own(nn.LayerNorm)).torch_names()


BAD = [  # (network, options, what the message says)
    ("resnet19", {}, "model 'resnet19' is unknown; did you mean 'resnet18'"),
    ("zzz", {}, r"choose from \d+, such as \w+, \w+, \w+, \w+, \w+$"),
    (["mlp"], {}, r"model \['mlp'\] is unknown"),
    ("cifar_resnet20", {"widht": 4}, "no option 'widht'; did you mean 'width'"),
    ("cifar_resnet20", {"depth": 20}, "no option 'depth'"),
    ("cifar_resnet20", {"join": 4}, "no option 'join'"),
    ("cifar_resnet", {"name": "stem"}, "name is not an option; choose the model by its own argument"),
    ("cifar_resnet", {"num_classes": 7}, "num_classes is not an option; set the number of classes"),
    ("cifar_resnet", {"parent": None}, "no option 'parent'"),
    ("cifar_resnet", {"depth": 20.0}, "option depth of model cifar_resnet is 20.0; it must be int, such as 32"),
    ("cifar_resnet", {"depth": "20"}, "depth of model cifar_resnet is '20'; it must be int"),
    ("cifar_resnet", {"depth": True}, "must be int"),
    ("cifar_resnet", {"depth": [20]}, "must be int"),
    ("cifar_resnet", {"depth": None}, "must be int"),
    ("cifar_resnet", {"scan": 1}, "must be bool"),
    ("cifar_resnet", {"shortcut": 1}, "must be str"),
    ("cifar_resnet", {"norm": 1}, "must be str"),
    ("cifar_resnet", {"norm": ["batch"]}, "must be str"),
    ("cifar_resnet", {"dropout": "0.5"}, "must be float"),
    ("cifar_resnet", {"dropout": False}, "must be float"),
    (
        "cifar_resnet",
        {"dropout": float("nan")},
        "option dropout of model cifar_resnet is nan; it must be a finite number",
    ),
    ("cifar_revnet", {"last": float("inf")}, "option last of model cifar_revnet is inf; it must be a finite number"),
    ("highway", {"bias": float("-inf")}, "option bias of model highway is -inf"),
    ("efficientnet_b0", {"dropout": float("nan")}, "option dropout of model efficientnet_b0 is nan"),
    ("efficientnet_b0", {"dropout": "0.5"}, "must be float"),
    ("cifar_resnet", {"init": 3}, "option init of model cifar_resnet is 3; it must be str"),
    ("cifar_resnet", {"init": "hee"}, "init 'hee' is unknown; did you mean 'he'"),
    ("cifar_resnet", {"remat": True}, "option remat of model cifar_resnet is True; it must be str"),
    ("cifar_resnet", {"remat": "units"}, "remat 'units' is unknown"),
    (
        "cifar_resnet",
        {"dtype": "nonsense"},
        "option dtype of model cifar_resnet is 'nonsense'; it must be a float type",
    ),
    ("cifar_resnet", {"dtype": "int32"}, "it must be a float type"),
    ("cifar_resnet", {"features_only": "yes"}, "must be bool"),
    ("cifar_resnet", {"depth": 21}, "depth 21 is not 6n \\+ 2; the nearest are 20 and 26"),
    ("cifar_resnet", {"depth": 2}, "nearest are 8 and 14"),
    ("cifar_preact", {"depth": 163}, "nearest are 155 and 164"),
    ("cifar_resnet", {"shortcut": "D"}, "shortcut 'D'"),
    ("cifar_preact", {"width": 0}, "width 0"),
    ("cifar_resnet", {"stem_stride": 0}, "stem_stride 0"),
    ("mlp", {"depth": 0}, "depth 0"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_options_are_refused_by_name(name, options, message):
    with pytest.raises(InputError, match=message) as error:
        zoo.create(name, options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("number", "message"), [(0, "num_classes 0"), ("ten", "an int"), (2.0, "an int"), (True, "an int")]
)
def test_the_number_of_classes_is_a_whole_number(number, message):
    with pytest.raises(InputError, match=message):
        zoo.create("resnet18", num_classes=number)
