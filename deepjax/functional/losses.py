"""Losses, which return one value per prediction, and penalties on parameters.

Losses of a distribution over classes reduce the last axis, [..., classes] -> [...]; elementwise losses keep the shape.
The caller takes the mean over the batch. That mean is PyTorch's loss of the same name with its default reduction
("batchmean" for the KL divergence). All losses are computed and returned in at least float32, and their values and
gradients are finite for logits of +-1e4.

`mask` is None or a bool array with the result's shape or its leading axes. Where it is False, the loss and its gradient
are 0, whatever the values and labels there are, even NaN. With a mask of the result's shape, the mean over the entries
that count is `losses.sum() / mask.sum()`.
"""

import math

import jax
import jax.numpy as jnp
import optax

from deepjax.errors import InputError
from deepjax.functional.arrays import at_least_float32, per_example, per_feature


def smooth_labels(labels, smoothing, num_classes, dtype=jnp.float32):
    """Convert integer labels to smoothed targets (Szegedy et al. 2016, "Rethinking the Inception", section 7):

        (1 - smoothing) one_hot(label) + smoothing / classes.

    Args:
      labels: integers [...].
      smoothing: share of the target that is spread over all classes, in [0, 1].
      num_classes: number of classes.
      dtype: dtype of the result.

    Returns:
      [..., classes].

    Raises:
      InputError: smoothing outside [0, 1].

    >>> smooth_labels(jnp.array(1), 0.5, 2).tolist()
    [0.25, 0.75]
    """
    _check_smoothing(smoothing)
    one_hot = jnp.asarray(labels)[..., None] == per_feature(jnp.arange(num_classes), jnp.ndim(labels) + 1)
    return optax.smooth_labels(one_hot.astype(dtype), smoothing)


def cross_entropy(logits, labels, *, smoothing=0.0, mask=None):
    """Compute the cross entropy of softmax(logits) with labels or target distributions, in nats:

        loss = - sum over c of target[c] log softmax(logits)[c].

    Args:
      logits: [..., classes].
      labels: integers [...], the classes; or targets [..., classes] of any dtype, where each row is a distribution.
        Row sums are not checked, because values are not available under jit.
      smoothing: share of each target that is spread over all classes (Szegedy et al. 2016, section 7), in [0, 1].
      mask: bool [...], True where an example counts, or None.

    Returns:
      [...]. A label outside [0, classes) gives NaN, which stops training. In place of PyTorch's `ignore_index`, pass
      `mask=labels != ignore_index`.

    Raises:
      InputError: shapes that do not match, labels [...] that are not integers, or smoothing outside [0, 1].

    >>> jax.jit(cross_entropy)(jnp.zeros((2, 4)), jnp.array([3, 0])).round(4).tolist()
    [1.386..., 1.386...]
    """
    logits, labels = at_least_float32(logits), jnp.asarray(labels)
    _check_smoothing(smoothing)
    if labels.ndim and labels.shape == logits.shape:
        targets = optax.smooth_labels(labels.astype(logits.dtype), smoothing)
        logits, targets = _blank("cross_entropy", mask, logits.shape[:-1], logits, targets)
        return _keep(mask, optax.safe_softmax_cross_entropy(logits, targets))
    _check_labels("cross_entropy", logits, labels, f", or targets of shape {logits.shape}")
    logits, labels = _blank("cross_entropy", mask, labels.shape, logits, labels)
    # The log-sum-exp minus the logit would lose three digits at logits of 1e4.
    log_p = jax.nn.log_softmax(logits)
    losses = -_at_label(log_p, labels)
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * log_p.mean(-1)
    return _keep(mask, losses)


def perceptron(logits, labels, *, mask=None):
    """Compute the highest logit minus the label's logit (Collins 2002; for two classes Rosenblatt 1958).

    With two classes it is max(0, -y s), where y is 1 or -1 and s is the difference of the logits.

    Args:
      logits: [..., classes].
      labels: integers [...].
      mask: bool [...], True where an example counts, or None.

    Returns:
      [...], 0 where the label has the highest logit. Of logits that tie for the highest, the first has its gradient, as
      it is the prediction, so that a step of gradient descent at rate 1 is the perceptron's update. A label outside
      [0, classes) gives NaN.

    Raises:
      InputError: shapes that do not match, or labels that are not integers.

    >>> perceptron(jnp.array([[1.0, 3.0], [1.0, 3.0]]), jnp.array([0, 1])).tolist()
    [2.0, 0.0]
    """
    logits, labels = at_least_float32(logits), jnp.asarray(labels)
    _check_labels("perceptron", logits, labels)
    logits, labels = _blank("perceptron", mask, labels.shape, logits, labels)
    return _keep(mask, _at_label(logits, logits.argmax(-1)) - _at_label(logits, labels))


