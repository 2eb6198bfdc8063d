"""Measure a model layer by layer on one batch: its activations, gradients, parameters and update."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.ad_checkpoint import checkpoint_name

from deepjax.doctor import statistics, taps
from deepjax.doctor.follow import NORM, Follow, Tag
from deepjax.doctor.rows import Row, layer_names, layer_rows
from deepjax.doctor.subject import Subject
from deepjax.trace import around_calls, is_batch_norm
from deepjax.trace.observe import jit_once

MICRO_BATCHES = 4


@dataclass(frozen=True)
class ParameterRow:
    """One array of parameters. The stacked parameters of a scan are one array."""

    path: str
    shape: tuple[int, ...]
    norm: float
    gradient_norm: float
    update_norm: float
    """Of one step of the subject's optimizer."""
    gradient_ratio: float
    """Gradient norm / norm; NaN if the parameters are all 0."""
    update_ratio: float
    """Update norm / norm; NaN if the parameters are all 0."""
    snr: float
    """Norm of the mean gradient of the micro-batches / their root mean square distance from it (unbiased)."""
    cosine: float
    """Mean cosine between the gradients of two micro-batches. NaN with less than two examples or without gradient."""


@dataclass(frozen=True)
class Measurement:
    """What `measure` returns. Numbers are Python floats, NaN where they do not exist."""

    rows: tuple[Row, ...]
    """One per call of a layer, in the order of execution."""
    parameters: tuple[ParameterRow, ...]
    loss: float
    gradient_norm: float
    """Of all parameters together."""
    update_norm: float
    """Of all parameters together."""
    snr: float
    """As in `ParameterRow`, of all parameters together."""
    cosine: float
    """As in `ParameterRow`, of all parameters together."""
    predictions: Any
    """Of the batch, in training mode: a pytree of NumPy arrays."""
    dropout_after_output: bool
    """Whether a dropout follows the last layer."""
    dropout_before_norm: tuple[str, ...]
    """Linen's batch normalizations with a dropout and no layer before them (variance shift: Li et al. 2019)."""
    bias_before_norm: tuple[str, ...]
    """Layers whose bias is removed by the Linen batch normalization that follows."""

    @property
    def gradient_norms(self) -> dict[str, float]:
        """Gradient norm by the parameter's path."""
        return {row.path: row.gradient_norm for row in self.parameters}


def measure(subject: Subject, variables, inputs, targets, key, *, optimizer_state=None) -> Measurement:
    """Measure a model in training mode on one batch.

    Everything is computed in float32, in one compiled function: one pass with its gradient, one pass over four
    micro-batches, one update. No layer of a `while` loop is measured.

    Args:
      subject: the model with its loss and optimizer.
      variables: its variables.
      inputs: pytree of arrays [examples, ...].
      targets: pytree of arrays [examples, ...].
      key: PRNG key of dropout and the like.
      optimizer_state: that of `subject.optimizer`; None: a new one.
    """
    return measurer(subject, variables, inputs, key)(variables, inputs, targets, key, optimizer_state)


def measurer(subject: Subject, variables, inputs, key, *, jit: Callable = jit_once) -> Callable[..., Measurement]:
    """Return the function (variables, inputs, targets, key, optimizer_state) -> Measurement, compiled once.

    Args:
      subject: the model with its loss and optimizer.
      variables, inputs, key: arrays of the shapes that the function will get.
      jit: `jax.jit` for a function that will run often: it takes longer to compile, and less time to run.
    """
    model = Traced(subject, variables, inputs, key)
    compiled = jit(model.compute)

    def run(variables, inputs, targets, key, optimizer_state=None):
        found = compiled(variables, inputs, targets, key, optimizer_state)
        return model.measurement(variables, jax.device_get(found))

    return run


