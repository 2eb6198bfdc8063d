"""Groups of parameters by path: different rates and decays, frozen to the bit, thawed at an epoch."""

import dataclasses

import chex
import jax
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from deepjax import config
from deepjax.errors import InputError
from deepjax.optimizers import OPTIMIZERS, make_optimizer, make_schedule, slow_params
from deepjax.optimizers.groups import labels

KEY = jax.random.key(0)


def params_of(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "stem_conv": {"kernel": (3, 2)},
        "stage1_first": {"norm": {"scale": (2,), "bias": (2,)}, "conv": {"kernel": (2, 2)}},
        "head": {"kernel": (2, 3), "bias": (3,)},
    }
    return jax.tree.map(
        lambda shape: rng.standard_normal(shape, dtype=np.float32),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple),
    )


def run(optimizer, updates=6, *, rate=0.1, schedule=config.Schedule(), params=None, **times):  # noqa: B008
    """(the parameters after each update, the last state); gradients are equal for equal parameters."""
    params = params_of() if params is None else params
    transform = make_optimizer(optimizer, rate, schedule, **times)
    state, trajectory = transform.init(params), []

    @jax.jit
    def update(params, state, noises):
        gradients = jax.tree.map(lambda p, noise: 0.5 * p + noise, params, noises)
        changes, state = transform.update(gradients, state, params)
        return optax.apply_updates(params, changes), state

    for step in range(updates):
        noises = {part: noise for part, noise in params_of(step + 1).items() if part in params}
        params, state = update(params, state, noises)
        params = jax.tree.map(np.asarray, params)
        trajectory.append(params)
    return trajectory, state


def test_the_first_pattern_that_matches_gives_the_label():
    tree = {"stem": {"kernel": 0}, "head": {"kernel": 0, "bias": 0}, "stage1_rest": {"unit": {"bias": 0}}}
    assert labels({"head/*": None, "*/bias": None, "stage?_*": None, "": None}, tree) == {
        "stem": {"kernel": ""},
        "head": {"kernel": "head/*", "bias": "head/*"},
        "stage1_rest": {"unit": {"bias": "*/bias"}},
    }


@pytest.mark.parametrize("name", ["adamw", "rprop"])
def test_each_group_goes_as_if_it_were_alone(name):
    """With its own rate, which the schedule scales, and its own weight decay."""
    groups = {"head/*": {"learning_rate": 0.3, "weight_decay": 0.5}, "stem_conv/*": {"weight_decay": 0}}
    if "epsilon" in OPTIMIZERS[name].usual:
        groups["head/*"]["epsilon"] = 0.1
    optimizer = config.Optimizer(name=name, learning_rate=0.2, weight_decay=0.1)

    def rate(peak):
        return peak if name == "rprop" else lambda count: peak / (1 + count)

    together, _ = run(dataclasses.replace(optimizer, groups=groups), rate=rate(0.2))
    for part, pattern, peak in (("head", "head/*", 0.3), ("stem_conv", "stem_conv/*", 0.2), ("stage1_first", "", 0.2)):
        only = {part: params_of()[part]}
        alone, _ = run(dataclasses.replace(optimizer, **groups.get(pattern, {})), rate=rate(peak), params=only)
        chex.assert_trees_all_close([p[part] for p in together], [p[part] for p in alone], rtol=1e-5, atol=1e-6)


def test_groups_are_torchs():
    torch = pytest.importorskip("torch")
    optimizer = config.Optimizer(
        "adamw",
        learning_rate=0.1,
        weight_decay=0.2,
        groups={"head/*": {"learning_rate": 0.5, "momentum": 0.5}, "stem*": {"weight_decay": 0.0}},
    )
    ours, _ = run(optimizer)
    leaves = jax.tree.map(lambda p: torch.tensor(np.array(p), requires_grad=True), params_of())
    theirs = torch.optim.AdamW(
        [
            {"params": [leaves["head"]["kernel"]], "lr": 0.5, "betas": (0.5, 0.999), "weight_decay": 0.2},
            {"params": [leaves["head"]["bias"]], "lr": 0.5, "betas": (0.5, 0.999)},
            {"params": [leaves["stem_conv"]["kernel"]]},
            {"params": [leaves["stage1_first"]["conv"]["kernel"]], "weight_decay": 0.2},
            {"params": list(leaves["stage1_first"]["norm"].values())},
        ],
        lr=0.1,
        weight_decay=0.0,
    )
    for step, after in enumerate(ours):
        for leaf, noise in zip(jax.tree.leaves(leaves), jax.tree.leaves(params_of(step + 1)), strict=True):
            leaf.grad = 0.5 * leaf.detach() + torch.tensor(np.array(noise))
        theirs.step()
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(leaves), strict=True):
            assert_allclose(a, b.detach(), rtol=1e-4, atol=1e-5)


