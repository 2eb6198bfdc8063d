"""The number of layers of any Linen model, as papers count them."""

from deepjax.summary import trace_model
from deepjax.trace import Interpreter

CONSTANT, PARAMETERS = -2, -1  # of arrays that depend on nothing, and on parameters alone


class Longest(Interpreter):
    """Count, for each array, the convolutions and matrix products with parameters between the input and it."""

    constant = CONSTANT
    steps = None

    def equation(self, eqn, values, where):
        """Add one layer for a product of an array that depends on the input with parameters."""
        layers = max(values, default=CONSTANT)
        product = eqn.primitive.name in ("conv_general_dilated", "dot_general")
        weighted = product and layers >= 0 and min(values[:2]) == PARAMETERS
        return [layers + weighted] * len(eqn.outvars)

    def join(self, values, shape, choice=None):
        """Take the longest way."""
        return max(values)


def count_layers(model, input_shape, **call) -> int:
    """Return the number of convolutions and dense layers on the longest way from the input to the output of a model.

    This is the number in the names of ResNet-34 and VGG-16. A recurrent layer has one for each step. Nothing is
    computed.

    Args:
      model, input_shape, **call: see `summarize`.

    Raises:
      InputError: an input that the model does not take.

    >>> import flax.linen as nn
    >>> count_layers(nn.Sequential([nn.Conv(8, (3, 3)), nn.LayerNorm(), nn.Dense(4)]), (32, 32, 3))
    2
    """
    jaxpr, _ = trace_model(model, input_shape, **call)
    values = [*[PARAMETERS] * (len(jaxpr.invars) - 1), 0]
    return max(Longest().run(jaxpr, values), default=0)
