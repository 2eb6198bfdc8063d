"""What a user may have meant by an option that does not exist."""

import dataclasses
import typing
from collections.abc import Iterator, Sequence

# Names of other libraries, and short forms: {name without dashes: our option}
OTHERS = {
    "lr": "--optimizer.learning-rate",
    "momentum": "--optimizer.momentum",
    "hflip": "--data.augment.flip",
    "amp": "--dtype",
    "fp16": "--dtype",
    "val-split": "--data.validation",
    "validation-split": "--data.validation",
    "class-weights": "--data.balance",
    "class-weight": "--data.balance",
    "outdir": "--workdir",
    "wd": "--optimizer.weight-decay",
    "bs": "--batch-size",
    "batch": "--batch-size",
    "epoch": "--epochs",
    "dataset": "--data.name",
    "data-path": "--data-dir",
    "data-root": "--data-dir",
    "img-size": "--data.image-size",
    "imgsz": "--data.image-size",
    "size": "--data.image-size",
    "arch": "--model",
    "network": "--model",
    "weights": "--pretrained",
    "out": "--workdir",
    "output": "--workdir",
    "output-dir": "--workdir",
    "save-dir": "--workdir",
    "log-dir": "--workdir",
    "gpus": "--devices.count",
    "num-workers": "--data.workers",
    "smoothing": "--label-smoothing",
    "opt": "--optimizer.name",
    "sched": "--schedule.name",
    "scheduler": "--schedule.name",
    "depth": "--model-options depth=",
    "width": "--model-options width=",
    "dropout": "--model-options dropout=",
}
NOTES = {  # what has no option
    "--resume": "--resume is no option; run the same command again to resume",
    "--gpu": "--gpu is no option; choose GPUs by the environment variable CUDA_VISIBLE_DEVICES",
    "--device": "--device is no option; choose devices by the environment variable JAX_PLATFORMS",
}


def suggest(kind: type, arguments: Sequence[str]) -> str:
    """Return "--lr is unknown; did you mean --optimizer.learning-rate?" for the first such option, or "".

    The option meant is one of OTHERS; the only one whose last part has this name; or, for a group of options such as
    --optimizer, its name.

    Args:
      kind: the dataclass of the command's options.
      arguments: the command line.
    """
    known = set(option_names(kind))
    for argument in arguments:
        if argument.lower() in ("true", "false"):
            return f"{argument} belongs to no option; a switch has no value: --NAME, or --no-NAME"
        if argument in NOTES:
            return NOTES[argument]
        word = argument.partition("=")[0].replace("_", "-")
        if not word.startswith("--") or word in known:
            continue
        name = word.removeprefix("--").rpartition(".")[2]  # lr of --optimizer.lr
        ends = [option for option in known if option.rpartition(".")[2].removeprefix("--") == name]
        if f"{word}.name" in known:
            meant = f"{word}.name"
        elif len(ends) == 1:
            meant = ends[0]
        else:
            meant = OTHERS.get(name, "")
        if meant and meant.partition(" ")[0] in known:
            return f"option {argument.partition('=')[0]} is unknown; did you mean {meant}?"
    return ""


def option_names(kind: type, prefix: str = "--") -> Iterator[str]:
    """Yield the options of a dataclass and of the dataclasses in it, such as --optimizer.learning-rate."""
    kinds = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(kinds[field.name]):
            yield from option_names(kinds[field.name], prefix if field.metadata.get("inline") else f"{name}.")
        else:
            yield name
