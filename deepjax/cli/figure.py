"""`deepjax figures` and `deepjax figure`."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

from deepjax.cli.terminal import parse, table, warn
from deepjax.errors import InputError
from deepjax.fields import option
from deepjax.files import check_path, write_bytes, write_json


@dataclass(frozen=True)
class Figures:
    """Options of `deepjax figures`."""


@dataclass(frozen=True)
class Figure:
    """Options of `deepjax figure`."""

    name: tyro.conf.Positional[str]
    """A name that `deepjax figures` lists."""
    out: Path = Path("figures")
    """Folder in which to write NAME.json, NAME.png and NAME.svg, of some figures also the animation NAME.gif."""
    seed: int = option(0, at_least=0, below=2**32)
    """Seed of everything random."""
    seeds: int = option(1, at_least=1)
    """Number of seeds, from `seed` on, for which the claim is checked. Only the first is written and drawn."""
    full: bool = False
    """Take the lecture's own size, or more repetitions, instead of a size for two CPU cores. It may take hours."""
    data_dir: str = ""
    """Folder of the data set, for figures that need one: a TFDS folder, or its original files."""
    model: str = ""
    """Network to look at, for figures that show one: the folder of a run, a file of weights or a network's name, as in
    `deepjax predict`. Unset: a small network that is trained first."""
    weights: str = ""
    """File with the weights of the network that --model names."""
    image: str = ""
    """Image file to look at, with --model."""


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

    experiment, last = find(options.name), options.seed + options.seeds
    if last > 2**32:
        raise InputError(f"seed {options.seed} and seeds {options.seeds} lead to seeds above 2^32 - 1; lower one")
    for name in Settings._fields[1:]:
        if getattr(options, name) and name not in experiment.USES:
            raise InputError(f"figure {options.name} does not use --{name.replace('_', '-')}; leave it out")
    check_path("out", options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(**{name: getattr(options, name) for name in Settings._fields})
    numbers = experiment.numbers(settings)
    claim = experiment.claim(numbers)
    record = {"figure": options.name, "seed": options.seed, "full": options.full, "claim": claim._asdict()}
    write_json(options.out / f"{options.name}.json", record | {"numbers": dataclasses.asdict(numbers)})
    print(f"{experiment.TITLE} ({experiment.SOURCE})\n")
    table(*experiment.table(numbers))
    print(f"\n{'pass' if claim.holds else 'FAIL'}: {claim.text}")
    problems, stem = [], options.out / options.name
    plots.draw(options.out, partial(_drawings, experiment, numbers, stem), problems.append)
    for problem in problems:
        warn(problem)
    drawn = ", .png, .svg and .gif" if hasattr(experiment, "animate") else ", .png and .svg"
    print(f"written: {stem}.json{'' if problems else drawn}")
    held = [claim.holds, *(_holds(experiment, settings._replace(seed=seed)) for seed in range(options.seed + 1, last))]
    if options.seeds > 1:
        print(f"the claim holds for {sum(held)} of {options.seeds} seeds")
    return 0 if all(held) else 1


def _holds(experiment, settings):
    claim = experiment.claim(experiment.numbers(settings))
    print(f"seed {settings.seed}, {'pass' if claim.holds else 'FAIL'}: {claim.text}", flush=True)
    return claim.holds


def _drawings(experiment, numbers, stem):
    """Return the drawing as PNG and SVG, in colors that color-blind readers can tell apart. Write the animation."""
    from matplotlib import style

    with style.context("tableau-colorblind10"):
        drawing = experiment.draw(numbers)
        if hasattr(experiment, "animate"):
            _write_gif(experiment.animate(numbers), stem.with_name(f"{stem.name}.gif"))
    return {f"{stem.name}.{kind}": drawing for kind in ("png", "svg")}


def _write_gif(animation, path):
    """Write an animation. Pillow chooses the format by the name, so the temporary file has the same suffix."""
    from matplotlib.animation import PillowWriter

    with TemporaryDirectory() as folder:
        whole = Path(folder) / "animation.gif"
        animation.save(whole, PillowWriter(fps=3), dpi=80)
        write_bytes(path, whole.read_bytes())
