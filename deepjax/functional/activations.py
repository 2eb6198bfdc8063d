"""Activations of x [..., features], with any number of leading axes, computed in x's dtype.

All but `prelu`, `maxout` and `crelu` are elementwise and accept any shape. `gain` gives the scale of the kernels that
follow an activation. Functions that `jax.nn` provides are used from there.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.errors import InputError, choices
from deepjax.functional.arrays import spread


def relu(x):
    """Return max(x, 0), elementwise (Nair & Hinton 2010). The derivative at 0 is 0.

    >>> relu(jnp.array([-2.0, 0.0, 3.0])).tolist()
    [0.0, 0.0, 3.0]
    """
    return jax.nn.relu(x)


def leaky_relu(x, slope=0.01):
    """Return x where x > 0, else slope * x, elementwise (Maas et al. 2013).

    Args:
      x: array of any shape.
      slope: a number.

    Returns:
      y like x. The derivative at 0 is the slope, as in PyTorch, so that slope 0 is `relu`. `jax.nn.leaky_relu` has the
      derivative 1 there.

    Raises:
      InputError: a slope that is not a single number.

    >>> leaky_relu(jnp.array([-2.0, 3.0]), 0.5).tolist()
    [-1.0, 3.0]
    """
    if jnp.ndim(slope):
        raise InputError(
            f"leaky_relu: slope of shape {jnp.shape(slope)} must be one number; use prelu for one slope per feature"
        )
    return _rectified(x, slope)


def prelu(x, slope):
    """Return x where x > 0, else slope * x, with a learned slope (He et al. 2015, "Delving deep", eq. 1).

    Args:
      x: [..., features].
      slope: one number, of shape [] or [1], or one per feature, [features]. It is cast to x's dtype.

    Returns:
      y like x. The derivative at 0 is the slope, as in PyTorch. The gradient in the slope is summed in
      at least float32.

    Raises:
      InputError: a slope of another shape.

    >>> prelu(jnp.array([[-2.0, -2.0, 3.0]]), jnp.array([0.5, 0.25, 0.5])).tolist()
    [[-1.0, -0.5, 3.0]]
    """
    x, shape = jnp.asarray(x), jnp.shape(slope)
    features = x.shape[-1:]
    if shape not in ((), (1,), features) or len(shape) > x.ndim:
        raise InputError(f"prelu: slope of shape {shape} must be one number, or {features}: one per feature of x")
    return _rectified(x, slope)


def _rectified(x, slope):
    x = jnp.asarray(x, jnp.result_type(x, 0.0))
    return jnp.where(x > 0, x, spread(slope, x) * x)


def elu(x, alpha=1.0):
    """Return x where x > 0, else alpha * (exp(x) - 1), elementwise (Clevert et al. 2016, section 3).

    >>> elu(jnp.array([-jnp.inf, 3.0]), 0.5).tolist()
    [-0.5, 3.0]
    """
    return jax.nn.elu(x, alpha)


def selu(x):
    """Return 1.0507 * elu(x, 1.6733), elementwise (Klambauer et al. 2017, eq. 2).

    If x is distributed as N(0, 1), then y has mean 0 and variance 1 too.

    >>> round(selu(jnp.float32(-100)).item(), 4), round(selu(jnp.float32(1)).item(), 4)
    (-1.7581, 1.0507)
    """
    return jax.nn.selu(x)


def softplus(x):
    """Return log(1 + exp(x)), elementwise (Glorot et al. 2011). It is finite for every finite x.

    >>> softplus(jnp.array([-1e4, 0.0, 1e4])).round(4).tolist()
    [0.0, 0.693..., 10000.0]
    """
    return jax.nn.softplus(x)


def sigmoid(x):
    """Return 1 / (1 + exp(-x)), elementwise: the logistic function.

    >>> sigmoid(jnp.array([-1e4, 0.0, 1e4])).tolist()
    [0.0, 0.5, 1.0]
    """
    return jax.nn.sigmoid(x)


def tanh(x):
    """Return the hyperbolic tangent, elementwise.

    >>> tanh(jnp.array([-1e4, 0.0, 1e4])).tolist()
    [-1.0, 0.0, 1.0]
    """
    return jnp.tanh(x)


def lecun_tanh(x):
    """Return 1.7159 tanh(2x / 3), elementwise (LeCun et al. 1998, "Efficient BackProp", section 4.4).

    The constants are chosen so that 1 is mapped to 1 and -1 to -1.

    >>> lecun_tanh(jnp.array([-1.0, 1.0, 1e4])).round(3).tolist()
    [-1.0, 1.0, 1.71...]
    """
    return 1.7159 * jnp.tanh(2 / 3 * jnp.asarray(x))


def maxout(x, kernel, bias=None):
    """Return the largest of several affine functions of x, for each feature (Goodfellow et al. 2013, section 3):

        y[..., o] = max over k of x @ kernel[:, k, o] + bias[k, o].

    Args:
      x: [..., features_in].
      kernel: [features_in, pieces, features_out].
      bias: [pieces, features_out], or None.

    Returns:
      y [..., features_out], in the dtype that x, kernel and bias promote to. If several pieces have the largest value,
      each gets an equal share of the gradient.

    Raises:
      InputError: shapes that do not match, or no pieces.

    With one feature, two pieces x and 0 give `relu(x)`; two pieces x and -x give |x|:

    >>> maxout(jnp.array([[-2.0], [3.0]]), jnp.array([[[1.0, 1.0], [0.0, -1.0]]])).astype(int).tolist()
    [[0, 2], [3, 3]]
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    if kernel.ndim != 3 or kernel.shape[1] == 0:
        raise InputError(f"maxout: kernel of shape {kernel.shape} must be [features_in, pieces, features_out]")
    if x.shape[-1:] != kernel.shape[:1]:
        raise InputError(f"maxout: x of shape {x.shape} must end in the {kernel.shape[0]} features_in of the kernel")
    if bias is not None and jnp.shape(bias) != kernel.shape[1:]:
        raise InputError(
            f"maxout: bias of shape {jnp.shape(bias)} must be {kernel.shape[1:]}: one per piece and feature of y"
        )
    pieces = jnp.tensordot(x, kernel, 1)
    if bias is not None:
        pieces = jnp.asarray(pieces, jnp.result_type(pieces, bias))
        pieces = pieces + spread(bias, pieces)
    return pieces.max(-2)


