"""Why a squared error behind a sigmoid does not learn from its worst mistakes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.figures.experiment import Claim, plain
from deepjax.functional import losses
from deepjax.runs.plots import new_figure

TITLE = "Gradient of a squared error behind a sigmoid"
SOURCE = "Deep learning: logistic regression, do not use a L2 loss"
USES = ("full",)
UPDATES, RATE, START = 200, 1.0, -10.0


@dataclass(frozen=True)
class Numbers:
    """Both losses: gradients over logits of an example of class 1, and errors in training from a wrong start."""

    logits: tuple[float, ...]
    gradients: dict[str, tuple[float, ...]]  # dL/dlogit
    errors: dict[str, tuple[float, ...]]  # fraction of wrong training points, before each update and at the end


def squared_error(logits, targets):
    """Return (sigmoid(logit) - target)^2 / 2 of each example."""
    return (jax.nn.sigmoid(logits) - targets) ** 2 / 2


LOSSES = {"squared error": squared_error, "cross entropy": losses.binary_cross_entropy}


def numbers(settings):
    """Return Numbers. The training points lie around the origin; the seed draws them and the line between classes."""
    logits = jnp.arange(-60, 21) / 4
    points, direction = jax.random.split(jax.random.key(settings.seed))
    x = jax.random.normal(points, (1000 if settings.full else 200, 2))
    w = jax.random.normal(direction, (2,))
    w /= jnp.linalg.norm(w)
    gradients, errors = {}, {}
    for name, loss in LOSSES.items():
        gradients[name] = plain(jax.vmap(jax.grad(lambda z, loss=loss: loss(z, jnp.ones_like(z)).sum()))(logits))
        errors[name] = plain(_train(loss, x, x @ w > 0, START * w))
    return Numbers(plain(logits), gradients, errors)


def _train(loss, x, classes, w):
    targets = classes.astype(x.dtype)

    def update(w, _):
        gradient = jax.grad(lambda w: loss(x @ w, targets).mean())(w)
        return w - RATE * gradient, jnp.mean((x @ w > 0) != classes)

    w, errors = jax.lax.scan(update, w, length=UPDATES)
    return jnp.append(errors, jnp.mean((x @ w > 0) != classes))


def table(numbers):
    """Return the gradient at some logits, and the error after training."""
    shown = [-15.0, -10.0, -5.0, 0.0, 5.0]
    header = ("loss", *(f"gradient at {z:g}" for z in shown), f"error after {UPDATES} updates")
    at = [numbers.logits.index(z) for z in shown]
    rows = [
        (name, *(f"{gradients[i]:.2e}" for i in at), f"{numbers.errors[name][-1]:.1%}")
        for name, gradients in numbers.gradients.items()
    ]
    return header, rows


def claim(numbers):
    """Return whether the squared error stays wrong, and cross entropy does not."""
    at = numbers.logits.index(START)
    squared, cross = (abs(numbers.gradients[name][at]) for name in LOSSES)
    wrong, right = (numbers.errors[name][-1] for name in LOSSES)
    text = (
        f"at the logit {START:g} of an example of class 1, the gradient is {squared:.1e} (at most 1e-4) with a squared "
        f"error and {cross:.4f} (at least 0.99) with cross entropy; from a start that is wrong everywhere, "
        f"{wrong:.0%} (at least 50 %) and {right:.0%} (at most 5 %) of the points are wrong after {UPDATES} updates"
    )
    return Claim(text, squared <= 1e-4 and cross >= 0.99 and wrong >= 0.5 and right <= 0.05)


def draw(numbers):
    """Return both: gradients over the logit, errors over updates."""
    figure = new_figure(9, 4)
    left, right = figure.subplots(1, 2)
    for name, style in zip(LOSSES, ("-", "--")):
        left.plot(numbers.logits, np.abs(numbers.gradients[name]), style, label=name)
        right.plot(100 * np.asarray(numbers.errors[name]), style, label=name)
    left.set(xlabel="logit of an example of class 1", ylabel="size of the gradient")
    right.set(xlabel=f"updates of gradient descent, rate {RATE:g}", ylabel="training error (%)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
