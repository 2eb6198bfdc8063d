"""An experiment as frozen dataclasses, without JAX.

Every field is an option of `deepjax train`: `optimizer.learning_rate` is `--optimizer.learning-rate`.
Times are in epochs; `deepjax.optimizers` converts them to numbers of updates. `check` compares every field with its
type and range. A field that is `free` does not affect the result, so a resumed run may change it.
"""

from dataclasses import dataclass
from typing import Literal

from deepjax.fields import check, flatten, from_dict, is_free, option

__all__ = [
    "Augment", "Config", "Data", "Devices", "Groups", "Optimizer", "Options", "Schedule", "check", "flatten",
    "from_dict", "is_free",
]  # fmt: skip

Options = dict[str, int | float | bool | str | None]
"""Options of a network by name, such as {"depth": 38, "shortcut": "B"}."""
Groups = dict[str, dict[str, float | bool | None]]
"""Settings of groups of parameters by pattern, such as {"head/*": {"learning_rate": 0.5}}."""


@dataclass(frozen=True)
class Augment:
    """Random changes of training images, drawn again for every image and step.

    They are applied in this order: RandAugment, TrivialAugment, AugMix, colors, standardization, flip, crop, rotation,
    zoom and shift in one resampling, cutout, erasing, data.center_crop, then mixing of images with each other.
    """

    flip: bool = False
    """Mirror left and right with probability one half."""
    crop: int = option(0, at_least=0)
    """Pad by this many pixels on each side with the mean color, then crop to the old size at a random place."""
    translate: float = option(0.0, at_least=0)
    """Shift by up to this many pixels, including fractions of a pixel."""
    scale: float = option(0.0, at_least=0, below=1)
    """Zoom by a factor drawn from [1 - scale, 1 + scale]."""
    rotate: float = option(0.0, at_least=0, at_most=180)
    """Rotate about the center by up to this many degrees in both directions."""
    area: tuple[float, float] | None = option(None, above=0, at_most=1)
    """Random-area crop for photographs: cut out a fraction of the image between these two (for ImageNet 0.08 1.0), with
    an aspect ratio of 3/4 to 4/3, and resize it to data.image_size. Needs images that are read one by one (placement
    host)."""
    brightness: float = option(0.0, at_least=0)
    """Multiply colors by a factor drawn from [max(0, 1 - brightness), 1 + brightness]."""
    contrast: float = option(0.0, at_least=0)
    """As brightness: a factor for the distance to the image's mean gray."""
    saturation: float = option(0.0, at_least=0)
    """As brightness: a factor for the distance to each pixel's gray."""
    hue: float = option(0.0, at_least=0, at_most=0.5)
    """Rotate the hue by up to this fraction of the color circle, at most 0.5. Brightness, contrast, saturation and hue
    are applied in random order."""
    lighting: float = option(0.0, at_least=0)
    """PCA lighting: standard deviation (usually 0.1) of shifts along the training colors' principal components."""
    randaugment: int = option(0, at_least=0)
    """RandAugment: number of its 14 operations to draw and apply one after the other (usually 2)."""
    magnitude: int = option(9, at_least=0, at_most=30)
    """RandAugment: strength of its operations, 0 to 30."""
    trivialaugment: bool = False
    """TrivialAugment: one of the 14 operations, of random strength, with torchvision's wide range."""
    augmix: int = option(0, at_least=0, at_most=10)
    """AugMix: severity, 1 to 10 (usually 3). Blend the image with those of three chains of up to three operations."""
    cutout: int = option(0, at_least=0)
    """Set a square with sides of this many pixels to the mean color. It may extend over the border."""
    erasing: float = option(0.0, at_least=0, at_most=1)
    """Random erasing: probability (usually 0.25) of setting a rectangle of 2 to 33 % of the image to the mean color."""
    mixup: float = option(0.0, at_least=0)
    """Mixup: blend images and targets of random pairs with a weight drawn from Beta(mixup, mixup). Usually 0.2."""
    cutmix: float = option(0.0, at_least=0)
    """CutMix: paste a box from another image, with an area drawn from Beta(cutmix, cutmix). Usually 1. If mixup is set
    too, each batch has one of the two, with probability one half."""