def kl_distillation(student_logits, teacher_logits, *, temperature, mask=None):
    """Compute T^2 KL(softmax(teacher / T) || softmax(student / T)), in nats (Hinton et al. 2015, section 2).

    The factor T^2 keeps the scale of the gradients when T changes. Gradients pass into both arguments. If the teacher
    depends on parameters that are trained, wrap its logits in `jax.lax.stop_gradient`.

    Args:
      student_logits, teacher_logits: [..., classes].
      temperature: T, a number greater than 0.
      mask: bool [...], True where an example counts, or None.

    Returns:
      [...].

    Raises:
      InputError: shapes that do not match, or a temperature that is not positive and finite.

    >>> round(kl_distillation(jnp.zeros(2), jnp.array([0.0, 2 * math.log(3)]), temperature=2.0).item(), 3)
    0.523
    """
    _check_positive("kl_distillation", "temperature", temperature)
    student, teacher = _alike("kl_distillation", student_logits=student_logits, teacher_logits=teacher_logits)
    if student.ndim == 0:
        raise InputError("kl_distillation: logits of shape () need a classes axis: [..., classes]")
    student, teacher = _blank("kl_distillation", mask, student.shape[:-1], student, teacher)
    student, teacher = (jax.nn.log_softmax(logits / temperature) for logits in (student, teacher))
    return _keep(mask, temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher))


# Elementwise


def binary_cross_entropy(logits, targets, *, mask=None):
    """Compute the cross entropy of sigmoid(logits) with targets, elementwise, in nats:

        loss = - target log sigmoid(logit) - (1 - target) log(1 - sigmoid(logit)).

    Args:
      logits: [...].
      targets: [...], of any dtype: 0 and 1, or probabilities.
      mask: bool [...] or its leading axes, True where an entry counts, or None.

    Returns:
      [...].

    Raises:
      InputError: logits and targets of different shapes.

    >>> binary_cross_entropy(jnp.array([0.0, 1e4]), jnp.array([1, 1])).round(4).tolist()
    [0.693..., 0.0]
    """
    logits, targets = _pair("binary_cross_entropy", mask, logits=logits, targets=targets)
    return _keep(mask, optax.sigmoid_binary_cross_entropy(logits, targets))


