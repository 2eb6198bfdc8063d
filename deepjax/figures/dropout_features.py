"""Features of an auto-encoder with and without dropout (Srivastava et al. 2014, figures 7 and 8)."""

from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import config, data, functional, initializers
from deepjax.figures.experiment import Claim, plain
from deepjax.functional import losses
from deepjax.layers import Dense, Dropout
from deepjax.runs.plots import new_figure

TITLE = "Features and activations of an auto-encoder of 256 ReLU units, with and without dropout"
SOURCE = "Going deeper: dropout (Srivastava et al. 2014, figures 7 and 8)"
USES = ("full", "data_dir")
RATES = {"without dropout": 0.0, "with dropout": 0.5}
UNITS, SPREAD, BATCH, MOMENTUM, SHOWN = 256, 0.03, 100, 0.9, 64


class Plan(NamedTuple):
    """Sizes of a training. The paper states only the units, the rate of dropout and MNIST."""

    name: str  # of the data set
    images: int | None  # of training; None: all
    rate: float  # of SGD
    steps: int
    window: int  # side of the square in which a local feature has its weight


DIGITS = Plan("digits", None, 0.03, 5000, 3)
MNIST = Plan("mnist", 5000, 0.01, 3000, 7)
FULL = MNIST._replace(images=None, steps=30_000)


@dataclass(frozen=True)
class Numbers:
    """What each auto-encoder has learned, of the units that are active for a test image."""

    data: str
    window: int
    features: dict[str, tuple]  # weights into SHOWN units, [units, side, side]; 1 is a unit's largest
    shares: dict[str, tuple[float, ...]]  # of each unit: squared weight in its best window, as a fraction
    activations: dict[str, tuple[float, ...]]  # of each unit: mean over the test images
    active: dict[str, float]  # fraction of the active units for a test image
    errors: dict[str, float]  # squared error of the test images, as a fraction of their variance


class AutoEncoder(nn.Module):
    """A hidden layer of ReLU units, dropout, and the logit of each pixel."""

    rate: float

    @nn.compact
    def __call__(self, x, *, train: bool):
        """x [batch, pixels] -> (hidden units [batch, UNITS], logits [batch, pixels])."""
        init = initializers.gaussian(SPREAD)
        hidden = functional.relu(Dense(UNITS, kernel_init=init, name="encoder")(x))
        dropped = Dropout(self.rate)(hidden, train=train)
        return hidden, Dense(x.shape[-1], kernel_init=init, name="decoder")(dropped)


def numbers(settings):
    """Return Numbers: 5,000 updates on digits; with a data_dir 3,000 on 5,000 images of MNIST.

    `full` has ten times as many updates on all of MNIST. The seed draws initial weights, batches, and what is dropped;
    the first two are the same with and without dropout.
    """
    plan = FULL if settings.full else MNIST if settings.data_dir else DIGITS
    found = data.load(config.Data(plan.name), settings.data_dir, 0)
    chosen = found.train.take(np.random.default_rng(0).permutation(len(found.train))[: plan.images])
    x, test = _pixels(chosen), _pixels(found.test)
    run = jax.jit(lambda rate: _train(AutoEncoder(rate), x, jax.random.key(settings.seed), plan))
    text = f"{len(x)} images of {plan.name}"
    return measured(text, plan.window, test, {kind: run(rate) for kind, rate in RATES.items()})


def _pixels(split):
    return jnp.asarray(split.images, jnp.float32).reshape(len(split), -1) / 255


def _train(network, x, key, plan):
    """Return the variables after training with the cross entropy of each pixel, a number in [0, 1]."""
    first, batches, drops = jax.random.split(key, 3)
    optimizer = optax.sgd(plan.rate, MOMENTUM)
    variables = network.init(first, x[:1], train=False)

    def update(carry, step):
        variables, state = carry
        rows = x[jax.random.randint(jax.random.fold_in(batches, step), (BATCH,), 0, len(x))]

        def loss(variables):
            _, logits = network.apply(variables, rows, train=True, rngs={"dropout": jax.random.fold_in(drops, step)})
            return losses.binary_cross_entropy(logits, rows).sum(-1).mean()

        changes, state = optimizer.update(jax.grad(loss)(variables), state)
        return (optax.apply_updates(variables, changes), state), None

    return jax.lax.scan(update, (variables, optimizer.init(variables)), jnp.arange(plan.steps))[0][0]


