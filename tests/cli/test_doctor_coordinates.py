"""`deepjax doctor --widths --depths`: the tables, the figure, the exit code."""

import pytest

from deepjax.cli.doctor_coordinates import read_sizes, show_coordinates
from deepjax.config import Config, Data, Devices, Optimizer
from deepjax.errors import InputError

SPIRALS = Config(
    data=Data(name="spirals"),
    model="mlp",
    model_options={"depth": 3, "width": 8},
    optimizer=Optimizer(name="adam", learning_rate=1e-3),
    devices=Devices(count=1),
    batch_size=100,
    epochs=3,
)


def test_tables_verdicts_and_figure(tmp_path, capsys):
    path = tmp_path / "new" / "scales.svg"
    code = show_coordinates(SPIRALS, widths=(16, 256), steps=2, seeds=1, plot=path)
    out = capsys.readouterr().out
    assert code == 1
    for text in ("|a| 256", "|change| 16", "hidden/unit/dense", "not stable in width", f"see {path}"):
        assert text in out
    assert "</svg>" in path.read_text(encoding="utf-8")


def test_options_that_cannot_work(tmp_path):
    assert read_sizes("--widths", "32, 64,128") == (32, 64, 128)
    assert read_sizes("--widths", "") == ()
    with pytest.raises(InputError, match="--widths '32,x' must be numbers"):
        read_sizes("--widths", "32,x")
    with pytest.raises(InputError, match="needs --widths or --depths"):
        show_coordinates(SPIRALS)
    with pytest.raises(InputError, match=r"plot a.bmp must be a .png or .svg file"):
        show_coordinates(SPIRALS, widths=(1, 2), plot="a.bmp")
