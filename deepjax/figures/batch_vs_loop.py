"""One product of matrices against a loop of products of a matrix and a vector."""

import time
from dataclasses import dataclass

import jax
import numpy as np

from deepjax.figures.experiment import Claim, plain
from deepjax.runs.plots import new_figure

TITLE = "Time of one product of matrices and of a loop of matrix-vector products"
SOURCE = "Batches: batch processing"
USES = ("full",)
SHAPE = (2500, 1000, 1500)  # the lecture's: examples, features in, features out
RATIO = 1.5


@dataclass(frozen=True)
class Numbers:
    """Seconds of each repetition, in alternation. They depend on the machine and on what else it computes."""

    platform: str
    batch: tuple[float, ...]
    loop: tuple[float, ...]
    difference: float  # largest of the results' differences, relative to the largest result


@jax.jit
def batch(x, w):
    """[N, features_in], [features_out, features_in] -> [N, features_out], in one product."""
    return x @ w.T


@jax.jit
def loop(x, w):
    """Return what `batch` does, one row after the other. The loop is a part of the program, so Python costs nothing."""
    return jax.lax.map(lambda row: w @ row, x)


def numbers(settings):
    """Return Numbers. The seed draws the matrices; `full` takes the lecture's 51 repetitions."""
    count, features_in, features_out = SHAPE
    one, other = jax.random.split(jax.random.key(settings.seed))
    x, w = jax.random.normal(one, (count, features_in)), jax.random.normal(other, (features_out, features_in))
    results = [np.asarray(function(x, w)) for function in (batch, loop)]  # compiles
    difference = abs(results[0] - results[1]).max() / abs(results[0]).max()
    times = [[_seconds(function, x, w) for function in (batch, loop)] for _ in range(51 if settings.full else 5)]
    together, alone = np.transpose(times)
    return Numbers(jax.default_backend(), plain(together), plain(alone), float(difference))


def _seconds(function, x, w):
    start = time.perf_counter()
    jax.block_until_ready(function(x, w))
    return time.perf_counter() - start


def ratio(numbers):
    """Return the median time of the loop over that of the product."""
    return float(np.median(numbers.loop) / np.median(numbers.batch))


def table(numbers):
    """Return the median of both times, and their ratio."""
    header = ("on", "one product (ms)", "loop (ms)", "ratio", "difference of the results")
    medians = [f"{1e3 * np.median(times):.1f}" for times in (numbers.batch, numbers.loop)]
    return header, [(numbers.platform, *medians, f"{ratio(numbers):.1f}", f"{numbers.difference:.0e}")]


def claim(numbers):
    """Return whether the product is clearly faster, with equal results."""
    text = (
        f"a loop over {SHAPE[0]} rows takes {ratio(numbers):.1f} times (at least {RATIO}) as long as one product; the "
        f"results differ by {numbers.difference:.0e} of the largest (at most 1e-4)"
    )
    return Claim(text, ratio(numbers) >= RATIO and numbers.difference <= 1e-4)


def draw(numbers):
    """Return both times by repetition."""
    figure = new_figure(5, 4)
    axes = figure.subplots()
    for name, times, style in (("one product", numbers.batch, "o-"), ("loop", numbers.loop, "s--")):
        axes.plot(range(1, len(times) + 1), 1e3 * np.asarray(times), style, label=name)
    axes.set(xlabel="repetition", ylabel=f"milliseconds on {numbers.platform}", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
