"""PCA lighting: a random color, drawn along the principal components of the colors, is added to an image."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from deepjax import config, data
from deepjax.data import color
from deepjax.data.records import Arrays
from deepjax.figures import small_runs
from deepjax.figures.experiment import Claim, plain
from deepjax.runs.plots import new_figure

TITLE = "PCA of colors as augmentation"
SOURCE = "Deep learning: AlexNet (Supervision), Krizhevsky et al. 2012, section 4.1"
USES = ("full", "data_dir")
STD = 0.1  # of the draws, as in the paper
STRENGTH = 10  # the drawing shows this multiple of a draw's shift, which hardly shows otherwise
DEVIATIONS = (-2, -1, 0, 1, 2)


@dataclass(frozen=True)
class Numbers:
    """Colors are red, green, blue in [0, 1]."""

    variances: tuple[float, ...]  # eigenvalues of the covariance, largest first
    components: tuple[tuple[float, ...], ...]  # of each eigenvector, its color times its eigenvalue
    covariance: tuple[tuple[float, ...], ...]  # of the shifts that were drawn
    expected: tuple[tuple[float, ...], ...]
    sigmas: float  # largest difference of the two, along the components, in standard deviations of the estimate
    draws: int
    image: tuple  # [H, W, 3], 0 to 255


def numbers(settings):
    """Return Numbers of two photographs of scikit-learn, or, with a data_dir, of CIFAR-10. The seed draws shifts."""
    images = _cifar(settings.data_dir) if settings.data_dir else _photographs()
    components = color.lighting_components(Arrays(images, np.zeros(len(images), np.int32)))[:, ::-1]
    pixels = images.reshape(-1, 3) / 255.0
    covariance = np.cov(pixels.T, bias=True)
    count = 200_000 if settings.full else 20_000
    black = np.zeros((count, 1, 1, 3), np.float32)
    lighting = jax.jit(color.lighting, static_argnums=2)
    shifts = np.asarray(lighting(jax.random.key(settings.seed), black, STD, components)).reshape(-1, 3)
    variances, vectors = np.linalg.eigh(covariance)
    white = np.cov((shifts @ vectors / (STD * variances)).T)  # so that small components count as much as large ones
    error = np.sqrt((1 + np.eye(3)) / count)
    side = max(1, images.shape[1] // 60)
    return Numbers(
        plain(variances[::-1]),
        plain(components.T),
        plain(np.cov(shifts.T)),
        plain(STD**2 * covariance @ covariance),
        float(abs((white - np.eye(3)) / error).max()),
        count,
        plain(images[-1][::side, ::side].astype(int)),
    )


def _photographs():
    from sklearn.datasets import load_sample_images

    return np.stack(load_sample_images().images)


def _cifar(data_dir):
    found = data.load(config.Data(small_runs.cifar(data_dir), placement="device"), data_dir, 0)
    train: Any = found.train  # Arrays, since they are placed on the device
    return train.images


def table(numbers):
    """Return each component: its share of the variance, and the color that one deviation adds."""
    total = sum(numbers.variances)
    header = ("component", "share of the variance", *(f"{name} of a shift" for name in ("red", "green", "blue")))
    rows = [
        (str(i + 1), f"{variance / total:.1%}", *(f"{STD * each:+.4f}" for each in component))
        for i, (variance, component) in enumerate(zip(numbers.variances, numbers.components))
    ]
    return header, rows


def claim(numbers):
    """Return whether the shifts have the covariance that the paper's formula gives."""
    text = (
        f"{numbers.draws:,} shifts P (a * eigenvalues), a normal of deviation {STD:g}, have the covariance {STD**2:g} "
        f"C C, where C is that of the colors: they differ by at most {numbers.sigmas:.1f} (less than 4) standard "
        f"deviations of the estimate"
    )
    return Claim(text, numbers.sigmas < 4)


def draw(numbers):
    """Return an image under shifts along each component, in rows; columns are deviations."""
    figure = new_figure(9, 4.2)
    image = np.asarray(numbers.image) / 255
    for i, row in enumerate(figure.subplots(len(numbers.components), len(DEVIATIONS), squeeze=False)):
        for axes, deviation in zip(row, DEVIATIONS):
            shift = STRENGTH * STD * deviation * np.asarray(numbers.components[i])
            axes.imshow(np.clip(image + shift, 0, 1))
            axes.set(xticks=[], yticks=[])
            if i == 0:
                axes.set_title(f"{deviation:+d} deviations" if deviation else "as stored", fontsize=9)
        row[0].set_ylabel(f"component {i + 1}", fontsize=9)
    figure.suptitle(f"Shifts along the principal components of the colors, {STRENGTH} times enlarged", fontsize=10)
    return figure
