"""The table of layers, from the numbers that the taps have taken out."""

import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deepjax.doctor.follow import Follow, Layer, Place
from deepjax.doctor.statistics import effective_rank
from deepjax.doctor.taps import Key, Plan

NAN = float("nan")
KERNELS = ("kernel", "embedding")  # last words of paths that the layer's name leaves out


@dataclass(frozen=True)
class Row:
    """One call of one layer. z is its output, after the bias; a is what its activation returns, or z without one."""

    layer: str
    """Path as one word: "path[3]" for the step of a scan, "path (call 2)" for the second call."""
    kind: str
    """"embedding" for a look-up; else the class of the Linen module, or "dot" or "convolution"."""
    shape: tuple[int, ...]
    """Of the kernel."""
    activation: str
    """Name of the activation between this layer and the next one, or the model's output; "none" or "other"."""
    mean: float
    """Of z."""
    std: float
    """Of z, over all entries."""
    non_finite: float
    """Share of the entries of z that are infinite or no number."""
    zeros: float
    """Share of the entries of a that are 0."""
    saturated: float
    """Share of the entries of a tanh with |a| > 0.99, of a sigmoid with a < 0.01 or a > 0.99; 0 for others."""
    dead: float
    """Share of the features of a that are constant on the whole batch, at all positions."""
    rank: float
    """Effective rank of a as [examples x positions, features], centered, of at most about 256 rows."""
    relative_rank: float
    """Rank / min(number of these rows, features)."""
    cosine: float
    """Mean cosine between the a of two examples, all positions and features as one vector, not centered."""
    gradient_rms: float
    """Root mean square of the loss's gradient in z."""
    gradient_non_finite: float
    """Share of the entries of this gradient that are infinite or no number."""
    weight_rms: float
    """Of the kernel."""
    weight_gradient_rms: float
    """Of the kernel's gradient; for a kernel that several calls share, of their sum."""
    gain: float
    """Standard deviation of the kernel x sqrt(fan_in)."""
    symmetric: float
    """Share of the output features whose incoming weights are equal to those of another one."""
    orthogonality: float
    """|G / s - I| / |I| for the smaller Gram matrix G of the kernel, where s is the mean of its diagonal."""
    fan_in: int
    features: int
    bias: bool
    parameters: tuple[str, ...]
    """Paths of the kernel's parameters."""
    step: int | None
    """Of the scan that has a kernel for each step."""


def _main(leaves, arrays) -> list[int]:
    """Return those of a kernel's parameters that are the largest."""
    largest = max(arrays[leaf].size for leaf in leaves)
    return [leaf for leaf in sorted(leaves) if arrays[leaf].size == largest]


def layer_names(layers: Mapping[Place, Layer], paths, arrays) -> dict[Place, str]:
    """Return the name of each layer: the path of its kernel, without "/kernel"."""
    names = {}
    for place, layer in layers.items():
        found = [_without_kernel(paths[leaf]) for leaf in _main(layer.leaves, arrays)]
        parent = found[0].rpartition("/")[0] if len({name.rpartition("/")[0] for name in found}) == 1 else ""
        start = len(parent) + 1 if parent else 0
        names[place] = "/".join(filter(None, [parent, "+".join(name[start:] for name in found)]))
    return names


def _without_kernel(path):
    *parent, last = path.split("/")
    return "/".join(parent) if last in KERNELS and parent else path


def layer_rows(follow: Follow, plan: Plan, notes, backward, paths, kinds, arrays, gradient_rms) -> tuple[Row, ...]:
    """Return the rows in the order of execution.

    Args:
      follow, plan: what was found in the jaxpr.
      notes: {key: what was measured forward}.
      backward: {key: the gradients in the sinks}.
      paths: of the parameters.
      kinds: {path: class of the Linen module}.
      arrays: the parameters.
      gradient_rms: of each of them.
    """
    names, activations = layer_names(follow.layers, paths, arrays), _activation_rows(follow, plan, notes)
    rows, calls = [], defaultdict(int)
    for order, layer, steps in sorted(_layer_calls(follow, plan), key=lambda each: each[0]):
        z, kernel = Key("z", *layer.z), Key("kernel", layer.place)
        forward = select(plan, z, notes[z], steps)
        if forward is None:
            continue
        name, step = _numbered(names[layer.place], layer, arrays, calls)
        activation, units = _activation(layer, order, activations)
        main = _main(layer.leaves, arrays)
        weights = select(plan, kernel, notes[kernel] | {"sink": backward[kernel]}, steps) or {}
        shared = np.sqrt(np.mean(np.square(gradient_rms[main])))
        rows.append(
            Row(
                layer=name,
                kind=_kind(layer.product.kind, kinds.get(paths[main[0]].rpartition("/")[0])),
                shape=tuple(layer.product.shape),
                activation=activation,
                **_forward(forward),
                **_units(units or forward),
                **_backward(select(plan, z, {"sink": backward[z]}, steps) or {}),
                **_weights(weights, layer),
                weight_gradient_rms=float(weights["sink"][0, 0] if layer.varies else shared),
                fan_in=layer.product.fan_in,
                features=layer.product.features,
                bias=layer.bias,
                parameters=tuple(paths[leaf] for leaf in main),
                step=step,
            )
        )
    return tuple(rows)


