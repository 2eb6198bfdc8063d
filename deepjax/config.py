"""What an experiment is: frozen dataclasses, no JAX.

Every field is an option of `deepjax train`: `optimizer.learning_rate` is `--optimizer.learning-rate`.
Lengths of time are in epochs; `deepjax.optimizers` turns them into update counts.
"""

import json
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Literal

import tyro

from deepjax.errors import InputError, choices


def parse_options(words):
    """["depth=38", "shortcut=B", "scan=false"] -> {"depth": 38, "shortcut": "B", "scan": False}."""
    if not words:
        raise ValueError("NAME=VALUE is missing, such as depth=38")
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not NAME=VALUE, such as depth=38")
        try:
            options[name] = json.loads(value.lower())
        except ValueError:
            options[name] = value
    return options


# tyro's own reading of a dict would turn the names in a config's default into flags, and refuse all others.
Options = Annotated[
    dict[str, int | float | bool | str],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE ...",
        instance_from_str=parse_options,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda options: [
            f"{name}={json.dumps(value).strip(chr(34))}" for name, value in options.items()
        ],
    ),
]


@dataclass(frozen=True)
class Augment:
    """Random changes to training images, drawn anew for every image and step."""

    flip: bool = False
    """Mirror left and right with probability one half."""
    crop: int = 0
    """Pad by this many pixels on each side (with the mean colour), then crop back at a random place."""
    translate: float = 0.0
    """Shift by up to this many pixels, fractions included."""
    scale: float = 0.0
    """Zoom by a factor drawn from [1 - scale, 1 + scale]."""
    area: tuple[float, float] | None = None
    """Random-area crop for photographs: cut out this fraction of the image (for ImageNet 0.08 1.0), with aspect
    ratio 3/4 to 4/3, and resize it to data.image_size. Needs images that are read one by one (placement host)."""


@dataclass(frozen=True)
class Data:
    """Which images, how they are split, where they live."""

    name: str = "digits"
    """digits, spirals, disc, xor, a TFDS name (mnist, cifar10, imagenet2012, ...), a folder with
    train/CLASS/*.png|jpg, or an .npz file."""
    validation: float | None = None
    """Fraction of the training set kept for validation, stratified. Unset: the set's own validation split, or 0.1."""
    image_size: int = 0
    """Height and width in pixels that images are resized to when read. 0: as stored."""
    mean: tuple[float, ...] = ()
    """Per channel, in units of [0, 1]. Empty: computed from the training set."""
    std: tuple[float, ...] = ()
    """Per channel, in units of [0, 1]. Empty: computed from the training set."""
    placement: Literal["auto", "device", "host"] = "auto"
    """device: the whole set lies on the device as uint8. host: read batch by batch with Grain.
    auto: device up to 1 GiB."""
    workers: int = 0
    """Processes that decode images, for sets that are read from disk batch by batch. 0: threads of this process."""
    augment: Augment = Augment()


@dataclass(frozen=True)
class Optimizer:
    """The Optax chain: clip, decay, scale by the schedule."""

    name: Literal["sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop"] = "momentum"
    learning_rate: float = 0.1
    momentum: float = 0.9
    """Of momentum, nesterov and rmsprop; the first moment's decay in adam and adamw."""
    second_moment: float = 0.999
    """Decay of the squared gradients' average in adam, adamw and rmsprop."""
    epsilon: float = 1e-8
    """Added to the root of the second moment in adam, adamw and rmsprop."""
    weight_decay: float = 0.0
    """Of kernels only, never of biases and normalization. adamw decouples it; the others add it to the gradient."""
    clip_norm: float | None = None
    """Scale the whole gradient down to this norm where it is larger."""
    accumulate: int = 1
    """Batches whose gradients are averaged for one update."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate over time, as a factor of optimizer.learning_rate. Times are in epochs."""

    name: Literal["constant", "step", "cosine", "one_cycle"] = "constant"
    warmup: float = 0.0
    """Epochs of linear growth from zero at the start (one_cycle: epochs until the peak; 0 means 30 % of the run)."""
    milestones: tuple[float, ...] = ()
    """step: the epochs at which the rate is multiplied by `factor`."""
    factor: float = 0.1
    """step: the multiplier at each milestone."""
    final: float = 0.0
    """cosine: the last rate, as a fraction of the highest."""


@dataclass(frozen=True)
class Devices:
    """How a batch is split over devices."""

    strategy: Literal["jit", "pmap"] = "jit"
    """jit: batch statistics over the whole batch. pmap: per device, replica 0's kept, as PyTorch's DataParallel."""
    count: int = 0
    """How many local devices to use. 0: all."""


@dataclass(frozen=True)
class Config:
    """One experiment."""

    data: Data = Data()
    model: str = "cifar_resnet32"
    """A name that `deepjax models` lists."""
    model_options: Options = field(default_factory=dict)
    """Options of the model, added to the config's: --model-options depth=38 shortcut=B."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    devices: Devices = Devices()
    epochs: int = 10
    batch_size: int = 128
    """Images in a batch, over all devices."""
    eval_batch_size: int = 0
    """Images in an evaluation batch. 0: batch_size."""
    label_smoothing: float = 0.0
    ema: float = 0.0
    """Decay of the parameters' moving average, which is evaluated in their place. 0: off."""
    patience: int = 0
    """Stop after this many epochs without a lower validation loss. 0: never."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation. Parameters and statistics stay float32."""
    seed: int = 0
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: int = 0
    """Steps between checkpoints, besides the one at each epoch's end. 0: at epochs' ends only."""
    keep: int = 2
    """How many of the newest checkpoints to keep. The best by validation is always kept too."""
    workdir: str = ""
    """Where everything is written. Empty: runs/NAME."""
    data_dir: str = ""
    """Where the images are: a TFDS folder, or the set's original files. Empty: TFDS's own folder."""


def from_dict(kind, values):
    """The dataclass `kind` from what `dataclasses.asdict` gave, possibly by way of JSON.

    Raises InputError for a field that `kind` does not have.
    """
    known = {f.name: f.type for f in fields(kind)}
    arguments = {}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{kind.__name__} has no field {name!r}; {choices(name, known)}")
        if is_dataclass(known[name]):
            value = from_dict(known[name], value)
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return kind(**arguments)


def flatten(values, prefix=""):
    """{"optimizer": {"name": "sgd"}} -> {"optimizer.name": "sgd"}."""
    flat = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
