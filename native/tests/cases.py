"""Cases for the tests of the three maps: forms, arrays, and the comparison with float64 NumPy."""

import numpy as np
import reference
from reference import Axis, Form

MAPS = ("forward", "input_gradient", "kernel_gradient")

LAYERS = {
    "3x3": (Form((Axis(14, 3, 1, 1, 1, 1),) * 2, 1), 16, 64, 64),
    "3x3 stride 2": (Form((Axis(28, 3, 2, 0, 1, 1),) * 2, 1), 9, 32, 48),
    "1x1 stride 2": (Form((Axis(28, 1, 2, 0, 0, 1),) * 2, 1), 7, 64, 128),
    "1x1": (Form((Axis(14, 1, 1, 0, 0, 1),) * 2, 1), 7, 40, 72),
    "1x1, large kernel": (Form((Axis(5, 1, 1, 0, 0, 1),) * 2, 1), 3, 130, 150),
    "7x7 stride 2": (Form((Axis(56, 7, 2, 3, 3, 1),) * 2, 1), 4, 3, 64),
    "depthwise": (Form((Axis(14, 3, 1, 1, 1, 1),) * 2, 96), 8, 96, 96),
    "32 groups of 4": (Form((Axis(14, 3, 1, 1, 1, 1),) * 2, 32), 8, 128, 128),
    "large kernel, small batch": (Form((Axis(5, 3, 1, 1, 1, 1),) * 2, 1), 4, 128, 256),
    "batch 1": (Form((Axis(28, 3, 1, 1, 1, 1),) * 2, 1), 1, 32, 64),
    "3d": (Form((Axis(10, 3, 1, 1, 1, 1),) * 3, 1), 5, 16, 32),
    "1d dilated": (Form((Axis(200, 3, 1, 8, 0, 4),), 1), 5, 32, 32),
}


def arrays_of(seed, form, batch, features, out):
    """Return x, kernel and dy."""
    rng = np.random.default_rng(seed)
    size, window, y = ([getattr(a, field) for a in form.axes] for field in ("size", "window", "out"))
    shapes = ((batch, *size, features), (*window, features // form.groups, out), (batch, *y, out))
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def arguments(name, x, kernel, dy):
    """Return the two arrays that a map takes."""
    return {"forward": (x, kernel), "input_gradient": (dy, kernel), "kernel_gradient": (x, dy)}[name]


def check(name, form, arrays, result):
    """Compare the result of a map with the reference, relative to the largest number."""
    expected = getattr(reference, name)(*arguments(name, *arrays), form)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=f"{name} {form}")


def random_case(seed):
    """Return a form, a batch and features in and out, over everything that may vary."""
    rng = np.random.default_rng(seed)
    spatial = 1 + seed % 3
    axes = []
    while len(axes) < spatial:
        numbers = rng.integers([1, 1, 1, 0, 0, 1], [(40, 14, 9)[spatial - 1], 6, 4, 5, 5, 4])
        axis = Axis(*map(int, numbers))
        if seed % 10 == 0:
            axis = axis._replace(window=1, stride=1, low=0, high=0)
        if axis.out >= 1:
            axes.append(axis)
    groups = int(rng.choice([1, 1, 1, 2, 3, 8]))
    features, out = (groups * int(rng.choice([1, 2, 3, 4, 5, 8, 16, 17])) for _ in range(2))
    return Form(tuple(axes), groups), int(rng.integers(1, 10)), features, out
