"""Causes at the output: the last activation, the number of outputs and the loss must fit the targets and each other."""

from functools import partial

import jax
import numpy as np

from deepjax.doctor import changes, plan_changes
from deepjax.doctor.causes.data import one_based, two_values
from deepjax.doctor.evidence import LEARNS, Evidence, Remedy, Suspicion
from deepjax.doctor.report import Finding
from deepjax.doctor.trials import evaluated_rows

RANGES = {"sigmoid": (0, 1), "softmax": (0, 1), "tanh": (-1, 1), "relu": (0, np.inf), "log softmax": (-np.inf, 0)}
OPPOSED = 0.5  # correlation that random labels do not reach
NUMERIC = ("", "number", "rate", "log rate")  # what a loss expects that may have any number of outputs
SLOW = "A loss of numbers is used for classes; its gradient vanishes for confident wrong predictions."
CLASSES = ("classes", "one-hot", "shares", "binary", "labels")
RIGHT = {
    "classes": "a softmax",
    "one-hot": "a softmax",
    "shares": "a softmax",
    "binary": "a sigmoid",
    "labels": "a sigmoid",
}


def suspicions(evidence: Evidence):
    """Find everything that does not fit at the output. One remedy is for all: a new output with a loss that fits."""
    if two_values(evidence) or one_based(evidence):
        return  # causes of their own
    found = [
        *_units(evidence),
        *_single(evidence),
        *_activation(evidence),
        *_cut_logits(evidence),
        *_loss(evidence),
        *_shapes(evidence),
    ]
    if not found:
        return
    remedy = _remedy(evidence, [code for code, *_ in found])
    if remedy is not None and [title for _, title, *_ in found] == [SLOW]:  # such models may learn
        code, title, text, advice = found[0]
        yield Suspicion(Finding(code, "serious", title, text, advice), remedy, certain=False, otherwise="last")
        return
    for code, title, text, advice in found:
        mild = "all targets" in title and evidence.skill(evidence.planned) >= 0.5  # most of them can be reached
        grade = "note" if code == "targets_not_scaled" else "warning" if mild else "serious"
        yield Suspicion(Finding(code, grade, title, text, advice), remedy)


def _units(evidence):
    """The number and shape of the outputs against the targets."""
    facts, shape = evidence.targets, _shape(evidence)
    goal = jax.tree.leaves(evidence.subject.targets)[0].shape
    classes, outputs = facts.classes, evidence.outputs
    if shape is None:
        return
    known = facts.kind != "other" and (evidence.loss.kind != "other" or not evidence.healthy)
    if known and len(shape) > 1 and _positions(shape) > _positions_of(facts, goal):
        yield (
            "missing_flatten",
            "The model predicts for every position where one prediction per example is wanted.",
            f"Predictions have the shape {list(shape)}, targets {list(goal)}.",
            "Flatten or pool the positions before the last layers.",
        )
    multiclass = facts.kind in ("classes", "one-hot") and classes > 2
    of_classes = evidence.loss.form == "index" or evidence.loss.expects not in NUMERIC
    # Labels without an output may make the loss NaN.
    not_finite = evidence.loss.kind == "other" and outputs > 1 and not np.isfinite(evidence.planned.loss[0])
    if multiclass and not facts.constant and outputs < classes and (of_classes or not_finite):
        yield (
            "wrong_output_units",
            f"{classes} classes need {classes} outputs.",
            f"The last layer has {outputs} output{'s' if outputs > 1 else ''} for {classes} classes.",
            f"Give the last layer {classes} units, with a softmax.",
        )
    elif multiclass and outputs == 1:
        yield (
            "wrong_output_units",
            f"{classes} classes are predicted as one number.",
            "The last layer has 1 output; classes have no order on a line.",
            f"Give the last layer {classes} units, with a softmax.",
        )
    if facts.kind == "numbers" and evidence.loss.form == "broadcast" and outputs > 1:
        yield (
            "wrong_output_units",
            "The model has more outputs than there are numbers to predict.",
            f"Predictions have the shape {list(shape)}, targets {list(goal)}; the loss repeats each target.",
            "Give the last layer one unit per number.",
        )


