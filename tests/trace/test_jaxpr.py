"""One reading of a jaxpr: marks under every transform of Flax, and values through loops, branches and calls."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import helpers
from deepjax.errors import InputError
from deepjax.trace import TOP, Interpreter, around_calls, call_arguments, call_jaxpr, read_mark

KEY = jax.random.key(0)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Dense(4, name="dense")(x))


AXES = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}


class Net(nn.Module):
    """A block under one of Flax's transforms."""

    kind: str

    @nn.compact
    def __call__(self, x):
        if self.kind == "called twice":
            block = Block(name="block")
            return block(block(x))
        if self.kind == "vmap":
            return nn.vmap(Block, in_axes=None, out_axes=1, axis_size=3, **AXES)(name="block")(x)
        if self.kind in ("scan", "scan of remat"):
            inner = nn.remat(Block) if "remat" in self.kind else Block
            body = nn.scan(lambda block, x, _: (block(x), None), length=3, **AXES)
            return body(inner(name="block"), x, None)[0]
        if self.kind == "cond":
            block = Block(name="block")
            if self.is_initializing():  # Flax: both branches must have the same variables
                return block(x)
            return nn.cond(x.sum() > 0, lambda m, x: m(x), lambda m, x: x, block, x)
        transform = {"plain": lambda module: module, "jit": nn.jit, "remat": nn.remat}[self.kind]
        return transform(Block)(name="block")(x)


class Marks(Interpreter):
    """Notes marks and products, and where they are."""

    def __init__(self):
        self.marks, self.products = [], []

    def equation(self, eqn, values, where):
        if mark := read_mark(eqn):
            assert mark.path == where.path
            if mark.method == "__call__":
                kind = mark.kind.removeprefix("Checkpoint").removeprefix("Jit").removeprefix("Vmap")
                self.marks.append((mark.role, "/".join(mark.path), kind, mark.shape, mark.parameters))
        if eqn.primitive.name == "dot_general":
            self.products.append(("/".join(where.path), where.times))
        return [None] * len(eqn.outvars)

    def join(self, values, shape, choice=None):
        return None


# How often the block is called, in the jaxpr and in all.
CALLS = {
    "plain": (1, 1),
    "jit": (1, 1),
    "remat": (1, 1),
    "called twice": (2, 2),
    "vmap": (1, 1),
    "scan": (1, 3),
    "scan of remat": (1, 3),
    "cond": (1, 1),
}


