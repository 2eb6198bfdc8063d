"""Batch norms' moments, estimated for averaged weights."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import layers
from deepjax.tasks import Classification
from deepjax.training import MomentEstimator, moments_step

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)


class Net(nn.Module):
    """Dense, batch norm, dropout, twice; the second pair is called `calls` times."""

    norm: type = layers.BatchNorm
    calls: int = 1
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, *, train: bool, mask=None):
        call = {"use_running_average": not train} if self.norm is nn.BatchNorm else {"train": train}
        x = nn.Dense(6, name="dense0")(x)
        call["mask"] = None if self.norm is nn.BatchNorm else mask  # Flax's mask has another shape
        x = nn.relu(self.norm(momentum=0.83, name="norm0")(x, **call))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        dense, norm = nn.Dense(6, name="dense1"), self.norm(momentum=0.4, name="norm1")
        for _ in range(self.calls):
            x = nn.relu(norm(dense(x), **call))
        return x


def estimated(model, variables, batches, key=KEY):
    """Moments by `moments_step`; batches are (x, mask)."""
    step = jax.jit(partial(moments_step, model=model, task=Classification(())))
    for count, (x, mask) in enumerate(batches):
        batch = {"image": x, "label": mask, "mask": mask}
        variables = variables | {"batch_stats": step(variables, batch, jax.random.fold_in(key, count), count)}
    return variables["batch_stats"]


def batches_of(x, size):
    """(rows, mask) of batches; the last is padded with NaN, which must not count."""
    for start in range(0, len(x), size):
        rows = x[start : start + size]
        padding = np.full((size - len(rows), *x.shape[1:]), np.nan, np.float32)
        yield np.concatenate([rows, padding]), np.arange(size) < len(rows)


@pytest.mark.parametrize("calls", [1, 3])
def test_moments_equal_pytorchs_update_bn_the_smaller_last_batch_and_shared_layers_too(calls):
    torch = pytest.importorskip("torch")
    model = Net(norm=partial(layers.BatchNorm, unbiased=True), calls=calls)
    x = np.random.default_rng(0).normal(1.5, 2, (43, 6)).astype(np.float32)
    variables = model.init(KEY, x[:2], train=False)

    class Twin(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(2))
            self.norm = torch.nn.ModuleList(torch.nn.BatchNorm1d(6, momentum=0.3) for _ in range(2))
            for i, dense in enumerate(self.dense):
                kernel = np.array(variables["params"][f"dense{i}"]["kernel"])
                dense.weight.data, dense.bias.data = torch.tensor(kernel.T.copy()), torch.zeros(6)

        def forward(self, x):
            x = torch.relu(self.norm[0](self.dense[0](x)))
            for _ in range(calls):
                x = torch.relu(self.norm[1](self.dense[1](x)))
            return x

    twin = Twin()
    torch.optim.swa_utils.update_bn([torch.tensor(x[i : i + 8]) for i in range(0, 43, 8)], twin)
    ours = estimated(model, variables, batches_of(x, 8))
    for i in range(2):
        np.testing.assert_allclose(ours[f"norm{i}"]["mean"], twin.norm[i].running_mean.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours[f"norm{i}"]["var"], twin.norm[i].running_var.numpy(), rtol=1e-5)


@pytest.mark.parametrize("norm", [layers.BatchNorm, nn.BatchNorm])
def test_moments_are_the_mean_of_the_batches_moments_whatever_was_there_before(norm):
    x = np.random.default_rng(1).normal(3, 2, (24, 6)).astype(np.float32)
    model = Net(norm=norm)
    variables = model.init(KEY, x[:2], train=False)
    spoiled = variables | {"batch_stats": jax.tree.map(lambda leaf: leaf + 1e30, variables["batch_stats"])}
    ours = estimated(model, spoiled, batches_of(x, 8))
    first = x @ np.asarray(variables["params"]["dense0"]["kernel"], np.float64)
    batches = first.reshape(3, 8, 6)
    np.testing.assert_allclose(ours["norm0"]["mean"], batches.mean(1).mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours["norm0"]["var"], batches.var(1).mean(0), rtol=1e-4)
    # The module that was used keeps its own momentum.
    again = model.apply(variables, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]
    np.testing.assert_allclose(again["norm0"]["mean"], (1 - 0.83) * first.mean(0), rtol=1e-4, atol=1e-5)


class Unit(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.BatchNorm(use_running_average=False, momentum=0.95, name="norm")(nn.Dense(6)(x))), None


class Deep(nn.Module):
    """Units in a scan, each recomputed in the backward pass; a layer that keeps something else in batch_stats."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        axes = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(nn.remat(Unit), length=3, **axes)(name="units")(x, None)
        return nn.SpectralNorm(nn.Dense(6), name="spectral")(x, update_stats=train)


def test_moments_of_scanned_layers_and_what_else_batch_stats_may_hold():
    x = np.random.default_rng(2).normal(size=(32, 6)).astype(np.float32)
    model = Deep()
    variables = model.init(KEY, x[:2], train=False)
    masked = [(x[:16], np.ones(16, bool)), (x[16:], np.ones(16, bool))]
    ours = estimated(model, variables, masked)
    # From zero, one step leaves 5 % of the batch's moments.
    zero = jax.tree.map(jnp.zeros_like, variables["batch_stats"]["units"])
    kept = []
    state = variables["batch_stats"]
    for rows, _ in masked:
        _, new = model.apply(variables | {"batch_stats": state | {"units": zero}}, rows, train=True, mutable=True)
        state = new["batch_stats"]
        kept.append(jax.tree.map(lambda leaf: leaf / 0.05, state["units"]))
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *kept)
    chex.assert_trees_all_close(ours["units"], expected, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(ours["spectral"], state["spectral"], rtol=1e-5)  # moved on, not averaged


def test_dropout_is_at_work_while_moments_are_estimated():
    x = np.random.default_rng(3).normal(size=(64, 6)).astype(np.float32)
    model = Net(dropout=0.5)
    variables = model.init(KEY, x[:2], train=False)
    one, same, other = (estimated(model, variables, batches_of(x, 32), jax.random.key(k)) for k in (1, 1, 2))
    chex.assert_trees_all_equal(one, same)
    assert not np.allclose(one["norm1"]["mean"], other["norm1"]["mean"])
    chex.assert_trees_all_equal(one["norm0"], other["norm0"])


def test_a_network_without_batch_stats_reads_nothing():
    class Unread:
        def epoch(self, _):
            raise AssertionError

    variables = {"params": {"kernel": jnp.ones(2)}, "batch_stats": {}}
    assert MomentEstimator(None, Unread(), None)(variables) is variables
