"""Which arguments a call takes, for every kind of callable that deepjax calls."""

from functools import partial

import flax.linen as nn
import pytest

from deepjax.trace import accepts, call_arguments


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return x


class Anything(nn.Module):
    def __call__(self, x, **options):
        return x


def function(x, /, mask):
    return x


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (Block(), {"train"}),
        (nn.remat(Block)(), {"train"}),
        (nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True})(), {"train"}),
        (Anything(), {"train", "mask", "other"}),
        (nn.Dense(3), set()),
        (nn.Sequential([nn.Dense(3), Block()]), set()),  # which calls its first layer with the keywords
        (nn.Sequential([Block(), nn.Dense(3)]), {"train"}),
        (nn.Sequential([]), set()),
        (function, {"mask"}),
        (partial(function, mask=None), {"mask"}),
        (nn.relu, {"x"}),
        (max, set()),
    ],
)
def test_accepts(module, names):
    offered = ("train", "mask", "other", "x")
    taken = {name for name in offered if accepts(module, name)} - ({"x"} if isinstance(module, nn.Module) else set())
    assert taken == names
    assert set(call_arguments(module, train=True, mask=None)) == names & {"train", "mask"}
