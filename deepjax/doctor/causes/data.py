"""Causes in the data: values that are not finite, labels, encodings, scales."""

from functools import partial

import jax
import numpy as np
from jax.extend.core import Var

from deepjax.doctor import changes, plan_changes
from deepjax.doctor.compiling import compile_quickly
from deepjax.doctor.evidence import HEALTHY, LEARNS, MEASURED, Evidence, Remedy, Suspicion
from deepjax.doctor.head import SHAPED, inlined
from deepjax.doctor.report import Finding
from deepjax.doctor.trials import evaluated_rows

# Gradient descent needs a number of steps in proportion to the condition number of the inputs' second moments (LeCun et
# al. 1998). Inputs count as not scaled from a condition number of SCALE ** 2 = 1,000 on: a root mean square, a ratio of
# standard deviations or a mean in standard deviations of SCALE.
SCALE = 1000**0.5
MOVES = (*SHAPED, "slice", "dynamic_slice", "gather", "concatenate", "split")  # numbers stay as they are
COLUMNS, EACH = 64, 10  # at most so many columns of inputs may be codes, each value with 10 examples on average
SAME = 0.02  # share of examples that differ from the first one, below which inputs carry nothing


def non_finite_data(evidence: Evidence):
    """Find NaN and infinity in inputs and targets."""
    for name, tree in (("inputs", evidence.subject.inputs), ("targets", evidence.subject.targets)):
        for leaf in jax.tree.leaves(tree):
            good = np.isfinite(np.asarray(leaf, np.float32)).reshape(len(leaf), -1).all(1)
            if not good.all():
                rows = np.flatnonzero(np.logical_not(good))
                yield Suspicion(
                    Finding(
                        "non_finite",
                        "serious",
                        f"The {name} have values that are NaN or infinite.",
                        f"{len(rows)} of {len(leaf)} examples have them, the first is example {rows[0]}.",
                        "Remove or replace these values before training; with them every loss and gradient is NaN.",
                    ),
                    Remedy(f"leave out the examples with non-finite {name}", lambda s, g=good: _kept(s, g)),
                )


def _kept(subject, good):
    rows = np.flatnonzero(good)
    if not len(rows):
        return subject
    inputs, targets = subject.rows(rows)
    return subject.with_(inputs=inputs, targets=targets, batch_size=min(subject.batch_size, len(rows)))


def constant_labels(evidence: Evidence):
    """Find targets that are all equal."""
    if not evidence.targets.constant:
        return
    value = evidence.targets.low
    yield Suspicion(
        Finding(
            "constant_labels",
            "serious",
            "All targets are the same, so there is nothing to learn.",
            f"All {evidence.subject.examples} targets are {value:g}.",
            "Check how the targets are read and converted; a division before a cast to integers is a usual cause.",
        )
    )
    if evidence.outputs > 1 and evidence.loss.form == "index":
        yield Suspicion(
            Finding(
                "wrong_label_encoding",
                "serious",
                "The labels have one class where the model has several outputs.",
                f"The model has {evidence.outputs} outputs, the labels only the value {value:g}.",
                "Keep the labels as integers 0 to classes - 1 and do not scale them.",
            )
        )


def one_based(evidence: Evidence) -> bool:
    """Whether the labels of classes are 1 to the number of outputs."""
    facts, loss = evidence.targets, evidence.loss
    of_index = loss.form == "index" or loss.kind == "other"  # the loss of such labels may be NaN
    return facts.kind == "classes" and of_index and facts.low >= 1 and 1 < evidence.outputs == facts.high


def labels_from_one(evidence: Evidence):
    """Find labels that start at 1."""
    if not one_based(evidence):
        return
    text = f"Labels go from {evidence.targets.low:g} to {evidence.targets.high:g}, "
    text += f"and there are {evidence.outputs} outputs."
    title, advice = "The labels start at 1, so the last class has no output.", "Subtract 1 from the labels."
    finding = Finding("wrong_label_encoding", "serious", title, text, advice)
    yield Suspicion(finding, Remedy("labels from 0 on", partial(_from_zero, first=1)))


