"""Losses that are not recognized: sums of terms, targets that are far too large, and the wrong sign."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepjax.doctor.causes.data import unscaled_columns
from deepjax.doctor.causes.output import opposed_loss, suspicions
from deepjax.doctor.causes.structure import strong_decay
from deepjax.doctor.causes.terms import _is_loss, find_term, outweighing_term, with_term
from deepjax.doctor.evidence import LEARNS, Evidence
from deepjax.doctor.head import inlined
from deepjax.doctor.plan_changes import standardized_columns
from deepjax.doctor.subject import subject

RNG = np.random.default_rng(0)
X = RNG.normal(size=(256, 6)).astype(np.float32)
SCORE = X[:, 0] + X[:, 1] * X[:, 2]
P = {"mean": X[:, :3], "spread": X[:, 3:]}


def data(p, t):
    return jnp.mean((p["mean"] - t) ** 2)


def penalty(p, t):
    return jnp.sum(p["spread"] ** 2, -1).mean()


SUMS = {  # a loss, and the share of the penalty in it
    "sum": (lambda p, t: data(p, t) + penalty(p, t), 1.0),
    "weighted, first": (lambda p, t: 0.5 * penalty(p, t) + data(p, t), 0.5),
    "difference": (lambda p, t: data(p, t) - penalty(p, t), -1.0),
    "divided": (lambda p, t: (data(p, t) + penalty(p, t)) / 2, 0.5),
    "within the mean": (
        lambda p, t: jnp.mean(jnp.mean((p["mean"] - t) ** 2, -1) + 3 * jnp.sum(p["spread"] ** 2, -1)),
        3.0,
    ),
    "three terms": (lambda p, t: data(p, t) + jnp.abs(p["mean"] - t).mean() + penalty(p, t), 1.0),
    "compiled": (jax.jit(lambda p, t: data(p, t) + penalty(p, t)), 1.0),
}


@pytest.mark.parametrize("name", SUMS)
def test_the_term_without_targets_is_multiplied(name):
    loss, share = SUMS[name]
    targets = X[:, :3] * 2
    for factor in (0.0, 0.01, 1.0):
        expected = loss(P, targets) - (1 - factor) * share * penalty(P, targets)
        np.testing.assert_allclose(jax.jit(with_term(loss, factor))(P, targets), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        data,
        lambda p, t: data(p, t) * penalty(p, t),
        lambda p, t: jnp.mean((p["mean"] - t + p["spread"]) ** 2),  # a nonlinear function of the sum
        lambda p, t: data(p, t) + jnp.mean(t**2),
        penalty,
    ],
)
def test_losses_without_such_a_term_stay_as_they_are(loss):
    targets = X[:, :3] * 2
    flat, tree = jax.tree.flatten((P, targets))
    closed = jax.make_jaxpr(lambda *leaves: loss(*jax.tree.unflatten(tree, leaves)))(*flat)
    assert find_term(closed, 2) is None
    np.testing.assert_allclose(with_term(loss, 0.0)(P, targets), loss(P, targets), rtol=1e-6)


class Coder(nn.Module):
    """An auto-encoder whose code is noisy in training."""

    @nn.compact
    def __call__(self, x, train: bool):
        code = nn.Dense(6)(x)
        noisy = code + 0.3 * jax.random.normal(self.make_rng("dropout"), code.shape) if train else code
        return {"image": nn.Dense(6)(noisy), "code": code}


@pytest.mark.parametrize(("weight", "found"), [(30.0, True), (1e-3, False)])
def test_a_divergence_that_outweighs_the_reconstruction(weight, found):
    def loss(p, t):
        return jnp.mean((p["image"] - t) ** 2) + weight * jnp.mean(p["code"] ** 2)

    plan = {"optimizer": optax.adam(1e-2), "batch_size": 32, "epochs": 30}
    evidence = Evidence(subject(Coder(), (X, X), loss, **plan), jax.random.key(0), 10)
    causes = list(outweighing_term(evidence))
    assert [each.finding.code for each in causes] == ["regularization_too_strong"] * found
    if found:
        assert evidence.with_remedies(causes).planned.loss[0] < 0.5


class Detector(nn.Module):
    """Logits of three classes and one number, which start at 0."""

    @nn.compact
    def __call__(self, x):
        zeros = nn.initializers.zeros
        return {"class": nn.Dense(3, kernel_init=zeros)(x), "size": nn.Dense(1, kernel_init=zeros)(x)[:, 0]}


def test_a_cross_entropy_has_no_term_of_its_own():
    """Its log-sum-exp does not depend on the targets, but what is left without it is no loss."""

    def loss(p, t):
        labels = jax.nn.one_hot(t[:, 0].astype(int), 3)
        entropy = jnp.mean(jax.nn.logsumexp(p["class"], -1) - jnp.sum(p["class"] * labels, -1))
        return entropy + jnp.mean((p["size"] - t[:, 1]) ** 2)

    targets = RNG.integers(0, 3, (256, 2)).astype(np.float32)  # without relation to the inputs: nothing is learned
    flat, tree = jax.tree.flatten(({"class": X[:, :3], "size": X[:, 3]}, targets))
    closed = inlined(lambda *leaves: loss(*jax.tree.unflatten(tree, leaves)), flat)
    assert find_term(closed, 2) is not None
    predictions = {"class": jnp.zeros((256, 3)), "size": jnp.zeros(256)}
    assert not _is_loss(with_term(loss, 0.0), predictions, targets, jax.random.key(0))
    assert _is_loss(with_term(SUMS["sum"][0], 0.0), P, X[:, :3], jax.random.key(0))
    made = subject(Detector(), (X, targets), loss, optimizer=optax.adam(1e-2), batch_size=32, epochs=10)
    assert list(outweighing_term(Evidence(made, jax.random.key(0), 5))) == []


class Spread(nn.Module):
    """Mean and logarithm of the standard deviation, for a likelihood."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(32)(x)))


