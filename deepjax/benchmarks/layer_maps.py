"""The programs of `deepjax bench layers`: one map of one convolution in deepjax, `jax.lax` and PyTorch."""

import math

import numpy as np

from deepjax.benchmarks.cells import PHASES, has_torch

MAPS = ("forward", "input_gradient", "kernel_gradient")
SYSTEMS = ("deepjax", "lax", "torch")


def job(system, which, layer, batch, dtype, threads):
    """Return the worker's job that measures a map; `layer`: a `layers.Layer` as a dict."""
    phases = (PHASES[0], PHASES[-1]) if system == "torch" else PHASES
    found = {"kind": "layer", "system": system, "map": which, "layer": layer, "batch": batch, "dtype": dtype}
    return {**found, "threads": threads, "phases": phases}


def load(job):
    """Return the program of a job."""
    return TorchMap(job) if job["system"] == "torch" else _jax_map(job)


def arrays(layer, batch):
    """Return (x [batch, *size, features_in], kernel [*window, features_in / groups, features], dy like the output)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *layer["size"], layer["features_in"]), np.float32)
    shape = (*layer["window"], layer["features_in"] // layer["groups"], layer["features"])
    kernel = rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[:-1])))
    return x, kernel, rng.standard_normal((batch, *layer["out"], layer["features"]), np.float32)


def _jax_map(job):
    import jax
    import jax.numpy as jnp

    from deepjax.benchmarks.programs import JaxProgram

    conv = _conv(job["system"], job["layer"])

    def run(x, batch):
        kernel, dy = batch
        if job["map"] == "forward":
            return conv(x, kernel)
        _, gradients = jax.vjp(conv, x, kernel)  # linear in both, so that the forward pass is not computed
        return gradients(dy)[MAPS.index(job["map"]) - 1]

    class Map(JaxProgram):
        """A map of a convolution; `step` returns the mean absolute value of its result, of the first step."""

        value = None

        def step(self):
            """Compute the map and wait for its end."""
            y = jax.block_until_ready(self.compiled(self.shapes, self.batch))
            if self.value is None:
                self.value = float(jnp.abs(y.astype(jnp.float32)).mean())
            return self.value

    x, kernel, dy = (jnp.asarray(each, job["dtype"]) for each in arrays(job["layer"], job["batch"]))
    return Map(jax.jit(run), x, (kernel, dy))


def _conv(system, layer):
    """Return the convolution (x, kernel) -> y of a system in JAX."""
    from jax import lax

    from deepjax import functional

    stride, groups = layer["stride"], layer["groups"]
    padding = [tuple(pair) for pair in layer["padding"]]
    if system == "deepjax":
        return lambda x, kernel: functional.conv(x, kernel, stride=stride, padding=padding, groups=groups)
    layout = ("NHWC", "HWIO", "NHWC")
    return lambda x, kernel: lax.conv_general_dilated(
        x, kernel, stride, padding, dimension_numbers=layout, feature_group_count=groups
    )


class TorchMap:
    """A map of a convolution in PyTorch, with features last in memory."""

    def __init__(self, job):
        import torch

        torch.set_num_threads(job["threads"])
        self.torch, layer, self.value = torch, job["layer"], None
        x, kernel, dy = arrays(layer, job["batch"])
        x, dy = (torch.from_numpy(each).permute(0, 3, 1, 2).to(getattr(torch, job["dtype"])) for each in (x, dy))
        kernel = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).to(x.dtype)
        self.kernel = kernel.to(memory_format=torch.channels_last)
        (top, bottom), (left, right) = layer["padding"]
        if (top, left) != (bottom, right):  # PyTorch pads both sides alike, so that these zeros are part of x
            x = torch.nn.functional.pad(x, (left, right, top, bottom)).contiguous(memory_format=torch.channels_last)
            top = left = 0
        self.x, self.dy, wanted = x, dy, [name == job["map"] for name in MAPS]
        rest = (None, layer["stride"], (top, left), (1, 1), False, (0, 0), layer["groups"], [*wanted[1:], False])
        if wanted[0]:
            self.run = lambda: torch.conv2d(self.x, self.kernel, None, rest[1], rest[2], (1, 1), rest[6])
        else:
            self.run = lambda: self._gradient(rest, wanted.index(True) - 1)

    def _gradient(self, rest, which):
        return self.torch.ops.aten.convolution_backward(self.dy, self.x, self.kernel, *rest)[which]

    def prepare(self):
        """Yield the record of the phase "compile"."""
        yield {"phase": "compile", "platform": "cpu"}

    def step(self):
        """Compute the map, and return the mean absolute value of its result, of the first step."""
        y = self.run()
        if self.value is None:
            self.value = float(y.float().abs().mean())
        return self.value


def systems():
    """Return the systems that are installed."""
    return [name for name in SYSTEMS if name != "torch" or has_torch()]
