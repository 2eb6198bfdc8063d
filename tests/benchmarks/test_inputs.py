"""`deepjax bench input`: what is read, what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from deepjax import cli
from deepjax.benchmarks import input_programs, inputs, worker
from deepjax.errors import InputError


@pytest.mark.parametrize(
    ("source", "augment"), [("digits", "flip-crop"), ("digits", "move"), ("jpeg", "area"), ("jpeg", "color")]
)
def test_every_step_prepares_another_batch(tmp_path, source, augment):
    input_programs.write_images(tmp_path, 16, (30, 40))
    program = worker.load(input_programs.job(source, tmp_path, augment, 0, 4))
    list(program.prepare())
    rows = next(program.batches)
    x = program.program(program.loader.data, rows, input_programs.jax.random.key(0))
    assert x.shape == (4, *((224, 224, 3) if source == "jpeg" else (8, 8, 1)))
    more = 2 * program.loader.steps  # also beyond the end of an epoch
    values = [program.step() for _ in range(more)]
    assert np.isfinite(values).all()


def test_the_folder_has_two_classes_of_images(tmp_path):
    input_programs.write_images(tmp_path, 5, (30, 40))
    assert sorted(path.parent.name for path in tmp_path.rglob("*.jpg")) == ["a", "a", "a", "b", "b"]
    with Image.open(tmp_path / "a" / "0000.jpg") as image:
        assert (image.size, image.mode) == ((40, 30), "RGB")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sources": ["digit"]}, "source 'digit' is unknown; did you mean 'digits'"),
        ({"sources": []}, "at least one"),
        ({"augments": ["flop"]}, "augmentation 'flop' is unknown"),
        ({"workers": []}, "at least one"),
        ({"batch": 0}, "batch 0"),
        ({"count": 0}, "rounds 0"),
        ({"images": 255}, "images 255 at least 256"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, named):
    with pytest.raises(InputError, match=named):
        inputs.run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_benchmark_runs_at_a_small_size(tmp_path, capsys):
    arguments = ["--augments", "none", "--workers", "0,1", "--batch", "4", "--images", "16", "--rounds", "1"]
    assert cli.main(["bench", "input", *arguments, "--out", str(tmp_path / "out")]) == 0
    cells = json.loads((tmp_path / "out" / "input.json").read_text())["cells"]
    assert [(cell["source"], cell["workers"]) for cell in cells] == [("digits", 0), ("jpeg", 0), ("jpeg", 1)]
    assert all(cell["stopped"] is None and cell["speed"]["median"] > 0 for cell in cells)
    assert "images / s" in capsys.readouterr().out
