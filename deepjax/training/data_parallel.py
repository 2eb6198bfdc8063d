"""Call a function on a batch that is split over devices, as PyTorch's `DataParallel` does.

`python -m deepjax.training.data_parallel` prints which device gets which share of the lecture's batch of 50 examples.
Training of a config splits its batches by itself; see `parallel.Mesh`.
"""

import flax.linen as nn
import jax

from deepjax.parallel import make_mesh
from deepjax.parallel.mesh import AXIS


def data_parallel(function, *, devices=0, see=None):
    """Return `function` with its batch split over devices and its results joined.

    Each device gets the parameters and an equal share of the rows, in order. The result equals that of `function` on
    the whole batch if a row of it depends on its own example only; otherwise, as with a batch norm in training, it is
    that of the shares. Gradients pass through. Inside of `function`, the axis of devices is called "data".

    Args:
      function: (variables, x) -> y, such as `model.apply`. x and y are arrays, or trees of them, with one row per
        example along their first axis.
      devices: number of devices; 0 means all.
      see: called as see(device, shapes) for each device, each time that it computes: the number of the device, and the
        shape of the x that it gets (a tuple, or a tree of tuples). The order of the devices may differ between calls.

    Returns:
      a function (variables, x) -> y. It raises InputError if the batch cannot be split into equal shares.

    Raises:
      InputError: there are fewer devices.

    >>> import jax.numpy as jnp
    >>> def double(variables, x):
    ...     return 2 * x
    >>> on_one = data_parallel(double, devices=1, see=lambda device, shape: print(device, shape))
    >>> on_one({}, jnp.ones((4, 3))).shape
    0 (4, 3)
    (4, 3)
    """
    mesh = make_mesh(devices)

    def compute(variables, x):
        if see is not None:
            shapes = jax.tree.map(lambda leaf: leaf.shape, x)
            jax.debug.callback(lambda device, see=see: see(int(device), shapes), jax.lax.axis_index(AXIS))
        return function(variables, x)

    whole, split = mesh.replicated.spec, mesh.split.spec
    on_devices = jax.jit(jax.shard_map(compute, mesh=mesh.split.mesh, in_specs=(whole, split), out_specs=split))

    def call(variables, x):
        make_mesh(devices, batch_size=len(jax.tree.leaves(x)[0]))  # raises for a batch that cannot be split
        return on_devices(variables, x)

    return call


def print_example():
    """Print the lecture's example: a dense layer, a batch of 50 examples of 10 numbers, one device and two."""
    layer = nn.Dense(5)
    x = jax.random.normal(jax.random.key(0), (50, 10))
    variables = layer.init(jax.random.key(1), x)
    for devices in range(1, min(2, jax.local_device_count()) + 1):
        lines = []
        layer_on = data_parallel(
            layer.apply, devices=devices, see=lambda device, shape, to=lines: to.append((device, shape))
        )
        y = layer_on(variables, x)
        jax.effects_barrier()
        print(f"{devices} device{'s' * (devices > 1)}: output {y.shape}")
        for device, shape in sorted(lines):
            print(f"  device {device} gets {shape}")
    if devices == 1:
        print(
            "this machine has one device; set XLA_FLAGS=--xla_force_host_platform_device_count=2 to have two on a CPU"
        )


if __name__ == "__main__":
    print_example()
