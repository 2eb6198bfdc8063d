"""Another task: in the pure step, and, after one line in TASKS, in a whole run, its evaluation and its predictions."""

import json
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import helpers
import reconstruction
from deepjax import cli, inference, tasks
from deepjax.config import Config, Devices, Optimizer
from deepjax.errors import InputError
from deepjax.runs import metrics, plots
from deepjax.tasks import Classification
from deepjax.training import init_state, train_step

KEY = jax.random.key(0)
CONFIG = Config(
    task="reconstruction", optimizer=Optimizer("adam", learning_rate=0.03), devices=Devices(count=1), epochs=2,
    batch_size=16, log_every=1,
)  # fmt: skip


class Bottleneck(nn.Module):
    @nn.compact
    def __call__(self, x):
        flat = nn.Dense(4, name="in")(x.reshape(len(x), -1))
        return nn.Dense(x[0].size, name="out")(flat).reshape(x.shape)


def arrays():
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(60) % 2
    return {"x_train": images[:40], "y_train": labels[:40], "x_test": images[40:], "y_test": labels[40:]}


def outputs(run, x):
    return np.asarray(jax.jit(Bottleneck().apply)({"params": run.variables["params"]}, x))


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "reconstruction", reconstruction)


def test_the_step_trains_another_task():
    rng = np.random.default_rng(0)
    signal = (rng.normal(size=(16, 2)) @ rng.normal(size=(2, 6))).astype(np.float32)
    batch = {"image": signal, "mask": np.arange(16) < 13}
    model, optimizer = nn.Sequential([nn.Dense(2), nn.Dense(6)]), optax.adam(0.03)
    state = init_state(model, optimizer, KEY, (6,))
    squares = np.square(jax.jit(model.apply)({"params": state.params}, signal) - signal)[:13]
    task = reconstruction.Reconstruction()
    options = {"model": model, "task": task, "optimizer": optimizer, "schedule": lambda count: 0.03}
    step, first = jax.jit(partial(train_step, **options)), None
    for _ in range(100):
        state, found = step(state, batch, KEY)
        first = first or found
    np.testing.assert_allclose(first["loss"], squares.mean(), rtol=1e-5)
    np.testing.assert_allclose(first["largest"], squares.max(-1).mean(), rtol=1e-5)
    assert float(found["loss"]) < 0.1 * float(first["loss"])
    assert set(found) == {"loss", "largest", "count", "grad_norm", "learning_rate"}
    assert float(found["count"]) == 13 * 6


def test_one_line_in_the_table_trains_evaluates_and_predicts_another_task(registered, tmp_path, monkeypatch, capsys):
    folder, given, lines = tmp_path / "run", arrays(), []
    summary = helpers.train(CONFIG, folder, module=Bottleneck(), arrays=given, log=lines.append)
    run = inference.load_run(folder, model=Bottleneck())
    x = np.asarray(run.standardizer.apply(given["x_test"]))
    squares = np.square(outputs(run, x) - x).reshape(20, -1)
    expected = {"loss": squares.mean(), "largest": squares.max(-1).mean()}
    assert {name: summary[f"test_{name}"] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert inference.evaluate_run(run, data=given).metrics == pytest.approx(expected, rel=1e-5)
    assert f"test loss {expected['loss']:.4f}, largest" in lines[-1]
    two = run._replace(members=run.members * 2, steps=run.steps * 2)
    assert inference.evaluate_run(two, data=given).loss == pytest.approx(expected["loss"], rel=1e-5)

    assert (folder / "curves.png").exists()
    axes = plots.curves(metrics.read(folder), run.task.curves).axes
    assert [one.get_ylabel() for one in axes] == ["mean squared difference", "largest"]
    assert [len(one.lines) for one in axes] == [3, 2]
    recorded = [line["largest"] for line in helpers.records(folder, "validation")]
    np.testing.assert_array_equal(axes[1].lines[1].get_ydata(), recorded)

    helpers.write_images(tmp_path / "images", {"a": 2}, size=(4, 4))
    (tmp_path / "images/a/broken.png").write_bytes(b"no image")
    first, _, broken = inference.predict(run, [tmp_path / "images/a"])
    one = run.standardizer.apply(run.read(tmp_path / "images/a/000.png"))
    assert first.brightness == pytest.approx(outputs(run, one).mean(), rel=1e-4)
    assert "broken.png" in broken.problem

    evaluate, predict = inference.evaluate_runs, inference.load_run
    monkeypatch.setattr(inference, "load_run", partial(predict, model=Bottleneck()))
    monkeypatch.setattr(inference, "load_source", lambda *_, **__: run)
    monkeypatch.setattr(inference, "evaluate_runs", partial(evaluate, data=given))
    assert cli.main(["eval", str(folder)]) == 0
    assert f"test loss {expected['loss']:.4f}, largest {expected['largest']:.4f}, checkpoint" in capsys.readouterr().out
    assert cli.main(["eval", str(folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == {"split", "step", "loss", "largest"}
    assert cli.main(["predict", str(folder), first.path]) == 0
    assert f"{first.brightness:.3f}" in capsys.readouterr().out


def test_a_network_of_the_zoo_gets_the_outputs_of_its_task(registered, tmp_path):
    points = {name: x.reshape(len(x), -1) / 255 if name[0] == "x" else x for name, x in arrays().items()}
    helpers.train(CONFIG, tmp_path, arrays=points, model="mlp", model_options={"depth": 2, "width": 4}, epochs=1)
    run = inference.load_run(tmp_path)
    assert run.model.num_classes == 16
    assert inference.evaluate_run(run, data=points).loss > 0


def test_the_task_is_checked_and_belongs_to_the_run(registered, tmp_path):
    with pytest.raises(InputError, match="task 'clasification' is unknown; did you mean 'classification'"):
        helpers.train(CONFIG, tmp_path / "run", task="clasification")
    with pytest.raises(InputError, match="label_smoothing 0.1 has no effect on task reconstruction"):
        helpers.train(CONFIG, tmp_path / "run", module=Bottleneck(), arrays=arrays(), label_smoothing=0.1)
    with pytest.raises(InputError, match="best error: task reconstruction has no error; set best loss"):
        helpers.train(CONFIG, tmp_path / "run", module=Bottleneck(), arrays=arrays(), best="error")
    assert not (tmp_path / "run").exists()
    helpers.train(CONFIG, tmp_path / "run", module=Bottleneck(), arrays=arrays(), epochs=1)
    with pytest.raises(InputError, match="task 'reconstruction' there, 'classification' here"):
        helpers.train(CONFIG, tmp_path / "run", module=Bottleneck(), arrays=arrays(), task="classification")


def test_curves_of_classification_are_drawn_before_the_first_epoch():
    axes = plots.curves([{"kind": "train", "step": 1, "epoch": 0.5, "loss": 1.0, "error": 0.5}], Classification.curves)
    assert [(a.get_ylabel(), a.get_yscale(), len(a.lines)) for a in axes.axes] == [
        ("cross entropy (nats)", "log", 1), ("error (%)", "linear", 0),
    ]  # fmt: skip
