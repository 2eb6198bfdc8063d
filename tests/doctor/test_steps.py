"""Gradients that vanish over the steps of a sequence, and layers whose output is not used."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepjax.doctor.causes.structure import parameters_without_gradient
from deepjax.doctor.causes.weights import gradients_over_steps
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
