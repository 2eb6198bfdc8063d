"""What several test files share. `tests/` is on the import path (`pythonpath` in pyproject.toml)."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepjax.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
REFERENCE = SHARED / "reference" / "torchvision_reference.py"
TFDS = SHARED / "tfds"


def random_arrays(seed, *shapes):
    """Return a tuple of standard normal float32 arrays of these shapes."""
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes)


def linear_in_kernel(size, kernel_shape, *, stride, padding, dilation, groups=1):
    """Describe the matrix of a convolution: which entry of the kernel is in which place.

    Output o meets input i at tap k if i = o * stride + k * dilation - low, so there is at most one tap per pair.

    Returns:
      (which, out): int [out pixels x features, size pixels x features_in] of indices into the raveled kernel, -1 where
      the matrix is 0, and the output's size.
    """
    *window, part, features = kernel_shape
    numbers = list(zip(size, window, stride, padding, dilation, strict=True))
    out = tuple((n + low + high - (w - 1) * d - 1) // s + 1 for n, w, s, (low, high), d in numbers)
    entries = np.arange(np.prod(kernel_shape)).reshape(kernel_shape)
    which = np.full((*out, features, *size, part * groups), -1)
    for o in np.ndindex(*out):
        for k in np.ndindex(*window):
            at = tuple(a * s + b * d - low for a, b, (_, _, s, (low, _), d) in zip(o, k, numbers, strict=True))
            if all(0 <= a < n for a, n in zip(at, size, strict=True)):
                for f, c in np.ndindex(features, part):
                    which[(*o, f, *at, f // (features // groups) * part + c)] = entries[(*k, c, f)]
    return which.reshape(np.prod(out) * features, -1), out


def load_data(name, data_dir="", seed=0, **fields):
    """`deepjax.data.load` with these fields of config.Data."""
    from deepjax import config, data

    return data.load(config.Data(str(name), **fields), str(data_dir), seed)


def loading_fails(match, name, data_dir="", **fields):
    """Loading raises InputError with one line that matches."""
    with pytest.raises(InputError, match=match) as caught:
        load_data(name, data_dir, **fields)
    assert "\n" not in str(caught.value)


def write_images(folder, counts, size=(20, 16), suffix=".png"):
    """Write images of one color each. counts: {class: number of images}; size: (width, height)."""
    from PIL import Image

    for k, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", size, (k * 40, number, 200)).save(folder / name / f"{number:03}{suffix}")


# Operators that torchvision registers with PyTorch while it is imported, written in PyTorch's schema language.
TORCHVISION_OPERATORS = dict.fromkeys(("nms", "qnms"), "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def import_torchvision():
    """Import torchvision even where its compiled operators cannot be loaded.

    `pip install torchvision` gives a build for one version of PyTorch and CUDA. Under another one its library of
    operators does not load, and the import fails with "operator torchvision::nms does not exist". Its classification
    networks use none of these operators, so it suffices to declare them. After this call a plain `import torchvision`
    works in the same process.

    Returns:
      The module `torchvision`. Skips the test if torchvision or PyTorch is not installed.
    """
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs torchvision, from the extra `parity`")
    try:
        import torchvision
    except RuntimeError:
        for name, schema in TORCHVISION_OPERATORS.items():
            torch.library.define(f"torchvision::{name}", schema)
        import torchvision
    return torchvision


def randomize_torch(module, seed=0):
    """Draw all parameters and running moments of a PyTorch module, so that each of them changes its output.

    Kernels have He's variance, 2 / fan in. Scales and variances lie around 1, all other values around 0.
    """
    import torch

    rng = np.random.default_rng(seed)

    def uniform(tensor, low, high):
        tensor.copy_(torch.from_numpy(rng.uniform(low, high, tuple(tensor.shape))))

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                uniform(part.weight, 0.5, 1.5)
                uniform(part.bias, -0.3, 0.3)
                uniform(part.running_mean, -0.3, 0.3)
                uniform(part.running_var, 0.5, 2.0)
            elif isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
                deviation = (2 / part.weight[0].numel()) ** 0.5
                part.weight.copy_(torch.from_numpy(deviation * rng.standard_normal(tuple(part.weight.shape))))
                if part.bias is not None:
                    uniform(part.bias, -0.2, 0.2)


def check_scanned_is_unrolled(model, variables, x):
    """Compare a training step of scanned units with the unrolled network's forward pass and moments.

    Each parameter gets a gradient, and a masked row changes nothing.
    """
    import flax
    import jax
    from numpy.testing import assert_allclose

    from deepjax import functional
    from deepjax.units import unstack_units

    labels, mask = np.arange(4) % 3, np.array([True, True, True, False])

    def assert_close(a, b):
        assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(abs(b).max() + 1e-3))

    def forward(network, variables, x):
        logits, new = network.apply(variables, x, train=True, mask=mask, mutable="batch_stats")
        return {"logits": logits[:3], "moments": new["batch_stats"]}

    @jax.jit
    def step(x):
        def loss(params):
            seen = forward(model, variables | {"params": params}, x)
            return functional.cross_entropy(seen["logits"], labels[:3]).sum(), seen

        gradients, seen = jax.grad(loss, has_aux=True)(variables["params"])
        return {"gradients": gradients, **seen}

    ours = jax.device_get(step(x))
    unrolled = jax.jit(forward, static_argnums=0)(model.clone(scan=False), unstack_units(variables), x)
    seen = {name: ours[name] for name in ("logits", "moments")}
    jax.tree.map(assert_close, unstack_units(seen), jax.device_get(unrolled))
    other = x.copy()
    other[3] = 100  # the masked row
    jax.tree.map(assert_close, jax.device_get(step(other)), ours)
    silent = [path for path, g in flax.traverse_util.flatten_dict(ours["gradients"]).items() if not np.any(g)]
    assert not silent


# Runs in a folder


@contextlib.contextmanager
def empty_figures():
    """Make the files of figures empty: to render them takes longer than to train a small network."""
    from deepjax.runs import plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", lambda figure, path: path.touch())
        yield


def train(config, folder, *, module=None, arrays=None, log=None, draw=False, **changes):
    """Run `training.train` in a folder, with changes of the config's fields; return the summary."""
    from deepjax import training

    config = dataclasses.replace(config, workdir=str(folder), **changes)
    with contextlib.nullcontext() if draw else empty_figures():
        return training.train(config, model=module, data=arrays, log=log)


