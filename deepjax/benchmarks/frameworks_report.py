"""The measurements of `frameworks` as lines, tables, Markdown and a plot."""

from deepjax.benchmarks import report

HEADER = (
    "workload",
    "batch",
    "dtype",
    "threads",
    "system",
    "step ms",
    "quartiles",
    "time / deepjax",
    "quartiles",
    "GFLOP/s",
    "of matmul",
    "dropped",
    "",
)
OTHERS = {"torch": "better of torch and torch-compile", "flax": "flax"}
BUSY = "other processes disturbed most rounds"


def line(name, numbers):
    """Return the numbers of a system as one line."""
    if numbers["stopped"]:
        return f"{name}: {numbers['stopped']}"
    ratio = f", {numbers['ratio']['median']:.2f} x deepjax" if numbers["ratio"] else ""
    return f"{name}: {_milliseconds(numbers['seconds']['median'])} ms a step{ratio}"


def tables(record):
    """Return the tables of a record as [(title, header, rows of cells)]."""
    what = "Forward passes" if record["options"]["inference"] else "Training steps"
    rows = [_row(cell, name, numbers) for cell in record["cells"] for name, numbers in cell["systems"].items()]
    found: list = [(what, HEADER, rows)]
    peaks = {(cell["dtype"], cell["threads"]): cell["peak"] for cell in record["cells"] if cell["peak"]}
    rows = [(dtype, str(threads), f"{peak['median'] / 1e9:,.1f}") for (dtype, threads), peak in peaks.items()]
    found.append(("Matrix product of 2048 x 2048 in JAX", ("dtype", "threads", "GFLOP/s"), rows))
    rows = [
        (each["dtype"], str(each["threads"]), OTHERS[each["against"]], f"{each['mean']:.2f}", str(each["workloads"]))
        for each in record["means"]
    ]
    header = ("dtype", "threads", "system", "deepjax / system", "workloads")
    found.append(("Geometric means over workloads of deepjax's time divided by another's", header, rows))
    return [each for each in found if each[2]]


def _row(cell, name, numbers):
    seconds, ratio, share = numbers["seconds"], numbers["ratio"], numbers["share"]
    return (
        cell["workload"],
        str(cell["batch"]),
        cell["dtype"],
        str(cell["threads"]),
        name,
        _milliseconds(seconds["median"]) if seconds else "-",
        f"{_milliseconds(seconds['low'])} to {_milliseconds(seconds['high'])}" if seconds else "-",
        f"{ratio['median']:.2f}" if ratio else "-",
        f"{ratio['low']:.2f} to {ratio['high']:.2f}" if ratio else "-",
        f"{numbers['speed'] / 1e9:,.1f}" if numbers["speed"] else "-",
        f"{share['median']:.0%}" if share else "-",
        str(cell["dropped"]),
        numbers["stopped"] or (BUSY if cell["busy"] else ""),
    )


def _milliseconds(seconds):
    """Return three digits or more: 0.0123 -> "12.3"."""
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def about(record):
    """Return one paragraph about the machine and the versions."""
    found = [numbers for cell in record["cells"] for numbers in cell["systems"].values()]
    return report.about({"machine": record["machine"], "nets": found})


def markdown(record):
    """Return the report as Markdown, with a link to the plot."""
    parts = [f"# deepjax beside other systems\n\n`{record['command']}`\n\n{about(record)}\n\n![](frameworks.png)\n"]
    parts += [report.section(*table) for table in tables(record)]
    if record["left_out"]:
        parts.append("Left out:\n\n" + "\n".join(f"- {text}" for text in record["left_out"]) + "\n")
    return "\n".join(parts)


def plot(record):
    """Plot the time of every system divided by deepjax's, with quartiles, one panel per dtype and threads."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    panels = list(dict.fromkeys((cell["dtype"], cell["threads"]) for cell in record["cells"])) or [("", "")]
    figure = Figure(figsize=(11, 3.8 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        cells = [cell for cell in record["cells"] if (cell["dtype"], cell["threads"]) == panel]
        for number, name in enumerate(record["options"]["systems"]):
            shown = [(i, cell["systems"].get(name, {}).get("ratio")) for i, cell in enumerate(cells)]
            shown = [(i, ratio) for i, ratio in shown if ratio]
            if shown:
                _draw(axes, number, name, shown, len(record["options"]["systems"]))
        axes.axhline(1.0, color="black", linewidth=1)
        labels = [f"{cell['workload']}\n{cell['batch']}" for cell in cells]
        axes.set_xticks(range(len(cells)), labels)
        axes.set(yscale="log", ylabel="time / deepjax's", title=f"{panel[0]}, {panel[1]} threads")
        axes.grid(alpha=0.3, which="both", axis="y")
        axes.set_xlim(-0.5, max(len(cells), 1) - 0.5)
        for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            ticks(FuncFormatter(lambda value, _: f"{value:.2g}"))
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _draw(axes, number, name, shown, systems):
    places = [i + 0.7 * (number + 0.5) / systems - 0.35 for i, _ in shown]
    medians = [ratio["median"] for _, ratio in shown]
    below = [ratio["median"] - ratio["low"] for _, ratio in shown]
    above = [ratio["high"] - ratio["median"] for _, ratio in shown]
    mark = report.MARKS[number]
    axes.errorbar(places, medians, [below, above], fmt=mark, color=f"C{number}", label=name, capsize=3)
