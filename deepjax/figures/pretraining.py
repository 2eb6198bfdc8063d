"""A deep sigmoid network that gradient descent cannot train, before and after layer-wise pretraining without labels."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import config, data, init_from_data, zoo
from deepjax.figures.experiment import Claim
from deepjax.functional import losses
from deepjax.runs.plots import new_figure

TITLE = "Layer-wise pretraining of a deep sigmoid network"
SOURCE = "Deep learning: pretraining; Hinton et al. 2006, Bengio et al. 2006, Vincent et al. 2008"
USES = ("full",)
RANDOM, AUTOENCODERS, MACHINES = "random", "denoising auto-encoders", "Boltzmann machines"
DEPTH, WIDTH, PRETRAINING = 6, 100, 2000  # dense layers, their units, updates of each layer without labels
UPDATES, BATCH, RATE, MOMENTUM, EVERY = 600, 64, 0.1, 0.9, 20  # of training with labels; updates between two points


@dataclass(frozen=True)
class Numbers:
    """For each initialization, all networks: loss over updates with labels, and the test error after them."""

    updates: tuple[int, ...]
    losses: dict[str, tuple[tuple[float, ...], ...]]  # initialization -> network -> mean of EVERY batches
    errors: dict[str, tuple[float, ...]]  # initialization -> test error of each network


def numbers(settings):
    """Return Numbers: 5 networks (20 in full) for each initialization, on scikit-learn's digits in [0, 1]."""
    digits = data.load(config.Data("digits"), "", 0)
    (x, y), test = (_rows(part) for part in (digits.train, digits.test))
    model = zoo.create("mlp", depth=DEPTH, width=WIDTH, num_classes=10, activation="sigmoid", init="xavier")
    nets = 20 if settings.full else 5
    first, order = jax.random.split(jax.random.key(settings.seed), (2, nets))
    starts = {
        RANDOM: lambda key: model.init(key, x[:1], train=False),
        AUTOENCODERS: lambda key: init_from_data.autoencoder(model, key, x, updates=PRETRAINING, train=False),
        MACHINES: lambda key: init_from_data.rbm(model, key, x, updates=PRETRAINING, train=False),
    }
    train = jax.jit(jax.vmap(partial(_train, model, x, y, test)))
    curves, errors = {}, {}
    for name, start in starts.items():
        curve, error = train(jax.vmap(start)(first)["params"], order)
        curves[name] = tuple(tuple(row) for row in np.asarray(curve, float).tolist())
        errors[name] = tuple(np.asarray(error, float).tolist())
    return Numbers(tuple(range(EVERY, UPDATES + 1, EVERY)), curves, errors)


def _rows(part):
    return jnp.asarray(part.images, jnp.float32).reshape(len(part), -1) / 255, jnp.asarray(part.labels)


def _train(model, x, y, test, params, key):
    """Return (losses, test error) of a network that is trained with labels by SGD with momentum."""
    optimizer = optax.sgd(RATE, MOMENTUM)

    def loss(params, rows):
        return losses.cross_entropy(model.apply({"params": params}, x[rows], train=True), y[rows]).mean()

    def update(carry, key):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, jax.random.randint(key, (BATCH,), 0, len(x)))
        changes, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, changes), state), value

    start = params, optimizer.init(params)
    (params, _), values = jax.lax.scan(update, start, jax.random.split(key, UPDATES))
    wrong = model.apply({"params": params}, test[0], train=False).argmax(1) != test[1]
    return values.reshape(-1, EVERY).mean(1), wrong.mean()


def table(numbers):
    """Return the losses and test errors of each initialization."""
    header = ("initialization", f"loss, first {EVERY} updates", f"last {EVERY}", "test error: least", "mean", "most")
    rows = []
    for name, errors in numbers.errors.items():
        first, last = (np.mean([curve[i] for curve in numbers.losses[name]]) for i in (0, -1))
        rows.append((name, f"{first:.2f}", f"{last:.2f}", *(f"{f(errors):.1%}" for f in (min, np.mean, max))))
    return header, rows


def claim(numbers):
    """Return whether the networks stay near chance from random values, and train after pretraining."""
    random = min(numbers.errors[RANDOM])
    autoencoders, machines = (max(numbers.errors[name]) for name in (AUTOENCODERS, MACHINES))
    text = (
        f"{DEPTH} layers of sigmoids after {UPDATES} updates with labels: from random values, every network has at "
        f"least {random:.0%} test error (at least 80 %; chance is 90 %); after pretraining by auto-encoders at most "
        f"{autoencoders:.1%} (at most 10 %), by Boltzmann machines at most {machines:.1%} (at most 50 %)"
    )
    return Claim(text, random >= 0.8 and autoencoders <= 0.1 and machines <= 0.5)


def draw(numbers):
    """Return the loss over updates: each network, one line style for each initialization."""
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for name, style in zip(numbers.losses, ("C0:", "C1-", "C2--")):
        first, *_ = axes.plot(numbers.updates, np.transpose(numbers.losses[name]), style)
        first.set_label(name)
    axes.set(xlabel="updates with labels", ylabel="training loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(title="initialization")
    return figure
