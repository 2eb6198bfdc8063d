"""Regression: losses and scores against scikit-learn and NumPy, whole runs, resuming, a module and arrays of a user."""

import csv
import dataclasses
import json

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from sklearn import metrics as reference

import helpers
from deepjax import cli, data, inference
from deepjax.config import Augment, Config, Data, Devices, Optimizer
from deepjax.errors import InputError, Stopped
from deepjax.inference.export import stablehlo
from deepjax.plan import plan
from deepjax.runs import workdir
from deepjax.tasks.regression import PredictedNumber, Regression
from deepjax.tasks.scores import r2_score
from deepjax.training import find_lr

LINEAR = Config(
    task="regression",
    model="mlp",
    model_options={"depth": 1},
    optimizer=Optimizer("adam", learning_rate=0.03),
    devices=Devices(count=1),
    epochs=12,
    batch_size=25,
    log_every=1,
)
SLOPES = np.array([30.0, -20.0, 5.0])


def table(count=260, seed=0):
    """Features, and a linear function of them with a little noise, of mean about 1,000."""
    rng = np.random.default_rng(seed)
    x = rng.normal([1, 2, 3], [1, 2, 0.5], size=(count, 3))
    return x, x @ SLOPES + 1000 + rng.normal(scale=0.5, size=count)


def arrays():
    x, y = table()
    return {"x_train": x[:200], "y_train": y[:200], "x_test": x[200:], "y_test": y[200:]}


