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


def parse_groups(words):
    """['{"head/*": {"learning_rate": 0.5}}'] -> {"head/*": {"learning_rate": 0.5}}."""
    try:
        groups = json.loads(words[0])
    except ValueError as error:
        raise ValueError(f"{words[0]!r} is not JSON ({error})") from None
    if not isinstance(groups, dict) or not all(isinstance(fields, dict) for fields in groups.values()):
        raise ValueError(f'{words[0]!r} is not like {{"head/*": {{"learning_rate": 0.5}}}}')
    return groups


Groups = Annotated[
    dict[str, dict[str, float | bool | None]],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=parse_groups,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda groups: [json.dumps(groups)],
    ),
]


@dataclass(frozen=True)
class Augment:
    """Random changes to training images, drawn anew for every image and step. In this order: RandAugment, colours,
    standardization, flip, crop, shift and zoom, cutout, then mixing of images with each other."""

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
    brightness: float = 0.0
    """Multiply colours by a factor drawn from [max(0, 1 - brightness), 1 + brightness]."""
    contrast: float = 0.0
    """As brightness: the factor of the distance to the image's mean grey."""
    saturation: float = 0.0
    """As brightness: the factor of the distance to each pixel's grey."""
    hue: float = 0.0
    """Turn the hue by up to this part of the circle, at most 0.5. These four come in random order."""
    lighting: float = 0.0
    """PCA lighting: standard deviation (usual: 0.1) of shifts along the training colours' principal components."""
    randaugment: int = 0
    """RandAugment: how many of its 14 operations, drawn at random, are applied one after the other (usual: 2)."""
    magnitude: int = 9
    """RandAugment: how strong its operations are, 0 to 30."""
    cutout: int = 0
    """Set a square with sides of this many pixels to the mean colour; it may reach over the border."""
    mixup: float = 0.0
    """Mixup: blend images and targets of random pairs; the share is drawn from Beta(mixup, mixup). Usual: 0.2."""
    cutmix: float = 0.0
    """CutMix: paste a box from another image; its area is drawn from Beta(cutmix, cutmix). Usual: 1. With mixup as
    well, each batch has one of the two, with probability one half."""


@dataclass(frozen=True)
class Data:
    """Which images, how they are split, where they live."""

    name: str = "digits"
    """digits, spirals, disc, xor, a TFDS name (mnist, cifar10, imagenet2012, ...), a folder with
    train/CLASS/*.png|jpg and val/ or test/, `folder` where data_dir is such a folder, or an .npz file."""
    validation: float | None = None
    """Fraction of the training set kept for validation, stratified. Unset: the set's own validation split, or 0.1."""
    image_size: int = 0
    """Height and width in pixels that images are resized to when read. 0: as stored."""
    standardize: Literal["channel", "mean_image", "mean_color", "min_max", "z_score", "pca", "zca"] = "channel"
    """What is done to all images, fitted on the training set. channel: mean 0 and variance 1 of each channel.
    mean_color, mean_image: subtract each channel's, each pixel's mean. min_max: each channel to `limits`.
    z_score: mean 0 and variance 1 of each pixel and channel. pca: whitened, a vector of components. zca: whitened, an
    image."""
    mean: tuple[float, ...] = ()
    """channel: per channel, in units of [0, 1]. Empty: that of `pretrained`, or computed from the training set."""
    std: tuple[float, ...] = ()
    """channel: per channel, in units of [0, 1]. Empty: that of `pretrained`, or computed from the training set."""
    epsilon: float = 0.0
    """pca, zca: added to the variance of each component, so that noise is not blown up; for images 0.01 to 0.1."""
    limits: tuple[float, float] = (0.0, 1.0)
    """min_max: what each channel's least and greatest value become."""
    placement: Literal["auto", "device", "host"] = "auto"
    """device: the whole set lies on the device as uint8. host: read batch by batch with Grain.
    auto: device up to 1 GiB."""
    workers: int = 0
    """Processes that decode images, for sets that are read from disk batch by batch. 0: threads of this process."""
    augment: Augment = Augment()


