"""Decoding, resizing and cropping of single images."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from deepjax import data
from deepjax.data import images
from deepjax.errors import InputError
from helpers import load_data as load
from helpers import write_images


def test_center_crop_is_imagenets():
    """Shorter side to 256/224 of the crop, then the centre: 7/8 of it remains."""
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(128, 0)  # 256 wide, 128 high
    cropped = np.asarray(images.center(Image.fromarray(ramp), 112, 112))
    np.testing.assert_array_equal(cropped, ramp[:112, 72:184])


def test_random_area_crop_statistics():
    """The box's area is uniform in the range and its aspect within 3/4 and 4/3."""
    x, y = np.meshgrid(np.arange(256), np.arange(256))
    image = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    rng = np.random.default_rng(0)
    crops = [np.asarray(images.random_area(image, 32, 32, (0.1, 0.4), rng), float) for _ in range(400)]
    # Pixel centres of the outer columns lie 31/32 of the box's width apart.
    widths = np.array([(c[0, -1, 0] - c[0, 0, 0]) * 32 / 31 for c in crops])
    heights = np.array([(c[-1, 0, 1] - c[0, 0, 1]) * 32 / 31 for c in crops])
    areas = widths * heights / 256**2
    assert 0.09 < areas.min() < 0.12
    assert 0.38 < areas.max() < 0.42
    assert abs(areas.mean() - 0.25) < 4 * 0.3 / np.sqrt(12 * 400) + 0.005
    aspects = np.log(widths / heights)
    assert np.abs(aspects).max() < np.log(4 / 3) + 0.05
    assert abs(aspects.std() / (2 * np.log(4 / 3) / np.sqrt(12)) - 1) * np.sqrt(400 / 2) < 4
    lefts = np.array([c[0, 0, 0] for c in crops])
    assert lefts.min() < 20
    assert lefts.max() > 120


def test_random_area_of_an_image_too_thin():
    thin = Image.new("L", (400, 10), 9)
    assert np.asarray(images.random_area(thin, 8, 8, (0.9, 1.0), np.random.default_rng(0))).tolist() == [[9] * 8] * 8


def test_read_image_is_what_evaluation_sees(tmp_path):
    write_images(tmp_path / "train", {"a": 8, "b": 8}, size=(31, 17))
    write_images(tmp_path / "test", {"a": 1}, size=(9, 12))
    found = load(tmp_path, image_size=8, validation=0.0)
    read = data.read_image(tmp_path / "train" / "b" / "005.png", (8, 8, 3), found.fit)
    np.testing.assert_array_equal(read, found.train.images[13])


# --- decoding


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_images_of_16_bits_keep_their_shades(channels):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    read = np.asarray(images.decode(encoded(Image.fromarray(ramp)), "ramp", channels)).reshape(16, 16, channels)
    np.testing.assert_array_equal(read, np.broadcast_to(np.arange(256).reshape(16, 16, 1), read.shape))


RAMP = np.arange(0, 65536, 257).reshape(16, 16)  # the 256 shades of 8 bits, in 16


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        (RAMP.astype(np.uint16), "I;16"),
        (RAMP.astype(">u2"), "I;16B"),
        (RAMP.astype(np.int32), "I"),
        ((RAMP / 65535).astype(np.float32), "F"),
    ],
)
def test_gray_images_of_tiff(values, mode):
    content = encoded(Image.fromarray(values), "TIFF")
    assert Image.open(io.BytesIO(content)).mode == mode
    np.testing.assert_array_equal(images.decode(content, "ramp", 1), np.arange(256).reshape(16, 16))
    np.testing.assert_array_equal(np.asarray(images.decode(content, "ramp", 3))[..., 1], images.decode(content, "", 1))


@pytest.mark.parametrize(
    ("values", "extremes"),
    [
        (RAMP.astype(np.int32) * 2, "0 to 131070, but must be 0 to 65535"),
        (RAMP.astype(np.int32) - 1, "-1 to 65534, but must be 0 to 65535"),
        (RAMP.astype(np.float32), "0.0 to 65535.0, but must be 0 to 1"),
        (np.full((2, 2), np.nan, np.float32), "nan to nan, but must be 0 to 1"),
    ],
)
def test_gray_values_outside_their_range_are_refused(values, extremes):
    with pytest.raises(InputError, match=f"ramp: cannot be read as an image .its gray values are {extremes}"):
        images.decode(encoded(Image.fromarray(values), "TIFF"), "ramp", 1)


def photo(form):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    return encoded(Image.fromarray(pixels), form, exif=exif)


@pytest.mark.parametrize("form", images.FORMATS)
def test_damaged_images_are_one_error_or_an_image(tmp_path, form, capfd):
    """Whatever bytes are damaged: no other exception, no warning, no address of an object in memory."""
    whole, rng = photo(form) if form != "BMP" else encoded(Image.new("RGB", (30, 40)), form), np.random.default_rng(1)
    path, messages = tmp_path / "a.img", []
    for number in range(60):
        damaged = bytearray(whole[: rng.integers(len(whole))] if number % 3 == 0 else whole)
        for place in rng.integers(0, min(len(damaged), 300) or 1, 5):
            damaged[place : place + 1] = rng.bytes(1)
        path.write_bytes(damaged)
        for read in (images.read_size, lambda path: images.decode(path.read_bytes(), str(path), 3)):
            try:
                read(path)
            except InputError as error:
                messages.append(str(error))
    assert len(messages) > 10
    assert all(message.startswith(f"{path}: cannot be read as an image (") for message in messages)
    assert not [message for message in messages if " at 0x" in message or "\n" in message]
    assert capfd.readouterr().err == ""


def test_damaged_exif_does_not_turn_an_image(tmp_path):
    whole = photo("JPEG")
    place = whole.index(b"MM\x00*") + 4  # the place of the first directory
    path = tmp_path / "a.jpg"
    path.write_bytes(whole[:place] + b"\x00\x00\xff\xff" + whole[place + 4 :])
    assert images.read_size(path) == (40, 30)
    assert images.decode(path.read_bytes(), "a.jpg", 3).size == (30, 40)


def test_large_images_are_read_without_a_warning(monkeypatch):
    content = encoded(Image.new("L", (30, 20)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # Pillow warns above it, and raises above twice of it
    assert images.decode(content, "large", 1).size == (30, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(
        InputError, match=r"large: cannot be read as an image \(Image size \(600 pixels\) exceeds limit"
    ):
        images.decode(content, "large", 1)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, form, orientation):
    """As EXIF's orientation says; the size from the header agrees."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    path = tmp_path / f"turned.{form.lower()}"
    path.write_bytes(encoded(Image.fromarray(pixels), form, exif=exif))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    read = np.asarray(images.decode(path.read_bytes(), "turned", 3))
    np.testing.assert_array_equal(read, expected)
    assert images.read_size(path) == read.shape[:2] == ((24, 16) if orientation > 4 else (16, 24))
    bright = (read.mean(-1) > 128).nonzero()  # where the white corner of the stored image is shown
    corner = (bright[0].mean() > read.shape[0] / 2, bright[1].mean() > read.shape[1] / 2)  # (lower, right)
    assert (
        corner == {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    )
