"""What training carries from step to step: one tree of arrays, and the progress of the loop."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from deepjax.errors import InputError
from deepjax.optimizers import slow_params
from deepjax.trace import call_arguments, input_errors


@dataclass
class Progress:
    """What resuming needs besides the state; stored in each checkpoint as JSON."""

    epochs: int = 0  # finished, validation included
    sums: dict = field(default_factory=dict)  # of the task's metrics, over the examples of the current epoch
    count: float = 0.0  # of these examples
    train: dict = field(default_factory=dict)  # means of the last finished epoch
    best: dict | None = None  # {"step", "epoch", "rank", metrics...} of the best validation
    stale: int = 0  # epochs since the last one that was better than all before
    seconds: float = 0.0  # of training and validation, without compilation
    compile_seconds: float = 0.0
    examples: int = 0


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds."""

    step: jax.Array  # i32[]: batches done
    params: Any
    batch_stats: Any  # {} if the model has none
    opt_state: Any
    ema: Any  # the parameters' moving average; {} if it is off
    swa: Any = flax.struct.field(default_factory=dict)  # their equal average over epochs' ends; {} if it is off

    @property
    def eval_variables(self):
        """The variables to evaluate: the moving average, or lookahead's slow weights, replace the parameters."""
        return {"params": self.ema or slow_params(self.opt_state, self.params), "batch_stats": self.batch_stats}


def init_state(model, optimizer, key, shape, *, variables=None, dtype=jnp.float32, ema=False, swa=False):
    """Return a new state for a Linen model.

    Args:
      model: a Linen module, called with `train=False` if it takes `train`.
      optimizer: an Optax transformation.
      key: PRNG key of the parameters.
      shape: shape of one example as the model takes it, such as (32, 32, 3).
      variables: initial variables of the model; None means those of `model.init`.
      dtype: dtype of the model's inputs, for `model.init`.
      ema: whether to keep a moving average of the parameters.
      swa: whether to keep an equal average of the parameters at epochs' ends.

    Raises:
      InputError: the model does not take such an input; it has variable collections other than params and batch_stats,
        or no parameters.
    """
    init = partial(_new_state, model, optimizer, shape, dtype, ema, swa)
    # Random numbers are slow to compile and quick to draw: without optimization, the CPU is ready six times sooner.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, compiler_options=options)(key, variables)


def state_shapes(model, optimizer, shape, *, dtype=jnp.float32, ema=False, swa=False):
    """Return what `init_state` returns, as shapes; nothing is computed."""
    return jax.eval_shape(
        partial(_new_state, model, optimizer, shape, dtype, ema, swa), jax.eval_shape(lambda: jax.random.key(0)), None
    )


def _new_state(model, optimizer, shape, dtype, ema, swa, key, variables):
    if variables is None:
        with input_errors((1, *shape)):
            variables = model.init(key, jnp.zeros((1, *shape), dtype), **call_arguments(model, train=False))
    if other := set(variables) - {"params", "batch_stats"}:
        raise InputError(f"the model has variables {sorted(other)}; training supports params and batch_stats only")
    if "params" not in variables:
        raise InputError(f"the model {type(model).__name__} has no parameters; there is nothing to train")
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        # A copy: the state is donated to the step, and one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, params) if ema else {},
        swa=jax.tree.map(jnp.copy, params) if swa else {},
    )


def parameter_count(params):
    """Return how many numbers are in a tree of arrays (or of their shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
