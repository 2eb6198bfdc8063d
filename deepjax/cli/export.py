"""`deepjax export`: a trained network as one file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from deepjax.cli.runs import classifier
from deepjax.cli.terminal import parse
from deepjax.errors import InputError


@dataclass(frozen=True)
class Export:
    """A run, or a network with pretrained weights, as one file.

    stablehlo: the whole computation from uint8 images to logits, weights and standardization included, for any batch
    size; `jax.export.deserialize` reads it. safetensors: the weights.
    """

    source: tyro.conf.Positional[str]
    """Folder of the run; or a network: resnet18, or as `deepjax weights list` has it, with weights of the hub."""
    format: Literal["stablehlo", "safetensors"]
    """stablehlo: to run without deepjax. safetensors: to load again, or in PyTorch."""
    out: Path
    """The file to write."""
    weights: str = ""
    """File of the network's weights: .safetensors, .pth or .pt."""
    layout: Literal["deepjax", "torch"] = "deepjax"
    """Of safetensors. deepjax: with class names and preprocessing, for `deepjax predict` and --pretrained. torch: with
    PyTorch's names; the file may then end in .pth, too."""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """stablehlo: where it shall run."""


def export(arguments):
    """Write a network to a file."""
    options = parse(Export, arguments, "deepjax export")
    if options.format == "stablehlo" and options.layout != "deepjax":
        raise InputError("--layout torch is for --format safetensors; leave it out")
    if not options.out.absolute().parent.is_dir():
        raise InputError(f"--out {options.out}: there is no folder {options.out.parent}; make it first")
    from deepjax.inference import export

    run = classifier(options.source, options.weights)
    export(run, options.format, options.out, layout=options.layout, platforms=options.platforms)
    print(f"{options.out}: {options.source} as {options.format}, {options.out.stat().st_size:,} bytes")
    return 0