@dataclass(frozen=True)
class Data:
    """The images: which, how they are split, and where they are stored during training."""

    name: str = "digits"
    """digits, spirals, disc, xor, moons, diabetes, a TFDS name (mnist, cifar10, imagenet2012, ...), a folder with
    CLASS/*.jpg or train/CLASS/*.jpg, `folder` if data_dir is such a folder, an .npz file, or a .csv file with a row of
    names and columns of numbers."""
    target: str = ""
    """CSV files: name of the column to learn; the others are features. Numbers are for task regression, names of
    classes for task classification. Empty: the last column."""
    validation: float | None = option(None, at_least=0, below=1)
    """Fraction of the training set to use for validation, stratified by class. Unset: the data set's own validation
    split, or 0.1."""
    test: float | None = option(None, above=0, below=1)
    """Folder of images without test/ and val/, CSV file: fraction of the examples to draw for testing, stratified by
    class. Unset: 0.2."""
    test_seed: int = option(0, at_least=0, below=2**32)
    """Seed of that draw. It is not `seed`, so that runs of other seeds have the same test images, and can be averaged
    or teach each other."""
    skip_broken: bool = False
    """Folder of images: leave out images that cannot be decoded, and name them. False: stop at the first one."""
    balance: Literal["", "loss", "sample"] = ""
    """For classes with unequal numbers of training images. loss: weights inverse to these numbers, with mean 1. sample:
    each epoch has equally many images of each class, and as many images as the training set; small classes are
    repeated. Empty: neither. Evaluation does not change."""
    image_size: int = option(0, at_least=0)
    """Height and width in pixels to which images are resized when they are read. 0: as stored."""
    center_crop: int = option(0, at_least=0)
    """Height and width in pixels of the center of each image that the network gets, in training (after augmentation)
    and in evaluation. 0: the whole image."""
    standardize: Literal["channel", "mean_image", "mean_color", "min_max", "z_score", "pca", "zca"] = "channel"
    """Transformation of all images, fitted on the training set. channel: mean 0 and variance 1 of each channel.
    mean_color, mean_image: subtract the mean of each channel, of each pixel. min_max: scale each channel to `limits`.
    z_score: mean 0 and variance 1 of each pixel and channel. pca: whiten, and keep a vector of components. zca: whiten,
    and return to an image."""
    mean: tuple[float, ...] = ()
    """channel: mean of each channel, in units of [0, 1]. Empty: that of `pretrained`, or computed from the training
    set."""
    std: tuple[float, ...] = option((), above=0)
    """channel: standard deviation of each channel, in units of [0, 1]. Empty: as for mean."""
    epsilon: float = option(0.0, at_least=0)
    """pca, zca: number added to the variance of each component, so that noise is not amplified; for images 0.01 to
    0.1."""
    limits: tuple[float, float] = (0.0, 1.0)
    """min_max: the values to which each channel's minimum and maximum are mapped."""
    placement: Literal["auto", "device", "host"] = option("auto", free=True)
    """device: store the whole data set on the device as uint8. host: read batch by batch with Grain.
    auto: device up to 1 GiB."""
    workers: int = option(0, at_least=0, free=True)
    """Processes that decode images, for data sets that are read from disk batch by batch. 0: threads of this
    process."""
    augment: Augment = Augment()


