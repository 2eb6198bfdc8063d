"""The one interceptor of Linen module calls."""

import contextlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn


@contextlib.contextmanager
def around_calls(rule: Callable[..., Any]):
    """Within the context, every module's `__call__` goes through `rule`.

    Calls are seen wherever Flax traces them: also in the bodies of `nn.scan`, `nn.remat`, `nn.vmap` and `nn.cond`.
    Other methods, such as `setup`, are not intercepted.

    Args:
      rule: function (module, run, args, kwargs) -> the output of the call. `run(*args, **kwargs)` makes the call itself
        and may be called with other arguments, or not at all.

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
        if context.method_name != "__call__":
            return next_method(*args, **kwargs)
        return rule(context.module, next_method, args, kwargs)

    with nn.intercept_methods(intercept):
        yield
