"""Singular values of the map from inputs to outputs, and the sharpness of the loss."""

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.doctor.compiling import compile_quickly

SIZE = 2**22  # entries of the largest Jacobian that is computed
POWER = 30  # iterations for the largest eigenvalue, at most
STILL = 1e-3  # relative change of the eigenvalue in an iteration, below which it is taken


def jacobian(evidence) -> tuple[float, ...]:
    """Return the singular values of the Jacobian of one example's outputs in its inputs, the largest first.

    They are empty for inputs or outputs of several arrays, for indices, and for Jacobians of more than SIZE entries.
    """
    subject = evidence.subject
    leaves, outs = jax.tree.leaves(evidence.batch[0]), jax.tree.leaves(evidence.predicted)
    if len(leaves) != 1 or len(outs) != 1 or leaves[0].dtype.kind != "f":
        return ()
    entries = int(np.prod(leaves[0].shape[1:])) * int(np.prod(outs[0].shape[1:]))
    if entries > SIZE:
        return ()

    def one(x):
        inputs = jax.tree.map(lambda _: x[None], evidence.batch[0])
        out, _ = subject.apply(evidence.variables, inputs, False, evidence.key)
        return jax.tree.leaves(out)[0].astype(jnp.float32).ravel()

    matrix = np.asarray(compile_quickly(jax.jacrev(one))(jnp.asarray(leaves[0][0])))
    matrix = matrix.reshape(len(matrix), -1)
    if not np.isfinite(matrix).all():
        return ()
    return tuple(float(s) for s in np.linalg.svd(matrix, compute_uv=False))


def sharpness(evidence) -> float:
    """Return the largest eigenvalue of the Hessian of the loss on one batch in the parameters.

    By power iteration with Hessian-vector products (Pearlmutter 1994), forward over reverse. If that finds a negative
    eigenvalue, the largest by size, it is subtracted from the diagonal, so that the largest eigenvalue is the largest
    by size. NaN where the Hessian is not finite.
    """
    subject = evidence.subject
    rest = {name: tree for name, tree in evidence.variables.items() if name != "params"}

    def value(params, inputs, targets):
        return subject.value({"params": params, **rest}, inputs, targets, evidence.key)[0]

    def step(vector, shift, params, inputs, targets):
        length = jnp.sqrt(sum(jnp.sum(a.astype(jnp.float32) ** 2) for a in jax.tree.leaves(vector)))
        unit = jax.tree.map(lambda a: (a / jnp.maximum(length, 1e-30)).astype(a.dtype), vector)
        product = jax.jvp(jax.grad(lambda p: value(p, inputs, targets)), (params,), (unit,))[1]
        product = jax.tree.map(lambda a, u: (a + shift * u).astype(a.dtype), product, unit)
        return product, sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (unit, product)), strict=True))

    compiled = jax.jit(step)  # with XLA's optimizer, and not in a scan: on a CPU, both make convolutions fast

    def shifted(shift):
        return _power(lambda v: compiled(v, shift, evidence.variables["params"], *evidence.batch), evidence) - shift

    try:
        largest = shifted(0.0)
        return shifted(-largest) if largest < 0 else largest
    except (TypeError, NotImplementedError):  # an operation without forward mode, such as a custom_vjp
        return float("nan")


def _power(multiply, evidence):
    """Return the eigenvalue that is the largest by size; `multiply` is a function (vector) -> (product, eigenvalue)."""
    leaves, tree = jax.tree.flatten(evidence.variables["params"])
    keys = [jax.random.fold_in(evidence.key, 100 + i) for i in range(len(leaves))]
    draws = [jax.random.normal(key, a.shape, a.dtype) for key, a in zip(keys, leaves, strict=True)]
    vector, largest = jax.tree.unflatten(tree, draws), float("nan")
    for _ in range(POWER):
        vector, rayleigh = multiply(vector)
        before, largest = largest, float(rayleigh)
        if abs(largest - before) <= STILL * abs(largest):
            break
    return largest
