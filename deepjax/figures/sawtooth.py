"""A narrow deep network that folds [0, 1] 2^D times, and how far shallow networks stay away from it."""

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax.figures.experiment import Claim
from deepjax.figures.linear_pieces import evaluate, kinks
from deepjax.runs.plots import new_figure

TITLE = "A deep network with 2^D pieces, and the distance of shallow networks from it"
SOURCE = "Going deeper: benefits and challenges of greater depth; Telgarsky 2016 (arXiv 1602.04485)"
USES = ("full",)
SHOWN = (1, 2, 3, 5)  # hidden layers of the drawn nets
SHALLOW = ((2,), (4,), (8,), (16,), (2, 2), (4, 4))  # units of the hidden layers
SCALE = 16  # the lecture's (June 2018) factor of the sawtooth


@dataclass(frozen=True)
class Numbers:
    """The deep nets, and the shallow ones that were fitted to the deepest."""

    deep: int  # hidden layers of the net that is fitted
    pieces: tuple[int, ...]  # of nets of 1, 2, ... `deep` hidden layers
    exact: tuple[bool, ...]  # do they alternate between 0 and 1, exactly, at the multiples of 1 / 2^D?
    shallow: tuple[tuple[int, ...], ...]
    bounds: tuple[float, ...]  # 1 - 2^D / 2^deep W_1 ... W_D
    distances: tuple[tuple[float, ...], ...]  # L1 distance from SCALE times the sawtooth, [nets, fits]
    fitted: tuple[tuple[int, ...], ...]  # pieces of the fits
    teeth: tuple[int, ...]  # units of one hidden layer that equals the first pieces of the sawtooth
    teeth_distances: tuple[float, ...]


def sawtooth(depth):
    """Return Telgarsky's network of `depth` hidden layers of two units: [(kernel, bias)], float64.

    A layer computes 2 relu(x) - 4 relu(x - 1/2), which maps both halves of [0, 1] onto [0, 1].
    """
    first = np.ones((1, 2)), np.array([0, -0.5])
    middle = np.array([[2.0, 2.0], [-4.0, -4.0]]), np.array([0, -0.5])
    last = np.array([[2.0], [-4.0]]), np.zeros(1)
    return [first, *(middle,) * (depth - 1), last]


def one_hidden_layer(depth, units):
    """Return a network of one hidden layer that equals `sawtooth(depth)` on as many pieces as its units allow.

    2^depth units give all of [0, 1]. Fewer give the first `units` - 3/2 pieces, and 1/2 from there on.
    """
    pieces = 2**depth
    ends, slopes = np.arange(units) / pieces, pieces * (-1.0) ** np.arange(units)
    if units < pieces:
        ends[-1], slopes[-1] = (units - 1.5) / pieces, 0
    changes = np.diff(slopes, prepend=0)  # relu(x - end) changes the slope at the end
    return [(np.ones((1, units)), -ends), (changes[:, None], np.zeros(1))]


def distance(layers, others):
    """Return the integral over [0, 1] of the absolute difference of two networks, exactly, piece by piece."""
    x = np.union1d(kinks(layers), kinks(others))
    difference = np.abs(gap := evaluate(layers, x)[0] - evaluate(others, x)[0])
    left, right, crosses = difference[:-1], difference[1:], gap[:-1] * gap[1:] < 0
    total = np.where(crosses, left + right, 1)  # two triangles where the difference crosses 0, else a trapezoid
    areas = np.where(crosses, (left**2 + right**2) / (2 * total), (left + right) / 2)
    return float(areas @ np.diff(x))


def fit(key, sizes, x, y, steps):
    """Minimize the mean of |y - net(x)| by Adam, from kinks that are uniform in [0, 1].

    Args:
      key: of the initial values.
      sizes: units of the hidden layers.
      x, y: [points].
      steps: updates. The rate falls from 0.01 to 0.

    Returns:
      [(kernel, bias)].
    """
    widths = (1, *sizes, 1)
    layers = []
    for i, (m, n) in enumerate(pairwise(widths)):
        kernel = jax.random.normal(jax.random.fold_in(key, 2 * i), (m, n)) * np.sqrt(2 / m)
        kink = jax.random.uniform(jax.random.fold_in(key, 2 * i + 1), (n,))
        layers.append((kernel, -kernel.mean(0) * kink))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, steps))

    def loss(layers):
        h = x[:, None]
        for kernel, bias in layers[:-1]:
            h = jax.nn.relu(h @ kernel + bias[None])
        return jnp.abs((h @ layers[-1][0] + layers[-1][1][None])[:, 0] - y).mean()

    def update(carry, _):
        layers, state = carry
        updates, state = optimizer.update(jax.grad(loss)(layers), state)
        return (optax.apply_updates(layers, updates), state), None

    return jax.lax.scan(update, (layers, optimizer.init(layers)), length=steps)[0][0]


