"""Gradients where operations block them, and codes that a model computes with."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepjax.doctor.causes import output
from deepjax.doctor.causes.data import codes_as_quantities
from deepjax.doctor.causes.plan import accumulation_that_sums
from deepjax.doctor.causes.structure import (
    frozen_parameters,
    order_of_positions,
    parameters_without_gradient,
    strong_decay,
)
from deepjax.doctor.evidence import Evidence
from deepjax.doctor.examine import _tried
from deepjax.doctor.plan_changes import standardized_inputs
from deepjax.doctor.rewrites import connected
from deepjax.doctor.subject import subject

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype(np.float32)
Y = RNG.normal(size=(64, 3)).astype(np.float32)
HARD = {  # what blocks gradients, and the function of which it gets the gradient
    "argmax": (lambda z: jax.nn.one_hot(jnp.argmax(z, -1), 3), nn.softmax),
    "argmax of rows": (
        lambda z: jax.nn.one_hot(jnp.argmax(z.reshape(-1, 3, 1), 1), 3, axis=1).reshape(-1, 3),
        nn.softmax,
    ),
    "twice": (lambda z: (z > 0).astype(jnp.float32) + 2 * (z > 0).astype(jnp.float32), lambda z: 3 * nn.sigmoid(z)),
    "argmin": (lambda z: jax.nn.one_hot(jnp.argmin(z, -1), 3), lambda z: nn.softmax(-z)),
    "above": (lambda z: (z > 0.3).astype(jnp.float32), lambda z: nn.sigmoid(z - 0.3)),
    "below": (lambda z: (z <= 0.3).astype(jnp.float32), lambda z: nn.sigmoid(0.3 - z)),
    "sign": (jnp.sign, jnp.tanh),
    "cast": (lambda z: (3 * z).astype(jnp.int32).astype(jnp.float32), lambda z: 3 * z),
    "round": (jnp.round, lambda z: z),
    "stop_gradient": (jax.lax.stop_gradient, lambda z: z),
}


def squared(p, t):
    return jnp.mean((p - t) ** 2)


def cross_entropy(p, t):
    return optax.softmax_cross_entropy_with_integer_labels(p, t).mean()


def binary(p, t):
    return optax.sigmoid_binary_cross_entropy(p, t).mean()


@pytest.mark.parametrize("name", HARD)
def test_blocked_gradients_are_those_of_a_smooth_function(name):
    hard, soft = HARD[name]
    weights = RNG.normal(size=(3, 3)).astype(np.float32)  # behind the operation

    def function(params, x):
        return hard(x @ params) @ weights

    made = subject(function, (X, Y), squared, variables=RNG.normal(size=(4, 3)).astype(np.float32))
    variables = made.init(jax.random.key(0))

    def first(apply, variables):
        return jnp.sum(apply(variables, X, True, jax.random.key(0))[0] * Y)

    value, gradient = jax.value_and_grad(lambda v: first(connected(made).apply, v))(variables)
    np.testing.assert_allclose(value, first(made.apply, variables), rtol=1e-5)
    (kernel,) = jax.tree.leaves(variables)
    expected = jax.grad(lambda kernel: jnp.sum(soft(X @ kernel) @ weights * Y))(kernel)
    np.testing.assert_allclose(jax.tree.leaves(gradient)[0], expected, rtol=1e-4, atol=1e-4)


class Ranks(nn.Module):
    @nn.compact
    def __call__(self, x):
        scores = nn.Dense(1)(nn.relu(nn.Dense(8)(x)))[..., 0]
        return jnp.argsort(jnp.argsort(scores, -1), -1).astype(jnp.float32)


def test_the_scores_are_predicted_where_their_ranks_have_no_gradient():
    x = RNG.normal(size=(64, 5, 2)).astype(np.float32)
    made = subject(Ranks(), (x, np.argsort(np.argsort(x[..., 0], -1), -1).astype(np.float32)), squared)
    (found,) = parameters_without_gradient(Evidence(made, jax.random.key(0), 1))
    assert found.remedy.description == "the output of the last layer as the prediction"
    changed = found.remedy.change(made)
    variables = changed.init(jax.random.key(0))
    scores, _ = changed.apply(variables, x, False, jax.random.key(0))
    ranks, _ = made.apply(variables, x, False, jax.random.key(0))
    np.testing.assert_array_equal(np.argsort(np.argsort(scores, -1), -1), ranks)


def test_a_remedy_that_does_not_fit_is_left_out():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            nn.Dense(3, name="unused")(x)
            return nn.Dense(5)(x.reshape(len(x), 2, 2)).reshape(len(x), 10)

    for targets in (np.eye(10, dtype=np.float32)[np.arange(64) % 10], np.arange(64) % 10):
        loss = cross_entropy if targets.ndim == 1 else lambda p, t: optax.softmax_cross_entropy(p, t).mean()
        (found,) = parameters_without_gradient(Evidence(subject(Net(), (X, targets), loss), jax.random.key(0), 1))
        assert found.remedy is None


def test_a_kept_last_layer_with_one_position_has_the_shape_of_the_targets():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(3, (1, 1))(nn.Conv(8, (6, 6), padding="VALID")(x))
            return nn.softmax(x.mean((1, 2)))

    x, targets = RNG.normal(size=(32, 6, 6, 1)).astype(np.float32), np.eye(3, dtype=np.float32)[np.arange(32) % 3]
    made = subject(Net(), (x, targets), lambda p, t: optax.softmax_cross_entropy(p, t).mean())
    (found,) = output.suspicions(Evidence(made, jax.random.key(0), 1))
    changed = found.remedy.change(made)
    outputs, _ = changed.apply(changed.init(jax.random.key(0)), x, False, jax.random.key(0))
    assert outputs.shape == (32, 3)


class Features(nn.Module):
    """Random features that are fixed on purpose, and a linear layer that learns."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(jax.lax.stop_gradient(nn.Dense(64)(x))))


