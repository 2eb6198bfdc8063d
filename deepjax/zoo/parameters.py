"""The number of parameters of each network, so that a list of all networks needs no minute.

`python -m deepjax.zoo.parameters` writes parameters.json again. A network that is not in it is traced when asked for.
"""

import functools
import json
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp

from deepjax import zoo
from deepjax.files import write_json

FILE = "parameters.json"


def parameter_count(name: str) -> int:
    """Return the number of parameters of a network, with its usual input, options and number of classes."""
    found = _recorded().get(name)
    return traced_count(name) if found is None else found


def traced_count(name: str) -> int:
    """Count the parameters of a network by tracing its initialization, which takes up to some seconds."""
    network = zoo.create(name)
    image = jnp.zeros((1, *network.usual_input))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), image, train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@functools.cache
def _recorded() -> dict[str, int]:
    return json.loads(resources.files("deepjax.zoo").joinpath(FILE).read_bytes())


if __name__ == "__main__":
    write_json(Path(__file__).with_name(FILE), {name: traced_count(name) for name in zoo.MODELS})
