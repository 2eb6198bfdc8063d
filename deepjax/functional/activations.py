"""Activations of x [..., features], with any number of leading axes, in x's dtype. What `jax.nn` has is taken from it.

All but `prelu`, `maxout` and `crelu` are elementwise and take any shape. `gain` tells how to scale the kernels of a
layer that one of them feeds.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.errors import InputError, choices


def relu(x):
    """max(x, 0), elementwise; the derivative at 0 is 0 (Nair & Hinton 2010).

    >>> relu(jnp.array([-2.0, 0.0, 3.0])).tolist()
    [0.0, 0.0, 3.0]
    """
    return jax.nn.relu(x)


def leaky_relu(x, slope=0.01):
    """x where x > 0, else slope * x, elementwise; slope is a number (Maas et al. 2013).

    The derivative at 0 is the slope, as in PyTorch, so that slope 0 is `relu`; that of `jax.nn.leaky_relu` is 1.

    Raises:
      InputError: a slope that is not one number.

    >>> leaky_relu(jnp.array([-2.0, 3.0]), 0.5).tolist()
    [-1.0, 3.0]
    """
    if jnp.ndim(slope):
        raise InputError(
            f"leaky_relu: slope of shape {jnp.shape(slope)} must be one number; prelu takes one per feature"
        )
    return _rectified(x, slope)


def prelu(x, slope):
    """x where x > 0, else slope * x, with a slope that is learned (He et al. 2015, rectifiers, eq. 1).

    Args:
      x: [..., features].
      slope: one number, shape [] or [1], or [features]; cast to x's dtype.

    Returns:
      y like x. The derivative at 0 is the slope, as in PyTorch.

    Raises:
      InputError: a slope of another shape.

    >>> prelu(jnp.array([[-2.0, -2.0, 3.0]]), jnp.array([0.5, 0.25, 0.5])).tolist()
    [[-1.0, -0.5, 3.0]]
    """
    x, shape = jnp.asarray(x), jnp.shape(slope)
    features = x.shape[-1:]
    if shape not in ((), (1,), features) or len(shape) > x.ndim:
        raise InputError(f"prelu: slope of shape {shape} must be one number, or {features}: one per feature of x")
    if shape:
        slope = jnp.reshape(slope, (1,) * (x.ndim - 1) + shape)
    return _rectified(x, slope)


def _rectified(x, slope):
    x = jnp.asarray(x, jnp.result_type(x, 0.0))
    return jnp.where(x > 0, x, jnp.asarray(slope, x.dtype) * x)


def elu(x, alpha=1.0):
    """x where x > 0, else alpha * (exp(x) - 1), elementwise (Clevert et al. 2016, section 3).

    >>> elu(jnp.array([-jnp.inf, 3.0]), 0.5).tolist()
    [-0.5, 3.0]
    """
    return jax.nn.elu(x, alpha)


def selu(x):
    """1.0507 * elu(x, 1.6733), elementwise: of N(0, 1) it keeps mean and variance (Klambauer et al. 2017, eq. 2).

    >>> round(selu(jnp.float32(-100)).item(), 4), round(selu(jnp.float32(1)).item(), 4)
    (-1.7581, 1.0507)
    """
    return jax.nn.selu(x)


def softplus(x):
    """log(1 + exp(x)), elementwise, finite for every finite x (Glorot et al. 2011).

    >>> softplus(jnp.array([-1e4, 0.0, 1e4])).round(4).tolist()
    [0.0, 0.693..., 10000.0]
    """
    return jax.nn.softplus(x)


def sigmoid(x):
    """1 / (1 + exp(-x)), elementwise: the logistic function.

    >>> sigmoid(jnp.array([-1e4, 0.0, 1e4])).tolist()
    [0.0, 0.5, 1.0]
    """
    return jax.nn.sigmoid(x)


def tanh(x):
    """The hyperbolic tangent, elementwise.

    >>> tanh(jnp.array([-1e4, 0.0, 1e4])).tolist()
    [-1.0, 0.0, 1.0]
    """
    return jnp.tanh(x)


def lecun_tanh(x):
    """1.7159 tanh(2x / 3), elementwise, which takes 1 to 1 and -1 to -1 (LeCun et al. 1998, Efficient BackProp, 4.4).

    >>> lecun_tanh(jnp.array([-1.0, 1.0, 1e4])).round(3).tolist()
    [-1.0, 1.0, 1.71...]
    """
    return 1.7159 * jnp.tanh(2 / 3 * jnp.asarray(x))


def maxout(x, kernel, bias=None):
    """The largest of several affine functions of x, for each feature (Goodfellow et al. 2013, section 3).

    Args:
      x: [..., features_in].
      kernel: [features_in, pieces, features_out].
      bias: [pieces, features_out], or None.

    Returns:
      y [..., features_out], y[o] = max over k of x @ kernel[:, k, o] + bias[k, o], in the dtype that x, kernel
      and bias promote to. Pieces that tie share the gradient alike.

    Raises:
      InputError: shapes that do not match, or no pieces.

    Two pieces x and 0 are `relu(x)`, two pieces x and -x are |x|:

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
            f"maxout: bias of shape {jnp.shape(bias)} must be {kernel.shape[1:]}, one per piece and feature of y"
        )
    pieces = jnp.tensordot(x, kernel, 1)
    if bias is not None:
        pieces = pieces + jnp.reshape(bias, (1,) * (x.ndim - 1) + kernel.shape[1:])
    return pieces.max(-2)


