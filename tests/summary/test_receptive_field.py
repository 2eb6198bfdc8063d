"""Receptive fields by formula against the support of the gradient.

With positive kernels no two paths from a pixel to an output cancel: the gradient of an output is positive exactly at
the pixels that it depends on. The gradient of a max pool reaches one pixel of its window: the last one on a rising
image, the first one on a falling image, so both together give the interval.
"""

from collections.abc import Callable
from math import ceil, floor

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from deepjax import functional, zoo
from deepjax.layers import Conv
from deepjax.summary import summarize
from deepjax.units import stack


def positive(variables):
    """Kernels that average their inputs, norms that do nothing."""

    def one(path, leaf):
        name, collection = path[-1].key, path[0].key
        if name == "kernel":
            return np.full(leaf.shape, 1 / np.prod(leaf.shape[-3:-1] if leaf.ndim == 2 else leaf.shape[-4:-1]), "f4")
        return np.full(leaf.shape, 1.0 if name in ("scale", "var") else 0.0, "f4") if collection else None

    return jax.tree_util.tree_map_with_path(one, variables)


def supports(model, shape, positions, **call):
    """Return {path: for each position and axis, the first and last pixel of the image that the output depends on}."""
    variables = positive(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), **call)))
    rank = len(shape) - 1

    def maps(x):
        _, state = model.apply(variables, x, capture_intermediates=True, mutable="intermediates", **call)
        found = {}
        for path, outputs in flatten_dict(state["intermediates"]).items():
            y = jax.tree.leaves(outputs)[-1]
            while y.ndim > rank + 2:  # the last of a scan's repeats
                y = y[-1]
            if y.ndim == rank + 2:
                found["/".join(path[:-1])] = y.sum(-1)[0]
        return found

    gradient = jax.jit(lambda x, cotangent: jax.vjp(maps, x)[1](cotangent)[0])
    ramp = sum(np.ogrid[tuple(slice(n) for n in shape[:-1])]) / sum(shape[:-1])
    images = [np.broadcast_to((1 + sign * ramp)[None, ..., None], (1, *shape)).astype("f4") for sign in (1, -1)]
    zeros = {path: np.zeros(y.shape, "f4") for path, y in jax.eval_shape(maps, images[0]).items()}
    result = {}
    for path in positions:
        result[path] = []
        for position in positions[path]:
            one = np.zeros_like(zeros[path])
            one[position] = 1
            depends = sum(np.asarray(gradient(x, zeros | {path: one}))[0].sum(-1) for x in images) != 0
            axes = [np.flatnonzero(depends.any(tuple(a for a in range(rank) if a != axis))) for axis in range(rank)]
            result[path].append([(int(found[0]), int(found[-1])) for found in axes])
    return result


def formula(row, position, shape):
    intervals = []
    for o, n, size, stride, offset in zip(position, shape, *row.field, strict=False):
        first, last = ceil(offset + o * stride), floor(offset + o * stride + size - 1)
        intervals.append((max(first, 0), min(last, n - 1)))
    return intervals


def middle(n):
    return n // 2


def compare(model, shape, *, where=(middle,), slack=0, **call):
    """Check every module whose output is a map, and return the rows by path.

    Args:
      where: functions of an axis' length that give the positions to check.
      slack: pixels on a side by which the formula's interval may be larger.
    """
    rows = {
        row.path: row
        for row in summarize(model, shape, **call)
        if len(row.output) == len(shape) and row.kind[0].isupper()
    }
    positions = {path: [tuple(map(at, row.output[:-1])) for at in where] for path, row in rows.items()}
    found = supports(model, shape, positions, **call)
    for path, row in rows.items():
        for position, support in zip(positions[path], found[path], strict=True):
            for (low, high), (first, last) in zip(support, formula(row, position, shape), strict=True):
                assert 0 <= low - first <= slack, (path, position)
                assert 0 <= last - high <= slack, (path, position)
    return rows


class Apply(nn.Module):
    """A function of a map as a layer."""

    function: Callable

    @nn.compact
    def __call__(self, x):
        return self.function(x)


def conv_with_features_first(x):
    return jax.lax.conv(x, jnp.ones((2, 2, 3, 5)), (2, 1), "SAME")