def numbers(settings):
    """Return Numbers. The seed draws the start of each fit."""
    deep, steps, fits = (8, 20_000, 10) if settings.full else (5, 1000, 3)
    nets = [sawtooth(depth) for depth in range(1, deep + 1)]
    scaled = _scaled(nets[-1])
    x = np.linspace(0, 1, 8 * 2**deep + 1)
    y = evaluate(scaled, x)[0]
    distances, fitted = [], []
    for i, sizes in enumerate(SHALLOW):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), i), fits)
        run = jax.jit(jax.vmap(lambda key, sizes=sizes: fit(key, sizes, jnp.asarray(x), jnp.asarray(y), steps)))
        stacked = jax.tree.map(lambda each: np.asarray(each, np.float64), run(keys))
        each = [jax.tree.map(lambda leaf, j=j: leaf[j], stacked) for j in range(fits)]
        distances.append(tuple(distance(scaled, net) for net in each))
        fitted.append(tuple(len(kinks(net)) - 1 for net in each))
    teeth = tuple(2**d for d in range(1, deep + 1))
    return Numbers(
        deep,
        tuple(len(kinks(net)) - 1 for net in nets),
        tuple(map(_alternates, nets)),
        SHALLOW,
        tuple(_bound(sizes, deep) for sizes in SHALLOW),
        tuple(distances),
        tuple(fitted),
        teeth,
        tuple(distance(scaled, _scaled(one_hidden_layer(deep, units))) for units in teeth),
    )


def _bound(sizes, deep):
    return 1 - 2.0 ** (len(sizes) - deep) * float(np.prod(sizes))


def _scaled(layers):
    return [*layers[:-1], (SCALE * layers[-1][0], SCALE * layers[-1][1])]


def _alternates(layers):
    ends = np.arange(2 ** (len(layers) - 1) + 1)
    same = len(ends) == len(found := kinks(layers)) and np.array_equal(found, ends / ends[-1])
    return bool(same and np.array_equal(evaluate(layers, found)[0], ends % 2))


def table(numbers):
    """Return distances of shallow nets and their bounds."""
    header = ("hidden layers", "how", "pieces", "L1 distance", "its lower bound")
    fits = zip(numbers.shallow, numbers.fitted, numbers.distances, numbers.bounds)
    rows = [
        (" x ".join(map(str, sizes)), "fitted, nearest", max(pieces), f"{min(far):.3f}", f"{bound:.3f}")
        for sizes, pieces, far, bound in fits
    ]
    for units, far in zip(numbers.teeth, numbers.teeth_distances):
        rows.append((f"{units}", "first pieces", units, f"{far:.3f}", f"{_bound((units,), numbers.deep):.3f}"))
    return header, rows


def claim(numbers):
    """Return whether depth D gives 2^D pieces, and no shallow net is nearer than its bound."""
    exact = numbers.pieces == tuple(2 ** (d + 1) for d in range(numbers.deep)) and all(numbers.exact)
    margins = [min(far) - bound for far, bound in zip(numbers.distances, numbers.bounds)]
    margins += [far - _bound((n,), numbers.deep) for n, far in zip(numbers.teeth, numbers.teeth_distances)]
    text = (
        f"nets of 1 to {numbers.deep} layers of two units have {numbers.pieces} pieces (2^D) and "
        f"{'' if exact else 'do NOT '}alternate between 0 and 1 exactly at the multiples of 1 / 2^D; "
        f"{np.size(numbers.distances)} fitted nets and {len(numbers.teeth)} constructed ones stay at least "
        f"{min(margins):.2f} (at least 0) above the lower bound of their L1 distance from {SCALE} times the deepest; "
        f"one hidden layer reaches the distance {numbers.teeth_distances[-1]:.1g} (below 1e-9) with "
        f"{numbers.teeth[-1]} units"
    )
    return Claim(text, bool(exact and min(margins) >= 0 and numbers.teeth_distances[-1] < 1e-9))


def draw(numbers):
    """Return sawteeth of several depths, and the distances of shallow nets with their bounds."""
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    for row, depth in enumerate(SHOWN):
        x = kinks(net := sawtooth(depth))
        left.plot(x, evaluate(net, x)[0] - 1.3 * row, label=f"{depth} hidden layers, {len(x) - 1} pieces")
    left.set(xlabel="input", ylabel="output, shifted", yticks=[], ylim=(-4.1, 2.0))
    left.legend(fontsize=8, ncols=2, loc="upper center")
    names = [*(" x ".join(map(str, sizes)) for sizes in numbers.shallow), *map(str, numbers.teeth)]
    at, split = np.arange(len(names)), len(numbers.shallow)
    right.plot(at[:split], numbers.distances, "o", color="#006BA4", markersize=4)
    right.plot([], [], "o", color="#006BA4", label="fitted nets")
    right.plot(at[split:], numbers.teeth_distances, "s", color="#FF800E", label="equal to the first pieces")
    bounds = [*numbers.bounds, *(_bound((units,), numbers.deep) for units in numbers.teeth)]
    right.plot(at, bounds, "k_", markersize=18, label="lower bound")
    right.axhline(SCALE / 4, color="gray", linestyle=":", label="the constant 1/2, scaled")
    right.set(xlabel="units of the hidden layers", ylabel=f"L1 distance from {SCALE} times {numbers.deep} layers")
    right.set_xticks(at, names, fontsize=8)
    right.set_ylim(min(bounds) - 0.3, 1.6 * SCALE / 4)
    right.legend(fontsize=8, ncols=2, loc="upper center")
    right.grid(alpha=0.3)
    return figure
