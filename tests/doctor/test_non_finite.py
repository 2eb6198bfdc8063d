"""The hunt: which operation makes the first value that is not finite, where, and from which values."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepjax import functional, layers
from deepjax.doctor import hunt
from deepjax.units import stack

X = np.array([4.0, 0.0], np.float32)  # the second element is where functions are singular
NUMPY = {"acos": np.arccos, "div": np.divide, "mul": np.multiply, "pow": np.power, "sub": np.subtract}


def total(function):
    return lambda *args: function(*args).sum()


def masked_softmax(x):
    return jax.nn.softmax(jnp.where(jnp.array([[True, True], [False, False]]), x, -jnp.inf))


FORWARD = [  # function, its argument, primitive, index, values that entered, word of the remedy
    (jnp.log, X, "log", (1,), [0], "1e-7"),
    (jnp.sqrt, X - 1, "sqrt", (1,), [-1], "negative"),
    (lambda x: x / x, X, "div", (1,), [0, 0], "denominator"),
    (lambda x: 1 / x, X, "div", (1,), [1, 0], "denominator"),
    (lambda x: x**-0.5, X, "pow", (1,), [0, -0.5], "base"),
    (lambda x: jax.lax.rsqrt(x), X, "rsqrt", (1,), [0], "rsqrt"),
    (lambda x: jnp.exp(x) / jnp.exp(x).sum(), X[::-1] * 50, "exp", (1,), [200], "subtract the maximum"),
    (jnp.arccos, 1.5 - X, "acos", (0,), [-2.5], "clip"),
    (lambda x: x * 1e20 * 1e20, X, "mul", (0,), [4e20, 1e20], "learning rate"),
    (lambda x: x.astype(jnp.float16), X * 1e5, "convert_element_type", (0,), [4e5], "largest float16"),
    (lambda x: jnp.exp(x.astype(jnp.bfloat16)), X * 50, "exp", (0,), [200], "largest bfloat16"),
    (masked_softmax, np.ones((2, 2), np.float32), "sub", (1, 0), [-np.inf, -np.inf], "masked"),
    (jax.jit(lambda x: jnp.log(x)), X, "log", (1,), [0], "1e-7"),
    (jax.checkpoint(lambda x: jnp.log(x)), X, "log", (1,), [0], "1e-7"),
    (lambda x: jax.lax.cond(x[0] > 1, jnp.log, jnp.exp, x), X, "log", (1,), [0], "1e-7"),
]


@pytest.mark.parametrize(("function", "x", "primitive", "index", "values", "word"), FORWARD)
def test_forward(function, x, primitive, index, values, word):
    for traced in (lambda x: function(x), jax.value_and_grad(total(function))):  # also where the gradient is bad, too
        found = hunt(traced, x)
        assert (found.kind, found.primitive, found.index, found.direction) == ("equation", primitive, index, "forward")
        np.testing.assert_allclose([operand.value for operand in found.operands], values, rtol=1e-6)
        assert word in found.remedy
        assert re.search(r"test_non_finite.py:\d+ in ", str(found))
    if primitive not in ("convert_element_type", "exp", "rsqrt"):  # NumPy has no such types, or no such function
        with np.errstate(all="ignore"):
            bad = NUMPY.get(primitive, getattr(np, primitive, None))(*np.float32(values))
        assert not np.isfinite(bad)
        np.testing.assert_equal(found.result, float(bad))


BACKWARD = [  # function, its argument, the operation whose derivative it is, index, trap
    (jnp.sqrt, X, "sqrt", (1,), False),
    (jnp.linalg.norm, np.zeros(2, np.float32), "sqrt", (), False),
    (jnp.arccos, X / 4, "acos", (0,), False),
    (lambda x: x**0.3, X, "pow", (1,), False),
    (jnp.cbrt, X, "cbrt", (1,), False),
    (lambda x: jnp.where(x > 0, jnp.log(x), 0.0), X, "log", (1,), True),
    (lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0), X, "sqrt", (1,), True),
    (lambda x: jnp.where(x > 0, x**0.3, 0.0), X, "pow", (1,), True),
    (lambda x: nn.relu(jnp.sqrt(x)), X, "sqrt", (1,), True),
]


@pytest.mark.parametrize(("function", "x", "operation", "index", "trap"), BACKWARD)
def test_backward(function, x, operation, index, trap):
    for traced in (jax.grad(total(function)), jax.value_and_grad(jax.jit(total(function)))):
        found = hunt(traced, x)
        assert (found.derivative_of, found.direction, found.index) == (operation, "backward", index)
        assert found.trap == trap
        assert ("second `where`" in found.remedy) == trap
        assert f"derivative of {operation}" in str(found)
    assert hunt(function, x) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), 0.0),
        lambda x: jnp.where(x > 0, jnp.log(x - 1.0), 0.0) * 0 + jnp.where(x == 4, jnp.log(x), 0 * x),
        lambda x: jax.nn.softmax(jnp.where(x > 0, x, -jnp.inf)),
        lambda x: jnp.minimum(1 / x, 5.0),
    ],
)
def test_what_does_not_reach_the_results_is_not_reported(function):
    assert hunt(function, X) is None


def test_a_logarithm_of_zero_that_is_hidden_before_one_that_is_not():
    found = hunt(lambda x: jnp.where(x > 0, jnp.log(x), 0.0).sum() + jnp.log(x[0] - 4), X)
    assert (found.primitive, found.index) == ("log", ())
    found = hunt(lambda x: jnp.where(x > 0, jnp.log(x), 1 / x), X)  # at one index both are infinite
    assert (found.primitive, found.index) == ("div", (1,))


def test_a_cause_in_the_forward_pass_comes_before_a_factor_of_the_backward_pass():
    """The derivative of the norm is infinite too, and computed before the division."""

    def cosine(u, v):
        return u @ v / (jnp.linalg.norm(u) * jnp.linalg.norm(v))

    found = hunt(jax.value_and_grad(cosine), np.zeros(2, np.float32), X)
    assert (found.primitive, found.direction) == ("div", "forward")


def test_what_the_code_itself_makes_nan():
    loss = jax.value_and_grad(lambda logits, labels: functional.cross_entropy(logits, labels).mean())
    found = hunt(loss, np.ones((2, 3), np.float32), np.array([0, 3]))
    assert (found.kind, found.result != found.result) == ("constant", True)
    assert "label outside of the classes" in found.remedy
    assert "losses.py" in found.what
    found = hunt(lambda x: jnp.take(x, jnp.array([5])), X)
    assert (found.primitive, found.overflow) == ("gather", False)
    found = hunt(jnp.linalg.cholesky, np.array([[1, 2], [2, 1]], np.float32))
    assert "positive definite" in found.remedy


def test_the_step_of_a_scan_at_which_it_begins():
    def chain(factors, x):
        return jax.lax.scan(lambda y, w: (jnp.sqrt(y * w), None), x, factors)[0].sum()

    weights = np.array([1, 1, -1, 1], np.float32)
    found = hunt(jax.value_and_grad(chain), weights, X + 1)
    assert (found.primitive, found.steps, found.direction) == ("sqrt", (2,), "forward")
    np.testing.assert_allclose(found.operands[0].value, -(5**0.25))
    found = hunt(jax.grad(jax.checkpoint(chain)), weights * weights * [1, 0, 1, 1], X + 1)
    assert (found.derivative_of, found.steps, found.direction) == ("sqrt", (1,), "backward")
    for reverse, step in ((False, 2), (True, 3)):
        roots = lambda w: jax.lax.scan(lambda y, w: (y, jnp.sqrt(w)), 0, w, reverse=reverse)  # noqa: B023, E731
        assert hunt(roots, np.array([1, 1, -1, -1], np.float32)).steps == (step,)
    found = hunt(lambda x: jax.lax.while_loop(lambda y: y < 1e30, lambda y: y * y, x), np.float32(2))
    assert (found.primitive, found.steps, found.operands[0].value) == ("mul", (6,), 2.0**64)


def test_arguments_that_are_not_finite():
    x = np.ones((12, 3), np.float32)
    x[[2, 7], 1] = np.nan
    loss = jax.value_and_grad(lambda params, inputs: ((params["w"] * inputs) ** 2).sum())
    found = hunt(loss, {"w": np.float32(1)}, x)
    assert (found.kind, found.primitive, found.rows, found.index) == ("argument", "inputs", (2, 7), (2, 1))
    assert "rows 2, 7" in found.what
    assert "rows of the data" in found.remedy
    found = hunt(loss, {"w": np.float32(np.nan)}, np.ones((2, 3), np.float32))
    assert found.primitive == "params['w']"
    assert "before this step" in found.remedy
    found = hunt(loss, {"w": np.float32(1)}, np.where(np.isnan(x), np.inf, x))  # infinity is only bad if it gives NaN
    assert (found.kind, found.rows) == ("argument", (2, 7))


class Root(nn.Module):
    """A unit with a square root, as a user may write it."""

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        return jnp.sqrt(layers.Dense(2, name="dense", kernel_init=nn.initializers.ones)(x))


class Net(nn.Module):
    """Units in a scan, then the class scores."""

    @nn.compact
    def __call__(self, x):
        x = stack(Root(parent=None), 3, name="units")(x, train=True)
        return nn.Dense(1, name="head")(x)


def test_the_layer_and_the_unit_of_a_linen_model():
    model, x = Net(), np.ones((4, 2), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    params = jax.tree.map(np.array, variables["params"])
    params["units"]["unit"]["dense"]["kernel"][1] *= -1

    def loss(params):
        return model.apply({"params": params}, x).mean()

    found = hunt(jax.jit(jax.value_and_grad(loss)), params)
    assert (found.primitive, found.layer, found.steps, found.direction) == ("sqrt", "units/unit", (1,), "forward")
    assert "layer units/unit" in found.what
    params["units"]["unit"]["dense"]["kernel"][1] *= 0
    found = hunt(jax.grad(loss), params)
    assert (found.derivative_of, found.layer, found.steps) == ("sqrt", "units/unit", (1,))
    params["units"]["unit"]["dense"]["kernel"][1] += 3e38
    found = hunt(jax.value_and_grad(loss), params)
    assert (found.primitive, found.layer, found.overflow) == ("dot_general", "units/unit/dense", True)


def test_an_nnx_model_is_named_by_its_line():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 2, rngs=rngs)

        def __call__(self, x):
            return jnp.log(self.linear(x) * 0)

    graph, state = nnx.split(Model(nnx.Rngs(0)))
    found = hunt(lambda state, x: nnx.merge(graph, state)(x), state, X[None])
    assert (found.primitive, found.layer) == ("log", None)
    assert "in __call__" in found.source


def test_after_the_backward_pass_it_is_the_update():
    def update(x):
        gradient = jax.grad(lambda x: (x**2).sum())(x)
        return x - gradient / jnp.sqrt(gradient)

    found = hunt(update, X)
    assert (found.primitive, found.direction) == ("div", "update")
