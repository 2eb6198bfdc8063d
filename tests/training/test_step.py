"""The pure step, and the two ways in which it runs on several devices."""

from functools import cache, partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepjax import config, zoo
from deepjax.layers import BatchNorm, Conv
from deepjax.optimizers import make_optimizer
from deepjax.parallel import make_mesh
from deepjax.tasks import Classification
from deepjax.training import eval_step, init_state, train_step

KEY = jax.random.key(0)
SHAPE = (6, 6, 3)
SGD = optax.sgd(0.05, 0.9)
TEN = Classification(tuple("0123456789"))


class Perceptron(nn.Module):
    """A user's own model: no mask, no batch norm."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(32, name="hidden")(x.reshape(x.shape[0], -1))
        return nn.Dense(10, name="head")(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))


class Net(nn.Module):
    """A convolutional network with batch norm."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        x = BatchNorm(name="norm")(Conv(8, dtype=self.dtype, name="conv")(x), train=train, mask=mask)
        x = nn.relu(x)[:, ::2, ::2].reshape(len(x), -1)
        return nn.Dense(10, dtype=self.dtype, name="head")(x)


def make(model, optimizer=SGD, **options):
    return partial(train_step, model=model, optimizer=optimizer, schedule=lambda count: 0.05, task=TEN, **options)


@cache
def jitted(model, optimizer=SGD, **options):
    return jax.jit(make(model, optimizer, **options))


@cache
def fresh(model, optimizer=SGD, ema=False):
    return jax.device_get(init_state(model, optimizer, KEY, SHAPE, ema=ema))


def batch_of(size, valid=None, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((size, *SHAPE)).astype(np.float32),
        "label": rng.integers(0, 10, size).astype(np.int32),
        "mask": np.arange(size) < (size if valid is None else valid),
    }


def test_steps_lower_the_loss_on_a_fixed_batch_and_are_compiled_once():
    chex.clear_trace_counter()
    pure = make(Net())
    step = jax.jit(chex.assert_max_traces(n=1)(lambda state, batch, key: pure(state, batch, key)))
    state, losses = fresh(Net()), []
    for valid in (8, 5, *[8] * 8):
        state, metrics = step(state, batch_of(8, valid), KEY)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 10


def test_padding_rows_change_nothing():
    step, state = jitted(Net()), fresh(Net())
    whole = batch_of(5)
    padded = jax.tree.map(lambda x: np.concatenate([x, x[:3] * 0]), whole)
    padded["image"][5:] = 1e3
    (a, metrics_a), (b, metrics_b) = step(state, whole, KEY), step(state, padded, KEY)
    chex.assert_trees_all_close(a, b, rtol=2e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics_a, metrics_b, rtol=2e-5)
    assert float(metrics_b["count"]) == 5


def test_metrics_are_those_of_the_whole_batch_before_the_update():
    state, batch = fresh(Net()), batch_of(8, 5)
    _, metrics = jitted(Net())(state, batch, KEY)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    apply = jax.jit(partial(Net().apply, train=True, mutable=["batch_stats"]))
    logits, _ = apply(variables, batch["image"], mask=batch["mask"])
    logits, label = np.asarray(logits, np.float64)[:5], batch["label"][:5]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(metrics["loss"], -log_p[np.arange(5), label].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["error"], (logits.argmax(-1) != label).mean(), rtol=1e-6)


def test_dropout_differs_from_step_to_step_and_one_key_gives_one_result():
    model, optimizer, batch = Perceptron(), optax.sgd(0.0), batch_of(8)
    step, state = jitted(model, optimizer), fresh(model, optimizer)
    once, first = step(state, batch, KEY)
    _, again = step(state, batch, KEY)
    _, second = step(once, batch, KEY)
    assert first["loss"] == again["loss"]
    assert first["loss"] != second["loss"]  # the parameters stand still, the step number does not


def test_ema_is_the_average_of_the_parameters():
    model, decay = Perceptron(), 0.75
    step, state = jitted(model, ema=decay), fresh(model, ema=True)
    expected = jax.tree.map(np.asarray, state.params)
    for i in range(3):
        state, _ = step(state, batch_of(8, seed=i), KEY)
        expected = jax.tree.map(lambda e, p: decay * e + (1 - decay) * np.asarray(p), expected, state.params)
    chex.assert_trees_all_close(state.ema, expected, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_equal(state.eval_variables["params"], state.ema)


def test_ema_stands_still_between_updates():
    model = Perceptron()
    optimizer = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    step, state = (
        jitted(model, optimizer, ema=0.5, updates_before=lambda step: step // 2),
        fresh(model, optimizer, ema=True),
    )
    state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.params))
    after_one, _ = step(state, batch_of(8), KEY)
    after_two, _ = step(after_one, batch_of(8), KEY)
    chex.assert_trees_all_equal(after_one.ema, state.ema)
    assert not np.allclose(after_two.ema["head"]["kernel"], state.ema["head"]["kernel"])


SAM = make_optimizer(config.Optimizer("sgd", sam=0.5), 0.05)


