"""PyTorch's state dicts: exact both ways, and refused with a reason."""

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import helpers
from deepjax import weights, zoo
from deepjax.errors import InputError
from deepjax.weights import pytorch
from deepjax.zoo.dense import densenet
from weights.nets import random_variables, small, thin

# Exactness


def test_exact_both_ways_with_torchvision():
    models = helpers.import_torchvision().models
    import torch

    module = models.get_model("resnet18", weights=None)
    helpers.randomize_torch(module, 3)
    theirs = module.state_dict()
    for scan in (True, False):
        network = zoo.create("resnet18", scan=scan)
        variables = weights.from_torch(network, theirs)
        assert ("unit" in variables["params"]["stage1_rest"]) == scan
        back = weights.to_torch(network, variables)
        assert sorted(back) == sorted(theirs)
        for name, value in theirs.items():
            np.testing.assert_array_equal(back[name], value.numpy(), name)
    fresh = models.get_model("resnet18", weights=None)
    fresh.load_state_dict({name: torch.tensor(value) for name, value in back.items()}, strict=True)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), theirs.values(), strict=True))


def test_variables_do_not_share_memory_with_the_state_dict(state_dict):
    state_dict = {name: value.copy() for name, value in state_dict.items()}
    variables = weights.from_torch(small(), state_dict)
    before = jax.tree.map(np.copy, variables)
    for value in state_dict.values():
        value[...] = 7
    chex.assert_trees_all_equal(variables, before)


def test_layouts_are_transposed_not_reshaped():
    network = small(scan=False)
    variables = random_variables(network)
    theirs = weights.to_torch(network, variables)
    kernel = variables["params"]["stage2_rest"]["unit1"]["branch"]["conv2"]["kernel"]
    for index in np.ndindex(2, 3, 3, 4):
        o, i, h, w = index[3], index[0], index[1], index[2]
        assert theirs["layer2.1.conv2.weight"][o, i, h, w] == kernel[h, w, i, o]
    np.testing.assert_array_equal(theirs["fc.weight"], variables["params"]["head"]["kernel"].T)
    np.testing.assert_array_equal(theirs["bn1.running_var"], variables["batch_stats"]["stem_norm"]["var"])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_become_float32(state_dict, dtype):
    variables = weights.from_torch(small(), {name: value.astype(dtype) for name, value in state_dict.items()})
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    expected = state_dict["fc.bias"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(variables["params"]["head"]["bias"], expected)


def test_densenets_old_names():
    network = densenet((2, 1), 10, growth=4, stem_features=8)
    theirs = weights.to_torch(network, random_variables(network))
    old = {n.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): v for n, v in theirs.items()}
    old = {n: v for n, v in old.items() if not n.endswith("num_batches_tracked")}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old  # as in the file that torchvision publishes
    chex.assert_trees_all_equal(weights.from_torch(network, old), weights.from_torch(network, theirs))


@pytest.mark.parametrize("option", ["features_only", "return_logits"])
def test_network_without_its_head_takes_whole_weights(state_dict, option):
    variables = weights.from_torch(small().clone(**{option: option == "features_only"}), state_dict)
    whole = weights.from_torch(small(), state_dict)
    assert "head" not in variables["params"]
    whole["params"].pop("head")
    chex.assert_trees_all_equal(variables, whole)


# What does not fit


def changed(state_dict, drop=(), **add):
    return {name: value for name, value in state_dict.items() if name not in drop} | add


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": ("layer1.0.conv1.weight",)}, r"weights lack layer1.0.conv1.weight \(16, 16, 3, 3\)"),
        ({"odd": np.zeros((2, 5))}, r"weights have odd \(2, 5\), which the network lacks"),
        ({"bn1.bias": np.zeros(5, np.float32)}, r"bn1.bias have shape \(5,\), but the network's have \(16,\)$"),
        ({"bn1.bias": np.zeros(16, np.int64)}, r"weights bn1.bias are int64; they must be floating"),
        ({"fc.weight": np.zeros((7, 32), np.float32)}, r"fc.weight .*\(7, 32\).*\(10, 32\); for other classes, reset"),
    ],
)
def test_tensors_that_do_not_fit_are_named(state_dict, change, message):
    with pytest.raises(InputError, match=message):
        weights.from_torch(small(), changed(state_dict, **change))


