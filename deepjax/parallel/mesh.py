"""The devices of a run, where arrays are placed on them, and how a pure step runs on all of them."""

from dataclasses import dataclass
from functools import partial

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deepjax import cpu
from deepjax.errors import InputError

AXIS = "data"


@dataclass(frozen=True)
class Mesh:
    """A row of devices over which a batch is split. Create it with `make_mesh`.

    A step here is `step(state, data, rows, key) -> (state, metrics)`. `data` is replicated (a training set that is
    stored on the devices). `rows` is split along its first axis (indices into that set, or a batch itself).
    """

    devices: tuple
    strategy: str
    """"jit": one program over all devices; batch statistics are those of the whole batch. "pmap": one program per
    device; batch statistics are those of each device's share, as with PyTorch's DataParallel."""
    replicated: NamedSharding
    """An array is whole on every device."""
    split: NamedSharding
    """An array's first axis is split over the devices."""

    def __len__(self):
        return len(self.devices)

    def replicate(self, tree):
        """Place a tree of arrays on every device."""
        return jax.device_put(tree, self.replicated)

    def split_rows(self, rows):
        """Place each device's share of the first axis there, for `evaluation` and `moments`."""
        return jax.device_put(rows, self.split)

    def to_devices(self, rows, axis=0):
        """Place the rows of a training step, whose batch is this axis.

        With jit, the shapes stay. With pmap, [batch, ...] becomes [devices, batch / devices, ...].
        """
        if self.strategy == "pmap":
            rows = jax.tree.map(lambda x: x.reshape(*x.shape[:axis], len(self), -1, *x.shape[axis + 1 :]), rows)
        return jax.device_put(rows, self._split(axis))

    def _split(self, axis):
        return NamedSharding(self.split.mesh, PartitionSpec(*[None] * axis, AXIS))

    def step(self, step, axis=0):
        """Compile `step(state, data, rows, key)` for the devices by the mesh's strategy; the state is donated.

        With pmap, the step receives `axis_name="data"` and reduces over that axis itself. `axis`: as in `to_devices`.
        """
        if self.strategy == "pmap":
            # in_axes and out_axes None: one logical state, replicated, as with jit.
            return jax.pmap(
                partial(step, axis_name=AXIS),
                axis_name=AXIS,
                in_axes=(None, None, axis, None),
                out_axes=None,
                devices=self.devices,
                donate_argnums=0,
            )
        whole, split = self.replicated, self._split(axis)
        places = {"in_shardings": (whole, whole, split, whole), "out_shardings": whole}
        return jax.jit(step, **places, donate_argnums=0, compiler_options=cpu.compiler_options())

    def evaluation(self, step):
        """Compile `step(variables, data, rows) -> values per row` by jit."""
        return jax.jit(step, in_shardings=(self.replicated, self.replicated, self.split), out_shardings=self.split)

    def moments(self, step):
        """Compile `step(variables, data, rows, count) -> batch_stats` by jit: moments of the whole batch."""
        whole, split = self.replicated, self.split
        return jax.jit(step, in_shardings=(whole, whole, split, whole), out_shardings=whole)


def make_mesh(count=0, strategy="jit", batch_size=None):
    """Return the Mesh of the first `count` local devices.

    Args:
      count: number of devices; 0 means all.
      strategy: "jit" or "pmap".
      batch_size: the batch that is going to be split over them, if there is one.

    Raises:
      InputError: there are fewer devices, or `batch_size` is not a multiple of their number.
    """
    devices = jax.local_devices()
    if not 0 <= count <= len(devices):
        raise InputError(f"devices.count {count}: this machine has {len(devices)} ({devices[0].device_kind})")
    devices = tuple(devices[: count or len(devices)])
    if batch_size is not None and batch_size % len(devices):
        raise InputError(
            f"batch_size {batch_size} cannot be split over {len(devices)} devices; use a multiple of {len(devices)}, "
            f"or fewer devices by --devices.count"
        )
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    return Mesh(devices, strategy, NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS)))
