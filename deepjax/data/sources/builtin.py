"""Built-in data sets, which need no files: scikit-learn's digits and diabetes, and four toy data sets of points."""

from typing import Any

import numpy as np

from deepjax.data.records import Arrays, Dataset
from deepjax.data.sources.source import DataSource, Listed, Wanted

BUILTIN = {
    "digits": "1,797 handwritten digits, 8x8, of scikit-learn",
    "diabetes": "442 patients, 10 numbers each, and how their disease progressed, of scikit-learn: regression",
    "spirals": "two spiral arms in the plane",
    "disc": "inside or outside a circle in the plane",
    "xor": "four noisy quadrants in the plane",
    "moons": "two half circles in the plane, with noise",
}


def digits() -> Dataset:
    """Return scikit-learn's 1,797 digits as uint8 [N, 8, 8, 1].

    The split is fixed and stratified: 1,297 training, 200 validation and 300 test images. The stored gray levels
    0 to 16 are scaled to 0 to 255.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    everything = Arrays(images, np.asarray(labels, np.int32))
    rest, test = train_test_split(np.arange(len(everything)), test_size=300, stratify=labels, random_state=0)
    train, validation = train_test_split(rest, test_size=200, stratify=labels[rest], random_state=0)
    classes = tuple(str(digit) for digit in range(10))
    train, validation, test = (everything.take(np.sort(indices)) for indices in (train, validation, test))
    return Dataset("digits", classes, (8, 8, 1), train, validation, test)


def diabetes() -> Dataset:
    """Return scikit-learn's diabetes data as float32 [N, 10]; the targets are numbers from 25 to 346.

    The split is fixed: 300 training, 53 validation and 89 test patients. The features have their own units.
    """
    from sklearn.datasets import load_diabetes

    found: Any = load_diabetes(scaled=False)
    everything = Arrays(found.data.astype(np.float32), found.target.astype(np.float32))
    order = np.random.default_rng(0).permutation(len(everything))
    train, validation, test = (everything.take(np.sort(part)) for part in np.split(order, (300, 353)))
    columns = (*map(str, found.feature_names), "progression")
    return Dataset("diabetes", (), (10,), train, validation, test, columns=columns)


def toy(name: str) -> Dataset:
    """Return a toy data set of two classes: float32 [N, 2], 1,000 training, 200 validation and 200 test points.

    The points are the same in every call.
    """
    rng = np.random.default_rng(0)
    make, classes = {
        "spirals": (_spirals, ("first", "second")),
        "disc": (_disc, ("outside", "inside")),
        "xor": (_xor, ("equal", "different")),
        "moons": (_moons, ("upper", "lower")),
    }[name]
    points, labels = make(rng, 1400)
    everything = Arrays(points.astype(np.float32), labels.astype(np.int32))
    train, validation, test = (everything.take(part) for part in np.split(rng.permutation(1400), (1000, 1200)))
    return Dataset(name, classes, (2,), train, validation, test)


def _spirals(rng, n):
    labels = np.arange(n) % 2
    turn = np.sqrt(rng.uniform(size=n))  # the square root spreads the points evenly along the arm
    angle = 3 * np.pi * turn + np.pi * labels
    points = turn[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return points + rng.normal(scale=0.02, size=(n, 2)), labels


def _disc(rng, n):
    points = rng.uniform(-1, 1, size=(n, 2))
    return points, (points**2).sum(1) < 2 / np.pi  # the circle covers half of the square


def _xor(rng, n):
    points = rng.uniform(-1, 1, size=(n, 2))
    labels = (points[:, 0] > 0) != (points[:, 1] > 0)
    return points + rng.normal(scale=0.05, size=(n, 2)), labels


def _moons(rng, n):
    labels = np.arange(n) % 2
    angle, sign = np.pi * rng.uniform(size=n), 1 - 2 * labels
    points = np.stack([sign * np.cos(angle) + labels, sign * np.sin(angle) + labels / 2], 1)
    return points + rng.normal(scale=0.2, size=(n, 2)), labels  # scikit-learn's make_moons with noise 0.2


def _owns(wanted: Wanted) -> bool:
    return wanted.name in BUILTIN


def _load(wanted: Wanted) -> Dataset:
    makers = {"digits": digits, "diabetes": diabetes}
    return makers[wanted.name]() if wanted.name in makers else toy(wanted.name)


def _rows(data_dir: str) -> list[Listed]:
    del data_dir
    return [Listed(name, "built-in", what, "ready") for name, what in BUILTIN.items()]


SOURCE = DataSource(_owns, _load, _rows)
