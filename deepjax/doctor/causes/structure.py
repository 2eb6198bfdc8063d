"""Causes in the structure: dropout, activations between layers, parameters without gradient or without updates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from deepjax.doctor import changes, plan_changes, rewrites
from deepjax.doctor.evidence import Evidence, Remedy, Suspicion, runs, zeros
from deepjax.doctor.head import inlined
from deepjax.doctor.report import Finding
from deepjax.doctor.trials import planned_steps
from deepjax.trace import around_calls
from deepjax.trace.layers import AFFINE

SATURATING = ("sigmoid", "tanh", "hard_sigmoid", "hard_tanh")
NORMS = (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm)
DECAYS = {"no weight decay": 0.0, "a hundredth of the weight decay": 0.01}  # a little keeps some networks stable
ALIKE = 1e-3  # difference that counts as none, as a share of that between examples; float32 rounding gives about 1e-6
PATHS = 3  # that a text names


def dropout_after_output(evidence: Evidence):
    """Find a dropout behind the last layer."""
    if not evidence.measured.dropout_after_output:
        return
    remedy = _own_output(evidence, "no dropout after the last layer")
    title = "A dropout follows the last layer, so that outputs themselves are set to 0 in training."
    text = "Random bits multiply the output of the last layer."
    finding = Finding("dropout_misplaced", "serious", title, text, "Move the dropout before the last layer.")
    yield Suspicion(finding, remedy)


def _own_output(evidence, description):
    """Return the remedy that predicts by the output of the last layer itself, or None if it has another size."""
    head, facts = evidence.head, evidence.targets
    if head is None or facts.kind == "other":
        return None
    units = changes.fitting_loss(facts, evidence.subject.targets)[0]
    size = head.shape[-1] if facts.kind == "classes" else int(np.prod(head.shape))
    if units not in (head.shape[-1], size):
        return None
    return Remedy(description, partial(changes.new_output, head=head, facts=facts, keep=True))


def strong_dropout(evidence: Evidence):
    """Suspect dropouts of high rates."""
    module = evidence.subject.module
    if module is None or evidence.healthy:
        return
    rates = [float(module.rate) for module in called_modules(evidence, changes.DROPOUTS)]
    if rates and max(rates) >= 0.3:
        text = f"{len(rates)} dropouts with rates up to {max(rates):g}."
        title = "Dropout removes more than this network can spare."
        advice = "Lower the rates, or remove dropout until the network fits its training set."
        finding = Finding("dropout_too_high", "serious", title, text, advice)
        yield Suspicion(finding, Remedy("no dropout", changes.without_dropout), certain=False)


def called_modules(evidence, kinds):
    """Return the modules of these kinds that a Linen model calls in training."""
    found, subject = [], evidence.subject

    def rule(module, run, args, kwargs):
        if isinstance(module, kinds):
            found.append(module)
        return run(*args, **kwargs)

    with around_calls(rule):
        jax.eval_shape(lambda v: subject.apply(v, evidence.batch[0], True, evidence.key)[0], evidence.variables)
    return found


def linear_network(evidence: Evidence):
    """Find a network of several layers without an activation between them."""
    rows, subject, head = evidence.measured.rows, evidence.subject, evidence.head
    leaves = jax.tree.leaves(evidence.batch[0])
    if any(row.activation not in ("none", "other") for row in rows[:-1]):
        return
    if len(rows) < 2 or head is None or any(leaf.dtype.kind != "f" for leaf in leaves):
        return
    apply = jax.jit(lambda x: head.split(evidence.variables, x, False, evidence.key)[1])
    a = evidence.batch[0]
    key = jax.random.fold_in(evidence.key, 7)
    b = jax.tree.map(lambda x: jax.random.normal(key, x.shape) * (1 + np.abs(x).max()), a)
    middle = jax.tree.map(lambda x, y: (x + y) / 2, a, b)
    ends, between = (apply(a) + apply(b)) / 2, apply(middle)
    if float(jnp.abs(ends - between).max()) > 1e-3 * float(jnp.abs(ends).max() + 1e-30):
        return
    title = "There is no activation between the layers, so the network is one linear map."
    text = f"{len(rows)} layers; the output at the middle of two inputs is the mean of their outputs."
    advice = "Add an activation, such as ReLU, between layers."
    finding = Finding("missing_hidden_activation", "serious", title, text, advice)
    last = rows[-1].layer
    remedy = Remedy("a ReLU after every layer but the last", changes.with_relu(last)) if subject.module else None
    yield Suspicion(finding, remedy, certain=subject.module is None and not evidence.healthy, otherwise="note")


def saturating_activations(evidence: Evidence):
    """Suspect sigmoids and hyperbolic tangents between layers."""
    hidden = evidence.measured.rows[:-1]
    saturating = [row for row in hidden if row.activation in SATURATING]
    if len(saturating) * 2 < max(len(hidden), 1) or not saturating or evidence.healthy:
        return
    names = ", ".join(sorted({row.activation for row in saturating}))
    text = f"{len(saturating)} of {len(hidden)} hidden layers have the activation {names}."
    title = "The activations between the layers saturate, and their small derivatives multiply over the layers."
    finding = Finding("wrong_hidden_activation", "serious", title, text, "Use ReLU between layers.")
    yield Suspicion(finding, Remedy("ReLU in place of saturating activations", rewrites.relu_in_place), certain=False)


def parameters_without_gradient(evidence: Evidence):
    """Find parameters on which the loss does not depend, or whose gradient is blocked."""
    subject, params = evidence.subject, evidence.variables["params"]
    if changes.HEAD in params:
        return  # a new output has been added, and the old one is not used
    names = _without_gradient(evidence, subject)
    if not names:
        return
    count = len(jax.tree.leaves(params))
    text = f"{len(names)} of {count} arrays of parameters have no path to the loss: {_listed(names)}."
    title = "Some parameters get no gradient: their layers are not connected to the loss."
    advice = "Check that the layer's output is used, and that no `stop_gradient`, `argmax`, rounding or cast follows."
    remedy = _with_gradient(evidence, len(names))
    # A few layers whose output is not used, such as the last one of a WaveNet, and fixed random features do no harm.
    severity = "serious" if (remedy or 2 * len(names) >= count) and not evidence.healthy else "warning"
    yield Suspicion(Finding("no_gradient", severity, title, text, advice, layer=names[0]), remedy)


def _with_gradient(evidence, count):
    """Return the remedy that gives some of `count` arrays of parameters without gradient one, or None."""
    passing = Remedy("gradients that pass `stop_gradient`, rounding and comparisons", rewrites.connected)
    for remedy in (passing, _own_output(evidence, "the output of the last layer as the prediction")):
        changed = evidence.subject if remedy is None else remedy.change(evidence.subject)
        if remedy and runs(changed) and len(_without_gradient(evidence, changed)) < count:
            return remedy
    return None


def _without_gradient(evidence, subject):
    """Return the paths of the parameters whose gradient is 0 whatever the values are."""
    params = evidence.variables["params"]
    rest = {name: tree for name, tree in evidence.variables.items() if name != "params"}
    leaves, tree = jax.tree.flatten(params)

    def gradient(*leaves):
        def value(params):
            return subject.value({"params": params, **rest}, *evidence.batch, evidence.key)[0]

        return jax.tree.leaves(jax.grad(value)(jax.tree.unflatten(tree, leaves)))

    blocked = zeros(inlined(gradient, leaves).jaxpr)
    paths = ["/".join(str(k.key) for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return [path for path, each in zip(paths, blocked, strict=True) if each]


def hidden_softmax(evidence: Evidence):
    """Find a softmax between two layers."""
    hidden = evidence.measured.rows[:-1]
    # One unit, or a few of many layers, may be the weights of an attention or the gate of a mixture.
    rows = [row for row in hidden if row.activation in ("softmax", "log softmax") and row.features > 1]
    if not rows or 2 * len(rows) < len(hidden) or evidence.healthy:
        return
    title = f"A {rows[0].activation} stands between layers: its outputs compete, and most of them are near 0."
    text = f"{len(rows)} hidden layers have it, the first is {rows[0].layer}."
    severity = "serious" if evidence.skill(evidence.planned) < 0.5 else "warning"
    finding = Finding("wrong_hidden_activation", severity, title, text, "Use ReLU there.", rows[0].layer)
    yield Suspicion(finding, Remedy("ReLU in place of softmax", rewrites.relu_for_softmax))


def _listed(names):
    return ", ".join(names[:PATHS]) + (", ..." if len(names) > PATHS else "")


def frozen_parameters(evidence: Evidence):
    """Find parameters with a gradient that the optimizer does not change."""
    if not evidence.subject.planned:
        return
    gradient = jax.tree.map(jnp.ones_like, evidence.gradient)
    pairs = jax.tree_util.tree_leaves_with_path(evidence.updates(gradient))
    still = ["/".join(str(k.key) for k in path) for path, u in pairs if not np.any(np.asarray(u))]
    if not still or len(still) == len(pairs):
        return  # an optimizer that waits, to accumulate, changes nothing in the first step
    text = f"The optimizer's update is 0 for {len(still)} of {len(pairs)} arrays of parameters: {_listed(still)}."
    title = "Some layers are frozen: the optimizer does not change them."
    severity = "warning" if evidence.subject.given or evidence.healthy else "serious"
    advice = "Remove the mask, `set_to_zero` or learning rate 0 for these parameters, unless they are pretrained."
    yield Suspicion(
        Finding("frozen_layers", severity, title, text, advice, layer=still[0]),
        Remedy("Adam for all parameters", plan_changes.with_adam(1e-3)),
    )


def order_of_positions(evidence: Evidence):
    """Suspect a model that treats all positions of its inputs alike, so that it cannot tell their order."""
    leaves, outs = jax.tree.leaves(evidence.batch[0]), jax.tree.leaves(evidence.predicted)
    several = len(leaves) == 1 and leaves[0].ndim > 2 and leaves[0].dtype.kind == "f"
    drawn = evidence.subject.module is not None and not evidence.subject.given
    if not drawn or not several or outs[0].ndim > 2 or np.prod(leaves[0].shape[1:-1]) < 2 or evidence.healthy:
        return
    x = leaves[0].reshape(len(leaves[0]), -1, leaves[0].shape[-1])
    shuffled = np.random.default_rng(0).permutation(x, axis=1).reshape(leaves[0].shape)
    tree = jax.tree.structure(evidence.batch[0])
    variables = evidence.moved(1.0)  # a last layer of zeros would hide differences
    pair = [evidence.predict(variables, jax.tree.unflatten(tree, [a])) for a in (leaves[0], shuffled)]
    given, other = (np.asarray(jax.tree.leaves(out)[0], np.float64) for out in pair)
    if not np.abs(given - other).max() <= ALIKE * np.ptp(given, axis=0).max():
        return
    title = "The model treats all positions alike, so it cannot tell where something is."
    text = f"Its outputs stay the same if the {x.shape[1]} positions of an input are shuffled."
    advice = "Flatten the inputs before the first dense layer, or use convolutions or an encoding of positions."
    finding = Finding("missing_flatten", "serious", title, text, advice)
    yield Suspicion(finding, Remedy("all positions of the inputs flattened into one", changes.flattened), certain=False)


def strong_decay(evidence: Evidence):
    """Suspect weight decay, or a penalty that the optimizer adds to the gradient."""
    if evidence.healthy or not evidence.subject.planned:
        return
    zero = jax.tree.map(jnp.zeros_like, evidence.gradient)
    steps = (0, planned_steps(evidence.subject) // 2)
    if not any(np.any(np.asarray(u)) for step in steps for u in jax.tree.leaves(evidence.updates(zero, step))):
        return
    title = "Weight decay or a penalty on the weights is too strong: it works against the loss."
    text = "The optimizer changes weights that have no gradient."
    finding = Finding("regularization_too_strong", "serious", title, text, "Lower the weight decay or the penalty.")
    tried = [Suspicion(finding, Remedy(what, plan_changes.with_decay(f)), certain=False) for what, f in DECAYS.items()]
    yield evidence.best_of(tried)


def unnormalized_layers(evidence: Evidence):
    """Suspect that normalization is missing."""
    rows, subject = evidence.measured.rows, evidence.subject
    if evidence.healthy or evidence.unfinished or subject.module is None or len(rows) < 2:
        return
    if called_modules(evidence, NORMS):
        return
    title = "Without normalization between its layers, this network does not train."
    text = f"{len(rows)} layers."
    advice = "Normalize between the layers: `nn.LayerNorm` or `nn.BatchNorm`."
    finding = Finding("missing_normalization", "serious", title, text, advice)
    remedy = Remedy("layer normalization behind every layer but the last", changes.with_layer_norm(rows[-1].layer))
    yield Suspicion(finding, remedy, certain=False)


def superfluous_layers(evidence: Evidence):
    """Suspect that there are too many layers, where some of them keep the shape of their inputs."""
    rows, subject = evidence.measured.rows, evidence.subject
    if evidence.healthy or evidence.unfinished or subject.module is None or len(rows) < 4:
        return
    count = sum(changes.between(module) for module in called_modules(evidence, AFFINE))
    if count < 4:
        return
    title = "There are too many layers for this way of training."
    text = f"{count} layers."
    advice = "Use fewer layers, or add normalization and residual connections."
    remedy = Remedy("no layers that keep the shape of their input", changes.without_layers(rows[-1].layer))
    yield Suspicion(Finding("too_many_layers", "serious", title, text, advice), remedy, certain=False)


CAUSES = (dropout_after_output, hidden_softmax, parameters_without_gradient, frozen_parameters)
LATE = (linear_network, saturating_activations, strong_dropout, strong_decay)
LAST = (unnormalized_layers, superfluous_layers)
