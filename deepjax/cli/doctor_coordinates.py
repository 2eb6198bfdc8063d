"""`deepjax doctor --widths 32,64,128 --depths 10,100`."""

from pathlib import Path

from deepjax.errors import InputError


def read_sizes(name, text):
    """Return the numbers of an option such as --widths 32,64,128; none if the text is empty.

    Raises:
      InputError: the text is no list of numbers.
    """
    words = [word for word in text.split(",") if word.strip()]
    if not all(word.strip().isdecimal() for word in words):
        raise InputError(f"{name} {text!r} must be numbers with commas between them, such as 32,64,128")
    return tuple(int(word) for word in words)


def show_coordinates(config, *, widths=(), depths=(), steps=4, seeds=3, plot="coordinates.png"):
    """Train a config's network at several sizes, print how its activations scale, and draw it.

    Args:
      config: the parsed Config.
      widths, depths: values of these options of the network; an empty one is not checked.
      steps, seeds: as of `training.coordinate_check`.
      plot: file of the figure, .png or .svg.

    Returns:
      The exit code: 0 if all scales are kept, else 1.
    """
    from deepjax.cli.terminal import display, table
    from deepjax.runs import plots
    from deepjax.training import coordinate_check

    if not widths and not depths:
        raise InputError("a coordinate check needs --widths or --depths, such as --widths 32,64,128")
    if (path := Path(plot)).suffix not in (".png", ".svg"):
        raise InputError(f"plot {plot} must be a .png or .svg file")
    found = []
    for axis, sizes in (("width", widths), ("depth", depths)):
        if sizes:
            found.append(coordinate_check(config, axis, sizes, steps=steps, seeds=seeds, log=display()))
    for one in found:
        table(*one.table())
        print(one.verdict)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(plots.coordinates(found, config.model), path)
    print(f"see {path}")
    return 0 if all(one.stable for one in found) else 1
