"""Weights files of a thin resnet18, as training scripts, other libraries, broken disks and attackers write them."""

import argparse
import io
import json
import pickle
import struct
from pathlib import Path

import jax
import numpy as np
import torch
from flax.traverse_util import flatten_dict
from safetensors.numpy import save

from deepjax import weights, zoo
from deepjax.weights import files
from helpers import draw_variables

RIGHT, ANY, REFUSED = "right numbers", "right numbers, others that are finite, or refused", "refused"
NETWORK = zoo.create("resnet18", num_classes=10, width=4)
VARIABLES = jax.device_get(draw_variables(NETWORK, np.zeros((1, 32, 32, 3), np.float32)))
PLAIN = weights.to_torch(NETWORK, VARIABLES)
TENSORS = {name: torch.tensor(value) for name, value in PLAIN.items()}


def saved(value, **options):
    """Return the bytes of torch.save."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def prefixed(prefix, **more):
    return {prefix + name: value for name, value in TENSORS.items()} | more


def wrapped():
    """Yield what training scripts store: (name, content of a .pth file)."""
    zeros = {name: torch.zeros_like(value) for name, value in TENSORS.items()}
    count, options = torch.tensor(3), argparse.Namespace(lr=0.1)
    yield "torch.compile", prefixed("_orig_mod.")
    yield "DataParallel", prefixed("module.")
    yield "AveragedModel", prefixed("module.", n_averaged=count)
    yield "AveragedModel of torch.compile", prefixed("module._orig_mod.", n_averaged=count)
    yield "torch.compile of AveragedModel", prefixed("_orig_mod.module.", **{"_orig_mod.n_averaged": count})
    yield "Lightning", {"state_dict": prefixed("model."), "epoch": 3, "optimizer_states": [{}], "loops": {}}
    yield "Lightning, torch.compile", {"state_dict": prefixed("model._orig_mod."), "epoch": 3}
    yield "Lightning, loss", {"state_dict": prefixed("model.", **{"loss.weight": torch.ones(10)})}
    yield "timm", {"arch": "resnet18", "state_dict": zeros, "state_dict_ema": TENSORS, "args": options, "metric": 0.7}
    yield "torchvision", {"model": zeros, "model_ema": prefixed("module.", n_averaged=count), "args": options}
    for entry in ("net", "ema", "model", "state_dict", "model_state_dict"):
        yield entry, {entry: TENSORS, "epoch": 3, "best": 0.9, "rng": torch.zeros(5), "names": ["a"]}
    yield "nested", {"checkpoint": 1, "model": {"state_dict": {"module": None, "net": prefixed("module.")}}}
    yield "ema without names", {"ema": {"decay": 0.9, "shadow": [torch.ones(1)]}, "model": TENSORS}
    yield "parameters", {name: torch.nn.Parameter(value, value.is_floating_point()) for name, value in TENSORS.items()}
    yield "float64", {name: value.double() for name, value in TENSORS.items()}
    yield "compiled part", {name.replace("layer1.", "layer1._orig_mod."): value for name, value in TENSORS.items()}


def odd_tensors(name):
    """Yield tensors and other values in place of one: (name, value, what must happen)."""
    dense = TENSORS[name]
    for kind in ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"):
        yield kind, dense.to(getattr(torch, kind)), ANY
    for kind in ("complex64", "int64", "bool", "uint8"):
        yield kind, dense.to(getattr(torch, kind)), REFUSED
    yield "meta", torch.empty(dense.shape, device="meta"), REFUSED
    yield "sparse", dense.to_sparse(), REFUSED
    yield "compressed rows", dense.flatten(1).to_sparse_csr(), REFUSED
    yield "quantized", torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8), REFUSED
    yield "nested", torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), REFUSED
    yield "conjugate", dense.to(torch.complex64).conj(), REFUSED
    yield "expanded to 10**14", torch.zeros(1).expand(10**14), REFUSED
    yield "a number", torch.tensor(1.0), REFUSED
    yield "empty", torch.zeros(0), REFUSED
    yield "transposed", dense.transpose(0, 1).contiguous()[:3], REFUSED
    for value in (
        None,
        "text",
        3,
        [dense],
        np.float64(1),
        np.zeros(3),
        torch.nn.Linear(2, 2),
        Path("a"),
        torch.Size([3]),
    ):
        yield type(value).__name__, value, REFUSED
    for value in (np.nan, np.inf, -np.inf):
        yield str(value), torch.full_like(dense, value), REFUSED
    yield "1e300", torch.full_like(dense, 1e300, dtype=torch.float64), REFUSED


def header(change):
    """Return a .safetensors file whose header was changed."""
    whole = save(PLAIN)
    size = struct.unpack("<Q", whole[:8])[0]
    fields = json.loads(whole[8 : 8 + size])
    text = change(fields) or json.dumps(fields)
    return struct.pack("<Q", len(text)) + text.encode() + whole[8 + size :]


def headers(name):
    """Yield .safetensors files that claim what they do not hold."""
    whole = save(PLAIN)
    changes = {
        "shape 10**14": lambda fields: fields[name].update(shape=[10**14]),
        "shape 10**14 and offsets": lambda fields: fields[name].update(shape=[10**14], data_offsets=[0, 4 * 10**14]),
        "shape -1": lambda fields: fields[name].update(shape=[-1]),
        "offsets reversed": lambda fields: fields[name].update(data_offsets=[8, 0]),
        "type": lambda fields: fields[name].update(dtype="F128"),
        "float8": lambda fields: fields[name].update(dtype="F8_E4M3"),
        "name": lambda fields: fields.update({name + "\x00": fields.pop(name)}),
        "metadata": lambda fields: fields.update(__metadata__={"deepjax": "{"}),
        "metadata list": lambda fields: fields.update(__metadata__={"deepjax": "[1]"}),
        "no dict": lambda fields: "[1, 2]",
        "deep": lambda fields: "[" * 100_000,
    }
    for what, change in changes.items():
        yield f"safetensors header: {what}", ".safetensors", header(change), REFUSED
    yield "safetensors header of 2**60 bytes", ".safetensors", struct.pack("<Q", 2**60) + whole[8:], REFUSED


def metadata():
    """Yield changes of the metadata of a file in our layout."""
    steps = {"resize": 40, "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "interpolation": "bilinear"}
    for field, value in (
        *(("resize", v) for v in (0, -1, "40", None, 10**14)),
        *(("mean", v) for v in ([], [0.5], ["x"] * 3, [float("nan")] * 3, [1e300] * 3)),
        *(("std", v) for v in ([0, 0, 0], [-1, 1, 1])),
        *(("interpolation", v) for v in ("cubik", 3)),
    ):
        yield {"preprocessing": steps | {field: value}}
    yield from ({"preprocessing": v} for v in ([], "x", {"x": 1}, [steps]))
    yield from ({"network": v} for v in (None, 3, "resnet34", ["resnet18"]))
    yield from ({"options": v} for v in ([1], {"width": "4"}, {"width": -4}, {"num_classes": 3}))
    yield from ({"num_classes": v} for v in (0, True, "10", 10**14))
    yield from ({"input": v} for v in ([10**14] * 3, [0, 0, 3], ["x"], [224], [1, 1, 1, 1]))
    yield from ({"classes": v} for v in (["a"], [1] * 10, {"a": 1}))


def cases(rng):
    """Yield (what, suffix of the file, its content, what must happen)."""
    suffixes = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
    for what, value in wrapped():
        yield what, rng.choice(suffixes), saved(value), RIGHT
    kernels = [name for name, value in PLAIN.items() if value.ndim == 4]
    for what, value, must in odd_tensors(rng.choice(kernels)):
        content = saved(TENSORS | {rng.choice(kernels): value})
        yield f"tensor: {what}", ".pth", content, must
    yield from headers(rng.choice(kernels))
    for what, content in {"pickle": pickle.dumps(PLAIN), "empty": b"", "zip": b"PK\x05\x06" + bytes(18)}.items():
        yield what, ".pth", content, REFUSED
    for what, value in {"list": [1], "no tensors": {}, "another network": {"a": torch.ones(3)}}.items():
        yield what, ".pth", saved(value), REFUSED
    for suffix, whole in ((".pth", saved(TENSORS)), (".safetensors", save(PLAIN))):
        for _ in range(2):
            yield f"{suffix} cut", suffix, whole[: rng.randrange(len(whole) - 1)], REFUSED
        for count in (1, 20, 400):
            damaged = bytearray(whole)
            for _ in range(count):
                damaged[rng.randrange(len(whole))] = rng.randrange(256)
            yield f"{suffix} with {count} bytes overwritten", suffix, damaged, ANY
    for changed in metadata():
        yield f"metadata {changed}", ".safetensors", ours(VARIABLES, **changed), REFUSED


def ours(variables, **changed):
    """Return a file in our layout whose metadata was changed."""
    fields = {"network": "resnet18", "options": {"width": 4}, "num_classes": 10} | changed
    leaves = {"/".join(path): leaf for path, leaf in flatten_dict(variables).items()}
    return save(leaves, {files.MARK: json.dumps(fields)})
