"""`deepjax bench`: side-by-side measurements."""

import re
from dataclasses import dataclass
from pathlib import Path

import tyro

from deepjax.cli.terminal import parse, table
from deepjax.errors import InputError


@dataclass(frozen=True)
class Depth:
    """Measure the cost of depth: time to trace, lower and compile, temporaries and step time of CIFAR networks, in
    deepjax (as scans, unrolled and rematerialized), plain Flax and PyTorch. Writes depth.json, depth.md, depth.png."""

    units: str = "basic,preact,plain,reversible"
    """Unit kinds, separated by commas."""
    variants: str = ""
    """Variants: unrolled, scan, unit, sqrt, reversible, stochastic, flax, torch, torch-checkpoint, torch-compile.
    Empty: all that are installed."""
    depths: str = "20,56,110,332,1202"
    """Layers, each 6n + 2."""
    steps: int = 10
    """Turns that each network takes at training steps. Short steps are repeated within a turn."""
    batch: int = 8
    """Images in a batch."""
    width: int = 16
    """Features of the first stage; the others have twice and four times as many."""
    stage_units: str = "dense,conv,reversible"
    """Unit kinds of stages, which are compiled but not run. Empty: none."""
    stage_depths: str = "10,1024,4096,10000"
    """Units in a stage."""
    second_start: bool = True
    """Measure the time from the start of a process to its first step, with JAX's persistent compilation cache."""
    compile_cap: float = 600.0
    """Time limit in seconds for compiling one network."""
    out: Path = Path("runs/bench_depth")
    """Folder of the report. An existing report is replaced."""


@dataclass(frozen=True)
class Frameworks:
    """Measure whole training steps (forward, backward, update) of deepjax beside plain Flax, PyTorch and Keras, in
    turns. Writes frameworks.json, frameworks.md, frameworks.png."""

    workloads: str = ""
    """fcn_s, alexnet_s, resnet50, fcn_r, alexnet_r, resnet56, lstm, or any network of `deepjax models`. Empty: these
    seven; with --inference, resnet50 and mobilenet_v2."""
    systems: str = ""
    """deepjax, flax, torch, torch-compile, keras. Empty: all that are installed."""
    dtypes: str = "float32,bfloat16"
    """Dtypes of the computation."""
    threads: str = ""
    """Numbers of processor cores, separated by commas. Empty: all powers of two up to the number of cores."""
    batch: int | None = None
    """Examples in a batch. None: each workload's own."""
    rounds: int = 15
    """Rounds of turns. A turn takes at least 0.3 s."""
    inference: bool = False
    """Measure forward passes with folded batch norms, by default of 1 and of 32 images, in place of training steps."""
    out: Path = Path("runs/bench_frameworks")
    """Folder of the report. An existing report is replaced."""


@dataclass(frozen=True)
class Layers:
    """Measure every convolution of a network (forward pass, input gradient, kernel gradient) in deepjax, by jax.lax,
    and in PyTorch if it is installed, in turns. Writes layers.json, layers.md."""

    model: tyro.conf.Positional[str]
    """A network of `deepjax models`."""
    batch: int = 16
    """Examples in a batch."""
    dtypes: str = "float32"
    """float32, bfloat16, or both."""
    threads: str = ""
    """Numbers of processor cores, separated by commas. Empty: all powers of two up to the number of cores."""
    rounds: int = 15
    """Rounds of turns. A turn takes at least 0.3 s."""
    out: Path = Path("runs/bench_layers")
    """Folder of the report. An existing report is replaced."""


@dataclass(frozen=True)
class Input:
    """Measure the input of training, in images per second, by augmentation and number of worker processes: of the
    digits, and of a folder of JPEG files that the command makes itself. Writes input.json, input.md."""

    sources: str = "digits,jpeg"
    """digits, jpeg, or both."""
    augments: str = ""
    """none, flip-crop, move, color, randaugment, area. Empty: all."""
    workers: str = "0,1,2"
    """Numbers of processes that decode files, separated by commas."""
    batch: int = 64
    """Images in a batch."""
    images: int = 512
    """Number of JPEG files."""
    rounds: int = 10
    """Rounds of turns. A turn takes at least 0.3 s."""
    out: Path = Path("runs/bench_input")
    """Folder of the report. An existing report is replaced."""


@dataclass(frozen=True)
class Doctor:
    """Examine programs with known faults and their patched twins: how often the doctor names the cause, how often it
    blames a twin. Writes doctor.json, doctor.md."""

    folder: tyro.conf.Positional[Path]
    """Folder with programs.json and programs.py."""
    only: str = ""
    """Ids of programs, separated by commas. Empty: all."""
    seed: int = 0
    """Seed of the data and the weights."""
    budget: float = 10.0
    """Seconds of an examination on a nominal machine."""
    out: Path = Path("runs/bench_doctor")
    """Folder of the report. An existing report is replaced."""