def _single(evidence):
    """One output where each example has several targets."""
    shape, goal = _shape(evidence), _target(evidence).shape
    if shape is not None and not evidence.targets.classes > 2 and _repeats(evidence, shape, goal):
        yield (
            "wrong_output_units",
            "The model has one output where there are several targets.",
            f"Predictions have the shape {list(shape)}, targets {list(goal)}; the loss repeats each prediction.",
            f"Give the last layer {goal[-1]} units.",
        )


def _repeats(evidence, shape, goal):
    """Whether the loss compares one prediction [examples, 1] with all targets [examples, n] of its example."""
    if len(shape) != 2 or len(goal) != 2 or shape[1] > 1 or goal[1] == 1:
        return False
    targets = _target(evidence)[:16]
    one = jax.random.uniform(jax.random.fold_in(evidence.key, 9), (len(targets), 1), minval=0.1, maxval=0.9)
    repeated = jax.numpy.tile(one, (1, goal[1]))
    try:
        a, b, c = (float(evidence.subject.loss(p, targets)) for p in (one, repeated, repeated.at[:, 1:].add(0.05)))
    except Exception:  # a loss of the user's own, which need not take this shape
        return False
    return bool(np.isclose(a, b, rtol=1e-4) and not np.isclose(b, c, rtol=1e-4))


def _shape(evidence):
    leaves = jax.tree.leaves(evidence.predicted)
    return leaves[0].shape if len(leaves) == 1 else None


def _positions(shape):
    return int(np.prod(shape[1:-1]))


def _positions_of(facts, goal):
    """Return how many positions have a target, at most: of one column of targets each may be one."""
    return int(np.prod(goal[1:-1] if facts.kind in ("one-hot", "shares") else goal[1:]))


def _activation(evidence):
    """The last activation against the loss, and where this fits, against the targets."""
    if evidence.head is not None:
        yield from [*_activation_for_loss(evidence)] or _activation_for_targets(evidence)


def _activation_for_loss(evidence):
    facts, loss = evidence.targets, evidence.loss
    act, outputs = evidence.head.activation, evidence.outputs
    right = RIGHT.get(facts.kind, "no activation")
    advice = f"Use {right} at the output, or no activation and a loss of logits."
    if act == "constant":
        text = f"It does not depend on what the last layer returns; {_goal(facts)}."
        advice = f"Use {right if facts.kind != 'classes' or facts.classes == 2 else 'a sigmoid'} at the output."
        title = "The output is always the same, as that of a softmax over one unit."
        yield "wrong_output_activation", title, text, advice
    elif loss.expects == "logit" and act in ("softmax", "sigmoid"):
        own = "sigmoid" if "binary" in loss.kind else "softmax"
        same = f"The loss is a {loss.kind}, which applies its own {own}"
        title = f"The output is squashed twice: the model ends in a {act}, and the loss expects logits."
        yield "wrong_output_activation", title, same + ".", "Remove the last activation."
    elif loss.expects == "probability" and act == "none":
        text = f"The loss is a {loss.kind}; the last layer has no activation."
        title = "The loss expects probabilities, and the model returns raw numbers."
        yield "missing_output_activation", title, text, advice
    elif loss.expects == "probability" and act in ("relu", "tanh", "log softmax"):
        text = f"The loss is a {loss.kind}; the last activation is {act}, with values in {_range(act)}."
        title = f"The loss expects probabilities, and {act} does not return any."
        yield "wrong_output_activation", title, text, advice
    elif loss.expects == "log probability" and act in ("none", "softmax", "sigmoid", "relu"):
        text = f"The loss is a {loss.kind}; the last activation is {act}."
        code = "missing_output_activation" if act == "none" else "wrong_output_activation"
        yield code, "The loss expects logarithms of probabilities.", text, "Use a log-softmax at the output."
    elif loss.expects == "rate" and act == "none" and not evidence.healthy:
        title = "The loss expects positive numbers, and the model may return negative ones."
        text = "The last layer has no activation; the loss takes the logarithm, or a root, of predictions."
        yield "missing_output_activation", title, text, "Use a softplus or an exponential at the output."
    elif loss.kind.startswith("cross entropy") and act == "sigmoid" and outputs > 1:
        title = "Several classes exclude each other, and a sigmoid for each does not say so."
        text = f"The loss is a {loss.kind} over {outputs} outputs, each with its own sigmoid."
        yield "wrong_output_activation", title, text, "Use a softmax at the output."


