"""The files of a run, edited or half written: each is read by a reader that checks it."""

import json

import numpy as np
import pytest

from deepjax.data import Standardizer
from deepjax.errors import InputError
from deepjax.runs import metrics, workdir

RECORD = {
    "name": "digits",
    "classes": ["0", "1"],
    "shape": [4, 4, 1],
    "examples": [8, 0, 2],
    "labels_sha256": "ab",
    "mean": [0.5],
    "std": [0.25],
    "fit": "whole",
}


def write(folder, record):
    (folder / "data.json").write_text(json.dumps(record), encoding="utf-8")


def test_data_json_is_what_a_run_writes(tmp_path):
    write(tmp_path, RECORD | {"lighting": np.eye(3).tolist()})
    assert workdir.read_data(tmp_path).shape == (4, 4, 1)
    standardizer, lighting, _ = workdir.read_statistics(tmp_path)
    np.testing.assert_array_equal(standardizer.apply(np.ones((4, 4, 1), np.float32)), np.full((4, 4, 1), 2.0))
    np.testing.assert_array_equal(lighting, np.eye(3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": "0"}, "classes '0' must be"),
        ({"classes": [0, 1]}, "classes"),
        ({"shape": [4, 4, 3]}, r"no standardization of inputs of shape \(4, 4, 3\)"),
        ({"shape": []}, "shape"),
        ({"shape": [4, 4, 0]}, "shape"),
        ({"examples": [8, 2]}, "examples"),
        ({"mean": [float("nan")]}, "mean .* must be finite"),
        ({"mean": [10**400]}, "mean .* must be finite"),
        ({"mean": [1e300]}, "no standardization"),
        ({"std": [0.0]}, "std"),
        ({"std": [[0.25]]}, "std"),
        ({"fit": "whol"}, "did you mean 'whole'"),
        ({"fit": None}, "fit"),
        ({"lighting": [[0.1, 0.1, 0.1]]}, "lighting"),
        ({"colour": 1}, "colour is not a field"),
    ],
)
def test_an_edited_data_json_is_one_line_that_names_the_field(tmp_path, changes, message):
    write(tmp_path, RECORD | changes)
    with pytest.raises(InputError, match=rf"data\.json.*{message}") as caught:
        workdir.read_statistics(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["classes", "shape", "examples", "labels_sha256", "fit"])
def test_a_field_that_was_deleted_is_missing(tmp_path, field):
    write(tmp_path, {name: value for name, value in RECORD.items() if name != field})
    with pytest.raises(InputError, match=rf"data\.json: {field} is missing; restore"):
        workdir.read_data(tmp_path)


def test_inputs_npz_of_another_kind_shape_or_value_is_refused(tmp_path):
    write(tmp_path, {name: value for name, value in RECORD.items() if name not in ("mean", "std")})
    images = np.random.default_rng(0).normal(size=(40, 4, 4, 1))
    for kind in ("zca", "min_max", "z_score"):
        good = Standardizer.fit(kind, images)
        good.save(tmp_path / "inputs.npz")
        assert workdir.read_statistics(tmp_path).standardizer.kind == kind
        bad = [
            {"kind": "zac"},
            {"shift": good.shift[..., :0]},
            {"scale": 0 * good.scale},
            {"scale": good.scale[:-1, None]},
        ]
        bad += [{"shift": good.shift * np.float32(np.nan)}, {"scale": good.scale.astype(int)}]
        bad += [{"basis": 0 * good.basis}, {"basis": good.basis[:-1]}] if kind == "zca" else [{"basis": np.eye(16)}]
        for changes in bad:
            good._replace(**changes).save(tmp_path / "inputs.npz")
            with pytest.raises(InputError, match=r"inputs\.npz holds no standardization"):
                workdir.read_statistics(tmp_path)
    for content in (b"", b"PK\x03\x04", b"{}"):
        (tmp_path / "inputs.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"inputs\.npz cannot be read"):
            workdir.read_statistics(tmp_path)


def test_damaged_lines_of_metrics_are_left_out_with_one_warning_and_later_ones_kept(tmp_path):
    log = metrics.MetricsLog(tmp_path)
    for step in (1, 2, 3, 4):
        log.write("train", step, step / 2, loss=1.0 / step)
    log.close()
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    damaged = [b"", b"{", b"[1]", b"null", b"\xff", b'{"step": 1, "epoch": 1}', lines[1].replace(b"2", b'"2"', 1)]
    path.write_bytes(b"\n".join([lines[0], *damaged, *lines[2:]]))  # no newline at the end: an editor's last line
    said = []
    assert [line["step"] for line in metrics.read(tmp_path, said.append)] == [1, 3, 4]
    assert said == [f"{path}: 7 of 10 lines are damaged and left out, the first is line 2"]
    metrics.MetricsLog(tmp_path, 3, said.append).close()
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 3]  # no warning any more


@pytest.mark.parametrize("text", ["[]", "{}", '{"result": 1}', '{"result": "x", "test_error": "y"}', "[" * 10**5, ""])
def test_a_summary_without_a_result_is_named(tmp_path, monkeypatch, text):
    monkeypatch.setattr(workdir, "_changes", lambda config, folder: {})
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(InputError, match=r"summary\.json"):
        workdir.finished(tmp_path, None)
