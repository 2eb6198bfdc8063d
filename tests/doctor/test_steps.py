"""Gradients that vanish over the steps of a sequence, and layers whose output is not used."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepjax.doctor.causes.structure import parameters_without_gradient
from deepjax.doctor.causes.weights import gradients_over_steps, scale_over_depth
from deepjax.doctor.changes import scaled_weights
from deepjax.doctor.evidence import Evidence
from deepjax.doctor.subject import subject

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 40, 3)).astype(np.float32)
Y = (X[:, 0, 0] > 0).astype(np.int32)


def cross_entropy(p, t):
    return optax.softmax_cross_entropy_with_integer_labels(p, t).mean()


class Recurrent(nn.Module):
    """A recurrent network with weights of the program's own."""

    scale: float

    @nn.compact
    def __call__(self, x):
        def init(key, shape):
            return self.scale * nn.initializers.orthogonal()(key, shape)

        w, u = self.param("recurrent", init, (16, 16)), nn.Dense(16)(x)
        h, _ = jax.lax.scan(lambda h, ut: (jnp.tanh(ut + h @ w), None), jnp.zeros((len(x), 16)), u.swapaxes(0, 1))
        return nn.Dense(2)(h)


@pytest.mark.parametrize(("scale", "codes"), [(0.4, ["vanishing_gradients"]), (1.3, [])])
def test_gradients_that_vanish_over_the_steps(scale, codes):
    made = subject(Recurrent(scale), (X, Y), cross_entropy, batch_size=16, epochs=1)
    evidence = Evidence(made, jax.random.key(0), 1.0)
    assert [each.finding.code for each in gradients_over_steps(evidence)] == codes
    params, (inputs, targets) = evidence.variables, evidence.batch

    def value(step):
        return made.value(params, inputs.at[0, -1, 0].add(step), targets, evidence.key)[0]

    inputs = jnp.asarray(inputs)
    difference = (value(0.02) - value(-0.02)) / 0.04
    assert evidence.input_gradient[0, -1, 0] == pytest.approx(float(difference), rel=0.05, abs=1e-5)


class Reader(nn.Module):
    """The same behind an embedding of words."""

    @nn.compact
    def __call__(self, words):
        return Recurrent(0.4)(nn.Embed(10, 3)(words))


def test_gradients_that_vanish_over_words():
    words = RNG.integers(0, 10, (32, 40))
    made = subject(Reader(), (words, words[:, 0] % 2), cross_entropy, batch_size=16, epochs=1)
    (found,) = gradients_over_steps(Evidence(made, jax.random.key(0), 1.0))
    assert found.finding.code == "vanishing_gradients"
    assert "embedding" in found.finding.evidence


class Unused(nn.Module):
    """Some of four layers are called, and their outputs are not used."""

    unused: int

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(8)(x[:, 0]))
        for i in range(self.unused):
            nn.Dense(8, name=f"unused_{i}")(h)
        return nn.Dense(2)(h)


@pytest.mark.parametrize(("unused", "severity"), [(1, "warning"), (2, "serious")])
def test_layers_whose_output_is_not_used(unused, severity):
    evidence = Evidence(subject(Unused(unused), (X, Y), cross_entropy, batch_size=16, epochs=1), jax.random.key(0), 1.0)
    (found,) = parameters_without_gradient(evidence)
    assert (found.finding.code, found.finding.severity) == ("no_gradient", severity)
    assert found.remedy is None


class Branches(nn.Module):
    """Residual units [a dense layer, ReLU, a dense layer] whose branch is multiplied."""

    units: int
    factor: float

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(32)(x)
        for _ in range(self.units):
            y = nn.relu(nn.Dense(32, kernel_init=nn.initializers.he_normal())(x))
            x = x + self.factor * nn.Dense(32, kernel_init=nn.initializers.lecun_normal())(y)
        return nn.Dense(2)(x)


@pytest.mark.parametrize(
    ("units", "factor", "code"), [(24, 1.0, "exploding_activations"), (8, 3.0, "residual_dominates")]
)
def test_branches_that_are_as_large_as_the_skip_and_larger_ones(units, factor, code):
    # A branch of `factor` times the variance of its input multiplies the standard deviation by sqrt(1 + factor ** 2).
    plan = {"optimizer": optax.sgd(0.1), "batch_size": 16, "epochs": 2}
    made = subject(Branches(units, factor), (X[:, 0], Y), cross_entropy, **plan)
    found = list(scale_over_depth(Evidence(made, jax.random.key(0), 2)))
    assert [each.finding.code for each in found] == [code]


def test_layers_behind_several_arrays_of_inputs_are_initialized_from_data():
    class Towers(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="last")(nn.relu(nn.Dense(8, name="a")(x["a"]) + nn.Dense(8, name="b")(x["b"])))

    inputs = {"a": 100 * X[:, 0], "b": X[:, 1]}
    changed = scaled_weights(subject(Towers(), (inputs, Y), cross_entropy), jax.random.key(0))
    params = changed.init(jax.random.key(0))["params"]
    for name in ("a", "b"):
        np.testing.assert_allclose((inputs[name] @ params[name]["kernel"]).var(), 1, rtol=1e-3)
