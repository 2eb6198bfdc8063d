"""What several test files share. `tests/` is on the import path (`pythonpath` in pyproject.toml)."""

from pathlib import Path

import pytest

from deepjax.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
REFERENCE = SHARED / "reference" / "torchvision_reference.py"
TFDS = SHARED / "tfds"


def load_data(name, data_dir="", seed=0, **fields):
    """`deepjax.data.load` with these fields of config.Data."""
    from deepjax import config, data

    return data.load(config.Data(str(name), **fields), str(data_dir), seed)


def loading_fails(match, name, data_dir="", **fields):
    """Loading raises InputError with one line that matches."""
    with pytest.raises(InputError, match=match) as caught:
        load_data(name, data_dir, **fields)
    assert "\n" not in str(caught.value)


def write_images(folder, counts, size=(20, 16), suffix=".png"):
    """Write images of one color each. counts: {class: number of images}; size: (width, height)."""
    from PIL import Image

    for k, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", size, (k * 40, number, 200)).save(folder / name / f"{number:03}{suffix}")
