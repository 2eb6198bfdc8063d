"""One call that makes a net of any depth trainable: measure, pick a remedy, measure again."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from deepjax.errors import InputError
from deepjax.init_from_data import walk
from deepjax.init_from_data.branch_ends import branch_ends, scaled_ends
from deepjax.init_from_data.looks_linear import at_centre, mirrored
from deepjax.init_from_data.lsuv import Pooled, keep, lsuv, orthonormal, to_variance
from deepjax.init_from_data.measure import squared_gradients
from deepjax.init_from_data.walk import Change

REMEDIES = {
    "none": "the model's own initialization keeps signal and gradient",
    "lsuv": "orthonormal kernels, each scaled so that its outputs have variance 1",
    "quiet_branches": "LSUV, and residual branches that together add half of the signal's variance",
    "mirrored": "orthonormal kernels in pairs w, -w, between which the bends of ReLU-like activations cancel",
    "quiet": "orthonormal kernels and a signal so small that the activations act as linear",
}


class Choice(NamedTuple):
    """What `auto` found. A spread is the largest value over the least, among layers of one shape."""

    remedy: str  # a key of REMEDIES
    signal: float  # spread of the variances of layers' outputs
    gradient: float  # spread of the norms of the gradients that arrive at the layers
    tried: dict[str, tuple[float, float]]  # remedy -> (signal, gradient), in the order of trying
    within: float  # what both should stay below

    @property
    def holds(self):
        """Whether both stay within the factor asked for."""
        return bool(max(self.signal, self.gradient) <= self.within)

    def __str__(self):
        tried = [f"{name}: signal x{a:.3g}, gradient x{b:.3g}" for name, (a, b) in self.tried.items()]
        end = "" if self.holds else f"; none stays within a factor of {self.within:g}, this one comes closest"
        return f"{self.remedy} ({REMEDIES[self.remedy]}). Among layers of one shape, {'; '.join(tried)}{end}"


def auto(model, key, x, *, within=2.0, report=None, **call):
    """Variables by which signal and gradient stay alike from the first layer to the last, at any depth.

    Measured are the variance of what each layer puts out, and the norm of the gradient that arrives there: that of its
    kernel, over the root mean square of its input, for a random linear function of the model's outputs. First for the
    model's own initialization. Where layers of one shape differ by more than the factor `within`, remedies are tried,
    and measured, one after the other: those of `REMEDIES`. The first that holds is taken; where none does, the one that
    comes closest.

    Layers of one shape are compared, units of a scan among them, and the ends of residual branches apart. A layer whose
    gradient is exactly zero is closed by a parameter that starts at zero (`units.SkipInit`), and is left out.
    "quiet_branches" is tried on networks that add branches to a skip (as Zhang et al. 2019, Fixup, scale theirs),
    "mirrored" (Balduzzi et al. 2017, section 4) and "quiet" (with tanh, the regime of Xiao et al. 2018) on the others.

    Args:
      model, key, x, **call: as for `lsuv`.
      within: the factor, above 1.
      report: called with the `Choice`; str(choice) says it in a sentence.

    Returns:
      The variables.

    Raises:
      InputError: no layer with a kernel, within not above 1, or a layer whose output is constant or not finite by
        every remedy.

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
    found = walk.find_layers(model, key, x, call)
    shared = walk.find_shared(model, key, x, call, found)
    start = walk.compiled(lambda key, x: model.init(key, x, **call))(key, x)
    ends = branch_ends(model, start, key, x, call)
    measure = _measurer(model, call, found, shared, ends)
    results, tried = {}, {}
    for name, remedy in _remedies(model, call, found, shared, ends, start).items():
        results[name] = start if remedy is None else remedy(start, key, x)
        tried[name] = measure(results[name], key, x)
        if max(tried[name]) <= within:
            break
    best = min(tried, key=lambda name: max(tried[name]))
    if not np.isfinite(max(tried[best])):
        raise InputError(
            f"auto: by every remedy ({', '.join(tried)}) some layer's output or gradient is constant or not finite; "
            f"check x, and the model's activations"
        )
    if report is not None:
        signal, gradient = tried[best]
        report(Choice(best, signal, gradient, tried, within))
    return results[best]


def _remedies(model, call, found, shared, ends, start):
    """{name: (start, key, x) -> variables} of those that this model can have, cheapest first."""
    if shared:  # kernels that steps of a scan share cannot be set inside of the pass; `lsuv` goes about them in steps
        return {"none": None, "lsuv": lambda start, key, x: lsuv(model, key, x, **call)}
    settled = partial(_settled, model, call, found)
    one = {layer.path: 1.0 for layer in found}
    remedies: dict[str, Any] = {"none": None, "lsuv": partial(settled, one, orthonormal)}
    if ends:
        share = 0.5 / sum(ends.values())

        def quiet_branches(start, key, x):
            return settled(one | dict.fromkeys(ends, share), orthonormal, scaled_ends(start, ends, share**0.5), key, x)

        return remedies | {"quiet_branches": quiet_branches}

    params: Any = flatten_dict(start["params"])
    units = {layer.path: params[(*layer.path, "kernel")].size // math.prod(layer.shape) for layer in found}
    last = found[-1].path if units[found[-1].path] == 1 else None  # the logits: a layer apart

    def mirror(layer, module, x):
        return mirrored(layer, module, x, is_last=layer.path == last)

    low = dict.fromkeys(one, 1 / (8 * sum(units.values()))) | ({last: 1.0} if last else {})

    def centred(layer, module, _):
        return at_centre(layer, module.make_rng("params"), 1)

    quiet = partial(settled, low, centred, centre=True)
    return remedies | {"mirrored": partial(settled, one, mirror), "quiet": quiet}


def _settled(model, call, found, targets, kernel, start, key, x, *, centre=False):
    """`start` with new kernels, scaled layer after layer so that outputs have the variances `targets`."""

    def change(layer, z, bias):
        if not centre or bias is None:
            return to_variance(targets[layer.path], layer, z, bias)
        mean = z.mean(tuple(range(z.ndim - len(layer.outputs))), keepdims=True)
        scale = jnp.sqrt(targets[layer.path] / walk.variance(z - mean))
        return Change(scale, -scale * mean.reshape(bias.shape))

    def run(start, key, x):
        return walk.settle(model, start, key, x, call, found, change, start=kernel)[0]["params"]

    return {**start, "params": walk.compiled(run)(start, key, x)}


def _measurer(model, call, found, shared, ends):
    """(variables, key, x) -> spreads (signal, gradient) among layers of one shape; infinite where a layer is dead."""
    pooled = Pooled(shared)
    same = {path: pooled.noting() for path in shared}
    signal = walk.compiled(lambda v, key, x: walk.settle(model, v, key, x, call, found, keep, shared=same))
    gradient = walk.compiled(lambda v, key, x: squared_gradients(model, v, key, x, call, found))

    def measure(variables, key, x):
        notes = pooled.after(signal, variables, key, x)[1]
        squares = jax.device_get(gradient(variables, key, x))
        alive = all(np.all(note["varies"] > 1e-10) for note in notes.values())
        variances = {path: note["reached"] for path, note in notes.items()}
        with np.errstate(all="ignore"):  # a signal that overflows, or dies, has an infinite spread
            arriving = {path: square / notes[path].get("input", 1.0) for path, square in squares.items()}
            spreads = _spread(found, ends, variances), _spread(found, ends, arriving) ** 0.5
        return spreads if alive else (np.inf, np.inf)

    return measure


def _spread(found, ends, values):
    groups = {}
    for layer in found:
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
