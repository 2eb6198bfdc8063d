"""The folder of a run: which configs may resume it, and what is recorded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from deepjax.config import Config, Data, Devices, Optimizer, Schedule
from deepjax.errors import InputError
from deepjax.optimizers import make_schedule
from deepjax.runs import metrics, workdir

BASE = Config(epochs=4, devices=Devices(count=1))
DEVICES = [SimpleNamespace(device_kind="cpu")]
PERIODIC = Schedule("warm_restarts", period=1)


def recorded(folder, config=BASE):
    """A folder with the record of a finished run."""
    folder.mkdir(parents=True)
    workdir.write_config(folder, config, "run", DEVICES)
    (folder / "summary.json").write_text('{"result": "test error 50 %", "test_error": 0.5}')
    return folder


def resume(folder, config):
    """What `train` does with a folder: the line that tells what changes."""
    assert workdir.find_workdir(replace(config, workdir=str(folder)), "run") == (folder, "")
    with workdir.locked(folder):
        workdir.write_config(folder, config, "run", DEVICES)
        return workdir.update_config(folder, config, DEVICES)


def test_the_same_config_resumes_and_a_finished_run_returns_its_summary(tmp_path):
    folder = recorded(tmp_path / "run")
    before = (folder / "config.json").read_bytes()
    assert resume(folder, BASE) == ""
    assert workdir.finished(folder, BASE) == {"result": "test error 50 %", "test_error": 0.5}
    assert (folder / "config.json").read_bytes() == before
    assert workdir.finished(tmp_path, BASE) is None


def test_a_record_that_lacks_a_field_has_its_default(tmp_path):
    """As records do that an earlier version has written."""
    folder = recorded(tmp_path / "run")
    record = json.loads((folder / "config.json").read_text())
    del record["config"]["label_smoothing"], record["config"]["data"]["augment"], record["config"]["schedule"]["power"]
    (folder / "config.json").write_text(json.dumps(record))
    assert resume(folder, BASE) == ""
    with pytest.raises(InputError, match="label_smoothing 0.0 there, 0.1 here"):
        resume(folder, replace(BASE, label_smoothing=0.1))


def test_a_record_that_no_version_writes_is_named(tmp_path):
    folder = recorded(tmp_path / "run")
    record = json.loads((folder / "config.json").read_text())
    for values, message in (({"epoch": 4}, "epoch is not a field"), ({"epochs": "4"}, "epochs '4' must be an integer")):
        (folder / "config.json").write_text(json.dumps(record | {"config": values}))
        with pytest.raises(InputError, match=rf"config\.json: {message}"):
            resume(folder, BASE)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (replace(BASE, data=Data(placement="host", workers=2)), "data.placement from 'auto' to 'host', data.workers"),
        (replace(BASE, eval_batch_size=7, keep=3), "eval_batch_size from 0 to 7, keep from 2 to 3"),
        (replace(BASE, log_every=1, checkpoint_every=5, data_dir="/data"), "checkpoint_every from 0 to 5, data_dir"),
        (replace(BASE, devices=Devices(count=4)), "devices.count from 1 to 4"),
        (replace(BASE, epochs=6), "epochs from 4 to 6"),
    ],
)
def test_what_does_not_affect_the_result_may_change_and_is_reported(tmp_path, config, line):
    folder = recorded(tmp_path / "run")
    assert line in resume(folder, config)
    assert workdir.read_config(folder) == replace(config, workdir=str(folder))
    assert resume(folder, config) == ""
    assert (workdir.finished(folder, config) is None) == (config.epochs != 4)


@pytest.mark.parametrize(
    ("config", "changed", "message"),
    [
        (BASE, replace(BASE, seed=1, batch_size=64), "batch_size 128 there, 64 here; seed 0 there, 1 here"),
        (BASE, replace(BASE, model_options={"depth": 8}), "model_options.depth None there, 8 here"),
        (
            replace(BASE, optimizer=Optimizer(groups={"a*": {"frozen": True}, "*": {"learning_rate": 0.1}})),
            replace(BASE, optimizer=Optimizer(groups={"*": {"learning_rate": 0.1}, "a*": {"frozen": True}})),
            r"optimizer.groups \['a\*', '\*'\] there, \['\*', 'a\*'\] here",
        ),
        (BASE, replace(BASE, data=Data(name="xor")), "data.name 'digits' there, 'xor' here"),
        (BASE, replace(BASE, epochs=3), "epochs 4 there, 3 here;|epochs 4 there, 3 here\\)"),
        (
            replace(BASE, schedule=Schedule("cosine")),
            replace(BASE, schedule=Schedule("cosine"), epochs=6),
            "epochs 4 there, 6 here, on which schedule.name cosine depends",
        ),
        (
            replace(BASE, schedule=PERIODIC, snapshots=4),
            replace(BASE, schedule=PERIODIC, snapshots=4, epochs=8),
            "on which snapshots 4 depends",
        ),
        (
            replace(BASE, freeze=("*",), pretrained="x", thaw_share=0.5),
            replace(BASE, freeze=("*",), pretrained="x", thaw_share=0.5, epochs=8),
            "on which thaw_share 0.5 depends",
        ),
    ],
)
def test_what_affects_the_result_must_not_change(tmp_path, config, changed, message):
    folder = recorded(tmp_path / "run", config)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for attempt in (
        lambda: workdir.find_workdir(replace(changed, workdir=str(folder)), "run"),
        lambda: workdir.write_config(folder, changed, "run", DEVICES),  # inside the lock
        lambda: workdir.update_config(folder, changed, DEVICES),
    ):
        with pytest.raises(InputError, match=message):
            attempt()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_jit_records_another_number_of_devices_and_pmap_refuses_it(tmp_path):
    whole, one = (replace(BASE, devices=Devices("pmap", count)) for count in (0, 1))
    folder = recorded(tmp_path / "pmap", whole)
    assert resume(folder, one) == "changed since the run was started: devices.count from 0 to 1"
    with pytest.raises(InputError, match=r"was run on 1 devices, now there are 2; .* set --devices.count 1"):
        workdir.write_config(folder, whole, "run", DEVICES * 2)
    folder = recorded(tmp_path / "jit")
    assert workdir.update_config(folder, BASE, DEVICES * 2).endswith(": device_count from 1 to 2")
    assert json.loads((folder / "config.json").read_text())["device_count"] == 2
    assert workdir.update_config(folder, BASE, DEVICES * 2) == ""


def test_epochs_may_be_added_where_the_learning_rates_so_far_do_not_depend_on_them():
    fields = {
        "step": {"period": 1.5},
        "exponential": {},
        "warm_restarts": {"period": 1.0, "multiplier": 2.0},
        "polynomial": {"power": 2.0},
    }
    names = (
        "constant",
        "exponential",
        "step",
        "linear",
        "polynomial",
        "cosine",
        "warm_restarts",
        "one_cycle",
        "plateau",
    )
    for name in names:
        schedule = Schedule(name, warmup=0.5, **fields.get(name, {}))
        few, many = (make_schedule(BASE.optimizer, schedule, epochs=epochs, steps_per_epoch=10) for epochs in (4, 7))
        same = all(np.allclose(few(update), many(update), rtol=1e-6) for update in range(40))
        assert same == (name in workdir.EXTENDABLE), name


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds no deepjax run"):
        workdir.find_workdir(Config(workdir=str(tmp_path)), "run")
    (tmp_path / "thesis.tex").unlink()
    for name in ("lock", "find_lr.json", ".config.json.12.tmp"):  # of the range test, and of a run that was killed
        (tmp_path / name).touch()
    assert workdir.find_workdir(Config(workdir=str(tmp_path)), "run") == (tmp_path, "")
    workdir.remove_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["find_lr.json", "lock"]


def test_a_workdir_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert workdir.find_workdir(Config(workdir="~/runs/x"), "run") == (tmp_path / "runs" / "x", "")


def test_runs_of_other_configs_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second, third = (replace(BASE, workdir="", batch_size=size) for size in (8, 16, 32))
    folders = [Path("runs") / name for name in ("photos", "photos-2", "photos-3")]
    assert workdir.find_workdir(first, "photos") == (folders[0], "")
    recorded(folders[0], first)
    folder, note = workdir.find_workdir(second, "photos")
    assert folder == folders[1]
    assert note.startswith(
        f"writing to {folder}, because workdir runs/photos holds a run of another config (batch_size"
    )
    recorded(folders[1], second)
    assert workdir.find_workdir(third, "photos")[0] == folders[2]
    assert workdir.find_workdir(first, "photos") == (folders[0], "")
    assert workdir.find_workdir(second, "photos") == (folders[1], "runs/photos-2 holds a run of this config")
    shutil.rmtree(folders[0])
    assert workdir.find_workdir(second, "photos")[0] == folders[1]
    assert workdir.find_workdir(third, "photos") == (folders[0], "")
    (tmp_path / "runs" / "photos").mkdir()
    (tmp_path / "runs" / "photos" / "thesis.tex").touch()
    assert workdir.find_workdir(third, "photos")[0] == folders[2]


def test_another_folder_of_images_is_another_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, other = (replace(BASE, workdir="", data=Data("folder"), data_dir=f"/{place}") for place in "ab")
    recorded(Path("runs/photos"), one)
    assert workdir.find_workdir(one, "photos") == (Path("runs/photos"), "")
    folder, note = workdir.find_workdir(other, "photos")
    assert folder == Path("runs/photos-2")
    assert "holds a run on other images (/a)" in note
    moved = replace(other, workdir="runs/photos")  # with --workdir, the folder may have been moved
    assert workdir.find_workdir(moved, "photos")[0] == Path("runs/photos")


def test_a_damaged_record_that_was_not_named_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorded(Path("runs/photos"))
    Path("runs/photos/config.json").write_text("{")
    folder, note = workdir.find_workdir(replace(BASE, workdir=""), "photos")
    assert folder == Path("runs/photos-2")
    assert "runs/photos/config.json is not valid JSON" in note
    with pytest.raises(InputError, match="not valid JSON"):
        workdir.find_workdir(replace(BASE, workdir="runs/photos"), "photos")


def test_one_process_at_a_time(tmp_path):
    with workdir.locked(tmp_path), pytest.raises(InputError, match="in use by another process"):
        workdir.locked(tmp_path).__enter__()


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir.jax, "process_index", lambda: 1)
    with workdir.locked(tmp_path / "run"):
        workdir.write_config(tmp_path / "run", BASE, "run", DEVICES)
        assert workdir.update_config(tmp_path / "run", BASE, DEVICES) == ""
        log = metrics.MetricsLog(tmp_path / "run")
        log.write("train", 1, 0.1, loss=1.0)
        log.close()
        workdir.write_record(tmp_path / "run", "summary.json", {})
    assert not (tmp_path / "run").exists()


def test_metrics_of_later_steps_are_replaced_and_a_cut_line_is_left_out(tmp_path):
    log = metrics.MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write("train", step, step / 2, loss=1.0 / step)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3]
    log = metrics.MetricsLog(tmp_path, 2)
    log.write("train", 3, 1.5, loss=0.1)
    log.close()
    assert [(line["step"], line["loss"]) for line in metrics.read(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 0.1)]
    assert metrics.read(tmp_path / "none") == []