@pytest.mark.parametrize("model", [Net(), Perceptron()])
def test_sam_takes_the_gradient_of_the_same_batch_and_dropout_uphill(model):
    """Two steps without it give the same: the first climbs, the second descends by its gradient from the start."""
    batch, state = batch_of(8), fresh(model, optax.sgd(1.0))
    once, metrics = jitted(model, optax.sgd(1.0))(state, batch, KEY)  # by minus the gradient
    length = 0.5 / float(metrics["grad_norm"])
    uphill = jax.tree.map(lambda w, after: w + length * (w - after), state.params, jax.device_get(once.params))
    above, _ = jitted(model, optax.sgd(1.0))(state.replace(params=uphill), batch, KEY)
    expected = jax.tree.map(lambda w, u, after: w + 0.05 * (after - u), state.params, uphill, above.params)
    ours, ours_metrics = jitted(model, SAM)(fresh(model, SAM), batch, KEY)
    chex.assert_trees_all_close(ours.params, expected, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(ours.batch_stats, once.batch_stats, rtol=1e-6)  # not those uphill
    np.testing.assert_allclose(ours_metrics["loss"], metrics["loss"], rtol=1e-6)
    assert not np.allclose(ours.params["head"]["kernel"], state.params["head"]["kernel"], atol=1e-4)


def run(model, strategy, count, batches, optimizer=SGD, **options):
    mesh = make_mesh(count, strategy, len(batches[0]["label"]))
    step = make(model, optimizer, **options)

    def with_rows(state, data, rows, key, **axis):
        return step(state, rows, key, **axis)

    compiled = mesh.step(with_rows)
    state = mesh.replicate(fresh(model, optimizer))
    for batch in batches:
        state, metrics = compiled(state, (), mesh.to_devices(batch), KEY)
    return jax.device_get((state, metrics))


def test_eight_devices_by_jit_equal_one():
    batches = [batch_of(16, 16 if i < 4 else 13, seed=i) for i in range(5)]
    one, eight = (run(Net(), "jit", count, batches) for count in (1, 8))
    chex.assert_trees_all_close(one[0].params, eight[0].params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(one[0].batch_stats, eight[0].batch_stats, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(one[1], eight[1], rtol=1e-4)


def test_pmap_equals_jit_on_a_net_without_batch_norm():
    model, batches = zoo.create("mlp", width=16), [batch_of(16, 16 if i < 4 else 11, seed=i) for i in range(5)]
    by_jit, by_pmap = (run(model, strategy, 8, batches, SAM) for strategy in ("jit", "pmap"))
    chex.assert_trees_all_close(by_jit, by_pmap, rtol=1e-5, atol=1e-6)


def test_pmap_normalizes_per_device_and_keeps_the_moments_of_replica_0():
    model, batch = Net(), batch_of(16)
    state, _ = run(model, "pmap", 2, [batch])
    halves = [jax.tree.map(lambda x, i=i: x[8 * i : 8 * i + 8], batch) for i in range(2)]
    states = [jax.device_get(jitted(model)(fresh(model), half, KEY)[0]) for half in halves]
    chex.assert_trees_all_close(state.batch_stats, states[0].batch_stats, rtol=1e-5, atol=1e-6)
    # and the gradient is that of the mean over both halves, each normalized by itself
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *(s.params for s in states))
    chex.assert_trees_all_close(state.params, mean, rtol=1e-4, atol=1e-6)


def test_pmap_draws_other_dropout_masks_on_each_device():
    half = batch_of(8)
    both = jax.tree.map(lambda x: np.concatenate([x, x]), half)
    _, once = run(Perceptron(), "pmap", 1, [half])
    _, twice = run(Perceptron(), "pmap", 2, [both])
    assert once["loss"] != twice["loss"]  # equal masks would give the same mean twice


def test_evaluation_of_a_row_does_not_depend_on_the_others():
    state, batch = fresh(Net()), batch_of(16)
    evaluate = partial(eval_step, model=Net(), task=TEN)
    mesh = make_mesh(8, batch_size=16)
    step = mesh.evaluation(lambda variables, data, rows: evaluate(variables, rows))
    together = jax.device_get(step(mesh.replicate(state.eval_variables), (), mesh.split_rows(batch)))
    alone = jax.jit(evaluate)(state.eval_variables, jax.tree.map(lambda x: x[3:4], batch))
    np.testing.assert_allclose(together["loss"][3], alone["loss"][0], rtol=1e-5)
    np.testing.assert_array_equal(together["classes"][3], alone["classes"][0])


def test_half_precision_keeps_parameters_and_statistics_in_float32():
    model = Net(jnp.bfloat16)
    state, metrics = jitted(model)(fresh(Net()), batch_of(8), KEY)
    chex.assert_type(jax.tree.leaves((state.params, state.batch_stats)), jnp.float32)
    chex.assert_type(metrics["loss"], jnp.float32)
    _, exact = jitted(Net())(fresh(Net()), batch_of(8), KEY)
    np.testing.assert_allclose(metrics["loss"], exact["loss"], rtol=0.03)
    assert metrics["loss"] != exact["loss"]