def two_values(evidence: Evidence) -> tuple[float, float] | None:
    """Return the values of targets that are two numbers other than 0 and 1, where the loss expects 0 or 1."""
    loss, leaves = evidence.loss, jax.tree.leaves(evidence.subject.targets)
    if not loss.kind.startswith("binary") or evidence.outputs > 1 or len(leaves) != 1:
        return None
    values = np.unique(leaves[0])
    if not np.isfinite(values).all():
        return None
    smoothed = 0 <= values[0] <= values[-1] <= 1
    return (float(values[0]), float(values[1])) if len(values) == 2 and not smoothed else None


def labels_of_two_values(evidence: Evidence):
    """Find labels such as -1 and 1 for a loss that expects 0 and 1."""
    values = two_values(evidence)
    if values is None:
        return
    text = f"The labels are {values[0]:g} and {values[1]:g}; the loss is a {evidence.loss.kind}."
    title = "The loss expects labels of 0 and 1, and gets others."
    finding = Finding("wrong_label_encoding", "serious", title, text, "Convert the labels to 0 and 1.")
    yield Suspicion(finding, Remedy("labels of 0 and 1", partial(_as_zero_and_one, high=values[1])))


def negative_labels(evidence: Evidence):
    """Find negative labels of positions that the loss does not leave out: an index of -1 is that of the last class."""
    facts, outputs = evidence.targets, jax.tree.leaves(evidence.predicted)
    if facts.ignored is None or len(outputs) != 1 or evidence.loss.expects == "number":
        return
    targets = jax.tree.leaves(evidence.subject.targets)[0]
    targets = targets[(targets < 0).reshape(len(targets), -1).any(1)][:MEASURED]
    predictions = jax.random.normal(jax.random.fold_in(evidence.key, 10), (len(targets), *outputs[0].shape[1:]))
    gradient = np.abs(compile_quickly(jax.grad(evidence.subject.loss))(predictions, targets))
    if gradient.shape[:-1] != targets.shape or not gradient[targets < 0].max() > 1e-6 * gradient.max():
        return
    text = f"Labels of {facts.ignored:g} have a gradient"
    text += "; as an index this number stands for the last class." if facts.ignored == -1 else "."
    title = "Negative labels are not left out of the loss."
    advice = "Mask these positions in the loss, or let the labels start at 0."
    severity = "warning" if evidence.healthy else "serious"
    finding = Finding("wrong_label_encoding", severity, title, text, advice)
    shift = facts.ignored == -1 and facts.classes < evidence.outputs
    yield Suspicion(finding, Remedy("labels from 0 on", partial(_from_zero, first=-1)) if shift else None)


def _as_zero_and_one(subject, high):
    return subject.with_(targets=jax.tree.map(lambda t: (t == high).astype(t.dtype), subject.targets))


def _from_zero(subject, first):
    return subject.with_(targets=jax.tree.map(lambda t: t - first, subject.targets))


def empty_inputs(evidence: Evidence):
    """Find inputs that are the same for all examples."""
    described = evidence.inputs or []
    leaves = jax.tree.leaves(evidence.subject.inputs)
    varied = [np.any(np.asarray(a) != np.asarray(a)[:1], axis=tuple(range(1, a.ndim))).mean() for a in leaves]
    examples = evidence.subject.examples
    if examples < 2 or max(varied) >= SAME or (max(varied) > 0 and examples <= 2 / SAME):
        return
    low = min((i.low for i in described), default=float(np.min(leaves[0])))
    high = max((i.high for i in described), default=float(np.max(leaves[0])))
    yield Suspicion(
        Finding(
            "wrong_input_encoding",
            "serious",
            "The inputs are the same for (almost) all examples, so the targets cannot be predicted from them.",
            f"{100 * max(varied):.1f} % of the examples differ from the first one; values from {low:g} to {high:g}.",
            "Check the preprocessing of the inputs, such as a cast to integers after a normalization.",
        )
    )


