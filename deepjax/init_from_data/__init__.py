"""Initialize any Linen model from data: run it on a batch and set each layer from the layer's output."""

from deepjax.init_from_data.auto import Choice, auto
from deepjax.init_from_data.between_layer import between_layer
from deepjax.init_from_data.closed_form import least_squares, rbf
from deepjax.init_from_data.layer_wise import autoencoder, rbm
from deepjax.init_from_data.looks_linear import looks_linear
from deepjax.init_from_data.lsuv import lsuv, output_variances
from deepjax.init_from_data.within_layer import kmeans_kernels, pca_kernels, within_layer

__all__ = [
    "Choice",
    "auto",
    "autoencoder",
    "between_layer",
    "kmeans_kernels",
    "least_squares",
    "looks_linear",
    "lsuv",
    "output_variances",
    "pca_kernels",
    "rbf",
    "rbm",
    "within_layer",
]
