"""A representative half of torchvision's networks, with random weights, against torchvision itself.

All of them, and at any size, are compared by `python tests/parity --all`.
"""

import importlib.util
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import helpers
from deepjax import functional, weights, zoo

REFERENCE = helpers.REFERENCE
# One of each form, in evaluation and training; then others, in evaluation, at a size that leaves odd maps.
BOTH = (
    "alexnet", "vgg11_bn", "googlenet", "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "mobilenet_v2",
    "mobilenet_v3_small", "efficientnet_b0",
)  # fmt: skip
EVALUATED = (
    "vgg13", "inception_v3", "resnet34", "resnet101", "wide_resnet50_2", "densenet169", "mobilenet_v3_large",
    "efficientnet_b1",
)  # fmt: skip

pytest.importorskip("torch")
if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed", allow_module_level=True)
if not REFERENCE.exists():
    pytest.skip(f"{REFERENCE.name} is not beside the checkout", allow_module_level=True)


@pytest.fixture(scope="module")
def parity():
    """tests/parity/__main__.py, as a module."""
    spec = importlib.util.spec_from_file_location("parity", helpers.ROOT / "tests" / "parity" / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_known(name):
    if name not in zoo.MODELS:
        pytest.skip(f"the zoo has no {name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_evaluation_and_training(parity, name):
    check_known(name)
    result = parity.compare(name, size=64, batch=2)
    assert result.holds, result
    # These are computed in float64. PyTorch's gradient of the hard sigmoid has 1/6 in float32, off by 3e-8.
    assert max(result.train_logits, result.moments, result.gradients) < 1e-6, result


@pytest.mark.slow
@pytest.mark.parametrize("name", EVALUATED)
def test_evaluation(parity, name):
    check_known(name)
    import torch

    script = parity.reference()
    options = {"init_weights": False} if name in parity.SLOW_INIT else {}
    module = script.import_torchvision_models().get_model(name, weights=None, **options).eval()
    script.randomize(module, 5)
    x = np.random.default_rng(6).normal(size=(3, 81, 99, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = module(torch.tensor(np.moveaxis(x, -1, 1))).numpy()
    network = zoo.create(name)
    variables = weights.from_torch(network, module.state_dict())
    ours = jax.jit(lambda variables, x: network.apply(variables, x, train=False))(variables, x)
    assert parity.difference(ours, theirs) < 1e-4


@pytest.mark.slow
def test_inception_in_training(parity):
    check_known("inception_v3")
    result = parity.compare("inception_v3", batch=2)  # at 299 pixels, for its auxiliary head
    assert result.holds, result


@pytest.mark.slow
def test_files_of_the_reference_script(parity, tmp_path):
    """What `torchvision_reference.py resnet18 --train` writes, in float32 on both sides."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, REFERENCE, "resnet18", "--out", tmp_path, "--size", "64", "--seed", "3", "--train"]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    answers = np.load(tmp_path / "resnet18.npz")
    network = zoo.create("resnet18")
    variables = weights.from_torch("resnet18", tmp_path / "resnet18.safetensors")
    x = np.moveaxis(answers["x"], 1, -1)
    assert (
        parity.difference(jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, x), answers["logits"])
        < 1e-4
    )

    @jax.jit
    def step(params, batch_stats, x):
        def loss(params):
            given = {"params": params, "batch_stats": batch_stats}
            logits, new = network.apply(given, x, train=True, mutable=["batch_stats"])
            return functional.cross_entropy(logits, answers["y"]).mean(), (logits, new["batch_stats"])

        return jax.grad(loss, has_aux=True)(params)

    gradients, (logits, moments) = jax.device_get(step(variables["params"], variables["batch_stats"], x))
    back = weights.to_torch(network, {"params": gradients, "batch_stats": moments})
    assert parity.difference(logits, answers["train_logits"]) < 1e-3
    compared = 0
    for name in answers.files:
        kind, _, layer = name.partition("/")
        ours = {"grad": layer, "rm": f"{layer}.running_mean", "rv": f"{layer}.running_var"}.get(kind)
        if ours:
            assert parity.difference(back[ours], answers[name]) < 1e-3, name
            compared += 1
    assert compared == 62 + 2 * 20