@dataclass(frozen=True)
class Loop:
    """Measure what `deepjax train` costs beyond its compiled training step: the share of reading batches, and the whole
    loop without validation and checkpoints. Writes loop.json, loop.md."""

    sources: str = ""
    """digits: ResNet-32 on 8x8 images. small: an MLP on the same. memory: ResNet-20, batch 128, on arrays of 32x32.
    jpeg: ResNet-18, batch 16, on a folder of JPEG files that the command makes itself. Empty: all."""
    steps_per_call: str = "1"
    """Values of the option of `deepjax train`, separated by commas."""
    workers: int = 0
    """Processes that decode files. 0: threads."""
    images: int = 256
    """Number of JPEG files; 72 % of them are for training."""
    rounds: int = 10
    """Rounds of turns. A turn is one epoch, or as many as fit in 0.3 s."""
    cpu: bool = False
    """Measure the processor time of the process in place of the clock's. Other work on the machine changes it less, so
    no round is dropped."""
    out: Path = Path("runs/bench_loop")
    """Folder of the report. An existing report is replaced."""


def bench(arguments):
    """Measure: `deepjax bench depth`, `frameworks`, `layers MODEL`, `input`, `loop`, `doctor FOLDER`."""
    command, rest = arguments[:1], arguments[1:]
    if command in (["-h"], ["--help"]):
        print(f"usage: deepjax bench {'|'.join(COMMANDS)} [OPTIONS]; `deepjax bench depth --help` lists them")
        return 0
    if not command or command[0] not in COMMANDS:
        known = ", ".join(f"`deepjax bench {name}`" for name in COMMANDS)
        raise InputError(f"{' '.join(['bench', *command])}: its commands are {known}")
    kind, run = COMMANDS[command[0]]
    options = parse(kind, rest, f"deepjax bench {command[0]}")
    from deepjax.training.signals import raising

    with raising():
        about, tables, written = run(options)
    print(f"\n{about}")
    for title, header, rows in tables:
        print(f"\n{title}")
        table(header, rows)
    print(f"\nwritten: {', '.join(str(options.out / name) for name in written)}")
    return 0


def _depth(options):
    from deepjax.benchmarks import depth, report

    record = depth.run(
        options.out,
        units=_words(options.units),
        variants=_words(options.variants) or None,
        depths=_numbers("depths", options.depths),
        steps=options.steps,
        batch=options.batch,
        width=options.width,
        stage_units=_words(options.stage_units),
        stage_depths=_numbers("stage-depths", options.stage_depths),
        second_start=options.second_start,
        compile_cap=options.compile_cap,
        log=_log,
    )
    return report.about(record), report.tables(record), ("depth.json", "depth.md", "depth.png")


def _frameworks(options):
    from deepjax.benchmarks import frameworks, frameworks_report

    record = frameworks.run(
        options.out,
        names=_words(options.workloads),
        compared=_words(options.systems),
        dtypes=_words(options.dtypes),
        threads=_numbers("threads", options.threads),
        batch=options.batch,
        count=options.rounds,
        inference=options.inference,
        log=_log,
    )
    written = ("frameworks.json", "frameworks.md", "frameworks.png")
    return frameworks_report.about(record), frameworks_report.tables(record), written


def _layers(options):
    from deepjax.benchmarks import layers

    record = layers.run(
        options.out,
        options.model,
        batch=options.batch,
        dtypes=_words(options.dtypes),
        threads=_numbers("threads", options.threads),
        count=options.rounds,
        log=_log,
    )
    return layers.about(record), layers.tables(record), ("layers.json", "layers.md")


def _input(options):
    from deepjax.benchmarks import inputs

    record = inputs.run(
        options.out,
        sources=_words(options.sources),
        augments=_words(options.augments),
        workers=_numbers("workers", options.workers),
        batch=options.batch,
        images=options.images,
        count=options.rounds,
        log=_log,
    )
    return inputs.about(record), inputs.tables(record), ("input.json", "input.md")


def _doctor(options):
    from deepjax.benchmarks import doctor

    only = _words(options.only)
    record = doctor.run(options.out, options.folder, only=only, seed=options.seed, budget=options.budget, log=_log)
    return doctor.about(record), doctor.tables(record), ("doctor.json", "doctor.md")


def _loop(options):
    from deepjax.benchmarks import loop

    record = loop.run(
        options.out,
        sources=_words(options.sources),
        steps_per_call=_numbers("steps-per-call", options.steps_per_call),
        workers=options.workers,
        images=options.images,
        count=options.rounds,
        cpu=options.cpu,
        log=_log,
    )
    return loop.about(record), loop.tables(record), ("loop.json", "loop.md")


COMMANDS = {
    "depth": (Depth, _depth),
    "frameworks": (Frameworks, _frameworks),
    "layers": (Layers, _layers),
    "input": (Input, _input),
    "doctor": (Doctor, _doctor),
    "loop": (Loop, _loop),
}


def _log(text):
    print(text, flush=True)


def _words(text):
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(name, text):
    if not re.fullmatch(r"(\s*\d+\s*,)*\s*\d+\s*|", text):
        raise InputError(f"--{name} {text!r} must be numbers separated by commas, such as 20,56")
    return [int(word) for word in _words(text)]
