"""Filters: the kernels of a network's first convolution, before and after training."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deepjax import inference
from deepjax.errors import InputError
from deepjax.figures import looking
from deepjax.figures.experiment import Claim, plain
from deepjax.runs.plots import new_figure
from deepjax.trace import call_arguments, find_layers

TITLE = "Filters of the first convolution, and how smooth they are"
SOURCE = "Deep learning: AlexNet (Supervision), filters of the first layer (Krizhevsky et al. 2012, figure 3)"
USES = ("model", "weights")
SHOWN, INITIALIZATIONS = 64, 20


@dataclass(frozen=True)
class Numbers:
    """Kernels of the first convolution, and the correlation of neighboring weights."""

    subject: str
    layer: str
    kernels: Any  # [shown, h, w, channels], each from 0 to 1
    trained: float  # correlation
    initial: tuple[float, ...]  # of 20 initializations


def numbers(settings):
    """Return Numbers of a small network trained on digits, or of a given network. The seed draws both."""
    if settings.weights and not settings.model:
        raise InputError(f"weights {settings.weights} are for a given network; add --model")
    if settings.model:
        run = inference.load_source(settings.model, settings.weights)
        model, variables, shape, text = run.model, run.members[-1], run.shape, settings.model
    else:
        subject = looking.trained(settings.seed)
        model, variables, text = subject.model, subject.variables, subject.text
        shape = subject.inputs.shape[1:]
    x, call = jnp.zeros((1, *shape)), call_arguments(model, train=False)
    key = jax.random.fold_in(jax.random.key(settings.seed), 4)  # 0 to 3 are the keys of `looking.trained`
    first = next((layer for layer in find_layers(model, key, x, call) if max(layer.window, default=1) > 1), None)
    if first is None or len(first.shape) != 4:
        raise InputError(f"{text}: the network has no convolution of images; give one that has")
    init = jax.jit(lambda key: _kernel(model.init(key, x, **call), first.path))
    initial = [correlation(np.asarray(init(each))) for each in jax.random.split(key, INITIALIZATIONS)]
    kernel = np.asarray(_kernel(variables, first.path), np.float32)
    return Numbers(text, first.name, plain(_shown(kernel)), correlation(kernel), tuple(initial))


def _kernel(variables, path):
    leaves = variables["params"]
    for name in (*path, "kernel"):
        leaves = leaves[name]
    return nn.meta.unbox(leaves)


def _shown(kernel):
    """Return kernels [h, w, channels, features] as images [shown, h, w, 1 or 3], each from 0 to 1."""
    images = np.moveaxis(kernel, -1, 0)[:SHOWN]
    images = images if images.shape[-1] in (1, 3) else images.mean(-1, keepdims=True)
    low, high = (getattr(images, end)((1, 2, 3), keepdims=True) for end in ("min", "max"))
    return ((images - low) / np.maximum(high - low, 1e-30)).round(3)


def correlation(kernel):
    """Return the correlation of weights next to each other, around 0: of a kernel [h, w, channels, features]."""
    kernel = np.asarray(kernel, np.float64)
    products = [kernel[1:] * kernel[:-1], kernel[:, 1:] * kernel[:, :-1]]
    return float(np.concatenate([each.ravel() for each in products]).mean() / (kernel**2).mean())


def table(numbers):
    """Return the correlations."""
    rows = [("trained", f"{numbers.trained:.3f}")]
    rows.append(
        (f"{len(numbers.initial)} initializations", f"{np.mean(numbers.initial):.3f} +- {_deviation(numbers):.3f}")
    )
    return (f"{numbers.layer} of {numbers.subject}", "correlation of neighboring weights"), rows


def _deviation(numbers):
    return float(np.std(numbers.initial, ddof=1))


def claim(numbers):
    """Return whether training has made the filters smooth."""
    mean, deviation = float(np.mean(numbers.initial)), _deviation(numbers)
    text = (
        f"neighboring weights of the first filters have a correlation of {numbers.trained:.3f} after training, more "
        f"than four standard deviations ({deviation:.3f}) above the mean of initializations ({mean:.3f}); "
        f"{numbers.subject}"
    )
    return Claim(text, numbers.trained > mean + 4 * deviation)


def draw(numbers):
    """Return the filters, each with its own range of gray or of colors."""
    columns = min(8, len(numbers.kernels))
    rows = -(-len(numbers.kernels) // columns)
    figure = new_figure(columns, rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False)
    for each in axes.flat:
        each.axis("off")
    for each, kernel in zip(axes.flat, numbers.kernels):
        each.imshow(np.squeeze(kernel), cmap="gray", vmin=0, vmax=1)
    figure.suptitle(f"{numbers.layer}: {numbers.subject}", fontsize=8)
    return figure