def crelu(x):
    """Both halves of x side by side: feature q becomes 2q - 1, max(x, 0), and 2q, max(-x, 0), counted from 1.

    x [..., features] -> [..., 2 * features] (Shang et al. 2016, section 2, who put the halves one after the other).

    It keeps the norm. Forward, ||crelu(x)|| = ||x||. Its Jacobian J, which routes each feature into one half, is an
    isometry for every x, J.T J = I: ||J v|| = ||v||, and backward ||J.T g|| is the norm of g on the halves in use,
    of all of g where it comes from there. A kernel mirrored over the pairs, rows (w, -w), makes the layer linear:
    its gradient passes as if crelu were not there (Balduzzi et al. 2017, looks-linear).
    So that this holds at 0 too, 0 counts as positive: the derivatives there are 1 and 0, where relu's is 0.

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


# 1 / E[f(z)^2] for z ~ N(0, 1). The test of `gain` integrates them anew.
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
_SLOPES = {"leaky_relu": 0.01, "prelu": 0.25}  # where none is given


def tailored_relu(x, slope):
    """A leaky ReLU that keeps E[y^2] of normal x: sqrt(2 / (1 + slope^2)) leaky_relu(x, slope).

    With the slope that `tailored_slope` finds for its depth, a plain net does not make all inputs alike (Zhang,
    Botev & Martens 2022, "Deep learning without shortcuts", section 4).

    Args:
      x: any shape.
      slope: for negative x, in [0, 1].

    >>> tailored_relu(jnp.array([-2.0, 2.0]), 1.0).tolist()
    [-2.0, 2.0]
    """
    return math.sqrt(gain("leaky_relu", slope)) * leaky_relu(x, slope)


def tailored_slope(depth, target=0.9):
    """The slope with which `depth` layers of `tailored_relu` bring orthogonal inputs to a cosine of `target`, no more.

    A layer takes the cosine c of two pre-activations to
    c + (1 - slope)^2 / (pi (1 + slope^2)) (sqrt(1 - c^2) - c arccos c), so that ReLU, slope 0, makes all inputs of a
    deep net alike. Solved for the slope by bisection (Zhang et al. 2022, section 4, eq. 13).

    Args:
      depth: layers, at least 1.
      target: cosine after the last layer, in (0, 1).

    Returns:
      A float in [0, 1); 0 where even ReLUs stay below the target.

    Raises:
      InputError: a depth below 1, or a target outside (0, 1).

    >>> round(tailored_slope(10), 3), round(tailored_slope(100), 3), round(tailored_slope(10000), 3)
    (0.0, 0.57, 0.948)
    """
    if depth < 1 or not 0 < target < 1:
        raise InputError(f"tailored_slope: depth {depth} must be at least 1, target {target} between 0 and 1")

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
    """What the variance of a kernel's entries must be, times fan in, to keep the variance of pre-activations.

    A layer fed by the activation f keeps the variance 1 of z when its independent entries have variance
    gain / fan_in with gain = 1 / E[f(z)^2], z ~ N(0, 1) (He et al. 2015, rectifiers, eqs. 7 to 10).

    This is the factor of the variance; of the standard deviation it is the square root, which is what
    `torch.nn.init.calculate_gain` returns for linear, relu and leaky_relu. PyTorch's others are other numbers:
    its tanh has 5/3 where sqrt(gain) is 1.593, its selu 3/4 and its sigmoid 1, here 1 and 1.846.

    Args:
      name: "linear", "relu", "leaky_relu", "prelu", "elu" (alpha 1), "selu", "softplus", "sigmoid", "tanh",
        "lecun_tanh", "maxout" or "crelu". For crelu, fan in counts the doubled features.
      slope: of leaky_relu (0.01 if None) and prelu (0.25, where it starts): the gain is 2 / (1 + slope^2).
      pieces: of maxout, at least 1 (2 if None): E[f(z)^2] is that of the largest of so many independent normals.

    Returns:
      A float. For the piecewise linear ones (linear, relu, leaky_relu, prelu, crelu, maxout) it keeps any variance,
      for the others the variance 1.

    Raises:
      InputError: an unknown name, a slope or pieces out of range, or given for another activation.

    >>> gain("relu"), gain("leaky_relu", slope=1.0), round(gain("tanh"), 3)
    (2.0, 1.0, 2.536)
    """
    names = (*_GAINS, *_SLOPES, "maxout")
    if name not in names:
        raise InputError(f"gain: name {name!r}: {choices(str(name), names)}")
    if slope is not None and not (name in _SLOPES and math.isfinite(slope)):
        raise InputError(f"gain: slope {slope} of {name} must be a finite number, and belongs to leaky_relu and prelu")
    if pieces is not None and not (name == "maxout" and isinstance(pieces, int) and pieces >= 1):
        raise InputError(f"gain: pieces {pieces} of {name} must be an int of at least 1, and belongs to maxout")
    if name in _SLOPES:
        return 2 / (1 + (_SLOPES[name] if slope is None else slope) ** 2)
    return 1 / _largest_squared(pieces or 2) if name == "maxout" else _GAINS[name]


def _largest_squared(pieces):
    """E[max(z_1, ..., z_pieces)^2] of independent standard normals."""
    z = np.linspace(-15, 15, 3001)
    below = np.array([math.erfc(-t / math.sqrt(2)) / 2 for t in z])  # the normal's distribution function
    density = pieces * below ** (pieces - 1) * np.exp(-np.square(z) / 2) / math.sqrt(2 * math.pi)
    return float(np.trapezoid(np.square(z) * density, z))
