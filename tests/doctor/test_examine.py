"""Broken networks are named and cured, their healthy twins are left alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import doctor_suite as suite
from deepjax.doctor import examine, spectra
from deepjax.doctor.causes import structure
from deepjax.doctor.evidence import Evidence
from deepjax.doctor.examine import diagnose
from deepjax.doctor.subject import subject
from deepjax.errors import InputError

FAST = ("wrong_output_activation", "no_gradient")
INCURABLE = {"constant_labels", "shuffled_labels", "padding_leakage"}
HARMLESS = {"bias_before_norm"}  # these networks learn as they are
BUDGET = 8.0


def diagnosed(arguments):
    arguments = dict(arguments)
    model, batch, loss = (arguments.pop(name) for name in ("model", "batch", "loss"))
    with jax.numpy_rank_promotion("allow"):  # one of the networks has shapes that broadcast
        _, _, findings, cure = diagnose(subject(model, batch, loss, **arguments), jax.random.key(0), BUDGET)
    return findings, cure


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in suite.CASES]
)
def test_the_cause_is_named_first_and_cured(name):
    code, (broken, healthy) = name.partition(" ")[0], suite.CASES[name]
    findings, cure = diagnosed(broken)
    assert findings[0].code == code
    if code not in INCURABLE | HARMLESS:
        assert cure is not None
        assert cure.learns
    findings, _ = diagnosed(healthy)
    assert not [finding.code for finding in findings if finding.severity == "serious"]


def data(n=64):
    x = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int32)


def test_a_report_of_an_nnx_model():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(4, 16, rngs=rngs)
            self.norm = nnx.BatchNorm(16, rngs=rngs)
            self.drop = nnx.Dropout(0.1, rngs=rngs)
            self.last = nnx.Linear(16, 2, rngs=rngs)

        def __call__(self, x):
            return nnx.softmax(self.last(self.drop(nnx.relu(self.norm(self.first(x))))))

    report = examine(Net(nnx.Rngs(0)), data(), suite.cross_entropy, key=jax.random.key(0), budget=3)
    assert report.findings[0].code == "wrong_output_activation"
    assert [row.layer for row in report.rows] == ["first", "last"]
    assert report.findings[0].outcome is not None
    assert report.findings[0].outcome.learns


def test_a_report_of_a_function_and_its_numbers():
    def net(params, x):
        return jnp.tanh(x @ params["first"]) @ params["second"]

    params = {"first": jnp.ones((4, 8)) * 0.1, "second": jax.random.normal(jax.random.key(0), (8, 2)) * 0.0}
    arguments = {"key": jax.random.key(0), "variables": params, "budget": 3}
    x, _ = data()
    batch = x, (x[:, 0] * x[:, 1] > 0).astype(np.int32)  # one unit cannot tell these classes
    report = examine(net, batch, suite.cross_entropy, **arguments)
    assert report.findings[0].code == "symmetric_initialization"
    again = examine(net, batch, suite.cross_entropy, **arguments)
    assert report.to_json() == again.to_json()  # one key gives one report


def test_sharpness_and_singular_values_of_a_linear_map():
    x, _ = data()
    report = examine(
        nn.Dense(1, use_bias=False), (x, x[:, :1]), lambda p, t: jnp.mean((p - t) ** 2), key=jax.random.key(0), budget=2
    )
    np.testing.assert_allclose(report.sharpness, 2 * np.linalg.eigvalsh(x.T @ x / len(x))[-1], rtol=1e-2)
    assert len(report.spectrum) == 1


@pytest.mark.parametrize("diagonal", [(3, -5, 1), (1, -1), (-5000, 1, 0.5, 0.1), (0, 0), (-2, -1)])
@pytest.mark.parametrize("seed", range(3))
def test_sharpness_is_the_largest_eigenvalue_of_any_spectrum(diagonal, seed):
    matrix = np.diag(diagonal).astype(np.float32)

    def function(params, x):
        return params @ matrix @ params / 2 * jnp.ones(len(x))

    x, _ = data()
    made = subject(function, (x, x[:, 0]), lambda p, t: jnp.mean(p), variables=jnp.ones(len(matrix)))
    np.testing.assert_allclose(spectra.sharpness(Evidence(made, jax.random.key(seed), 1)), max(diagonal), rtol=1e-2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": (np.ones((3, 4)), np.ones(2))}, "same number of examples"),
        ({"batch": np.ones((3, 4))}, "(inputs, targets)"),
        ({"batch": (np.ones((3, 4)), np.array(["a", "b", "c"]))}, "arrays of numbers"),
        ({"loss": lambda p, t: p}, "loss must return one real number"),
        ({"loss": lambda p, t: jnp.mean(p - t[:, :7])}, "loss cannot be computed"),
        ({"model": nn.Conv(3, (2, 2, 2, 2, 2))}, "model cannot be initialized"),
        ({"model": 3}, "Linen module"),
        ({"model": lambda p, x: x}, "variables must be the parameters"),
        ({"budget": 0}, "budget 0"),
        ({"epochs": 0}, "epochs 0"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_what_cannot_be_examined_is_one_line(change, words):
    arguments = {"model": nn.Dense(2), "batch": data(), "loss": suite.cross_entropy, "key": jax.random.key(0)} | change
    with pytest.raises(InputError, match=".*") as error:
        examine(arguments.pop("model"), arguments.pop("batch"), arguments.pop("loss"), **arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_optimizer_is_judged_only_if_it_is_planned():
    x, y = data()
    model = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(2)])
    report = examine(model, (x, y), suite.cross_entropy, key=jax.random.key(0), optimizer=optax.sgd(1e-7), budget=3)
    assert [finding.code for finding in report.findings] == ["learning_rate_too_low"]


@pytest.mark.parametrize(("rate", "cut_short"), [(0.1, True), (1e-9, False)])
def test_a_plan_that_is_cut_short_while_the_loss_falls_says_nothing_about_the_layers(rate, cut_short):
    x, labels = data()[0], np.arange(64) % 3  # learned by heart at last
    net = nn.Sequential([nn.Dense(16), nn.relu, *[nn.Dense(16), nn.relu] * 5, nn.Dense(3)])
    plan = {"optimizer": optax.sgd(rate), "batch_size": 16, "epochs": 10**6}
    evidence = Evidence(subject(net, (x, labels), suite.cross_entropy, **plan), jax.random.key(0), 0.5)
    assert evidence.unfinished == cut_short
    assert not evidence.healthy
    found = [*structure.superfluous_layers(evidence), *structure.unnormalized_layers(evidence)]
    assert len(found) == (0 if cut_short else 2)