def _activation_for_targets(evidence):
    facts, loss = evidence.targets, evidence.loss
    act, outputs = evidence.head.activation, evidence.outputs
    if act == "sigmoid" and facts.kind in ("classes", "one-hot") and facts.classes > 2 and outputs <= facts.classes:
        title = "A sigmoid is at the output where the targets are one of several classes."
        text = f"{facts.classes} classes, {outputs} output{'s' if outputs > 1 else ''} with a sigmoid."
        yield "wrong_output_activation", title, text, "Use a softmax over one output per class."
    elif act == "softmax" and facts.kind == "labels" and outputs > 1 and _shape(evidence) == _target(evidence).shape:
        title = "The labels do not exclude each other, and a softmax makes their shares sum to 1."
        text = f"An example may have several of {outputs} labels; the last activation is a softmax."
        yield "wrong_output_activation", title, text, "Use a sigmoid for each label."
    elif act in ("relu", "tanh") and facts.kind in CLASSES and loss.expects == "number" and not evidence.healthy:
        title = f"The last activation, {act}, does not fit targets that are 0 or 1."
        text = f"It returns values in {_range(act)}; {_goal(facts)}."
        right = RIGHT[facts.kind]
        yield "wrong_output_activation", title, text, f"Use {right} at the output, and {_fitting(facts)}."
    elif facts.kind in ("numbers", "signs") and act in RANGES and not _reachable(act, facts):
        title = f"The last activation, {act}, cannot reach all targets."
        text = f"It returns values in {_range(act)}; the targets go from {facts.low:.4g} to {facts.high:.4g}."
        yield "wrong_output_activation", title, text, "Use no activation at the output."
        if act != "relu":
            title = f"The targets are not scaled to the range of the output's {act}."
            yield "targets_not_scaled", title, text, "If the activation is wanted, scale the targets into its range."
    elif facts.kind == "shares" and act in ("sigmoid", "tanh", "relu") and not evidence.healthy:
        title = f"The targets are shares with the sum 1, and {act} outputs do not sum to 1."
        text = f"The last activation is {act}, over {outputs} outputs."
        yield "wrong_output_activation", title, text, "Use a softmax at the output."
    elif act == "none" and facts.kind in ("one-hot", "shares") and loss.expects == "number" and not evidence.healthy:
        title = "The model returns raw numbers for classes."
        text = f"{_goal(facts).capitalize()}; the last layer has no activation."
        yield "missing_output_activation", title, text, "Use a softmax at the output, and the cross entropy."


def _cut_logits(evidence):
    """A ReLU between the last layer and a softmax."""
    head = evidence.head
    cut = head is not None and head.rectified and head.activation == "softmax"
    if cut and evidence.outputs > 1 and not evidence.healthy:
        title = "A ReLU cuts the negative logits before the softmax."
        text = "Changes of the last layer's negative outputs do not change the predictions."
        yield "wrong_hidden_activation", title, text, "Remove the activation before the softmax."


def _goal(facts):
    return f"the targets are {facts.classes} classes" if facts.classes else f"the targets are {facts.kind}"


def _range(act):
    low, high = RANGES[act]
    return f"[{low:g}, {high:g}]"


def _reachable(act, facts):
    low, high = RANGES[act]
    room = 1e-6 + 0.05 * (facts.high - facts.low)  # rounding, and noise of single targets
    return act != "softmax" and low - room <= facts.low and facts.high <= high + room


