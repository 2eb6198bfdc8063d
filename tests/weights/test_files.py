"""Files of weights: PyTorch's and ours, there and back, refused with a reason, and never run."""

import pickle
import sys
import zipfile
from collections import OrderedDict

import chex
import numpy as np
import pytest
from safetensors.numpy import save_file

from deepjax import cli, weights
from deepjax.errors import InputError
from deepjax.units import unstack_units
from deepjax.weights import bundle, files
from weights.nets import random_variables, small, thin


def test_safetensors_without_torch(tmp_path, state_dict, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it would fail
    save_file(state_dict, tmp_path / "a.safetensors")
    chex.assert_trees_all_equal(
        weights.from_torch(small(), tmp_path / "a.safetensors"), weights.from_torch(small(), state_dict)
    )
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"need PyTorch; install torch, or"):
        weights.from_torch(small(), tmp_path / "a.pth")


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "parallel", "legacy"])
def test_torch_files(tmp_path, state_dict, wrap):
    torch = pytest.importorskip("torch")
    tensors = OrderedDict((name, torch.tensor(value)) for name, value in state_dict.items())
    if wrap == "parallel":
        tensors = {"state_dict": {f"module.{name}": value for name, value in tensors.items()}, "epoch": 3}
    elif wrap in ("state_dict", "model"):
        tensors = {wrap: tensors, "epoch": 3, "args": {"lr": 0.1}}
    torch.save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=wrap != "legacy")
    chex.assert_trees_all_equal(
        weights.from_torch(small(), tmp_path / "a.pth"), weights.from_torch(small(), state_dict)
    )


def test_state_dicts_go_to_files_and_back(tmp_path, state_dict):
    pytest.importorskip("torch")
    for name in ("a.safetensors", "a.pth", "a.pt"):
        files.save_state_dict(tmp_path / name, state_dict)
        found = files.read_state_dict(tmp_path / name)
        assert set(found) == set(state_dict)
        for tensor, value in state_dict.items():
            np.testing.assert_array_equal(found[tensor], value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "a.pth", "a.safetensors"]


