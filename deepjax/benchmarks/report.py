"""Measurements as lines, tables, Markdown and a plot."""

from collections.abc import Sequence

import numpy as np

from deepjax.benchmarks.cells import VARIANTS
from deepjax.benchmarks.growth import QUANTITIES, fit, series

NETS = (  # header, field, factor, format
    ("trace s", "trace", 1, ".2f"),
    ("lower s", "lower", 1, ".2f"),
    ("compile s", "compile", 1, ".2f"),
    ("temporaries MB", "temporaries", 1e-6, ",.1f"),
    ("step ms", "step", 1e3, ",.1f"),
    ("min ms", "step_min", 1e3, ",.1f"),
    ("peak MB", "peak", 1e-6, ",.0f"),
)
STARTS = (
    ("cold s", "cold", 1, ".1f"),
    ("warm s", "warm", 1, ".1f"),
    ("step ms", "step", 1e3, ",.1f"),
    ("cache hits", "cache_hits", 1, "d"),
)
LABELS = {"step": "step time (s)", "ready": "trace + lower + compile (s)", "temporaries": "temporaries (bytes)"}
MARKS = "os^vDPX*<>"  # one for each variant


def line(kind, record):
    """Return the compilation record of a cell as one line."""
    name = f"{kind} {record['unit']} {record['variant']} {record['depth']}"
    if record["stopped"]:
        return f"{name}: {record['stopped']}"
    parts = [f"{word} {record[word]:.2f} s" for word in ("trace", "lower", "compile") if record[word] is not None]
    if record["temporaries"] is not None:
        parts.append(f"temporaries {record['temporaries'] / 1e6:,.1f} MB")
    return f"{name}: {', '.join(parts) or 'nothing to compile'}"


def step_line(record):
    """Return the step time of a network as one line."""
    name = f"net {record['unit']} {record['variant']} {record['depth']}"
    if record["stopped"]:
        return f"{name}: {record['stopped']}"
    return f"{name}: {1e3 * record['step']:,.1f} ms a step (median of {record['steps']})"


def start_line(record):
    """Return the times of the two starts of a cell as one line."""
    name = f"start of {record['unit']} {record['variant']} {record['depth']}"
    if record["stopped"]:
        return f"{name}: {record['stopped']}"
    return f"{name}: first step after {record['cold']:.1f} s, with a warm cache {record['warm']:.1f} s"


def tables(record) -> list[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
    """Return the tables of a record as [(title, header, rows of cells)]."""
    options = record["options"]
    title = (
        f"CIFAR networks {options['width']}/{2 * options['width']}/{4 * options['width']}, batch {options['batch']}: "
        f"whole training step"
    )
    found: list = [(title, *_table(NETS, record["nets"]))]
    if record["stages"]:
        found.append(("Stages of equal units: loss and gradients", *_table(NETS[:4], record["stages"])))
    if record["starts"]:
        found.append(("From starting a process to its first step", *_table(STARTS, record["starts"])))
    if record["fits"]:
        found.append(("Exponents of growth with depth", *_exponents(record["fits"])))
    return found


def _table(columns, records):
    def cell(record, field, factor, form):
        return "-" if record[field] is None else format(record[field] * factor, form)

    header = ("unit", "variant", "depth", *(column[0] for column in columns), "")
    rows = [
        (
            record["unit"],
            record["variant"],
            str(record["depth"]),
            *(cell(record, *column[1:]) for column in columns),
            record["stopped"] or "",
        )
        for record in records
    ]
    return header, rows


def _exponents(fits):
    found = {(fit["unit"], fit["variant"], fit["quantity"]): _power(fit["exponent"]) for fit in fits}
    names = dict.fromkeys((unit, variant) for unit, variant, _ in found)
    rows = [(*name, *(found.get((*name, quantity), "-") for quantity in QUANTITIES)) for name in names]
    return ("unit", "variant", "step time", "trace + lower + compile", "temporaries"), rows


def _power(exponent):
    return f"{round(exponent, 2) + 0.0:.2f}"  # not -0.00


def about(record):
    """Return one paragraph about the machine and the versions."""
    machine = record["machine"]
    memory = f", {machine['memory'] / 2**30:.0f} GiB" if machine["memory"] else ""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    platforms = sorted({net["platform"] for net in record["nets"]} - {None})
    load = "" if machine["load"] is None else f", load {machine['load']:.1f} at the start"
    return (
        f"{machine['date']}; {machine['processor']}, {machine['cores']} cores{memory}{load}; on "
        f"{' and '.join(platforms) or 'nothing'}; Python {machine['python']}, {versions}"
        + (f"; XLA_FLAGS={machine['xla_flags']}" if machine["xla_flags"] else "")
    )


def markdown(record):
    """Return the report as Markdown, with a link to the plot."""
    parts = [f"# What depth costs\n\n`{record['command']}`\n\n{about(record)}\n\n![](depth.png)\n"]
    return "\n".join([*parts, *(section(*table) for table in tables(record))])


def section(title, header, rows):
    """Return a table as a section of Markdown."""
    lines = [f"## {title}", "", f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def plot(record):
    """Plot step time, compile time and temporaries of networks against depth, with fitted powers; return a Figure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    units = list(dict.fromkeys(net["unit"] for net in record["nets"]))
    figure = Figure(figsize=(20, 4.2 * len(units)), layout="constrained")
    depths = sorted({net["depth"] for net in record["nets"]})
    for row, unit in zip(figure.subplots(len(units), 3, squeeze=False), units, strict=True):
        for axes, quantity in zip(row, QUANTITIES, strict=True):
            for (name, variant), (x, y) in series(record["nets"], quantity).items():
                if name == unit:
                    _draw(axes, variant, x, y)
            axes.set(xscale="log", yscale="log", title=f"{unit} units", xlabel="layers", ylabel=LABELS[quantity])
            axes.set_xticks(depths)
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.3, which="both")
            if axes.get_legend_handles_labels()[1]:
                axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _draw(axes, variant, depths, values):
    number, found = VARIANTS.index(variant), fit(depths, values)
    color = f"C{number}"
    label = variant if found is None else f"{variant} (depth$^{{{_power(found[0])}}}$)"
    axes.plot(depths, values, MARKS[number], color=color, label=label, alpha=0.8)
    if found:
        ends = np.array([min(depths), max(depths)])
        axes.plot(ends, found[1] * ends ** found[0], "--", color=color, linewidth=1)
