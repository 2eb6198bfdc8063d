"""Optimizers, groups and schedules in the training step and in a run: frozen parts, plateaus, resuming, devices."""

import dataclasses
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import helpers
from deepjax import config, data, inference, zoo
from deepjax.errors import InputError, Stopped
from deepjax.optimizers import make_optimizer
from deepjax.parallel import make_mesh
from deepjax.tasks import Classification
from deepjax.training import init_state, train_step

KEY = jax.random.key(0)


# In the step


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((8, 3, 3, 2)).astype(np.float32),
        "label": rng.integers(0, 10, 8).astype(np.int32),
        "mask": np.ones(8, bool),
    }


def steps(model, optimizer, count, strategy="jit", devices=1, **options):
    transform = make_optimizer(optimizer, 0.1)
    state = init_state(model, transform, KEY, (3, 3, 2), ema=bool(options.get("ema")))
    before, losses = jax.device_get(state), []
    pure = partial(
        train_step,
        model=model,
        task=Classification(tuple("0123456789")),
        optimizer=transform,
        schedule=lambda count: 0.1,
        **options,
    )
    mesh = make_mesh(devices, strategy)
    step = mesh.step(lambda state, _, rows, key, **axis: pure(state, rows, key, **axis))
    state = mesh.replicate(state)
    for _ in range(count):
        state, metrics = step(state, (), mesh.to_devices(batch()), KEY)
        losses.append(float(metrics["loss"]))
    return before, jax.device_get(state), losses


def test_frozen_parts_of_a_net_and_their_moving_averages_stand_still_to_the_bit():
    model = zoo.create("mlp", depth=3, width=4)
    names = list(jax.eval_shape(lambda: model.init(KEY, batch()["image"], train=False))["params"])
    optimizer = config.Optimizer(
        weight_decay=0.1,
        clip_norm=1.0,
        clip_adaptive=0.1,
        lookahead=2,
        groups={f"{name}/*": {"frozen": True} for name in names[:2]},
    )
    before, after, _ = steps(model, optimizer, 3, ema=0.9)
    assert len(names) > 2
    for part in names:
        for tree in (after.params, after.ema, after.eval_variables["params"]):
            equal = jax.tree.map(np.array_equal, tree[part], before.params[part])
            assert all(jax.tree.leaves(equal)) == (part in names[:2]), part


def test_a_line_search_is_the_same_on_one_device_and_on_two_by_pmap():
    model = zoo.create("mlp", depth=1, width=4)
    optimizer = config.Optimizer("lbfgs", learning_rate=0.1, line_search=True)
    (_, one, losses), (_, two, other_losses) = (
        steps(model, optimizer, 4, strategy, devices) for strategy, devices in (("jit", 1), ("pmap", 2))
    )
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.97 * losses[0]
    assert_allclose(other_losses, losses, rtol=1e-4)
    chex.assert_trees_all_close(two.params, one.params, rtol=1e-3, atol=1e-4)


# In a run

SPIRALS = config.Config(
    data=config.Data(name="spirals"),
    model="mlp",
    model_options={"width": 8},
    optimizer=config.Optimizer(name="nesterov", learning_rate=0.01),
    devices=config.Devices(count=1),
    epochs=4,
    batch_size=400,
    log_every=1,
)


def train(folder, **changes):
    return helpers.train(SPIRALS, folder, **changes)


@pytest.mark.slow
def test_a_resumed_run_has_the_numbers_of_one_that_never_stopped(tmp_path, monkeypatch):
    """With a plateau, groups that are frozen, thawed and have other rates, lookahead and a moving average."""
    model = zoo.create("mlp", width=8, num_classes=2)
    names = list(jax.eval_shape(lambda: model.init(KEY, jnp.ones((1, 2)), train=False))["params"])
    groups = {
        f"{names[0]}/*": {"frozen_until": 3},
        f"{names[1]}/kernel": {"frozen": True},
        "*/bias": {"learning_rate": 0.005},
    }
    changes = {
        "optimizer": config.Optimizer("adam", learning_rate=0.01, lookahead=2, groups=groups),
        # Nothing is an improvement by 99 %: the rate falls after each epoch but the first.
        "schedule": config.Schedule("plateau", patience=0, threshold=0.99, factor=0.5),
        "ema": 0.9,
    }
    train(tmp_path / "whole", **changes)
    helpers.stop_after(monkeypatch, 7)  # in the third epoch, before the group thaws
    with pytest.raises(Stopped):
        train(tmp_path / "parts", **changes)
    monkeypatch.undo()
    stopped = helpers.newest_state(tmp_path / "parts")
    train(tmp_path / "parts", **changes)
    whole = helpers.newest_state(tmp_path / "whole")
    assert helpers.records(tmp_path / "parts") == helpers.records(tmp_path / "whole")
    chex.assert_trees_all_equal(helpers.newest_state(tmp_path / "parts"), whole)
    for name, equal in zip(names[:2], (False, True), strict=True):
        assert np.array_equal(stopped["params"][name]["kernel"], whole["params"][name]["kernel"]) == equal
    chex.assert_trees_all_equal(stopped["ema"][names[0]], stopped["params"][names[0]])
    assert inference.load_run(tmp_path / "whole").config.optimizer.groups == groups
    by_epoch = {}
    for row in helpers.records(tmp_path / "whole"):
        if row["kind"] == "train":
            by_epoch.setdefault(math.ceil(row["epoch"]), set()).add(row["learning_rate"])
    assert {epoch: [round(rate, 6) for rate in rates] for epoch, rates in by_epoch.items()} == {
        1: [0.01], 2: [0.01], 3: [0.005], 4: [0.0025],
    }  # fmt: skip


def test_a_plateau_on_several_devices_and_without_a_validation_set(tmp_path, monkeypatch):
    def load(*arguments, load=data.load, **given):
        dataset = load(*arguments, **given)
        return dataclasses.replace(dataset, validation=dataset.validation.take(np.arange(0)))

    monkeypatch.setattr(data, "load", load)
    schedule = config.Schedule("plateau", patience=0, threshold=0.99)
    changes = {"model_options": {"depth": 1}, "devices": config.Devices("pmap", 2)}
    train(tmp_path / "run", schedule=schedule, epochs=3, **changes)
    last = [row for row in helpers.records(tmp_path / "run") if row["kind"] == "train"][-1]
    assert_allclose(last["learning_rate"], 0.001, rtol=1e-5)


def test_groups_that_the_model_has_not_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"freeze .optimizer.groups. 'haed/[*]' matches no parameter; did you mean"):
        train(tmp_path / "run", optimizer=config.Optimizer(groups={"haed/*": {"frozen": True}}))
    assert not (tmp_path / "run").exists()
