"""How measurements grow with depth."""

import numpy as np

QUANTITIES = ("step", "ready", "temporaries")


def ready(record):
    """Return the seconds to trace, lower and compile; None if the cell was not compiled."""
    parts = [record[name] for name in ("trace", "lower", "compile")]
    return None if record["compile"] is None else sum(part for part in parts if part is not None)


def value(record, quantity) -> float | None:
    """Return one of `QUANTITIES` of a record, or None."""
    return ready(record) if quantity == "ready" else record[quantity]


def fit(depths, values):
    """Return (exponent, factor) of values = factor * depth ** exponent, by least squares of the logarithms.

    Return None if there are fewer than two depths, or a value is not positive.

    >>> exponent, factor = fit([20, 56, 110], [3 * 20**1.5, 3 * 56**1.5, 3 * 110**1.5])
    >>> round(float(exponent), 6), round(float(factor), 6)
    (1.5, 3.0)
    """
    if len(set(depths)) < 2 or min(values) <= 0:
        return None
    exponent, constant = np.polyfit(np.log(depths), np.log(values), 1)
    return float(exponent), float(np.exp(constant))


def series(records, quantity):
    """Return {(unit, variant): ([depth], [value])} of the cells that were measured."""
    found = {}
    for record in records:
        if (number := value(record, quantity)) is not None:
            depths, values = found.setdefault((record["unit"], record["variant"]), ([], []))
            depths.append(record["depth"])
            values.append(number)
    return found


def fits(records):
    """Return [{"unit", "variant", "quantity", "depths", "exponent", "factor"}] where there are two depths or more."""
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
