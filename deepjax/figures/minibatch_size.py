"""After equal numbers of images, small batches have reduced the loss further than large ones."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import functional, zoo
from deepjax.errors import InputError
from deepjax.figures.experiment import Claim, plain
from deepjax.figures.small_runs import load, train
from deepjax.runs.plots import new_figure

TITLE = "Reduction of the training loss after equal numbers of images, by batch size"
SOURCE = "Batches, SGD: mini-batch size and loss reduction"
USES = ("full", "data_dir")
BATCHES, NETS, EPOCHS = (1, 4, 16, 64, 256), 4, 4
RATES = tuple(2.0**power for power in range(-7, 2))  # of the mean gradient of a batch
ONE_RATE, PER_IMAGE = 2.0**-5, 2.0**-7  # compared at all batch sizes: of the mean, and of the sum of gradients


@dataclass(frozen=True)
class Numbers:
    """Means over the networks. A loss is that of the whole training set."""

    images: int  # of an epoch
    losses: dict[str, tuple[tuple[float, ...], ...]]  # {batch size: [RATES, EPOCHS + 1]}: at the start, after an epoch
    errors: dict[str, tuple[float, ...]]  # {batch size: [RATES]}: on the test set, at the end


def numbers(settings):
    """Return Numbers: 4 networks of one hidden layer on 1,024 digits; in full on 49,152 images of MNIST.

    The seed draws the initial weights and the order of examples.

    Raises:
      InputError: a data_dir without `full`.
    """
    if settings.data_dir and not settings.full:
        raise InputError(f"data_dir {settings.data_dir} is read with full only; add --full, or leave it out")
    examples, test = load("mnist", settings.data_dir, 49152) if settings.full else load("digits", size=1024)
    found = {str(batch): _train(batch, examples, test, settings.seed) for batch in BATCHES}
    return Numbers(
        len(examples.labels),
        {batch: plain(np.asarray(losses, float).mean(1)) for batch, (losses, _) in found.items()},
        {batch: plain(np.asarray(errors, float).mean(1)) for batch, (_, errors) in found.items()},
    )


def _train(batch, examples, test, seed):
    """Return losses [RATES, NETS, EPOCHS + 1] and errors [RATES, NETS]."""
    network = zoo.create("mlp", depth=2, width=32, init="xavier", num_classes=10)
    steps = len(examples.labels) // batch

    def loss(variables):
        logits = network.apply(variables, examples.inputs, train=False)
        return functional.cross_entropy(logits, examples.labels).mean()

    def run(rate, key):
        first, order = jax.random.split(key)
        plan = {"optimizer": optax.sgd(rate), "steps": steps, "batch_size": batch, "every": steps}

        def epoch(variables, key):
            curves = train(network, variables, examples, test, key, **plan)
            return curves.variables, (loss(curves.variables), curves.errors[-1])

        variables = network.init(first, examples.inputs[:1], train=False)
        _, (losses, errors) = jax.lax.scan(epoch, variables, jax.random.split(order, EPOCHS))
        return jnp.append(loss(variables), losses), errors[-1]

    keys = jax.random.split(jax.random.key(seed), NETS)
    return jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(jnp.asarray(RATES), keys)


def last(numbers, batch, rate):
    """Return the loss at the end; infinity if it is not finite."""
    loss = numbers.losses[str(batch)][RATES.index(rate)][-1]
    return loss if np.isfinite(loss) else np.inf


def best_rate(numbers, batch):
    """Return the rate at which the loss of this batch size ends lowest."""
    return min(RATES, key=lambda rate: last(numbers, batch, rate))


def per_image(batch):
    """Return the rate of the mean gradient at which a step is PER_IMAGE times the sum of gradients."""
    return PER_IMAGE * batch


def table(numbers):
    """Return the losses by batch size: at one rate, at one rate per image, at the best one."""
    header = (
        "batch",
        f"loss at the rate {ONE_RATE:g}",
        f"at {PER_IMAGE:g} per image",
        "at the best rate",
        "the best rate",
        "its test error",
    )
    rows = []
    for batch in BATCHES:
        best = best_rate(numbers, batch)
        losses = (last(numbers, batch, rate) for rate in (ONE_RATE, per_image(batch), best))
        error = numbers.errors[str(batch)][RATES.index(best)]
        rows.append((str(batch), *(f"{each:.3f}" for each in losses), f"{best:g}", f"{error:.1%}"))
    return header, rows


def claim(numbers):
    """Return whether the loss grows with the batch size, and how the rate per image decides."""
    fixed = [last(numbers, batch, ONE_RATE) for batch in BATCHES]
    equal = [last(numbers, batch, per_image(batch)) for batch in BATCHES]
    best = [last(numbers, batch, best_rate(numbers, batch)) for batch in BATCHES]
    spread = max(equal[:-1]) / min(equal[:-1])
    text = (
        f"after {EPOCHS * numbers.images:,} images, the training loss with batches of {BATCHES[0]} and {BATCHES[-1]} "
        f"is {fixed[0]:.3f} and {fixed[-1]:.3f} at the rate {ONE_RATE:g} of the mean gradient (at least 10 times as "
        f"much), {best[0]:.3f} and {best[-1]:.3f} at the best rate of each (at least 3 times); at {PER_IMAGE:g} per "
        f"image, batches up to {BATCHES[-2]} differ by a factor of {spread:.2f} (at most 2), {BATCHES[-1]} by "
        f"{equal[-1] / equal[0]:.1f} (at least 3)"
    )
    grows = fixed[-1] >= 10 * fixed[0] and best[-1] >= 3 * best[0]
    return Claim(text, bool(grows and spread <= 2 and equal[-1] >= 3 * equal[0]))


def draw(numbers):
    """Return the loss over images at the best rates, and the loss at the end over the rate."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    images = numbers.images * np.arange(EPOCHS + 1)
    for batch, style in zip(BATCHES, ("o-", "s--", "^-.", "D:", "v-")):
        best = best_rate(numbers, batch)
        curve = numbers.losses[str(batch)][RATES.index(best)]
        left.plot(images, curve, style, markersize=4, label=f"batch {batch}, rate {best:g}")
        right.plot(RATES, [last(numbers, batch, rate) for rate in RATES], style, markersize=4, label=f"batch {batch}")
    left.set(xlabel="images, each batch size at its best rate", ylabel="training loss", yscale="log")
    right.set(xlabel="rate of the mean gradient", xscale="log", yscale="log")
    right.set(ylabel=f"training loss after {images[-1]:,} images")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