def _loss(evidence):
    """The loss against the targets."""
    facts, loss = evidence.targets, evidence.loss
    if loss.kind == "constant":
        text = "Its gradient in random predictions is 0."
        title = "The loss does not depend on the predictions."
        yield "wrong_loss", title, text, f"Use {_fitting(facts)}."
    elif loss.kind.startswith("negated"):
        text = f"Its gradient is the opposite of that of a {loss.kind.removeprefix('negated ')}."
        yield "wrong_loss", "The loss has the wrong sign: it rewards wrong predictions.", text, "Minimize its negative."
    elif loss.form == "broadcast" and facts.kind in ("classes", "binary") and evidence.outputs > 1:
        text = f"Targets of shape {list(_target(evidence).shape)} are repeated for {evidence.outputs} outputs."
        title = f"The loss, {loss.kind}, takes the index of a class for the target of every output."
        yield "wrong_loss", title, text, "Use a loss of indices (sparse cross entropy), or one-hot targets."
    elif loss.expects in ("probability", "logit") and facts.kind in ("numbers", "signs") and not _in_unit(facts):
        text = f"The loss is a {loss.kind}; the targets go from {facts.low:.4g} to {facts.high:.4g}."
        title = "A loss of probabilities is used for numbers that are not in [0, 1]."
        yield "wrong_loss", title, text, "Use the mean squared error."
    elif loss.kind.startswith("binary") and facts.kind == "classes" and facts.classes > 2:
        text = f"The loss is a {loss.kind}; the targets are {facts.classes} classes."
        yield "wrong_loss", "A loss of two classes is used for several.", text, f"Use {_fitting(facts)}."
    elif loss.kind.startswith("cross entropy") and _several_at_once(evidence) and not evidence.healthy:
        share = float((_target(evidence).sum(-1) > 1).mean())
        text = f"The loss is a {loss.kind}; {100 * share:.0f} % of the examples have several labels."
        title = "A loss of classes that exclude each other is used for labels that do not."
        yield "wrong_loss", title, text, f"Use {_fitting(facts)} for each label."
    elif loss.expects in ("number", "rate") and facts.kind in CLASSES and not evidence.healthy:
        text = f"The loss is a {loss.kind}; {_goal(facts)}."
        yield "wrong_loss", SLOW, text, f"Use {_fitting(facts)}."


def _several_at_once(evidence):
    """Whether examples may have several of the labels at once."""
    return evidence.targets.kind == "labels" and bool((_target(evidence).sum(-1) > 1).any())


def _in_unit(facts):
    return 0 <= facts.low <= facts.high <= 1


def _target(evidence):
    return jax.tree.leaves(evidence.subject.targets)[0]


def _fitting(facts):
    names = {"classes": "the cross entropy of indices", "one-hot": "the cross entropy", "shares": "the cross entropy"}
    names["numbers"] = names["signs"] = "the mean squared error"
    return names.get(facts.kind, "the binary cross entropy")


def _shapes(evidence):
    if evidence.loss.outer:
        shapes = [list(_shape(evidence) or ()), list(_target(evidence).shape)]
        title = "The loss compares every prediction with the target of every example, because of their shapes."
        text = f"Predictions {shapes[0]} and targets {shapes[1]} are broadcast to a matrix of all pairs."
        yield "wrong_loss", title, text, "Give both the same shape before the loss."


def _remedy(evidence, codes):
    head, facts = evidence.head, evidence.targets
    if codes == ["missing_output_activation"] and evidence.loss.expects == "rate" and facts.kind == "numbers":
        return Remedy("a softplus at the output", changes.positive_output)
    if set(codes) == {"wrong_loss"} and evidence.loss.outer:
        return Remedy("targets in the shape of the predictions", plan_changes.shaped_targets)
    if head is None or facts.kind == "other" or facts.constant:
        return None
    units, _, expects = changes.fitting_loss(facts, evidence.subject.targets)
    keep = head.shape[-1] == units and "missing_flatten" not in codes
    what = "the last layer kept" if keep else f"a new last layer of {units} unit{'s' if units > 1 else ''}"
    loss = _fitting(facts) + (" of logits" if expects == "logit" else "")
    change = partial(changes.new_output, head=head, facts=facts, keep=keep)
    return Remedy(f"{what}, no activation after it, and {loss}", change)


