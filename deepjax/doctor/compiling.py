"""Compile what runs once or a few times."""

import jax


def compile_quickly(function, **options):
    """Return `jax.jit(function)`; on a CPU without XLA's optimizer, because compiling would take longer than running.

    Args:
      function: the function.
      **options: further arguments of `jax.jit`.
    """
    fast = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=fast, **options)