@dataclass(frozen=True)
class Optimizer:
    """The optimizer as a chain of Optax transformations: clip, decay, find a direction, scale it, look ahead.

    An unset number is the default of the optimizer, which is PyTorch's. Setting a number that the optimizer does not
    use is an error.
    """

    name: str = "momentum"
    """One of `deepjax.optimizers.OPTIMIZERS`, such as sgd, momentum, nesterov, rmsprop, adam, adamw, lion, muon,
    prodigy or lbfgs."""
    learning_rate: float = option(0.1, above=0)
    """The highest learning rate, which the schedule scales. rprop: the size of the first step, without a schedule.
    prodigy, dadapt_adamw, dog, dowg: a factor of the rate that they estimate, usually 1."""
    momentum: float | None = option(None, at_least=0, below=1)
    """Momentum, or the decay of the first moment. Unset: the default of the optimizer, as for the four below."""
    second_moment: float | None = option(None, at_least=0, below=1)
    """Decay of the mean squared gradient (adamax: of the largest gradient; lion: of the momentum)."""
    epsilon: float | None = option(None, above=0)
    """Number added to the denominator (adadelta: under the root; adamax: to the size of the gradient)."""
    momentum_decay: float | None = option(None, at_least=0)
    """nadam: how fast momentum grows from half of `momentum`."""
    history: int | None = option(None, at_least=1)
    """lbfgs: number of past steps to store, each as two copies of the parameters."""
    line_search: bool = False
    """lbfgs: search along each direction for a step length that meets the strong Wolfe conditions on the batch."""
    weight_decay: float = option(0.0, at_least=0)
    """Weight decay of kernels. Biases and normalization parameters do not decay. adamw, lion, muon, ademamix and acprop
    decouple it; the others add it to the gradient."""
    sam: float = option(0.0, at_least=0)
    """Sharpness-aware minimization: take the gradient at the highest loss within about this distance (usually 0.05) of
    the parameters. A step computes two gradients, and takes twice as long. 0: off."""
    clip_adaptive: float | None = option(None, above=0)
    """Scale the gradient of each unit (output feature) down to this fraction of the norm of its weights, such as
    0.01."""
    clip_value: float | None = option(None, above=0)
    """Clip each number of the gradient to [-clip_value, clip_value]."""
    clip_norm: float | None = option(None, above=0)
    """Scale the whole gradient down to this norm if it is larger, after the other two kinds of clipping."""
    lookahead: int = option(0, at_least=0)
    """Lookahead: updates between two synchronizations of the weights with the slow weights, such as 5. 0: off."""
    slow_rate: float = option(0.5, above=0, at_most=1)
    """Lookahead: fraction of the way that the slow weights move towards the weights."""
    accumulate: int = option(1, at_least=1)
    """Batches whose gradients are averaged for one update, at most those of an epoch. The last update of an epoch takes
    those that are left."""
    groups: Groups = option({})
    """JSON: settings of parameters whose path matches a pattern; the first pattern that matches counts. For example
    '{"stem_conv/*": {"frozen": true}, "stage1*": {"frozen_until": 3}, "head/*": {"learning_rate": 0.5}}'. Moments of
    batch norms are not parameters: they continue to change in frozen layers, unless freeze_moments is set."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate over time, as a factor of optimizer.learning_rate.

    Times are in epochs, rounded up to whole updates.

    Setting a field that the schedule does not use is an error.
    """

    name: str = "constant"
    """One of `deepjax.optimizers.SCHEDULES`: constant, exponential, step, linear, polynomial, cosine, warm_restarts,
    one_cycle or plateau."""
    warmup: float = option(0.0, at_least=0)
    """Epochs of linear growth at the start: update i of n has i / (n + 1) of the learning rate, from i = 1 on.
    one_cycle: epochs until the peak; 0 means 30 % of the run."""
    milestones: tuple[float, ...] = ()
    """step: epochs at which the learning rate is multiplied by `factor`."""
    period: float = option(0.0, at_least=0)
    """step: instead of milestones, epochs between two multiplications (50 with factor 0.5: halve every 50 epochs).
    warm_restarts: epochs of the first cycle."""
    multiplier: float = option(1.0, at_least=1)
    """warm_restarts: length of each cycle as a multiple of the one before."""
    factor: float = option(0.1, above=0)
    """step, plateau: the multiplier. exponential: the multiplier per epoch, applied gradually with every update."""
    final: float = option(0.0, at_least=0, at_most=1)
    """linear, polynomial, cosine, warm_restarts: the last learning rate, as a fraction of the highest. plateau: the
    lowest learning rate, as a fraction of the highest."""
    power: float = option(1.0, above=0)
    """polynomial: exponent of the remaining fraction of the run."""
    momentum: tuple[float, float] = option((0.85, 0.95), at_least=0, below=1)
    """one_cycle: momentum (or decay of the first moment) at the highest learning rate, and at the start and end. Two
    equal numbers keep it constant."""
    patience: int = option(10, at_least=0)
    """plateau: epochs to wait without improvement before reducing the learning rate."""
    threshold: float = option(1e-4, at_least=0, below=1)
    """plateau: a loss counts as an improvement if it is lower than the best by more than this fraction."""
    cooldown: int = option(0, at_least=0)
    """plateau: epochs to ignore after a reduction of the learning rate."""


