"""The derived gradients of batch normalization are those of automatic differentiation and of finite differences."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import functional
from deepjax.figures.experiment import Claim, plain
from deepjax.runs.plots import new_figure

TITLE = "Derived gradients of batch normalization against autodiff and finite differences"
SOURCE = "Going deeper: batch normalization, backward pass (Ioffe and Szegedy 2015, section 3)"
USES = ()
EXAMPLES, FEATURES, EPSILON = 32, 5, 1e-5
STEPS = 10.0 ** -np.arange(1, 11)  # of the finite differences
NAMES = ("x", "scale", "bias")


@dataclass(frozen=True)
class Numbers:
    """Largest difference from the derived gradient, over the largest entry of that, by what is differentiated."""

    autodiff: dict[str, float]
    finite: dict[str, tuple[float, ...]]  # for each of STEPS


def numbers(settings):
    """Return Numbers. The seed draws 32 examples of 5 features, scale, bias, and the gradient dy of the loss in y."""
    rng = np.random.default_rng(settings.seed)
    x, dy = rng.normal(1, 2, (2, EXAMPLES, FEATURES))
    arguments = x, rng.normal(1, 0.5, FEATURES), rng.normal(size=FEATURES)
    derived, automatic = jax.device_get(_gradients(dy, arguments))
    finite = [[finite_difference(dy, arguments, i, step) for step in STEPS] for i in range(len(NAMES))]
    return Numbers(
        {name: _difference(found, known) for name, found, known in zip(NAMES, automatic, derived)},
        {
            name: plain([_difference(each, known) for each in several])
            for name, several, known in zip(NAMES, finite, derived)
        },
    )


@jax.jit
def _gradients(dy, arguments):
    """Return the gradients in x, scale and bias, derived and automatic, float32."""
    x, scale, bias = arguments
    running = functional.Moments(jnp.zeros(FEATURES), jnp.ones(FEATURES))

    def loss(x, scale, bias):
        y, _ = functional.batch_norm(x, scale, bias, running, train=True, epsilon=EPSILON)
        return jnp.vdot(dy, y)

    moments = functional.Moments(x.mean(0), x.var(0))
    derived = functional.batch_norm_backward(dy, x, scale, moments, EPSILON)
    return derived, jax.grad(loss, (0, 1, 2))(x, scale, bias)


def finite_difference(dy, arguments, which, step):
    """Return the central difference of the loss in each entry of an argument, computed in float64."""

    def loss(values):
        x, scale, bias = (*arguments[:which], values, *arguments[which + 1 :])
        return np.vdot(dy, scale * (x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON) + bias)

    found = np.empty_like(arguments[which])
    for entry in np.ndindex(found.shape):
        move = np.zeros_like(found)
        move[entry] = step
        found[entry] = (loss(arguments[which] + move) - loss(arguments[which] - move)) / (2 * step)
    return found


def _difference(found, known):
    return float(np.abs(found - known).max() / np.abs(known).max())


def table(numbers):
    """Return the differences of autodiff, and of finite differences at their best step."""
    header = ("gradient in", "autodiff", "finite differences", "at the step")
    return header, [
        (name, f"{numbers.autodiff[name]:.1e}", f"{min(each):.1e}", f"{STEPS[np.argmin(each)]:.0e}")
        for name, each in numbers.finite.items()
    ]


def claim(numbers):
    """Return whether all three gradients agree."""
    automatic, finite = max(numbers.autodiff.values()), max(min(each) for each in numbers.finite.values())
    text = (
        f"the derived gradients in x, scale and bias, in float32, differ by at most {automatic:.1e} of their largest "
        f"entry from those of autodiff, and by {finite:.1e} from finite differences in float64 (each at most 1e-5)"
    )
    return Claim(text, max(automatic, finite) <= 1e-5)


def draw(numbers):
    """Return the difference from finite differences over their step."""
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for (name, each), style in zip(numbers.finite.items(), ("o-", "s--", "^:")):
        axes.plot(STEPS, each, style, markersize=4, label=f"gradient in {name}")
    axes.set(xlabel="step of the finite differences", ylabel="largest difference / largest entry")
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
