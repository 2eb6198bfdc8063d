"""Table 3 of the DropConnect paper: nothing, units or connections dropped, with and without augmentation."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from scipy import stats

from deepjax import data, zoo
from deepjax.config import Augment
from deepjax.figures import small_runs
from deepjax.figures.experiment import Claim
from deepjax.runs.plots import new_figure

TITLE = "DropConnect, dropout and neither, five networks each and their vote"
SOURCE = "Going deeper: DropConnect, Wan et al. 2013, table 3"
USES = ("full", "data_dir")
DROPS = ("none", "dropout", "dropconnect")
BLOCKS = ("no change", "crop", "crop, rotation, scaling")
NETWORKS = 5


@dataclass(frozen=True)
class Numbers:
    """Test errors as fractions: {block: {drop: ...}}."""

    data: str
    errors: dict[str, dict[str, tuple[float, ...]]]  # of each network alone
    votes: dict[str, dict[str, float]]  # of the class with the largest mean probability


class Augmented(nn.Module):
    """A network whose training images are changed at random."""

    network: nn.Module
    augment: Augment

    @nn.compact
    def __call__(self, x, *, train: bool):
        """[batch, H, W, channels] -> logits."""
        if train:
            x = data.augment(self.make_rng("dropout"), x, self.augment)
        return self.network(x, train=train)


def numbers(settings):
    """Return Numbers. The seed draws initial weights, orders, changes of images, and what is dropped.

    The usual size is 600 digits of 16x16 pixels; with a data_dir all of MNIST, an hour on two quiet CPU cores. Both
    have networks of width 8 and 10 epochs. `full` is the paper's network of width 32, 100 epochs: days.
    """
    full = settings.full
    name, size, side = ("mnist", None, 28) if settings.data_dir or full else ("digits", 600, 16)
    train, test = (_resized(each, side) for each in small_runs.load(name, settings.data_dir, size))
    epochs = 100 if full else 10
    augments = augmentations(side)
    errors, votes = {}, {}
    for block, augment in augments.items():
        errors[block], votes[block] = {}, {}
        for drop in DROPS:
            network = Augmented(zoo.create("mnist_cnn", width=32 if full else 8, drop=drop), augment)
            keys = jax.random.split(jax.random.key(settings.seed), NETWORKS)
            probabilities = np.asarray(_probabilities(network, train, test, keys, epochs))
            wrong = (probabilities.argmax(-1) != np.asarray(test.labels)).mean(-1)
            errors[block][drop] = tuple(wrong.tolist())
            votes[block][drop] = float((probabilities.mean(0).argmax(-1) != np.asarray(test.labels)).mean())
    return Numbers(f"{len(train.labels)} images of {name}", errors, votes)


def augmentations(side):
    """Return {block: Augment} for images of this side: the numbers of MNIST, in proportion to 28 pixels."""
    crop = round(2 * side / 28)
    return dict(zip(BLOCKS, (Augment(), Augment(crop=crop), Augment(crop=crop, rotate=15.0, scale=0.15))))


def _resized(examples, side):
    images = examples.inputs
    return examples._replace(inputs=jax.image.resize(images, (len(images), side, side, images.shape[-1]), "linear"))


@partial(jax.jit, static_argnums=(0, 4))
def _probabilities(network, train, test, keys, epochs):
    """Return the class probabilities of the test examples by a network for each key, [keys, N, classes]."""
    batch_size = 32
    steps = epochs * (len(train.labels) // batch_size)
    optimizer = optax.sgd(optax.cosine_onecycle_schedule(steps, 0.02), momentum=0.9, nesterov=True)

    def one(key):
        first, order = jax.random.split(key)
        variables = network.init({"params": first}, train.inputs[:1], train=False)
        few = jax.tree.map(lambda each: each[:1], test)  # errors follow from the probabilities
        curves = small_runs.train(
            network, variables, train, few, order, optimizer=optimizer, steps=steps, batch_size=batch_size, every=steps
        )
        forward = partial(network.apply, curves.variables, train=False)
        return jax.lax.map(lambda x: nn.softmax(forward(x[None])[0]), test.inputs, batch_size=small_runs.CHUNK)

    return jax.lax.map(one, keys)


def interval(errors):
    """Return the mean of some networks and half of its 95 % interval, by Student's t."""
    return np.mean(errors), stats.t.ppf(0.975, len(errors) - 1) * np.std(errors, ddof=1) / np.sqrt(len(errors))


def table(numbers):
    """Return the rows of the paper's table: mean error with its interval, and the error of the vote."""
    header = ("images changed by", "dropped", f"error of {NETWORKS} networks (95 %)", "error of their vote")
    rows = []
    for block, each in numbers.errors.items():
        for drop, errors in each.items():
            mean, half = interval(errors)
            rows.append((block, drop, f"{100 * mean:.2f} +- {100 * half:.2f} %", f"{numbers.votes[block][drop]:.2%}"))
    return header, rows


def claim(numbers):
    """Return whether votes are better than single networks over the whole table. The paper's order is not claimed."""
    single = np.mean([list(each.values()) for each in numbers.errors.values()])
    vote = np.mean([list(each.values()) for each in numbers.votes.values()])
    text = (
        f"over the nine rows, votes have {vote:.2%} errors, fewer than single networks with {single:.2%}; no claim on "
        f"what is best to drop: {_order(numbers)}"
    )
    return Claim(text, bool(vote < single))


def _order(numbers):
    """Say for which rows an interval of the difference from no dropping excludes 0 (Welch's t test at 5 %)."""
    found = []
    for block, each in numbers.errors.items():
        for drop in DROPS[1:]:
            test: Any = stats.ttest_ind(each[drop], each["none"], equal_var=False)
            if test.pvalue < 0.05:
                better = np.mean(each[drop]) < np.mean(each["none"])
                found.append(f"{drop} is {'better' if better else 'worse'} than none with {block}")
    return "; ".join(found) or "no difference from none is larger than its 95 % interval"


def draw(numbers):
    """Return the table as bars with intervals; the votes are points."""
    figure = new_figure(8, 4)
    axes = figure.subplots()
    for i, drop in enumerate(DROPS):
        place = np.arange(len(BLOCKS)) + 0.27 * (i - 1)
        means, halves = np.array([interval(numbers.errors[block][drop]) for block in BLOCKS]).T
        axes.bar(place, 100 * means, 0.25, yerr=100 * halves, capsize=4, label=drop)
        votes = [100 * numbers.votes[block][drop] for block in BLOCKS]
        axes.plot(place, votes, "kD", markersize=4, label="vote of five" if i == 2 else None)
    axes.set_xticks(range(len(BLOCKS)), BLOCKS)
    axes.set(ylabel="test error (%), mean and 95 % interval", title=numbers.data)
    axes.margins(y=0.2)
    axes.legend(ncols=4, loc="upper center")
    return figure
