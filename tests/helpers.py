"""What several test files share. `tests/` is on the import path (`pythonpath` in pyproject.toml)."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
REFERENCE = SHARED / "reference" / "torchvision_reference.py"
TFDS = SHARED / "tfds"

# Operators that torchvision registers with PyTorch while it is imported, written in PyTorch's schema language.
TORCHVISION_OPERATORS = dict.fromkeys(("nms", "qnms"), "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def import_torchvision():
    """Import torchvision even where its compiled operators cannot be loaded.

    `pip install torchvision` gives a build for one version of PyTorch and CUDA. Under another one its library of
    operators does not load, and the import fails with "operator torchvision::nms does not exist". Its classification
    networks use none of these operators, so it suffices to declare them. After this call a plain `import torchvision`
    works in the same process.

    Returns:
      The module `torchvision`. Skips the test if torchvision or PyTorch is not installed.
    """
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs torchvision, from the extra `parity`")
    try:
        import torchvision
    except RuntimeError:
        for name, schema in TORCHVISION_OPERATORS.items():
            torch.library.define(f"torchvision::{name}", schema)
        import torchvision
    return torchvision


def randomize_torch(module, seed=0):
    """Draw all parameters and running moments of a PyTorch module, so that each of them changes its output.

    Kernels have He's variance, 2 / fan in. Scales and variances lie around 1, all other values around 0.
    """
    import torch

    rng = np.random.default_rng(seed)

    def uniform(tensor, low, high):
        tensor.copy_(torch.from_numpy(rng.uniform(low, high, tuple(tensor.shape))))

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                uniform(part.weight, 0.5, 1.5)
                uniform(part.bias, -0.3, 0.3)
                uniform(part.running_mean, -0.3, 0.3)
                uniform(part.running_var, 0.5, 2.0)
            elif isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
                deviation = (2 / part.weight[0].numel()) ** 0.5
                part.weight.copy_(torch.from_numpy(deviation * rng.standard_normal(tuple(part.weight.shape))))
                if part.bias is not None:
                    uniform(part.bias, -0.2, 0.2)


def draw_variables(model, x, gain=1.0, **call):
    """Variables of a Linen model, drawn by NumPy, so that nothing is compiled and no number has its usual start.

    Kernels have variance gain / fan in. Scales lie around 1, variances around 0.5, all other values around 0.
    """
    import jax

    rng = np.random.default_rng(0)

    def one(path, leaf):
        noise, name = rng.standard_normal(leaf.shape).astype(np.float32), path[-1].key
        if name == "kernel":
            fan_in = np.prod(leaf.shape[-4:-1] if leaf.ndim > 3 else leaf.shape[-2:-1])
            return noise * np.float32(np.sqrt(gain / fan_in))
        return {"scale": 1 + 0.2 * noise, "var": 0.5 + 0.1 * abs(noise)}.get(name, 0.2 * noise)

    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, **({"train": False} | call)))
    return jax.tree_util.tree_map_with_path(one, shapes)