@pytest.mark.parametrize("kind", CALLS)
def test_every_call_is_marked_under_every_transform(kind):
    model, x = Net(kind), jnp.ones((2, 4))
    variables = helpers.draw_variables(model, x)
    jax.eval_shape(model.apply, variables, x)  # JAX keeps the trace of a jitted module, which has no marks
    for _ in range(2):
        reader = Marks()
        jaxpr = call_jaxpr(model, variables, x, {})
        reader.run(jaxpr, [None] * len(jaxpr.invars))
        times, in_all = CALLS[kind]
        dense = {"kernel": (4, 4), "bias": (4,)}
        block = [
            ("enter", "block", "Block", (4,), {}),
            ("enter", "block/dense", "Dense", (4,), dense),
            ("exit", "block/dense", "Dense", (4,), dense),
            ("exit", "block", "Block", (4,), {}),
        ]
        whole = (3, 4) if kind == "vmap" else (4,)
        assert reader.marks == [("enter", "", "Net", (4,), {}), *block * times, ("exit", "", "Net", whole, {})]
        assert reader.products == [("block/dense", in_all // times)] * times


def test_equations_of_a_method_belong_to_its_module():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embed = nn.Embed(5, 3, name="embed")
            return embed.attend(embed(tokens))

    tokens = jnp.zeros((1, 2), int)
    reader = Marks()
    jaxpr = call_jaxpr(Tied(), Tied().init(KEY, tokens), tokens, {})
    reader.run(jaxpr, [None] * len(jaxpr.invars))
    assert reader.products == [("embed", 1)]


def test_a_jitted_module_is_traced_again_under_another_rule():
    model, x = nn.jit(nn.Dense)(3), jnp.ones((2, 4))
    variables = model.init(KEY, x)
    y = model.apply(variables, x)

    def times(factor):
        def rule(module, run, args, kwargs):
            return factor * run(*args, **kwargs)

        return rule

    for rule, factor in ((times(2), 2), (times(3), 3)):
        with around_calls(rule):
            np.testing.assert_allclose(model.apply(variables, x), factor * y, rtol=1e-6)
            with around_calls(times(5)):
                np.testing.assert_allclose(model.apply(variables, x), 5 * factor * y, rtol=1e-6)
        np.testing.assert_allclose(model.apply(variables, x), y, rtol=1e-6)


def test_sequential_takes_what_its_first_layer_takes():
    class Trains(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return x

    assert call_arguments(nn.Sequential([Trains(), nn.Dense(3)]), train=False, mask=None) == {"train": False}
    assert call_arguments(nn.Sequential([jnp.tanh, Trains()]), train=False) == {}


def test_a_model_that_does_not_take_the_input():
    with pytest.raises(InputError, match=r"does not take an input of shape \(2, 5\): .*kernel"):
        call_jaxpr(nn.Dense(3), nn.Dense(3).init(KEY, jnp.ones((2, 4))), jnp.ones((2, 5)), {})


# Values


class Dependences(Interpreter):
    """The value of an array: names of the inputs that it depends on."""

    constant = frozenset()
    steps = None

    def equation(self, eqn, values, where):
        return [frozenset().union(*values)] * len(eqn.outvars)

    def join(self, values, shape, choice=constant):
        return choice.union(*values)

    def any_steps(self, values, shapes):
        return [frozenset().union(*values)] * len(values)


@jax.custom_jvp
def swapped(a, b):
    return b, a


swapped.defjvp(lambda primals, tangents: (swapped(*primals), swapped(*tangents)))


@jax.custom_vjp
def first(a, b):
    return a


first.defvjp(lambda a, b: (a, None), lambda _, g: (g, None))


def shifted(steps):
    """After k steps, the last of three carries depends on the input of the one k places before it."""
    return lambda a, b, c: lax.scan(lambda carry, _: ((carry[0], *carry[:-1]), None), (a, b, c), length=steps)[0][-1]


def until(a, b, c):
    return lax.while_loop(lambda carry: carry[0] < 3, lambda carry: (carry[0] + b, carry[1]), (a, c))[0]


FUNCTIONS = {
    "no step": (shifted(0), "c"),
    "one step": (shifted(1), "b"),
    "two steps": (shifted(2), "a"),
    "five steps": (shifted(5), "a"),
    "outputs of a scan": (lambda a, b, c: lax.scan(lambda carry, x: (b, carry + x), a, c * jnp.ones(4))[1], "abc"),
    "a branch": (lambda a, b, c: lax.cond(a > 0, lambda: b, lambda: 2.0), "ab"),
    "a loop": (until, "abc"),
    "jit": (lambda a, b, c: jax.jit(lambda x, y: (y, x))(a, b)[0], "b"),
    "remat": (lambda a, b, c: jax.checkpoint(lambda x, y: (y, x))(a, b)[0], "b"),
    "custom jvp": (lambda a, b, c: swapped(a, b)[0], "b"),
    "custom vjp": (lambda a, b, c: first(c, b), "c"),
    "vmap": (lambda a, b, c: jax.vmap(lambda x: lax.cond(x > 0, lambda: b, lambda: 1.0))(c * jnp.ones(2)), "bc"),
    "a reduction": (lambda a, b, c: lax.reduce(c * jnp.ones(3), b, lambda x, y: x * y, (0,)), "bc"),
    "a gradient": (lambda a, b, c: jax.grad(lambda x: jnp.sin(x) * b)(a), "ab"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_outputs_depend_on(name):
    function, expected = FUNCTIONS[name]
    jaxpr = jax.make_jaxpr(function)(1.0, 2.0, 3.0).jaxpr
    assert Dependences().run(jaxpr, list(map(frozenset, "abc"))) == [frozenset(expected)]


class Steps(Interpreter):
    """Counts how often products are interpreted, and how often they run."""

    def __init__(self, steps):
        self.steps, self.seen = steps, []

    def equation(self, eqn, values, where):
        if eqn.primitive.name == "mul":
            self.seen.append(where)
        return [max(values, default=0) + 1] * len(eqn.outvars)

    def join(self, values, shape, choice=None):
        return max(values)

    constant = 0


def test_steps_of_nested_scans():
    def function(x):
        def outer(x, _):
            return lax.scan(lambda x, _: (x * x, x), x, length=4)[0], None

        return lax.scan(outer, x, length=3)[0]

    jaxpr = jax.make_jaxpr(function)(2.0).jaxpr
    for steps, value, interpreted in ((1, 1, 1), (2, 4, 4), (None, 12, 12)):
        reader = Steps(steps)
        assert reader.run(jaxpr, [0]) == [value]
        assert len(reader.seen) == interpreted
        assert {where.times for where in reader.seen} == {12}
        assert [where.again for where in reader.seen] == [False] + [True] * (interpreted - 1)
    assert TOP.times == 1
