"""Standardization of inputs: to mean 0, to unit variance, to a range, or whitened. It is fitted on training data.

Statistics are computed in float64, one chunk of images at a time, so that the data set need not fit into memory.
"""

import math
import threading
from pathlib import Path
from typing import NamedTuple, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import config
from deepjax.data.records import Arrays, Records, Split
from deepjax.errors import InputError, choices, first_line
from deepjax.files import replacing
from deepjax.functional.arrays import at_least_float32, per_feature

KINDS = get_args(get_type_hints(config.Data)["standardize"])
WHITENING = ("pca", "zca")
MAX_FEATURES = 64 * 64 * 3  # limit for whitening: the covariance takes 1.2 GB in float64
RESOLVED = 1e-10  # relative to the largest eigenvalue: a smaller variance is lost in float32


class Standardizer(NamedTuple):
    """A fitted transformation of inputs. `fit` makes it. `apply` and `invert` are pure and support jit, vmap and grad.

    channel, mean_image, mean_color, min_max, z_score: y = (x - shift) / scale.
    pca: y = ((x - shift) @ basis) / scale, a vector of components in the order of decreasing variance.
    zca: y = ((x - shift) @ basis) / scale @ basis.T, with the shape of x.
    """

    kind: str
    shift: np.ndarray | jax.Array
    """float32: [C], or the shape of one input."""
    scale: np.ndarray | jax.Array
    """float32, with the shape of shift. With `basis`: [k], the root of each component's variance plus epsilon."""
    basis: np.ndarray | None = None
    """float32 [features, k]: eigenvectors of the covariance, orthonormal columns."""

    @classmethod
    def fit(
        cls,
        kind: str,
        split: Split | np.ndarray,
        *,
        epsilon: float = 0.0,
        limits: tuple[float, float] = (0.0, 1.0),
    ) -> "Standardizer":
        """Fit to training data: uint8 images [N, H, W, C], divided by 255, or float [N, ...].

        Args:
          kind: kind of transformation.

            - channel: mean 0 and variance 1 of each channel (last axis), over all images and pixels.
            - mean_color: subtract the mean of each channel. mean_image: subtract the mean of each pixel and channel.
            - min_max: map the minimum and maximum of each channel to `limits`.
            - z_score: mean 0 and variance 1 of each pixel and channel.
            - pca: rotate flattened inputs onto the eigenvectors of their covariance, and divide by the roots of the
              eigenvalues. zca: then rotate back, so that the result is as close to the input as white data can be
              (Bell and Sejnowski 1997); its matrix is symmetric.

          split: the training set, or an array of its inputs.
          epsilon: for pca and zca: added to the eigenvalues, so that noise is not amplified. With 0, the covariance of
            the whitened data is I; 0.01 to 0.1 is usual for natural images. Variances and covariances divide by N, not
            by N - 1.
          limits: for min_max.

        Constant channels and features become 0 (min_max: the lower limit). pca and zca drop directions with less than
        1e-10 of the largest variance (epsilon included): pca then has fewer components, and the result of zca is 0
        along them.

        Raises:
          InputError: an unknown kind, a negative epsilon, limits that are not two increasing numbers, no data, numbers
            that are not finite, constant data (pca, zca), or more than 12,288 features (pca, zca).

        >>> points = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 7.0]])
        >>> print(Standardizer.fit("min_max", points).apply(points))
        [[0.  0. ]
         [0.5 0. ]
         [1.  1. ]]
        >>> white = Standardizer.fit("zca", points).apply(points)
        >>> bool(abs(white.T @ white / 3 - np.eye(2)).max() < 1e-4)
        True
        """
        if not isinstance(split, Arrays | Records):
            split = Arrays(np.asarray(split), np.zeros(len(split), np.int32))
        _check(kind, epsilon, limits)
        if not len(split):
            raise InputError(f"data.standardize {kind}: the training set is empty; it needs at least one example")
        if (floats := _floats(split)) is not None and (floats.ndim < 2 or not np.isfinite(floats).all()):
            raise InputError(f"data.standardize {kind}: inputs {floats.shape} must be finite numbers, [N, features]")
        if kind in WHITENING:
            return cls(kind, *_whitening(kind, split, epsilon))
        shift, scale = _elementwise(kind, split, limits)
        return cls(kind, shift.astype(np.float32), scale.astype(np.float32))

    def apply(self, x: jax.Array | np.ndarray) -> jax.Array:
        """Standardize inputs [..., *shape] to [..., *shape], or [..., components] for pca. uint8 is divided by 255.

        The result is at least float32. Raise InputError if `shape` is not the shape of the inputs that were fitted.
        """
        x = jnp.asarray(x)
        self._expect("apply", x.shape, self.shift.shape)
        values = at_least_float32(x)
        if x.dtype == jnp.uint8:
            values = values / 255
        if self.basis is None:
            return (values - per_feature(self.shift, x.ndim)) / per_feature(self.scale, x.ndim)
        flat = self._flat(values - per_feature(self.shift, x.ndim))
        white = _product(flat, self.basis) / per_feature(self.scale, flat.ndim)
        return white if self.kind == "pca" else _product(white, self.basis.T).reshape(x.shape)

    def invert(self, y: jax.Array | np.ndarray) -> jax.Array:
        """Return the inputs of which `apply` made y, in [0, 1] if they were uint8 images.

        Along directions that pca and zca dropped, the result is the mean. Raise InputError for another shape.
        """
        y = at_least_float32(y)
        self._expect("invert", y.shape, self.output_shape(self.shift.shape))
        if self.basis is None:
            return y * per_feature(self.scale, y.ndim) + per_feature(self.shift, y.ndim)
        white = y if self.kind == "pca" else _product(self._flat(y), self.basis)
        x = _product(white * per_feature(self.scale, white.ndim), self.basis.T)
        x = x.reshape(*x.shape[:-1], *self.shift.shape)
        return x + per_feature(self.shift, x.ndim)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one standardized input, for inputs of `shape`."""
        return (len(self.scale),) if self.kind == "pca" else tuple(shape)

    def save(self, path: Path) -> None:
        """Write to an .npz file, atomically."""
        arrays = {name: value for name, value in self._asdict().items() if value is not None}
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Standardizer":
        """Read what `save` wrote. Raise InputError if the file is missing or damaged."""
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return cls(str(arrays.pop("kind")), **arrays)
        except FileNotFoundError:
            raise InputError(f"{path} is missing") from None
        except Exception as error:  # of zipfile, zlib and NumPy, for contents of any kind
            raise InputError(f"{path} cannot be read ({first_line(error)}); it may be truncated") from error

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether this is a transformation, with finite numbers, of inputs of a shape."""
        arrays = [each for each in self[1:] if each is not None]
        if self.kind not in KINDS or (self.basis is not None) != (self.kind in WHITENING):
            return False
        if not all(each.dtype == np.float32 and np.isfinite(each).all() for each in arrays) or (self.scale <= 0).any():
            return False
        if self.basis is not None:
            if self.shift.shape != shape or self.basis.shape != (self.shift.size, *self.scale.shape):
                return False
            return np.allclose(np.square(self.basis).sum(0), 1, atol=1e-3)
        return self.shift.shape in (shape[-1:], shape) and self.scale.shape == self.shift.shape

    def _expect(self, what: str, given: tuple[int, ...], shape: tuple[int, ...]) -> None:
        if given[max(0, len(given) - len(shape)) :] != shape:
            raise InputError(f"{what}: shape {given} does not end in {shape}, for which {self.kind} was fitted")

    def _flat(self, x):
        return x.reshape(*x.shape[: x.ndim - self.shift.ndim], self.shift.size)


