"""The coordinate check: do activations and their updates keep their scale when a network gets wider or deeper?

In muP (Yang et al. 2022, "Tensor Programs V", appendix D.1), the mean absolute activation at initialization, and its
mean absolute change after a few updates, do not depend on the width. Then neither does the best learning rate. The same
holds in depth, if every residual branch is scaled by 1 / sqrt(depth) (Yang et al. 2023, "Tensor Programs VI"; Bordelon
et al. 2023).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax.doctor.outputs import module_outputs
from deepjax.doctor.subject import subject
from deepjax.errors import InputError
from deepjax.trace.observe import jit_once

# In the limit, scales are powers of the width. Their exponents are multiples of 1/2 for the standard, NTK, mean field
# and muP parametrizations (Yang & Hu 2021, table 1), and in depth if branches have no factor. The middle between the
# exponents 0 and 1/2 decides.
TOLERANCE = 0.25
OUTPUT = "output"  # name of the layer that is the whole model
REMEDY = {
    "width": "in muP with Adam, divide the learning rate of hidden layers by the width, start the weights of the "
    "output with variance 1, and divide the output by the width (Yang et al. 2022, table 8)",
    "depth": "multiply each residual branch by 1 / sqrt(depth), or normalize; without residual connections, initialize "
    "by He's rule or orthogonally",
}


@dataclass(frozen=True)
class Slope:
    """The exponent of a scale as a power of the size, fitted by least squares on logarithms."""

    value: float
    """Mean over seeds; infinite if a scale is not finite at some size."""
    error: float
    """Standard error of that mean; NaN for a single seed."""

    @property
    def word(self) -> str:
        """ "stable", "grows", "shrinks", or "unclear": outside of TOLERANCE, but by less than two standard errors."""
        if not abs(self.value) > TOLERANCE:
            return "stable"
        if abs(self.value) - 2 * self.error <= TOLERANCE:  # never true if the error is NaN
            return "unclear"
        return "grows" if self.value > 0 else "shrinks"

    def __str__(self):
        return f"{self.value:+.2f}" + ("" if math.isnan(self.error) else f" ± {self.error:.2f}")


@dataclass(frozen=True)
class Row:
    """One layer at all sizes. Scales are means over units, examples and seeds."""

    layer: str
    activation: tuple[float, ...]
    """Mean absolute activation at initialization, by size."""
    change: tuple[float, ...]
    """Mean absolute change of the activation after the updates, by size."""
    activation_slope: Slope
    change_slope: Slope

    @property
    def stable(self) -> bool:
        """Whether no scale is lost. An output may shrink at initialization, as it does in muP."""
        start, change = self.activation_slope.word, self.change_slope.word
        return start != "grows" and (start != "shrinks" or self.layer == OUTPUT) and change in ("stable", "unclear")


@dataclass(frozen=True)
class Coordinates:
    """The result of a coordinate check."""

    axis: str
    """"width" or "depth"."""
    sizes: tuple[int, ...]
    steps: int
    seeds: int
    rows: tuple[Row, ...]
    """Layers that all sizes have, in the order of the forward pass."""

    @property
    def stable(self) -> bool:
        """Whether all layers keep their scales."""
        return all(row.stable for row in self.rows)

    @property
    def verdict(self) -> str:
        """One line: what keeps its scale, what does not, and the remedy."""
        unclear = [row.layer for row in self.rows if any(slope.word == "unclear" for _, slope in _slopes(row))]
        if self.stable and unclear:
            return (
                f"unclear in {self.axis}: no slope is outside of ±{TOLERANCE:g} by two standard errors, but those of "
                f"{', '.join(unclear)} may be; use more seeds"
            )
        if self.stable:
            return f"stable in {self.axis}: all slopes are within {TOLERANCE:g} of 0"
        rows = [row for row in self.rows if not row.stable]
        slopes = [(row, *one) for row in rows for one in _slopes(row) if one[1].word != "unclear"]
        row, what, slope = max(slopes, key=lambda one: abs(one[2].value))
        return (
            f"not stable in {self.axis}: {len(rows)} of {len(self.rows)} layers; the {what} of {row.layer} "
            f"{slope.word} like {self.axis}^{slope} (tolerance {TOLERANCE:g}); {REMEDY[self.axis]}"
        )

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return (header, rows of text): of each layer the activations and changes, their slopes, and a verdict."""
        names = [f"{kind} {size}" for kind in ("|a|", "|change|") for size in self.sizes]
        half = len(self.sizes)
        header = ("layer", *names[:half], "slope", *names[half:], "slope", "")
        return header, [
            (
                row.layer,
                *(f"{value:.3g}" for value in row.activation),
                str(row.activation_slope),
                *(f"{value:.3g}" for value in row.change),
                str(row.change_slope),
                "stable" if row.stable else ", ".join(f"{what} {slope.word}" for what, slope in _slopes(row)),
            )
            for row in self.rows
        ]


def _slopes(row):
    """Return the slopes of a row that are not stable, with what they are of."""
    both = (("activation", row.activation_slope), ("change", row.change_slope))
    return [(what, slope) for what, slope in both if slope.word != "stable"]


