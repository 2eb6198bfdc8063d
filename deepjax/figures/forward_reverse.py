"""Forward and reverse mode: the cost of a Jacobian, in operations of the compiled program."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from deepjax.figures.experiment import Claim
from deepjax.runs.plots import new_figure

TITLE = "Operations of a Jacobian by forward and by reverse mode"
SOURCE = "Deep learning: automatic differentiation, forward mode, reverse mode"
USES = ("full",)
HIDDEN, DEPTH = 64, 4


@dataclass(frozen=True)
class Numbers:
    """Networks of n inputs and m outputs: operations of a Jacobian as a multiple of those of the function."""

    sizes: tuple[int, ...]
    forward: dict[str, tuple[float, ...]]  # by kind ("n inputs, 1 output", "1 input, m outputs"), for each of sizes
    reverse: dict[str, tuple[float, ...]]


KINDS = {"n inputs, 1 output": lambda n: (n, 1), "1 input, n outputs": lambda n: (1, n)}


def numbers(settings):
    """Return Numbers. Nothing is random: operations depend on shapes alone. `full` has larger networks."""
    sizes = tuple(2**i for i in range(0, 10 if settings.full else 8))
    costs = {kind: [costs_of(*shape(n)) for n in sizes] for kind, shape in KINDS.items()}
    forward, reverse = ({kind: tuple(c[i] / c[0] for c in each) for kind, each in costs.items()} for i in (1, 2))
    return Numbers(sizes, forward, reverse)


def network(kernels, x):
    """Return a network of sigmoid layers at one example, x [n] -> [m]."""
    for kernel in kernels:
        x = jax.nn.sigmoid(x @ kernel)
    return x


def costs_of(inputs, outputs):
    """Return the operations of the function, of its Jacobian by forward mode and of that by reverse mode.

    Forward mode pushes one tangent for each input, reverse mode pulls one cotangent for each output.
    """
    widths = (inputs, *(HIDDEN,) * (DEPTH - 1), outputs)
    kernels = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in pairwise(widths)]
    x = jax.ShapeDtypeStruct((inputs,), jnp.float32)
    return tuple(operations(f, kernels, x) for f in (network, jax.jacfwd(network, 1), jax.jacrev(network, 1)))


def operations(function, *shapes) -> float:
    """Return the floating-point operations of the compiled function, by XLA's cost analysis."""
    analysis: Any = jax.jit(function).lower(*shapes).compile().cost_analysis()
    return float(analysis["flops"])


def table(numbers):
    """Return the multiples by size."""
    header = ("n", *(f"{mode}, {kind}" for kind in KINDS for mode in ("forward", "reverse")))
    modes = (numbers.forward, numbers.reverse)
    rows = [(n, *(f"{mode[kind][i]:.2f}" for kind in KINDS for mode in modes)) for i, n in enumerate(numbers.sizes)]
    return header, rows


def claim(numbers):
    """Return whether forward mode is as expensive as inputs are many, and reverse mode as outputs are."""
    many_inputs, many_outputs = KINDS
    grown = numbers.forward[many_inputs][-1], numbers.reverse[many_outputs][-1]
    cheap = max(numbers.reverse[many_inputs]), max(numbers.forward[many_outputs])
    n = numbers.sizes[-1]
    text = (
        f"for {n} inputs and one output, forward mode takes {grown[0]:.0f} times the operations of the function (at "
        f"least {n / 2:.0f}), reverse mode at most {cheap[0]:.1f} times for any n (4); for one input and {n} outputs, "
        f"reverse mode {grown[1]:.0f} times (at least {n / 2:.0f}), forward mode at most {cheap[1]:.1f} times (4)"
    )
    return Claim(text, min(grown) >= n / 2 and max(cheap) <= 4)


def draw(numbers):
    """Return the multiples over n, for many inputs and for many outputs."""
    figure = new_figure(10, 4)
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), KINDS):
        axes.plot(numbers.sizes, numbers.forward[kind], "o-", label="forward mode")
        axes.plot(numbers.sizes, numbers.reverse[kind], "s--", label="reverse mode")
        axes.set(xlabel="n", xscale="log", yscale="log")
        axes.set_title(kind, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_ylabel("operations of the Jacobian / of the function")
    return figure