CHAINS = {
    "plain": ((40, 37, 2), [nn.Conv(3, (3, 3)), nn.Conv(3, (5, 4)), nn.Conv(2, (1, 7), padding="VALID")]),
    "strided": (
        (64, 61, 1),
        [nn.Conv(2, (3, 5), (2, 3)), nn.Conv(2, (3, 3), (2, 1), ((0, 2), (1, 0))), nn.Conv(2, (2, 2))],
    ),
    "stride over the window": ((40, 40, 1), [nn.Conv(2, (1, 1), 3), nn.Conv(2, (3, 3), 2)]),
    "dilated": ((64, 64, 1), [nn.Conv(2, (3, 3), 2), nn.Conv(2, (3, 2), kernel_dilation=(4, 3)), Conv(2, dilation=2)]),
    "depthwise": (
        (48, 48, 4),
        [nn.Conv(4, (3, 3), 2, feature_group_count=4), nn.Conv(6, (1, 1)), Conv(6, (5, 5), 2, 2, groups=3)],
    ),
    "one axis": ((50, 3), [nn.Conv(4, (5,), 2), nn.Conv(4, (3,))]),
    "three axes": ((14, 12, 10, 1), [nn.Conv(2, (3, 1, 2), 2), nn.Conv(2, (2, 3, 3))]),
    "transposed": ((24, 24, 1), [nn.ConvTranspose(2, (4, 3), (2, 3)), nn.Conv(2, (3, 3)), nn.Conv(2, (3, 3), 2)]),
    "transposed without padding": ((16, 16, 1), [nn.ConvTranspose(2, (2, 5), (3, 2), "VALID")]),
    "pooled": (
        (60, 60, 1),
        [
            nn.Conv(2, (3, 3)),
            Apply(lambda x: functional.max_pool(x, 3, stride=2, padding=1)),
            nn.Conv(2, (3, 3)),
            Apply(lambda x: functional.avg_pool(x, 2)),
            nn.Conv(2, (3, 3)),
        ],
    ),
    "local response norm": (
        (20, 20, 6),
        [nn.Conv(6, (3, 3)), Apply(lambda x: functional.local_response_norm(x, 3)), nn.Conv(2, (3, 3))],
    ),
    "cut and padded": (
        (40, 40, 1),
        [
            nn.Conv(2, (3, 3), 2),
            Apply(lambda x: x[:, 3:, 1:-2:2]),
            nn.Conv(2, (3, 3), padding="VALID"),
            Apply(lambda x: jnp.pad(x, ((0, 0), (2, 1), (1, 0), (0, 0)))),
            Apply(lambda x: jnp.concatenate([jnp.zeros_like(x[:, :1]), x], 1)),
            Apply(lambda x: sum(jnp.split(x, 2, -1))),
            nn.Conv(2, (2, 2)),
        ],
    ),
    "repeated pixels": ((16, 16, 1), [Apply(lambda x: x.repeat(2, 1).repeat(3, 2)), nn.Conv(2, (3, 3), 2)]),
    "blocks of pixels": (
        (24, 24, 1),
        [
            nn.Conv(2, (3, 3)),
            Apply(lambda x: x.reshape(1, 12, 2, 8, 3, 2).transpose(0, 1, 3, 2, 4, 5).reshape(1, 12, 8, 12)),
            nn.Conv(2, (3, 3)),
        ],
    ),
    "shuffled features": (
        (16, 16, 4),
        [
            nn.Conv(4, (3, 3)),
            Apply(lambda x: x.reshape(*x.shape[:-1], 2, 2).swapaxes(-1, -2).reshape(x.shape)),
            Apply(lambda x: x[..., np.array([2, 0, 3])]),
            nn.Conv(4, (3, 3), 2),
        ],
    ),
    "mixed rows": (
        (18, 20, 1),
        [nn.Conv(2, (3, 3)), Apply(lambda x: jnp.einsum("bhwc,hk->bkwc", x, jnp.ones((18, 9)))), nn.Conv(2, (3, 3), 2)],
    ),
    "features first": (
        (24, 20, 2),
        [
            nn.Conv(2, (5, 3), (3, 1)),
            Apply(lambda x: conv_with_features_first(x.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)),
        ],
    ),
    "rematerialized": ((24, 24, 1), [nn.Conv(2, (3, 3), 2), nn.remat(nn.Conv)(2, (3, 3)), nn.jit(nn.Conv)(2, (3, 3))]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_chains(name):
    shape, parts = CHAINS[name]
    compare(nn.Sequential(parts), shape, where=(middle, lambda n: (n + 3) // 2))  # transposed convolutions have phases


@pytest.mark.parametrize("name", ["transposed", "repeated"])
def test_fractions_of_a_coarse_map_add_less_than_one_of_its_steps(name):
    finer = {
        "transposed": nn.ConvTranspose(2, (4, 3), (2, 2)),
        "repeated": Apply(lambda x: x.repeat(2, 1).repeat(4, 2)),
    }
    parts = [nn.Conv(2, (3, 3), 4), finer[name], nn.Conv(2, (3, 3)), nn.Conv(2, (3, 3), 2)]
    where = (middle, lambda n: n // 2 + 1, lambda n: n // 2 + 2)
    compare(nn.Sequential(parts), (64, 64, 1), where=where, slack=3)


# The formula's interval is too large if the pixels move at different rates or come in another order.
COVERED = {
    "reversed": Apply(lambda x: x[:, ::-1]),
    "gathered": Apply(lambda x: x[:, jnp.array([3, 1, 4])]),
    "sorted": Apply(lambda x: jnp.sort(x, 1)),
    "summed up": Apply(lambda x: jnp.cumsum(x, 1)),
    "rolled": Apply(lambda x: jnp.roll(x, 3, 1)),
    "two rates": Apply(lambda x: x[:, ::2] + x[:, :10]),
    "resized": Apply(lambda x: jax.image.resize(x, (1, 17, 31, x.shape[-1]), "linear")),
    "tokens": Apply(lambda x: x.reshape(1, -1, x.shape[-1])),
}


def test_what_no_rule_knows_is_covered():
    class Net(nn.Module):
        layers: tuple[nn.Module, ...]

        @nn.compact
        def __call__(self, x):
            x = nn.Conv(2, (3, 3))(x)
            return [nn.Conv(2, (3, 3), name=f"after {i}")(layer(x)) for i, layer in enumerate(self.layers)]

    rows = compare(Net(tuple(COVERED.values())), (20, 20, 1), slack=20)
    assert len(rows) == 2 * len(COVERED) - 1  # tokens are no map


class Branches(nn.Module):
    """Windows of 1, 3 and 5 and a pool side by side, twice."""

    @nn.compact
    def __call__(self, x):
        for stride in (1, 2):
            parts = [nn.Conv(2, (n, n), stride)(nn.Conv(2, (1, 1))(x)) for n in (1, 3, 5)]
            parts.append(nn.Conv(2, (1, 1), stride)(functional.max_pool(x, 3, stride=1, padding=1)))
            x = Apply(lambda parts: jnp.concatenate(parts, -1))(parts)
        return {"map": nn.Conv(3, (1, 1), name="last")(x), "features": x.mean((1, 2))}


def test_branches():
    rows = compare(Branches(), (40, 40, 1))
    assert rows["last"].field == ((9, 9), (2, 2), (-3, -3))  # SAME at stride 2 pads 1 and 2


@pytest.mark.slow
@pytest.mark.parametrize(("shortcut", "scan"), [("A", True), ("B", False)])
def test_residual_nets(shortcut, scan):
    rows = compare(zoo.create("cifar_resnet20", shortcut=shortcut, scan=scan, width=2), (100, 93, 1), train=False)
    last = rows["stage3_rest/unit/join" if scan else "stage3_rest/unit2/join"]
    assert last.field == ((81, 81), (4, 4), (-40, -40))


@pytest.mark.slow
def test_an_imagenet_residual_net():
    rows = compare(zoo.create("resnet18", width=2), (512, 480, 3), train=False)
    assert rows["stage4_rest/unit/join"].field == ((435, 435), (32, 32), (-217, -217))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "depths"), [("resnet50", (3, 4, 6, 3)), ("resnet152", (3, 8, 36, 3))])
def test_bottleneck_nets_in_closed_form(name, depths):
    """7 pixels of the stem, 4 more of the pool, then two steps of the map before it for each 3x3."""
    first = 2 * sum(4 * 2 ** max(i - 1, 0) for i in range(4))  # the 3x3 with the stride
    size = 7 + 4 + first + sum(2 * (n - 1) * 4 * 2**i for i, n in enumerate(depths))
    maps = [row for row in summarize(zoo.create(name), (224, 224, 3)) if len(row.output) == 3]
    assert maps[-1].field == ((size, size), (32, 32), (-(size - 1) // 2,) * 2)


PUBLISHED = {  # Araujo et al. 2019, table 1
    "alexnet": 195,
    "vgg16": 212,
    "resnet50_paper": 483,
    "resnet101_paper": 1027,
    "resnet152_paper": 1507,
    "inception_v3": 1311,
    "inception_v4": 2071,
    "inception_resnet_v2": 3039,
    "mobilenet_v1": 315,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name in zoo.MODELS])
def test_published_sizes(name):
    rows = summarize(zoo.create(name), zoo.usual_input(name))
    sizes = [row.field.size for row in rows if len(row.output) == 3]
    # of each axis apart: Inception's last branches are 1x3 here and 3x1 there
    assert [max(axis) for axis in zip(*sizes, strict=True)] == [PUBLISHED[name]] * 2


class Widening(nn.Module):
    """A user's own unit for a stack."""

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        return x + nn.Conv(x.shape[-1], (3,), padding="SAME", kernel_dilation=2)(x)


def test_every_repeat_of_a_scan_sees_more():
    rows = compare(stack(Widening(), 6), (80, 2), train=False)
    assert rows["unit/Conv_0"].field == ((25,), (1,), (-12,))


def test_what_sees_the_whole_image():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), 2, 1, name="conv")(x)
            gate = nn.Dense(4, name="gate")(x.mean((1, 2)))
            gated = Apply(lambda pair: pair[0] * pair[1][:, None, None], name="gated")((x, gate))
            after = nn.Conv(4, (3, 3), name="after")(gated)
            flat = nn.Dense(3, name="flat")(after.reshape(1, -1))
            attended = nn.MultiHeadDotProductAttention(2, name="attention")(x.reshape(1, -1, 4))
            return flat, attended

    rows = {row.path: row for row in summarize(Net(), (20, 16, 3))}
    for path in ("gate", "gated", "after", "flat", "attention/out", "global_avg_pool(1)"):
        assert rows[path].field == ((20, 16), (0, 0), (0, 0)), path
    assert rows["conv"].field == ((3, 3), (2, 2), (-1, -1))


def test_a_window_as_large_as_its_map_sees_what_the_window_sees():
    net = nn.Sequential(
        [nn.Conv(2, (3, 3), 2, "VALID"), nn.Conv(4, (7, 7), padding="VALID"), lambda x: x.reshape(1, -1), nn.Dense(3)]
    )
    *_, flat = summarize(net, (16, 16, 1))
    assert flat.field == ((15, 15), (0, 0), (0, 0))  # the last row and column are in no window


def test_recurrent_nets_see_every_step():
    rows = {row.path: row for row in summarize(nn.RNN(nn.LSTMCell(4)), (7, 3))}
    assert rows["cell/hf"].field == ((7,), (0,), (0,))


def test_what_does_not_see_the_input_has_no_field():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            table = nn.Embed(4, 3, name="positions")(jnp.arange(4))
            return nn.Dense(2, name="dense")(x + table[None])

    rows = {row.path: row for row in summarize(Net(), (4, 3))}
    assert rows["positions"].field is None
    assert rows["dense"].field == ((1,), (1,), (0,))


def test_branches_of_a_condition_are_united():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, wide):
            y = jax.lax.cond(wide, lambda x: x[:, 2:-2], lambda x: x[:, :-4], x)
            return nn.Conv(1, (1,), name="last")(y)

    wide = jnp.array(True)
    rows = {row.path: row for row in summarize(Net(), (9, 1), wide=wide)}
    assert rows["last"].field == ((3,), (1,), (0,))


def test_loops_of_unknown_length_see_everything():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = jax.lax.while_loop(lambda x: x.sum() < 5, lambda x: x + 1, x)
            return nn.Conv(1, (1,), name="last")(y)

    rows = {row.path: row for row in summarize(Net(), (9, 1))}
    assert rows["last"].field == ((9,), (0,), (0,))
