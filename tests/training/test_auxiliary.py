"""Auxiliary heads in the step, and frozen batch norms that keep their moments."""

from functools import cache, partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepjax.errors import InputError
from deepjax.layers import BatchNorm
from deepjax.parallel import make_mesh
from deepjax.tasks import Classification
from deepjax.training import init_state, train_step
from deepjax.units import stack

KEY = jax.random.key(0)
SGD = optax.sgd(0.1)


class Headed(nn.Module):
    """Logits, and in training those of two auxiliary heads."""

    auxiliary_weight = 0.3

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        h = nn.relu(nn.Dense(8, name="hidden")(x))
        h = BatchNorm(name="norm")(h, train=train, mask=mask)
        logits = nn.Dense(4, name="head")(h)
        if train or self.is_initializing():
            others = nn.Dense(4, name="auxiliary1")(x), nn.Dense(4, name="auxiliary2")(h)
        return (logits, *others) if train else logits


def step_of(model, optimizer=SGD, of_task={}, **options):  # noqa: B006
    return partial(
        train_step,
        model=model,
        optimizer=optimizer,
        schedule=lambda count: 0.1,
        task=Classification(tuple("abcd"), auxiliary_weight=getattr(model, "auxiliary_weight", 0.0), **of_task),
        **options,
    )


@cache
def fresh(model, optimizer=SGD):
    return jax.device_get(init_state(model, optimizer, KEY, (6,)))


def outputs(model, state, batch):
    """(logits of all heads in training, moments after it)."""
    apply = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    return apply({"params": state.params, "batch_stats": state.batch_stats}, batch["image"], mask=batch["mask"])


def batch_of(size, valid, features=6, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((size, features)).astype(np.float32),
        "label": rng.integers(0, 4, size).astype(np.int32),
        "mask": np.arange(size) < valid,
    }


def entropy(logits, targets):
    logits = np.asarray(logits, np.float64)
    return -(targets * (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).sum(-1)


def test_auxiliary_heads_join_the_loss_by_their_weight():
    state, batch = fresh(Headed()), batch_of(8, 5)
    new, metrics = jax.device_get(jax.jit(step_of(Headed()))(state, batch, KEY))
    (logits, *others), moments = outputs(Headed(), state, batch)
    losses = [entropy(each, np.eye(4)[batch["label"]])[:5].mean() for each in (logits, *others)]
    np.testing.assert_allclose(metrics["loss"], losses[0] + 0.3 * (losses[1] + losses[2]), rtol=1e-6)
    wrong = np.asarray(logits).argmax(-1)[:5] != batch["label"][:5]
    np.testing.assert_allclose(metrics["error"], wrong.mean(), rtol=1e-6)
    chex.assert_trees_all_close(new.batch_stats, moments["batch_stats"], rtol=1e-6)
    # The first head sees x alone: its gradient is 0.3 times the softmax's error, times x.
    probabilities = np.exp(np.asarray(others[0], np.float64))
    probabilities /= probabilities.sum(-1, keepdims=True)
    error = (probabilities - np.eye(4)[batch["label"]])[:5] / 5
    gradient = 0.3 * batch["image"][:5].T @ error
    moved = state.params["auxiliary1"]["kernel"] - new.params["auxiliary1"]["kernel"]
    np.testing.assert_allclose(moved / 0.1, gradient, rtol=2e-4, atol=1e-6)


def test_auxiliary_heads_without_a_weight_are_refused():
    class Weightless(Headed):
        auxiliary_weight = 0.0

    with pytest.raises(InputError, match="2 auxiliary outputs in training, but has no auxiliary_weight"):
        jax.eval_shape(step_of(Weightless()), fresh(Headed()), batch_of(4, 4), KEY)


def test_auxiliary_heads_mix_and_accumulate_as_the_logits_do():
    def mix(key, image, label, mask):
        targets = 0.5 * (jnp.eye(4)[label] + jnp.eye(4)[label[::-1]])
        return image, targets

    optimizer = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    step = jax.jit(step_of(Headed(), optimizer, {"mix": mix, "smoothing": 0.1}))
    start, batch = fresh(Headed(), optimizer), batch_of(8, 8)
    (logits, *others), _ = outputs(Headed(), start, batch)
    state, metrics = step(start, batch, KEY)
    targets = 0.9 * 0.5 * (np.eye(4)[batch["label"]] + np.eye(4)[batch["label"][::-1]]) + 0.1 / 4
    losses = [entropy(each, targets).mean() for each in (logits, *others)]
    np.testing.assert_allclose(metrics["loss"], losses[0] + 0.3 * (losses[1] + losses[2]), rtol=1e-6)
    chex.assert_trees_all_equal(state.params, start.params)  # half of an update
    state, _ = step(state, batch, KEY)
    assert (np.asarray(state.params["auxiliary2"]["kernel"]) != start.params["auxiliary2"]["kernel"]).all()


@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_auxiliary_heads_on_several_devices(strategy):
    """pmap with unmasked halves that are equal has the moments of the whole batch, too."""
    if jax.local_device_count() < 2:
        pytest.skip("needs two devices")
    half = batch_of(4, 4)
    batch = jax.tree.map(lambda x: np.concatenate([x, x]), half)
    mesh = make_mesh(2, strategy)
    pure = step_of(Headed())

    def step(state, data, rows, key, axis_name=None):
        return pure(state, rows, key, axis_name=axis_name)

    state = fresh(Headed())
    alone, metrics = jax.jit(pure)(state, batch, KEY)
    found, others = mesh.step(step)(mesh.replicate(state), (), mesh.to_devices(batch), KEY)
    chex.assert_trees_all_close(found.params, alone.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(others["loss"], metrics["loss"], rtol=1e-6)


class Unit(nn.Module):
    frozen: bool = False

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        x = x + nn.Dense(x.shape[-1], name="dense")(x)
        return BatchNorm(name="norm")(x, train=train and not self.frozen, mask=mask)


class Normed(nn.Module):
    """Two batch norms and a scan over two more; `frozen`: the first and the scan's as in evaluation."""

    frozen: bool = False

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        x = nn.Dense(6, name="first")(x)
        x = BatchNorm(name="first_norm")(x, train=train and not self.frozen, mask=mask)
        x = stack(Unit(self.frozen), 2, name="rest")(x, train=train, mask=mask)
        x = BatchNorm(name="last_norm")(nn.relu(x), train=train, mask=mask)
        return nn.Dense(4, name="head")(x)


def test_kept_moments_are_those_of_evaluation_until_the_thaw():
    def step(model, **frozen):
        compiled = jax.jit(step_of(model, **frozen))
        return lambda state, batch: jax.device_get(compiled(state, batch, KEY)[0])

    state = fresh(Normed())
    plain, evaluated = step(Normed()), step(Normed(frozen=True))
    kept = step(Normed(), frozen_moments={"first*": 2, "*rest*": 2})
    always = step(Normed(), frozen_moments={"*head*": 0, "first*": None, "rest*": None})
    for count in range(3):
        batch = batch_of(8, 6, seed=count)
        expected = (evaluated if count < 2 else plain)(state, batch)
        chex.assert_trees_all_close(kept(state, batch), expected, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(always(state, batch), evaluated(state, batch), rtol=1e-5, atol=1e-6)
        before, after = state.batch_stats, expected.batch_stats
        assert bool((before["first_norm"]["mean"] == after["first_norm"]["mean"]).all()) == (count < 2)
        assert bool((before["last_norm"]["mean"] != after["last_norm"]["mean"]).any())
        state = expected
