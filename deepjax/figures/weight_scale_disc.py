"""A deep perceptron on the disc trains from a narrow range of weight scales, and with batch norm from a wide one."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import zoo
from deepjax.figures.experiment import Claim, plain
from deepjax.figures.small_runs import load, train
from deepjax.runs.plots import new_figure

TITLE = "Test error on the disc by the standard deviation of all parameters, with and without batch normalization"
SOURCE = "Going deeper: batch normalization, deep MLP on the disc"
USES = ("full",)
NORMS = {"baseline": "none", "batch normalization": "batch"}
LOWEST, HIGHEST, LEARNED = 1e-3, 10.0, 0.2  # of the scales; test error of a network that has learned


@dataclass(frozen=True)
class Numbers:
    """Test errors after training, for each scale and network. Outputs that are not finite are errors."""

    scales: tuple[float, ...]  # standard deviations of all parameters before training
    errors: dict[str, tuple[tuple[float, ...], ...]]  # baseline or batch normalization -> scale -> network


def numbers(settings):
    """Return Numbers: 13 scales, 2 networks each, 500 updates; in full 25 scales, 10 networks, 2,000 updates.

    The network has 1 + 16 hidden layers of 32 ReLU units, as in the lecture, and SGD has its rate of 0.1. The lecture
    states neither batch size nor updates. The seed draws the parameters, scale and shift of the norms included, and the
    order of examples. Networks of different scales differ in the scale only.
    """
    count, nets, steps = (25, 10, 2000) if settings.full else (13, 2, 500)
    scales = np.geomspace(LOWEST, HIGHEST, count)
    keys = jax.random.split(jax.random.key(settings.seed), nets)
    return Numbers(plain(scales), {name: plain(_errors(norm, scales, keys, steps)) for name, norm in NORMS.items()})


def _errors(norm, scales, keys, steps):
    """Return the test errors, float64 [scales, keys]."""
    examples, test = load("disc")
    options = {"depth": 18, "width": 32, "init": "gaussian_all", "scale": 1.0, "norm": norm}
    network = zoo.create("mlp", options, num_classes=2)

    def run(pair):
        scale, key = pair
        first, order = jax.random.split(key)
        variables = network.init(first, examples.inputs[:1], train=False)
        variables |= {"params": jax.tree.map(lambda each: scale * each, variables["params"])}
        plan = {"optimizer": optax.sgd(0.1), "steps": steps, "batch_size": 100, "every": steps}
        return train(network, variables, examples, test, order, **plan).errors[-1]

    pairs = jnp.repeat(jnp.asarray(scales, jnp.float32), len(keys)), jnp.tile(keys, len(scales))
    errors = jax.jit(lambda pairs: jax.lax.map(run, pairs))(pairs)  # on CPU twice as fast as vmap
    return np.asarray(errors, float).reshape(len(scales), len(keys))


def learned(numbers, name):
    """Return the scales at which the mean test error shows that the networks have learned."""
    return [scale for scale, errors in zip(numbers.scales, numbers.errors[name]) if np.mean(errors) <= LEARNED]


def table(numbers):
    """Return the mean test error of each scale."""
    columns = zip(numbers.scales, *numbers.errors.values())
    return ("standard deviation", *NORMS), [
        (f"{scale:.3g}", *(f"{np.mean(errors):.1%}" for errors in each)) for scale, *each in columns
    ]


def claim(numbers):
    """Return whether the range of scales that train is narrow without batch normalization, and wide with it."""
    found = [learned(numbers, name) for name in NORMS]
    narrow, wide = (max(each) / min(each) if each else 0.0 for each in found)
    text = (
        f"a mean test error of at most {LEARNED:.0%} is reached at {len(found[0])} of {len(numbers.scales)} scales "
        f"without batch normalization, which span a factor of {narrow:.3g} (at least one, at most a factor of 5), and "
        f"at {len(found[1])} with it, which span {wide:.3g} (at least 30)"
    )
    return Claim(text, 1 <= narrow <= 5 and wide >= 30)


def draw(numbers):
    """Return test error over scale: the mean as a line, networks as points."""
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for (name, errors), style in zip(numbers.errors.items(), ("o--", "s-")):
        (line,) = axes.plot(numbers.scales, 100 * np.mean(errors, axis=1), style, markersize=4, label=name)
        axes.plot(numbers.scales, 100 * np.asarray(errors), ".", color=line.get_color(), alpha=0.4)
    axes.set(xlabel="standard deviation of all parameters", ylabel="test error (%)", xscale="log")
    axes.set_title("100 %: the outputs are not finite", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
