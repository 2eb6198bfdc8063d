"""RandAugment, TrivialAugment and AugMix: operations as torchvision's, draws at four sigma."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import helpers
from deepjax import data
from deepjax.config import Augment
from deepjax.data import policies
from deepjax.data.operations import bilinear, nearest, operations

HEIGHT, WIDTH = 16, 20  # more than 255 pixels, or Equalize does nothing
SPACES = {
    "RandAugment": (policies.randaugment_space, nearest),
    "TrivialAugmentWide": (policies.trivialaugment_space, nearest),
    "AugMix": (policies.augmix_space, bilinear),
}
ENHANCING = ("Brightness", "Color", "Contrast", "Sharpness", "AutoContrast")
MOVING = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def picture(channels=3, low=20, high=230):
    """uint8 [H, W, C]: smooth, with noise, and not of full range."""
    rng = np.random.default_rng(channels)
    ramp = np.linspace(0, 1, HEIGHT)[:, None, None] * np.linspace(0.2, 1, WIDTH)[None, :, None]
    values = low + (high - low) * np.clip(ramp + rng.uniform(-0.2, 0.2, (HEIGHT, WIDTH, channels)), 0, 1)
    return np.rint(values).astype(np.uint8)


def as_float(pixels):
    return np.asarray(pixels, np.float32) / np.float32(255)


def space_of_torchvision(policy):
    torchvision = helpers.import_torchvision()
    module = torchvision.transforms.autoaugment
    bins = 10 if policy == "AugMix" else 31
    size = () if policy == "TrivialAugmentWide" else ((HEIGHT, WIDTH),)
    return getattr(module, policy)()._augmentation_space(bins, *size)


@pytest.mark.parametrize("policy", SPACES)
def test_magnitudes_are_torchvisions(policy):
    make, _ = SPACES[policy]
    ours, theirs = make(HEIGHT, WIDTH), space_of_torchvision(policy)
    assert set(ours) == set(theirs)
    for name, (magnitudes, signed) in theirs.items():
        expected = magnitudes.numpy().astype(float)
        # In float32, 15 steps to 32 are a little less than 16, which torchvision makes 15.
        expected = np.trunc(expected + 1e-5) if name.startswith("Translate") else expected
        expected = expected / 255 if name == "Solarize" else expected
        assert_allclose(ours[name], expected, rtol=1e-6, atol=1e-7, err_msg=name)
        assert signed == (name in policies.SIGNED)


@pytest.mark.parametrize(("policy", "channels"), [(policy, c) for policy in SPACES for c in (1, 3)])
def test_operations_are_torchvisions(policy, channels):
    """At several magnitudes of each, in both directions: nearest pixels as of Pillow images, bilinear as of tensors."""
    torchvision = helpers.import_torchvision()
    import torch
    from torchvision.transforms import functional
    from torchvision.transforms.autoaugment import _apply_op

    (make, sample), pixels = SPACES[policy], picture(channels)
    space = make(HEIGHT, WIDTH)
    table = operations(sample, HEIGHT, WIDTH)
    kind = torchvision.transforms.InterpolationMode.NEAREST if sample is nearest else "bilinear"
    kind = torchvision.transforms.InterpolationMode(kind)
    cases = [(name, values[at]) for name, values in space.items() for at in {0, len(values) // 3, len(values) - 1}]
    cases += [(name, -value) for name, value in cases if name in policies.SIGNED]
    ours = jax.jit(lambda x: [table[name](x, jnp.float32(value)) for name, value in cases])(as_float(pixels))
    for (name, value), image in zip(cases, ours, strict=True):
        tensor = torch.from_numpy(np.moveaxis(pixels, -1, 0).copy())
        given = tensor if sample is bilinear and name in (*MOVING, "Posterize") else functional.to_pil_image(tensor)
        theirs = _apply_op(given, name, 255 * value if name == "Solarize" else value, kind, None)
        theirs = theirs if isinstance(theirs, torch.Tensor) else functional.pil_to_tensor(theirs)
        difference = np.abs(255 * np.asarray(image) - np.moveaxis(theirs.numpy(), 0, -1).astype(float))
        # Tensors are rounded to levels; in fixed point, edges of nearest pixels may fall to either side, and so may a
        # color that equals solarize's threshold.
        allowed = 1.6 if name in ENHANCING else 0.51 if given is tensor else 1e-3
        share = (difference > allowed).mean()
        assert share <= (0.06 if name in MOVING else 0.004 if name == "Solarize" else 0), (name, value, share)


def drawn(images, augment, key=4):
    return np.asarray(jax.jit(lambda x: data.change_colors(jax.random.key(key), x, augment))(images))


def table_of(space, sample, image, magnitudes):
    """Every operation at these magnitudes in both directions: [operations, magnitudes, 2, H, W, C]."""
    table = operations(sample, HEIGHT, WIDTH)

    @jax.jit
    def run(image):
        return jnp.stack([
            jnp.stack([table[name](image, jnp.float32(sign * values[at] if name in policies.SIGNED else values[at]))
                       for at in magnitudes for sign in (1, -1)])
            for name, values in space.items()
        ])  # fmt: skip

    return np.asarray(run(image)).reshape(len(space), len(magnitudes), 2, *image.shape)


def test_randaugment_draws_operations_and_directions_evenly():
    image, count, names = as_float(picture()), 4200, tuple(policies.randaugment_space(HEIGHT, WIDTH))
    (prints,) = helpers.random_arrays(9, (image.size, 3))  # an image is recognized by three numbers
    images = np.broadcast_to(image, (count, *image.shape))
    found = drawn(images, Augment(randaugment=1, magnitude=19)).reshape(count, -1) @ prints
    space = policies.randaugment_space(HEIGHT, WIDTH)  # at 20, shears end on half pixels
    known = table_of(space, nearest, image, [19]).reshape(28, -1) @ prints
    matches = np.abs(found[:, None] - known).max(2).reshape(count, 14, 2) < 1e-3
    assert (matches.any(2).sum(1) == 1).all()
    counts = matches.any(2).sum(0)
    assert abs(((counts - 300) ** 2 / 300).sum() - 13) < 4 * math.sqrt(26)
    signed = [k for k in range(14) if not matches[:, k].all(1).any()]  # where the two directions differ
    assert {names[k] for k in signed} == set(policies.SIGNED)
    forward = matches[:, signed, 0].sum()
    assert abs(forward - counts[signed].sum() / 2) < 4 * math.sqrt(counts[signed].sum() / 4)


def test_two_operations_follow_each_other():
    """Both are drawn independently: a gray image stays with probability 2/14 squared, by Identity and Color."""
    images = np.broadcast_to(as_float(picture(1)), (6000, HEIGHT, WIDTH, 1))
    out = drawn(images, Augment(randaugment=2, magnitude=30))
    assert 0 <= out.min() < out.max() <= 1
    kept = (np.abs(out - images) < 1e-6).all((1, 2, 3)).mean()
    assert abs(kept - 4 / 196) < 4 * math.sqrt(4 / 196 / 6000)


def test_trivialaugment_draws_operations_strengths_and_directions_evenly():
    """Shifts of an image of distinct columns: each of 31 strengths of two directions is recognized."""
    image = np.broadcast_to(np.linspace(0.2, 0.9, 80, dtype=np.float32)[None, :, None], (8, 80, 1))
    out = np.asarray(jax.jit(lambda x: policies.trivialaugment(jax.random.key(1), x))(np.tile(image, (9000, 1, 1, 1))))
    right = [np.pad(image, ((0, 0), (s, 0), (0, 0)))[:, :80] for s in range(1, 33)]
    left = [np.pad(image, ((0, 0), (0, s), (0, 0)))[:, s:] for s in range(1, 33)]
    counts = np.array([[(out == one).all((1, 2, 3)).sum() for one in side] for side in (right, left)])
    shifts = np.trunc(np.linspace(0, 32, 31)).astype(int)
    assert set(np.flatnonzero(counts.sum(0)) + 1) <= set(shifts[shifts > 0])
    share = counts.sum() / 9000
    assert abs(share - 30 / 31 / 14) < 4 * math.sqrt(share / 9000)
    assert abs(counts[0].sum() - counts[1].sum()) < 4 * math.sqrt(counts.sum())
    expected = 9000 / 14 / 31
    assert abs(((counts.sum(0)[shifts[1:] - 1] - expected) ** 2 / expected).sum() - 30) < 4 * math.sqrt(60)


def test_augmix_is_a_blend_of_chains_with_uniform_weights(monkeypatch):
    """With chains that are constants, the weights can be read off the result."""
    monkeypatch.setattr(
        policies,
        "_apply",
        lambda sample, space, images, choices, magnitudes: (
            images.at[:].set(0.0) + (jnp.arange(len(images)) % 3)[:, None, None, None] ** 2
        ),  # 0, 1, 4
    )
    images = np.full((8000, 1, 1, 1), 10.0, np.float32)
    out = np.asarray(jax.jit(lambda x: policies.augmix(jax.random.key(2), x, 3))(images)).ravel()
    # E[m 10 + (1 - m)(w2 + 4 w3)]: m uniform, w uniform on the simplex with mean 1/3, variance 1/18, covariance -1/36.
    blend_mean, blend_var = 5 / 3, (1 + 16) / 18 - 2 * 4 / 36
    mean = 0.5 * 10 + 0.5 * blend_mean
    square = (100 + 10 * blend_mean + blend_mean**2 + blend_var) / 3
    assert abs(out.mean() - mean) < 4 * math.sqrt((square - mean**2) / 8000)
    assert abs((out**2).mean() - square) < 4 * (out**2).std() / math.sqrt(8000)


def test_augmixs_chains_have_one_to_three_operations_of_the_least_magnitudes():
    drawn = {}

    def spy(sample, space, images, choices, magnitudes):
        drawn.update(names=list(space), choices=choices, magnitudes=magnitudes)
        return images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "_apply", spy)

        @jax.jit
        def run(images):
            policies.augmix(jax.random.key(3), images, 2)
            return drawn["choices"], drawn["magnitudes"]

        choices, magnitudes = map(np.asarray, run(np.zeros((3000, HEIGHT, WIDTH, 3), np.float32)))
    names = drawn["names"]
    assert (choices.shape, names[-1]) == ((9000, 3), "Identity")
    ended = choices == len(names) - 1
    assert not ended[:, 0].any()
    assert (ended[:, 1] <= ended[:, 2]).all()
    lengths = np.bincount(3 - ended.sum(1), minlength=4)[1:]
    assert abs(((lengths - 3000) ** 2 / 3000).sum() - 2) < 4 * math.sqrt(4)
    counts = np.bincount(choices[~ended], minlength=14)[:13]
    assert abs(((counts - counts.mean()) ** 2 / counts.mean()).sum() - 12) < 4 * math.sqrt(24)
    space = policies.augmix_space(HEIGHT, WIDTH)
    turns = magnitudes[(choices == names.index("Rotate")) & ~ended]
    assert_allclose(np.unique(turns), [-30 / 9, 0, 30 / 9], rtol=1e-6)
    bits = magnitudes[(choices == names.index("Posterize")) & ~ended]
    assert set(np.unique(bits)) == set(space["Posterize"][:2])


def test_augmix_changes_images_within_0_and_1():
    images = np.broadcast_to(as_float(picture()), (60, HEIGHT, WIDTH, 3))
    out = drawn(images, Augment(augmix=3))
    assert -1e-6 <= out.min() < out.max() <= 1 + 1e-6
    assert len(np.unique(out.reshape(60, -1), axis=0)) > 55
    change = np.abs(out - images).mean((1, 2, 3))
    assert 0 < np.median(change) < 0.15