def unscaled_inputs(evidence: Evidence):
    """Find inputs that are too large, too small or of very different sizes."""
    for facts in evidence.inputs:
        texts = _scales(evidence, facts)
        if texts and (evidence.remedies or not evidence.healthy):
            yield Suspicion(
                Finding(
                    "inputs_not_scaled",
                    "serious",
                    "The inputs are not scaled, so one learning rate cannot fit all weights.",
                    "; ".join(texts) + ".",
                    "Standardize every feature (of images: every channel): subtract its mean, divide by its deviation.",
                ),
                Remedy("standardized inputs", plan_changes.standardized_inputs),
                certain=False,
                otherwise="note",
            )
            return


def _scales(evidence, facts):
    texts = []
    first = next((row for row in evidence.measured.rows if row.kind != "embedding"), None)
    seen = (first.std**2 + first.mean**2) ** 0.5 / max(first.gain, 1e-3) if first else facts.largest
    if facts.largest > SCALE and seen > SCALE / 3:
        texts.append(f"the largest root mean square of a feature is {facts.largest:.3g}")
    if 0 < facts.rms < 1 / SCALE and seen < 3 / SCALE:
        texts.append(f"the root mean square of all inputs is {facts.rms:.2g}")
    if facts.spread > SCALE:
        texts.append(f"the largest standard deviation of a feature is {facts.spread:.3g} times the smallest")
    if facts.offset > SCALE:
        texts.append(f"a feature's mean is {facts.offset:.3g} of its standard deviations")
    return texts


def unscaled_targets(evidence: Evidence):
    """Find numbers to predict that are far from the size of an untrained network's outputs."""
    facts, loss = evidence.targets, evidence.loss
    if facts.kind != "numbers" or loss.expects != "number" or facts.constant:
        return
    t = np.concatenate([np.asarray(a, np.float64).ravel() for a in jax.tree.leaves(evidence.subject.targets)])
    rms, offset = float(np.sqrt((t**2).mean())), float(abs(t.mean()) / (t.std() + 1e-300))
    if (rms > SCALE or offset > SCALE or rms < 1 / SCALE) and (evidence.remedies or not evidence.healthy):
        slower = not evidence.healthy and _slower_is_enough(evidence)
        yield Suspicion(
            Finding(
                "targets_not_scaled",
                "serious",
                "The targets are far from the size of the outputs of an untrained network.",
                f"Root mean square {rms:.3g}, mean {t.mean():.3g}, standard deviation {t.std():.3g}.",
                "Standardize the targets, and convert the predictions back.",
            ),
            None if slower else Remedy("standardized targets", plan_changes.standardized_targets),
            certain=False,
            otherwise="note",
        )


def unscaled_columns(evidence: Evidence):
    """Find targets that are far too large for a loss that is not recognized, so that its fall says little.

    What counts here is how well a linear function of the outputs gives these targets after training.
    """
    leaves = jax.tree.leaves(evidence.subject.targets)
    if evidence.loss.kind != "other" or len(leaves) != 1 or leaves[0].dtype.kind != "f":
        return
    columns = np.asarray(leaves[0], np.float64).reshape(len(leaves[0]), -1)
    rms = np.sqrt((columns**2).mean(0))
    large = np.flatnonzero((rms > SCALE) & (columns.std(0) > 0))
    if not len(large) or not (before := _fit(evidence, columns[:, large])) < HEALTHY:
        return
    title = "Targets are far from the size of the outputs of an untrained network."
    remedy = Remedy("standardized targets where they are large", plan_changes.standardized_columns(large))
    advice = "Standardize these targets, and convert the predictions back."
    text = f"The largest root mean square is {rms.max():.3g}. A linear function of the outputs explains {before:.0%} "
    suspicion = Suspicion(Finding("targets_not_scaled", "serious", title, text, advice), remedy)
    after = _fit(evidence.with_remedies([suspicion]), columns[:, large])
    if after >= before + LEARNS:
        text += f"of them after training, {after:.0%} with the remedy."
        yield Suspicion(Finding("targets_not_scaled", "serious", title, text, advice), remedy)


