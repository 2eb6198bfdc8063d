"""The one interceptor of Linen module calls."""

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax

# JAX traces a jitted function once and keeps the result. This context is part of the key of that cache, so that a
# module inside `nn.jit` is traced again under another rule.
_RULES = jax.make_user_context(())

# The interceptors and rules that are active, the outermost first.
_active: ContextVar[tuple[tuple[Callable[..., Any], Callable[..., Any]], ...]] = ContextVar("active", default=())


def around_calls(rule: Callable[..., Any]):
    """Within the context, every module's `__call__` goes through `rule`.

    Calls are seen wherever Flax traces them: also in the bodies of `nn.scan`, `nn.remat`, `nn.vmap`, `nn.jit` and
    `nn.cond`. JAX compiles again for every new `rule`, so reuse one function for calls that are not inside a `jax.jit`.

    Args:
      rule: function (module, run, args, kwargs) -> the output of the call. `run(*args, **kwargs)` makes the call itself
        and may be called with other arguments, or not at all.

    >>> import jax, jax.numpy as jnp
    >>> def double(module, run, args, kwargs):
    ...     return 2 * run(*args, **kwargs)
    >>> dense, x = nn.Dense(3), jnp.ones((1, 2))
    >>> variables = jax.jit(dense.init)(jax.random.key(0), x)
    >>> with around_calls(double):
    ...     y = dense.apply(variables, x)
    >>> bool((y == 2 * dense.apply(variables, x)).all())
    True
    """

    def intercept(run, args, kwargs, context):
        return rule(context.module, run, args, kwargs) if context.method_name == "__call__" else run(*args, **kwargs)

    return _intercepting(intercept, rule)


def around_methods(rule: Callable[..., Any]):
    """Within the context, every method of a module, except `setup`, goes through `rule`.

    As `around_calls`, with a function (module, method's name, run, args, kwargs). A function under one of Flax's
    transforms, such as the body of an `nn.scan`, is a method of its first argument too.
    """

    def intercept(run, args, kwargs, context):
        if context.method_name == "setup":
            return run(*args, **kwargs)
        return rule(context.module, context.method_name, run, args, kwargs)

    return _intercepting(intercept, rule)


@contextlib.contextmanager
def _intercepting(intercept, rule):
    # A weak reference, so that JAX's caches do not keep a rule's objects alive. Every look-up of a bound method creates
    # a new object; two such objects of one instance are equal.
    identity = rule if inspect.ismethod(rule) else weakref.ref(rule)
    token = _active.set((*_active.get(), (intercept, rule)))
    try:
        with _RULES((*_RULES.value, identity)), nn.intercept_methods(intercept):
            yield
    finally:
        _active.reset(token)


def with_current_rules(function):
    """Return `function`, which calls modules under the rules that are active now whenever it is called.

    The two functions of a `jax.custom_vjp` need this: JAX may trace them after the context of `around_calls` is left,
    and gradients must be those of the calls that were made.
    """
    active = _active.get()

    @functools.wraps(function)
    def run(*args):
        with contextlib.ExitStack() as stack:
            if _active.get()[: len(active)] != active:
                for intercept, rule in active:
                    stack.enter_context(_intercepting(intercept, rule))
            return function(*args)

    return run
