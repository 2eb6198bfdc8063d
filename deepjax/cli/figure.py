"""`deepjax figures` and `deepjax figure`."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from deepjax.cli.terminal import parse, table, warn
from deepjax.errors import InputError
from deepjax.fields import option
from deepjax.files import check_path, write_json


@dataclass(frozen=True)
class Figures:
    """Options of `deepjax figures`."""


@dataclass(frozen=True)
class Figure:
    """Options of `deepjax figure`."""

    name: tyro.conf.Positional[str]
    """A name that `deepjax figures` lists."""
    out: Path = Path("figures")
    """Folder in which to write NAME.json, NAME.png and NAME.svg."""
    seed: int = option(0, at_least=0, below=2**32)
    """Seed of everything random."""
    full: bool = False
    """Take the lecture's own size, or more repetitions, instead of a size for two CPU cores. It may take hours."""
    data_dir: str = ""
    """Folder of the data set, for figures that need one: a TFDS folder, or its original files."""


def figures(arguments):
    """List the lectures' experiments, each a `deepjax figure`."""
    parse(Figures, arguments, "deepjax figures", figures.__doc__)
    from deepjax.figures import FIGURES, find

    table(("figure", "what it shows", "from"), [(name, find(name).TITLE, find(name).SOURCE) for name in FIGURES])
    return 0


def figure(arguments):
    """Compute an experiment of the lectures, check its claim and draw it. Exits with 1 if the claim does not hold."""
    options = parse(Figure, arguments, "deepjax figure", figure.__doc__)
    from deepjax.figures import Settings, find
    from deepjax.runs import plots

    experiment = find(options.name)
    for name, given in (("full", options.full), ("data_dir", options.data_dir)):
        if given and name not in experiment.USES:
            raise InputError(f"figure {options.name} does not use --{name.replace('_', '-')}; leave it out")
    check_path("out", options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    numbers = experiment.numbers(Settings(options.seed, options.full, options.data_dir))
    claim = experiment.claim(numbers)
    record = {"figure": options.name, "seed": options.seed, "full": options.full, "claim": claim._asdict()}
    write_json(options.out / f"{options.name}.json", record | {"numbers": dataclasses.asdict(numbers)})
    print(f"{experiment.TITLE} ({experiment.SOURCE})\n")
    table(*experiment.table(numbers))
    print(f"\n{'pass' if claim.holds else 'FAIL'}: {claim.text}")
    problems = []
    plots.draw(options.out, partial(_drawings, experiment, numbers, options.name), problems.append)
    for problem in problems:
        warn(problem)
    print(f"written: {options.out / options.name}.json{'' if problems else ', .png and .svg'}")
    return 0 if claim.holds else 1


def _drawings(experiment, numbers, name):
    """Return the drawing as PNG and SVG, in colors that color-blind readers can tell apart."""
    from matplotlib import style

    with style.context("tableau-colorblind10"):
        drawing = experiment.draw(numbers)
    return {f"{name}.{kind}": drawing for kind in ("png", "svg")}