def _fit(evidence, targets):
    """Return R squared of the best linear function from trained outputs to targets, the mean over columns.

    NaN if there are too many outputs for the number of examples.
    """
    rows = evaluated_rows(evidence.subject, evidence.key)
    leaves = jax.tree.leaves(evidence.planned.predictions[0])
    outputs = np.concatenate([np.asarray(a, np.float64).reshape(len(rows), -1) for a in leaves], axis=1)
    if 10 * outputs.shape[1] > len(rows) or not np.isfinite(outputs).all():
        return np.nan if np.isfinite(outputs).all() else 0.0
    centered, wanted = (a - a.mean(0) for a in (outputs, targets[rows]))
    centered = centered / (centered.std(0) + 1e-30)
    solution, *_ = np.linalg.lstsq(centered, wanted, rcond=1e-6)
    return float(np.mean(1 - ((wanted - centered @ solution) ** 2).mean(0) / ((wanted**2).mean(0) + 1e-300)))


def _slower_is_enough(evidence):
    """Whether a lower learning rate alone makes the model learn well."""
    skills = [evidence.skill(evidence.sweep, i) for i, f in enumerate(evidence.sweep.factors) if f < 1]
    return max(skills) >= HEALTHY


def codes_as_quantities(evidence: Evidence):
    """Suspect columns of few values that may be codes, such as ids of shops, if a model computes with them."""
    leaves, outs = jax.tree.leaves(evidence.batch[0]), jax.tree.leaves(evidence.predicted)
    plain = evidence.head is not None and evidence.head.activation == "none"
    if evidence.healthy or len(leaves) != 1 or not plain or outs[0].ndim > 2 or not _computed_with(evidence):
        return
    values = _codes(jax.tree.leaves(evidence.subject.inputs)[0])
    if not values:
        return
    counts = ", ".join(f"{len(v)}" for v in list(values.values())[:5])
    title = "Numbers that may be codes, without order, are used as quantities."
    text = f"{len(values)} columns of the inputs have few different values, in equal steps: {counts}."
    advice = "Encode them: `nn.Embed`, or `jax.nn.one_hot`, one row for each value."
    finding = Finding("wrong_input_encoding", "serious", title, text, advice)
    remedy = Remedy("embeddings of the codes added to the output", changes.with_codes(values, outs[0].shape[1:]))
    yield Suspicion(finding, remedy, certain=False)


def _codes(x):
    """Return {column: its values} of the columns [examples, columns] that may be codes, standardized or not."""
    if x.ndim != 2 or x.shape[1] > COLUMNS:
        return {}
    found = {j: np.unique(x[:, j]) for j in range(x.shape[1])}
    limit = len(x) // EACH
    return {j: v for j, v in found.items() if 3 <= len(v) <= limit and _in_steps(v.astype(np.float64))}


def _in_steps(values):
    """Whether numbers are whole, but for their scale and origin."""
    steps = np.diff(values) / np.diff(values).min()
    return np.abs(steps - np.round(steps)).max() < 0.01


def _computed_with(evidence):
    """Whether a model computes with its inputs, and does not only compare them or use them as indices."""
    x = jax.tree.leaves(evidence.batch[0])[0]
    tree, variables = jax.tree.structure(evidence.batch[0]), evidence.variables

    def apply(x):
        return evidence.subject.apply(variables, jax.tree.unflatten(tree, [x]), False, evidence.key)[0]

    jaxpr = inlined(apply, [x]).jaxpr
    same = set(jaxpr.invars)  # the inputs, moved to other places, or as whole numbers
    for eqn in jaxpr.eqns:
        used = [v for v in eqn.invars if isinstance(v, Var) and v in same]
        if not used:
            continue
        types = [getattr(v.aval, "dtype", None) for v in (used[0], eqn.outvars[0])]
        whole = [np.issubdtype(each, np.integer) for each in types]
        if np.issubdtype(types[1], np.bool_):
            continue
        if whole[1] or (not whole[0] and eqn.primitive.name in MOVES):
            same.update(eqn.outvars)
        elif not whole[0] or eqn.primitive.name == "convert_element_type":
            return True
    return False


CAUSES = (non_finite_data, constant_labels, labels_from_one, labels_of_two_values, negative_labels, empty_inputs)
SCALES = (unscaled_inputs, unscaled_targets, unscaled_columns)
LAST = (codes_as_quantities,)
