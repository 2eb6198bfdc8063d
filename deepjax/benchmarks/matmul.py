"""The machine's peak: the product of two square matrices in JAX."""

import jax
import jax.numpy as jnp

from deepjax.benchmarks.cells import PHASES
from deepjax.benchmarks.programs import JaxProgram

SIZE = 2048


def job(dtype, threads):
    """Return the worker's job."""
    return {"kind": "matmul", "dtype": dtype, "threads": threads, "phases": PHASES, "size": SIZE}


def load(job):
    """Return the program of a job."""
    return Product(job["size"], job["dtype"])


class Product(JaxProgram):
    """A product of two matrices [size, size] of ones, with size**3 multiply-adds."""

    def __init__(self, size, dtype):
        one = jnp.ones((size, size), dtype)
        self.macs = size**3
        super().__init__(jax.jit(jnp.matmul), one, one)

    def facts(self, jaxpr):
        """See `programs.JaxProgram.facts`."""
        return {"macs": self.macs}

    def step(self):
        """Compute the product, wait for its end, and return one of its entries."""
        return float(self.compiled(self.shapes, self.batch).block_until_ready()[0, 0])