def focal(logits, targets, *, alpha: float | None = 0.25, gamma=2.0, mask=None):
    """Compute the focal loss, elementwise (Lin et al. 2017, "Focal loss for dense object detection", eq. 5):

        loss = - alpha_t (1 - p_t)^gamma log(p_t),

    where p_t is the probability that sigmoid(logit) assigns to the target. Easy examples, with p_t near 1, count less.

    Args:
      logits: [...].
      targets: [...], 0 and 1, or probabilities.
      alpha: weight alpha_t of target 1, in [0, 1]; target 0 has 1 - alpha. None: no weights (torchvision's -1).
      gamma: number of at least 0; 0 is the weighted cross entropy.
      mask: bool [...] or its leading axes, True where an entry counts, or None.

    Returns:
      [...]. With the defaults it is torchvision's `sigmoid_focal_loss`.

    Raises:
      InputError: logits and targets of different shapes, or alpha or gamma out of range.

    >>> jax.jit(focal)(jnp.array([0.0, 9.0]), jnp.array([1, 1])).round(4).tolist()
    [0.043..., 0.0]
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise InputError(f"focal: alpha {alpha} must be in [0, 1], or None for no weights")
    if not 0 <= gamma < math.inf:
        raise InputError(f"focal: gamma {gamma} must be at least 0, and finite")
    logits, targets = _pair("focal", mask, logits=logits, targets=targets)
    return _keep(mask, optax.sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma))


def mse(predictions, targets, *, mask=None):
    """Compute (predictions - targets)^2, elementwise. Its mean is the mean squared error.

    Args:
      predictions, targets: [...], of the same shape.
      mask: bool [...] or its leading axes, True where an entry counts, or None.

    Returns:
      [...].

    Raises:
      InputError: different shapes.

    >>> mse(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0])).tolist()
    [4.0, 0.0]
    """
    return _keep(mask, optax.squared_error(*_pair("mse", mask, predictions=predictions, targets=targets)))


def mae(predictions, targets, *, mask=None):
    """Compute |predictions - targets|, elementwise. Its mean is the mean absolute error. The derivative at 0 is 0.

    Args:
      predictions, targets, mask: as in `mse`.

    Returns:
      [...].

    Raises:
      InputError: different shapes.

    >>> mae(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0])).tolist()
    [2.0, 0.0]
    """
    predictions, targets = _pair("mae", mask, predictions=predictions, targets=targets)
    return _keep(mask, jnp.abs(predictions - targets))


def huber(predictions, targets, *, delta=1.0, mask=None):
    """Compute the Huber loss of e = predictions - targets, elementwise (Huber 1964):

        loss = e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2).

    Args:
      predictions, targets, mask: as in `mse`.
      delta: number greater than 0.

    Returns:
      [...].

    Raises:
      InputError: different shapes, or a delta that is not positive and finite.

    >>> huber(jnp.array([1.0, 4.0]), jnp.array([0.0, 0.0]), delta=2.0).tolist()
    [0.5, 6.0]
    """
    _check_positive("huber", "delta", delta)
    return _keep(mask, optax.huber_loss(*_pair("huber", mask, predictions=predictions, targets=targets), delta=delta))


def smooth_l1(predictions, targets, *, beta=1.0, mask=None):
    """Compute the smooth L1 loss of e = predictions - targets, elementwise (Girshick 2015, eq. 3, where beta = 1):

        loss = e^2 / (2 beta) where |e| < beta, else |e| - beta / 2.

    It equals huber(delta=beta) / beta, and `mae` for beta = 0.

    Args:
      predictions, targets, mask: as in `mse`.
      beta: number of at least 0.

    Returns:
      [...].

    Raises:
      InputError: different shapes, or a beta that is negative or not finite.

    >>> smooth_l1(jnp.array([1.0, 4.0]), jnp.array([0.0, 0.0]), beta=2.0).tolist()
    [0.25, 3.0]
    """
    if beta:
        _check_positive("smooth_l1", "beta", beta)
    predictions, targets = _pair("smooth_l1", mask, predictions=predictions, targets=targets)
    if beta == 0:
        return _keep(mask, jnp.abs(predictions - targets))
    return _keep(mask, optax.huber_loss(predictions, targets, delta=beta) / beta)


# Penalties


def l1_penalty(params):
    """Sum |w| over all entries of all kernels in a tree of parameters.

    Args:
      params: nested dicts. Kernels are the leaves whose last key is "kernel". Biases, scales and slopes do not count,
        as in weight decay.

    Returns:
      A scalar array in at least float32.

    >>> l1_penalty({"dense": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([9.0])}}).item()
    3.0
    """
    return sum((jnp.abs(kernel).sum() for kernel in _kernels(params)), start=jnp.zeros((), jnp.float32))


def l2_penalty(params):
    """Sum w^2 / 2 over all entries of all kernels in a tree of parameters.

    Because of the factor 1/2, the gradient of `rate * l2_penalty(params)` is rate * w. With plain gradient descent it
    equals `weight_decay=rate` of PyTorch and of this package. Keras's `l2(rate)` has no such factor and is twice as
    strong.

    Args:
      params: nested dicts, as in `l1_penalty`.

    Returns:
      A scalar array in at least float32.

    >>> l2_penalty({"dense": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([9.0])}}).item()
    2.5
    """
    return 0.5 * sum((jnp.square(kernel).sum() for kernel in _kernels(params)), start=jnp.zeros((), jnp.float32))


def _kernels(params):
    leaves = jax.tree.leaves_with_path(params)
    return [at_least_float32(w) for path, w in leaves if path and getattr(path[-1], "key", None) == "kernel"]


# Masks and labels


def _blank(loss, mask, shape, *arrays):
    """Replace the arrays' entries by 0 where the mask is False, so that they reach no value and no gradient."""
    if mask is None:
        return arrays
    mask = jnp.asarray(mask)
    if mask.dtype != bool or mask.shape != shape[: mask.ndim]:
        raise InputError(f"{loss}: mask {mask.dtype}{mask.shape} must be bool, of shape {shape} or of its leading axes")
    return tuple(jnp.where(per_example(mask, a.ndim), a, 0) for a in arrays)


def _keep(mask, losses):
    return losses if mask is None else jnp.where(per_example(mask, losses.ndim), losses, 0)


def _at_label(values, labels):
    """Return values[..., label], or NaN if the label is not a class. A negative label does not count from the end."""
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))
    outside = (labels < 0) | (labels >= values.shape[-1])
    chosen = jnp.take_along_axis(values, jnp.where(outside, 0, labels)[..., None], -1)[..., 0]
    return jnp.where(outside, jnp.nan, chosen)


def _alike(loss, **arrays):
    dtype = jnp.result_type(*arrays.values(), jnp.float32)
    wide = [jnp.asarray(a, dtype) for a in arrays.values()]
    if len({a.shape for a in wide}) > 1:
        shapes = " and ".join(f"{name} {a.shape}" for name, a in zip(arrays, wide, strict=True))
        raise InputError(f"{loss}: {shapes} must have the same shape")
    return wide


def _pair(loss, mask, **arrays):
    first, second = _alike(loss, **arrays)
    return _blank(loss, mask, first.shape, first, second)


def _check_labels(loss, logits, labels, alternative=""):
    integers = jnp.issubdtype(labels.dtype, jnp.integer)
    if logits.ndim == 0 or logits.shape[:-1] != labels.shape or not integers:
        raise InputError(
            f"{loss}: logits {logits.shape} and labels {labels.dtype}{labels.shape} do not match; "
            f"labels must be integers of shape {logits.shape[:-1]}{alternative}"
        )


def _check_smoothing(smoothing):
    if not 0 <= smoothing <= 1:
        raise InputError(f"smoothing {smoothing} of labels must be in [0, 1]")


def _check_positive(loss, name, value):
    if not 0 < value < math.inf:
        raise InputError(f"{loss}: {name} {value} must be greater than 0, and finite")