@dataclass(frozen=True)
class Devices:
    """How a batch is split over devices."""

    strategy: Literal["jit", "pmap"] = "jit"
    """jit: batch statistics are those of the whole batch. pmap: batch statistics are those of each device's share, and
    those of the first device are kept, as in PyTorch's DataParallel."""
    count: int = option(0, at_least=0)
    """Number of local devices to use. 0: all. A resumed run may change it; with strategy pmap, the devices
    must remain as many."""


@dataclass(frozen=True)
class Config:
    """One experiment."""

    data: Data = Data()
    task: str = "classification"
    """What the model learns: a name in `deepjax.tasks.TASKS`."""
    loss: Literal["", "mse", "mae", "huber", "perceptron"] = ""
    """Empty: the task's usual loss. regression: loss of the standardized targets: mse (the usual one), mae, or huber
    with delta 1, which is one standard deviation. classification: cross entropy is the usual one. perceptron: highest
    output minus that of the label. mse: squared error of the outputs, which should be 1 for the label and -1 for other
    classes, summed over classes (Adaline). The outputs of a network trained with one of these two are scores, not
    logits: it has no probabilities."""
    model: str = "cifar_resnet32"
    """A name that `deepjax models` lists."""
    model_options: Options = option({})
    """Options of the model, added to those of the config: --model-options depth=38 shortcut=B."""
    init: Literal[
        "model",
        "auto",
        "lsuv",
        "within_layer",
        "between_layer",
        "pca_kernels",
        "kmeans_kernels",
        "looks_linear",
        "autoencoder",
        "rbm",
        "least_squares",
        "rbf",
    ] = "model"
    """Initialization of the parameters. model: the model's own. The others are functions of deepjax.init_from_data,
    which use the first training batch. auto measures the signal, and chooses an initialization that preserves it at any
    depth. kmeans_kernels needs at least as many images in a batch as features. autoencoder and rbm pretrain an mlp with
    activation=sigmoid layer by layer, on 8,192 training images (or all, if there are fewer). On as many, least_squares
    sets the last layer to the minimum of the squared error plus optimizer.weight_decay / 2 times its squared kernel:
    linear and ridge regression in closed form. rbf places the centers of model rbf by k-means++ before that."""
    pretrained: str = ""
    """Source of the initial parameters, in place of `init`: a weights file (.safetensors, .pth, .bin, ...) with
    PyTorch's names or deepjax's, the folder of a run, or a network with weights on the hub, such as resnet18. Empty:
    `init`."""
    reset_head: bool = True
    """pretrained: initialize the last layers, whose size is the number of classes, from scratch. False: load them
    too."""
    pretrained_layers: tuple[str, ...] = ()
    """pretrained: patterns of parameters to load, such as 'stage1*'; the others are initialized from scratch. The
    weights may then be those of another network, if what matches has the same names and shapes in both. Units of a
    stack are unit1, unit2, .... Empty: all."""
    freeze: tuple[str, ...] = ()
    """pretrained: patterns of parameters that are not trained, such as 'stem*' 'stage1*'. They follow those of
    optimizer.groups; the first match counts."""
    thaw: tuple[float, ...] = option((), above=0)
    """Epochs after which the parameters of `freeze` are trained too: one for each pattern, or one for all. Empty:
    never."""
    thaw_share: float = option(0.0, at_least=0, at_most=1)
    """thaw as a fraction of `epochs`: 0.5 freezes for the first half of the run. 0: never thaw."""
    freeze_moments: bool = False
    """True: frozen batch norms normalize by their running moments and do not update them, as in PyTorch after eval().
    False: they normalize by the batch and update them, as in PyTorch if only requires_grad is off."""
    teacher: str = ""
    """Distillation: a trained network, whose answers for the same images are learned beside the labels: the folder of a
    run, a .safetensors file of `deepjax convert`, or a network with weights on the hub. It must have the same
    classes. Empty: none."""
    temperature: float = option(4.0, above=0)
    """teacher: divisor of both networks' logits. A higher one shows more of what the teacher finds similar."""
    teacher_share: float = option(0.9, above=0, at_most=1)
    """teacher: its weight in the loss. The labels have the rest."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    devices: Devices = Devices()
    epochs: int = option(10, at_least=1)
    """Passes over the training set. A run may be resumed with more epochs if its learning rates so far do not depend on
    their number: schedule constant, exponential, step, plateau or warm_restarts."""
    batch_size: int = option(128, at_least=1)
    """Images in a batch, over all devices."""
    steps_per_call: int = option(1, at_least=1, free=True)
    """Training steps that one call of the compiled program computes, at most those of an epoch. Above 1, small networks
    train faster. Records and checkpoints stay the same; a signal is noticed between two calls."""
    eval_batch_size: int = option(0, at_least=0, free=True)
    """Images in an evaluation batch. 0: batch_size."""
    label_smoothing: float = option(0.0, at_least=0, at_most=1)
    """Fraction of each target that is spread over all classes."""
    ema: float = option(0.0, at_least=0, below=1)
    """Decay of the moving average of the parameters, which is evaluated in place of the parameters, with the moments of
    the batch norms from training. 0: off."""
    swa_start: int = option(0, at_least=0)
    """Stochastic weight averaging: from the end of this epoch on, the parameters at the end of each epoch enter an
    equal average. At the end of the run, the moments of batch norms are estimated for the average, and it is validated
    and tested. 0: off."""
    snapshots: int = option(0, at_least=0)
    """Snapshot ensemble: keep the network at the end of each of this many equal cycles of the schedule warm_restarts,
    and test the mean of their predictions (of softmax probabilities for classes). 0: off."""
    best: Literal["loss", "error"] = "loss"
    """The number of the validation set that makes an epoch the best if it is the lowest: the loss, or the error (of
    equal errors, that with the lower loss; of equal epochs, the newest). The best epoch is tested."""
    patience: int = option(0, at_least=0)
    """Stop after this many epochs without one that is better, by `best`, than all before. 0: never."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation. Parameters and statistics are float32 in either case."""
    seed: int = option(0, at_least=0, below=2**32)
    """Seed of the initialization, the order of the images, augmentation and dropout."""
    log_every: int = option(10, at_least=1, free=True)
    """Steps between two lines of metrics.jsonl and metrics.csv."""
    wandb: str = option("", free=True)
    """Project of Weights & Biases to which the metrics are sent, too. Needs the package wandb. Empty: none."""
    profile: str = option("", free=True)
    """Steps to trace, such as 10:20, counted from 1. Their most expensive operations are shown, and WORKDIR/profile
    gets a trace for Perfetto and TensorBoard. Empty: none."""
    watch: int = option(0, at_least=0, free=True)
    """Steps between two measurements of the layers in training. WORKDIR/watch.jsonl gets their numbers, the log what is
    wrong, such as dead units or vanishing gradients; a run that cannot learn stops, with a report, WORKDIR/doctor.html.
    The result does not change. 0: none."""
    checkpoint_every: int = option(0, at_least=0, free=True)
    """Steps between two checkpoints, besides the one at the end of each epoch. 0: only at the end of each epoch."""
    keep: int = option(2, at_least=1, free=True)
    """Number of the newest checkpoints to keep. The best by validation is always kept too."""
    workdir: str = option("", free=True)
    """Folder of the run. Empty: runs/NAME; or runs/NAME-2, ... if that holds a run of another config."""
    data_dir: str = option("", free=True)
    """Folder of the images: a TFDS folder, the original files of the data set, or, for data.name folder, CLASS/*.jpg or
    train/CLASS/*.jpg. Empty: TFDS's own folder."""
