"""What is tried in a model changes what it should, and nothing else."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import layers
from deepjax.doctor import changes, rewrites
from deepjax.doctor.causes.learnable import unrelated_targets
from deepjax.doctor.causes.normalization import single_values
from deepjax.doctor.evidence import Evidence
from deepjax.doctor.subject import subject

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 4)).astype(np.float32)
TARGETS = np.zeros((32, 3), np.float32)


def squared(p, t):
    return jnp.mean((p - t) ** 2)


def net(activation, last):
    return nn.Sequential([nn.Dense(8), activation, nn.Dense(8), activation, nn.Dense(3), last])


def outputs(made, x=X):
    variables = made.init(jax.random.key(0))
    return made.apply(variables, x, False, jax.random.key(0))[0]


@pytest.mark.parametrize("last", [lambda z: z, nn.softmax, nn.log_softmax])
@pytest.mark.parametrize("hidden", [nn.softmax, nn.log_softmax])
def test_a_hidden_softmax_becomes_a_relu(hidden, last):
    changed = rewrites.relu_for_softmax(subject(net(hidden, last), (X, TARGETS), squared))
    wanted = outputs(subject(net(nn.relu, last), (X, TARGETS), squared))
    np.testing.assert_allclose(outputs(changed), wanted, rtol=1e-5, atol=1e-6)


def test_quotients_and_differences_of_other_kinds_stay():
    made = subject(net(lambda z: 1.0 / (2.0 + jnp.exp(z)) - jnp.log(2.0 + z**2), nn.softmax), (X, TARGETS), squared)
    np.testing.assert_array_equal(outputs(rewrites.relu_for_softmax(made)), outputs(made))


def test_a_new_output_keeps_earlier_changes():
    made = subject(net(nn.softmax, nn.softmax), (X, TARGETS), squared)
    evidence = Evidence(made, jax.random.key(0), 1.0)
    assert evidence.head is not None
    changed = changes.new_output(rewrites.relu_for_softmax(made), evidence.head, evidence.targets, keep=True)
    wanted = outputs(subject(net(nn.relu, lambda z: z), (X, TARGETS), squared))
    np.testing.assert_allclose(outputs(changed), wanted, rtol=1e-5, atol=1e-6)


def test_outputs_become_positive():
    made = subject(net(nn.relu, lambda z: z), (X, TARGETS), squared)
    np.testing.assert_allclose(
        outputs(changes.positive_output(made)), np.log1p(np.exp(outputs(made))), rtol=1e-5, atol=1e-6
    )


class Reader(nn.Module):
    """A recurrent network."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.LSTMCell(4))(x)[:, -1])


def test_the_parts_of_a_recurrent_cell_stay():
    steps = RNG.normal(size=(32, 5, 4)).astype(np.float32)
    made = subject(Reader(), (steps, TARGETS), squared)
    for change in (changes.without_layers("Dense_0"), changes.with_relu("Dense_0"), changes.with_layer_norm("Dense_0")):
        np.testing.assert_array_equal(outputs(change(made), steps), outputs(made, steps))


class TwoTowers(nn.Module):
    """The affinity of a user and an item."""

    @nn.compact
    def __call__(self, x):
        user, item = nn.Embed(8, 4)(x["user"]), nn.Embed(8, 4)(x["item"])
        return nn.Dense(1)(nn.relu(nn.Dense(32)(jnp.concatenate([user, item], -1))))


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_relation_to_several_arrays_of_inputs(shuffled):
    user, item = RNG.integers(0, 8, (2, 512))
    y = (RNG.normal(size=8)[user] + RNG.normal(size=8)[item])[:, None].astype(np.float32)
    y = RNG.permutation(y) if shuffled else y
    made = subject(TwoTowers(), ({"user": user, "item": item}, y), squared, batch_size=32, epochs=4)
    found = list(unrelated_targets(Evidence(made, jax.random.key(0), 2.0)))
    assert [each.finding.code for each in found] == ["shuffled_labels"] * shuffled


@pytest.mark.parametrize(
    ("norm", "single"),
    [
        (nn.GroupNorm(num_groups=8), True),
        (nn.GroupNorm(num_groups=None, group_size=1), True),
        (nn.GroupNorm(num_groups=4), False),
        (nn.GroupNorm(num_groups=8, reduction_axes=(-1,)), True),
        (layers.GroupNorm(groups=8), True),
        (layers.GroupNorm(groups=2), False),
        (nn.InstanceNorm(), True),
        (nn.LayerNorm(), False),
        (layers.LayerNorm(), False),
    ],
)
def test_normalization_of_a_single_value(norm, single):
    """On [examples, 8], normalization of single features returns 0; the remedy leaves it out."""
    made = subject(nn.Sequential([nn.Dense(8), norm, nn.Dense(3)]), (X, TARGETS), squared)
    found = list(single_values(Evidence(made, jax.random.key(0), 1.0)))
    assert [each.finding.code for each in found] == ["collapsed_features"] * single
    variables = made.init(jax.random.key(0))
    outputs, _ = made.apply(variables, X, False, jax.random.key(0))
    assert (np.ptp(outputs, axis=0).max() < 1e-4) == single
    if single:
        changed = found[0].remedy.change(made)
        varied, _ = changed.apply(changed.init(jax.random.key(0)), X, False, jax.random.key(0))
        assert np.ptp(varied, axis=0).max() > 0.1
