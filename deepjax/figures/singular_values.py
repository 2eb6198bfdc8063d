"""Products of Gaussian matrices stretch few directions only; products of orthogonal matrices stretch none."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from deepjax import initializers
from deepjax.figures.experiment import Claim, plain
from deepjax.runs.plots import new_figure

TITLE = "Singular values of products of 1 to 8 random matrices"
SOURCE = "Optimization and deeper architectures: random and orthogonal initialization (Saxe et al. 2014)"
USES = ("full",)
SIZE, FACTORS, SIGMAS = 100, 8, 4  # k; matrices of the longest product; standard errors
GAINS = {f"Gaussian, k sigma^2 = {gain:.3g}": gain for gain in (2 / 3, 1, 3 / 2)}
UNIT, ORTHOGONAL = list(GAINS)[1], "orthogonal"


@dataclass(frozen=True)
class Products:
    """Products of 1 to 8 matrices of one kind."""

    values: tuple[tuple[float, ...], ...]  # by number of factors: singular values, means over products, largest first
    squares: tuple[float, ...]  # by number of factors: mean square of the singular values
    deviations: tuple[float, ...]  # standard errors of that
    ranks: tuple[float, ...]  # by number of factors: sum of the squares / largest square, at most k; mean


@dataclass(frozen=True)
class Numbers:
    """Products by kind of matrix."""

    products: dict[str, Products]


@threadpool_limits.wrap(limits=1, user_api="blas")  # on small matrices, several threads mostly wait for each other
def numbers(settings):
    """Return Numbers: 30 products of 100x100 matrices of each kind, 500 in full. The seed draws the matrices."""
    shape = (500 if settings.full else 30, FACTORS, SIZE, SIZE)
    inits = {name: initializers.gaussian(np.sqrt(gain / SIZE)) for name, gain in GAINS.items()}
    inits[ORTHOGONAL] = initializers.orthogonal()
    found = {}
    for number, (name, init) in enumerate(inits.items()):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), number), shape[0] * FACTORS)
        draw_one = jax.jit(lambda keys, init=init: jax.lax.map(lambda key: init(key, shape[2:], jnp.float32), keys))
        found[name] = products(np.asarray(draw_one(keys), np.float64).reshape(shape))
    return Numbers(found)


def products(matrices):
    """Return Products of matrices [products, FACTORS, SIZE, SIZE]: of the first, of the first two, and so on."""
    values = []
    product = np.eye(SIZE)
    for number in range(matrices.shape[1]):
        product = matrices[:, number] @ product
        values.append(np.linalg.svd(product, compute_uv=False))
    values = np.stack(values)  # [FACTORS, products, SIZE]
    squares = (values**2).mean(2)
    return Products(
        plain(values.mean(1)),
        plain(squares.mean(1)),
        plain(squares.std(1, ddof=1) / np.sqrt(squares.shape[1])),
        plain((SIZE * squares / values[..., 0] ** 2).mean(1)),
    )


def table(numbers):
    """Return what products of 1 and of 8 matrices do."""
    header = ("matrices", "factors", "smallest", "median", "largest", "mean square", "sum of squares / largest square")
    rows = []
    for name, each in numbers.products.items():
        for i in (0, FACTORS - 1):
            shown = (each.values[i][-1], np.median(each.values[i]), each.values[i][0], each.squares[i])
            rows.append((name, str(i + 1), *(f"{value:.3g}" for value in shown), f"{each.ranks[i]:.1f}"))
    return header, rows


def claim(numbers):
    """Return whether scales multiply, and only products of orthogonal matrices keep all directions alike."""
    factors = np.arange(1, FACTORS + 1)
    found = numbers.products
    largest = max(
        float(np.abs((np.asarray(found[name].squares) - gain**factors) / np.asarray(found[name].deviations)).max())
        for name, gain in GAINS.items()
    )
    off = float(np.abs(np.asarray(found[ORTHOGONAL].values) - 1).max())
    rank = found[UNIT].ranks[-1]
    text = (
        f"the mean square singular value of products of Gaussian matrices is (k sigma^2)^factors within {largest:.1f} "
        f"standard errors (at most {SIGMAS}); those of products of orthogonal matrices are within {off:.1g} of 1 (at "
        f"most 1e-5); the sum of squares over the largest square, {SIZE} for these, is {rank:.1f} (at most 10) for "
        f"{FACTORS} Gaussian matrices with k sigma^2 = 1"
    )
    return Claim(text, largest <= SIGMAS and off <= 1e-5 and rank <= 10)


def draw(numbers):
    """Return the singular values, largest first: a panel for each kind, a line for each number of factors."""
    figure = new_figure(13, 3.8)
    lines = []
    for axes, (name, each) in zip(figure.subplots(1, len(numbers.products), sharey=True), numbers.products.items()):
        colors = [str(0.75 * (1 - i / (FACTORS - 1))) for i in range(FACTORS)]
        ranks = range(1, SIZE + 1)
        lines = [axes.plot(ranks, values, color=color)[0] for values, color in zip(each.values, colors)]
        axes.set(title=name, xlabel="singular value, largest first", yscale="log", ylim=(1e-5, 1e2))
        axes.grid(alpha=0.3)
    figure.legend(lines, [str(i + 1) for i in range(FACTORS)], title="factors", loc="outside right center")
    return figure