class Malicious:
    """Unpickled, it would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("form", ["pickle", "zip", "in a state dict"])
def test_no_pickle_is_run(tmp_path, form, capsys):
    torch = pytest.importorskip("torch")
    trap, path = tmp_path / "trap", tmp_path / "evil.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Malicious(trap)))
    elif form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Malicious(trap), protocol=2))
            archive.writestr("archive/version", "3\n")
    else:
        torch.save({"fc.weight": torch.zeros(2), "fc.bias": Malicious(trap)}, path)
        trap.unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"evil.pth .*; only tensors and plain containers") as caught:
        weights.from_torch("resnet18", path)
    assert "\n" not in str(caught.value)
    assert not trap.exists()
    assert cli.main(["convert", "resnet18", str(path), str(tmp_path / "out.safetensors")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not trap.exists()
    assert not (tmp_path / "out.safetensors").exists()
    with open(path, "rb") as file:  # the trap would have snapped
        if form == "pickle":
            pickle.load(file).close()
            assert trap.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated", "missing", "folder"])
def test_damaged_files_are_named(tmp_path, state_dict, suffix, damage):
    if suffix == ".pth":
        pytest.importorskip("torch")
    path = tmp_path / f"a{suffix}"
    files.save_state_dict(path, state_dict)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "garbage": bytes(range(256)) * 9, "truncated": whole[:-99]}.get(damage, whole))
    if damage in ("missing", "folder"):
        path.unlink()
    if damage == "folder":
        path.mkdir()
    with pytest.raises(InputError, match=path.name) as caught:
        weights.from_torch(small(), path)
    assert "\n" not in str(caught.value)


def test_files_of_something_else(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"epoch": 3, "weights": {}}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a.pth holds entries that are not tensors \(epoch, weights\)"):
        weights.from_torch(small(), tmp_path / "a.pth")
    torch.save([torch.zeros(1)], tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"b.pth holds a list, not a state dict"):
        weights.from_torch(small(), tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"must end in .safetensors, .pth, .pt"):
        weights.from_torch(small(), tmp_path / "c.npz")
    weights.save_variables(tmp_path / "d.safetensors", {"params": {"a": np.zeros(1)}})
    with pytest.raises(InputError, match="deepjax's layout"):
        weights.from_torch(small(), tmp_path / "d.safetensors")


def test_torch_that_reads_unsafely_is_refused(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.save({}, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(InputError, match=r"install torch>=2.6"):
        weights.from_torch(small(), tmp_path / "a.pth")


# Our own layout


def test_our_files(tmp_path):
    network = small()
    variables = random_variables(network)
    path = tmp_path / "a.safetensors"
    weights.save_variables(path, variables, {"network": "resnet18", "options": {"width": 4}, "note": [1, None]})
    found, metadata = weights.load_variables(path)
    chex.assert_trees_all_equal(found, variables)
    assert metadata == {"network": "resnet18", "options": {"width": 4}, "note": [1, None]}
    with files.safe_open(path, framework="np") as file:
        assert "params/stem_conv/kernel" in file.keys()  # noqa: SIM118
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    with pytest.raises(InputError, match=r"must end in .safetensors"):
        weights.save_variables(tmp_path / "a.npz", variables)
    with pytest.raises(InputError, match="give names and numbers"):
        weights.save_variables(path, variables, {"dtype": np.float32})
    chex.assert_trees_all_equal(weights.load_variables(path)[0], variables)  # as it was


def test_file_that_is_not_ours(tmp_path, state_dict):
    files.save_state_dict(tmp_path / "a.safetensors", state_dict)
    assert not files.is_ours(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="not in deepjax's layout"):
        weights.load_variables(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="name the network"):
        weights.load_pretrained(tmp_path / "a.safetensors")


@pytest.mark.parametrize("option", [{}, {"scan": False}, {"features_only": True}])
def test_pretrained_files(tmp_path, option):
    network = thin(**option)
    variables = random_variables(network)
    recipe = weights.Preprocessing(40, 32, interpolation="bicubic")
    classes = tuple(f"class {i}" for i in range(10))
    source = {"network": "resnet18", "options": {"width": 4, **option}}
    path = tmp_path / "a.safetensors"
    weights.save_pretrained(path, weights.Pretrained(network, variables, recipe, classes, source))
    found = weights.load_pretrained(path)
    assert found == weights.Pretrained(network, found.variables, recipe, classes, {**source, "file": str(path)})
    chex.assert_trees_all_equal(found.variables, variables)
    if not option:
        unrolled = weights.load_file(path, "resnet18", scan=False)
        chex.assert_trees_all_equal(unrolled.variables, unstack_units(variables))
        other = weights.load_pretrained(path, num_classes=3, reset_head=True)
        assert other.variables["params"]["head"]["bias"].shape == (3,)
        assert other.classes is None
        with pytest.raises(InputError, match=r"head/bias have shape \(10,\), but the network's have \(3,\); for other"):
            weights.load_pretrained(path, num_classes=3)
        with pytest.raises(InputError, match="'resnet18', not 'resnet34'"):
            weights.load_file(path, "resnet34")
        with pytest.raises(InputError, match="files have no revision"):
            weights.load_pretrained(path, revision="main")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "network None"),
        ({"network": "resnet18", "preprocessing": {"size": 3}}, "preprocessing"),
        ({"network": "resnet18", "num_classes": 10}, r"but the network's have"),
        ({"network": "resnet18", "options": [1]}, r"records options \[1\], which is not of type dict"),
        ({"network": 3}, "records network 3"),
        ({"network": "resnet18", "num_classes": True}, "records num_classes True"),
        ({"network": "resnet18", "input": [10**14, 3, 3]}, "records num_classes None and input"),
        ({"network": "resnet18", "input": [224]}, r"images must be"),
        ({"network": "resnet18", "classes": [1, 2]}, r"records classes \[1, 2\], which are not all names"),
        ({"network": "resnet18", "classes": ["a"], "num_classes": 10, "options": {"width": 8}}, "1 names of classes"),
        ({"network": "cifar_resnet20"}, r"which the network lacks|variables lack"),
    ],
)
def test_our_files_that_do_not_fit(tmp_path, metadata, message):
    path = tmp_path / "a.safetensors"
    weights.save_variables(path, random_variables(thin(width=8)), metadata)
    with pytest.raises(InputError, match=message):
        weights.load_pretrained(path, **({"width": 8} if "preprocessing" in metadata else {}), num_classes=10)


@pytest.mark.parametrize(
    "odd",
    [
        {"resize": "large"},
        {"resize": 20},
        {"crop": 10**14},
        {"mean": [0.5]},
        {"mean": "gray"},
        {"std": [1, 1, 0]},
        {"std": [1, 1, float("nan")]},
        {"interpolation": 3},
        {"mean": None},
    ],
)
def test_odd_preprocessing_is_named(odd):
    recorded = {"resize": 40, "crop": 32} | odd
    with pytest.raises(InputError, match=r"^a.safetensors records the preprocessing {.*; it must be like") as caught:
        bundle._preprocessing("a.safetensors", recorded, 3)
    assert "\n" not in str(caught.value)
    assert bundle._preprocessing("a.safetensors", {"resize": 40, "crop": 32}, 3) == weights.Preprocessing(40, 32)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_folder_that_is_missing_is_named(tmp_path, state_dict, suffix):
    if suffix == "pth":
        pytest.importorskip("torch")
    with pytest.raises(InputError, match="folder .*nowhere does not exist"):
        files.save_state_dict(tmp_path / "nowhere" / f"a.{suffix}", state_dict)


# The command line


def test_convert_there_and_back(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state_dict = weights.to_torch(thin(), random_variables(thin()))
    files.save_state_dict("theirs.safetensors", state_dict)
    options = ["--options", "width=4", "--num-classes"]
    assert cli.main(["convert", "resnet18", "theirs.safetensors", "ours.safetensors", *options, "10"]) == 0
    assert capsys.readouterr().out == "ours.safetensors: resnet18, 10 classes, deepjax's layout\n"
    assert cli.main(["convert", "resnet18", "ours.safetensors", "back.safetensors"]) == 0
    back = files.read_state_dict("back.safetensors")
    assert set(back) == set(state_dict)
    for name, value in state_dict.items():
        np.testing.assert_array_equal(back[name], value)
    line = ["convert", "resnet18", "theirs.safetensors", "three.safetensors", *options, "3"]
    assert cli.main(line) == 2
    assert "--reset-head" in capsys.readouterr().err
    assert cli.main([*line, "--reset-head", "--preprocessing", "resnet50.tv2_in1k"]) == 0
    found = weights.load_pretrained("three.safetensors")
    assert (found.network.num_classes, found.preprocessing) == (3, weights.Preprocessing(232, 224))
    capsys.readouterr()
    for words, message in (
        (["resnet18", "theirs.safetensors", "a.pth"], "must end in .safetensors"),
        (["resnet18", "theirs.safetensors", "a.safetensors", "--preprocessing", "rasnet18"], "did you mean"),
        (["resnet18", "ours.safetensors", "a.pt", "--preprocessing", "resnet18"], "cannot store it"),
        (["resnet34", "ours.safetensors", "a.pt"], "not 'resnet34'"),
    ):
        assert cli.main(["convert", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
