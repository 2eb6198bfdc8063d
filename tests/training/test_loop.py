"""The loop: stopping, resuming, choosing, failing. On the digits and toys, with tiny networks."""

import dataclasses
import json
import shutil
import signal
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event

import helpers
from deepjax import inference
from deepjax.config import Augment, Config, Data, Devices, Optimizer, Schedule
from deepjax.errors import InputError, Stopped, TrainingFailed
from deepjax.runs import workdir
from deepjax.runs.checkpoint import Checkpoints
from deepjax.training import loop

DIGITS = Config(
    data=Data(augment=Augment(translate=1.0, flip=True)),
    model="mlp",
    model_options={"depth": 2, "width": 16, "norm": "batch"},
    optimizer=Optimizer(name="momentum", learning_rate=0.05, weight_decay=1e-4),
    schedule=Schedule(name="cosine", warmup=0.5),
    devices=Devices(count=1),
    epochs=2,
    batch_size=128,
    ema=0.9,
    log_every=1,
    checkpoint_every=4,
)
SPIRALS = Config(
    data=Data(name="spirals"),
    model="mlp",
    model_options={"depth": 2, "width": 8},
    optimizer=Optimizer(name="adam", learning_rate=0.01),
    devices=Devices(count=1),
    epochs=3,
    batch_size=100,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of DIGITS that was never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    helpers.train(DIGITS, folder, draw=True)
    return folder


def read_events(path):
    """TFRecords: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    data = path.read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_what_a_run_leaves(whole):
    config = json.loads((whole / "config.json").read_text())
    assert config["config"]["optimizer"]["learning_rate"] == 0.05
    assert config["versions"]["jax"] == jax.__version__
    assert config["seed"] == 0
    assert config["device_kind"] == "cpu"
    records = helpers.records(whole)
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 23))
    assert [r["epoch"] for r in records if r["kind"] == "validation"] == [1, 2]
    assert set(json.loads((whole / "summary.json").read_text())) == {
        "result", "test_error", "test_loss", "train_error", "train_loss", "steps", "epochs", "seconds",
        "compile_seconds", "examples_per_second", "parameters", "best_epoch",
    }  # fmt: skip
    for picture in ("curves.png", "confusion.png", "worst.png"):
        assert (whole / picture).read_bytes().startswith(b"\x89PNG")
    (events,) = (whole / "tensorboard").glob("events.out.tfevents.*")
    scalars = [
        (event.step, value.tag, value.simple_value) for event in read_events(events) for value in event.summary.value
    ]
    written = [
        (record["step"], f"{record['kind']}/{name}", np.float32(value))
        for record in records
        for name, value in record.items()
        if name not in ("kind", "step", "epoch")
    ]
    assert [scalar for scalar in scalars if not scalar[1].endswith("seconds")] == written


def test_a_finished_run_reports_its_result_and_stays(whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    lines = []
    summary = helpers.train(DIGITS, whole, log=lines.append)
    assert lines == [f"{whole}: finished, {summary['result']}"]
    assert f"test error {100 * summary['test_error']:.2f} %" in lines[0]
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert helpers.train(DIGITS, whole) == summary
    assert capsys.readouterr() == ("", "")  # without log, nothing is printed


def test_another_config_is_refused_with_both_values(whole):
    with pytest.raises(InputError, match=r"epochs 2 there, 3 here.*--workdir"):
        helpers.train(DIGITS, whole, epochs=3)


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds no deepjax run"):
        helpers.train(DIGITS, tmp_path)


def test_evaluation_of_the_run_gives_the_summarys_numbers(whole):
    run = inference.load_run(whole)
    result = inference.evaluate_run(run)
    summary = json.loads((whole / "summary.json").read_text())
    assert result.error == summary["test_error"]
    np.testing.assert_allclose(result.loss, summary["test_loss"], rtol=1e-6)
    counts = result.confusion(10)
    assert counts.sum() == 300
    np.testing.assert_allclose(1 - np.trace(counts) / 300, result.error)
    assert result.top5_error <= result.error


def damage(folder, step):
    """Cut the largest file of a checkpoint in half."""
    files = [path for path in (folder / "checkpoints" / str(step)).rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)


def test_a_truncated_checkpoint_is_passed_over_and_named(tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "summary.json").unlink()
    damage(folder, 22)
    lines = []
    helpers.train(DIGITS, folder, log=lines.append)
    assert any(line.startswith("warning: ") and "checkpoints/22 is damaged" in line for line in lines)
    assert "continuing at step 20 of 22" in lines
    assert (folder / "damaged" / "22").exists()
    chex.assert_trees_all_equal(helpers.newest_state(folder), helpers.newest_state(whole))


def test_no_whole_checkpoint_is_an_error_and_nothing_is_lost(tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "summary.json").unlink()
    for path in (folder / "checkpoints").iterdir():
        damage(folder, path.name)
    before = helpers.records(folder)
    with pytest.raises(InputError, match="no checkpoint in .* is complete"):
        helpers.train(DIGITS, folder, log=lambda line: None)
    assert helpers.records(folder) == before
    with pytest.raises(InputError, match="no checkpoint in .* is complete"):
        inference.load_run(folder, warn=lambda text: None)


def test_any_damaged_file_of_a_checkpoint_is_noticed_or_does_not_matter(tmp_path, whole):
    folder = shutil.copytree(whole, tmp_path / "run")
    for path in sorted(path for path in (folder / "checkpoints" / "22").rglob("*") if path.is_file()):
        content = path.read_bytes()
        for size in {0, len(content) // 2}:
            path.write_bytes(content[:size])
            said = []
            run = inference.load_run(folder, warn=said.append)
            if path.name == "sha256.json" or len(content) == size:
                assert not said
            else:
                assert any("22 is damaged" in text for text in said), path
                assert run.step < 22
        path.write_bytes(content)
    chex.assert_trees_all_equal(helpers.newest_state(folder), helpers.newest_state(whole))


def write_npz(path, count, classes=3):
    rng = np.random.default_rng(0)
    x, y = rng.random((count, 4)).astype(np.float32), np.arange(count) % classes
    np.savez(path, x_train=x, y_train=y, x_test=x[:50], y_test=y[:50])


def test_data_that_changed_since_are_refused_and_nothing_is_lost(tmp_path, monkeypatch):
    write_npz(tmp_path / "set.npz", 1000)
    config = dataclasses.replace(SPIRALS, data=Data(name=str(tmp_path / "set.npz")))
    with monkeypatch.context() as patch:
        helpers.stop_after(patch, 12)
        with pytest.raises(Stopped):
            helpers.train(config, tmp_path / "run")
    before = (tmp_path / "run" / "data.json").read_text()
    for count, classes in ((1100, 3), (1000, 5)):
        write_npz(tmp_path / "set.npz", count, classes)
        with pytest.raises(InputError, match="has changed since"):
            helpers.train(config, tmp_path / "run")
        assert (tmp_path / "run" / "data.json").read_text() == before


def test_one_workdir_has_one_process(tmp_path):
    with workdir.locked(tmp_path / "run"), pytest.raises(InputError, match="in use by another process"):
        helpers.train(SPIRALS, tmp_path / "run")
    helpers.train(SPIRALS, tmp_path / "run", epochs=1)


@pytest.mark.parametrize("text", ['{"model_type": "bert"}', "[1]", "{"])
def test_a_config_json_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        helpers.train(SPIRALS, tmp_path)
    with pytest.raises(InputError, match=r"config\.json"):
        inference.load_run(tmp_path)


def test_pmap_does_not_go_on_with_other_devices(tmp_path, monkeypatch):
    config = dataclasses.replace(SPIRALS, devices=Devices("pmap", count=2))
    helpers.stop_after(monkeypatch, 3)
    with pytest.raises(Stopped):
        helpers.train(config, tmp_path / "run")
    monkeypatch.undo()
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(record | {"device_count": 4}))
    with pytest.raises(InputError, match="was run on 4 devices, now there are 2"):
        helpers.train(config, tmp_path / "run")


@pytest.mark.parametrize("best", ["loss", "error"])
def test_the_best_and_the_newest_checkpoints_are_kept(tmp_path, best):
    folder = tmp_path / "run"
    summary = helpers.train(SPIRALS, folder, epochs=6, keep=1, best=best)
    found = min(helpers.records(folder, "validation"), key=lambda row: (row[best], row["loss"]))["epoch"]
    assert summary["best_epoch"] == found
    manager = Checkpoints(folder / "checkpoints", 1)
    steps_per_epoch = summary["steps"] // 6
    assert manager.steps == sorted({found * steps_per_epoch, summary["steps"]})
    manager.close()


@pytest.mark.parametrize(("best", "epochs", "stale"), [("loss", [1, 2, 2, 2, 5], 3), ("error", [1, 2, 3, 3, 3], 2)])
def test_the_best_epoch_and_the_patience_follow_one_rule(best, epochs, stale):
    progress, found = loop.Progress(), []
    trainer = SimpleNamespace(progress=progress, config=Config(best=best), done=0)
    for error, loss in [(0.5, 2.0), (0.4, 1.0), (0.3, 1.5), (0.3, 1.6), (0.4, 1.0)]:
        progress.epochs += 1
        loop.Trainer._compare(trainer, SimpleNamespace(metrics={"error": error, "loss": loss}))
        found.append(progress.best["epoch"])
    assert (found, progress.stale) == (epochs, stale)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_rate_and_checkpoint(tmp_path):
    folder = tmp_path / "run"
    config = dataclasses.replace(
        SPIRALS,
        optimizer=Optimizer(name="sgd", learning_rate=1e25),
        schedule=Schedule(name="constant", warmup=0.0),
        checkpoint_every=1,
    )
    with pytest.raises(TrainingFailed, match=r"at step \d+ .*learning rate 1e\+25.*(checkpoint)") as error:
        helpers.train(config, folder)
    step = int(str(error.value).split()[2])
    kept = [int(path.name) for path in (folder / "checkpoints").iterdir()]
    assert max(kept, default=0) < step
    assert max((r["step"] for r in helpers.records(folder)), default=0) < step
    assert not (folder / "summary.json").exists()


def test_early_stopping_stops_after_patience_epochs_without_improvement(tmp_path):
    config = dataclasses.replace(SPIRALS, optimizer=Optimizer(name="sgd", learning_rate=1e-30))
    summary = helpers.train(config, tmp_path / "run", epochs=50, patience=3)
    assert summary["epochs"] == 4
    assert summary["best_epoch"] == 4  # all are equal, and of equals the newest counts


def test_without_validation_the_newest_state_is_tested(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"{axis}_{split}": rng.random((100, 4)).astype(np.float32) for axis in "x" for split in ("train", "test")}
    arrays |= {f"y_{split}": np.arange(100) % 3 for split in ("train", "test")}
    np.savez(tmp_path / "set.npz", **arrays)
    data = Data(name=str(tmp_path / "set.npz"), validation=0.0)
    with pytest.raises(InputError, match=r"best error needs a validation set; give data\.validation"):
        helpers.train(dataclasses.replace(SPIRALS, data=data, best="error"), tmp_path / "run")
    summary = helpers.train(dataclasses.replace(SPIRALS, data=data), tmp_path / "run")
    assert summary["best_epoch"] == 3
    assert not [r for r in helpers.records(tmp_path / "run") if r["kind"] == "validation"]


def test_images_on_the_device_and_from_the_host_train_alike(tmp_path, whole):
    helpers.train(DIGITS, tmp_path, data=dataclasses.replace(DIGITS.data, placement="host"), checkpoint_every=0)
    chex.assert_trees_all_close(helpers.newest_state(tmp_path), helpers.newest_state(whole), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("strategy", "count"), [("jit", 8), ("pmap", 2)])
def test_several_devices_train_the_digits(tmp_path, strategy, count):
    changes = {"model_options": {"depth": 2, "width": 16}, "ema": 0.0, "checkpoint_every": 0}
    devices = Devices(strategy, count)
    summary = helpers.train(DIGITS, tmp_path, devices=devices, batch_size=64, epochs=1, **changes)
    assert summary["steps"] == 21
    losses = [r["loss"] for r in helpers.records(tmp_path, "train")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3


def test_accumulation_in_half_precision(tmp_path):
    optimizer = dataclasses.replace(DIGITS.optimizer, accumulate=4, clip_norm=1.0)
    changes = {"dtype": "bfloat16", "batch_size": 32, "label_smoothing": 0.1, "checkpoint_every": 0}
    summary = helpers.train(DIGITS, tmp_path, optimizer=optimizer, **changes)
    assert np.isfinite(summary["test_loss"])
    losses = [r["loss"] for r in helpers.records(tmp_path, "train_epoch")]
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": -1}, "epochs -1"),
        ({"batch_size": 5000}, "batch_size 5000 is larger than the training set of 1297"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"keep": 0}, "keep 0"),
        ({"ema": 1.5}, "ema 1.5"),
        ({"model": "cifar_resnt"}, "did you mean 'cifar_resnet'"),
        ({"model_options": {"dpth": 8}}, "did you mean 'depth'"),
        ({"model_options": {"num_classes": 7}}, "num_classes is not an option"),
        ({"model_options": {"dtype": "float16"}}, "model_options.dtype .float16. is not an option; set --dtype"),
        ({"data": Data(name="digit")}, "did you mean 'digits'"),
        ({"data": Data(mean=(0.5,))}, "each have 1 values"),
        (
            {"data": Data(name="xor"), "model": "cifar_resnet", "model_options": {}},
            r"images must be \[batch, height, width, channels\]",
        ),
        ({"optimizer": Optimizer(learning_rate=-1.0)}, "learning_rate -1.0"),
        ({"schedule": Schedule(name="step", milestones=(3.0, 2.0))}, "increasing"),
        ({"devices": Devices(count=3)}, "batch_size 128 cannot be split over 3 devices"),
        ({"devices": Devices(count=9)}, "devices.count 9"),
    ],
)
def test_bad_input_names_itself_and_leaves_nothing(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        helpers.train(DIGITS, tmp_path / "run", **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_figure_that_fails_does_not_cost_the_result(tmp_path, monkeypatch):
    """Of a training or of the range test: everything is recorded before anything is drawn."""
    from deepjax import training
    from deepjax.runs import plots

    written = []

    def fail(figure, path):
        written.append((path.parent / ("find_lr.json" if "lr" in path.name else "summary.json")).exists())
        raise ValueError("ParseException: $$")

    monkeypatch.setattr(plots, "save", fail)
    config, lines = dataclasses.replace(SPIRALS, epochs=1, workdir=str(tmp_path / "run")), []
    summary = training.train(config, log=lines.append)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    training.range_test(dataclasses.replace(config, workdir=str(tmp_path / "test")), steps=10, log=lines.append)
    warned = [line for line in lines if line.startswith("warning: ")]
    assert [line.partition(": ")[2].split()[1] for line in warned] == ["curves.png", "confusion.png", "find_lr.png"]
    assert written == [True] * 3


def test_a_signal_in_the_last_epoch_stops_before_the_test_which_the_same_call_makes_up(tmp_path, monkeypatch, whole):
    save = loop.Trainer._save

    def signalled(trainer):
        save(trainer)
        if trainer.done == 22:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.Trainer, "_save", signalled)
    with pytest.raises(Stopped, match="at step 22 of 22, saved"):
        helpers.train(DIGITS, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "summary.json").exists()
    expected = json.loads((whole / "summary.json").read_text())
    assert helpers.train(DIGITS, tmp_path)["test_loss"] == expected["test_loss"]


def test_edited_records_that_describe_another_network_are_refused(tmp_path, whole):
    folder = shutil.copytree(whole, tmp_path / "run")
    for name, edit in (
        ("config.json", lambda record: record["config"]["model_options"].update(depth=3)),
        ("config.json", lambda record: record["config"]["model_options"].pop("norm")),
        ("config.json", lambda record: record["config"]["model_options"].update(width=8)),
        ("data.json", lambda record: record["classes"].pop()),
        ("data.json", lambda record: record.update(shape=[9, 8, 1])),
    ):
        content = (folder / name).read_bytes()
        record = json.loads(content)
        edit(record)
        (folder / name).write_text(json.dumps(record))
        with pytest.raises(InputError, match=r"weights in .* are not of the network of its config"):
            inference.load_run(folder)
        (folder / name).write_bytes(content)
    inference.load_run(folder)