def _product(x, matrix):
    # Accelerators multiply in low precision by default, in which whitened data would be white to two digits only.
    return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


def check(data: config.Data, shape: tuple[int, ...]) -> None:
    """Raise InputError if data.standardize, or a field that belongs to it, does not fit inputs of `shape`."""
    kind, default = data.standardize, config.Data()
    _check(kind, data.epsilon, data.limits)
    for field, kinds in (
        ("mean", ("channel",)),
        ("std", ("channel",)),
        ("epsilon", WHITENING),
        ("limits", ("min_max",)),
    ):
        value = getattr(data, field)
        if kind not in kinds and value != getattr(default, field):
            raise InputError(
                f"data.{field} {value}: is for data.standardize {' and '.join(kinds)}, not {kind}; leave it unset"
            )
    if kind in WHITENING:
        _check_size(kind, shape)
    for field in ("flip", "crop", "translate", "scale", "rotate", "cutout", "cutmix"):
        if kind == "pca" and getattr(data.augment, field):
            raise InputError(f"data.augment.{field}: needs images, and data.standardize pca makes vectors; use zca")


def _check(kind, epsilon, limits):
    if kind not in KINDS:
        raise InputError(f"data.standardize {kind!r} is unknown; {choices(kind, KINDS)}")
    if not 0 <= epsilon < math.inf:
        raise InputError(f"data.epsilon {epsilon}: must be at least 0, and finite")
    if len(limits) != 2 or not -math.inf < limits[0] < limits[1] < math.inf:
        raise InputError(f"data.limits {limits}: must be two numbers, the lower one first")


def _check_size(kind, shape):
    if math.prod(shape) > MAX_FEATURES:
        raise InputError(
            f"data.standardize {kind}: inputs have {math.prod(shape):,} features, at most {MAX_FEATURES:,} can be "
            f"whitened; give a smaller data.image_size, or use z_score"
        )


