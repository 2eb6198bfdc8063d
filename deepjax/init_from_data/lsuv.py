"""Layer-sequential unit variance: Mishkin & Matas 2016, "All you need is a good init" (arXiv 1511.06422)."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.errors import InputError, choices
from deepjax.init_from_data import walk
from deepjax.init_from_data.walk import Change


def lsuv(model, key, x, *, tolerance=0.1, max_iterations=10, method="one_pass", variance=1.0, report=None, **call):
    """Variables of any Linen model in which the output of every Dense and Conv has one variance, 1 by default.

    Every kernel starts orthonormal (Saxe et al. 2014; of a convolution, the matrix of its patches; of groups, each one)
    and is divided by the standard deviation of what the layer puts out, layer after layer, biases as the model has
    them. The variance is over all of a layer's outputs together. A layer that is called more than once is set by its
    first call; one whose parameters all steps of a scan or all lanes of a vmap share, by all calls together.

    Args:
      model: its layers are the modules that own a `kernel`: also inside `nn.scan`, `nn.remat` and `nn.vmap`.
      key: for the kernels, and for everything else that `model.init` draws.
      x: the model's first argument, a batch of examples; or an iterator of batches. "iterative" takes the next one
        for each measurement, "one_pass" only the first.
      tolerance: how far from `variance` one may stay, as a fraction of it, where it is approached in steps.
      max_iterations: steps for each layer.
      method: "one_pass" sets every layer while `init` runs: one forward pass, whatever the depth, and exact.
        "iterative" is algorithm 1 of the paper, at least one forward pass for each layer.
      variance: of every layer's output.
      report: called with {layer's path: variance reached}, the value an array where the layer is inside a scan.
      **call: the model's other arguments, such as train=True.

    Returns:
      The model's variables, as from `model.init`.

    Raises:
      InputError: no layer with a kernel, or a layer whose output is constant or not finite, which is named.

    >>> import flax.linen as nn, jax
    >>> x = jax.random.normal(jax.random.key(0), (64, 10))
    >>> model = nn.Sequential([nn.Dense(20), nn.relu, nn.Dense(30)])
    >>> y = model.apply(lsuv(model, jax.random.key(1), x), x)
    >>> print(f"{y.var():.3f}")
    1.000
    """
    if method not in ("one_pass", "iterative"):
        raise InputError(f"lsuv: method {method!r} is unknown; {choices(method, ('one_pass', 'iterative'))}")
    if not (tolerance > 0 and variance > 0) or max_iterations < 1:
        raise InputError(
            f"lsuv: tolerance {tolerance} and variance {variance} must be above 0, max_iterations {max_iterations} at "
            f"least 1"
        )
    batches = x if isinstance(x, Iterator) else None
    x = x if batches is None else next(batches)
    found = walk.find_layers(model, key, x, call)
    shared = walk.find_shared(model, key, x, call, found)
    if method == "one_pass":
        variables, notes = _one_pass(model, key, x, call, found, shared, variance, tolerance, max_iterations)
    else:
        variables, notes = _iterative(model, key, x, batches, call, found, shared, variance, tolerance, max_iterations)
    if report is not None:
        report({layer.name: walk.squeezed(notes[layer.path]["reached"]) for layer in found})
    return variables


def output_variances(model, variables, x, *, key=None, **call):
    """{layer's path: variance of all that its first call puts out}; an array where the layer is inside a scan.

    The layers are those of `lsuv`; key is for what the model draws, such as dropout.
    """
    key = jax.random.key(0) if key is None else key
    found = walk.find_layers(model, key, x, call)
    shared = walk.find_shared(model, key, x, call, found)
    pooled = Pooled(shared)
    same = {path: pooled.noting() for path in shared}
    run = walk.compiled(lambda v, key, x: walk.settle(model, v, key, x, call, found, keep, shared=same))
    notes = pooled.after(run, variables, key, x)[1]
    return {layer.name: walk.squeezed(notes[layer.path]["reached"]) for layer in found}


def orthonormal(layer, module, _):
    """A kernel whose matrix [fan_in, features], of each group, has orthonormal rows or columns, drawn for a layer."""
    keys = jax.random.split(module.make_rng("params"), layer.groups)
    draw = jax.nn.initializers.orthogonal()
    matrices = jax.vmap(lambda key: draw(key, (layer.fan_in, layer.features // layer.groups)))(keys)
    return layer.to_kernel(jnp.moveaxis(matrices, 0, 1))


def to_variance(target, layer, z, bias):
    """The Change that makes the variance of scale * z + bias the target."""
    v, shift = walk.variance(z), 0.0
    rest = target
    if bias is not None and layer.affine:
        b = bias.astype(z.dtype).reshape((1,) * (z.ndim - bias.ndim) + bias.shape)
        b = b - b.mean()
        shift, rest = jnp.mean((z - z.mean()) * b), target - jnp.mean(b**2)
    # v s^2 + 2 shift s = rest; a bias that alone varies by more leaves NaN, which is told
    scale = (jnp.sqrt(shift**2 + v * rest) - shift) / v
    return Change(scale, notes={"varies": walk.varies(layer, z)})


def _one_pass(model, key, x, call, found, shared, variance, tolerance, max_iterations):
    """Scale inside `init`. What a scan's steps share is scaled between runs of it, all others anew in each."""
    pooled = Pooled(shared)

    def init(key, x, scales):
        inside = {path: pooled.noting(scale) for path, scale in scales.items()}
        change = partial(to_variance, variance)
        return walk.settle(model, None, key, x, call, found, change, start=orthonormal, shared=inside)

    run, scales, roots = walk.compiled(init), dict.fromkeys(shared, 1.0), {path: Root() for path in shared}
    for _ in range(max_iterations * len(shared) + 1):
        variables, notes = pooled.after(run, key, x, scales)
        for layer in found:
            walk.check_alive(layer, notes)
        ratios = {path: notes[path]["reached"] / variance for path in notes}
        off = [layer.path for layer in found if layer.path in shared and _off(ratios[layer.path], tolerance).any()]
        if not off:
            break
        scales = scales | {off[0]: scales[off[0]] * roots[off[0]].factor(ratios[off[0]])}
    return variables, notes


def _iterative(model, key, x, batches, call, found, shared, variance, tolerance, max_iterations):
    """Algorithm 1: measure, scale the first layer that is off, again."""
    pooled = Pooled(shared)
    start = {path: pooled.noting(1.0) for path in shared}
    same = {path: pooled.noting() for path in shared}

    def begin(key, x):
        return walk.settle(model, None, key, x, call, found, keep, start=orthonormal, shared=start)

    def step(variables, scales, key, x):
        variables = walk.scaled(variables, scales)
        return variables, walk.settle(model, variables, key, x, call, found, keep, shared=same)[1]

    variables, notes = pooled.after(walk.compiled(begin), key, x)
    run, by_path = walk.compiled(step), {layer.path: layer for layer in found}
    ones = {path: np.ones_like(note["reached"]) for path, note in notes.items()}
    roots = {(path, unit): Root() for path, unit in in_order(found, ones)}
    while True:
        off = {path: _off(note["reached"] / variance, tolerance) for path, note in notes.items()}
        place = next((p for p, root in roots.items() if off[p[0]].flat[p[1]] and root.tries < max_iterations), None)
        if place is None:
            break
        path, unit = place
        walk.check_alive(by_path[path], notes, unit)
        scales = ones | {path: ones[path].copy()}
        scales[path].flat[unit] = roots[place].factor(notes[path]["reached"].flat[unit] / variance)
        x = x if batches is None else next(batches)
        variables, notes = pooled.after(run, variables, scales, key, x)
    for layer in found:
        walk.check_alive(layer, notes)
    return variables, notes


class Root:
    """Steps towards a ratio of 1. The first takes it to grow with the square of the scale, the next as it was seen to.

    A layer that feeds itself, as the cell of a recurrent net does, has more of its factors in its variance than two.
    """

    def __init__(self):
        self.tries, self.before, self.power = 0, None, 2.0

    def factor(self, ratio):
        """By what to multiply the kernel whose output's variance is so many times what it should be."""
        log = float(np.log(ratio))
        if self.before:
            step, was = self.before
            self.power = float(np.clip((log - was) / step, 2.0, 100.0))
        step = -log / self.power
        self.tries, self.before = self.tries + 1, (step, log)
        return float(np.exp(step))


def in_order(found, ones):
    """(path, unit) of every layer, a scan's units one after the other, as they are run.

    Layers that follow each other, have equally many units and begin with the same name are taken for one scan's.
    """
    group = []
    for layer in [*found, None]:
        alike = (
            group
            and layer
            and (ones[layer.path].shape[:1], layer.path[:1])
            == (
                ones[group[0].path].shape[:1],
                group[0].path[:1],
            )
        )
        if group and not alike:
            for unit in range(ones[group[0].path].size):
                yield from ((member.path, unit) for member in group if unit < ones[member.path].size)
            group = []
        group.append(layer)


def keep(layer, z, bias):
    """The Change that changes nothing, and notes what `walk.check_alive` looks at."""
    del bias
    return Change(notes={"varies": walk.varies(layer, z)})


def _off(ratio, tolerance):
    return ~(np.abs(ratio - 1) <= tolerance)


class Pooled:
    """Variances of layers that cannot be noted inside the pass: pooled over all their calls, by a callback."""

    def __init__(self, paths):
        self.calls = {path: [] for path in paths}

    def noting(self, scale=None):
        """What `walk.settle` does with such a layer. With a scale, its kernel starts orthonormal times that."""

        def around(layer, module, run):
            if scale is not None and not module.has_variable("params", "kernel"):
                module.put_variable("params", "kernel", (orthonormal(layer, module, None) * scale).astype(layer.dtype))
            y = run()
            statistics = (
                y.astype(jnp.promote_types(y.dtype, jnp.float32)).mean(),
                walk.variance(y),
                walk.varies(layer, y),
            )
            # Not jax.debug.callback: newer Flax takes its effect for a value that a scan's steps share.
            known = jax.pure_callback(
                partial(self._remember, layer.path),
                jax.ShapeDtypeStruct((), bool),
                *statistics,
                vmap_method="sequential",
            )
            return jnp.where(known, y, jnp.nan)  # what nobody reads would not be called

        return around

    def _remember(self, path, *statistics):
        self.calls[path].append(np.asarray(statistics))
        return np.True_

    def after(self, run, *arguments):
        """(variables, notes) that `run` returns, with the notes of these layers added; all on the host."""
        for calls in self.calls.values():
            calls.clear()
        variables, notes = run(*arguments)
        notes = jax.device_get(notes)
        for path, calls in self.calls.items():
            mean, var, lively = np.transpose(np.array(calls, np.float64))
            notes[path] = {"reached": np.asarray(var.mean() + mean.var()), "varies": np.asarray(lively.max())}
        return variables, notes
