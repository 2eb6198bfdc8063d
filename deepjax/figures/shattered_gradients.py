"""Gradients of deep feed-forward networks along a line look like white noise; those of residual networks less so."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import functional
from deepjax.figures.experiment import Claim, plain
from deepjax.runs.plots import new_figure

TITLE = "Gradients of networks over a line of inputs, beside brown and white noise"
SOURCE = "Going deeper: smart initialization; Balduzzi et al. 2017 (arXiv 1702.08591), figure 1"
USES = ("full",)
POINTS, LAGS, SHOWN = 256, 40, 64  # inputs on [-2, 2]; lags of the autocorrelation; rows of the drawn covariances
KINDS = (
    "1-layer feed-forward",
    "24-layer feed-forward",
    "50-layer residual",
    "50-layer residual, branches x 0.1",
    "brown noise",
    "white noise",
)


@dataclass(frozen=True)
class Numbers:
    """Gradients of each kind of network, and their correlations."""

    examples: dict[str, tuple[float, ...]]  # of one network, [POINTS]
    autocorrelations: dict[str, tuple[float, ...]]  # means over the networks, [LAGS]
    covariances: dict[str, tuple]  # between inputs, over the networks, the diagonal's mean scaled to 1


def slopes(forward, x):
    """Return the derivative of each output of `forward` in its own input: x [points] -> [points]."""
    return jax.jvp(forward, (x,), (jnp.ones_like(x),))[1]


def normalize(x):
    """Apply batch norm over all points. Its moments are constants, so that no input changes another's output."""
    moments = jax.lax.stop_gradient(functional.batch_moments(x))
    return functional.batch_norm(x, None, None, moments, train=False)[0]


def feed_forward(key, x, *, layers, width):
    """Return the outputs at x [points] of normalized ReLU layers with He's kernels, and a linear output."""
    first, middle, last = jax.random.split(key, 3)
    h = functional.relu(_first(first, x, width))

    def layer(h, key):
        return functional.relu(normalize(_dense(key, h, width))), None

    h, _ = jax.lax.scan(layer, h, jax.random.split(middle, layers - 1))
    return _dense(last, h, 1)[:, 0]


def residual(key, x, *, layers, width, factor):
    """Return the outputs at x [points] of pre-activation residual units of two layers, and a linear output.

    A unit adds `factor` times its branch.
    """
    first, middle, last = jax.random.split(key, 3)

    def unit(h, key):
        branch = h
        for part in jax.random.split(key):
            branch = _dense(part, functional.relu(normalize(branch)), width)
        return h + factor * branch, None

    h, _ = jax.lax.scan(unit, _first(first, x, width), jax.random.split(middle, layers // 2))
    return _dense(last, functional.relu(normalize(h)), 1)[:, 0]


def _first(key, x, width):
    """Return normalized multiples of x [points] with standard normal biases, so that units bend at different inputs."""
    kernel, bias = jax.random.split(key)
    return normalize(_dense(kernel, x[:, None], width)) + jax.random.normal(bias, (1, width))


def _dense(key, x, width):
    return x @ (jax.random.normal(key, (x.shape[1], width)) * np.sqrt(2 / x.shape[1]))


def autocorrelation(g, lags):
    """Return the mean autocorrelation of series g [series, points] at lags 0 to `lags` - 1, float64."""
    g = g - g.mean(1, keepdims=True)
    products = [np.mean(g[:, : g.shape[1] - k] * g[:, k:], 1) for k in range(lags)]
    return np.mean(np.array(products) / products[0], 1)


def numbers(settings):
    """Return Numbers. The seed draws networks and noise."""
    networks, width = (200, 200) if settings.full else (40, 100)
    x = jnp.linspace(-2, 2, POINTS)
    forwards = (
        lambda key: lambda x: feed_forward(key, x, layers=1, width=width),
        lambda key: lambda x: feed_forward(key, x, layers=24, width=width),
        lambda key: lambda x: residual(key, x, layers=50, width=width, factor=1.0),
        lambda key: lambda x: residual(key, x, layers=50, width=width, factor=0.1),
    )
    *keys, noise = jax.random.split(jax.random.key(settings.seed), len(forwards) + 1)
    found = {}
    for kind, forward, key in zip(KINDS, forwards, keys):
        run = jax.jit(lambda keys, forward=forward: jax.lax.map(lambda each: slopes(forward(each), x), keys))
        found[kind] = np.asarray(run(jax.random.split(key, networks)), np.float64)
    white = np.asarray(jax.random.normal(noise, (2, networks, POINTS)), np.float64)
    found |= {KINDS[-2]: white[0].cumsum(1), KINDS[-1]: white[1]}
    return Numbers(
        {kind: plain(g[0]) for kind, g in found.items()},
        {kind: plain(autocorrelation(g, LAGS)) for kind, g in found.items()},
        {kind: plain(_covariance(g[:, :: POINTS // SHOWN])) for kind, g in found.items()},
    )


def _covariance(g):
    g = g - g.mean(1, keepdims=True)
    products = g.T @ g / len(g)
    return products / np.trace(products) * len(products)


def table(numbers):
    """Return the autocorrelations at some lags."""
    lags = (1, 2, 5, 10, 20)
    header = ("kind", *(f"lag {lag}" for lag in lags))
    return header, [
        (kind, *(f"{values[lag]:.2f}" for lag in lags)) for kind, values in numbers.autocorrelations.items()
    ]


def claim(numbers):
    """Return whether depth shatters the gradients of feed-forward networks, and residual ones resist."""
    one, deep, whole, small, brown, white = (numbers.autocorrelations[kind] for kind in KINDS)
    text = (
        f"the autocorrelation of the gradients at lag 5 is {one[5]:.2f} with 1 layer (brown noise {brown[5]:.2f}; "
        f"both at least 0.75), {deep[5]:.2f} with 24 layers (white noise {white[5]:.2f}; both within 0.1 of 0) and "
        f"{small[5]:.2f} with 50 layers whose units add 0.1 times their branch (at least 0.4); with whole branches it "
        f"is {whole[1]:.2f} at lag 1, above the 24 layers' {deep[1]:.2f} by at least 0.08"
    )
    holds = min(one[5], brown[5]) >= 0.75 and max(abs(deep[5]), abs(white[5])) <= 0.1
    return Claim(text, bool(holds and 0.4 <= small[5] <= one[5] and whole[1] - deep[1] >= 0.08))


def draw(numbers):
    """Return the gradients, their covariance matrices, and the autocorrelations."""
    figure = new_figure(14, 8)
    layout = figure.add_gridspec(3, len(KINDS), height_ratios=(1, 1, 1.3))
    below = figure.add_subplot(layout[2, :])
    for column, kind in enumerate(KINDS):
        top, middle = figure.add_subplot(layout[0, column]), figure.add_subplot(layout[1, column])
        top.plot(np.linspace(-2, 2, POINTS), numbers.examples[kind], linewidth=0.8)
        top.set_title(kind.replace(", ", ",\n"), fontsize=8)
        top.tick_params(labelsize=6)
        covariance = np.asarray(numbers.covariances[kind])
        middle.imshow(covariance, cmap="RdBu", vmin=-1, vmax=1, extent=(-2, 2, 2, -2), interpolation="nearest")
        middle.tick_params(labelsize=6)
        below.plot(numbers.autocorrelations[kind], "--" if "noise" in kind else "-", label=kind)
    below.set(xlabel=f"lag ({POINTS} inputs on [-2, 2])", ylabel="autocorrelation of the gradient")
    below.legend(fontsize=8)
    below.grid(alpha=0.3)
    return figure
