"""A small folder of photographs for trying a command: tiles of two pictures that come with scikit-learn."""

from pathlib import Path

from deepjax.errors import InputError

SIDE = 71  # of a tile, in pixels: 6 x 9 tiles of a picture


def write_sample(folder: Path) -> int:
    """Write flower/*.jpg and temple/*.jpg, 54 tiles each, which do not overlap. Return the number of files.

    Raise InputError if the folder exists and is not empty.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"folder {folder} exists and is not empty; choose another")
    count = 0
    for name, picture in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        height, width, _ = picture.shape
        for top in range(0, height - SIDE + 1, SIDE):
            for left in range(0, width - SIDE + 1, SIDE):
                tile = Image.fromarray(picture[top : top + SIDE, left : left + SIDE])
                tile.save(folder / name / f"{name}_{top:03}_{left:03}.jpg", quality=90)
                count += 1
    return count
