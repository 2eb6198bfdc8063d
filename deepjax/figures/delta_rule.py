"""One update for four linear models, from one example at a time, against the optimum of each model's loss."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import functional, linear
from deepjax.figures.experiment import Claim
from deepjax.runs.plots import new_figure

TITLE = "The delta rule: Adaline, logistic and softmax regression by SGD against their optimum"
SOURCE = "Deep learning: Adaline, linear regression, logistic and softmax regression"
USES = ()
EXAMPLES, FEATURES, CLASSES, EPOCHS = 200, 4, 3, 200
RATES = {"Adaline": 0.01, "logistic regression": 0.2, "softmax regression": 0.2}
RIDGES = (0.0, 0.01, 1.0, 100.0)


@dataclass(frozen=True)
class Numbers:
    """Distances of SGD's weights from the optimum, and ridge regression of points along a line."""

    distances: dict[str, tuple[float, ...]]  # by model, |w - optimum| / |optimum| before each epoch and at the end
    along_a_line: dict[str, tuple[float, ...]]  # by penalty: weights of two features, one twice the other


def numbers(settings):
    """Return Numbers. The seed draws the examples, their targets and their order."""
    distances = jax.device_get(jax.jit(_distances)(jax.random.key(settings.seed)))
    x = np.outer(np.arange(-2.0, 3.0), [1, 2]).astype(np.float32)
    solve = jax.jit(lambda ridge: linear.least_squares(x, x.sum(1), ridge=ridge))
    along = {f"{ridge:g}": tuple(np.asarray(solve(ridge), float).tolist()) for ridge in RIDGES}
    return Numbers({name: tuple(distances[name].tolist()) for name in RATES}, along)


def _distances(key):
    """Return {model: relative distances from the optimum, [1 + EPOCHS]}. The optimum has gradient 0."""
    points, weights, noise, shuffle = jax.random.split(key, 4)
    x = linear.with_bias(jax.random.normal(points, (EXAMPLES, FEATURES)))
    scores = x @ jax.random.normal(weights, (1 + FEATURES, CLASSES))
    noisy = scores + 2 * jax.random.gumbel(noise, scores.shape)  # so much that the classes overlap
    labels, binary, real = noisy.argmax(1), (noisy[:, 0] > noisy[:, 1]).astype(jnp.float32), noisy[:, 0]
    order = linear.shuffled(shuffle, EXAMPLES, EPOCHS).reshape(EPOCHS, EXAMPLES)

    def optimum(loss, targets, shape):
        return linear.minimize(lambda w: loss(x @ w, targets).mean(), jnp.zeros((1 + FEATURES, *shape)))[0]

    cases = {
        "Adaline": (linear.least_squares(x, real), lambda z: z, real),
        "logistic regression": (optimum(functional.binary_cross_entropy, binary, ()), jax.nn.sigmoid, binary),
        "softmax regression": (
            optimum(functional.cross_entropy, labels, (CLASSES,)),
            jax.nn.softmax,
            jax.nn.one_hot(labels, CLASSES),
        ),
    }

    def train(name):
        best, output, targets = cases[name]

        def epoch(w, numbered):
            i, order = numbered
            w, _ = linear.delta_rule(output, x, targets, order, rate=RATES[name] * (1 + i) ** -0.75, w=w)
            return w, jnp.linalg.norm(w - best)

        _, distances = jax.lax.scan(epoch, jnp.zeros_like(best), (jnp.arange(EPOCHS), order))
        return jnp.append(1.0, distances / jnp.linalg.norm(best))

    return {name: train(name) for name in cases}


def table(numbers):
    """Return distances from the optimum over epochs, and the solutions along a line."""
    shown = (0, 1, 10, EPOCHS)
    header = ("model", *(f"distance after {epochs}" for epochs in shown))
    rows = [(name, *(f"{values[epochs]:.4f}" for epochs in shown)) for name, values in numbers.distances.items()]
    for ridge, weights in numbers.along_a_line.items():
        rows.append((f"points along a line, alpha {ridge}", *(f"w = {w:.4f}" for w in weights), "", ""))
    return header, rows


def claim(numbers):
    """Return whether SGD ends near each optimum, and ridge regression solves what has many solutions."""
    ends = {name: values[-1] for name, values in numbers.distances.items()}
    shortest = 0.6 * np.array([1, 2])  # of all w with w_1 + 2 w_2 = 3, the targets of x = (1, 2)
    off = float(np.abs(np.subtract(numbers.along_a_line[f"{RIDGES[1]:g}"], shortest)).max())
    text = (
        f"after {EPOCHS} epochs of falling rates the weights differ from the optimum by "
        + ", ".join(f"{end:.2%} ({name})" for name, end in ends.items())
        + f" of its norm (at most 5 %); with alpha {RIDGES[1]:g} points along a line, which have many solutions, give "
        f"the shortest one to {off:.4f} (at most 0.001)"
    )
    return Claim(text, max(ends.values()) <= 0.05 and off <= 0.001)


def draw(numbers):
    """Return the distances from the optimum over epochs."""
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for (name, values), style in zip(numbers.distances.items(), ("-", "--", "-.")):
        axes.plot(range(EPOCHS + 1), values, style, label=f"{name}, first rate {RATES[name]:g}")
    axes.set(xlabel="epoch", ylabel="distance of the weights from the optimum / its norm", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
