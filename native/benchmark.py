"""Time the maps of deepjax_native, of deepjax's own implementation and of PyTorch, side by side.

Run `taskset -c 0,1 python native/benchmark.py`. Prints the best of alternating repeats, in milliseconds. On a machine
with other work, `taskset -c 1 python native/benchmark.py --cpu` gives times that this work changes less.
"""

import argparse
import time
from functools import partial

import deepjax_native
import jax
import numpy as np
import torch

from deepjax.functional.convolution.form import Axis, form_of
from deepjax.functional.convolution.maps import TABLE
from deepjax.functional.window_choice import drop_of_views

LAYERS = {  # batch, size, window, stride, features in, out, groups
    "3x3 64-64 at 28x28, batch 16": (16, 28, 3, 1, 64, 64, 1),
    "3x3 256-256 at 14x14, batch 16": (16, 14, 3, 1, 256, 256, 1),
    "1x1 64-256 at 56x56, batch 16": (16, 56, 1, 1, 64, 256, 1),
    "3x3 16-16 at 32x32, batch 128": (128, 32, 3, 1, 16, 16, 1),
    "5x5 3-64 at 32x32, batch 128": (128, 32, 5, 1, 3, 64, 1),
    "3x3 depthwise 96 at 28x28, batch 16": (16, 28, 3, 1, 96, 96, 96),
    "3x3 128-128 in 32 groups at 28x28, batch 16": (16, 28, 3, 1, 128, 128, 32),
    "3x3 64-64 at 56x56, batch 1": (1, 56, 3, 1, 64, 64, 1),
}
POOLS = {  # batch, size, window, stride, padding, features
    "max pool 3x3 / 2, 64 at 112x112, batch 16": (16, 112, 3, 2, 1, 64),
    "max pool 3x3 / 2, 32 at 32x32, batch 128": (128, 32, 3, 2, 0, 32),
    "max pool 2x2 / 2, 64 at 32x32, batch 128": (128, 32, 2, 2, 0, 64),
}
MAPS = ("forward", "input_gradient", "kernel_gradient")


def jax_call(function, form, *arrays):
    """Return a function without arguments that computes one of our maps and waits."""
    program = jax.jit(partial(function, form=form))
    return lambda: program(*arrays).block_until_ready()


def torch_call(name, stride, padding, groups, x, kernel, dy, memory_format):
    """Return the same for PyTorch."""
    x, dy = (torch.tensor(np.moveaxis(a, -1, 1)).contiguous(memory_format=memory_format) for a in (x, dy))
    kernel = torch.tensor(kernel.transpose(3, 2, 0, 1)).contiguous(memory_format=memory_format)
    options = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups)
    if name == "forward":
        return lambda: torch.ops.aten.convolution(x, kernel, None, *options)
    mask = [name == "input_gradient", name == "kernel_gradient", False]
    return lambda: torch.ops.aten.convolution_backward(dy, x, kernel, None, *options, mask)


def calls_of(name, layer):
    """Return the calls that compute a map of a layer, by name, and the number of multiply-adds."""
    batch, size, window, stride, features, out, groups = layer
    axis = Axis(size, window, stride, window // 2, window // 2, 1)
    form = form_of((axis, axis), groups, features // groups)
    rng = np.random.default_rng(0)
    shapes = (batch, size, size, features), (window, window, features // groups, out), (batch, axis.out, axis.out, out)
    x, kernel, dy = (rng.standard_normal(s).astype(np.float32) for s in shapes)
    arrays = {"forward": (x, kernel), "input_gradient": (dy, kernel), "kernel_gradient": (x, dy)}[name]
    arrays = [jax.device_put(a) for a in arrays]
    rest = (stride, window // 2, groups, x, kernel, dy)
    return {
        "native": jax_call(getattr(deepjax_native, name), form, *arrays),
        "deepjax": jax_call(getattr(TABLE["cpu", form.kind], name), form, *arrays),
        "torch": torch_call(name, *rest, torch.contiguous_format),
        "torch nhwc": torch_call(name, *rest, torch.channels_last),
    }, batch * axis.out**2 * window**2 * features // groups * out


def calls_of_pool(pool):
    """Return the calls that compute the gradient of a max pooling, by name."""
    batch, size, window, stride, padding, features = pool
    out = (size + 2 * padding - window) // stride + 1
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((batch, n, n, features)).astype(np.float32) for n in (size, out))
    sides = {"window": (window,) * 2, "stride": (stride,) * 2, "low": (padding,) * 2}
    native = jax.jit(partial(deepjax_native.max_pool_gradient, **sides))
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    sides = {"window": (1, window, window, 1), "stride": (1, stride, stride, 1), "pads": pads}
    ours, arrays = jax.jit(partial(drop_of_views, **sides)), [jax.device_put(a) for a in (x, dy)]

    def torch_call(memory_format):
        tx, tdy = (torch.tensor(np.moveaxis(a, -1, 1)).contiguous(memory_format=memory_format) for a in (x, dy))
        options = ([window] * 2, [stride] * 2, [padding] * 2, [1, 1], False)
        _, places = torch.ops.aten.max_pool2d_with_indices(tx, *options)
        return lambda: torch.ops.aten.max_pool2d_with_indices_backward(tdy, tx, *options, places)

    return {
        "native": lambda: native(*arrays).block_until_ready(),
        "deepjax": lambda: ours(*arrays).block_until_ready(),
        "torch": torch_call(torch.contiguous_format),
        "torch nhwc": torch_call(torch.channels_last),
    }


def measure(calls, seconds, clock):
    """Return the shortest time of each call in milliseconds, from rounds that call each twice."""
    best = dict.fromkeys(calls, np.inf)
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            call()  # the caches and threads are then this implementation's
            begin = clock()
            call()
            best[name] = min(best[name], clock() - begin)
    return {name: 1e3 * t for name, t in best.items()}


def main():
    """Print one line per layer and map."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3, help="per line")
    parser.add_argument("--cpu", action="store_true", help="time of the process on all cores, instead of the clock's")
    options = parser.parse_args()
    clock = time.process_time if options.cpu else time.perf_counter
    print(f"{'layer':44} {'map':16} {'native':>9} {'deepjax':>9} {'torch':>9} {'nhwc':>9}  GFLOP/s native")
    for label, layer in LAYERS.items():
        for name in MAPS:
            calls, operations = calls_of(name, layer)
            best = measure(calls, options.seconds, clock)
            numbers = " ".join(f"{t:9.2f}" for t in best.values())
            print(f"{label:44} {name:16} {numbers}  {2e-6 * operations / best['native']:.0f}", flush=True)
    for label, pool in POOLS.items():
        best = measure(calls_of_pool(pool), options.seconds, clock)
        print(f"{label:44} {'gradient':16} {' '.join(f'{t:9.2f}' for t in best.values())}", flush=True)


if __name__ == "__main__":
    main()