def unrelated_loss(evidence: Evidence):
    """Find a loss that is not known and that falls while predictions do not come closer to the targets."""
    facts, shape = evidence.targets, _shape(evidence)
    if evidence.loss.kind != "other" or facts.kind != "numbers" or shape != _target(evidence).shape:
        return
    fit = float(evidence.planned.quality[0])
    if not evidence.healthy or fit >= LEARNS:
        return
    text = f"In training as planned the loss falls, and R squared of the predictions is {max(fit, 0):.2f}."
    title = "The loss falls, but the predictions do not come closer to the targets."
    advice = "If the targets are to be predicted as they are, use the mean squared error."
    yield Suspicion(Finding("wrong_loss", "note", title, text, advice))


def opposed_loss(evidence: Evidence):
    """Find a loss that is not known, with which scores become large for the labels for which they should be small."""
    facts, shape = evidence.targets, _shape(evidence)
    labels = facts.kind == "signs" or (facts.kind in ("binary", "labels") and facts.classes == 2)
    if evidence.loss.kind != "other" or not labels or shape is None or np.prod(shape) != _target(evidence).size:
        return
    scores = np.asarray(jax.tree.leaves(evidence.planned.predictions[0])[0], np.float64).ravel()
    wanted = np.asarray(_target(evidence), np.float64)[evaluated_rows(evidence.subject, evidence.key)].ravel()
    if not np.isfinite(scores).all() or scores.min() >= 0 or scores.max() <= 0:  # distances are small for equal pairs
        return
    correlation = float(np.corrcoef(scores, wanted)[0, 1]) if scores.std() > 0 else 0.0
    if correlation > -OPPOSED:
        return
    loss = evidence.subject.loss
    title = "The loss has the wrong sign: the model learns the opposite of the labels."
    text = f"After training as planned, the correlation of predictions and labels is {correlation:.2f}."
    finding = Finding("wrong_loss", "serious", title, text, "Change the sign of the predictions in the loss.")
    change = Remedy("predictions with the other sign in the loss", lambda s: s.with_(loss=lambda p, t: loss(-p, t)))
    yield Suspicion(finding, change)


def summing_loss(evidence: Evidence):
    """Find a loss that adds up over the examples."""
    if not evidence.loss.sums or evidence.healthy:
        return
    size = evidence.subject.batch_size
    yield Suspicion(
        Finding(
            "loss_reduction",
            "serious",
            "The loss is a sum over the examples, so the gradient grows with the batch size.",
            f"The loss of a batch twice as large is twice as large; the rate is {size} times as high.",
            "Take the mean over the examples, or divide the learning rate by the batch size.",
        ),
        Remedy("the mean over the examples", plan_changes.mean_loss),
    )


def bounded_logits(evidence: Evidence):
    """Suspect logits that stay in [-1, 1] whatever the weights are, such as cosines and lengths of capsules."""
    recognized = evidence.head is not None and evidence.head.activation in RANGES
    if evidence.loss.expects != "logit" or evidence.outputs < 2 or recognized or evidence.healthy:
        return
    largest = np.max([_largest(evidence, factor) for factor in (1, 100, -100)])  # NaN, if one is
    if not largest <= 1 + 1e-4:
        return
    title = "The outputs stay between -1 and 1 whatever the weights are, so no prediction can be certain."
    text = f"Even with all weights times 100, the largest output is {largest:.3g}; the loss expects logits."
    advice = "Multiply the outputs by a scale of 10 or more, fixed or learned, or use a loss for such outputs."
    finding = Finding("wrong_output_activation", "serious", title, text, advice)
    yield Suspicion(finding, Remedy("outputs times 10", changes.scaled_output(10.0)), certain=False)


def _largest(evidence, factor):
    """Return the largest absolute output on the batch, with parameters that are moved and multiplied by a factor."""
    out = evidence.predict(evidence.moved(factor), evidence.batch[0])
    return float(np.abs(np.asarray(jax.tree.leaves(out)[0], np.float64)).max())


CAUSES = (suspicions, unrelated_loss, opposed_loss, summing_loss, bounded_logits)