def test_fixed_features_of_a_model_that_learns_are_no_serious_fault():
    labels = (X[:, :1] > 0).astype(np.float32)
    plan = {"optimizer": optax.adam(0.05), "batch_size": 16, "epochs": 100}
    evidence = Evidence(subject(Features(), (X, labels), binary, **plan), jax.random.key(0), 10)
    (found,) = parameters_without_gradient(evidence)
    assert found.finding.severity == "warning"
    labelled = {"Dense_0": "trained", "Dense_1": "frozen"}  # the last layer is made first
    plan["optimizer"] = optax.multi_transform({"frozen": optax.set_to_zero(), "trained": optax.adam(0.05)}, labelled)
    evidence = Evidence(subject(Features(), (X, labels), binary, **plan), jax.random.key(0), 10)
    (found,) = frozen_parameters(evidence)
    assert found.finding.severity == "warning"


HOW = {  # what a model does with codes, and whether it computes with them
    "quantities": (lambda x: x / 12, True),
    "embedded": (lambda x: nn.Embed(12, 8)(x.astype(jnp.int32)).reshape(len(x), -1), False),
    "compared": (
        lambda x: (x[:, :, None] == jnp.arange(12)[None, None]).astype(jnp.float32).reshape(len(x), -1),
        False,
    ),
    "one-hot": (lambda x: jax.nn.one_hot(x.astype(jnp.int32), 12).reshape(len(x), -1), False),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_codes_that_a_model_computes_with_get_embeddings(how, dtype):
    encode, computes = HOW[how]
    codes = RNG.integers(0, 12, (400, 2)).astype(dtype)
    y = RNG.normal(size=12)[codes[:, 0].astype(int)] + RNG.normal(size=12)[codes[:, 1].astype(int)]

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(nn.relu(nn.Dense(16)(encode(x))))

    plan = {"optimizer": optax.adam(0.01), "batch_size": 40, "epochs": 1}
    made = subject(Net(), (codes, y[:, None].astype(np.float32)), squared, **plan)
    found = list(codes_as_quantities(Evidence(made, jax.random.key(0), 1)))
    assert [each.finding.code for each in found] == ["wrong_input_encoding"] * computes
    if found and dtype == np.float32:  # standardized codes are codes
        scaled = standardized_inputs(made.with_(inputs=5000 + 10 * codes))
        assert len(list(codes_as_quantities(Evidence(scaled, jax.random.key(0), 1)))) == 1
    if found:
        variables = found[0].remedy.change(made).init(jax.random.key(0))
        assert {k: v.shape for k, v in variables["params"]["codes"].items()} == {"0": (12, 1), "1": (12, 1)}
        trained = Evidence(found[0].remedy.change(made).with_(epochs=40), jax.random.key(0), 60)
        assert trained.skill(trained.planned) > 0.9  # a sum of one number for each value is exact


def test_updates_that_are_added_up_and_decay_that_some_networks_need():
    plan = {"batch_size": 16, "epochs": 40}
    for rate, divisor in ((0.5, 8), (1e-6, None)):  # eight times 0.5 diverges; a rate that is too low has another cause
        optimizer = optax.multi_transform({"all": optax.chain(optax.sgd(rate), optax.apply_every(8))}, "all")
        made = subject(nn.Dense(1), (X, X[:, :1]), squared, optimizer=optimizer, **plan)
        evidence = Evidence(made, jax.random.key(0), 5)
        (found,) = accumulation_that_sums(evidence)
        assert (found.finding.code, found.certain) == ("accumulation_sums", False)
        assert bool(_tried(evidence, evidence, found, [])) == (divisor is not None)
        assert divisor is None or found.remedy.description == f"updates divided by {divisor}"
    plan["optimizer"] = optax.chain(optax.add_decayed_weights(10.0), optax.sgd(0.05))
    made = subject(nn.Dense(1), (X, X[:, :1]), squared, **plan)
    (found,) = strong_decay(Evidence(made, jax.random.key(0), 5))
    params = made.init(jax.random.key(0))["params"]
    changed = found.remedy.change(made).optimizer
    update, _ = changed.update(jax.tree.map(jnp.zeros_like, params), changed.init(params), params)
    kept = {"no weight decay": 0.0, "a hundredth of the weight decay": 0.01}[found.remedy.description]
    np.testing.assert_allclose(update["kernel"], -0.05 * kept * 10.0 * params["kernel"], rtol=1e-6)


def test_a_last_layer_of_zeros_hides_no_differences_between_positions():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2))
            return nn.Dense(2, kernel_init=nn.initializers.zeros)(x)

    made = subject(Net(), (RNG.normal(size=(32, 6, 6, 1)).astype(np.float32), np.arange(32) % 2), cross_entropy)
    assert not list(order_of_positions(Evidence(made, jax.random.key(0), 1)))


@pytest.mark.parametrize("flat", [False, True])
def test_a_model_that_treats_all_positions_alike_gets_them_flattened(flat):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x.reshape(len(x), 1, -1) if flat else x
            return nn.Dense(1)(nn.relu(nn.Dense(16)(x))).mean(axis=1)

    x = RNG.normal(size=(64, 6, 2)).astype(np.float32)
    made = subject(Net(), (x, x[:, 2, :1]), squared, optimizer=optax.adam(0.01), batch_size=32, epochs=1)
    found = list(order_of_positions(Evidence(made, jax.random.key(0), 1)))
    assert [each.finding.code for each in found] == ["missing_flatten"] * (not flat)
    if found:
        variables = found[0].remedy.change(made).init(jax.random.key(0))
        assert variables["params"]["Dense_1"]["kernel"].shape == (12, 16)