def records(folder, kind=None):
    """Return the rows of a run's metrics.jsonl without their times, all or those of a kind."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows if kind in (None, row["kind"])]


def stored(folder, part="checkpoints"):
    """Return {step: state as nested dicts of NumPy arrays} of a run's checkpoints, oldest first."""
    import jax

    from deepjax.runs.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder / part)
    states = {step: jax.tree.map(np.asarray, checkpoints.manager.restore(step)["state"]) for step in checkpoints.steps}
    checkpoints.close()
    return states


def newest_state(folder):
    """Return the newest of a run's stored states."""
    return list(stored(folder).values())[-1]


def stop_after(monkeypatch, steps):
    """Make the next run in this process stop after so many of its steps, as if SIGTERM arrived."""
    from deepjax.training import loop

    class Signals:
        left = steps - 1

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def released(self):
            return contextlib.nullcontext()

        @property
        def received(self):
            self.left -= 1
            return signal.SIGTERM if self.left < 0 else 0

    monkeypatch.setattr(loop, "Signals", Signals)


def draw_variables(model, x, gain=1.0, **call):
    """Variables of a Linen model, drawn by NumPy, so that nothing is compiled and no number has its usual start.

    Kernels have variance gain / fan in. Scales lie around 1, variances around 0.5, all other values around 0.
    """
    import jax

    from deepjax.trace import call_arguments

    rng = np.random.default_rng(0)

    def one(path, leaf):
        noise, name = rng.standard_normal(leaf.shape).astype(np.float32), getattr(path[-1], "key", None)
        if name == "kernel":
            fan_in = np.prod(leaf.shape[-4:-1] if leaf.ndim > 3 else leaf.shape[-2:-1])
            return noise * np.float32(np.sqrt(gain / fan_in))
        return {"scale": 1 + 0.2 * noise, "var": 0.5 + 0.1 * abs(noise)}.get(name, 0.2 * noise)

    call = call_arguments(model, **({"train": False} | call))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, **call))
    return jax.tree_util.tree_map_with_path(one, shapes)


