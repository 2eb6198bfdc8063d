"""`deepjax figures` and `deepjax figure`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

from deepjax.cli.terminal import parse, table
from deepjax.fields import option
from deepjax.files import check_path, replacing, write_bytes, write_json


@dataclass(frozen=True)
class Figures:
    """Options of `deepjax figures`."""


@dataclass(frozen=True)
class Figure:
    """Options of `deepjax figure`."""

    name: tyro.conf.Positional[str]
    """A name that `deepjax figures` lists."""
    out: Path = Path("figures")
    """Folder in which to write NAME.json, NAME.png, NAME.svg, and NAME.gif if the figure has an animation."""
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

    experiment = find(options.name)
    check_path("out", options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    numbers = experiment.numbers(Settings(options.seed, options.full, options.data_dir))
    claim = experiment.claim(numbers)
    record = {"figure": options.name, "seed": options.seed, "full": options.full, "claim": claim._asdict()}
    write_json(options.out / f"{options.name}.json", record | {"numbers": dataclasses.asdict(numbers)})
    print(f"{experiment.TITLE} ({experiment.SOURCE})\n")
    table(*experiment.table(numbers))
    print(f"\n{'pass' if claim.holds else 'FAIL'}: {claim.text}")
    kinds = _draw(experiment, numbers, options.out / options.name)
    print(f"written: {options.out / options.name}.json, {', '.join(kinds[:-1])} and {kinds[-1]}")
    return 0 if claim.holds else 1


def _draw(experiment, numbers, stem):
    """Write the drawing as PNG and SVG, in colors that color-blind readers can tell apart, and the animation as GIF.

    Returns the suffixes of the files.
    """
    from matplotlib import style

    with style.context("tableau-colorblind10"):
        drawing = experiment.draw(numbers)
        animation = experiment.animate(numbers) if hasattr(experiment, "animate") else None
    for kind in ("png", "svg"):
        with replacing(stem.with_name(f"{stem.name}.{kind}")) as partial:
            drawing.savefig(partial, format=kind, dpi=150)
    if animation is None:
        return [".png", ".svg"]
    _write_gif(animation, stem.with_name(f"{stem.name}.gif"))
    return [".png", ".svg", ".gif"]


def _write_gif(animation, path):
    """Write an animation. Pillow chooses the format by the name, so the temporary file has the same suffix."""
    from matplotlib.animation import PillowWriter

    with TemporaryDirectory() as folder:
        whole = Path(folder) / "animation.gif"
        animation.save(whole, PillowWriter(fps=3), dpi=80)
        write_bytes(path, whole.read_bytes())
