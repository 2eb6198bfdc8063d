"""State dicts as training scripts store them: inside other entries, with the names of wrappers, of odd tensors."""

import argparse
import warnings

import numpy as np
import pytest

from deepjax.errors import InputError
from deepjax.weights import files
from deepjax.weights.state_dict import unwrap

PLAIN = {"conv.weight": np.arange(6.0).reshape(2, 3), "fc.bias": np.ones(2)}
OTHER = {name: value + 1 for name, value in PLAIN.items()}


def prefixed(prefix, **more):
    return {prefix + name: value for name, value in PLAIN.items()} | more


def check(found):
    found = unwrap(found, "checkpoint")
    assert set(found) == set(PLAIN)
    for name, value in PLAIN.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    "found",
    [
        {"state_dict": PLAIN, "epoch": 3, "optimizer": {"state": {}, "param_groups": [1]}},
        {"model": PLAIN, "epoch": 3},
        {"net": PLAIN, "acc": 91.2},
        {"state_dict": OTHER, "state_dict_ema": PLAIN, "arch": "resnet18"},  # timm
        {"model": OTHER, "model_ema": prefixed("module.", n_averaged=np.int64(3)), "args": None},  # torchvision
        {"ema": {"decay": 0.99, "shadow": [1]}, "model": PLAIN},  # averages without names
        {"model": {"state_dict": {"net": PLAIN}}, "step": 3},
        prefixed("module._orig_mod.", n_averaged=np.int64(3)),
        {"state_dict": prefixed("model."), "pytorch-lightning_version": "2.4", "loops": {}},
        {"state_dict": prefixed("model._orig_mod.") | {"criterion.weight": np.ones(3)}, "epoch": 1},
        {"conv._orig_mod.weight": PLAIN["conv.weight"], "fc.bias": PLAIN["fc.bias"]},  # a compiled part
    ],
)
def test_checkpoints_of_training_scripts(found):
    check(found)


def test_lightning_names_that_could_be_the_networks_are_not_left_out():
    both = PLAIN | prefixed("model.")
    assert set(unwrap(both, "checkpoint")) == set(both)


def test_names_that_become_one_are_refused():
    with pytest.raises(InputError, match="several tensors of one name"):
        unwrap(PLAIN | {"conv._orig_mod.weight": np.ones(1)}, "checkpoint")


def test_checkpoints_without_a_state_dict():
    endless = {}
    endless["model"] = endless
    for found, message in (
        (endless, r"x.pth holds entries that are not tensors \(model\)"),
        ({"epoch": 3, "weights": {}}, r"\(epoch, weights\)"),
        ([1], "holds a list"),
    ):
        with pytest.raises(InputError, match=message):
            unwrap(found, "x.pth")


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".ckpt", ".pth.tar"])
def test_pickles_with_options_of_a_script(tmp_path, suffix):
    torch = pytest.importorskip("torch")
    model = {name: torch.tensor(value) for name, value in PLAIN.items()}
    torch.save({"model": model, "args": argparse.Namespace(lr=0.1, names=["a"])}, tmp_path / f"a{suffix}")
    check(files.read_state_dict(tmp_path / f"a{suffix}"))


def test_objects_that_a_safe_reader_refuses_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    for value, name in ((torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"), (np.float64(1), "scalar")):
        torch.save({"model": {}, "best": value}, tmp_path / "a.pth")
        with pytest.raises(InputError, match=rf"a.pth holds an object of [\w.]*{name}; only tensors"):
            files.read_state_dict(tmp_path / "a.pth")


def test_tensors_of_all_float_types_become_arrays():
    torch = pytest.importorskip("torch")
    values = torch.tensor([1.5, -2.0])
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64):
        assert unwrap({"a": values.to(dtype).clone().requires_grad_()}, "x")["a"].tolist() == [1.5, -2.0]


def test_tensors_that_are_no_plain_arrays_are_named():
    torch = pytest.importorskip("torch")
    dense = torch.eye(3)
    with warnings.catch_warnings(action="ignore"):
        odd = [
            dense.to_sparse(),
            dense.to_sparse_csr(),
            torch.empty(3, device="meta"),
            torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8),
            torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        ]
    for value in odd:
        with pytest.raises(InputError, match=r"^x.pth: fc.weight is not a plain array \(") as caught:
            unwrap({"fc.bias": dense, "fc.weight": value}, "x.pth")
        assert "\n" not in str(caught.value)


def test_float8_of_safetensors_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({"fc.weight": torch.ones(3).to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="fc.weight of type F8_E4M3 cannot be read"):
        files.read_state_dict(tmp_path / "a.safetensors")
