"""Shattered gradients: in deep networks without skips, gradients at neighboring inputs are unrelated."""

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.doctor import changes
from deepjax.doctor.compiling import compile_quickly
from deepjax.doctor.evidence import LEARNS, Evidence, Remedy, Suspicion
from deepjax.doctor.report import Finding

LAYERS = 20  # fewer layers are not looked at
POINTS = 64  # on the line between two inputs
# Autocorrelation of the gradient from one point to the next: 0 for white noise, near 1 for brown noise (Balduzzi et al.
# 2017). A quarter is far from both.
SHATTERED = 0.25


def shattered_gradients(evidence: Evidence):
    """Find gradients in the inputs that are like white noise along a line of inputs."""
    leaves = jax.tree.leaves(evidence.batch[0])
    layers = len([row for row in evidence.measured.rows if row.kind != "embedding"])
    if layers < LAYERS or evidence.healthy or len(leaves) != 1 or leaves[0].dtype.kind != "f" or len(leaves[0]) < 2:
        return
    correlation = autocorrelation(evidence)
    if not correlation < SHATTERED:
        return
    text = (
        f"Along a line of {POINTS} points between two inputs, the autocorrelation of the gradient in the inputs from "
    )
    text += f"one point to the next is {correlation:.2f}; white noise has 0, brown noise nearly 1. "
    text += f"The model has {layers} layers."
    title = "Gradients are shattered: at neighboring inputs they have nothing in common."
    advice = "Add residual connections (with branches that start small), or use CReLU with looks-linear initialization."
    severity = "serious" if evidence.skill(evidence.planned) < LEARNS else "warning"
    skips = changes.with_skips(evidence.measured.rows[-1].layer, layers)
    remedy = Remedy("residual connections around the layers that keep their shape", skips)
    finding = Finding("shattered_gradients", severity, title, text, advice)
    yield Suspicion(finding, remedy if evidence.subject.module else None)


def autocorrelation(evidence: Evidence) -> float:
    """Return the mean correlation between the gradients at neighboring points of a line between two inputs.

    The gradient is that of a random combination of the outputs, in training mode, so that batch normalization takes its
    moments over the line. The mean gradient is subtracted.
    """
    subject, inputs = evidence.subject, evidence.batch[0]
    first, last = (jax.tree.leaves(inputs)[0][i] for i in range(2))
    share = jnp.linspace(0, 1, POINTS).reshape(-1, *[1] * first.ndim)
    line = first[None] * (1 - share) + last[None] * share
    structure = jax.tree.structure(inputs)

    def value(x):
        out, _ = subject.apply(evidence.variables, jax.tree.unflatten(structure, [x]), True, evidence.key)
        leaf = jax.tree.leaves(out)[0].astype(jnp.float32)
        weights = jax.random.normal(jax.random.fold_in(evidence.key, 8), leaf.shape[1:])
        return jnp.sum(leaf * weights[None])

    gradient = np.asarray(compile_quickly(jax.grad(value))(line), np.float64).reshape(POINTS, -1)
    gradient = gradient - gradient.mean(0)
    return float((gradient[1:] * gradient[:-1]).sum() / (gradient**2).sum() * POINTS / (POINTS - 1))