# Frozen


def numbers(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_frozen_group_costs_no_state(name):
    optimizer = config.Optimizer(name=name, weight_decay=0.1, clip_norm=0.5, clip_adaptive=0.5, lookahead=2)
    groups, params = {"stem*": {"frozen": True}, "stage1*": {"frozen": True}}, params_of()

    def count(params, **fields):
        return numbers(jax.eval_shape(make_optimizer(dataclasses.replace(optimizer, **fields), 0.1).init, params))

    assert count(params, groups=groups) == count({"head": params["head"]}) < count(params)
    assert count(params, groups=groups, accumulate=2) == count({"head": params["head"]}, accumulate=2)


@pytest.mark.parametrize("name", ["adamw", "lbfgs"])
def test_a_frozen_group_stands_still_to_the_bit(name):
    """With decay, clipping, lookahead and accumulation, the trained part goes as if the rest were not there."""
    optimizer = config.Optimizer(
        name=name, weight_decay=0.1, clip_norm=0.5, clip_adaptive=0.5, clip_value=0.4, lookahead=2, accumulate=2
    )
    groups = {"stem*": {"frozen": True}, "stage1*": {"frozen": True}}
    before = params_of()
    together, _ = run(dataclasses.replace(optimizer, groups=groups))
    for after in together:
        chex.assert_trees_all_equal(*({k: v for k, v in p.items() if k != "head"} for p in (after, before)))
    assert not np.allclose(together[-1]["head"]["kernel"], before["head"]["kernel"])
    alone, _ = run(optimizer, params={"head": before["head"]})
    for ours, expected in zip(together, alone, strict=True):
        chex.assert_trees_all_close(ours["head"], expected["head"], rtol=1e-6, atol=1e-7)


def test_slow_weights_of_a_net_with_frozen_parameters_are_whole():
    optimizer = config.Optimizer("sgd", lookahead=5, groups={"stem*": {"frozen": True}})
    trajectory, state = run(optimizer, 7)
    slow = jax.jit(slow_params)(state, trajectory[-1])
    chex.assert_trees_all_equal(slow, trajectory[4])
    chex.assert_trees_all_equal(slow["stem_conv"], params_of()["stem_conv"])


def test_clip_norm_is_of_what_is_trained():
    """Neither frozen gradients nor those that wait for their epoch count."""
    params = {name: {"kernel": np.zeros(2, np.float32)} for name in "abc"}
    gradients = jax.tree.map(lambda p: p + np.float32([3, 4]), params)
    optimizer = config.Optimizer(
        "sgd", clip_norm=5.0, groups={"a/*": {"frozen": True}, "b/*": {"frozen_until": 1}}, learning_rate=1.0
    )
    transform = make_optimizer(optimizer, 1.0, epochs=2, steps_per_epoch=1)
    state, update = jax.jit(transform.init)(params), jax.jit(transform.update)
    for shrink in (1.0, np.sqrt(0.5)):
        updates, state = update(gradients, state, params)
        assert_allclose(updates["c"]["kernel"], -shrink * np.array([3, 4]), rtol=1e-6)


@pytest.mark.parametrize(("schedule", "accumulate"), [("cosine", 1), ("one_cycle", 2)])
def test_a_group_thaws_at_its_epoch_with_a_fresh_state_and_the_runs_rate(schedule, accumulate):
    """As PyTorch's optimizers do with parameters that have had no gradient."""
    optimizer = config.Optimizer(
        "adam", weight_decay=0.1, accumulate=accumulate, groups={"head/*": {"frozen_until": 2}}
    )
    schedule, times = config.Schedule(schedule), {"epochs": 4, "steps_per_epoch": 2 * accumulate}
    rate = make_schedule(optimizer, schedule, **times)
    trajectory, _ = run(optimizer, 8 * accumulate, rate=rate, schedule=schedule, **times)
    for after in trajectory[: 5 * accumulate - 1]:
        chex.assert_trees_all_equal(after["head"], params_of()["head"])
    assert not np.array_equal(trajectory[5 * accumulate - 1]["head"]["bias"], params_of()["head"]["bias"])
    # By hand, from update 4 on.
    w, m, v = np.asarray(params_of()["head"]["kernel"], np.float64), 0.0, 0.0
    half = (1 + np.cos(np.pi * (np.arange(8) - 1.4) / (7 - 1.4))) / 2  # one_cycle's way from the peak at 1.4 to 7
    b1s = 0.95 + (0.85 - 0.95) * half if schedule.name == "one_cycle" else np.full(8, 0.9)
    for update in range(4, 8):
        noise = [params_of(i + 1)["head"]["kernel"] for i in range(update * accumulate, (update + 1) * accumulate)]
        g = 0.5 * w + np.mean(noise, 0) + 0.1 * w
        b1, t = b1s[update], update - 3
        m, v = b1 * m + (1 - b1) * g, 0.999 * v + 0.001 * g * g
        w = w - float(rate(update)) * (m / (1 - b1**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        assert_allclose(trajectory[(update + 1) * accumulate - 1]["head"]["kernel"], w, rtol=1e-4, atol=1e-5)


def test_thawing_never_comes_before_its_epoch():
    """Where an epoch ends with a smaller update: 5 batches an epoch, 4 an update."""
    optimizer = config.Optimizer("sgd", accumulate=4, groups={"head/*": {"frozen_until": 1}})
    trajectory, _ = run(optimizer, 12, epochs=3, steps_per_epoch=5)
    moved = [not np.array_equal(p["head"]["bias"], params_of()["head"]["bias"]) for p in trajectory]
    assert moved.index(True) == 8  # the update of batches 6 to 9, the third


def test_a_group_can_be_left_out_of_adaptive_clipping():
    """As Brock et al. 2021 do with the last layer."""
    params = params_of()
    optimizer = config.Optimizer("sgd", clip_adaptive=0.01, groups={"head/*": {"clip_adaptive": None}})
    transform = make_optimizer(optimizer, 1.0)
    updates, _ = jax.jit(lambda params: transform.update(params, transform.init(params), params))(params)
    assert_allclose(updates["head"]["kernel"], -params["head"]["kernel"], rtol=1e-6)
    assert_allclose(updates["stem_conv"]["kernel"], -0.01 * params["stem_conv"]["kernel"], rtol=1e-5)


# What is refused


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"head/*": {"learning_rat": 0.1}}, "'learning_rat' is not a setting of a group; did you mean 'learning_rate'"),
        ({"head/*": {"accumulate": 2}}, "'accumulate' is not a setting"),
        ({"head/*": {"learning_rate": "0.1"}}, "learning_rate '0.1' must be a number"),
        ({"head/*": {"learning_rate": True}}, "learning_rate True must be a number"),
        ({"head/*": {"learning_rate": 0}}, "'head/[*]': optimizer.learning_rate 0 must be greater than 0"),
        ({"head/*": {"second_moment": 0.9}}, "'head/[*]': optimizer.second_moment 0.9 does nothing for momentum"),
        ({"head/*": {"frozen": 1}}, "frozen 1 must be true or false"),
        (
            {"head/*": {"frozen": True, "learning_rate": 0.1}},
            "frozen group has no other settings; leave out .'learning_rate'",
        ),
        ({"head/*": {"frozen_until": -1}}, "frozen_until -1"),
        ({"head/*": {"frozen_until": 5}}, "frozen_until 5 is not within the 5 epochs"),
        ({"head/*": {}}, "a group needs"),
        ({"head/*": 0.1}, "must be a dict"),
    ],
)
def test_group_errors(groups, message):
    with pytest.raises(InputError, match=f"optimizer.groups .*{message}"):
        make_optimizer(config.Optimizer(groups=groups), 0.1, epochs=5, steps_per_epoch=1)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"stem/*": {"frozen": True}}, "matches no parameter; did you mean 'stem_conv/[*]'"),
        ({"stage1_first/nrom/*": {"frozen": True}}, "did you mean 'stage1_first/norm/[*]'"),
        ({"head/kernal": {"frozen": True}}, "did you mean 'head/kernel'"),
        ({"xyz": {"frozen": True}}, "choose from head/[*], stage1_first/[*], stem_conv/[*]"),
        ({"*": {"learning_rate": 0.5}, "head/*": {"frozen": True}}, "earlier patterns match all"),
        ({"*/bias": {"weight_decay": 0.5}}, "weight_decay 0.5 does nothing"),
        ({"head/*": {"frozen": True}, "st*": {"frozen": True}}, "leaves nothing to train"),
    ],
)
def test_patterns_that_do_nothing_are_refused_when_the_state_is_made(groups, message):
    transform = make_optimizer(config.Optimizer(groups=groups), 0.1)
    with pytest.raises(InputError, match=f"optimizer.groups.*{message}"):
        jax.eval_shape(transform.init, params_of())


def test_lbfgs_takes_no_groups_but_frozen_ones():
    with pytest.raises(InputError, match="'head/[*]': lbfgs treats all parameters as one vector"):
        make_optimizer(config.Optimizer("lbfgs", groups={"head/*": {"learning_rate": 0.5}}), 0.1)


def test_one_cycle_sets_the_momentum_of_every_group():
    optimizer = config.Optimizer(groups={"head/*": {"momentum": 0.5}})
    with pytest.raises(InputError, match="optimizer.momentum 0.5 does nothing with schedule.name one_cycle"):
        make_optimizer(optimizer, 0.1, config.Schedule("one_cycle"), epochs=1, steps_per_epoch=1)
