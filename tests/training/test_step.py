"""The pure step, and the two ways in which it runs on several devices."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import zoo
from deepjax.parallel import make_mesh
from deepjax.tasks import Classification
from deepjax.training import eval_step, init_state, train_step

KEY = jax.random.key(0)


class Perceptron(nn.Module):
    """A user's own model: no mask, no batch norm."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(32, name="hidden")(x.reshape(x.shape[0], -1))
        return nn.Dense(10, name="head")(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))


TEN = Classification(tuple("0123456789"))


def make(model, optimizer=None, **options):
    optimizer = optimizer or optax.sgd(0.05, 0.9)
    return partial(
        train_step,
        model=model,
        optimizer=optimizer,
        schedule=lambda count: 0.05,
        task=TEN,
        **options,
    )


def jitted(model, optimizer=None, **options):
    return jax.jit(make(model, optimizer, **options))


def fresh(model, shape, optimizer=None, ema=False):
    return init_state(model, optimizer or optax.sgd(0.05, 0.9), KEY, shape, ema=ema)


def batch_of(size, shape, valid=None, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((size, *shape)).astype(np.float32),
        "label": rng.integers(0, 10, size).astype(np.int32),
        "mask": np.arange(size) < (size if valid is None else valid),
    }


SMALL = partial(zoo.create, "cifar_resnet", depth=14, width=4, num_classes=10)
SHAPE = (8, 8, 3)


def test_steps_lower_the_loss_on_a_fixed_batch():
    model = SMALL()
    state, batch, step = fresh(model, SHAPE), batch_of(16, SHAPE), jitted(model)
    losses = []
    for _ in range(10):
        state, metrics = step(state, batch, KEY)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 10


def test_the_second_call_does_not_recompile():
    model = SMALL()
    chex.clear_trace_counter()
    pure = make(model)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, batch, key):
        return pure(state, batch, key)

    state = fresh(model, SHAPE)
    for valid in (16, 5):
        state, _ = step(state, batch_of(16, SHAPE, valid), KEY)


def test_padding_rows_change_nothing():
    model = SMALL()
    step, state = jitted(model), fresh(model, SHAPE)
    whole = batch_of(5, SHAPE)
    padded = jax.tree.map(lambda x: np.concatenate([x, x[:3] * 0]), whole)
    padded["image"][5:] = 1e3
    (a, metrics_a), (b, metrics_b) = step(state, whole, KEY), step(state, padded, KEY)
    chex.assert_trees_all_close(a, b, rtol=2e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics_a, metrics_b, rtol=2e-5)
    assert float(metrics_b["count"]) == 5


def test_metrics_are_those_of_the_whole_batch_before_the_update():
    model = SMALL()
    state, batch = fresh(model, SHAPE), batch_of(12, SHAPE, 9)
    _, metrics = jitted(model)(state, batch, KEY)
    logits, _ = model.apply(
        {"params": state.params, "batch_stats": state.batch_stats},
        batch["image"],
        train=True,
        mask=batch["mask"],
        mutable=["batch_stats"],
    )
    logits, label = np.asarray(logits, np.float64)[:9], batch["label"][:9]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(metrics["loss"], -log_p[np.arange(9), label].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["error"], (logits.argmax(-1) != label).mean(), rtol=1e-6)


def test_dropout_differs_from_step_to_step_and_one_key_gives_one_result():
    model = Perceptron()
    state, batch = fresh(model, SHAPE), batch_of(8, SHAPE)
    step = jitted(model, optax.sgd(0.0))
    state = fresh(model, SHAPE, optax.sgd(0.0))
    once, first = step(state, batch, KEY)
    _, again = step(state, batch, KEY)
    _, second = step(once, batch, KEY)
    assert first["loss"] == again["loss"]
    assert first["loss"] != second["loss"]  # the parameters stand still, the step number does not


def test_ema_is_the_average_of_the_parameters():
    model, decay = Perceptron(), 0.75
    step, state = jitted(model, ema=decay), fresh(model, SHAPE, ema=True)
    expected = jax.tree.map(np.asarray, state.params)
    for i in range(3):
        state, _ = step(state, batch_of(8, SHAPE, seed=i), KEY)
        expected = jax.tree.map(lambda e, p: decay * e + (1 - decay) * np.asarray(p), expected, state.params)
    chex.assert_trees_all_close(state.ema, expected, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_equal(state.eval_variables["params"], state.ema)


def test_ema_stands_still_between_updates():
    model = Perceptron()
    optimizer = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    step, state = jitted(model, optimizer, ema=0.5, accumulate=2), fresh(model, SHAPE, optimizer, ema=True)
    state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.params))
    after_one, _ = step(state, batch_of(8, SHAPE), KEY)
    after_two, _ = step(after_one, batch_of(8, SHAPE), KEY)
    chex.assert_trees_all_equal(after_one.ema, state.ema)
    assert not np.allclose(after_two.ema["head"]["kernel"], state.ema["head"]["kernel"])