def coordinate_check(
    make: Callable,
    sizes: Sequence[int],
    batch,
    loss: Callable,
    *,
    optimizer: "optax.GradientTransformation | Callable",
    axis: str = "width",
    steps: int = 4,
    seeds: int = 3,
) -> Coordinates:
    """Train a model for a few updates at several sizes, and fit how its activations and their changes scale.

    Args:
      make: function of a size -> a Linen module. Modules of other kinds have the output as their only layer.
      sizes: at least two widths or depths.
      batch: (inputs, targets), pytrees of arrays [examples, ...]. Every update is made on all of them.
      loss: function (predictions, targets) -> scalar.
      optimizer: an Optax transformation, or a function of a size -> an Optax transformation.
      axis: "width" or "depth". Layers of networks of several depths are matched by their paths without numbers; the
        last of those with one such path counts.
      steps: updates.
      seeds: initializations over which the scales are averaged.

    Raises:
      InputError: an argument cannot work, or the model, the data and the loss do not fit each other.
    """
    check_sizes(axis, sizes, steps, seeds)

    def measure(size):
        chain = optimizer if isinstance(optimizer, optax.GradientTransformation) else optimizer(size)
        made = subject(make(size), batch, loss, optimizer=chain)
        return _measured(made, steps, seeds)

    return summarize(axis, sizes, steps, [measure(size) for size in sizes])


def check_sizes(axis, sizes, steps, seeds):
    """Raise InputError for arguments of a coordinate check that cannot work."""
    if axis not in REMEDY:
        raise InputError(f"axis {axis!r} must be width or depth")
    if len(set(sizes)) < 2 or min(sizes) < 1:
        raise InputError(f"{axis}s {list(sizes)} must be at least two different numbers above 0")
    if steps < 1 or seeds < 1:
        raise InputError(f"steps {steps} and seeds {seeds} must be at least 1")


def _measured(made, steps, seeds):
    """Return [{layer: (activation, change)}] of each seed."""
    x, y = made.rows(slice(None))

    @jit_once
    def step(variables, state, key):
        def loss_of(params):
            value, (_, collections) = made.value(variables | {"params": params}, x, y, key)
            return value, collections

        gradients, collections = jax.grad(loss_of, has_aux=True)(variables["params"])
        updates, state = made.optimizer.update(gradients, state, variables["params"])
        return variables | collections | {"params": optax.apply_updates(variables["params"], updates)}, state

    def forward(variables):
        return made.apply(variables, x, True, jax.random.key(0))[0]

    init, compare, found = jit_once(made.init), comparison(forward), []
    for seed in range(seeds):
        key = jax.random.key(seed)
        before = after = init(key)
        state = made.optimizer.init(before["params"])
        for number in range(steps):
            after, state = step(after, state, jax.random.fold_in(key, number))
        found.append(compare(before, after))
    return found


def comparison(forward: Callable) -> Callable[[Any, Any], dict[str, tuple[float, float]]]:
    """Return a compiled function (variables before, variables after) -> {layer: (mean |activation|, mean |change|)}.

    The activation is the one before. Layers are in the order of the forward pass. The last layer is the output, after
    everything that follows the last module.

    Args:
      forward: function variables -> predictions.
    """
    names = []

    def compare(before, after):
        old, new = _outputs(forward, before), _outputs(forward, after)
        names[:] = old  # the order, which is lost in the results of a jitted function
        return [(jnp.abs(old[name]).mean(), jnp.abs(new[name] - old[name]).mean()) for name in names]

    compiled = jit_once(compare)

    def run(before, after):
        pairs = jax.device_get(compiled(before, after))
        return {name: (float(a), float(b)) for name, (a, b) in zip(names, pairs, strict=True)}

    return run


def _outputs(forward, variables):
    found = module_outputs(forward, variables)
    leaves = [path for path in found if not any(path == other[: len(path)] and path != other for other in found)]
    last = leaves[-1] if leaves else ()  # what it computes is the output, but for a multiplier behind it
    found = {"/".join(path): y for path, y in found.items() if path != last[: len(path)]}
    found[OUTPUT] = jax.tree.leaves(forward(variables))[0]  # of a tuple with auxiliary heads, the first
    return {name: y.astype(jnp.float32) for name, y in found.items() if jnp.issubdtype(y.dtype, jnp.floating)}


def summarize(axis, sizes, steps, measured) -> Coordinates:
    """Return the Coordinates of what `comparison` gives: a list by size of lists by seed."""
    if axis == "depth":  # layers are unit1, unit2, ...: the last of each kind
        measured = [[_last_of_each_kind(one) for one in found] for found in measured]
    common = [name for name in measured[0][0] if all(name in found[0] for found in measured)]
    rows = []
    for name in common:
        numbers = np.array([[one[name] for one in found] for found in measured], np.float64)  # [size, seed, 2]
        means = np.moveaxis(numbers.mean(1), -1, 0)
        slopes = [_slope(sizes, numbers[:, :, i]) for i in range(2)]
        activation, change = (tuple(map(float, values)) for values in means)
        # A block whose output is that of its last layer is left out.
        if name == OUTPUT or not rows or (rows[-1].activation, rows[-1].change) != (activation, change):
            rows.append(Row(name, activation, change, *slopes))
    return Coordinates(axis, tuple(sizes), steps, len(measured[0]), tuple(rows))


def _last_of_each_kind(found):
    kinds: dict[str, str] = {}
    for name in found:
        kind = "".join(letter for letter in name if not letter.isdigit())
        kinds.pop(kind, None)
        kinds[kind] = name
    return {kind: found[name] for kind, name in kinds.items()}


def _slope(sizes, values):
    """Return the Slope of values [size, seed]."""
    if not np.isfinite(values).all():
        return Slope(math.inf, math.nan)
    x = np.log(sizes) - np.log(sizes).mean()
    with np.errstate(divide="ignore"):
        y = np.log(values)
    if not np.isfinite(y).all():  # zeros: an output that is initialized to 0 has no slope
        return Slope(0.0 if np.isneginf(y).all() else -math.inf, math.nan)
    slopes = x @ y / (x @ x)
    error = slopes.std(ddof=1) / math.sqrt(len(slopes)) if len(slopes) > 1 else math.nan
    return Slope(float(slopes.mean()), float(error))
