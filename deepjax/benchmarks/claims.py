"""How measurements grow with depth, and what is claimed of them."""

from typing import NamedTuple

import numpy as np

from deepjax.benchmarks.cells import SCANNED, STAGES

QUANTITIES = ("step", "ready", "temporaries")


class Claim(NamedTuple):
    """A claim whose cells were measured."""

    text: str
    value: float
    bound: str  # "<=" or ">="
    limit: float
    holds: bool


def ready(record):
    """Seconds to trace, lower and compile; None where it was not compiled."""
    parts = [record[name] for name in ("trace", "lower", "compile")]
    return None if record["compile"] is None else sum(part for part in parts if part is not None)


def value(record, quantity) -> float | None:
    """One of `QUANTITIES` of a record, or None."""
    return ready(record) if quantity == "ready" else record[quantity]


def fit(depths, values):
    """(exponent, factor) of values = factor * depth ** exponent, by least squares of logarithms; None below two depths.

    >>> exponent, factor = fit([20, 56, 110], [3 * 20**1.5, 3 * 56**1.5, 3 * 110**1.5])
    >>> round(float(exponent), 6), round(float(factor), 6)
    (1.5, 3.0)
    """
    if len(set(depths)) < 2 or min(values) <= 0:
        return None
    exponent, constant = np.polyfit(np.log(depths), np.log(values), 1)
    return float(exponent), float(np.exp(constant))


def series(records, quantity):
    """{(unit, variant): ([depth], [value])}, of what was measured."""
    found = {}
    for record in records:
        if (number := value(record, quantity)) is not None:
            depths, values = found.setdefault((record["unit"], record["variant"]), ([], []))
            depths.append(record["depth"])
            values.append(number)
    return found


def fits(records):
    """[{"unit", "variant", "quantity", "depths", "exponent", "factor"}], where there are two depths or more."""
    return [
        {
            "unit": unit,
            "variant": variant,
            "quantity": quantity,
            "depths": depths,
            "exponent": found[0],
            "factor": found[1],
        }
        for quantity in QUANTITIES
        for (unit, variant), (depths, values) in series(records, quantity).items()
        if (found := fit(depths, values))
    ]


class Checks:
    """The claims of a list of records, as far as their cells were measured."""

    def __init__(self, records):
        self.cells = {(record["unit"], record["variant"], record["depth"]): record for record in records}
        self.units = list(dict.fromkeys(record["unit"] for record in records))
        self.depths = sorted({record["depth"] for record in records})
        self.found = []

    def ratio(self, text, quantity, above, below, limit, bound="<="):
        """A claim of one cell's quantity over another's; cells are (unit, variant, depth)."""
        a, b = (value(self.cells[cell], quantity) if cell in self.cells else None for cell in (above, below))
        if a is not None and b is not None:
            self.add(text, a / b, limit, bound)

    def add(self, text, number, limit, bound="<="):
        """A claim of a number."""
        holds = bool(number <= limit if bound == "<=" else number >= limit)
        self.found.append(Claim(text, float(number), bound, limit, holds))


def check(record):
    """The claims that the cells of a run decide, in a list of `Claim`."""
    return [*_of_nets(record["nets"]), *_of_stages(record["stages"]), *_of_starts(record["starts"])]


def _of_nets(records):
    checks = Checks(records)
    grown = series(records, "step")
    for unit in checks.units:
        for variant in SCANNED:
            deep, shallow = (unit, variant, 1202), (unit, variant, 20)
            checks.ratio(f"{unit} {variant}: trace + lower + compile, 1202 over 20", "ready", deep, shallow, 1.2)
            depths, values = grown.get((unit, variant), ((), ()))
            if {20, 1202} <= set(depths) and (found := fit(depths, values)):
                checks.add(f"{unit} {variant}: exponent of step time, 20 to 1202", found[0], 1.05)
        deep = (unit, "sqrt", 1202), (unit, "scan", 1202)
        checks.ratio(f"{unit}: temporaries at 1202, sqrt over scan", "temporaries", *deep, 0.1)
        checks.ratio(f"{unit}: step time at 1202, sqrt over scan", "step", *deep, 1.3)
        shallow = (unit, "scan", 20), (unit, "unrolled", 20)
        checks.ratio(f"{unit}: step time at 20, scan over unrolled", "step", *shallow, 1.1)
    flax = ("basic", "flax", 332), ("basic", "scan", 332)
    checks.ratio("basic: step time at 332, unrolled Flax over scan", "step", *flax, 4.0, ">=")
    torch = ("basic", "unit", 1202), ("basic", "torch-checkpoint", 1202)
    checks.ratio("basic: step time at 1202, unit over PyTorch with checkpoints", "step", *torch, 1.0)
    for depth in checks.depths:
        dropped = ("basic", "stochastic", depth), ("basic", "scan", depth)
        checks.ratio(f"basic: step time at {depth}, stochastic depth over full", "step", *dropped, 0.8)
    return checks.found


def _of_stages(records):
    checks = Checks(records)
    for unit in checks.units:
        for variant in STAGES[unit]:
            ends = (unit, variant, 10000), (unit, variant, 10)
            text = f"stage of {unit} units, {variant}"
            checks.ratio(f"{text}: trace + lower + compile, 10000 over 10", "ready", *ends, 1.5)
        deep = (unit, "sqrt", 4096), (unit, "sqrt", 1024)
        checks.ratio(f"stage of {unit} units, sqrt: temporaries, 4096 over 1024", "temporaries", *deep, 2.5)
        deep = (unit, "reversible", 4096), (unit, "reversible", 1024)
        checks.ratio(f"stage of {unit} units, reversible: temporaries, 4096 over 1024", "temporaries", *deep, 1.1)
    return checks.found


def _of_starts(records):
    checks = Checks(records)
    for record in records:
        if record["warm"] is not None and record["cache_hits"]:
            text = f"{record['unit']} {record['variant']} {record['depth']}: second start to first step, less one step"
            checks.add(f"{text} (s)", record["warm"] - record["step"], 10.0)
    return checks.found
