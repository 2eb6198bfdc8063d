"""Causes in the initial weights, from what one batch measures layer by layer."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deepjax.doctor import changes, rewrites
from deepjax.doctor.causes.shattering import shattered_gradients
from deepjax.doctor.causes.structure import SATURATING
from deepjax.doctor.compiling import compile_quickly
from deepjax.doctor.evidence import LEARNS, Evidence, Remedy, Suspicion
from deepjax.doctor.head import inlined
from deepjax.doctor.report import Finding
from deepjax.errors import InputError
from deepjax.init_from_data.branch_ends import branch_ends
from deepjax.trace import around_calls

DEPTH = 1e3  # change of activations from the first to the last hidden layer that counts as exploding or vanishing
MILD = 30.0  # the same where other weights clearly help
GRADIENT = 1e4  # the same for gradients
GAIN = 10.0  # a layer that changes the scale of its inputs by more than this factor has bad initial weights
LARGE = 3.0  # the same where new weights help; in recurrent layers the factor is that of every step
DOMINATES = 1.8  # growth in a residual unit whose branch is 1.5 times its input: sqrt(1 + 1.5 ** 2)
DEAD, SATURATED = 0.9, 0.5  # share of the units of a layer
COLLAPSED = 1e-3  # 1 - cosine between the features of different examples
RELU = ("relu", "leaky_relu", "relu6", "elu", "gelu", "silu")
LSUV = "initialization from data: every layer's output with variance 1 (LSUV)"


def _remedy(evidence):
    return _usable(evidence, Remedy(LSUV, partial(changes.scaled_weights, key=evidence.key)))


def _usable(evidence, remedy):
    """Return a remedy that initializes from data, or one that draws all weights again where that is not possible."""
    try:
        remedy.change(evidence.subject)
    except InputError:
        return _drawn(evidence)
    return remedy


def _drawn(evidence):
    change = partial(changes.drawn_weights, key=evidence.key, rows=evidence.measured.rows)
    return Remedy("orthogonal weights with the variance of He et al. (2015), biases of 0", change)


def _suspected(evidence, finding, remedy, certain=False):
    """Yield a suspicion that its remedy must prove; if it is `certain`, then only where the model learns something."""
    fails = evidence.skill(evidence.planned) < LEARNS
    if remedy is not None or fails:
        yield Suspicion(
            finding, remedy, certain=fails and (certain or remedy is None), otherwise="last" if fails else ""
        )


def symmetric_units(evidence: Evidence):
    """Find layers whose units have equal weights and equal gradients, so that they stay equal."""
    paths = dict(_leaves(evidence.variables["params"]))
    gradients = dict(_leaves(evidence.gradient))
    names = [name for name, kernel in paths.items() if _symmetric(kernel, gradients[name])]
    last = evidence.measured.rows[-1].parameters if evidence.measured.rows else ()
    names = [name for name in names if name not in last]
    if not names:
        return
    text = f"All units of {', '.join(names[:3])} have the same incoming weights and the same gradients."
    title = "The units of a layer start equal and stay equal: the layer works as one unit."
    finding = Finding(
        "symmetric_initialization", "serious", title, text, "Draw the weights at random (`he_normal`).", names[0]
    )
    yield from _suspected(evidence, finding, _remedy(evidence), certain=True)


def _leaves(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield "/".join(str(k.key) for k in path), np.asarray(leaf, np.float64)


def _symmetric(kernel, gradient):
    if kernel.ndim < 2 or kernel.shape[-1] < 2 or kernel.size == kernel.shape[-1]:
        return False
    equal = [np.ptp(a.reshape(-1, a.shape[-1]), axis=1).max() <= 1e-6 * np.abs(a).max() for a in (kernel, gradient)]
    return all(equal)


def dead_units(evidence: Evidence):
    """Find ReLU layers whose units are 0 for every example."""
    rows = [row for row in evidence.measured.rows[:-1] if row.activation in ("relu", "relu6") and row.dead > DEAD]
    if rows:
        text = f"In {rows[0].layer}, {100 * rows[0].dead:.0f} % of the units return the same for all examples"
        text += f" (mean input {rows[0].mean:.3g}, standard deviation {rows[0].std:.3g})."
        title = "ReLUs are dead: they return 0 for every example, so they have no gradient."
        advice = (
            "Start with biases of 0 and weights by He et al. (2015), and lower the learning rate if they die later."
        )
        yield from _suspected(
            evidence,
            Finding("dead_relus", "serious", title, text, advice, rows[0].layer),
            _fresh(evidence),
            certain=True,
        )


def _fresh(evidence):
    """New weights from data, and biases of 0."""
    change = partial(changes.scaled_weights, key=evidence.key, zero_biases=True)
    return _usable(evidence, Remedy(LSUV + ", biases of 0", change))


def _count(evidence):
    return len(jax.tree.leaves(evidence.batch[0])[0])


def saturated_units(evidence: Evidence):
    """Find sigmoids and hyperbolic tangents at the ends of their ranges."""
    rows = [row for row in evidence.measured.rows[:-1] if row.activation in SATURATING and row.saturated > SATURATED]
    if rows:
        row = rows[0]
        text = f"In {row.layer}, {100 * row.saturated:.0f} % of the outputs of {row.activation} are saturated;"
        text += f" its inputs have standard deviation {row.std:.3g}."
        title = "Activations are saturated, so that almost no gradient passes."
        advice = "Scale the inputs and the weights so that the inputs of the activation have variance 1."
        yield from _suspected(
            evidence, Finding("saturated_activations", "serious", title, text, advice, row.layer), _fresh(evidence)
        )


def scale_over_depth(evidence: Evidence):
    """Find activations and gradients that grow or shrink from layer to layer."""
    rows = _hidden(evidence)
    if len(rows) < 2 or evidence.healthy:
        return
    if len(rows) < 3:  # the gradient may still explode or vanish over the steps of a recurrent layer
        yield from _gradients(evidence, [*rows, evidence.measured.rows[-1]])
    elif finding := _depth_finding(evidence, rows, DEPTH):
        yield from _suspected(evidence, finding, _fresh(evidence))
    else:
        yield from shattered_gradients(evidence)  # they often grow too, and no scale of the weights mends them
        yield from _gradients(evidence, rows)


def mild_scale_over_depth(evidence: Evidence):
    """Suspect activations that grow or shrink a little from layer to layer."""
    rows = _hidden(evidence)
    if len(rows) < 3 or evidence.healthy or _depth_finding(evidence, rows, DEPTH):
        return
    if finding := _depth_finding(evidence, rows, MILD):
        yield Suspicion(finding, _fresh(evidence), certain=False)


def _hidden(evidence):
    return [row for row in evidence.measured.rows[:-1] if row.kind != "embedding" and np.isfinite(row.std)]


def _branches(evidence):
    """Return the paths of the last modules of residual branches, where the model is a Linen one that has some."""
    subject, inputs = evidence.subject, evidence.batch[0]
    if subject.module is None or changes.HEAD in evidence.variables["params"]:
        return {}
    call = {name: not value for name, value in subject.call}
    arrays = jax.tree.map(jnp.asarray, inputs)
    return branch_ends(subject.module, evidence.variables, evidence.key, arrays, call)


def _is_wrong_fan(rows):
    """Whether weights have the variance 1 / fan_in, of Glorot and LeCun, under ReLUs, which need 2 / fan_in."""
    gains = [row.gain for row in rows if row.activation in RELU]
    return len(gains) > 0.8 * len(rows) and 0.75 < np.median(gains) < 1.25


def _depth_finding(evidence, rows, factor):
    """Return the finding of outputs that grow or shrink by more than a factor over the layers, or None."""
    stds = np.array([row.std for row in rows])
    if not stds[0] > 0 or (1 / factor <= stds[-1] / stds[0] and stds.max() / stds[0] <= factor):
        return None
    grow = stds.max() / stds[0] > factor
    gain = float(np.median([row.gain for row in rows]))
    text = f"The standard deviation of the outputs goes from {stds[0]:.3g} at {rows[0].layer} to {stds[-1]:.3g} at "
    text += f"{rows[-1].layer}; weights have the standard deviation {gain:.3g} / sqrt(fan_in)."
    title = f"Activations {'grow' if grow else 'shrink'} from layer to layer."
    advice = "Initialize with the variance 2 / fan_in under ReLU (He et al. 2015), or from data, or normalize."
    code = "exploding_activations" if grow else "vanishing_activations"
    if grow and (ends := _branches(evidence)):
        units = sum(row.layer.partition("[")[0] in {"/".join(end) for end in ends} for row in rows)
        large = (stds.max() / stds[0]) ** (1 / max(units, 1)) > DOMINATES
        code = "residual_dominates" if large else code
        title = f"The residual branches are {'larger than' if large else 'as large as'} what they are added to, "
        title += "so activations grow from unit to unit."
        advice = "Let branches start small: a last layer of zeros, or a factor of 1 / sqrt(units), or normalize them."
    if not grow and _is_wrong_fan(rows):
        code = "wrong_fan"
        title += " The weights have the scale for linear layers (Glorot, LeCun), not the one for ReLU."
    return Finding(code, "serious", title, text, advice, rows[-1].layer)


def _gradients(evidence, rows):
    rms = np.array([row.gradient_rms for row in rows])
    if not np.isfinite(rms).all() or rms[-1] <= 0:
        return
    ratio = rms[0] / rms[-1]
    if 1 / GRADIENT <= ratio <= GRADIENT:
        return
    code, verb = ("exploding_gradients", "grow") if ratio > GRADIENT else ("vanishing_gradients", "shrink")
    text = f"Root mean square of the gradient: {rms[-1]:.3g} at {rows[-1].layer}, {rms[0]:.3g} at {rows[0].layer}."
    title = f"Gradients {verb} on their way back through the layers."
    advice = "Use ReLU, initialization from data, normalization or residual connections."
    finding = Finding(code, "serious", title, text, advice, rows[0].layer)
    saturating = verb == "shrink" and sum(row.activation in SATURATING for row in rows) * 2 > len(rows)
    relu = Remedy("ReLU in place of saturating activations", rewrites.relu_in_place)
    yield from _suspected(evidence, finding, relu if saturating else _fresh(evidence))


def gradients_over_steps(evidence: Evidence):
    """Suspect gradients that vanish over the steps of a sequence [examples, steps, features], or of its embedding."""
    leaves = jax.tree.leaves(evidence.batch[0])
    sequences = len(leaves) == 1 and (leaves[0].ndim, leaves[0].dtype.kind) in ((3, "f"), (2, "i"), (2, "u"))
    if evidence.healthy or not sequences or not _has_scan(evidence):
        return
    gradient = evidence.input_gradient if leaves[0].ndim == 3 else _embedding_gradient(evidence)
    if gradient is None:
        return
    rms = np.sqrt(np.mean(np.square(gradient, dtype=np.float64), axis=(0, 2)))
    if not np.isfinite(rms).all() or rms[0] * GRADIENT > rms.max() or not rms.any():
        return
    what = "inputs" if leaves[0].ndim == 3 else "embedding of the inputs"
    text = f"The gradient in the {what} has a root mean square of {rms[0]:.3g} at the first of {len(rms)} steps, "
    text += f"and of {rms.max():.3g} at step {rms.argmax() + 1}."
    title = "Gradients vanish over the steps of the sequence, so early steps are not learned from."
    advice = "Use orthogonal recurrent weights, or an LSTM or GRU."
    yield from _suspected(evidence, Finding("vanishing_gradients", "serious", title, text, advice), _drawn(evidence))


def _embedding_gradient(evidence):
    """Return the gradient of the loss on the batch in the embedding [examples, steps, features], or None."""
    subject, (inputs, targets) = evidence.subject, evidence.batch
    shape = jax.tree.leaves(inputs)[0].shape
    found = []

    def value(added):
        def rule(module, run, args, kwargs):
            y = run(*args, **kwargs)
            if not isinstance(module, nn.Embed) or y.shape[:-1] != shape:
                return y
            found.append(y.shape)
            return y if added is None else y + added.astype(y.dtype)

        with around_calls(rule):
            return subject.value(evidence.variables, inputs, targets, jax.random.fold_in(evidence.key, 6))[0]

    if subject.module is not None:
        jax.eval_shape(lambda: value(None))
    return compile_quickly(jax.grad(value))(jnp.zeros(found[0])) if len(found) == 1 else None


def _has_scan(evidence):
    inputs, tree = jax.tree.flatten(evidence.batch[0])
    variables = evidence.variables
    apply = evidence.subject.apply
    jaxpr = inlined(lambda *x: apply(variables, jax.tree.unflatten(tree, x), False, evidence.key)[0], inputs).jaxpr
    return any(eqn.primitive.name == "scan" for eqn in jaxpr.eqns)


def scale_of_layers(evidence: Evidence):
    """Find single layers with weights that are far too large or too small."""
    rows = [r for r in evidence.measured.rows if r.kind != "embedding" and r.fan_in > 1 and r.weight_rms > 0]
    wrong = [r for i, r in enumerate(rows) if r.gain > GAIN or (r.gain < 1 / GAIN and i < len(rows) - 1)]
    large = [r for r in rows[:-1] if r.gain > LARGE]
    if not wrong + large or evidence.healthy:
        return
    row = (wrong + large)[0]
    text = f"The weights of {row.layer} have the standard deviation {row.gain:.3g} / sqrt(fan_in), "
    text += f"with fan_in = {row.fan_in}."
    title = f"Initial weights are far too {'large' if row.gain > 1 else 'small'}."
    advice = "Use the standard deviation sqrt(2 / fan_in) under ReLU, 1 / sqrt(fan_in) otherwise."
    finding = Finding("bad_initialization", "serious", title, text, advice, row.layer)
    if wrong:
        yield from _suspected(evidence, finding, _fresh(evidence))
    else:
        yield Suspicion(finding, _fresh(evidence), certain=False)


def large_biases(evidence: Evidence):
    """Suspect biases beside which the inputs of a layer count for nothing, those of the last layer left out."""
    if evidence.healthy or not evidence.measured.rows:
        return
    last = [path.rpartition("/")[0] for path in evidence.measured.rows[-1].parameters]
    for path, bias in _leaves(evidence.variables["params"]):
        layer, _, name = path.rpartition("/")
        rms = float(np.sqrt((bias**2).mean()))
        if name == "bias" and layer not in last and rms > LARGE:
            title, text = "Initial biases are far too large.", f"The root mean square of {path} is {rms:.3g}."
            finding = Finding("bad_initialization", "serious", title, text, "Start with biases of 0.", layer)
            yield Suspicion(_collapse(evidence) or finding, _fresh(evidence), certain=False)
            return


def large_embeddings(evidence: Evidence):
    """Suspect look-up tables of large numbers, beside which later layers count for nothing."""
    rows = [row for row in evidence.measured.rows if row.kind == "embedding" and row.weight_rms > LARGE]
    if rows and not evidence.healthy:
        text = f"The entries of {rows[0].layer} have the root mean square {rows[0].weight_rms:.3g}."
        title, advice = "Initial embeddings are far too large.", "Use the standard deviation 1 / sqrt(features)."
        finding = Finding("bad_initialization", "serious", title, text, advice, rows[0].layer)
        yield Suspicion(finding, _drawn(evidence), certain=False)


def collapsed_features(evidence: Evidence):
    """Find layers that return nearly the same for all examples."""
    if not evidence.healthy and (finding := _collapse(evidence)):
        yield from _suspected(evidence, finding, _fresh(evidence))


def _collapse(evidence):
    """Return the finding of features that are nearly the same for all examples at the last layers, or None."""
    rows = [row for row in evidence.measured.rows[:-1] if row.kind != "embedding" and np.isfinite(row.cosine)]
    if not rows or _count(evidence) < 2:
        return None
    row, apart = rows[-1], 1 - _cosine(evidence.batch[0])
    # Outputs of a sigmoid are all near 1/2 before training, which is no collapse.
    if row.activation == "sigmoid" or apart <= 10 * COLLAPSED or 1 - row.cosine >= COLLAPSED or row.dead >= DEAD:
        return None
    text = f"The mean cosine between the features of two examples is {row.cosine:.6f} at {row.layer}, "
    text += f"and {1 - apart:.3f} between the inputs; the effective rank is {row.rank:.1f} of {row.features}."
    title = "Features collapse: different examples look the same to the last layers."
    advice = "Use biases of 0, normalize, add residual connections, or initialize from data."
    return Finding("collapsed_features", "serious", title, text, advice, row.layer)


def _cosine(inputs):
    x = np.concatenate([np.asarray(a, np.float64).reshape(len(a), -1) for a in jax.tree.leaves(inputs)], 1)
    x = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-30)
    n = len(x)
    return float((np.linalg.norm(x.sum(0)) ** 2 - n) / (n * (n - 1)))


CAUSES = (
    symmetric_units,
    dead_units,
    saturated_units,
    large_biases,
    scale_over_depth,
    gradients_over_steps,
    scale_of_layers,
    large_embeddings,
    collapsed_features,
    mild_scale_over_depth,
)
