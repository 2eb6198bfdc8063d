"""Reports made by hand."""

import numpy as np

from deepjax.doctor.measure import ParameterRow
from deepjax.doctor.report import Finding, Outcome, Report, Sweep
from deepjax.doctor.rows import Row

NAN = float("nan")


def row(layer="Dense_0", **changes):
    """Return a row of the table with plausible numbers."""
    numbers = {
        "kind": "Dense",
        "shape": (64, 64),
        "activation": "relu",
        "mean": 0.012,
        "std": 0.9,
        "non_finite": 0.0,
        "zeros": 0.497,
        "saturated": 0.0,
        "dead": 0.03,
        "rank": 41.3,
        "relative_rank": 0.65,
        "cosine": 0.31,
        "gradient_rms": 2.1e-4,
        "gradient_non_finite": 0.0,
        "weight_rms": 0.176,
        "weight_gradient_rms": 3.3e-3,
        "gain": 1.41,
        "symmetric": 0.0,
        "orthogonality": 0.99,
        "fan_in": 64,
        "features": 64,
        "bias": True,
        "parameters": (f"{layer}/kernel",),
        "step": None,
    }
    return Row(layer=layer, **(numbers | changes))


def parameter(path, scale=1.0):
    return ParameterRow(path, (64, 64), 8.1, 0.02 * scale, 2e-4, 0.0025 * scale, 2.5e-5, 1.7, 0.41)


def fading(names, factor):
    """Return rows whose activations shrink by a factor from layer to layer, and whose gradients do so backward."""
    count = len(names)
    return tuple(
        row(name, std=factor**i, gradient_rms=1e-3 * factor ** (count - i), dead=min(1.0, i / count), step=None)
        for i, name in enumerate(names)
    )


def falling(start, end, count=200):
    noise = 1 + 0.05 * np.random.default_rng(0).standard_normal(count)
    return tuple(map(float, (end + (start - end) * np.exp(-np.linspace(0, 6, count))) * noise))


def outcome(description="kernels drawn with gain sqrt(2)", **changes):
    values = {
        "before": tuple([2.303] * 200),
        "after": falling(2.3, 0.02),
        "quality_before": 0.1,
        "quality_after": 0.973,
        "steps": 600,
        "learns": True,
    }
    return Outcome(description=description, **(values | changes))


def report(names=None, **changes):
    """Return a report of a deep net whose signals vanish, with two findings."""
    names = names or [f"Dense_{i}" for i in range(30)]
    first = Finding(
        "bad_initialization",
        "serious",
        "The kernels of 28 layers are too small, so the activations vanish.",
        f"The standard deviation falls from 0.91 in {names[0]} to 4.1e-05 in {names[-1]}; the gain of the kernels is "
        "0.71, and 1.41 keeps the scale under ReLU.",
        "Initialize with he_normal, or by init_from_data.auto.",
        layer=names[-1],
        outcome=outcome(),
    )
    second = Finding(
        "inputs_not_scaled",
        "warning",
        "The inputs are not standardized.",
        "They lie in [0, 255], with mean 127.1 and standard deviation 73.5.",
        "Subtract the mean and divide by the standard deviation.",
        outcome=outcome("inputs standardized", after=falling(2.3, 1.9), quality_after=0.31, learns=False),
    )
    third = Finding("bias_before_norm", "note", "A bias before a norm has no effect.", "1 layer", "use_bias=False")
    factors = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
    ends = (2.3, 2.1, 1.2, 0.4, 0.03, 1.7, NAN)
    values = {
        "verdict": "The model does not learn, because its activations vanish; with other initial weights it does.",
        "findings": (first, second, third),
        "facts": {
            "data": "1,000 examples, inputs f32 [784] in [0, 255], 10 classes (the commonest has 11 %)",
            "loss": "softmax cross entropy of logits; 2.303 at the start, log(10) = 2.303",
            "output": "10 logits, no activation",
            "plan": "sgd, rate 0.1, batches of 32, 10 epochs, 310 updates",
        },
        "rows": fading(names, 0.7),
        "after": fading(names, 0.99),
        "parameters": tuple(parameter(f"{name}/{leaf}") for name in names for leaf in ("kernel", "bias")),
        "planned": outcome("as planned", after=tuple([2.303] * 200), quality_after=0.1, learns=False),
        "cure": outcome("initial weights and scaled inputs"),
        "sweep": Sweep(
            factors,
            tuple(falling(2.3, 1.0 if e != e else e) for e in ends),
            (0.1, 0.2, 0.6, 0.9, 0.99, 0.4, 0.1),
            ends,
        ),
        "spectrum": tuple(float(v) for v in np.geomspace(3, 1e-6, 10)),
        "sharpness": 41.7,
        "notes": ("The gradient of shattering was not measured: no time.",),
    }
    return Report(**(values | changes))


def healthy():
    """Return a report without findings."""
    names = ["Conv_0", "Conv_1", "Dense_0"]
    return report(
        names,
        verdict="The model learns, and nothing was found.",
        findings=(),
        cure=None,
        planned=outcome("as planned", before=falling(2.3, 0.02), quality_before=0.97),
        after=fading(names, 1.1),
    )


def of_nothing():
    """Return a report in which nothing could be measured, or nothing is a number."""
    empty = outcome("", before=(), after=(), quality_before=NAN, quality_after=NAN, learns=False)
    return report(
        ["a", "b"],
        rows=(
            row("a", std=NAN, mean=NAN, gradient_rms=float("inf"), non_finite=1.0, rank=NAN, cosine=NAN),
            row("b", std=0.0, gradient_rms=0.0, gain=NAN, orthogonality=NAN, relative_rank=NAN),
        ),
        after=(),
        parameters=(ParameterRow("a/kernel", (), NAN, NAN, NAN, NAN, NAN, NAN, NAN),),
        planned=None,
        cure=empty,
        sweep=Sweep((1.0, 10.0), ((), (NAN, float("inf"))), (NAN, NAN), (NAN, float("inf"))),
        spectrum=(0.0, 0.0),
        sharpness=NAN,
        facts={},
        notes=(),
    )