def test_other_networks():
    with pytest.raises(InputError, match="torchvision has no such network"):
        weights.from_torch("cifar_resnet20", {"a": np.zeros(1)})
    with pytest.raises(InputError, match="the variables are not of this network"):
        weights.to_torch("resnet18", random_variables(zoo.create("cifar_resnet20")))


def test_reset_head(state_dict):
    network = small(num_classes=3)
    with pytest.raises(InputError, match="reset_head=True, --reset-head"):
        weights.from_torch(network, state_dict)
    with pytest.raises(InputError, match="key"):
        weights.from_torch(network, state_dict, reset_head=True)
    variables = weights.from_torch(network, state_dict, reset_head=True, key=jax.random.key(5))
    again = weights.from_torch(network, state_dict, reset_head=True, key=jax.random.key(6))
    head = variables["params"].pop("head")
    assert head["kernel"].shape == (32, 3)
    np.testing.assert_allclose(head["kernel"].std(), (1 / 32) ** 0.5, rtol=0.3)  # LeCun's
    assert not np.array_equal(head["kernel"], again["params"].pop("head")["kernel"])
    chex.assert_trees_all_equal(variables, again)
    whole = weights.from_torch(small(), state_dict)
    whole["params"].pop("head")
    chex.assert_trees_all_equal(variables, whole)
    expected = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    chex.assert_trees_all_equal_shapes(expected["params"], variables["params"] | {"head": head})


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("googlenet", {"fc", "aux1.fc2", "aux2.fc2"}),
        ("vgg11", {"classifier.6"}),
        pytest.param("mobilenet_v3_small", {"classifier.3"}, marks=pytest.mark.slow),
    ],
)
def test_heads_are_torchvisions(name, theirs):
    network = zoo.create(name)
    names = network.torch_names()
    found = {names["/".join(path[1:-1])] for path in pytorch.heads(network, pytorch.expected_variables(network))}
    assert {n if isinstance(n, str) else n[0] for n in found} == theirs


def test_names_of_wrapped_networks(state_dict):
    """PyTorch's own wrappers, and each inside another."""
    torch = pytest.importorskip("torch")
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(1, 1)).state_dict()
    assert set(averaged) == {"n_averaged", "module.weight", "module.bias"}
    expected = weights.from_torch(small(), state_dict)
    for prefix, more in (("module.", {"n_averaged": np.int64(3)}), ("_orig_mod.", {}), ("module._orig_mod.", {})):
        wrapped = {prefix + name: value for name, value in state_dict.items()} | more
        chex.assert_trees_all_equal(weights.from_torch(small(), wrapped), expected)
    with pytest.raises(InputError, match=r"weights have n_averaged"):  # without a wrapper it is a foreign tensor
        weights.from_torch(small(), state_dict | {"n_averaged": np.int64(3)})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"weights fc.bias: 1 of 10 values are not finite"),
        (1e300, r"weights fc.bias: 1 of 10 values are not finite"),  # in float32
        (np.complex64(1j), r"weights fc.bias are complex64; they must be floating point numbers"),
    ],
)
def test_tensors_that_are_no_finite_numbers_are_named(tmp_path, state_dict, value, message):
    bias = np.append(np.arange(9, dtype=np.float32), value)
    with pytest.raises(InputError, match=message):
        weights.from_torch(small(), state_dict | {"fc.bias": bias})
    network, source = thin(), {"network": "resnet18", "options": {"width": 4}}
    variables = random_variables(network)
    variables["params"]["head"]["bias"] = bias
    weights.save_pretrained(tmp_path / "a.safetensors", weights.Pretrained(network, variables, None, None, source))
    with pytest.raises(InputError, match=message.replace("fc.bias", "params/head/bias").replace("weights ", "")):
        weights.load_file(tmp_path / "a.safetensors")


def test_leaves_are_numpy(state_dict):
    assert all(isinstance(leaf, np.ndarray) for leaf in flatten_dict(weights.from_torch(small(), state_dict)).values())