def run(model, strategy, count, batches, shape, **options):
    mesh = make_mesh(count, strategy, len(batches[0]["label"]))
    step = make(model, **options)

    def with_rows(state, data, rows, key, **axis):
        return step(state, rows, key, **axis)

    compiled = mesh.step(with_rows)
    state = mesh.replicate(fresh(model, shape))
    for batch in batches:
        state, metrics = compiled(state, (), mesh.to_devices(batch), KEY)
    return jax.device_get((state, metrics))


def test_eight_devices_by_jit_equal_one():
    model, batches = SMALL(), [batch_of(16, SHAPE, 16 if i < 4 else 13, seed=i) for i in range(5)]
    one, eight = (run(model, "jit", count, batches, SHAPE) for count in (1, 8))
    chex.assert_trees_all_close(one[0].params, eight[0].params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(one[0].batch_stats, eight[0].batch_stats, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(one[1], eight[1], rtol=1e-4)


def test_pmap_equals_jit_on_a_net_without_batch_norm():
    model, batches = (
        zoo.create("mlp", width=16),
        [batch_of(16, SHAPE, 16 if i < 4 else 11, seed=i) for i in range(5)],
    )
    by_jit, by_pmap = (run(model, strategy, 8, batches, SHAPE) for strategy in ("jit", "pmap"))
    chex.assert_trees_all_close(by_jit, by_pmap, rtol=1e-5, atol=1e-6)


def test_pmap_normalizes_per_device_and_keeps_the_moments_of_replica_0():
    model, batch = SMALL(), batch_of(16, SHAPE)
    state, _ = run(model, "pmap", 2, [batch], SHAPE)
    first_half = jax.tree.map(lambda x: x[:8], batch)
    alone, _ = jitted(model)(fresh(model, SHAPE), first_half, KEY)
    chex.assert_trees_all_close(state.batch_stats, jax.device_get(alone.batch_stats), rtol=1e-5, atol=1e-6)
    # and the gradient is that of the mean over both halves, each normalized by itself
    halves = [jax.tree.map(lambda x, i=i: x[8 * i : 8 * i + 8], batch) for i in range(2)]
    states = [jitted(model)(fresh(model, SHAPE), half, KEY)[0] for half in halves]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *(s.params for s in states))
    chex.assert_trees_all_close(state.params, jax.device_get(mean), rtol=1e-4, atol=1e-6)


def test_pmap_draws_other_dropout_masks_on_each_device():
    half = batch_of(8, SHAPE)
    both = jax.tree.map(lambda x: np.concatenate([x, x]), half)
    _, once = run(Perceptron(), "pmap", 1, [half], SHAPE)
    _, twice = run(Perceptron(), "pmap", 2, [both], SHAPE)
    assert once["loss"] != twice["loss"]  # equal masks would give the same mean twice


def test_evaluation_of_a_row_does_not_depend_on_the_others():
    model = SMALL()
    state, batch = fresh(model, SHAPE), batch_of(16, SHAPE)
    mesh = make_mesh(8, batch_size=16)
    step = mesh.evaluation(lambda variables, data, rows: eval_step(variables, rows, model=model, task=TEN))
    together = jax.device_get(step(mesh.replicate(state.eval_variables), (), mesh.split_rows(batch)))
    alone = jax.jit(partial(eval_step, model=model, task=TEN))(
        state.eval_variables, jax.tree.map(lambda x: x[3:4], batch)
    )
    np.testing.assert_allclose(together["loss"][3], alone["loss"][0], rtol=1e-5)
    np.testing.assert_array_equal(together["classes"][3], alone["classes"][0])


def test_half_precision_keeps_parameters_and_statistics_in_float32():
    model = SMALL(dtype=jnp.bfloat16)
    state, metrics = jitted(model)(fresh(model, SHAPE), batch_of(16, SHAPE), KEY)
    chex.assert_type(jax.tree.leaves((state.params, state.batch_stats)), jnp.float32)
    chex.assert_type(metrics["loss"], jnp.float32)
    reference = SMALL()
    _, exact = jitted(reference)(fresh(reference, SHAPE), batch_of(16, SHAPE), KEY)
    np.testing.assert_allclose(metrics["loss"], exact["loss"], rtol=0.03)
