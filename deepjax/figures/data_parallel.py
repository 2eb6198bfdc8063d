"""A batch that is split over devices: what each of them gets, and that the gradient stays the same."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import numpy as np

from deepjax.figures.experiment import Claim
from deepjax.runs.plots import new_figure
from deepjax.training.data_parallel import data_parallel

TITLE = "Shapes on each device of a batch of 50 examples, and the gradient of the parameters"
SOURCE = "Going deeper: DataParallel"
USES = ()
BATCH, FEATURES_IN, FEATURES_OUT = 50, 10, 5  # the lecture's
COUNTS = (1, 2, 5)  # of devices, as far as the machine has them
EQUAL = 1e-5


@dataclass(frozen=True)
class Numbers:
    """What one dense layer gets and computes, by the number of devices."""

    shapes: dict[int, tuple[tuple[int, ...], ...]]  # of the input, by device, in the forward pass
    output: dict[int, tuple[int, ...]]  # of the joined output
    difference: dict[int, float]  # from the gradient of the whole batch, relative to its largest entry


def numbers(settings):
    """Return Numbers. The seed draws the batch and the layer."""
    layer = nn.Dense(FEATURES_OUT)
    one, other = jax.random.split(jax.random.key(settings.seed))
    x = jax.random.normal(one, (BATCH, FEATURES_IN))
    variables = layer.init(other, x)

    def loss(variables, call):
        return (call(variables, x) ** 2).mean()

    whole = jax.grad(loss)(variables, layer.apply)
    largest = max(abs(leaf).max() for leaf in jax.tree.leaves(whole))
    shapes, output, difference = {}, {}, {}
    for devices in [count for count in COUNTS if count <= jax.local_device_count()]:
        seen = []
        seeing = data_parallel(layer.apply, devices=devices, see=lambda *found, to=seen: to.append(found))
        output[devices] = seeing(variables, x).shape
        jax.effects_barrier()
        shapes[devices] = tuple(shape for _, shape in sorted(seen))
        split = data_parallel(layer.apply, devices=devices)
        gradient = jax.grad(loss)(variables, split)
        apart = jax.tree.map(lambda a, b: float(abs(np.asarray(a) - np.asarray(b)).max()), gradient, whole)
        difference[devices] = max(jax.tree.leaves(apart)) / float(largest)
    return Numbers(shapes, output, difference)


def table(numbers):
    """Return a row for each number of devices."""
    header = ("devices", "each gets", "joined output", "difference of the gradient")
    rows = [
        (str(devices), ", ".join(map(str, shapes)), str(numbers.output[devices]), f"{numbers.difference[devices]:.0e}")
        for devices, shapes in numbers.shapes.items()
    ]
    return header, rows


def claim(numbers):
    """Return whether devices get equal shares, and the gradient is that of the whole batch."""
    most, difference = max(numbers.shapes), max(numbers.difference.values())
    shares = all(set(s) == {(BATCH // n, FEATURES_IN)} and len(s) == n for n, s in numbers.shapes.items())
    joined = all(shape == (BATCH, FEATURES_OUT) for shape in numbers.output.values())
    text = (
        f"each of up to {most} devices gets an equal share of the rows; the joined gradient differs from that of the "
        f"whole batch by {difference:.0e} of its largest entry (at most {EQUAL:.0e})"
    )
    if most == 1:
        text += "; set XLA_FLAGS=--xla_force_host_platform_device_count=5 for more devices on a CPU"
    return Claim(text, shares and joined and difference <= EQUAL)


def draw(numbers):
    """Return the rows of each device, stacked in the order of the batch."""
    figure = new_figure(5, 4)
    axes = figure.subplots()
    for place, shapes in enumerate(numbers.shapes.values()):
        first = 0
        for device, (rows, _) in enumerate(shapes):
            axes.bar(place, rows, bottom=first, color=f"C{device}", alpha=0.45, edgecolor="white")  # light, under text
            axes.annotate(f"device {device}: {rows}", (place, first + rows / 2), ha="center", va="center")
            first += rows
    axes.set_xticks(range(len(numbers.shapes)), [f"{n} device{'s' * (n > 1)}" for n in numbers.shapes])
    axes.set(ylabel="rows of the batch", ylim=(BATCH, 0))
    return figure