def likelihood(p, t):
    return jnp.mean(p[:, 1] + 0.5 * ((t - p[:, 0]) * jnp.exp(-p[:, 1])) ** 2)


@pytest.mark.parametrize(("scale", "found"), [(1e5, True), (1.0, False)])
def test_large_targets_of_a_loss_that_is_not_recognized(scale, found):
    targets = (scale * (4 + SCORE)).astype(np.float32)
    plan = {"optimizer": optax.adam(1e-2), "batch_size": 32, "epochs": 40}
    evidence = Evidence(subject(Spread(), (X, targets), likelihood, **plan), jax.random.key(0), 10)
    assert [each.finding.code for each in unscaled_columns(evidence)] == ["targets_not_scaled"] * found


def test_only_the_large_columns_are_standardized_in_a_dictionary_too():
    targets = np.stack([SCORE, 1e5 * (4 + SCORE)], 1).astype(np.float32)
    for wrapped, get in (({"t": targets}, lambda t: t["t"]), (targets, lambda t: t)):
        made = subject(Spread(), (X, wrapped), lambda p, t, get=get: jnp.mean((p - get(t)) ** 2))
        changed = get(standardized_columns(np.array([1]))(made).targets)
        np.testing.assert_array_equal(changed[:, 0], targets[:, 0])
        np.testing.assert_allclose([changed[:, 1].mean(), changed[:, 1].std()], [0, 1], atol=1e-4)


class Score(nn.Module):
    """One number for each example."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(32)(x)))[:, 0]


@pytest.mark.parametrize(("sign", "codes"), [(1, ["wrong_loss"]), (-1, [])])
def test_a_margin_with_the_wrong_sign(sign, codes):
    def margin(p, t):
        return jnp.mean(jnp.maximum(0, 1 + sign * p * t))

    plan = {"optimizer": optax.adam(1e-2), "batch_size": 32, "epochs": 20}
    evidence = Evidence(subject(Score(), (X, np.sign(SCORE)), margin, **plan), jax.random.key(0), 10)
    causes = list(opposed_loss(evidence))
    assert [each.finding.code for each in causes] == codes
    if codes:
        assert evidence.with_remedies(causes).planned.quality[0] > 0.9 > 0.2 > evidence.planned.quality[0]


def test_a_softmax_over_the_one_feature_of_a_map():
    class Map(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.softmax(nn.Dense(1)(x[..., None]))[..., 0]

    def loss(p, t):
        p = jnp.clip(p, 1e-6, 1 - 1e-6)
        return -jnp.mean(t * jnp.log(p) + (1 - t) * jnp.log(1 - p))

    evidence = Evidence(subject(Map(), (X, (X > 0).astype(np.float32)), loss), jax.random.key(0), 5)
    causes = list(suspicions(evidence))
    assert [each.finding.code for each in causes] == ["wrong_output_activation"]
    changed = evidence.with_remedies(causes)
    assert changed.skill(changed.planned) > LEARNS > 0.1 > evidence.skill(evidence.planned)


def test_decay_that_begins_after_a_warm_up():
    """At the first step, the rate of the schedule is 0, and so is every update."""
    optimizer = optax.chain(
        optax.scale_by_adam(),
        optax.add_decayed_weights(100.0),
        optax.scale_by_schedule(optax.linear_schedule(0.0, 1.0, 40)),
        optax.scale(-1e-2),
    )
    labels = (SCORE > 0).astype(np.float32)

    def loss(p, t):
        return optax.sigmoid_binary_cross_entropy(p, t).mean()

    plan = {"optimizer": optimizer, "batch_size": 32, "epochs": 30}
    evidence = Evidence(subject(Score(), (X, labels), loss, **plan), jax.random.key(0), 10)
    assert [each.finding.code for each in strong_decay(evidence)] == ["regularization_too_strong"]
