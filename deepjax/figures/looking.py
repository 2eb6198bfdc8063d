"""A network, images, and a test of maps: shared by saliency, guided-backprop, deconvnet and occlusion."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import functional, inference
from deepjax.errors import InputError
from deepjax.figures import small_runs
from deepjax.figures.experiment import Claim, plain
from deepjax.runs.plots import new_figure
from deepjax.trace import call_arguments

USES = ("model", "weights", "image")
SHOWN, TESTED, SIDE, UPDATES, HIDDEN = 5, 100, 24, 500, 0.1


class Subject(NamedTuple):
    """A network and images to look at."""

    model: Any  # Linen module
    variables: Any
    inputs: jax.Array  # [N, H, W, channels], as the network takes them
    pictures: np.ndarray  # [N, H, W, channels] from 0 to 1
    classes: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Numbers:
    """The maps of the first images, and probabilities of the predicted class, means over all images."""

    subject: str
    pictures: Any  # [shown, H, W, channels] from 0 to 1
    maps: Any  # [shown, H, W], larger where a pixel matters more
    predicted: tuple[str, ...]  # of the shown images
    images: int
    whole: float  # probability of the predicted class of whole images
    without_marked: float  # with the mean in place of the tenth of the pixels where the map is largest
    without_random: float  # the same with as many random pixels


class SmallNetwork(nn.Module):
    """Filters of 7x7 pixels, a max pool, filters of 3x3, and the largest value of each over the image."""

    @nn.compact
    def __call__(self, x):
        """[batch, H, W, channels] -> logits [batch, 10]."""
        x = functional.max_pool(functional.relu(nn.Conv(12, (7, 7))(x)), 3)
        x = functional.relu(nn.Conv(24, (3, 3))(x)).max((1, 2))
        return nn.Dense(10)(x)


def load(settings) -> Subject:
    """Return the network and the image of the settings, or a small network that was trained on digits on a canvas.

    Raises:
      InputError: a model without an image, an image or weights without a model, or what cannot be read.
    """
    if not settings.model:
        if given := settings.image or settings.weights:
            raise InputError(f"{given} is for a given network; add --model")
        return trained(settings.seed)
    if not settings.image:
        raise InputError(f"model {settings.model} needs an image to look at; give --image FILE")
    run = inference.load_source(settings.model, settings.weights)
    if len(run.shape) != 3 or not run.classes:
        raise InputError(f"model {settings.model} does not classify images; give a run or network that does")
    pixels = run.read(Path(settings.image).expanduser())
    text = f"{settings.model} on {Path(settings.image).name}"
    return Subject(run.model, run.members[-1], run.inputs(pixels), pixels / 255, run.classes, text)


def trained(seed):
    """Return a network after 500 updates on digits at random places of 24x24 pixels."""
    keys = jax.random.split(jax.random.key(seed), 4)
    (train, test), network = small_runs.load("digits"), SmallNetwork()
    train, test = (_on_canvas(each, key) for each, key in zip((train, test), keys))

    @jax.jit
    def run(train, test):
        variables = dict(network.init(keys[2], train.inputs[:1]))
        optimizer = optax.adamw(optax.cosine_decay_schedule(5e-3, UPDATES), weight_decay=0.3)
        plan = {"steps": UPDATES, "batch_size": 32, "every": UPDATES}
        return small_runs.train(network, variables, train, test, keys[3], optimizer=optimizer, **plan)

    curves = run(train, test)
    inputs, low = test.inputs[:TESTED], test.inputs.min()
    pictures = np.asarray((inputs - low) / (test.inputs.max() - low))
    text = f"a small network with {float(curves.errors[-1]):.1%} test errors on digits at random places"
    return Subject(network, curves.variables, inputs, pictures, tuple(map(str, range(10))), text)


def _on_canvas(examples, key):
    """Return digits at random places of a canvas of the smallest value, with Gaussian noise."""
    noise_key, place_key = jax.random.split(key)
    images, side = examples.inputs, examples.inputs.shape[1]
    places = jax.random.randint(place_key, (len(images), 2), 0, SIDE - side + 1)
    canvas = images.min() + 0.3 * jax.random.normal(noise_key, (len(images), SIDE, SIDE, 1))
    put = jax.vmap(lambda canvas, image, place: jax.lax.dynamic_update_slice(canvas, image, (*place, 0)))
    inputs = put(canvas, images, places)
    return examples._replace(inputs=(inputs - inputs.mean()) / inputs.std())


def numbers(settings, scores) -> Numbers:
    """Return Numbers of a method: `scores(subject, classes)` -> float [N, H, W], larger where a pixel matters more."""
    subject = load(settings)
    call = call_arguments(subject.model, train=False)
    softmax = jax.jit(lambda variables, x: jax.nn.softmax(subject.model.apply(variables, x, **call)))
    probabilities = partial(softmax, subject.variables)
    found = probabilities(subject.inputs)
    classes = np.asarray(found.argmax(-1))
    maps = np.asarray(scores(subject, classes), np.float32)
    count = max(1, round(HIDDEN * maps[0].size))
    random = np.random.default_rng(settings.seed).random(maps.shape)
    of = partial(_mean_probability, probabilities, subject.inputs, classes)
    return Numbers(
        subject.text,
        plain(subject.pictures[:SHOWN].round(3)),
        plain((maps[:SHOWN] / np.abs(maps[:SHOWN]).max((1, 2), keepdims=True).clip(1e-30)).round(4)),
        tuple(subject.classes[each] for each in classes[:SHOWN]),
        len(maps),
        float(np.take_along_axis(np.asarray(found), classes[:, None], -1).mean()),
        of(_largest(maps, count)),
        of(_largest(random, count)),
    )


def numbers_of_gradient(settings, rule) -> Numbers:
    """Return Numbers of `rule`, a function of `inside`: the largest absolute value over the channels of a pixel."""

    def scores(subject, classes):
        return jnp.abs(rule(subject.model, subject.variables, subject.inputs, classes)).max(-1)

    return numbers(settings, scores)


def _largest(maps, count):
    """Return bool like maps [N, H, W]: the `count` largest entries of each."""
    flat = maps.reshape(len(maps), -1)
    chosen = np.zeros(flat.shape, bool)
    np.put_along_axis(chosen, np.argsort(-flat, axis=-1, kind="stable")[:, :count], True, -1)
    return chosen.reshape(maps.shape)


def _mean_probability(probabilities, inputs, classes, hidden):
    """Return the mean probability of the classes where the hidden pixels are the mean of their image."""
    mean = inputs.mean((1, 2), keepdims=True)
    found = np.asarray(probabilities(jnp.where(hidden[..., None], mean, inputs)))
    return float(np.take_along_axis(found, classes[:, None], -1).mean())


def table(numbers):
    """Return the probabilities of the predicted class."""
    rows = [("nothing", numbers.whole), ("the tenth with the largest values of the map", numbers.without_marked)]
    rows.append(("a random tenth", numbers.without_random))
    return ("pixels that are hidden", "probability of the predicted class"), [(a, f"{b:.1%}") for a, b in rows]


def claim(numbers):
    """Return whether the network misses the pixels that the map marks more than random ones."""
    fall, random = numbers.whole - numbers.without_marked, numbers.whole - numbers.without_random
    text = (
        f"hiding the tenth of the pixels that the map marks lowers the probability of the predicted class by {fall:.1%}"
        f", more than twice as much as hiding a random tenth does ({random:.1%}); mean over {numbers.images} "
        f"image{'s'[: numbers.images > 1]}; {numbers.subject}"
    )
    return Claim(text, bool(fall > 0 and fall > 2 * random))


def draw(numbers):
    """Return the images above their maps."""
    figure = new_figure(2.1 * len(numbers.maps) + 1, 4.6)
    axes = figure.subplots(2, len(numbers.maps), squeeze=False)
    for (above, below), picture, values, name in zip(axes.T, numbers.pictures, numbers.maps, numbers.predicted):
        above.imshow(np.squeeze(picture), cmap="gray", vmin=0, vmax=1)
        above.set_title(name)
        below.imshow(values, cmap="magma", vmin=0, vmax=1)
        for each in (above, below):
            each.set(xticks=[], yticks=[])
    return figure