@dataclass(frozen=True)
class Optimizer:
    """The Optax chain: clip, decay, find a direction, scale by the schedule, look ahead.

    A number that is unset is the usual one of the optimizer, PyTorch's default. One that the optimizer does not use is
    refused.
    """

    name: str = "momentum"
    """sgd, momentum, nesterov, adam, adamw, lion, ...; an unknown name lists all."""
    learning_rate: float = 0.1
    """The highest rate, which the schedule scales. rprop: the size of the first step, no schedule."""
    momentum: float | None = None
    """Of momentum, nesterov (usual: 0.9) and rmsprop (0); the first moment's decay in adam, adamw, adamax, nadam, lion
    (0.9)."""
    second_moment: float | None = None
    """Decay of the squared gradients' average in adam, adamw, nadam (0.999), rmsprop (0.99) and adadelta (0.9), of the
    largest gradient in adamax (0.999), of the momentum in lion (0.99)."""
    epsilon: float | None = None
    """Added to the root of the second moment (1e-8; adagrad 1e-10), under the root in adadelta (1e-6), to the
    gradient's size in adamax (1e-8)."""
    momentum_decay: float | None = None
    """nadam: how fast momentum grows from half of `momentum` (0.004)."""
    history: int | None = None
    """lbfgs: past steps to remember, each two copies of the parameters (10)."""
    line_search: bool = False
    """lbfgs: after each direction, search for a step length that meets the strong Wolfe conditions on the batch."""
    weight_decay: float = 0.0
    """Of kernels only, never of biases and normalization. adamw and lion decouple it; the others add it to the
    gradient."""
    clip_adaptive: float | None = None
    """Scale the gradient of each unit (output feature) down to this fraction of its weights' norm, as 0.01."""
    clip_value: float | None = None
    """Cut each number of the gradient to at most this size."""
    clip_norm: float | None = None
    """Scale the whole gradient down to this norm where it is larger, after the other two."""
    lookahead: int = 0
    """Updates after which the weights go back to slow weights, which have moved towards them; such as 5. 0: off."""
    slow_rate: float = 0.5
    """lookahead: how far the slow weights move, as a fraction."""
    accumulate: int = 1
    """Batches whose gradients are averaged for one update."""
    groups: Groups = field(default_factory=dict)
    """JSON: settings of the parameters whose path matches a pattern; of several patterns the first. For example
    '{"stem_conv/*": {"frozen": true}, "stage1*": {"frozen_until": 3}, "head/*": {"learning_rate": 0.5}}'. Batch norms'
    moments are no parameters; they go on in what is frozen, but for freeze_moments."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate over time, as a factor of optimizer.learning_rate. Times are in epochs.

    A field that does not belong to the schedule is refused.
    """

    name: str = "constant"
    """constant, step, linear, cosine, warm_restarts, one_cycle, plateau, ...; an unknown name lists all."""
    warmup: float = 0.0
    """Epochs of linear growth from zero at the start (one_cycle: epochs until the peak; 0 means 30 % of the run)."""
    milestones: tuple[float, ...] = ()
    """step: the epochs at which the rate is multiplied by `factor`."""
    period: float = 0.0
    """step: instead of milestones, multiply every so many epochs (50 with factor 0.5: halve every 50 epochs).
    warm_restarts: epochs of the first cycle."""
    multiplier: float = 1.0
    """warm_restarts: how many times longer each cycle is than the one before."""
    factor: float = 0.1
    """step, plateau: the multiplier. exponential: the multiplier per epoch, applied bit by bit with every update."""
    final: float = 0.0
    """linear, polynomial, cosine, warm_restarts: the last rate, as a fraction of the highest. plateau: the least."""
    power: float = 1.0
    """polynomial: of the share of the run that is left."""
    momentum: tuple[float, float] = (0.85, 0.95)
    """one_cycle: momentum (or first moment's decay) at the highest rate and at the ends. Two equal ones keep it."""
    patience: int = 10
    """plateau: epochs without improvement that are put up with; the one after them multiplies the rate."""
    threshold: float = 1e-4
    """plateau: a loss counts as an improvement if it is lower than the best by more than this fraction."""
    cooldown: int = 0
    """plateau: epochs after a multiplication that do not count."""


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
    init: Literal[
        "model", "auto", "lsuv", "within_layer", "between_layer", "pca_kernels", "kmeans_kernels", "looks_linear"
    ] = "model"
    """Where the parameters begin. model: as the model draws them. Else a function of deepjax.init_from_data, which
    sets them by the first training batch. auto measures, and picks what keeps the signal at any depth; kmeans_kernels
    needs a batch of at least as many images as features."""
    pretrained: str = ""
    """Where the parameters begin instead: a weights file (.safetensors, .pth, .pt) with PyTorch's names or ours, the
    folder of a run, or a network with weights on the hub, such as resnet18. Empty: with `init`."""
    reset_head: bool = True
    """pretrained: the last layers, whose size is the number of classes, begin anew. False: they are taken, too."""
    freeze: tuple[str, ...] = ()
    """pretrained: patterns of parameters that are not trained, such as 'stem*' 'stage1*', after those of
    optimizer.groups, in which the first match counts."""
    thaw: tuple[float, ...] = ()
    """Epochs after which what `freeze` names is trained, too: one for each pattern, or one for all. Empty: never."""
    thaw_share: float = 0.0
    """thaw, as a share of `epochs`: 0.5 freezes for the first half. 0: never."""
    freeze_moments: bool = False
    """Frozen batch norms use and keep their running moments, as PyTorch's after eval(). False: these go on, and a
    batch is normalized by its own, as in PyTorch where only requires_grad is off."""
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
    """Decay of the parameters' moving average, which is evaluated in their place, with the batch norms' moments as
    training left them. 0: off."""
    swa_start: int = 0
    """Stochastic weight averaging: from this epoch's end on, the parameters at each epoch's end enter an equal average.
    At the run's end batch norms' moments are estimated for it anew, and it is validated and tested. 0: off."""
    snapshots: int = 0
    """Snapshot ensemble: keep the network at the end of each of this many equal cycles of the schedule warm_restarts,
    and test the mean of their softmax probabilities. 0: off."""
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
    """Where the images are: a TFDS folder, the set's original files, or, for data.name folder, train/CLASS/*.png|jpg
    and val/ or test/. Empty: TFDS's own folder."""


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
