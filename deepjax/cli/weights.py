"""`deepjax convert`, `deepjax weights list` and `deepjax compare`: what can be done to files of weights."""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from deepjax.cli.terminal import parse, table, warn
from deepjax.config import Options
from deepjax.errors import InputError


@dataclass(frozen=True)
class Convert:
    """Weights from PyTorch's layout to deepjax's, or back."""

    network: tyro.conf.Positional[str]
    """A name that `deepjax models` lists, and that torchvision has too."""
    source: tyro.conf.Positional[Path]
    """The file: .safetensors (of either layout), .pth or .pt."""
    destination: tyro.conf.Positional[Path]
    """The file to write: .safetensors; in PyTorch's layout .pth or .pt too."""
    layout: Literal["other", "deepjax", "torch"] = "other"
    """Of the destination. other: the one that the source has not."""
    options: Options = field(default_factory=dict)
    """Options of the network: --options norm=batch."""
    num_classes: int | None = None
    """Logits. Unset: the network's usual number."""
    reset_head: bool = False
    """Initialize the layers whose size is the number of classes, for other classes than the source's."""
    seed: int = 0
    """Seed of the layers that are initialized."""
    preprocessing: str = ""
    """Record how images are prepared: as for this network (its IMAGENET1K_V1 weights in torchvision) or for these
    weights, such as resnet50.tv2_in1k. Empty: what the source records, if anything."""


def convert(arguments):
    """Write a file of weights in the other layout."""
    options = parse(Convert, arguments, "deepjax convert")
    import jax

    from deepjax.weights import bundle, files, hub, pytorch

    layout = options.layout
    if layout == "other":
        layout = "torch" if files.is_ours(options.source) else "deepjax"
    files.check_suffix(options.destination, (".safetensors", *(files.TORCH if layout == "torch" else ())))
    if options.preprocessing and layout == "torch":
        raise InputError("--preprocessing: a file in PyTorch's layout has no place for it; leave it out")
    preprocessing = hub.preprocessing(options.preprocessing) if options.preprocessing else None
    found = bundle.load_file(
        options.source,
        options.network,
        num_classes=options.num_classes,
        reset_head=options.reset_head,
        key=jax.random.key(options.seed),
        **options.options,
    )
    if layout == "torch":
        files.save_state_dict(options.destination, pytorch.to_torch(found.network, found.variables))
    else:
        found = replace(found, preprocessing=preprocessing or found.preprocessing)
        bundle.save_pretrained(options.destination, found)
    print(f"{options.destination}: {options.network}, {found.network.num_classes} classes, {layout}'s layout")
    return 0


@dataclass(frozen=True)
class List:
    """The pretrained weights that are known, where they are, and which are in the cache."""

    json: bool = False
    """Print JSON."""


def weights(arguments):
    """Print the pretrained weights."""
    if arguments[:1] not in (["list"], ["-h"], ["--help"]):
        raise InputError(f"weights {' '.join(arguments) or 'alone'} is unknown; try `deepjax weights list`")
    options = parse(List, arguments[arguments[0] == "list" :], "deepjax weights list")
    from deepjax.weights import hub

    rows = [
        {"weights": name, "repository": file.repository, "file": file.file, "cached": hub.is_cached(name)}
        for name, (_, file) in hub.PRETRAINED.items()
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        shown = [(row["weights"], row["repository"], row["file"], "yes" if row["cached"] else "no") for row in rows]
        table(("weights", "repository", "file", "cached"), shown)
        print(f"cache: {hub.cache_folder()}")
    return 0


@dataclass(frozen=True)
class Compare:
    """Two sets of weights of a network, or our network and torchvision's, layer by layer: 1 if they diverge."""

    a: tyro.conf.Positional[str]
    """A file of weights, the folder of a run, or a name that `deepjax weights list` shows."""
    b: tyro.conf.Positional[str]
    """The other one; or torchvision: its own network, in PyTorch, with the weights of the first."""
    model: str | None = None
    """The network, for files in PyTorch's layout, which do not say it."""
    input: str = ""
    """Shape of the images, height,width,channels. Empty: the network's usual."""
    num_classes: int | None = None
    """Logits. Unset: as many as the weights have."""
    options: Options = field(default_factory=dict)
    """Options of the network: --options norm=batch."""
    tolerance: float = 1e-4
    """Of a layer's largest difference over its largest value."""
    batch: int = 2
    """Images."""
    seed: int = 0
    """Of the images, which are normal noise."""
    json: bool = False
    """Print JSON."""


def compare(arguments):
    """Print what each layer gives with two sets of weights; 1 if they diverge."""
    options = parse(Compare, arguments, "deepjax compare")
    import numpy as np

    from deepjax.transforms.compare import compare, compare_with_torch, torchvision_module

    shape = [int(n) for n in options.input.split(",")] if re.fullmatch(r"\d+,\d+,\d+", options.input) else None
    if options.input and not shape:
        raise InputError(f"--input {options.input!r} must be numbers with commas between, such as 224,224,3")
    if options.batch < 1:
        raise InputError(f"--batch {options.batch} must be at least 1")
    one = _weights(options, options.a)
    x = np.random.default_rng(options.seed).normal(size=(options.batch, *(shape or one.network.usual_input)))
    if options.b == "torchvision":
        module = torchvision_module(one.name, one.network, one.variables)
        result = compare_with_torch(one.network, one.variables, module, x, tolerance=options.tolerance)
    else:
        other = _weights(options, options.b)
        if one.name != other.name:
            raise InputError(f"{options.a} is of {one.name}, {options.b} of {other.name}: compare those of one network")
        result = compare(one.network, one.variables, other.variables, x, tolerance=options.tolerance)
    first = result.first
    if options.json:
        layers = [layer._asdict() for layer in result.layers]
        print(json.dumps({"diverges": first.path if first else None, "layers": layers}, indent=2))
    else:
        rows = [(layer.path, "x".join(map(str, layer.shape[1:])), f"{layer.difference:.1e}") for layer in result.layers]
        table(("layer", "output", "difference"), rows)
        verdict = f"diverge first at {first.path}" if first else "agree"
        print(f"{options.a} and {options.b} {verdict} (tolerance {options.tolerance:g})")
    return 1 if first else 0


class _Weights(NamedTuple):
    name: str  # of the network
    network: Any
    variables: Any


def _weights(options, where):
    """The _Weights of a file, a run, or a name."""
    from deepjax.weights import files, load_file, load_pretrained

    given = {"num_classes": options.num_classes, **options.options}
    if Path(where).is_dir():
        from deepjax import inference

        if options.num_classes or options.options:
            raise InputError(f"{where} is a run, which says its network's options; leave out --options, --num-classes")
        run = inference.load_run(where, warn=warn)
        return _Weights(run.config.model, run.model.clone(usual_input=run.shape, dtype=None), run.variables)
    suffixes = (".safetensors", *files.TORCH)
    if "/" in where and Path(where).suffix not in suffixes:
        raise InputError(f"{where}: no folder of a run, and no file that ends in {', '.join(suffixes)}")
    if Path(where).suffix in suffixes:
        found = load_file(where, None if files.is_ours(where) else options.model, **given)
    else:
        found = load_pretrained(where, **given)
    return _Weights(found.source["network"], found.network, found.variables)
