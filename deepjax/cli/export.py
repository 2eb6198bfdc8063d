"""`deepjax export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from deepjax.cli.terminal import parse, warn
from deepjax.errors import InputError


@dataclass(frozen=True)
class Export:
    """Options of `deepjax export`."""

    source: tyro.conf.Positional[str]
    """Folder of a run, a file of weights, or a network, as in `deepjax predict`."""
    format: Literal["stablehlo", "safetensors"]
    """stablehlo: a program that runs without deepjax. safetensors: weights to load again, or in PyTorch."""
    out: Path
    """The file to write."""
    weights: str = ""
    """File with the weights of the network: .safetensors, or one of PyTorch, such as .pth."""
    layout: Literal["deepjax", "torch"] = "deepjax"
    """Layout of safetensors. deepjax: with class names and preprocessing, for `deepjax predict` and --pretrained.
    torch: with PyTorch's names; the file may then end in .pth too."""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """stablehlo: backends on which the program can run."""


def export(arguments):
    """Export a run or a pretrained network to one file: a StableHLO program, or its weights.

    stablehlo: the whole computation from uint8 images to logits, with weights and standardization, for any batch size;
    `jax.export.deserialize` reads it. safetensors: the weights.
    """
    options = parse(Export, arguments, "deepjax export", export.__doc__)
    if options.format == "stablehlo" and options.layout != "deepjax":
        raise InputError("--layout torch is for --format safetensors; leave it out")
    if not options.out.absolute().parent.is_dir():
        raise InputError(f"--out {options.out}: the folder {options.out.parent} does not exist; make it first")
    from deepjax import inference

    run = inference.load_source(options.source, options.weights, warn=warn)
    inference.export(run, options.format, options.out, layout=options.layout, platforms=options.platforms)
    print(f"{options.out}: {options.source} as {options.format}, {options.out.stat().st_size:,} bytes")
    return 0
