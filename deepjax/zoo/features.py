"""Networks of one dense layer over features: all monomials up to a degree, or radial basis functions."""

import flax.linen as nn
import jax

from deepjax import initializers
from deepjax.layers import Dense, RadialBasis
from deepjax.linear import polynomial_features
from deepjax.zoo.network import Network, check_at_least_one


class Polynomial(Network):
    """Flatten, compute all monomials, and multiply them by one kernel."""

    degree: int

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, ...] -> see `Network`; its map is a vector, `monomials`."""
        x = polynomial_features(x.reshape(x.shape[0], -1), degree=self.degree)
        if self.features_only:
            return {"monomials": x}
        if not self.return_logits:
            return x
        head = Dense(self.num_classes, use_bias=False, kernel_init=self.kernel_init, dtype=self.dtype, name="head")
        return head(x)


class RBF(Network):
    """Flatten, compute radial basis functions, and a dense layer."""

    units: int

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, ...] -> see `Network`; its map is a vector, `basis`."""
        x = RadialBasis(self.units, name="basis")(x.reshape(x.shape[0], -1))
        if self.features_only:
            return {"basis": x}
        return self.classify(x, train=train, kernel_init=self.kernel_init)


def polynomial(degree=3, num_classes=10, *, dtype=None):
    """Make a linear network of all monomials of the inputs up to a degree, which starts at zero.

    The monomials are scaled so that their scalar product is the kernel (1 + <x, z>)^degree
    (`linear.polynomial_features`). Trained with the perceptron's loss, one example at a time at rate 1, it makes the
    decisions of `linear.kernel_perceptron`. There is no bias, because the first feature is 1.

    Args:
      degree: of the kernel.
      num_classes: number of logits.
      dtype: dtype of the computation.

    Raises:
      InputError: a degree or num_classes below 1. When called: more than 100,000 monomials.
    """
    check_at_least_one("polynomial", degree=degree, num_classes=num_classes)
    return Polynomial(
        degree,
        num_classes=num_classes,
        norm=None,
        kernel_init=initializers.zeros,
        dtype=dtype,
        usual_input=(8, 8, 1),
    )


def rbf(num_classes=10, *, units=10, dtype=None):
    """Make a network of radial basis functions (Broomhead & Lowe 1988): Gaussians around centers, and a dense layer.

    Centers are drawn at random, all widths are equal, and the dense layer starts at zero. --init rbf, or
    `init_from_data.rbf`, places the centers by k-means++ and fits the dense layer.

    Args:
      num_classes: number of logits.
      units: number of Gaussians.
      dtype: dtype of the computation.

    Raises:
      InputError: units or num_classes below 1.
    """
    check_at_least_one("rbf", units=units, num_classes=num_classes)
    return RBF(
        units, num_classes=num_classes, norm=None, kernel_init=initializers.zeros, dtype=dtype, usual_input=(8, 8, 1)
    )


MODELS = {"polynomial": polynomial, "rbf": rbf}
