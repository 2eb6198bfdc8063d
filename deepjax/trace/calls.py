"""The one interceptor of Linen module calls."""

import contextlib
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

# JAX traces a jitted function once and keeps the result. This context is part of the key of that cache, so that a
# module inside `nn.jit` is traced again under another rule.
_RULES = jax.make_user_context(())


@contextlib.contextmanager
def around_calls(rule: Callable[..., Any], *, every_method=False):
    """Within the context, every module's `__call__` goes through `rule`.

    Calls are seen wherever Flax traces them: also in the bodies of `nn.scan`, `nn.remat`, `nn.vmap`, `nn.jit` and
    `nn.cond`. JAX compiles again for every new `rule`, so reuse one function for calls that are not inside a `jax.jit`.

    Args:
      rule: function (module, run, args, kwargs) -> the output of the call. `run(*args, **kwargs)` makes the call itself
        and may be called with other arguments, or not at all.
      every_method: also intercept the other methods of a module, except `setup`.

    >>> import jax, jax.numpy as jnp
    >>> def double(module, run, args, kwargs):
    ...     return 2 * run(*args, **kwargs)
    >>> dense, x = nn.Dense(3), jnp.ones((1, 2))
    >>> variables = dense.init(jax.random.key(0), x)
    >>> with around_calls(double):
    ...     y = dense.apply(variables, x)
    >>> bool((y == 2 * dense.apply(variables, x)).all())
    True
    """

    def intercept(next_method, args, kwargs, context):
        if context.method_name == "setup" or not (every_method or context.method_name == "__call__"):
            return next_method(*args, **kwargs)
        return rule(context.module, next_method, args, kwargs)

    # A weak reference, so that JAX's caches do not keep alive what a rule holds. A bound method is made anew each time
    # it is looked up; two of one object are equal.
    identity = rule if inspect.ismethod(rule) else weakref.ref(rule)
    with _RULES((*_RULES.value, identity)), nn.intercept_methods(intercept):
        yield
