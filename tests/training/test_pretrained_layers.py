"""Some of the parameters of another network as a start: VGG 16 from VGG 11, as in its paper, in miniature."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from deepjax import zoo
from deepjax.config import Config
from deepjax.data import Standardizer
from deepjax.errors import InputError
from deepjax.training import fine_tuning, freezing
from deepjax.units import unstack_units
from deepjax.zoo.steps import Convolve, Pool, Repeat
from deepjax.zoo.vgg import VGG

KEY = jax.random.key(0)
SHAPE = (8, 8, 3)
FOUR_AND_THREE = ("stage?_first/*", "stage2_rest/unit1/*", "hidden*", "head/*")


def column(rest, width=4):
    conv = Convolve(width, 3)
    first = (Convolve(2, 3, name="stage1_first"), Pool("max", 2, 2))
    second = (Convolve(width, 3, name="stage2_first"), Repeat("stage2_rest", conv, rest))
    return VGG({"stage1": first, "stage2": second}, hidden=(5,), num_classes=3, norm="none", usual_input=SHAPE)


@pytest.fixture(scope="module")
def source():
    network = column(1)
    variables = jax.device_get(jax.jit(lambda: network.init(jax.random.key(7), np.ones((1, *SHAPE)), train=False))())
    standardizer = Standardizer("channel", np.zeros(3, np.float32), np.ones(3, np.float32))
    return fine_tuning.Source("runs/a", "vgg11", network, variables, standardizer)


def leaves(variables):
    return flatten_dict(unstack_units(variables), sep="/")


@pytest.mark.parametrize(("reset_head", "head"), [(False, "theirs"), (True, "drawn")])
def test_layers_that_match_are_loaded_and_the_rest_is_drawn(source, reset_head, head):
    network = column(2)
    got = leaves(
        fine_tuning.initial_variables(
            source, network, "vgg16", SHAPE, KEY, reset_head=reset_head, only=FOUR_AND_THREE[: 3 if reset_head else 4]
        )
    )
    drawn = leaves(jax.jit(lambda: network.init(KEY, np.ones((1, *SHAPE)), train=False))())
    theirs = leaves(source.tensors)
    assert set(got) == set(drawn)
    for name, value in got.items():
        fresh = "unit2" in name or (head == "drawn" and "head" in name)
        np.testing.assert_array_equal(value, drawn[name] if fresh else theirs[name], err_msg=name)


@pytest.mark.parametrize(
    ("network", "patterns", "message"),
    [
        (
            column(2),
            ("stage9*",),
            r"pretrained_layers 'stage9\*' matches no parameter \(reset_head leaves out the head\); choose from head",
        ),
        (column(2), ("stage2_rest*",), "stage2_rest/unit2/conv/bias is .* but missing in runs/a; leave it out"),
        (column(1, width=6), ("stage2_first*",), r"is \(6,\) in the network, but \(4,\) in runs/a"),
        (column(2), (), "set one to the other, or name the parameters that both have in pretrained_layers"),
    ],
)
def test_patterns_that_do_not_fit(source, network, patterns, message):
    with pytest.raises(InputError, match=message):
        fine_tuning.initial_variables(source, network, "vgg16", SHAPE, KEY, reset_head=True, only=patterns)


def test_patterns_need_pretrained_weights():
    with pytest.raises(InputError, match="pretrained_layers does nothing without pretrained"):
        freezing.check(Config(pretrained_layers=("stage1*",)))


def test_the_papers_layers_have_equal_shapes_in_all_columns():
    """Section 2.3 of the paper: the first four convolutions and the three dense layers of A start B to E."""
    names = ("stage1_first", "stage2_first", "stage3_first", "stage3_rest/unit1", "hidden1", "hidden2", "head")

    def shapes(name):
        network = zoo.create(name)
        init = jax.eval_shape(lambda: unstack_units(network.init(KEY, np.ones((1, 224, 224, 3)), train=False)))
        found = {path: leaf.shape for path, leaf in flatten_dict(init["params"], sep="/").items()}
        return {path: shape for path, shape in found.items() if path.startswith(names)}

    assert len(shapes("vgg11")) == 2 * len(names)
    for name in ("vgg13", "vgg16_1x1", "vgg16", "vgg19"):
        assert shapes(name) == shapes("vgg11")
