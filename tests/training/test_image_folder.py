"""ImageNet's config on a small folder of images, in a separate process: training to the end, and predictions."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from deepjax import cli


def make_images(folder, count, seed):
    """Three classes of noise around different colors, in different sizes."""
    rng = np.random.default_rng(seed)
    for label, color in (("red", 0), ("green", 1), ("blue", 2)):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 120, (*rng.integers(40, 90, 2), 3), dtype=np.uint8)
            pixels[..., color] += 120
            Image.fromarray(pixels).save(folder / label / f"{i}.{'jpg' if i % 2 else 'png'}")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_imagenets_settings_learn_a_small_folder(tmp_path, workers, capfd):
    make_images(tmp_path / "set" / "train", 20, 0)
    make_images(tmp_path / "set" / "val", 6, 1)
    command = f"""train imagenet_resnet50 --data.name {tmp_path / "set"} --data.validation 0.2 --data.image-size 32
        --data.workers {workers} --model-options width=8 --batch-size 8 --epochs 8 --schedule.warmup 0 --log-every 1
        --optimizer.learning-rate 0.01 --workdir {tmp_path / "run"}"""
    done = subprocess.run([sys.executable, "-m", "deepjax", *command.split()], cwd=tmp_path, text=True)
    assert done.returncode == 0
    out, err = capfd.readouterr()
    # Grain's worker processes may leave shared memory to Python's resource tracker, which warns at exit.
    assert [line for line in err.splitlines() if "resource_tracker" not in line] == []
    assert "48 training, 12 validation, 18 test examples of 32x32x3, 3 classes" in out
    code = cli.main(["predict", str(tmp_path / "run"), str(tmp_path / "set" / "val" / "red")])
    assert code == 0
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    errors = [record["error"] for record in records if record["kind"] == "train_epoch"]
    assert errors[-1] < 0.5  # chance is 0.67