def _elementwise(kind, split, limits):
    """Return (shift, scale) of the kinds that transform each number independently."""
    if kind == "channel":
        return channel_statistics(split)
    if kind == "mean_color":
        mean, _ = channel_statistics(split)
        return mean, np.ones_like(mean)
    if kind == "min_max":
        lowest, highest = _extremes(split)
        scale = _unless_constant(highest - lowest, highest) / (limits[1] - limits[0])
        return lowest - limits[0] * scale, scale
    mean, variance = _moments(split, lambda chunk: chunk, lambda x: np.square(x).sum(0))
    if kind == "mean_image":
        return mean, np.ones_like(mean)
    return mean, _unless_constant(np.sqrt(np.maximum(variance, 0)), mean)


def _whitening(kind, split, epsilon):
    """Return (shift, scale, basis) of pca and zca."""
    shape = split.images.shape[1:] if isinstance(split, Arrays) else split.shape
    _check_size(kind, shape)
    mean, covariance = _moments(split, lambda chunk: chunk.reshape(len(chunk), -1), lambda x: x.T @ x)
    if not (np.diag(covariance) > (np.finfo(np.float32).eps * mean) ** 2).any():
        raise InputError(
            f"data.standardize {kind}: the training data are constant, so they cannot be whitened; use mean_image"
        )
    variance, basis = np.linalg.eigh(covariance)
    variance, basis = np.maximum(variance[::-1], 0) + epsilon, basis[:, ::-1]
    resolved = variance > RESOLVED * variance[0]
    arrays = mean.reshape(shape), np.sqrt(variance[resolved]), basis[:, resolved]
    return tuple(array.astype(np.float32) for array in arrays)


def _extremes(source: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return minimum and maximum of each channel, in the units of `channel_statistics`."""
    if (floats := _floats(source)) is not None:
        axes = tuple(range(floats.ndim - 1))
        return floats.min(axes).astype(np.float64), floats.max(axes).astype(np.float64)
    seen = _histogram(source) > 0
    return seen.argmax(1) / 255, (255 - seen[:, ::-1].argmax(1)) / 255


def channel_statistics(source: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each channel, both float32 [C], over all images and pixels.

    uint8 values are divided by 255. The standard deviation of a constant channel is returned as 1, so that
    standardization gives 0 and not 0/0.
    """
    if (floats := _floats(source)) is not None:
        axes = tuple(range(floats.ndim - 1))
        mean, std = floats.mean(axes, dtype=np.float64), floats.std(axes, dtype=np.float64)
    else:
        counts = _histogram(source)  # counts are exact, and one pass gives both mean and variance
        levels = np.arange(256) / 255
        pixels = counts.sum(1)
        mean = counts @ levels / pixels
        std = np.sqrt(np.sum(counts * (levels - mean[:, None]) ** 2, 1) / pixels)
    return mean.astype(np.float32), _unless_constant(std, mean).astype(np.float32)


def channel_covariance(source: Split) -> np.ndarray:
    """Return the covariance of the channels over all images and pixels, float64 [C, C], as in `channel_statistics`."""
    return _moments(source, lambda chunk: chunk.reshape(-1, chunk.shape[-1]), lambda x: x.T @ x)[1]


def _floats(source):
    """Return the inputs if they are floats, or None if they are uint8."""
    return source.images if isinstance(source, Arrays) and source.images.dtype != np.uint8 else None


def _unless_constant(std, mean):
    """Return std, or 1 if it is not larger than the rounding error of a constant in float32."""
    return np.where(std <= np.finfo(np.float32).eps * np.abs(mean), 1, std)


def _histogram(source: Split) -> np.ndarray:
    """Count each value of uint8 images: int64 [C, 256]."""

    def count(_, chunk: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(chunk[..., c].ravel(), minlength=256) for c in range(chunk.shape[-1])])

    return np.sum(source.map(count), 0)


def _moments(source: Split, rows, product) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and central second moment of rows(images), float64, in one pass; product(rows) sums the products.

    Sums over uint8 are integers below 2**53, so they are exact for every order in which threads add them. Floats
    are first shifted by an estimate of their mean, because far from zero the squares would lose the variance.
    """
    unit, origin = 255, 0.0
    if (floats := _floats(source)) is not None:
        unit, origin = 1, rows(floats[:1000].astype(np.float64)).mean(0)
    sums, lock = [], threading.Lock()

    def add(_, chunk: np.ndarray) -> None:
        x = rows(chunk.astype(np.float64)) - origin
        parts = np.array(len(x), float), x.sum(0), product(x)
        with lock:
            for total, part in zip(sums, parts):
                total += part
            if not sums:
                sums.extend(parts)

    source.map(add)
    count, total, squares = sums
    mean = total / count
    return origin + mean / unit, (squares / count - product(mean[None])) / unit**2


def standardize(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Return (x - mean) / std, at least float32, for x [..., C], mean and std [C]. uint8 is divided by 255 first."""
    return Standardizer("channel", mean, std).apply(x)