class Traced:
    """A subject whose call has been traced for arrays of these shapes."""

    def __init__(self, subject, variables, inputs, key):
        self.subject, self.kinds = subject, {}

        def apply(variables, inputs, key):
            with around_calls(self._mark):
                return subject.apply(variables, inputs, True, key)[0]

        self.closed, out = jax.make_jaxpr(apply, return_shape=True)(variables, inputs, key)
        self.out = jax.tree.structure(out)
        self.paths = [_word(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])]
        self.follow = Follow()
        tags = _input_tags(variables, inputs, key)
        outputs = self.follow.outputs(self.follow.run(self.closed.jaxpr, self.closed.consts, tags))
        self.dropout_after_output = any(tag.dropped for tag in outputs)
        self.plan = taps.Plan(self.follow, len(jax.tree.leaves(inputs)[0]))

    def _mark(self, module, run, args, kwargs):
        self.kinds["/".join(module.path)] = type(module).__name__
        if is_batch_norm(module) and args:
            args = (checkpoint_name(args[0], NORM + "/".join(module.path)), *args[1:])
        return run(*args, **kwargs)

    def compute(self, variables, inputs, targets, key, optimizer_state):
        """Return all numbers as a pytree of arrays."""
        params, rest = variables["params"], {name: v for name, v in variables.items() if name != "params"}

        def value(params, sinks):
            arguments = jax.tree.leaves(({**rest, "params": params}, inputs, key))
            out, notes = taps.run(self.plan, self.closed.jaxpr, self.closed.consts, arguments, sinks)
            predictions = jax.tree.unflatten(self.out, out)
            return self.subject.loss(predictions, targets), (predictions, notes)

        passes = jax.value_and_grad(value, (0, 1), has_aux=True)
        (loss, (predictions, notes)), (gradients, backward) = passes(params, self.plan.sinks())

        def objective(params):
            return self.subject.value({**rest, "params": params}, inputs, targets, key)[0]

        optimizer = optax.with_extra_args_support(self.subject.optimizer)
        state = optimizer.init(params) if optimizer_state is None else optimizer_state
        extra = {"value": loss, "grad": gradients, "value_fn": objective}
        extra["grad_fn"] = lambda params, _: jax.grad(objective)(params)  # for SAM
        updates, _ = optimizer.update(gradients, state, params, **extra)
        norms = [[statistics.norm(leaf) for leaf in jax.tree.leaves(tree)] for tree in (params, gradients, updates)]
        return {
            "loss": loss,
            "predictions": predictions,
            "notes": notes,
            "backward": backward,
            "norms": jnp.array(norms),
            "grams": self._grams(params, rest, inputs, targets, key),
        }

    def _grams(self, params, rest, inputs, targets, key):
        """Return (scales [leaves], grams [leaves, m, m]): products of the gradients / scale of m micro-batches."""
        count = min(MICRO_BATCHES, self.plan.examples)
        size = self.plan.examples // count
        parts = jax.tree.map(lambda a: a[: count * size].reshape(count, size, *a.shape[1:]), (inputs, targets))

        def gradient(part):
            i, (x, y) = part
            return jax.grad(lambda p: self.subject.value({**rest, "params": p}, x, y, jax.random.fold_in(key, i))[0])(
                params
            )

        gradients = jax.lax.map(gradient, (jnp.arange(count), parts))
        flat = [leaf.reshape(count, -1).astype(jnp.float32) for leaf in jax.tree.leaves(gradients)]
        scales = jnp.array([jnp.maximum(jnp.abs(leaf).max(), jnp.finfo(jnp.float32).tiny) for leaf in flat])
        scaled = [leaf / scale for leaf, scale in zip(flat, scales, strict=True)]
        return scales, jnp.stack([jnp.matmul(leaf, leaf.T, precision="highest") for leaf in scaled])

    def measurement(self, variables, found) -> Measurement:
        """Turn the numbers into a `Measurement`."""
        leaves = jax.tree.leaves(variables["params"])
        norms, (scales, grams) = np.asarray(found["norms"], float), found["grams"]
        grams = np.asarray(grams, float) * np.square(np.asarray(scales, float))[:, None, None]
        parameters = tuple(
            _parameter_row(path, leaf, row, gram)
            for path, leaf, row, gram in zip(self.paths, leaves, norms.T, grams, strict=True)
        )
        gradient_rms = norms[1] / np.sqrt([max(leaf.size, 1) for leaf in leaves])
        names = layer_names(self.follow.layers, self.paths, leaves)
        snr, cosine = _agreement(grams.sum(0))
        forward, backward = found["notes"], found["backward"]
        return Measurement(
            rows=layer_rows(self.follow, self.plan, forward, backward, self.paths, self.kinds, leaves, gradient_rms),
            parameters=parameters,
            loss=float(found["loss"]),
            gradient_norm=float(np.linalg.norm(norms[1])),
            update_norm=float(np.linalg.norm(norms[2])),
            snr=snr,
            cosine=cosine,
            predictions=found["predictions"],
            dropout_after_output=self.dropout_after_output,
            dropout_before_norm=tuple(sorted(self.follow.dropout_before_norm)),
            bias_before_norm=tuple(names[place] for place in sorted(self.follow.bias_before_norm)),
        )


def _word(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _input_tags(variables: Mapping, inputs, key) -> list[Tag]:
    """Return the tags of the leaves of (variables, inputs, key)."""
    tags, count = [], 0
    for path, _ in jax.tree_util.tree_leaves_with_path(variables):
        if path[0].key == "params":
            tags.append(Tag(leaves=frozenset([count])))
            count += 1
        else:
            tags.append(Tag())
    tags += [Tag(data=True) for _ in jax.tree.leaves(inputs)] + [Tag(random=True) for _ in jax.tree.leaves(key)]
    return [_at(tag, k) for k, tag in enumerate(tags)]


def _at(tag, k):
    return replace(tag, at=((), -2 - k), anchor=((), -2 - k))


def _parameter_row(path, leaf, row, gram) -> ParameterRow:
    norm, gradient, update = map(float, row)
    ratios = (gradient / norm, update / norm) if norm > 0 else (math.nan, math.nan)
    return ParameterRow(path, tuple(leaf.shape), norm, gradient, update, *ratios, *_agreement(gram))


def _agreement(gram) -> tuple[float, float]:
    """Return (signal-to-noise ratio, mean cosine) of vectors from their products, [m, m]."""
    count = len(gram)
    if count < 2 or not np.isfinite(gram).all():
        return math.nan, math.nan
    mean = gram.sum() / count**2
    spread = max(np.trace(gram) - count * mean, 0.0) / (count - 1)
    lengths = np.sqrt(np.maximum(np.diag(gram), 0))
    with np.errstate(all="ignore"):
        snr = np.sqrt(max(mean, 0.0)) / np.sqrt(spread)
        cosines = gram / np.outer(lengths, lengths)
        others = cosines[~np.eye(count, dtype=bool)]
        cosine = np.nanmean(others) if np.isfinite(others).any() else np.nan
    return float(snr), float(cosine)
