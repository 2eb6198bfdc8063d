"""Name an elementwise function from its values on a grid, however it is written."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

GRID = np.linspace(-8.03, 8.03, 147)  # without 0, where conventions differ

_erf = np.vectorize(math.erf, otypes=[float])
_erfc = np.vectorize(math.erfc, otypes=[float])


def _softplus(x):
    return np.logaddexp(x, 0.0)


def _sigmoid(x):
    return np.exp(-np.logaddexp(0.0, -x))


def _select(which, *cases):
    return np.choose(np.asarray(which, int), cases)


def _convert(x, new_dtype):
    x = np.asarray(x)
    if jnp.issubdtype(new_dtype, jnp.bool_):
        return x != 0
    whole = jnp.issubdtype(new_dtype, jnp.integer) and x.dtype.kind == "f"
    return np.trunc(x) if whole else x.astype(float)


# The elementwise operations of jax.lax in float64 NumPy.
_PLAIN = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative,
    "max": np.maximum, "min": np.minimum, "abs": np.abs, "sign": np.sign, "square": np.square, "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "cbrt": np.cbrt, "pow": np.power, "exp": np.exp, "exp2": np.exp2,
    "log": np.log, "log1p": np.log1p, "expm1": np.expm1, "tanh": np.tanh, "logistic": _sigmoid, "erf": _erf,
    "erfc": _erfc, "sin": np.sin, "cos": np.cos, "tan": np.tan, "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh,
    "asinh": np.arcsinh, "atan2": np.arctan2, "floor": np.floor, "ceil": np.ceil, "round": np.round, "rem": np.fmod,
    "gt": np.greater, "ge": np.greater_equal, "lt": np.less, "le": np.less_equal, "eq": np.equal, "ne": np.not_equal,
    "and": np.logical_and, "or": np.logical_or, "not": np.logical_not, "is_finite": np.isfinite, "select_n": _select,
    "clamp": lambda low, x, high: np.clip(x, low, high), "copy": np.asarray, "copy_p": np.asarray,
    "stop_gradient": np.asarray, "reduce_precision": np.asarray, "optimization_barrier": np.asarray,
}  # fmt: skip
ELEMENTWISE = {*_PLAIN, "integer_pow", "convert_element_type"}
SPREADING = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims"}  # the same number, in another shape


def compute(eqn, values):
    """Return the float64 value of an equation of `ELEMENTWISE` or `SPREADING`, for operands that are NumPy values."""
    name = eqn.primitive.name
    with np.errstate(all="ignore"):
        if name == "integer_pow":
            return np.asarray(values[0], float) ** eqn.params["y"]
        if name == "convert_element_type":
            return _convert(values[0], eqn.params["new_dtype"])
        if name in SPREADING:
            return values[0]
        return _PLAIN[name](*values)


def number(value):
    """Return an array of one number as a NumPy scalar, bfloat16 as float64; None for any other array."""
    dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    if jnp.issubdtype(dtype, jax.dtypes.extended) or np.size(value) != 1:
        return None
    value = np.asarray(value).reshape(-1)[0]
    return value.astype(float) if jnp.issubdtype(dtype, jnp.floating) else value


def literal(atom):
    """Return the number of a jaxpr's literal, or None."""
    return number(atom.val) if isinstance(atom, Literal) else None


def _named(x):
    """Return {name: values of the function} for the functions whose names are known."""
    hard = np.clip(x / 6 + 0.5, 0, 1)
    return {
        "relu": np.maximum(x, 0),
        "sigmoid": _sigmoid(x),
        "tanh": np.tanh(x),
        "selu": np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
        "elu": np.where(x > 0, x, np.expm1(x)),
        "gelu": x * (1 + _erf(x / math.sqrt(2))) / 2,
        "silu": x * _sigmoid(x),
        "softplus": _softplus(x),
        "relu6": np.clip(x, 0, 6),
        "hard_tanh": np.clip(x, -1, 1),
        "hard_sigmoid": hard,
        "hard_silu": x * hard,
        "mish": x * np.tanh(_softplus(x)),
        "soft_sign": x / (1 + np.abs(x)),
        "log_sigmoid": -_softplus(-x),
        "square": np.square(x),
        "abs": np.abs(x),
        "exp": np.exp(x),
    }


# Other forms of some of them: the approximations of GELU, LeCun's tanh, Keras's hard sigmoid.
_FORMS = {
    "tanh": [np.tanh(2 / 3 * GRID)],
    "gelu": [
        GRID * (1 + np.tanh(math.sqrt(2 / math.pi) * (GRID + 0.044715 * GRID**3))) / 2,
        GRID * _sigmoid(1.702 * GRID),
    ],
    "hard_sigmoid": [np.clip(0.2 * GRID + 0.5, 0, 1)],
}
CANDIDATES = [(name, curve) for name, curve in _named(GRID).items()] + [
    (name, curve) for name, curves in _FORMS.items() for curve in curves
]
EXACT, ROUNDED = 1e-4, 2e-3  # misfits in float32, and where constants of the function are bfloat16
STATISTICS = ("square", "abs", "power", "log")  # what norms compute on the way; they are no activations


def classify(curve) -> str:
    """Return the name of a function that has the values `curve` on `GRID`, up to a positive factor and an offset.

    Returns:
      "affine"; "bool" for a comparison; "leaky_relu" and "elu" with any slope or scale; another name of `_named`;
      "log" or "power" for logarithms and other even functions; "other".

    >>> classify(np.maximum(GRID, 0)), classify(2 * GRID + 1), classify(np.where(GRID > 0, GRID, 0.3 * GRID))
    ('relu', 'affine', 'leaky_relu')
    """
    curve = np.broadcast_to(np.asarray(curve), GRID.shape)
    if curve.dtype == bool:
        return "bool"
    curve = curve.astype(float)
    if not np.isfinite(curve).all():
        return "log"  # logarithms and roots are not defined for all numbers
    if _misfit(curve, GRID, signed=True) < EXACT:
        return "affine"
    pieces = _two_pieces(curve)
    misfit, best = min((_misfit(curve, values), name) for name, values in CANDIDATES)
    if misfit > EXACT and pieces:
        return pieces
    if misfit < ROUNDED:
        return best
    return "power" if np.allclose(curve, curve[::-1]) else "other"


def _misfit(curve, values, signed=False):
    """Return max |curve - a values - b| / range of the curve, by least squares; infinite for a < 0 unless `signed`."""
    centered = values - values.mean()
    slope = (centered @ curve) / (centered @ centered)
    rest = curve - curve.mean() - slope * centered
    return np.abs(rest).max() / max(np.ptp(curve), 1e-30) if signed or slope > 0 else np.inf


def _two_pieces(curve):
    """Return the name of a function with slope 1 on the right of 0, up to a factor, and any scale on the left."""
    left, right = GRID < 0, GRID > 0
    up = curve[right] / GRID[right]
    if np.ptp(up) > EXACT * abs(up).max() or up[0] <= 0:
        return ""
    down, bend = curve[left] / GRID[left], curve[left] / np.expm1(GRID[left])
    if np.ptp(down) <= EXACT * up[0] and abs(down[0]) > EXACT * up[0]:
        return "leaky_relu"
    return "elu" if np.ptp(bend) <= EXACT * up[0] and bend[0] > EXACT * up[0] else ""