def write(path, x, y, names=("a", "b", "c"), target="price"):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([(*names, target), *np.column_stack([x, y]).tolist()])
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a CSV file, in the folder of the file."""
    folder = tmp_path_factory.mktemp("table")
    name = str(write(folder / "houses.csv", *table()))
    config = dataclasses.replace(LINEAR, data=Data(name=name, standardize="z_score"))
    helpers.train(config, folder / "run", draw=True)
    return folder / "run"


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    targets = rng.normal(500, 20, 100).astype(np.float32)
    found = targets + rng.normal(size=100).astype(np.float32) * 9
    task = Regression(510.0, 25.0)
    evaluation = task.evaluate({"target": targets, "prediction": found})
    mse = reference.mean_squared_error(targets.astype(float), found.astype(float))
    assert evaluation.metrics == pytest.approx(
        {
            "loss": mse / 25**2,
            "r2": reference.r2_score(targets, found),
            "mae": reference.mean_absolute_error(targets, found),
            "rmse": mse**0.5,
        },
        rel=1e-5,
    )
    for targets, found in (([3.0, 3.0], [3.0, 3.0]), ([3.0, 3.0], [3.0, 4.0])):
        assert r2_score(np.array(targets), np.array(found)) == reference.r2_score(targets, found)


def test_training_measures_the_chosen_loss_of_standardized_targets():
    rng = np.random.default_rng(0)
    targets, outputs = rng.normal(100, 30, 12), rng.normal(scale=2, size=(12, 1))
    mask = np.arange(12) < 9
    batch = {"image": np.zeros((12, 2), np.float32), "label": targets.astype(np.float32), "mask": mask}

    def found(outputs):
        tasks = {loss: Regression(90.0, 40.0, loss=loss) for loss in ("mse", "mae", "huber")}
        return {loss: task.measure(outputs, task.prepare(batch)[1], mask) for loss, task in tasks.items()}

    errors = (outputs[:, 0] - (targets - 90) / 40)[:9]
    far = np.abs(errors) > 1
    expected = {"mse": errors**2, "mae": abs(errors), "huber": np.where(far, abs(errors) - 0.5, errors**2 / 2)}
    assert 0 < far.sum() < 9
    sums = jax.device_get(jax.jit(found)(outputs.astype(np.float32)))
    for loss, values in expected.items():
        wanted = {"loss": values.sum(), "r2": (1 - errors**2).sum(), "mae": 40 * abs(errors).sum(), "count": 9}
        chex.assert_trees_all_close(sums[loss], wanted, rtol=1e-5)


def test_a_linear_table_is_learned_and_predicted_in_its_own_units(run, capsys):
    x, y = table()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test_r2"] > 0.999
    assert {"test_mae", "test_rmse", "test_loss", "train_r2", "train_mae"} <= summary.keys()
    for picture in ("curves.png", "predictions.png", "residuals.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
    loaded = inference.load_run(run)
    kernel = np.asarray(loaded.variables["params"]["head"]["kernel"])[:, 0]
    slopes = kernel * loaded.target[1] / np.asarray(loaded.standardizer.scale)
    np.testing.assert_allclose(slopes, SLOPES, atol=0.5)
    found = inference.predict(loaded, [run.parent / "houses.csv"])
    assert found[3].path.endswith("houses.csv:5")
    assert reference.r2_score(y, [each.value for each in found]) > 0.999

    moved = write(run.parent / "moved.csv", np.column_stack([x[:3, ::-1], y[:3]]), y[:3], ("c", "b", "a", "id"), "z")
    assert cli.main(["predict", str(run), str(moved), "--csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [float(row["price"]) for row in rows] == pytest.approx([each.value for each in found[:3]], rel=1e-6)
    assert cli.main(["predict", str(run), str(moved)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["row", "prediction"]
    for written, message in (
        ("a,b,d\n1,2,3\n", "no column 'c'"),
        ("a,b,c\n1,2,3\n\n1,,3\n", "row 4, column b is missing"),
        ("a,b,c\n1,2,3\n1,x,3\n", "row 3, column b is 'x', not a finite number"),
    ):
        moved.write_text(written)
        assert cli.main(["predict", str(run), str(moved)]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["predict", str(run), str(moved), "--top", "3"]) == 2
    assert "top 3: the run predicts a number" in capsys.readouterr().err


def test_eval_prints_a_table_and_averages_runs(run, tmp_path, capsys):
    assert cli.main(["eval", str(run), "--pictures", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert out.splitlines()[0].split() == ["run", "step", "loss", "r2", "mae", "rmse"]
    assert f"R2 {summary['test_r2']:.4f}" in out
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.png", "residuals.png"}
    config = inference.load_run(run).config
    helpers.train(dataclasses.replace(config, seed=1), tmp_path / "other", epochs=1)
    both = [inference.load_run(folder) for folder in (run, tmp_path / "other")]
    found = inference.evaluate_runs(both)
    mean = np.mean([each.predictions for each in found.alone], axis=0)
    np.testing.assert_allclose(found.together.predictions, mean, rtol=1e-6)
    assert cli.main(["eval", str(run), str(tmp_path / "other")]) == 0
    assert "predictions averaged" in capsys.readouterr().out
    moved = both[1]._replace(target=(both[1].target[0] + both[1].target[1], both[1].target[1]))
    with pytest.raises(InputError, match="standardization of examples or targets differs"):
        inference.evaluate_runs([both[0], moved], average="weights")


def test_an_exported_program_returns_the_predictions(run):
    loaded = inference.load_run(run)
    x, _ = table(5, seed=1)
    program = jax.export.deserialize(bytearray(stablehlo(loaded)))
    names = [each.value for each in inference.predict(loaded, [write(run.parent / "new.csv", x, x[:, 0])])]
    np.testing.assert_allclose(program.call(x.astype(np.float32)), names, rtol=1e-5)
    with pytest.raises(InputError, match="predicts numbers, a weights file holds a classifier; export as stablehlo"):
        inference.export(loaded, "safetensors", run.parent / "x.safetensors")


class Mine(nn.Module):
    outputs: int = 1

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(x)[:, 0] if self.outputs == 1 else nn.Dense(self.outputs)(x)


def test_a_module_and_arrays_of_a_user_resume_to_the_same_bits(tmp_path, monkeypatch):
    changes = {"module": Mine(), "model_options": {}, "arrays": arrays(), "loss": "huber", "epochs": 3, "ema": 0.5}
    changes["data"] = Data(augment=Augment(mixup=0.2))
    expected = helpers.train(LINEAR, tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        helpers.stop_after(patch, 10)
        with pytest.raises(Stopped):
            helpers.train(LINEAR, tmp_path / "resumed", **changes)
    summary = helpers.train(LINEAR, tmp_path / "resumed", **changes)
    chex.assert_trees_all_equal(helpers.newest_state(tmp_path / "resumed"), helpers.newest_state(tmp_path / "whole"))
    assert {k: v for k, v in summary.items() if "second" not in k} == {
        k: v for k, v in expected.items() if "second" not in k
    }
    assert helpers.records(tmp_path / "resumed") == helpers.records(tmp_path / "whole")
    shifted = arrays() | {"y_train": arrays()["y_train"] + 1}
    with pytest.raises(InputError, match="has changed since"):
        helpers.train(LINEAR, tmp_path / "whole", **changes | {"arrays": shifted, "epochs": 4})


def test_mixup_mixes_targets_as_it_mixes_inputs():
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    batch = {"image": x, "label": (x @ SLOPES + 7).astype(np.float32), "mask": np.ones(8, bool)}

    def mix(key, image, target, mask):
        return data.mix(key, image, target, mask, Augment(mixup=1.0), 0)

    mixed, targets = jax.jit(Regression(7.0, 2.0, mix=mix).prepare)(batch, jax.random.key(0))
    assert np.abs(mixed - x).max() > 0.1
    np.testing.assert_allclose(targets, mixed @ SLOPES / 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing 0.1 is for classes, task is regression; leave it out"),
        ({"data": Data(balance="loss")}, "data.balance loss: the targets are numbers, without classes; leave it out"),
        ({"teacher": "resnet18"}, "teacher resnet18 needs task classification, task is regression; leave it out"),
        ({"task": "classification"}, "task classification needs classes, arrays has numbers; set task regression"),
        ({"task": "classification", "loss": "mae"}, "loss mae is for task regression"),
        (
            {"module": Mine(2), "model_options": {}},
            r"outputs of shape \(1, 2\) for 1 examples; return one number",
        ),
        (
            {"arrays": arrays() | {"y_train": np.arange(200) % 9, "y_test": np.arange(60) % 9}},
            "has 9 classes; give",
        ),
        ({"arrays": arrays() | {"y_train": np.full(200, 3.0)}}, "all training targets of arrays are 3; add other ones"),
        ({"arrays": arrays() | {"y_train": np.full(200, np.nan)}}, "train has labels that are not finite"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        helpers.train(LINEAR, tmp_path / "run", **{"arrays": arrays()} | changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_plan_and_find_lr_know_the_task(tmp_path):
    config = dataclasses.replace(LINEAR, data=Data(name="diabetes"), workdir=str(tmp_path / "run"))
    found = plan(config, quick=True)
    assert (found.parameters, found.inputs.classes, found.inputs.examples) == (11, 0, 300)
    with helpers.empty_figures():
        record = find_lr.range_test(config, max_rate=1.0, steps=20)
    assert len(record["points"]) == 20


def test_diabetes_is_scikit_learns():
    from sklearn.datasets import load_diabetes

    found, whole = helpers.load_data("diabetes"), load_diabetes(scaled=False)
    splits = [found.train, found.validation, found.test]
    assert [len(split) for split in splits] == [300, 53, 89]
    rows = np.concatenate([np.column_stack([split.images, split.labels]) for split in splits])
    expected = np.column_stack([whole.data, whole.target]).astype(np.float32)
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    assert found.columns == (*whole.feature_names, "progression")
    assert isinstance(found.train, data.Arrays)


@pytest.mark.parametrize("name", ["error", "example"])
def test_a_target_may_have_the_name_of_another_column(name):
    found = PredictedNumber("rows.csv:2", name, 3.5)
    assert found.row == {"example": "rows.csv:2", f"predicted {name}": 3.5, "error": ""}
    assert found.record == {"example": "rows.csv:2", f"predicted {name}": 3.5}


@pytest.mark.parametrize(("order", "changed"), [([0, 1, 2], False), ([2, 1, 0], True)])
def test_columns_in_another_order_are_other_data(run, tmp_path, order, changed):
    x, y = table()
    path = write(tmp_path / "other.csv", x[:, order], y, names=tuple("abc"[i] for i in order))
    assert workdir.has_changed(run, data.load(Data(name=str(path)), "", 0)) == changed