def crelu(x):
    """Return the positive and the negative part of every feature, side by side (Shang et al. 2016, section 2):

        y[..., 2q] = max(x[..., q], 0),   y[..., 2q + 1] = max(-x[..., q], 0).

    The paper puts all positive parts before all negative ones.

    The function preserves the norm, ||crelu(x)|| = ||x||. Its Jacobian J moves each feature into one of its two parts,
    so J.T J = I for every x and ||J v|| = ||v||. Backward, ||J.T g|| is the norm of those entries of g whose parts are
    in use. If the rows of the next kernel are pairs (w, -w), the two layers together are linear, and gradients pass as
    if crelu were absent (Balduzzi et al. 2017, "looks linear"). For this to hold at 0 too, 0 counts as positive: the
    two derivatives there are 1 and 0, whereas the derivative of `relu` is 0.

    Args:
      x: [..., features].

    Returns:
      y [..., 2 * features].

    Raises:
      InputError: x without a features axis.

    >>> crelu(jnp.array([[-2.0, 3.0]])).tolist()
    [[0.0, 2.0, 3.0, 0.0]]
    """
    x = jnp.asarray(x)
    if x.ndim == 0:
        raise InputError("crelu: x of shape () needs a features axis: [..., features]")
    positive = x >= 0
    pairs = jnp.stack([jnp.where(positive, x, 0), jnp.where(positive, 0, -x)], -1)
    return pairs.reshape(*x.shape[:-1], 2 * x.shape[-1])


# 1 / E[f(z)^2] for z ~ N(0, 1). The test of `gain` computes the integrals again.
_GAINS = {
    "linear": 1.0,
    "relu": 2.0,
    "crelu": 2.0,
    "elu": 1.550518808067927,
    "selu": 1.0,
    "softplus": 1.0854865029883431,
    "sigmoid": 3.4085598416231027,
    "tanh": 2.536175433217453,
    "lecun_tanh": 1.3325688362731782,
}
_SLOPES = {"leaky_relu": 0.01, "prelu": 0.25}  # defaults


def tailored_relu(x, slope):
    """Return sqrt(2 / (1 + slope^2)) leaky_relu(x, slope), which preserves E[x^2] of a normal x.

    With the slope that `tailored_slope` computes for its depth, a plain network does not map all inputs to nearly the
    same output (Zhang, Botev & Martens 2022, "Deep learning without shortcuts", section 4).

    Args:
      x: array of any shape.
      slope: slope for negative x, in [0, 1].

    Returns:
      y like x.

    Raises:
      InputError: a slope that is not a single number.

    >>> tailored_relu(jnp.array([-2.0, 2.0]), 1.0).tolist()
    [-2.0, 2.0]
    """
    return math.sqrt(gain("leaky_relu", slope)) * leaky_relu(x, slope)


