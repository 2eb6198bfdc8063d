"""Causes around batch normalization: its mode, its batch, its moments, and what stands before it."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from deepjax import layers
from deepjax.doctor import changes, plan_changes
from deepjax.doctor.causes.plan import clearly_better, severity
from deepjax.doctor.causes.structure import _listed, called_modules
from deepjax.doctor.evidence import Evidence, Remedy, Suspicion
from deepjax.doctor.facts import quality
from deepjax.doctor.report import Finding
from deepjax.doctor.subject import one_array
from deepjax.doctor.trials import EVALUATED
from deepjax.trace import around_calls, is_batch_norm, normalizes_by_batch, observed_batch_moments

MOMENTUM = 0.9  # that is tried where running moments are too slow
STALE = 1.0  # mean distance of running means from the batch's, in the batch's standard deviations


def _modes(evidence, train):
    """Return, for every call of a batch normalization, whether it uses the moments of the batch."""
    found, subject = [], evidence.subject

    def rule(module, run, args, kwargs):
        if is_batch_norm(module):
            found.append(normalizes_by_batch(module, args, kwargs))
        return run(*args, **kwargs)

    if subject.module is not None:
        with around_calls(rule):
            jax.eval_shape(lambda v: subject.apply(v, evidence.batch[0], train, evidence.key)[0], evidence.variables)
    return found


def wrong_mode(evidence: Evidence):
    """Find batch normalizations that use one kind of moments in training and in evaluation."""
    training, evaluation = _modes(evidence, True), _modes(evidence, False)
    frozen, never = [not each for each in training], evaluation
    if any(frozen):
        title = "Batch normalization uses its running moments while the model trains, so it does not normalize."
        text = f"{sum(frozen)} of {len(training)} batch normalizations do not use the moments of the batch in training."
        severity = "warning" if evidence.subject.given else "serious"
    elif any(never):
        title = "Batch normalization uses the moments of the batch in evaluation too."
        text = f"{sum(never)} of {len(never)} batch normalizations do not use their running moments in evaluation."
        severity = "serious"
    else:
        return
    advice = "Pass the mode: `nn.BatchNorm(use_running_average=not train)`, and call the model with `train`."
    yield Suspicion(
        Finding("batch_norm_mode", severity, title, text, advice),
        Remedy("batch normalization in the right mode", changes.batch_norm_modes),
    )


def single_values(evidence: Evidence):
    """Find normalizations over one value only: that value minus itself is 0 for every input."""
    if evidence.subject.module is None:
        return
    found, variables = [], evidence.variables  # computed before the rule

    def rule(module, run, args, kwargs):
        if args and _together(module, args[0]) == 1:
            found.append((type(module).__name__, "/".join(module.path), args[0].shape))
        return run(*args, **kwargs)

    with around_calls(rule):
        jax.eval_shape(lambda v: evidence.subject.apply(v, evidence.batch[0], True, evidence.key)[0], variables)
    if not found:
        return
    kind, path, shape = found[0]
    title = "A normalization is over a single value, so it returns the same for every input."
    text = f"{kind} {path} takes one value together, of an input of shape {list(shape)}."
    advice = "Normalize over more values: fewer groups, `nn.LayerNorm` over all features, or before pooling."
    severity = "warning" if evidence.healthy else "serious"
    finding = Finding("collapsed_features", severity, title, text, advice, path)
    change = changes.without_modules(lambda module, x: _together(module, x) == 1)
    yield Suspicion(finding, Remedy("no normalization over single values", change))


def _together(module, x):
    """Return how many values of an example a normalization takes together, or 0 where it is none of these."""
    shape = list(getattr(x, "shape", ()))
    axes = set(range(1, len(shape)))
    if isinstance(module, nn.LayerNorm):
        axes = _of(module.reduction_axes, shape)
    elif isinstance(module, layers.LayerNorm):
        axes = set(range(len(shape) - module.axes, len(shape)))
    elif isinstance(module, nn.InstanceNorm):
        axes -= _of(module.feature_axes, shape)
    elif isinstance(module, nn.GroupNorm | layers.GroupNorm):
        axes = _of(getattr(module, "reduction_axes", None) or tuple(axes), shape)
        return math.prod(shape[axis] for axis in axes) // _groups(module, shape[-1])
    else:
        return 0
    return math.prod(shape[axis] for axis in axes)


def _of(axes, shape):
    return {axis % len(shape) for axis in np.ravel(axes).tolist()}


def _groups(module, features) -> int:
    if isinstance(module, layers.GroupNorm):
        return math.gcd(module.groups, features) if module.fit_groups else module.groups
    return features // module.group_size if module.group_size else module.num_groups or 1


def small_batch(evidence: Evidence):
    """Find batch normalization over batches of one or two examples."""
    size = evidence.subject.batch_size
    if size > 2 or evidence.subject.examples <= 2 or not any(_modes(evidence, True)):
        return
    title = f"Batch normalization over a batch of {size} has no useful moments."
    text = f"The planned batch size is {size}; mean and variance of so few examples are mostly noise."
    advice = "Use batches of at least 16, or group or layer normalization."
    yield Suspicion(
        Finding("batch_norm_small_batch", "serious", title, text, advice),
        Remedy("batches of 32", plan_changes.batches_of(32)),
    )


def dropout_before_norm(evidence: Evidence):
    """Find dropout right before batch normalization."""
    names = evidence.measured.dropout_before_norm
    if names:
        title = "Dropout stands before batch normalization, so variances differ between training and evaluation."
        text = f"Batch normalizations behind a dropout, with no layer between: {_listed(names)} (Li et al. 2019)."
        finding = Finding(
            "dropout_before_norm", "warning", title, text, "Put dropout after the last batch normalization.", names[0]
        )
        yield Suspicion(finding, Remedy("no dropout", changes.without_dropout))


def bias_before_norm(evidence: Evidence):
    """Find biases that batch normalization removes."""
    names = evidence.measured.bias_before_norm
    if names:
        title = "A bias before batch normalization is removed by it: a waste of parameters."
        text = f"{len(names)} layers have one: {_listed(names)}."
        yield Suspicion(Finding("bias_before_norm", "note", title, text, "Set `use_bias=False` there.", names[0]))


def decay_of_norms(evidence: Evidence):
    """Find weight decay on the scales and biases of normalizations."""
    if not evidence.subject.planned:
        return
    zero = jax.tree.map(jnp.zeros_like, evidence.gradient)
    pairs = jax.tree_util.tree_leaves_with_path(evidence.updates(zero))
    names = ["/".join(str(k.key) for k in path) for path, u in pairs if np.any(np.asarray(u))]
    scales = [name for name in names if name.rpartition("/")[2] == "scale"]
    if scales:
        title = "Weight decay acts on the scales of normalizations."
        text = f"Without a gradient, the optimizer still changes {_listed(scales)}."
        advice = "Mask them: decay kernels only (`mask` of optax.adamw or optax.add_decayed_weights)."
        finding = Finding("weight_decay_on_norm", "note", title, text, advice, scales[0])
        yield Suspicion(finding, Remedy("no weight decay on scales", plan_changes.with_decay(0.0, "scale")))


def stale_moments(evidence: Evidence):
    """Find running moments that are far from those of the data, in a model that is given with its variables."""
    subject = evidence.subject
    given = subject.given and subject.module is not None and one_array(subject.inputs)
    if not given or "batch_stats" not in evidence.variables:
        return
    moments, called = _moments(evidence, evidence.variables, evidence.batch[0])
    worst, place = 0.0, ""
    for path, running in jax.tree_util.tree_leaves_with_path(evidence.variables["batch_stats"]):
        *parents, last = [k.key for k in path]
        now, seen = moments, called
        for name in parents:
            now, seen = now[name], seen[name]
        if last != "mean" or not np.all(np.asarray(seen["mean"])):
            continue
        deviation = np.sqrt(np.asarray(now["var"]) + 1e-5)
        apart = float(np.mean(np.abs(np.asarray(running) - np.asarray(now["mean"])) / deviation))
        if not np.isfinite(apart) or apart > worst:
            worst, place = apart, "/".join(map(str, parents))
    if not worst <= STALE:
        title = "The running moments of batch normalization are not those of the data."
        text = f"At {place}, running means are {worst:.3g} standard deviations of the batch away from its means."
        advice = "Update `batch_stats` in training (mutable), lower the momentum, or estimate the moments again."
        remedy = Remedy("the moments of a batch", partial(changes.with_state, name="batch_stats", state=moments))
        yield Suspicion(Finding("stale_moments", "serious", title, text, advice, place), remedy)


def _moments(evidence, variables, inputs):
    """Return the moments of these inputs at all batch normalizations, and which of them were called."""
    subject = evidence.subject
    call = {**dict(subject.call), "rngs": {"dropout": evidence.key}}
    return jax.jit(lambda v, x: observed_batch_moments(subject.module, v, x, **call))(
        variables, jnp.asarray(jax.tree.leaves(inputs)[0])
    )


def slow_moments(evidence: Evidence):
    """Find running moments that training as planned leaves behind, so that evaluation fails."""
    subject = evidence.subject
    if "batch_stats" not in evidence.variables or changes.HEAD in evidence.variables["params"] or evidence.healthy:
        return
    if subject.module is None or not any(_modes(evidence, True)) or not one_array(subject.inputs):
        return
    trained, (inputs, targets) = evidence.trainer.variables(0), subject.rows(slice(0, EVALUATED))
    moments, _ = _moments(evidence, trained, inputs)
    predictions = evidence.predict({**trained, "batch_stats": moments}, inputs)
    share = quality(predictions, targets, evidence.targets, evidence.loss.expects)
    base = evidence.targets.majority
    before, after = evidence.skill(evidence.planned), (share - base) / (1 - base + 1e-9)
    if not clearly_better(before, after):
        return
    title = "The running moments of batch normalization change too slowly for this number of steps."
    text = f"After training as planned, evaluation reaches a skill of {before:.2f} with the running moments, "
    text += f"and of {after:.2f} with the moments of the examples."
    advice = f"Lower the momentum to {MOMENTUM}, train for more steps, or estimate the moments again at the end."
    slow = any(module.momentum > MOMENTUM for module in called_modules(evidence, nn.BatchNorm))
    finding = Finding("batch_norm_momentum", severity(evidence, before, after), title, text, advice)
    remedy = Remedy(f"a momentum of {MOMENTUM} in batch normalization", changes.batch_norm_momentum(MOMENTUM))
    yield Suspicion(finding, remedy if slow else None)


CAUSES = (small_batch, stale_moments, slow_moments, dropout_before_norm, decay_of_norms, bias_before_norm)