def check_bernoulli(kept, probability):
    """Independent draws over the whole matrix: its mean, the spread of its rows and columns, its neighbors."""
    rows, columns = kept.shape
    noise = (np.asarray(kept, np.float64) - probability) / np.sqrt(probability * (1 - probability))
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    for axis, count in ((1, rows), (0, columns)):
        # Squared sums of independent rows follow chi-squared; a mask shared by rows would miss by far.
        assert abs((noise.mean(axis) ** 2 * noise.shape[axis]).sum() - count) < 4 * np.sqrt(2 * count)
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])):
        assert abs((a * b).mean()) < 4 / np.sqrt(a.size)


def torch_leaf(torch, x):
    """[batch, ..., features] -> a leaf tensor [batch, features, ...]."""
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy(), requires_grad=True)


def batch_norm_inputs(shape, spread=0.05):
    """Inputs, scale, bias, running moments. A small spread makes a wrong epsilon visible."""
    from deepjax.functional import Moments

    x, scale, bias, mean, var = random_arrays(len(shape), shape, *[shape[-1:]] * 4)
    return spread * x + 0.1, 1 + 0.3 * scale, bias, Moments(np.float32(0.1) * mean, 0.003 * (0.5 + var**2))


def batch_norm_reference(x, scale, bias, running, *, train, momentum=0.9, epsilon=1e-5):
    """float64 (y, running moments)."""
    x, scale, bias, mean, var = (np.asarray(a, np.float64) for a in (x, scale, bias, *running))
    if train:
        rows = x.reshape(-1, x.shape[-1])
        mean, var = rows.mean(0), ((rows - rows.mean(0)) ** 2).mean(0)
        running = type(running)(*(momentum * np.float64(o) + (1 - momentum) * n for o, n in zip(running, (mean, var))))
    return scale * (x - mean) / np.sqrt(var + epsilon) + bias, running


def draw_initializers(initializers_and_shapes, seed=0):
    """{name: kernel} from {name: (initializer, shape, dtype or nothing)}, in one program."""
    import jax

    run = jax.jit(lambda key: {name: init(key, *rest) for name, (init, *rest) in initializers_and_shapes.items()})
    return jax.tree.map(np.asarray, run(jax.random.key(seed)))


def draw_initializer(init, *shape_and_dtype):
    return draw_initializers({"": (init, *shape_and_dtype)})[""]


def to_torch(x):
    """An array [batch, *spatial, features] as a float64 tensor [batch, features, *spatial]."""
    torch = pytest.importorskip("torch")
    return torch.from_numpy(np.moveaxis(np.float64(x), -1, 1).copy())


def from_torch(y):
    """The inverse of `to_torch`."""
    return np.moveaxis(y.detach().numpy(), 1, -1)


def kernel_to_torch(kernel):
    """A kernel [*window, features in, features] as a float64 tensor in PyTorch's order."""
    torch = pytest.importorskip("torch")
    return torch.from_numpy(np.moveaxis(np.float64(kernel), (-1, -2), (0, 1)).copy())


def claim_holds(figure, folder):
    """Return whether the claim of a figure holds for seed 1.

    The figure runs in a process of its own with XLA's optimizer, because the optimizer makes long trainings faster.
    """
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-m", "deepjax", "figure", figure, "--seed", "1", "--out", str(folder)]
    return subprocess.run(command, env=environment, timeout=600).returncode == 0


def lax_conv(x, kernel, *, stride=1, padding="SAME", dilation=1, groups=1):
    """Return JAX's convolution, whose gradients JAX derives."""
    from jax import lax

    axes = kernel.ndim - 2
    stride, dilation = ((v,) * axes if isinstance(v, int) else v for v in (stride, dilation))
    padding = (padding,) * axes if isinstance(padding, int) else padding
    if not isinstance(padding, str):
        padding = [(p, p) if isinstance(p, int) else p for p in padding]
    spatial = "DHW"[-axes:]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return lax.conv_general_dilated(
        x, kernel, stride, padding, rhs_dilation=dilation, dimension_numbers=layout, feature_group_count=groups
    )
