"""LSUV gives every layer's output variance 1; a deep network then learns faster than from Xavier's or He's weights."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import init_from_data, zoo
from deepjax.figures.experiment import Claim, plain
from deepjax.figures.small_runs import load, train
from deepjax.runs.plots import new_figure

TITLE = "Variance by layer and training loss without normalization, from Xavier's, He's and LSUV's weights"
SOURCE = "Optimization and deeper architectures: LSUV initialization (Mishkin and Matas 2016)"
USES = ("full",)
ACTIVATIONS, INITS, RATES = ("relu", "elu"), ("xavier", "he", "lsuv"), (0.001, 0.003, 0.01)
DEPTH, WIDTH, BATCH, MOMENTUM, NETS, STEPS, EVERY = 30, 32, 32, 0.9, 4, 400, 25
EXAMPLES = 256  # of the batch that LSUV and the variances are computed on


@dataclass(frozen=True)
class Numbers:
    """{activation: {initialization: ...}}, training losses at the rate at which they end lowest."""

    variances: dict[str, dict[str, tuple[float, ...]]]  # of the output of each layer, first network
    rates: dict[str, dict[str, float]]
    losses: dict[str, dict[str, tuple[float, ...]]]  # means over EVERY batches and the networks


def numbers(settings):
    """Return Numbers: 4 networks of 30 layers of width 32 on digits; in full 8 of width 64, 1,200 updates.

    The seed draws the initial weights and the order of examples.
    """
    nets, width, steps = (2 * NETS, 2 * WIDTH, 3 * STEPS) if settings.full else (NETS, WIDTH, STEPS)
    examples, test = load("digits")
    first, orders = jax.random.split(jax.random.key(settings.seed), (2, nets))
    variances, rates, losses = {}, {}, {}
    for activation in ACTIVATIONS:
        networks = {init: _network(activation, init, width) for init in INITS}
        starts = {init: _starts(network, init, first, examples.inputs) for init, network in networks.items()}
        variances[activation] = {
            init: plain(_variances(network, jax.tree.map(lambda leaf: leaf[0], starts[init]), examples.inputs))
            for init, network in networks.items()
        }
        stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *starts.values())
        found = _losses(networks["he"], stacked, jnp.tile(orders, len(INITS)), examples, test, steps)
        found = found.reshape(len(RATES), len(INITS), nets, -1).mean(2)  # [rates, inits, checks]
        best = np.nan_to_num(found[..., -1], nan=np.inf).argmin(0)
        rates[activation] = {init: RATES[best[i]] for i, init in enumerate(INITS)}
        losses[activation] = {init: plain(found[best[i], i]) for i, init in enumerate(INITS)}
    return Numbers(variances, rates, losses)


def _network(activation, init, width):
    """Return a plain network; LSUV replaces the weights of one with He's."""
    options = {"depth": DEPTH, "width": width, "activation": activation, "init": "he" if init == "lsuv" else init}
    return zoo.create("mlp", options, num_classes=10)


def _starts(network, init, keys, x):
    """Return variables with a leading axis of keys."""
    if init != "lsuv":
        return jax.jit(jax.vmap(lambda key: network.init(key, x[:1], train=False)))(keys)
    starts = [init_from_data.lsuv(network, key, x[:EXAMPLES], train=False) for key in keys]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)


def _variances(network, variables, x):
    """Return the variance of each layer's output, float [DEPTH]."""
    found = init_from_data.output_variances(network, variables, x[:EXAMPLES], train=False)
    return np.concatenate([np.ravel(found[name]) for name in ("first", "hidden/unit/dense", "head")]).astype(float)


def _losses(network, variables, keys, examples, test, steps):
    """Return means of EVERY losses of each rate and each of the stacked variables, float64 [RATES, keys, checks]."""

    def run(rate, variables, key):
        plan = {"optimizer": optax.sgd(rate, MOMENTUM), "steps": steps, "batch_size": BATCH, "every": steps}
        return train(network, variables, examples, test, key, **plan).losses.reshape(-1, EVERY).mean(1)

    several = jax.vmap(jax.vmap(run, (None, 0, 0)), (0, None, None))
    return np.asarray(jax.jit(several)(jnp.asarray(RATES), variables, keys), float)


def table(numbers):
    """Return variances of the first, a middle and the last layer, best rate and last loss of each start."""
    header = ("activation", "weights", "variance: first", "middle", "last layer", "best rate", "last loss")
    return header, [
        (
            activation,
            init,
            *(f"{variances[i]:.2g}" for i in (0, DEPTH // 2, -1)),
            f"{numbers.rates[activation][init]:g}",
            f"{numbers.losses[activation][init][-1]:.2f}",
        )
        for activation, starts in numbers.variances.items()
        for init, variances in starts.items()
    ]


def claim(numbers):
    """Return whether LSUV's variances are 1, and its losses lower than those of the others."""
    lsuv = max(abs(variance - 1) for each in numbers.variances.values() for variance in each["lsuv"])
    xavier, he = min(numbers.variances["relu"]["xavier"]), max(numbers.variances["elu"]["he"])
    relu, elu = ({init: losses[-1] for init, losses in numbers.losses[name].items()} for name in ACTIVATIONS)
    text = (
        f"LSUV's variances differ from 1 by at most {lsuv:.0e} (at most 0.01); with ReLU, Xavier's fall to "
        f"{xavier:.0e} (at most 1e-4), with ELU, He's grow to {he:.0f} (at least 4); at the best rate, the training "
        f"loss of {DEPTH} ReLU layers ends at {relu['lsuv']:.2f} from LSUV's weights (below He's "
        f"{relu['he']:.2f}; Xavier's {relu['xavier']:.2f}, at least 2.2), that of ELU layers at {elu['lsuv']:.2f} (at "
        f"most half of He's {elu['he']:.2f} and Xavier's {elu['xavier']:.2f})"
    )
    variances = lsuv <= 0.01 and xavier <= 1e-4 and he >= 4
    learned = relu["lsuv"] < relu["he"] and relu["xavier"] >= 2.2
    return Claim(text, bool(variances and learned and elu["lsuv"] <= min(elu["he"], elu["xavier"]) / 2))


def draw(numbers):
    """Return the variances by layer and the losses over updates, for each activation."""
    figure = new_figure(11, 7)
    for (above, below), activation in zip(np.transpose(figure.subplots(2, 2)), ACTIVATIONS):
        for init, style in zip(INITS, ("--", ":", "-")):
            variances, losses = numbers.variances[activation][init], numbers.losses[activation][init]
            above.plot(range(1, 1 + len(variances)), variances, style, label=init)
            rate = numbers.rates[activation][init]
            below.plot(EVERY * np.arange(1, 1 + len(losses)), losses, style, label=f"{init}, rate {rate:g}")
        above.set(title=activation, xlabel="layer", ylabel="variance of the output", yscale="log")
        below.set(xlabel="updates", ylabel=f"training loss, mean of {EVERY}", ylim=(0, 2.6))
        for axes in (above, below):
            axes.grid(alpha=0.3)
            axes.legend()
    return figure
