"""Everything that training carries from step to step, as one tree of arrays."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from deepjax.errors import InputError
from deepjax.optimizers import slow_params


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds."""

    step: jax.Array  # i32[]: batches done
    params: Any
    batch_stats: Any  # {} where the model has none
    opt_state: Any
    ema: Any  # the parameters' moving average; {} where it is off
    swa: Any = flax.struct.field(default_factory=dict)  # their equal average over epochs' ends; {} where it is off

    @property
    def eval_variables(self):
        """The variables to evaluate: the moving average or lookahead's slow weights in the parameters' place."""
        return {"params": self.ema or slow_params(self.opt_state, self.params), "batch_stats": self.batch_stats}


def init_state(model, optimizer, key, shape, *, variables=None, ema=False, swa=False):
    """A fresh state for a Linen model.

    Args:
      model: called as `model(x, train=...)`.
      optimizer: an Optax transformation.
      key: for the parameters.
      shape: of one example, such as (32, 32, 3).
      variables: of the model, to begin with; None: those of `model.init`.
      ema: keep a moving average of the parameters.
      swa: keep an equal average of the parameters at epochs' ends.

    Raises:
      InputError: the model keeps collections other than params and batch_stats.
    """

    init = partial(_fresh, model, optimizer, shape, ema, swa)
    # Random numbers are slow to compile and quick to draw: six times less waiting on CPU without optimization.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, compiler_options=options)(key, variables)


def state_shapes(model, optimizer, shape, *, ema=False, swa=False):
    """What `init_state` gives, as shapes; nothing is computed."""
    return jax.eval_shape(partial(_fresh, model, optimizer, shape, ema, swa), jax.random.key(0), None)


def _fresh(model, optimizer, shape, ema, swa, key, variables):
    if variables is None:
        variables = model.init(key, jnp.zeros((1, *shape)), train=False)
    if other := set(variables) - {"params", "batch_stats"}:
        raise InputError(f"the model keeps {sorted(other)}; training knows params and batch_stats only")
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
    """How many numbers are in a tree of arrays (or of their shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
