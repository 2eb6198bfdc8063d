"""Receptive fields: what a unit can depend on grows as its depth, what it does depend on as the root of the depth."""

from dataclasses import dataclass
from functools import partial
from math import sqrt

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deepjax import functional, inference, inside, summary
from deepjax.errors import InputError
from deepjax.figures.experiment import Claim, plain
from deepjax.runs.plots import new_figure
from deepjax.trace import call_arguments
from deepjax.zoo.network import Network

TITLE = "Theoretical and effective receptive fields"
SOURCE = "Deep learning: effective receptive field (Luo et al. 2016)"
USES = ("model", "weights")
DEPTHS, SIDE, FEATURES, NETS = (5, 10, 20, 40), 81, 8, 24


@dataclass(frozen=True)
class Numbers:
    """By map: of stacks of 3x3 convolutions the depth, of a given network the stage."""

    subject: str
    theoretical: dict[str, float]  # pixels of one side
    deviations: dict[str, float]  # of the influence around its mean, in pixels, mean of both axes
    expected: dict[str, float]  # the same in theory, for stacks
    influences: dict[str, tuple]  # profiles through the middle, largest value 1


class Stack(nn.Module):
    """3x3 convolutions and rectifiers."""

    depth: int

    @nn.compact
    def __call__(self, x):
        """[B, H, W, channels] -> [B, H, W, FEATURES]."""
        for _ in range(self.depth):
            init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
            x = functional.relu(nn.Conv(FEATURES, (3, 3), use_bias=False, kernel_init=init)(x))
        return x


def numbers(settings):
    """Return Numbers of stacks of random 3x3 convolutions, or of the stages of a given network.

    The seed draws weights, inputs and cotangents.

    Raises:
      InputError: weights without a model, or a network without maps.
    """
    if settings.weights and not settings.model:
        raise InputError(f"weights {settings.weights} are for a given network; add --model")
    key = jax.random.key(settings.seed)
    if settings.model:
        return _of_network(inference.load_source(settings.model, settings.weights), settings.model, key)
    influences = {f"{depth} layers": _of_stack(depth, jax.random.fold_in(key, depth)) for depth in DEPTHS}
    return Numbers(
        f"stacks of 3x3 convolutions with ReLU and {FEATURES} features, mean of {NETS} random networks",
        {f"{depth} layers": 2 * depth + 1 for depth in DEPTHS},
        {name: _deviation(each) for name, each in influences.items()},
        {f"{depth} layers": sqrt(2 / 3 * depth) for depth in DEPTHS},
        {name: _profile(each) for name, each in influences.items()},
    )


def _of_stack(depth, key):
    """Return the mean influence of random stacks, each on one random image."""
    network = Stack(depth)

    def one(key):
        init, image, cotangent = jax.random.split(key, 3)
        x = jax.random.normal(image, (1, SIDE, SIDE, 1))
        variables = network.init(init, x)
        found = inside.influence(lambda x: network.apply(variables, x), x, cotangent)
        return found / jnp.maximum(found.sum(), 1e-30)  # a dead unit has no influence anywhere

    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, NETS)).mean(0))


def _of_network(run, name, key):
    """Return Numbers of the maps of a network of the zoo, on 8 images of noise."""
    if len(run.shape) != 3 or not isinstance(run.model, Network):
        raise InputError(f"model {name} is no network of the zoo for images; give one")
    model, variables = run.model.clone(features_only=True), run.members[-1]
    call = call_arguments(model, train=False)
    first, cotangent = jax.random.split(key)
    x = jax.random.normal(first, (8, *run.shape))
    fields = {stage: max(field.size) for stage, field in summary.map_fields(model, run.shape).items()}
    theoretical = dict(sorted(fields.items(), key=lambda item: item[1]))

    @partial(jax.jit, static_argnums=0)
    def influence(stage, variables, x):
        return inside.influence(lambda x: model.apply(variables, x, **call)[stage], x, cotangent)

    influences = {stage: np.asarray(influence(stage, variables, x)) for stage in theoretical}
    return Numbers(
        f"{name} on noise",
        theoretical,
        {stage: _deviation(each) for stage, each in influences.items()},
        {},
        {stage: _profile(each) for stage, each in influences.items()},
    )


def _deviation(influence):
    return float(np.mean(inside.spread(influence)))


def _profile(influence):
    """Return the influence along W, summed along H, with the largest value 1."""
    profile = influence.sum(0)
    return plain((profile / profile.max()).round(6))


def table(numbers):
    """Return both sizes for each map. Two standard deviations on both sides are about 95 % of a Gaussian."""
    header = ("map", "theoretical side", "effective: 4 deviations", "deviation in theory")
    return header, [
        (
            name,
            f"{side}",
            f"{4 * numbers.deviations[name]:.1f}",
            f"{numbers.expected[name]:.2f}" if numbers.expected else "",
        )
        for name, side in numbers.theoretical.items()
    ]


def claim(numbers):
    """Return whether deviations are those of the theory; of a given network, whether they lie inside of the fields."""
    if not numbers.expected:
        shares = {name: 4 * numbers.deviations[name] / side for name, side in numbers.theoretical.items()}
        text = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        text = f"four deviations of the influence are less than the theoretical side: {text}; {numbers.subject}"
        return Claim(text, all(share < 1 for share in shares.values()))
    depths = [(side - 1) / 2 for side in numbers.theoretical.values()]
    slope = float(np.polyfit(np.log(depths), np.log(list(numbers.deviations.values())), 1)[0])
    ratios = [numbers.deviations[name] / numbers.expected[name] for name in numbers.expected]
    text = (
        f"the theoretical side grows as 2 depth + 1, the deviation of the influence as depth^{slope:.2f} (0.5 +- 0.05);"
        f" it is {min(ratios):.2f} to {max(ratios):.2f} of sqrt(2 depth / 3) (0.9 to 1.1); {numbers.subject}"
    )
    return Claim(text, abs(slope - 0.5) <= 0.05 and min(ratios) >= 0.9 and max(ratios) <= 1.1)


def draw(numbers):
    """Return the profiles of the influence, with the borders of the theoretical fields."""
    figure = new_figure(8, 4)
    axes = figure.subplots()
    for i, (name, profile) in enumerate(numbers.influences.items()):
        pixels = np.arange(len(profile)) - len(profile) // 2
        (line,) = axes.plot(pixels, profile, ("-", "--", "-.", ":")[i % 4], label=name)
        half = numbers.theoretical[name] / 2
        if half <= len(profile) / 2:
            axes.plot([-half, half], [-0.03 * (i + 1)] * 2, "|-", color=line.get_color())
    axes.set(xlabel="pixels from the middle", ylabel="influence (largest: 1); bars: theoretical", title=numbers.subject)
    axes.title.set_fontsize(9)
    axes.legend()
    return figure
