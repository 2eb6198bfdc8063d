"""Eight CPU devices for the sharding tests, exact products, no silent broadcasting, and short compiles."""

import os

# Most of the time of these tests is compilation, so XLA's optimizer is off, unless XLA_OPTIMIZER=on asks for it. Its
# older emitter of loops, and one module of LLVM for a program, compile in about half the time of what is the default.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
QUICK += " --xla_cpu_parallel_codegen_split_count=1"
if os.environ.get("XLA_OPTIMIZER") != "on":
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # programs that earlier processes compiled must not be used

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
