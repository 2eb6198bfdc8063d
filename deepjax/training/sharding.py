"""All device placement: which devices, and how the pure step runs on them.

A step here is `step(state, data, rows, key) -> (state, metrics)`: `data` is whole on every device (a training set that
lives there), `rows` is split on its first axis (indices into that set, or a batch itself).
"""

from functools import partial

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deepjax.errors import InputError

AXIS = "data"


def select_devices(count=0, batch_size=None):
    """The first `count` local devices; 0: all.

    Raises InputError where there are fewer, or where `batch_size` is not a multiple of their number.
    """
    devices = jax.local_devices()
    if not 0 <= count <= len(devices):
        raise InputError(f"devices.count {count}: this machine has {len(devices)} ({devices[0].device_kind})")
    devices = devices[: count or len(devices)]
    if batch_size is not None and batch_size % len(devices):
        raise InputError(
            f"batch_size {batch_size} cannot be split over {len(devices)} devices; use a multiple of {len(devices)}, "
            f"or fewer devices by --devices.count"
        )
    return devices


def replicate(tree, devices):
    """The tree, whole on every device."""
    return jax.device_put(tree, _placements(devices)[0])


def split_rows(rows, devices, strategy="jit"):
    """Rows as the step of `strategy` takes them: on the devices, each holding its share of the first axis.

    jit: the shape stays. pmap: [batch, ...] becomes [devices, batch / devices, ...].
    """
    if strategy == "pmap":
        rows = jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), rows)
    return jax.device_put(rows, _placements(devices)[1])


def parallel_step(step, devices, strategy="jit"):
    """`step(state, data, rows, key)` over devices; the state is donated.

    Args:
      step: takes `axis_name=` too, where strategy is "pmap".
      devices: from `select_devices`.
      strategy: "jit": one program over a mesh, statistics of the whole batch. "pmap": the step once per device, which
        the step itself ties together along the axis "data"; rows come as [devices, batch / devices, ...].
    """
    if strategy == "pmap":
        # in_axes and out_axes None: one logical state, whole on every device, in both forms.
        return jax.pmap(
            partial(step, axis_name=AXIS),
            axis_name=AXIS,
            in_axes=(None, None, 0, None),
            out_axes=None,
            devices=devices,
            donate_argnums=0,
        )
    whole, split = _placements(devices)
    return jax.jit(step, in_shardings=(whole, whole, split, whole), out_shardings=whole, donate_argnums=0)


def parallel_eval(step, devices):
    """`step(variables, data, rows) -> values per row` over devices, by jit."""
    whole, split = _placements(devices)
    return jax.jit(step, in_shardings=(whole, whole, split), out_shardings=split)


def parallel_moments(step, devices):
    """`step(variables, data, rows, count) -> batch_stats` over devices, by jit: moments of the whole batch."""
    whole, split = _placements(devices)
    return jax.jit(step, in_shardings=(whole, whole, split, whole), out_shardings=whole)


def _placements(devices):
    """(whole on every device, split on the first axis)."""
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
