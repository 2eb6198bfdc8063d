"""What to do about the first value that is not finite."""

import math

import jax.numpy as jnp

TRAP = (
    "a gradient of 0 met an infinite derivative, and 0 times infinity is NaN. A `where`, a mask, a ReLU or a factor 0 "
    "hides the bad elements from the result, but not from the backward pass. Put a second `where` inside: "
    "where(ok, f(where(ok, x, 1)), 0)"
)
_NAMES = (
    "add add_any mul square integer_pow exp exp2 expm1 sinh cosh dot_general reduce_sum reduce_prod cumsum cumprod "
    "cumlogsumexp convert_element_type reduce_window_sum conv_general_dilated conv_forward conv_input_gradient "
    "conv_kernel_gradient scatter-add"
)
OVERFLOWING = frozenset(_NAMES.split())  # defined for all finite operands
FORWARD = {
    "log": "log has no finite value there; take the logarithm of x + 1e-7 or of maximum(x, 1e-7), or compute it from "
    "logits by jax.nn.log_softmax or jax.nn.log_sigmoid",
    "log1p": "log1p(x) needs x above -1; clip x",
    "sqrt": "sqrt needs a number that is not negative; rounding can make a variance negative: use maximum(x, 0)",
    "rsqrt": "rsqrt needs a number above 0; add a small constant: rsqrt(x + 1e-6)",
    "div": "the denominator is 0; add a small constant to it, or use maximum(denominator, 1e-7)",
    "rem": "the divisor is 0",
    "pow": "a negative base has no power with a fractional exponent, and 0 none with a negative one; limit the base by "
    "maximum(x, 1e-7)",
    "integer_pow": "0 has no negative power; limit the base by maximum(x, 1e-7)",
    "acos": "arccos needs a number in [-1, 1]; rounding leaves that range: clip it to [-1 + 1e-6, 1 - 1e-6]",
    "asin": "arcsin needs a number in [-1, 1]; rounding leaves that range: clip it to [-1 + 1e-6, 1 - 1e-6]",
    "acosh": "arccosh needs a number of at least 1; clip it",
    "atanh": "arctanh needs a number between -1 and 1; clip it to [-1 + 1e-6, 1 - 1e-6]",
    "cholesky": "the matrix is not positive definite; add a small multiple of the identity",
    "custom_linear_solve": "the matrix is singular; add a small multiple of the identity, or solve by least squares",
    "triangular_solve": "the matrix is singular: a number on its diagonal is 0",
    "gather": "an index is outside of the array, where jnp.take gives NaN; look for labels or tokens too large",
    "erf_inv": "erf_inv needs a number between -1 and 1; clip it",
    "sub": "infinity minus infinity: such as a row of scores in which everything is masked by -inf; mask by a large "
    "finite number, such as -1e9, or leave such rows out",
}
BACKWARD = {
    "sqrt": "the derivative of sqrt at 0 is infinite; a norm of a zero vector has it too: use sqrt(x + 1e-12)",
    "rsqrt": "the derivative of rsqrt at 0 is infinite; use rsqrt(x + 1e-6)",
    "cbrt": "the derivative of cbrt at 0 is infinite; add a small constant to its operand",
    "log": "the derivative of log at 0 is infinite; use log(x + 1e-7)",
    "log1p": "the derivative of log1p at -1 is infinite; clip its operand",
    "pow": "the derivative of a power at 0 is infinite for exponents below 1; use (x + 1e-7) ** y",
    "integer_pow": "0 has no negative power; limit the base by maximum(x, 1e-7)",
    "div": "the denominator is 0; add a small constant to it, or use maximum(denominator, 1e-7)",
    "acos": "the derivative of arccos at -1 and 1 is infinite; clip its operand to [-1 + 1e-6, 1 - 1e-6]",
    "asin": "the derivative of arcsin at -1 and 1 is infinite; clip its operand to [-1 + 1e-6, 1 - 1e-6]",
    "acosh": "the derivative of arccosh at 1 is infinite; clip its operand",
    "atanh": "the derivative of arctanh at -1 and 1 is infinite; clip its operand",
    "atan2": "the derivative of arctan2 at (0, 0) is not finite; move one operand away from 0",
}
EXPONENTIAL = ("exp", "exp2", "expm1", "sinh", "cosh")


def remedy_of(found) -> str:
    """Return the remedy for a `NonFinite`: one sentence or a few."""
    if found.kind == "argument":
        if "param" in found.primitive or "opt_state" in found.primitive:
            return "the parameters were not finite before this step: look at an earlier step, or load other weights"
        return "remove or replace these rows of the data; np.nan_to_num only hides them"
    if found.kind == "constant":
        return (
            "the code itself holds this number; it may stand for an input that the code refuses, such as a label "
            "outside of the classes"
        )
    if found.trap:
        return TRAP
    if found.derivative_of in BACKWARD:
        return BACKWARD[found.derivative_of]
    if overflows(found):
        return _overflow(found)
    return FORWARD.get(found.primitive, "look at the values that entered this operation")


def overflows(found) -> bool:
    """Return whether the operation is defined for its operands, and its result is only too large for its type."""
    values = [operand.value for operand in found.operands]
    if found.primitive in ("div", "rem"):
        return len(values) == 2 and values[1] != 0 and all(map(math.isfinite, values))
    if found.primitive == "pow":
        return len(values) == 2 and values[0] > 0
    return found.primitive in OVERFLOWING or (found.primitive == "sub" and all(map(math.isfinite, values)))


def _overflow(found):
    text = f"the result is beyond {float(jnp.finfo(found.dtype).max):.3g}, the largest {found.dtype}"
    if found.primitive in EXPONENTIAL and found.direction != "backward":
        return (
            f"{text}; subtract the maximum first, as jax.nn.softmax and jax.nn.logsumexp do, or clip the operand; "
            f"log(1 + exp(x)) is jax.nn.softplus(x)"
        )
    if found.dtype == "float16":
        return f"{text}; use bfloat16 or float32 here, scale the loss, or normalize what enters this operation"
    if found.direction == "backward":
        return f"{text}: the gradients grow from layer to layer; normalize, initialize smaller, or clip the gradient"
    return (
        f"{text}: the values grow from layer to layer or from step to step; lower the learning rate, lengthen the "
        f"warm-up, clip the gradient, normalize, or initialize smaller"
    )
