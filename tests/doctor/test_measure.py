"""Measurements of layers against float64 NumPy, hand-written gradients, and the same network in other forms."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import helpers
from deepjax import units, zoo
from deepjax.doctor.measure import Traced, measure
from deepjax.doctor.subject import subject

KEY = jax.random.key(1)


def mse(predictions, targets):
    return jnp.mean(jnp.square(predictions - targets))


def measured(model, inputs, targets, loss=mse, variables=None, **options):
    made = subject(model, (inputs, targets), loss, variables=variables, **options)
    variables = jax.jit(made.init)(jax.random.key(0))
    return measure(made, variables, made.inputs, made.targets, KEY), made, variables


def loss_and_gradients(made, variables, key=KEY):
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def value(params):
        return made.value({**rest, "params": params}, made.inputs, made.targets, key)[0]

    return jax.jit(jax.value_and_grad(value))(variables["params"])


def the_same(first, second, rtol=1e-4):
    """Rows have the same numbers and activations, whatever the names of the layers."""
    assert len(first.rows) == len(second.rows)
    for one, two in zip(first.rows, second.rows, strict=True):
        assert (one.shape, one.activation, one.bias) == (two.shape, two.activation, two.bias)
        for name, value in vars(one).items():
            if isinstance(value, float):
                np.testing.assert_allclose(value, getattr(two, name), rtol=rtol, atol=1e-6, err_msg=name)


# A network of three layers, by hand


def mlp(params, x):
    h = jax.nn.relu(x @ params["a"] + params["b"][None])
    g = jnp.tanh(h @ params["c"] + params["d"][None])
    return jax.nn.sigmoid(g @ params["e"])


@pytest.fixture(scope="module")
def by_hand():
    a, b, c, d, e, x, y = helpers.random_arrays(3, (5, 7), (7,), (7, 6), (6,), (6, 2), (12, 5), (12, 2))
    b[0], c[:, 1] = -50, c[:, 0]  # a dead unit, two equal units
    d[1] = d[0]
    params = {"a": a, "b": b, "c": 2 * c, "d": d, "e": e}
    found, made, variables = measured(mlp, x, y, variables=params, optimizer=optax.sgd(0.5))
    p = {name: array.astype(np.float64) for name, array in params.items()}
    z = [x @ p["a"] + p["b"]]
    out = [np.maximum(z[0], 0)]
    z.append(out[0] @ p["c"] + p["d"])
    out.append(np.tanh(z[1]))
    z.append(out[1] @ p["e"])
    out.append(1 / (1 + np.exp(-z[2])))
    dz = [None, None, 2 * (out[2] - y) / y.size * out[2] * (1 - out[2])]
    dz[1] = dz[2] @ p["e"].T * (1 - out[1] ** 2)
    dz[0] = dz[1] @ p["c"].T * (z[0] > 0)
    gradients = {"a": x.T @ dz[0], "b": dz[0].sum(0), "c": out[0].T @ dz[1], "d": dz[1].sum(0), "e": out[1].T @ dz[2]}
    return found, p, z, out, dz, gradients, made, variables


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


def effective_rank(a):
    values = np.linalg.svd(a - a.mean(0), compute_uv=False)
    shares = values[values > 0] / values.sum()
    return np.exp(-np.sum(shares * np.log(shares)))


def mean_cosine(a):
    a = a.reshape(len(a), -1)
    a = a[np.linalg.norm(a, axis=1) > 0]
    unit = a / np.linalg.norm(a, axis=1, keepdims=True)
    return (unit @ unit.T)[~np.eye(len(a), dtype=bool)].mean()


def orthogonality(kernel):
    kernel = kernel if kernel.shape[0] > kernel.shape[1] else kernel.T
    gram = kernel.T @ kernel
    return np.linalg.norm(gram / np.diag(gram).mean() - np.eye(len(gram))) / np.sqrt(len(gram))


def test_every_number_of_a_layer_is_that_of_float64(by_hand):
    found, p, z, out, dz, gradients, *_ = by_hand
    assert [row.layer for row in found.rows] == ["a", "c", "e"]
    assert [row.activation for row in found.rows] == ["relu", "tanh", "sigmoid"]
    assert [row.bias for row in found.rows] == [True, True, False]
    saturated = [0, np.mean(np.abs(out[1]) > 0.99), np.mean((out[2] < 0.01) | (out[2] > 0.99))]
    assert 0.1 < saturated[1] < 0.9
    for i, row in enumerate(found.rows):
        kernel, fan_in = p[row.layer], len(p[row.layer])
        expected = {
            "mean": z[i].mean(), "std": z[i].std(), "non_finite": 0, "zeros": np.mean(out[i] == 0),
            "saturated": saturated[i], "dead": np.mean(np.ptp(out[i], 0) == 0), "rank": effective_rank(out[i]),
            "relative_rank": effective_rank(out[i]) / min(out[i].shape), "cosine": mean_cosine(out[i]),
            "gradient_rms": rms(dz[i]), "gradient_non_finite": 0, "weight_rms": rms(kernel),
            "weight_gradient_rms": rms(gradients[row.layer]), "gain": kernel.std() * np.sqrt(fan_in),
            "symmetric": 2 / 6 if row.layer == "c" else 0, "orthogonality": orthogonality(kernel),
        }  # fmt: skip
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(row, name), value, rtol=2e-5, atol=1e-7, err_msg=f"{row.layer} {name}")
        assert set(expected) == {name for name, value in vars(row).items() if isinstance(value, float)}
        assert (row.shape, row.fan_in, row.features) == (kernel.shape, *kernel.shape)
    assert found.rows[0].dead >= 1 / 7


def test_gradients_updates_and_their_ratios(by_hand):
    found, p, _, out, _, gradients, made, _ = by_hand
    y = made.targets
    np.testing.assert_allclose(found.loss, np.mean((out[2] - y) ** 2), rtol=1e-5)
    np.testing.assert_allclose(found.predictions, out[2], rtol=1e-5)
    total = np.sqrt(sum(np.sum(np.square(g)) for g in gradients.values()))
    np.testing.assert_allclose((found.gradient_norm, found.update_norm), (total, total / 2), rtol=1e-5)
    for row in found.parameters:
        size, slope = np.linalg.norm(p[row.path]), np.linalg.norm(gradients[row.path])
        expected = (size, slope, slope / 2, slope / size, slope / size / 2)
        got = (row.norm, row.gradient_norm, row.update_norm, row.gradient_ratio, row.update_ratio)
        np.testing.assert_allclose(got, expected, rtol=2e-5)
        assert row.shape == p[row.path].shape
    assert found.gradient_norms == {row.path: row.gradient_norm for row in found.parameters}


def test_agreement_of_micro_batches(by_hand):
    found, *_, made, variables = by_hand
    x, y = made.inputs.reshape(4, 3, 5), made.targets.reshape(4, 3, 2)
    each = [jax.grad(lambda p, i=i: mse(mlp(p, x[i]), y[i]))(variables["params"]) for i in range(4)]

    def agreement(vectors):
        mean = vectors.mean(0)
        snr = np.linalg.norm(mean) / np.sqrt(np.sum(np.square(vectors - mean)) / 3)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return snr, (unit @ unit.T)[~np.eye(4, dtype=bool)].mean()

    flat = {name: np.array([g[name].ravel() for g in each], np.float64) for name in each[0]}
    for row in found.parameters:
        np.testing.assert_allclose((row.snr, row.cosine), agreement(flat[row.path]), 1e-4, 1e-6, err_msg=row.path)
    np.testing.assert_allclose((found.snr, found.cosine), agreement(np.hstack(list(flat.values()))), 1e-4, 1e-6)


def test_numbers_whose_squares_are_not_in_float32():
    x, y = helpers.random_arrays(0, (8, 4), (8, 3))
    w = np.full((4, 3), 1e-25, np.float32)
    found, *_ = measured(
        lambda p, x: x @ p["w"] @ p["v"], x, y, variables={"w": w, "v": np.eye(3, dtype=np.float32) * 1e-25}
    )
    first, second = found.rows
    np.testing.assert_allclose(first.std, np.std(x @ w.astype(np.float64)), rtol=1e-4)
    assert 1e-27 < first.gradient_rms < 1e-24
    assert 0 < first.weight_gradient_rms < 1e-24
    assert (first.symmetric, second.symmetric, second.orthogonality) == (1, 0, 0)
    assert first.activation == second.activation == "none"


# Networks in several forms


class Unit(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        h = nn.Dense(6)(nn.relu(nn.LayerNorm()(x)))
        return x + nn.Dense(6)(nn.tanh(h))


class Stacked(nn.Module):
    scan: bool = True
    remat: str = "none"

    @nn.compact
    def __call__(self, x, train=False):
        x = units.stack(Unit(), 5, scan=self.scan, remat=self.remat, name="stack")(
            nn.Dense(6, name="stem")(x), train=train
        )
        return nn.Dense(2, name="head")(nn.relu(x))


@pytest.fixture(scope="module")
def unrolled():
    x, y = helpers.random_arrays(1, (16, 4), (16, 2))
    found, *_ = measured(Stacked(), x, y)
    variables = jax.jit(Stacked().init)(jax.random.key(0), x)
    params = {**variables["params"], "stack": units.unstack_units(variables["params"]["stack"])}
    return found, x, y, measured(Stacked(scan=False), x, y, variables={"params": params})[0]


def test_a_scan_has_the_rows_of_the_unrolled_network(unrolled):
    scanned, _, _, plain = unrolled
    the_same(scanned, plain)
    assert [row.layer for row in scanned.rows[:4]] == [
        "stem",
        *(f"stack/unit/Dense_{i}[0]" for i in (0, 1)),
        "stack/unit/Dense_0[1]",
    ]
    assert [row.step for row in scanned.rows] == [None, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, None]
    assert [row.activation for row in scanned.rows] == ["relu", *["tanh", "relu"] * 5, "none"]
    assert {row.kind for row in scanned.rows} == {"Dense"}


def test_rematerialized_groups_have_the_rows_of_the_scan(unrolled):
    scanned, x, y, _ = unrolled
    grouped, *_ = measured(Stacked(remat="sqrt"), x, y)
    the_same(scanned, grouped)
    assert [row.layer for row in grouped.rows] == [row.layer for row in scanned.rows]


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(4, name="shared")
        return nn.Dense(2, name="head")(nn.elu(shared(nn.softplus(shared(x)))))


def test_a_shared_layer_has_a_row_for_each_call():
    x, y = helpers.random_arrays(2, (8, 4), (8, 2))
    found, made, variables = measured(Twice(), x, y)
    assert [row.layer for row in found.rows] == ["shared", "shared (call 2)", "head"]
    assert [row.activation for row in found.rows] == ["softplus", "elu", "none"]
    _, gradients = loss_and_gradients(made, variables)
    for row in found.rows[:2]:
        np.testing.assert_allclose(row.weight_gradient_rms, rms(gradients["shared"]["kernel"]), rtol=1e-5)


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(jnp.asarray(nn.RNN(nn.LSTMCell(3), name="rnn")(x))[:, -1])


def test_a_recurrent_layer_is_measured_over_all_steps():
    x, y = helpers.random_arrays(4, (6, 5, 4), (6, 2))
    found, made, variables = measured(Recurrent(), x, y)
    names = {row.layer.split("/")[-1]: row for row in found.rows}
    assert set(names) == {"ii", "if", "ig", "io", "hi", "hf", "hg", "ho", "head"}
    assert {name: row.activation for name, row in names.items() if name in ("ig", "hf", "head")} == {
        "ig": "tanh", "hf": "sigmoid", "head": "none"
    }  # fmt: skip
    cell = variables["params"]["rnn" if "rnn" in variables["params"] else "LSTMCell_0"]
    cell = cell.get("cell", cell)
    z = x.astype(np.float64) @ np.asarray(cell["ig"]["kernel"], np.float64)
    np.testing.assert_allclose((names["ig"].mean, names["ig"].std), (z.mean(), z.std()), rtol=1e-4)
    loss, gradients = loss_and_gradients(made, variables)
    np.testing.assert_allclose((found.loss, found.gradient_norm), (loss, optax.tree.norm(gradients)), rtol=1e-5)
    assert found.rows[-1].layer == "head"


# What stands between the layers


class Convolutional(nn.Module):
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3), name="first", dtype=self.dtype)(x))
        x = nn.max_pool(nn.leaky_relu(x), (2, 2), (2, 2))
        x = nn.relu(nn.avg_pool(nn.Conv(4, (3, 3), name="second", dtype=self.dtype)(x), (2, 2), (2, 2)))
        x = nn.Dropout(0.3, deterministic=not train)(x)
        x = nn.BatchNorm(use_running_average=not train, name="late")(x).reshape(len(x), -1)
        return nn.Dropout(0.1, deterministic=not train)(nn.Dense(3, name="head", dtype=self.dtype)(x))


def test_convolutions_dropout_and_norms():
    x, y = helpers.random_arrays(5, (6, 8, 8, 2), (6, 3))
    found, made, variables = measured(Convolutional(), x, y)
    assert [(row.layer, row.kind, row.activation) for row in found.rows] == [
        ("first", "Conv", "leaky_relu"), ("second", "Conv", "relu"), ("head", "Dense", "none")
    ]  # fmt: skip
    assert found.dropout_after_output
    assert found.dropout_before_norm == ("late",)
    assert found.bias_before_norm == ("first",)
    loss, gradients = loss_and_gradients(made, variables)
    np.testing.assert_allclose((found.loss, found.gradient_norm), (loss, optax.tree.norm(gradients)), rtol=1e-5)
    assert found.gradient_norms["first/bias"] < 1e-6 * found.gradient_norm
    z = np.asarray(nn.Conv(4, (3, 3)).apply({"params": variables["params"]["first"]}, x))
    np.testing.assert_allclose(found.rows[0].std, z.std(), rtol=1e-4)
    half, *_ = measured(Convolutional(jnp.bfloat16), x, y)
    np.testing.assert_allclose(half.rows[0].std, z.std(), rtol=0.02)
    np.testing.assert_allclose(half.rows[1].rank, found.rows[1].rank, rtol=0.1)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.second(nnx.silu(self.first(x))))


def test_nnx_and_a_function_have_the_rows_of_linen():
    x, y = helpers.random_arrays(6, (8, 4), (8, 2))
    module = Nnx(nnx.Rngs(0))
    assert measured(module, x, y)[0].dropout_after_output
    module.drop = nnx.Dropout(0.0, rngs=nnx.Rngs(0))
    one, made, variables = measured(module, x, y)
    assert [(row.layer, row.activation) for row in one.rows] == [("first", "silu"), ("second", "none")]
    assert not one.dropout_after_output
    p = variables["params"]

    def function(p, x):
        h = x @ p["first"]["kernel"] + p["first"]["bias"][None]
        return h * jax.nn.sigmoid(h) @ p["second"]["kernel"] + p["second"]["bias"][None]

    the_same(one, measured(function, x, y, variables=p)[0])
    linen = nn.Sequential([nn.Dense(5), nn.silu, nn.Dense(2)])
    params = {"layers_0": p["first"], "layers_2": p["second"]}
    the_same(one, measured(linen, x, y, variables={"params": params})[0])


def test_a_parameter_without_gradient_is_seen():
    x, y = helpers.random_arrays(7, (8, 4), (8, 3))
    params = {"used": np.ones((4, 3), np.float32), "lost": np.ones((4, 3), np.float32)}

    def function(p, x):
        return x @ p["used"] + jax.lax.stop_gradient(jax.nn.relu(x @ p["lost"]))

    found, *_ = measured(function, x, y, variables=params)
    assert found.gradient_norms["lost"] == 0 < found.gradient_norms["used"]
    assert {row.layer: row.gradient_rms > 0 for row in found.rows} == {"used": True, "lost": False}


def test_the_cost_is_below_three_times_ten_steps():
    x, y = helpers.random_arrays(5, (6, 8, 8, 2), (6, 3))
    made = subject(Convolutional(), (x, y), mse)
    variables = jax.jit(made.init)(KEY)

    def step(variables):
        def value(params):
            return made.value({**variables, "params": params}, made.inputs, made.targets, KEY)[0]

        return jax.value_and_grad(value)(variables["params"])

    def flops(function, *arguments):
        analysis: Any = jax.jit(function).lower(*arguments).cost_analysis()
        return analysis["flops"]

    traced = Traced(made, variables, made.inputs, KEY)
    cost = flops(traced.compute, variables, made.inputs, made.targets, KEY, None)
    assert cost < 3 * 10 * flops(step, variables)


@pytest.mark.slow
def test_a_residual_network():
    x = helpers.random_arrays(8, (8, 16, 16, 3))[0]
    labels = np.arange(8) % 4

    def loss(logits, labels):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    found, made, variables = measured(zoo.create("cifar_resnet", depth=20, num_classes=4), x, labels, loss)
    assert [row.activation for row in found.rows] == [*["relu"] * 19, "none"]
    assert [row.layer for row in found.rows[3:7]] == [
        f"stage1_rest/unit/branch/conv{i}[{step}]" for step in (0, 1) for i in (1, 2)
    ]
    assert found.bias_before_norm == ()
    value, gradients = loss_and_gradients(made, variables)
    np.testing.assert_allclose((found.loss, found.gradient_norm), (value, optax.tree.norm(gradients)), rtol=1e-4)
