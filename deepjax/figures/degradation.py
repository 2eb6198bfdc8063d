"""Deeper plain networks have larger errors, also on the training set; deeper residual networks do not."""

from dataclasses import dataclass

import jax
import numpy as np
import optax

from deepjax import zoo
from deepjax.figures.dense_units import DenseUnits
from deepjax.figures.experiment import Claim
from deepjax.figures.small_runs import cifar, load, test_error, train
from deepjax.runs.plots import new_figure

TITLE = "Training and test errors of plain and residual networks by depth"
SOURCE = "Optimization and deeper architectures: going even deeper (He et al. 2015, figure 1)"
USES = ("full", "data_dir")
UNITS, RUNS, EXAMPLES, STEPS, BATCH = (3, 9, 18), 1, 1000, 300, 100
FULL_DEPTHS, FULL_STEPS = (20, 32, 44, 56), 64000
NAMES = {"plain": False, "residual": True}


@dataclass(frozen=True)
class Numbers:
    """Errors at the end of the training, mean over the runs, by depth in layers."""

    depths: tuple[int, ...]
    training: dict[str, tuple[float, ...]]
    test: dict[str, tuple[float, ...]]


def numbers(settings):
    """Return Numbers. The seed draws first weights and the order of the examples.

    The usual size takes dense networks with batch normalization on digits. `full` takes He et al.'s convolutional
    networks, learning rates, batches and number of updates on CIFAR-10, one run each, without their augmentation.
    """
    networks, depths = _networks(settings.full)
    examples, test = _data(settings)
    rate = optax.piecewise_constant_schedule(0.1, {32000: 0.1, 48000: 0.1}) if settings.full else 0.05
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(rate, 0.9))
    steps, batch, runs = (FULL_STEPS, 128, 1) if settings.full else (STEPS, BATCH, RUNS)
    keys = jax.random.split(jax.random.key(settings.seed), runs)

    def errors(network):
        def run(key):
            first, order = jax.random.split(key)
            variables = network.init(first, examples.inputs[:1], train=False)
            options = {"optimizer": optimizer, "steps": steps, "batch_size": batch, "every": steps}
            found = train(network, variables, examples, test, order, **options)
            return test_error(network, found.variables, examples), found.errors[-1]

        return [float(np.mean(each)) for each in jax.jit(lambda keys: jax.lax.map(run, keys))(keys)]

    found = {name: np.transpose([errors(network) for network in each]) for name, each in networks.items()}
    training, test_errors = ({name: tuple(each[i].tolist()) for name, each in found.items()} for i in range(2))
    return Numbers(depths, training, test_errors)


def _networks(full):
    """Return {kind: networks} and their depths in layers."""
    if full:
        kinds = {"plain": "cifar_plain", "residual": "cifar_resnet"}
        return {
            name: [zoo.create(f"{kind}{depth}", num_classes=10) for depth in FULL_DEPTHS]
            for name, kind in kinds.items()
        }, FULL_DEPTHS
    networks = {name: [DenseUnits(units, residual=residual) for units in UNITS] for name, residual in NAMES.items()}
    return networks, tuple(2 * units + 2 for units in UNITS)


def _data(settings):
    if settings.full:
        return load(cifar(settings.data_dir), settings.data_dir)
    return load("digits", size=EXAMPLES)


def table(numbers):
    """Return the errors by depth."""
    header = ("layers", *(f"{name}, {part}" for name in NAMES for part in ("training", "test")))
    rows = [
        (str(depth), *(f"{part[name][i]:.1%}" for name in NAMES for part in (numbers.training, numbers.test)))
        for i, depth in enumerate(numbers.depths)
    ]
    return header, rows


def claim(numbers):
    """Return whether the deepest plain network is worse than the shallowest on both sets, unlike the residual one."""
    more = {
        (name, part): errors[name][-1] - errors[name][0]
        for name in NAMES
        for part, errors in (("training", numbers.training), ("test", numbers.test))
    }
    plain, residual = (min if name == "plain" else max for name in NAMES)
    worse = plain(more["plain", part] for part in ("training", "test"))
    not_worse = residual(more["residual", part] for part in ("training", "test"))
    text = (
        f"from {numbers.depths[0]} to {numbers.depths[-1]} layers, the errors of plain networks grow by at least "
        f"{100 * worse:.1f} points on training and test set (at least 20), those of residual networks by at most "
        f"{100 * not_worse:.1f} (at most 5)"
    )
    return Claim(text, worse >= 0.2 and not_worse <= 0.05)


def draw(numbers):
    """Return both kinds' errors by depth."""
    figure = new_figure(8, 4)
    for axes, name in zip(figure.subplots(1, 2, sharey=True), NAMES):
        for part, errors, style in (("training", numbers.training, "o--"), ("test", numbers.test, "s-")):
            axes.plot(numbers.depths, 100 * np.asarray(errors[name]), style, label=part)
        axes.set(title=name, xlabel="layers", ylabel="error (%)", xscale="log")
        axes.set_xticks(numbers.depths, [str(depth) for depth in numbers.depths])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
