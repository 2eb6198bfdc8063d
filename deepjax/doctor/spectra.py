"""Singular values of the map from inputs to outputs, and the sharpness of the loss."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.linalg import eigh_tridiagonal

from deepjax.doctor.compiling import compile_quickly

SIZE = 2**22  # entries of the largest Jacobian that is computed
STEPS = 30  # iterations for the largest eigenvalue, at most
STILL = 1e-3  # bound of the relative error of the eigenvalue, below which it is taken


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

    By Lanczos iteration (Lanczos 1950) with Hessian-vector products (Pearlmutter 1994), forward over reverse. NaN where
    the Hessian is not finite.
    """
    subject = evidence.subject
    rest = {name: tree for name, tree in evidence.variables.items() if name != "params"}
    start, unravel = ravel_pytree(jax.tree.map(lambda a: a.astype(jnp.float32), evidence.variables["params"]))
    dtypes = jax.tree.map(lambda a: a.dtype, evidence.variables["params"])

    def value(flat, inputs, targets):
        params = jax.tree.map(lambda a, dtype: a.astype(dtype), unravel(flat), dtypes)
        return subject.value({"params": params, **rest}, inputs, targets, evidence.key)[0]

    def step(before, vector, beta, start, inputs, targets):
        product = jax.jvp(jax.grad(lambda p: value(p, inputs, targets)), (start,), (vector,))[1]
        alpha = vector @ product
        product = product - alpha * vector - beta * before
        beta = jnp.linalg.norm(product)
        return product / jnp.maximum(beta, 1e-30), alpha, beta

    compiled = jax.jit(step)  # with XLA's optimizer, and not in a scan: on a CPU, both make convolutions fast
    vector = jax.random.normal(jax.random.fold_in(evidence.key, 100), start.shape)
    try:
        return _largest(lambda *state: compiled(*state, start, *evidence.batch), vector / jnp.linalg.norm(vector))
    except (TypeError, NotImplementedError):  # an operation without forward mode, such as a custom_vjp
        return float("nan")


def _largest(step, vector):
    """Return the largest eigenvalue by Lanczos iteration: `step` is (before, vector, beta) -> (next, alpha, beta)."""
    before, beta, alphas, betas, largest = jnp.zeros_like(vector), 0.0, [], [], float("nan")
    for _ in range(STEPS):
        after, alpha, beta = step(before, vector, beta)
        before, vector = vector, after
        alphas, betas = [*alphas, float(alpha)], [*betas, float(beta)]
        if not np.isfinite([alphas[-1], betas[-1]]).all():
            return float("nan")
        values, vectors = eigh_tridiagonal(alphas, betas[:-1])
        largest, error = float(values[-1]), betas[-1] * abs(vectors[-1, -1])
        if error <= STILL * abs(largest):
            break
    return largest
