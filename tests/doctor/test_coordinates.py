"""The coordinate check: which scales depend on width or depth, and by which power."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepjax.doctor import coordinate_check
from deepjax.doctor.coordinates import OUTPUT, Slope, summarize
from deepjax.doctor.outputs import module_outputs
from deepjax.errors import InputError
from deepjax.layers import Dense
from deepjax.units import stack

RNG = np.random.default_rng(0)
BATCH = RNG.standard_normal((32, 16), np.float32), RNG.integers(0, 10, 32)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class MLP(nn.Module):
    """Two hidden layers, in the standard parametrization or in muP (table 8 of Yang et al. 2022)."""

    width: int
    mup: bool

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width, name="first")(x))
        x = nn.relu(nn.Dense(self.width, name="hidden")(x))
        init = nn.initializers.normal(1.0) if self.mup else nn.initializers.lecun_normal()
        y = nn.Dense(10, name="head", kernel_init=init)(x)
        return y / self.width if self.mup else y


def mup_adam(width):
    def labels(params):
        return {layer: dict.fromkeys(leaves, layer) for layer, leaves in params.items()}

    rates = {"first": 0.01, "hidden": 0.01 * 32 / width, "head": 0.01}
    return optax.multi_transform({layer: optax.adam(rate) for layer, rate in rates.items()}, labels)


def test_the_standard_parametrization_is_not_stable_in_width():
    found = coordinate_check(
        lambda width: MLP(width, False), (32, 64, 128), BATCH, cross_entropy, optimizer=optax.adam(1e-3), seeds=2
    )
    slopes = {row.layer: row.change_slope for row in found.rows}
    assert list(slopes) == ["first", "hidden", OUTPUT]  # in the order of the forward pass
    # Adam changes each of the n weights of a sum by the same amount, in the direction of the gradient.
    assert slopes[OUTPUT].value == pytest.approx(1, abs=0.3)
    assert [slopes[layer].word for layer in slopes] == ["stable", "grows", "grows"]
    assert [row.activation_slope.word for row in found.rows][:2] == ["stable", "stable"]
    assert not found.stable
    assert "not stable in width: 2 of 3 layers; the change of output grows like width^+" in found.verdict
    assert "muP" in found.verdict
    header, rows = found.table()
    assert header[:4] == ("layer", "|a| 32", "|a| 64", "|a| 128")
    assert rows[1][-1] == "change grows"


def test_mup_is_stable_in_width():
    found = coordinate_check(
        lambda width: MLP(width, True), (32, 64, 128), BATCH, cross_entropy, optimizer=mup_adam, seeds=3
    )
    assert found.stable, found.verdict
    assert found.rows[-1].activation_slope.value == pytest.approx(-0.5, abs=0.25)  # allowed for the output


class Normalized(nn.Module):
    """A residual unit with layer normalization at the start of its branch."""

    factor: float

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        return x + self.factor * Dense(x.shape[-1], name="dense")(nn.LayerNorm(name="norm")(x))


class Residual(nn.Module):
    """So many residual units, and class scores."""

    depth: int
    factor: float

    @nn.compact
    def __call__(self, x):
        x = stack(Normalized(self.factor, parent=None), self.depth, name="units")(x, train=True)
        return nn.Dense(10, name="head")(x)


@pytest.mark.parametrize("scaled", [False, True])
def test_residual_branches_need_a_factor_in_depth(scaled):
    """A branch of a normalized input adds 1 to the variance, so the deviation is sqrt(1 + depth factor**2)."""

    def make(depth):
        return Residual(depth, depth**-0.5 if scaled else 1.0)

    depths = (16, 64, 256)
    found = coordinate_check(
        make, depths, BATCH, cross_entropy, optimizer=optax.sgd(1e-4), axis="depth", steps=1, seeds=2
    )
    stream = next(row for row in found.rows if row.layer == "units/unit")
    expected = [math.sqrt(1 + (1 if scaled else depth)) for depth in depths]
    np.testing.assert_allclose(np.array(stream.activation) / math.sqrt(2 / math.pi), expected, rtol=0.2)
    assert stream.activation_slope.word == ("stable" if scaled else "grows")
    if not scaled:
        assert stream.activation_slope.value == pytest.approx(0.5, abs=0.1)
        assert "1 / sqrt(depth)" in found.verdict


def test_slopes_are_those_of_least_squares():
    sizes, rng = (2, 8, 32), np.random.default_rng(0)
    values = np.exp(rng.standard_normal((3, 4, 2)))  # size, seed, (activation, change)
    found = summarize(
        "width", sizes, 5, [[{"a": tuple(values[i, j]), OUTPUT: (1, 1)} for j in range(4)] for i in range(3)]
    )
    for slope, one in zip((found.rows[0].activation_slope, found.rows[0].change_slope), np.moveaxis(values, -1, 0)):
        fits = [np.polyfit(np.log(sizes), np.log(one[:, j]), 1)[0] for j in range(4)]
        assert slope.value == pytest.approx(np.mean(fits))
        assert slope.error == pytest.approx(np.std(fits, ddof=1) / 2)
    np.testing.assert_allclose(found.rows[0].activation, values[:, :, 0].mean(1))
    assert (found.rows[1].activation_slope.value, found.steps, found.seeds) == (0, 5, 4)


def test_words_of_slopes():
    assert [Slope(value, 0.1).word for value in (-1, -0.4, 0.2, 0.4, 0.5)] == [
        "shrinks", "unclear", "stable", "unclear", "grows",
    ]  # fmt: skip
    assert Slope(0.3, math.nan).word == "grows"
    found = summarize("width", (1, 2), 1, [[{"a": (1, 1), OUTPUT: (1, 1)}], [{"a": (1, math.nan), OUTPUT: (0, 1)}]])
    assert not found.stable
    assert "change of a grows like width^+inf" in found.verdict
    unclear = summarize("width", (1, 4), 1, [[{OUTPUT: (1, 1)}] * 2, [{OUTPUT: (1, 1)}, {OUTPUT: (1, 3)}]])
    assert unclear.stable
    assert "unclear in width" in unclear.verdict


def test_layers_of_several_depths_are_matched_without_their_numbers():
    shallow, deep = {"unit1": (1, 1), OUTPUT: (5, 5)}, {"unit1": (1, 1), "unit2": (4, 4), OUTPUT: (5, 5)}
    found = summarize("depth", (1, 2), 1, [[shallow], [deep]])
    assert [(row.layer, row.activation) for row in found.rows] == [("unit", (1, 4)), (OUTPUT, (5, 5))]
    found = summarize("width", (1, 2), 1, [[deep], [deep]])
    assert [row.layer for row in found.rows] == ["unit1", "unit2", OUTPUT]


def test_outputs_are_those_that_flax_captures():
    model, x = MLP(8, False), BATCH[0]
    variables = jax.jit(model.init)(jax.random.key(0), x)
    found = jax.jit(lambda v: module_outputs(model.apply, v, x))(variables)
    captured = model.apply(variables, x, capture_intermediates=True)[1]["intermediates"]
    assert {"/".join(path) for path in found} == {"first", "hidden", "head", ""}
    for path, value in found.items():
        expected = captured
        for name in path:
            expected = expected[name]
        np.testing.assert_allclose(value, expected["__call__"][0], rtol=1e-6)


def test_the_result_is_always_the_same():
    options = {"optimizer": optax.adam(0.01), "steps": 1, "seeds": 1}
    one, two = (coordinate_check(lambda n: MLP(n, False), (2, 4), BATCH, cross_entropy, **options) for _ in range(2))
    assert one.rows[0].change == two.rows[0].change
    assert one.rows[-1].change == two.rows[-1].change


def test_of_a_scan_it_is_the_last_unit():
    model, x = Residual(3, 0.5), BATCH[0]
    variables = jax.jit(model.init)(jax.random.key(0), x)
    found = jax.jit(lambda v: module_outputs(jax.checkpoint(model.apply), v, x))(variables)
    for i in range(3):
        unit = jax.tree.map(lambda leaf: leaf[i], variables["params"]["units"]["unit"])  # noqa: B023
        x = Normalized(0.5).apply({"params": unit}, x, train=True)
    np.testing.assert_allclose(found["units", "unit"], x, rtol=1e-5, atol=1e-6)
    assert ("units", "unit", "dense") in found
    assert jnp.shape(found["units", "unit", "norm"]) == x.shape


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sizes": (32,)}, r"widths \[32\] must be at least two different numbers"),
        ({"sizes": (0, 3)}, "above 0"),
        ({"axis": "height"}, "axis 'height' must be width or depth"),
        ({"steps": 0}, "steps 0 and seeds 3"),
    ],
)
def test_arguments_that_cannot_work(changes, text):
    arguments = {"sizes": (4, 8), "batch": BATCH, "loss": cross_entropy, "optimizer": optax.sgd(0.1)} | changes
    with pytest.raises(InputError, match=text):
        coordinate_check(lambda width: MLP(width, False), **arguments)
