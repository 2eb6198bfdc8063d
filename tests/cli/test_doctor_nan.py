"""`deepjax doctor --nan`: what is printed, and the exit code."""

import dataclasses

from deepjax.cli.doctor_nan import hunt_nan
from deepjax.config import Config, Data, Devices, Optimizer

SPIRALS = Config(
    data=Data(name="spirals"),
    model="mlp",
    model_options={"depth": 2, "width": 8},
    optimizer=Optimizer(name="sgd", learning_rate=0.01),
    devices=Devices(count=1),
    batch_size=100,
    epochs=3,
)


def test_a_run_that_stays_finite(tmp_path, capsys):
    assert hunt_nan(dataclasses.replace(SPIRALS, workdir=str(tmp_path / "run")), "run", 3) == 0
    assert "finite in all of the first 3 steps" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_run_that_diverges(tmp_path, capsys):
    optimizer = Optimizer(name="sgd", learning_rate=1e25)
    config = dataclasses.replace(SPIRALS, optimizer=optimizer, workdir=str(tmp_path / "run"))
    assert hunt_nan(config, "run") == 1
    out = capsys.readouterr().out
    for text in ("step ", "first value that is not finite", "from ", "entered", "before", "remedy", "too high"):
        assert text in out
