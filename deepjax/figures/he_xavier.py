"""Plain ReLU networks of 22 layers learn from He's and from Xavier's weights, those of 30 layers from He's only."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import zoo
from deepjax.figures.experiment import Claim, plain
from deepjax.figures.small_runs import load, train
from deepjax.runs.plots import new_figure

TITLE = "He's against Xavier's initial weights, at 22 and at 30 layers of ReLU units"
SOURCE = "Optimization and deeper architectures: relu networks (He et al. 2015, figures 2 and 3)"
USES = ("full",)
DEPTHS, INITS, RATES = (22, 30), ("he", "xavier"), (0.002, 0.004)
WIDTH, BATCH, MOMENTUM, STEPS, EVERY = 32, 32, 0.9, 1500, 50


@dataclass(frozen=True)
class Run:
    """Networks of one depth and initialization, at the rate at which their mean test error ends lowest."""

    rate: float
    errors: tuple[tuple[float, ...], ...]  # network -> test error after each EVERY updates
    steps: int | None  # after which the mean test error is at most one half


@dataclass(frozen=True)
class Numbers:
    """{depth: {initialization: Run}}."""

    runs: dict[str, dict[str, Run]]


def numbers(settings):
    """Return Numbers: 6 networks of width 32 on digits at each rate; in full 12 networks of width 64, 3,000 updates.

    The paper's networks are convolutional, on ImageNet. The seed draws the initial weights, which differ between
    initializations by a factor only, and the order of examples.
    """
    nets, width, steps = (12, 2 * WIDTH, 2 * STEPS) if settings.full else (6, WIDTH, STEPS)
    keys = jax.random.split(jax.random.key(settings.seed), nets)
    return Numbers(
        {str(depth): {init: _best(_errors(depth, init, width, keys, steps)) for init in INITS} for depth in DEPTHS}
    )


def _errors(depth, init, width, keys, steps):
    """Return the test errors, float64 [rates, keys, checks]."""
    examples, test = load("digits")
    network = zoo.create("mlp", depth=depth, width=width, init=init, num_classes=10)

    def run(pair):
        rate, key = pair
        first, order = jax.random.split(key)
        variables = network.init(first, examples.inputs[:1], train=False)
        plan = {"optimizer": optax.sgd(rate, MOMENTUM), "steps": steps, "batch_size": BATCH, "every": EVERY}
        return train(network, variables, examples, test, order, **plan).errors

    pairs = jnp.repeat(jnp.asarray(RATES), len(keys)), jnp.tile(keys, len(RATES))
    errors = jax.jit(lambda pairs: jax.lax.map(run, pairs))(pairs)  # on CPU twice as fast as vmap
    return np.asarray(errors, float).reshape(len(RATES), len(keys), -1)


def _best(errors):
    """Return the Run of the best rate. errors: [rates, networks, checks]."""
    best = int(errors[..., -1].mean(1).argmin())
    learned = errors[best].mean(0) <= 0.5
    return Run(RATES[best], plain(errors[best]), EVERY * (int(learned.argmax()) + 1) if learned.any() else None)


def _last(run):
    return float(np.mean([errors[-1] for errors in run.errors]))


def table(numbers):
    """Return best rate, steps to one half and last error of each depth and initialization."""
    header = ("layers", "initialization", "best rate", "steps to an error of 50 %", "last error")
    return header, [
        (depth, init, f"{run.rate:g}", "" if run.steps is None else f"{run.steps:,}", f"{_last(run):.1%}")
        for depth, runs in numbers.runs.items()
        for init, run in runs.items()
    ]


def claim(numbers):
    """Return whether He's weights learn at both depths, and Xavier's later at 22 layers and not at 30."""
    he, xavier = ([numbers.runs[str(depth)][init] for depth in DEPTHS] for init in INITS)
    ratio = (xavier[0].steps or np.inf) / (he[0].steps or np.inf)
    text = (
        f"at the best rate, the test error of {DEPTHS[0]} layers ends at {_last(he[0]):.0%} from He's weights (at most "
        f"50 %) and {_last(xavier[0]):.0%} from Xavier's (at most 70 %; chance is 90 %), which take {ratio:.1f} times "
        f"as many steps to 50 % (at least 2; inf: not reached); that of {DEPTHS[1]} layers at {_last(he[1]):.0%} (at "
        f"most 50 %) and {_last(xavier[1]):.0%} (at least 70 %)"
    )
    learned = max(_last(he[0]), _last(he[1])) <= 0.5 and _last(xavier[0]) <= 0.7
    return Claim(text, bool(learned and ratio >= 2 and _last(xavier[1]) >= 0.7))


def draw(numbers):
    """Return test error over steps at the best rate, for each depth: the mean as a line, networks as thin lines."""
    figure = new_figure(10, 4)
    for axes, (depth, runs) in zip(figure.subplots(1, len(DEPTHS), sharey=True), numbers.runs.items()):
        for (init, run), style in zip(runs.items(), ("-", "--")):
            errors = 100 * np.asarray(run.errors)
            steps = EVERY * np.arange(1, errors.shape[1] + 1)
            (line,) = axes.plot(steps, errors.mean(0), style, label=f"{init}, rate {run.rate:g}")
            axes.plot(steps, errors.T, style, color=line.get_color(), alpha=0.3, linewidth=0.8)
        axes.set(title=f"{depth} layers", xlabel="steps", ylabel="test error (%)")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
