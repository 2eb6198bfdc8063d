"""`deepjax bench`: side-by-side measurements."""

import re
from dataclasses import dataclass
from pathlib import Path

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


def bench(arguments):
    """Measure the cost of depth in deepjax, plain Flax and PyTorch: `deepjax bench depth`."""
    if arguments[:1] in (["-h"], ["--help"]):
        print("usage: deepjax bench depth [OPTIONS]; `deepjax bench depth --help` lists them")
        return 0
    if arguments[:1] != ["depth"]:
        raise InputError(f"{' '.join(['bench', *arguments[:1]])}: its one command is `deepjax bench depth`")
    options = parse(Depth, arguments[1:], "deepjax bench depth")
    from deepjax.benchmarks import depth, report
    from deepjax.training.signals import raising

    with raising():
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
            log=lambda text: print(text, flush=True),
        )
    print(f"\n{report.about(record)}")
    for title, header, rows in report.tables(record):
        print(f"\n{title}")
        table(header, rows)
    print(f"\nwritten: {', '.join(str(options.out / name) for name in ('depth.json', 'depth.md', 'depth.png'))}")
    return 0


def _words(text):
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(name, text):
    if not re.fullmatch(r"(\s*\d+\s*,)*\s*\d+\s*|", text):
        raise InputError(f"--{name} {text!r} must be numbers separated by commas, such as 20,56")
    return [int(word) for word in _words(text)]