def measured(text, window, test, trained):
    """Return Numbers of trained auto-encoders, {kind: variables}, for test images [N, pixels]."""
    side = round(test.shape[1] ** 0.5)
    features, shares, activations, active, errors = {}, {}, {}, {}, {}
    for kind, variables in trained.items():
        hidden, logits = (np.asarray(each, float) for each in AutoEncoder(0.0).apply(variables, test, train=False))
        alive = (hidden > 0).any(0)
        weights = np.asarray(variables["params"]["encoder"]["kernel"], float).T.reshape(-1, side, side)[alive]
        images = np.asarray(test, float)
        features[kind] = plain((weights / abs(weights).max((1, 2), keepdims=True))[:SHOWN].round(3))
        shares[kind] = plain(best_window(weights, window))
        activations[kind] = plain(hidden.mean(0)[alive])
        active[kind] = float((hidden[:, alive] > 0).mean())
        errors[kind] = float(((1 / (1 + np.exp(-logits)) - images) ** 2).mean() / images.var(0).mean())
    return Numbers(text, window, features, shares, activations, active, errors)


def best_window(weights, window):
    """Return the largest fraction of the squared weight that a square window has, for weights [units, side, side]."""
    windows = np.lib.stride_tricks.sliding_window_view(weights**2, (window, window), (1, 2))
    return windows.sum((-1, -2)).max((1, 2)) / (weights**2).sum((1, 2))


def table(numbers):
    """Return how local the features are, and how sparse the activations."""
    window = f"{numbers.window}x{numbers.window}"
    header = (
        "auto-encoder",
        f"weight in the best {window}",
        "mean activation",
        "units active for an image",
        "units active for any image",
        "squared error / variance",
    )
    rows = []
    for kind in RATES:
        local, mean = np.mean(numbers.shares[kind]), np.mean(numbers.activations[kind])
        count = len(numbers.shares[kind])
        errors = f"{numbers.errors[kind]:.1%}"
        rows.append((kind, f"{local:.1%}", f"{mean:.3f}", f"{numbers.active[kind]:.1%}", count, errors))
    return header, rows


def claim(numbers):
    """Return whether dropout makes the features more local and the activations sparser."""
    (whole, local), (dense, sparse) = (
        [np.mean(each[kind]) for kind in RATES] for each in (numbers.shares, numbers.activations)
    )
    many, few = (numbers.active[kind] for kind in RATES)
    text = (
        f"a feature has {local:.1%} of its squared weight in a window of {numbers.window}x{numbers.window} pixels with "
        f"dropout, {local / whole:.2f} times (at least 1.2) the {whole:.1%} without; the mean activation is "
        f"{sparse / dense:.2f} times (at most 0.5) and the share of active units {few / many:.2f} times (at most 0.75) "
        f"that without; {numbers.data}"
    )
    return Claim(text, bool(local >= 1.2 * whole and sparse <= 0.5 * dense and few <= 0.75 * many))


def draw(numbers):
    """Return the features, and the distribution of the units' mean activations (figures 7 and 8a of the paper)."""
    figure = new_figure(11, 4)
    *grids, right = figure.subplots(1, 3)
    for axes, kind in zip(grids, RATES):
        axes.imshow(_mosaic(np.asarray(numbers.features[kind])), cmap="gray", vmin=-1, vmax=1)
        axes.set(title=f"features {kind}", xticks=[], yticks=[])
    largest = max(max(each) for each in numbers.activations.values())
    for kind, style in zip(RATES, ("--", "-")):
        right.hist(numbers.activations[kind], np.linspace(0, largest, 31), histtype="step", linestyle=style, label=kind)
    right.set(xlabel="mean activation of a unit", ylabel="units", title=numbers.data)
    right.legend()
    return figure


def _mosaic(features):
    """Return images [units, side, side] side by side, with lines between them, as one image."""
    columns = 8
    padded = np.pad(features, ((0, -len(features) % columns), (0, 1), (0, 1)), constant_values=1)
    rows, side = len(padded) // columns, padded.shape[1]
    return padded.reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, columns * side)
