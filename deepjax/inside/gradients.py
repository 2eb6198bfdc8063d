"""Which pixels a class depends on: gradients of its logit in the image, with three rules for the rectifiers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.errors import InputError
from deepjax.trace import call_arguments, call_name, evaluate, input_errors, replaced_calls

RECTIFIERS = ("relu", "relu6")  # of `jax.nn`, which `deepjax.functional.relu` and `flax.linen.relu` are
GATES = ("hard_sigmoid", "hard_silu")  # have a relu6 inside, which does not rectify


def saliency(model, variables, images, classes=None):
    """Return how much the logit of a class changes with each pixel (Simonyan et al. 2013, section 3).

    This is max_k |d logit_c / d x_k| over the channels k of a pixel.

    Args:
      model: a Linen module that maps images to logits [B, classes], in inference.
      variables: its variables.
      images: float [B, H, W, channels], as the model takes them.
      classes: int [B], the classes c. None: those with the largest logits.

    Returns:
      float [B, H, W], at least 0.

    Raises:
      InputError: the model does not take these images, its output is not [B, classes], or there is no such class.
    """
    return jnp.abs(gradient(model, variables, images, classes)).max(-1)


def gradient(model, variables, images, classes=None):
    """Return d logit_c / d image, float [B, H, W, channels]. Arguments and errors are those of `saliency`."""
    return _gradient(model, variables, images, classes, None)


def guided_backprop(model, variables, images, classes=None):
    """Return the gradient of a logit, of which each rectifier passes only what is positive (Springenberg et al. 2014).

    Backwards through y = max(x, 0), R becomes R [x > 0] [R > 0]. Rectifiers are the calls of ReLU and ReLU6, also in
    scans and under remat. The gates of hard swish and hard sigmoid keep their derivative. So does `jnp.maximum(x, 0)`,
    because normalization layers bound their variances with it: write `jax.nn.relu`.

    Arguments are those of `saliency`.

    Returns:
      float [B, H, W, channels].

    Raises:
      InputError: as `saliency`; or a model without rectifiers.
    """
    return _gradient(
        model, variables, images, classes, _rectifiers(lambda derivative, g: derivative(jnp.maximum(g, 0)))
    )


def deconvnet(model, variables, images, classes=None):
    """Return the gradient of a logit with rectifiers that rectify it instead (Zeiler & Fergus 2013, section 2.1).

    Backwards through y = max(x, 0), R becomes max(R, 0), whatever x was. Max pooling passes R to the position of the
    largest value, which are the switches of the paper. For arguments, result and errors, see `guided_backprop`.
    """
    return _gradient(model, variables, images, classes, _rectifiers(lambda derivative, g: jnp.maximum(g, 0)))


def _rectifiers(backward):
    """Return the replacement of rectifiers by functions whose backward pass is `backward(derivative, cotangent)`."""

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def rectify(function, x):
        return function(x)

    def derive(function, x, cotangent):
        derivative = jax.vjp(function, x)[1]
        return (backward(lambda g: derivative(g)[0], cotangent),)

    rectify.defvjp(lambda function, x: (function(x), x), derive)

    def replace(eqn):
        name = call_name(eqn)
        if name in GATES:
            return lambda *operands: eqn.primitive.bind(*operands, **eqn.params)[0]  # as it is, without a look inside
        # A function of a user that has one of these names is no custom_jvp.
        rectifies = name in RECTIFIERS and eqn.primitive.name == "custom_jvp_call"
        return partial(rectify, getattr(jax.nn, name)) if rectifies else None

    return replace


def _gradient(model, variables, images, classes, replace):
    images, call = jnp.asarray(images), call_arguments(model, train=False)
    with input_errors(images.shape):
        closed = jax.make_jaxpr(lambda variables, x: model.apply(variables, x, **call))(variables, images)
    shapes = [each.shape for each in closed.out_avals]
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise InputError(f"the model's output has the shapes {shapes}; it must be logits [batch, classes]")
    if replace is not None and not set(replaced_calls(closed.jaxpr, replace)) & set(RECTIFIERS):
        raise InputError("the model has no rectifier (relu or relu6 of jax.nn); use the gradient or the saliency")
    if classes is not None:
        check_classes(classes, shapes[0])

    def logits_of(variables, x):
        if replace is None:
            return model.apply(variables, x, **call)
        return evaluate(closed.jaxpr, closed.consts, jax.tree.leaves((variables, x)), replace)[0]

    @jax.jit
    def run(variables, x, classes):
        def chosen(x):
            logits = logits_of(variables, x)
            picked = logits.argmax(-1) if classes is None else classes
            return jnp.take_along_axis(logits, picked[:, None], -1).sum()

        return jax.grad(chosen)(x)

    return run(variables, images, None if classes is None else jnp.asarray(classes))


def check_classes(classes, shape):
    """Raise InputError unless classes are as many as the rows of logits of this shape, and among its columns."""
    classes = np.asarray(classes)
    if classes.shape != shape[:1] or not np.issubdtype(classes.dtype, np.integer):
        raise InputError(
            f"classes of shape {classes.shape}, {classes.dtype} must be integers, one for each of {shape[0]} images"
        )
    if classes.min() < 0 or classes.max() >= shape[1]:
        raise InputError(f"class {classes.min() if classes.min() < 0 else classes.max()} is not in 0 to {shape[1] - 1}")
