"""Padding is recognized in tokens and in frames, and nothing else is taken for it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.doctor.causes.padding import find_mask, find_padding, leakage, masked, padding_first
from deepjax.doctor.evidence import Evidence
from deepjax.doctor.subject import subject

RNG = np.random.default_rng(0)
LENGTHS = np.array([3, 12, 7, 5, 12, 4, 9, 6])
REAL = np.arange(12) < LENGTHS[:, None]


def test_tokens_with_zeros_behind_them():
    padding = find_padding(np.where(REAL, RNG.integers(1, 50, (8, 12)), 0))
    assert padding is not None
    assert (padding.value, padding.steps) == (0, 12)
    np.testing.assert_array_equal(padding.lengths, LENGTHS)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_frames_with_one_value_behind_them(value):
    frames = np.where(REAL[..., None], RNG.normal(size=(8, 12, 3)), value).astype(np.float32)
    padding = find_padding({"frames": frames, "other": np.zeros((8, 2), np.float32)})
    assert padding is not None
    assert padding.value == value
    np.testing.assert_array_equal(padding.lengths, LENGTHS)


@pytest.mark.parametrize(
    "inputs",
    [
        RNG.integers(0, 50, (64, 12)),  # sequences of one length
        RNG.integers(0, 2, (64, 30)),  # 0 is a token like others
        RNG.normal(size=(8, 12, 3)).astype(np.float32),
        np.where(REAL, RNG.normal(size=(8, 12)), 0).astype(np.float32),  # features, no steps
        np.zeros((8, 12), np.int32),
    ],
)
def test_what_is_no_padding(inputs):
    assert find_padding(inputs) is None


def test_the_black_margins_of_images_are_no_padding():
    images = RNG.uniform(0.1, 1, (64, 28, 28)).astype(np.float32)
    for image in images:
        top, bottom = RNG.integers(0, 8, size=2)
        image[:top], image[28 - bottom :] = 0, 0
    assert find_padding(images) is None


@pytest.mark.parametrize(("shape", "dtype"), [((8, 12), np.int32), ((8, 12, 2), np.float32)])
def test_padding_is_moved_in_front(shape, dtype):
    real = REAL.reshape(REAL.shape + (1,) * (len(shape) - 2))
    inputs = {"tokens": np.where(real, RNG.integers(1, 50, shape), 0).astype(dtype), "other": np.arange(8.0)}
    inputs["mask"], inputs["features"] = REAL.astype(np.float32), RNG.normal(size=(8, 12)).astype(np.float32)
    made = subject(lambda p, x: p * x["other"], (inputs, np.zeros(8)), _squared, variables=jnp.ones(()))
    moved = padding_first(made, find_padding(inputs["tokens"])).inputs
    for name in ("other", "features"):
        np.testing.assert_array_equal(moved[name], inputs[name])
    np.testing.assert_array_equal(moved["mask"], REAL[:, ::-1])
    for before, after, length in zip(inputs["tokens"], moved["tokens"], LENGTHS, strict=True):
        np.testing.assert_array_equal(after[12 - length :], before[:length])
        assert not after[: 12 - length].any()


def _squared(p, t):
    return jnp.mean((p - t) ** 2)


class Mean(nn.Module):
    """The mean of a layer's outputs, over all places or over the real ones."""

    over_real: bool

    @nn.compact
    def __call__(self, x):
        h, mask = nn.Dense(4)(x["frames"]), x["mask"][..., None]
        h = (h * mask).sum(1) / mask.sum(1) if self.over_real else h.mean(1)
        return nn.Dense(1)(h)


@pytest.mark.parametrize("over_real", [False, True])
def test_a_mask_must_leave_out_what_it_masks(over_real):
    inputs = {"frames": RNG.normal(size=(8, 12, 3)).astype(np.float32), "mask": REAL.astype(np.float32)}
    made = subject(Mean(over_real), (inputs, np.zeros((8, 1), np.float32)), _squared, batch_size=8, epochs=1)
    found = list(leakage(Evidence(made, jax.random.key(0), 1.0)))
    assert [each.finding.code for each in found] == ["padding_leakage"] * (not over_real)
    zeroed = masked(made).inputs
    np.testing.assert_array_equal(zeroed["frames"], inputs["frames"] * REAL[..., None])
    np.testing.assert_array_equal(zeroed["mask"], inputs["mask"])


@pytest.mark.parametrize(
    "mask",
    [
        ~REAL,  # 1 behind the end
        RNG.integers(0, 2, (8, 12)),  # values that are missing
        np.ones((8, 12)),
        REAL * 2,
    ],
)
def test_what_is_no_mask(mask):
    assert find_mask({"mask": mask.astype(np.float32), "x": np.zeros((8, 12, 3))}) is None
