"""The programs of `deepjax bench input`: batches as a training step gets them, augmented and standardized."""

import itertools

import jax
import numpy as np

from deepjax import config, data
from deepjax.benchmarks.cells import PHASES
from deepjax.tasks.inputs import fit_statistics, input_functions

AUGMENTS = {  # fields of `config.Augment`
    "none": {},
    "flip-crop": {"flip": True, "crop": 4},
    "move": {"flip": True, "rotate": 15.0, "scale": 0.1, "translate": 2.0},
    "color": {"flip": True, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
    "randaugment": {"flip": True, "randaugment": 2},
    "area": {"flip": True, "area": (0.08, 1.0)},
}
ONLY = {"area": ("jpeg",), "color": ("jpeg",)}  # augmentation: the sources that it is for
SIDE = 224  # pixels of the images of the source "jpeg"


def job(source, folder, augment, workers, batch):
    """Return the worker's job. `folder`: that of the images of source "jpeg"."""
    found = {"kind": "input", "source": source, "folder": str(folder), "augment": augment, "workers": workers}
    return {**found, "batch": batch, "phases": (PHASES[0], PHASES[-1]), "watch": False}


def load(job):
    """Return the program of a job."""
    return Input(job)


class Input:
    """Batches of one epoch after the other. A step reads one, and augments and standardizes it inside jit."""

    def __init__(self, job):
        jpeg = job["source"] == "jpeg"
        fields = {"augment": config.Augment(**AUGMENTS[job["augment"]]), "workers": job["workers"]}
        if jpeg:
            fields |= {"name": "folder", "image_size": SIDE, "mean": (0.5,) * 3, "std": (0.25,) * 3}
        wanted = config.Data(**fields)
        folder = job["folder"] if jpeg else ""
        dataset = data.load(wanted, folder, 0)
        settings = config.Config(data=wanted, data_dir=folder, batch_size=job["batch"])
        _, augmented = input_functions(settings, fit_statistics(settings, dataset))
        self.loader = data.make_loader(dataset.train, wanted, job["batch"], 0, train=True)
        self.program = jax.jit(lambda images, rows, key: augmented(key, self.loader.fetch(images, rows)["image"]))
        self.count, self.batches = 0, self._batches()

    def _batches(self):
        for epoch in itertools.count():
            yield from self.loader.epoch(epoch)

    def prepare(self):
        """Compile, and yield the record of the phase "compile"."""
        self.step()
        yield {"phase": "compile", "platform": jax.default_backend()}

    def step(self):
        """Prepare one batch, wait for it, and return its first value."""
        self.count += 1
        key = jax.random.fold_in(jax.random.key(0), self.count)
        x = jax.block_until_ready(self.program(self.loader.data, next(self.batches), key))
        return float(np.asarray(x[(0,) * x.ndim]))


def write_images(folder, count, size=(300, 400)):
    """Write `count` JPEG files of smooth random colors, in two classes: folder/a/*.jpg, folder/b/*.jpg."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(256, size=(12, 16, 3), dtype=np.uint8))
        coarse.resize(size[::-1], Image.Resampling.BICUBIC).save(place / f"{number:04}.jpg", quality=90)
