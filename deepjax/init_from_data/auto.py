"""Initialize a network of any depth so that it can be trained: measure, apply a remedy, measure again."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from deepjax.errors import InputError
from deepjax.init_from_data.branch_ends import branch_ends, scaled_ends
from deepjax.init_from_data.calibrate import MIN_VARIATION, Change, Rules, calibrate, settable_layers
from deepjax.init_from_data.gradients import squared_gradients
from deepjax.init_from_data.looks_linear import at_center, mirrored
from deepjax.init_from_data.lsuv import lsuv, measure_output, orthonormal, pooled, to_variance
from deepjax.trace import find_shared, observer
from deepjax.trace.observe import jit_once, variance

REMEDIES = {
    "none": "the model's own initialization preserves signal and gradient",
    "lsuv": "orthonormal kernels, each scaled so that its outputs have variance 1",
    "quiet_branches": "LSUV, with residual branches that together add half of the signal's variance",
    "mirrored": "orthonormal kernels in pairs w, -w, for which ReLU-like activations cancel to a linear map",
    "quiet": "orthonormal kernels and a signal so small that the activations act as linear functions",
}


class Choice(NamedTuple):
    """The result of `auto`. A spread is the largest value divided by the smallest, among layers of one kernel shape."""

    remedy: str  # a key of REMEDIES
    signal: float  # spread of the variances of layers' outputs
    gradient: float  # spread of the norms of the gradients at the layers' outputs
    tried: dict[str, tuple[float, float]]  # remedy -> (signal, gradient), in the order of trying
    within: float  # the limit of both spreads

    @property
    def holds(self) -> bool:
        """Return whether both spreads are within the limit."""
        return bool(max(self.signal, self.gradient) <= self.within)

    def __str__(self):
        tried = [f"{name}: signal x{a:.3g}, gradient x{b:.3g}" for name, (a, b) in self.tried.items()]
        end = "" if self.holds else f"; no remedy reaches a factor of {self.within:g}; this one comes closest"
        return f"{self.remedy} ({REMEDIES[self.remedy]}). Spread among layers of one shape: {'; '.join(tried)}{end}"


def auto(model, key, x, *, within=2.0, report=None, **call):
    """Initialize a model of any depth so that signal and gradient have the same size at its first and last layers.

    Two numbers are measured at every layer: the variance of the layer's output, and the norm of the gradient that
    arrives there. The gradient is that of the layer's kernel, divided by the root mean square of the layer's input, for
    a random linear function of the model's outputs. The model's own initialization is measured first. If layers differ
    by more than the factor `within`, the remedies of `REMEDIES` are tried and measured in turn. The first remedy that
    stays within the factor is taken. If there is none, the remedy that comes closest is taken.

    `auto` compares only layers with the same kernel shape, because different shapes legitimately have different scales.
    Each unit of a scan counts as a layer. Layers that end a residual branch are compared with each other only. A layer
    whose gradient is exactly zero is left out: it is closed by a parameter that starts at zero (`units.SkipInit`).

    "quiet_branches" is tried on networks that add branches to a shortcut (Zhang et al. 2019, "Fixup initialization",
    scale theirs in the same way). "mirrored" (Balduzzi et al. 2017, section 4) and "quiet" (for tanh, the regime of
    Xiao et al. 2018) are tried on all other networks.

    Args:
      model, key, x, **call: as for `lsuv`.
      within: the factor, above 1.
      report: function called with the `Choice`; str(choice) describes it in one line.

    Returns:
      The model's variables, with the structure of `model.init`'s.

    Raises:
      InputError: the model has no layer with a kernel, `within` is not above 1, or with every remedy some layer's
        output is constant or not finite.

    >>> import flax.linen as nn, jax
    >>> from deepjax.units import stack
    >>> class Layer(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, *, train, mask=None):
    ...         return nn.relu(nn.Dense(x.shape[-1])(x))
    >>> choices, x = [], jax.random.normal(jax.random.key(0), (8, 16))
    >>> variables = auto(stack(Layer(), 200), jax.random.key(1), x, train=True, report=choices.append)
    >>> choices[0].remedy, choices[0].holds
    ('mirrored', True)
    """
    if not within > 1:
        raise InputError(f"auto: within {within} must be above 1")
    layers = settable_layers(model, key, x, call)
    shared = find_shared(model, key, x, call, layers)
    start = jit_once(lambda key, x: model.init(key, x, **call))(key, x)
    ends = branch_ends(model, start, key, x, call)
    measure = _spread_measurer(model, call, layers, shared, ends)
    results, tried = {}, {}
    for name, remedy in _remedies(model, call, layers, shared, ends, start).items():
        results[name] = start if remedy is None else remedy(start, key, x)
        tried[name] = measure(results[name], key, x)
        if max(tried[name]) <= within:
            break
    best = min(tried, key=lambda name: max(tried[name]))
    if not np.isfinite(max(tried[best])):
        raise InputError(
            f"auto: with every remedy ({', '.join(tried)}) some layer's output or gradient is constant or not finite; "
            f"check x, and the model's activations"
        )
    if report is not None:
        signal, gradient = tried[best]
        report(Choice(best, signal, gradient, tried, within))
    return results[best]


def _remedies(model, call, layers, shared, ends, start):
    """Return {name: (start, key, x) -> variables} of the remedies that apply to this model, cheapest first."""
    if shared:  # only `lsuv` can set kernels that the steps of a scan share
        return {"none": None, "lsuv": lambda start, key, x: lsuv(model, key, x, **call)}
    calibrated = partial(_calibrated, model, call, layers)
    one = {layer.path: 1.0 for layer in layers}
    remedies: dict[str, Any] = {"none": None, "lsuv": partial(calibrated, one, orthonormal)}
    if ends:
        share = 0.5 / sum(ends.values())

        def quiet_branches(start, key, x):
            targets = one | dict.fromkeys(ends, share)
            return calibrated(targets, orthonormal, scaled_ends(start, ends, share**0.5), key, x)

        return remedies | {"quiet_branches": quiet_branches}

    params: Any = flatten_dict(start["params"])
    units = {layer.path: params[(*layer.path, "kernel")].size // math.prod(layer.shape) for layer in layers}
    last = layers[-1].path if units[layers[-1].path] == 1 else None  # the logits: a layer outside of the comparison

    def mirror(layer, module, x):
        return mirrored(layer, module, x, is_last=layer.path == last)

    low = dict.fromkeys(one, 1 / (8 * sum(units.values()))) | ({last: 1.0} if last else {})

    def central(layer, module, _):
        return at_center(layer, module.make_rng("params"), 1)

    quiet = partial(calibrated, low, central, center=True)
    return remedies | {"mirrored": partial(calibrated, one, mirror), "quiet": quiet}


def _calibrated(model, call, layers, targets, draw, start, key, x, *, center=False):
    """Return `start` with new kernels, scaled layer after layer so that outputs have the variances `targets`."""

    def change(layer, z, bias):
        if not center or bias is None:
            return to_variance(targets[layer.path], layer, z, bias)
        mean = z.mean(tuple(range(z.ndim - len(layer.outputs))), keepdims=True)
        scale = jnp.sqrt(targets[layer.path] / variance(z - mean))
        return Change(scale, -scale * mean.reshape(bias.shape))

    def run(start, key, x):
        return calibrate(model, start, key, x, call, layers, Rules(change, draw))[0]["params"]

    return {**start, "params": jit_once(run)(start, key, x)}


def _spread_measurer(model, call, layers, shared, ends):
    """Return a function (variables, key, x) -> spreads (signal, gradient); both are infinite if a layer is dead."""
    observe = observer(model, layers, measure_output, call, shared=shared)
    gradient = jit_once(lambda v, key, x: squared_gradients(model, v, key, x, call, layers))

    def measure(variables, key, x):
        notes = pooled(observe(variables, key, x), shared)
        squares = jax.device_get(gradient(variables, key, x))
        alive = all(np.all(note["variation"] > MIN_VARIATION) for note in notes.values())
        with np.errstate(all="ignore"):  # a signal that overflows or vanishes has an infinite spread
            signal = _spread(layers, ends, {path: note["variance"] for path, note in notes.items()})
            arriving = {path: square / notes[path]["input"] for path, square in squares.items()}
            spreads = signal, _spread(layers, ends, arriving) ** 0.5
        return spreads if alive else (np.inf, np.inf)

    return measure


def _spread(layers, ends, values):
    """Return the largest ratio of nonzero values among layers of one kernel shape; infinite if one is not finite."""
    groups = {}
    for layer in layers:
        group = groups.setdefault((layer.shape, layer.path in ends), [])
        group.append(np.ravel(values[layer.path]).astype(np.float64))
    spread = 1.0
    for group in (np.concatenate(group) for group in groups.values()):
        nonzero = group[group != 0]
        if not np.isfinite(group).all():
            return np.inf
        if nonzero.size:
            spread = max(spread, nonzero.max() / nonzero.min())
    return spread