def tailored_slope(depth, target=0.9):
    """Find the slope with which `depth` layers of `tailored_relu` map orthogonal inputs to a cosine of `target`.

    One layer maps the cosine c of two pre-activations to

        c + (1 - slope)^2 / (pi (1 + slope^2)) (sqrt(1 - c^2) - c arccos c),

    so with ReLU (slope 0) the outputs of a deep network become nearly equal for all inputs. The slope is found by
    bisection (Zhang, Botev & Martens 2022, section 4, eq. 13).

    Args:
      depth: number of layers, at least 1.
      target: cosine after the last layer, in (0, 1).

    Returns:
      A float in [0, 1). It is 0 if even ReLU stays below the target.

    Raises:
      InputError: a depth below 1, or a target outside (0, 1).

    >>> round(tailored_slope(10), 3), round(tailored_slope(100), 3), round(tailored_slope(10000), 3)
    (0.0, 0.57, 0.948)
    """
    if depth < 1 or not 0 < target < 1:
        raise InputError(f"tailored_slope: depth {depth} must be at least 1, and target {target} between 0 and 1")

    def cosine(slope):
        c, bend = 0.0, (1 - slope) ** 2 / (math.pi * (1 + slope**2))
        for _ in range(depth):
            c = min(c + bend * (math.sqrt(max(1 - c * c, 0.0)) - c * math.acos(c)), 1.0)
        return c

    low, high = 0.0, 1.0
    if cosine(low) <= target:
        return low
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if cosine(middle) > target else (low, middle)
    return high


def gain(name, slope=None, *, pieces=None):
    """Return 1 / E[f(z)^2] for the activation f and z ~ N(0, 1).

    If the entries of a kernel are independent with variance gain / fan_in, then a layer that follows the activation
    preserves the variance 1 of its pre-activations z (He et al. 2015, "Delving deep", eqs. 7 to 10).

    The gain is a factor of the variance. Its square root is the factor of the standard deviation, which is what
    `torch.nn.init.calculate_gain` returns for linear, relu and leaky_relu. For other activations PyTorch uses other
    numbers: 5/3 for tanh (sqrt(gain) is 1.593), 3/4 for selu (1), and 1 for sigmoid (1.846).

    Args:
      name: "linear", "relu", "leaky_relu", "prelu", "elu" (alpha 1), "selu", "softplus", "sigmoid", "tanh",
        "lecun_tanh", "maxout" or "crelu". For crelu, fan_in counts the doubled features.
      slope: of leaky_relu (default 0.01) or prelu (default 0.25, its initial value). The gain is 2 / (1 + slope^2).
      pieces: of maxout, at least 1 (default 2). f(z) is then the largest of that many independent normals.

    Returns:
      A float. For piecewise linear activations (linear, relu, leaky_relu, prelu, crelu, maxout) a layer preserves every
      variance, for the others only the variance 1.

    Raises:
      InputError: an unknown name, a slope or number of pieces out of range, or one that the activation does not have.

    >>> gain("relu"), gain("leaky_relu", slope=1.0), round(gain("tanh"), 3)
    (2.0, 1.0, 2.536)
    """
    names = (*_GAINS, *_SLOPES, "maxout")
    if name not in names:
        raise InputError(f"gain: name {name!r}: {choices(str(name), names)}")
    if slope is not None and not (name in _SLOPES and math.isfinite(slope)):
        raise InputError(f"gain: slope {slope} of {name} must be finite, and only leaky_relu and prelu have one")
    if pieces is not None and not (name == "maxout" and isinstance(pieces, int) and pieces >= 1):
        raise InputError(f"gain: pieces {pieces} of {name} must be an int of at least 1, and only maxout has them")
    if name in _SLOPES:
        return 2 / (1 + (_SLOPES[name] if slope is None else slope) ** 2)
    return 1 / _largest_squared(pieces or 2) if name == "maxout" else _GAINS[name]


def _largest_squared(pieces):
    """Return E[max(z_1, ..., z_pieces)^2] for independent standard normals, by the trapezoidal rule."""
    z = np.linspace(-15, 15, 3001)
    below = np.array([math.erfc(-t / math.sqrt(2)) / 2 for t in z])  # the normal's distribution function
    density = pieces * below ** (pieces - 1) * np.exp(-np.square(z) / 2) / math.sqrt(2 * math.pi)
    return float(np.trapezoid(np.square(z) * density, z))
