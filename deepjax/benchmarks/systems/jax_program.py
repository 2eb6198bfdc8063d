"""What the systems deepjax and flax share: the compiled step of any Linen model."""

import jax
import jax.numpy as jnp

from deepjax.benchmarks import programs, workloads
from deepjax.summary.costs import multiply_adds


class Training(programs.JaxProgram):
    """Training steps of a Linen model on a workload's batch."""

    def __init__(self, model, work, auxiliary=0.0, options=None):
        batch = jax.tree.map(jnp.asarray, workloads.data(work))
        super().__init__(*programs.training(model, batch, workloads.LEARNING_RATE, auxiliary, options))

    def facts(self, jaxpr):
        """See `programs.JaxProgram.facts`."""
        return {"macs": multiply_adds(jaxpr.jaxpr), "parameters": count(self.shapes[0]["params"])}


class Inference(programs.JaxProgram):
    """Forward passes.

    Args:
      forward: function (variables, x) -> logits.
      variables: arrays.
      work: the workload.
      parameters: number of parameters of the network that was folded.
    """

    def __init__(self, forward, variables, work, parameters):
        self.parameters = parameters
        super().__init__(jax.jit(forward), variables, jnp.asarray(workloads.data(work)[0]))

    def facts(self, jaxpr):
        """See `programs.JaxProgram.facts`."""
        return {"macs": multiply_adds(jaxpr.jaxpr), "parameters": self.parameters}

    def step(self):
        """Run one forward pass, wait for its end, and return the mean absolute logit."""
        return float(jnp.abs(self.compiled(self.shapes, self.batch)).mean())


def count(params):
    """Return the number of values in a tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def cast(variables, dtype):
    """Return variables of float32 in the dtype of the computation, as inference stores them."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), variables)


def option(dtype):
    """Return a network's field `dtype` from its name: None for float32."""
    return None if dtype == "float32" else jnp.dtype(dtype)
