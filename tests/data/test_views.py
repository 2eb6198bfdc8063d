"""Views of images against slices and Pillow."""

import jax
import numpy as np
import pytest
from PIL import Image

from deepjax.config import Data
from deepjax.data import center_crop, cropped_shape, view
from deepjax.data.views import CROP, check
from deepjax.errors import InputError
from helpers import import_torchvision, random_arrays

BOXES = [(0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5)]  # left, top, as fractions of the margin


def pillow(image, corner, height, width):
    """The crop of one gray image, enlarged by Pillow in float32."""
    margin = (1 - CROP) * width, (1 - CROP) * height
    left, top = corner[0] * margin[0], corner[1] * margin[1]
    box = (left, top, left + CROP * width, top + CROP * height)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box=box))


def test_views_are_the_image_its_mirror_image_and_crops():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 1), np.uint8)
    views = jax.jit(view, static_argnums=2)
    scaled = images.astype(np.float32) / 255
    np.testing.assert_allclose(views(images, 0, 1), scaled, rtol=1e-6)
    np.testing.assert_allclose(views(images, 0, 2), scaled, rtol=1e-6)
    np.testing.assert_allclose(views(images, 1, 2), scaled[:, :, ::-1], rtol=1e-6)
    for index, corner in enumerate(BOXES):
        crop = np.asarray(views(images, index, 10))
        expected = [pillow(image[..., 0], corner, 16, 24) for image in scaled]
        # Pillow's filter ends at the box; ours reads the pixel beside it. So the border of a crop is left out.
        np.testing.assert_allclose(crop[:, 2:-2, 2:-2, 0], np.stack(expected)[:, 2:-2, 2:-2], atol=1e-5)
        np.testing.assert_allclose(views(images, index, 5), crop, rtol=1e-6)
        np.testing.assert_allclose(views(images, index + 5, 10), crop[:, :, ::-1], rtol=1e-6)


@pytest.mark.parametrize("count", [2, 5, 10])
def test_views_of_one_color_are_that_color(count):
    images = np.full((1, 8, 8, 3), 51, np.uint8)
    for index in range(count):
        np.testing.assert_allclose(view(images, index, count), 0.2, rtol=1e-6)


def test_center_crop_is_torchvisions():
    import_torchvision()
    from torchvision.transforms.functional import center_crop as theirs

    for shape, size in (((9, 12), 5), ((8, 8), 8), ((10, 8), 4), ((7, 10), 4)):
        images = random_arrays(0, (2, *shape, 3))[0]
        expected = np.moveaxis(theirs(torch_images(images), [size, size]).numpy(), 1, -1)
        np.testing.assert_array_equal(center_crop(images, size), expected)
        assert cropped_shape(images.shape[1:], size) == expected.shape[1:]
    assert center_crop(images, 0) is images


def torch_images(images):
    import torch

    return torch.tensor(np.moveaxis(images, -1, 1))


@pytest.mark.parametrize(
    ("fields", "shape", "match"),
    [
        ({"center_crop": 9}, (8, 10, 1), "data.center_crop 9 must be at most 8"),
        ({"center_crop": 2}, (64,), "data.center_crop 2: needs images"),
        ({"center_crop": 2, "standardize": "pca"}, (8, 8, 1), "data.center_crop 2: needs images"),
    ],
)
def test_what_cannot_be_cropped(fields, shape, match):
    with pytest.raises(InputError, match=match):
        check(Data(**fields), shape)