def _kind(product, module):
    return product if product == "embedding" else module or product


def _layer_calls(follow, plan):
    """Return (order, layer, {scan: step}) for each call of each layer."""
    for layer in follow.layers.values():
        loops = [loop for loop in plan.loops(layer.place) if loop in layer.varies]
        for steps in itertools.product(*(range(plan.scans[loop]) for loop in loops)):
            chosen = dict(zip(loops, steps, strict=True))
            yield _order(plan, layer.z, chosen), layer, chosen


def _order(plan, at, steps) -> tuple[int, ...]:
    """Return what sorts by execution: the place, with the step behind each scan."""
    place, result = at
    order = []
    for i in range(1, len(place) + 1):
        order.append(place[i - 1])
        if place[:i] in plan.scans and i < len(place):
            order.append(steps.get(place[:i], 0))
    return (*order, result)


def select(plan, key, note, steps) -> dict[str, np.ndarray] | None:
    """Return the arrays of these steps, [calls, ...], where calls are those of all other scans that the key is in.

    None if nothing was computed there, because a branch was not taken.
    """
    loops = plan.loops(key.place)
    index = tuple(steps.get(loop, slice(None)) for loop in loops)
    rest = {}
    for name, array in note.items():
        chosen = np.asarray(array)[index]
        open_loops = sum(loop not in steps for loop in loops)
        rest[name] = chosen.reshape(-1, *chosen.shape[open_loops:])
    ran = rest.pop("ran", None)
    if ran is not None and not ran.all():
        rest = {name: array[ran > 0] for name, array in rest.items()}
        return rest if ran.any() else None
    return rest


def _numbered(name, layer, arrays, calls):
    """Return the name of the next call of a layer, and the step of its scan."""
    count, main = calls[name], _main(layer.leaves, arrays)
    calls[name] += 1
    step = None
    if layer.varies:
        sizes = sum(arrays[leaf].size for leaf in main)
        depth = max(1, sizes // max(1, int(np.prod(layer.product.shape))))
        count, step = divmod(count, depth)
        name = f"{name}[{step}]"
    return (f"{name} (call {count + 1})" if count else name), step


def _activation_rows(follow, plan, notes):
    """Return (order, site, its numbers) for each computation of each activation, in the order of execution."""
    rows = []
    for site in follow.sites.values():
        loops = [loop for loop in plan.loops(site.at[0]) if loop in plan.varying]
        for steps in itertools.product(*(range(plan.scans[loop]) for loop in loops)):
            chosen = dict(zip(loops, steps, strict=True))
            key = Key("a", *site.at)
            found = select(plan, key, notes[key], chosen)
            if found is not None:
                rows.append((_order(plan, site.at, chosen), site, found))
    return sorted(rows, key=lambda row: row[0])


def _activation(layer, order, activations):
    """Return (name, numbers or None) of the activation that follows the call of a layer.

    It is the first one that its output reaches without other data being added. A layer whose output enters the next
    layer as it is has none, and otherwise (after residual or recurrent sums) it is the first that its output reaches.
    """
    mine = [row for row in activations if layer.place in row[1].layers]
    mine = [row for row in mine if row[0] > order] or mine[:1]
    direct = [row for row in mine if row[1].layers[layer.place]]
    if not direct and layer.straight:
        return "none", None
    for row in direct or mine:
        last = next((r for r in mine if r[1].name == "softmax"), row) if row[1].name == "log_softmax" else row
        return last[1].name, last[2]
    return ("other" if layer.other else "none"), None


def _forward(found):
    std = np.sqrt(np.mean(np.square(found["std"].astype(float))) + np.var(found["mean"].astype(float)))
    mean, share = found["mean"].astype(float).mean(), found["non_finite"].mean()
    return {"mean": float(mean), "std": float(std), "non_finite": float(share)}


def _units(found):
    rows = found["rows"].reshape(-1, found["rows"].shape[-1])
    constant = found["low"].min(0) == found["high"].max(0)
    if len(rows) == 1:  # one row is constant anyway
        constant &= found["low"][0] == 0
    rank = effective_rank(rows)
    return {
        "zeros": float(found["zeros"].mean()),
        "saturated": float(found["saturated"].mean()),
        "dead": float(constant.mean()),
        "rank": rank,
        "relative_rank": rank / min(rows.shape),
        "cosine": float(found["cosine"].mean()),
    }


def _backward(found):
    sink = found["sink"].astype(float)
    return {
        "gradient_rms": float(np.sqrt(np.mean(np.square(sink[:, 0])))),
        "gradient_non_finite": float(sink[:, 1].mean()),
    }


def _weights(found, layer):
    hashes = found["weight_hash"][0]
    _, counts = np.unique(hashes, return_counts=True)
    return {
        "weight_rms": float(found["weight_rms"][0]),
        "gain": float(found["weight_std"][0] * np.sqrt(layer.product.fan_in)),
        "symmetric": float(counts[counts > 1].sum() / len(hashes)),
        "orthogonality": float(found["orthogonality"][0]),
    }
