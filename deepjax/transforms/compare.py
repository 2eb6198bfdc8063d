"""Compare two networks layer by layer, to find the first layer whose outputs differ."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from deepjax import zoo
from deepjax.errors import InputError, first_line
from deepjax.trace import input_errors
from deepjax.weights.pytorch import fit, to_torch, whole_network

TOLERANCE = 1e-4  # above the rounding of float32, below the effect of a wrong epsilon
OUTPUT = "output"  # path of the network's output


class LayerDifference(NamedTuple):
    """How far apart the outputs of one layer are."""

    path: str  # units of a scan are separate: stage1_rest/unit2/branch/conv1
    shape: tuple[int, ...]
    difference: float  # largest difference / largest value; inf if shapes differ or a value is not finite


class Comparison(NamedTuple):
    """The result of `compare`: layers in the order of their calls, the network's output last."""

    layers: tuple[LayerDifference, ...]
    tolerance: float

    @property
    def first(self) -> LayerDifference | None:
        """The first layer whose difference is above the tolerance, or None."""
        return next((layer for layer in self.layers if not layer.difference <= self.tolerance), None)


def compare(network, variables_a, variables_b, x, *, tolerance=TOLERANCE) -> Comparison:
    """Run a network with two sets of variables in inference mode, and compare the outputs of each layer.

    Args:
      network: a network of the zoo, or its name. Its scans are run unit by unit.
      variables_a: {"params": ..., "batch_stats": ...}; those of scans stacked or not.
      variables_b: the same.
      x: [batch, height, width, channels].
      tolerance: for a layer's largest difference, divided by its largest value.

    Raises:
      InputError: the variables or x do not fit the network.
    """
    outputs = _runner(network, x)
    return _compared(outputs(variables_a), outputs(variables_b), tolerance)


def compare_with_torch(network, variables, torch_module, x, *, tolerance=TOLERANCE) -> Comparison:
    """Compare a network with torchvision's network of the same architecture, layer by layer.

    Args:
      network: a network of the zoo, or its name.
      variables: variables of this network.
      torch_module: a torch.nn.Module. It is run in evaluation mode; its modes are restored afterwards.
      x: [batch, height, width, channels].
      tolerance: as in `compare`.

    Raises:
      InputError: torchvision has no such network, or the module lacks one of its layers.
    """
    network = zoo.create(network) if isinstance(network, str) else network
    names = {ours: name if isinstance(name, str) else name[0] for ours, name in network.torch_names().items()}
    ours = _runner(network, x)(variables)
    theirs = _torch_outputs(torch_module, {name: path for path, name in names.items() if path in ours}, x)
    return _compared(ours, {path: _squeezed_as(ours[path], y) for path, y in theirs.items()}, tolerance)


def torchvision_module(name, network, variables):
    """Return torchvision's network of a name, with the given variables as its weights.

    Args:
      name: name of the network in the zoo and in torchvision.
      network: the network of the zoo.
      variables: variables of this network.

    Raises:
      InputError: PyTorch or torchvision is not installed, or torchvision has no such network with these options.
    """
    state_dict = to_torch(network, variables)
    try:
        import torch
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was built for another PyTorch
        reason = first_line(error)
        raise InputError(
            f"comparing with torchvision needs torch and torchvision: {reason}; pip install torch torchvision"
        ) from None
    if name not in models.list_models():
        raise InputError(f"torchvision has no {name}; compare weights of a network that it has")
    # With the default, these two warn and take long.
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module = models.get_model(name, weights=None, num_classes=network.num_classes, **options)
    try:
        module.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state_dict.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:40])
        raise InputError(f"torchvision's {name} does not take the weights: {reason}") from None
    return module


def _runner(network, x):
    """Return a function: variables -> {path of a layer with parameters: its output}, in the order of the calls."""
    network = whole_network(zoo.create(network) if isinstance(network, str) else network)
    network = network.clone(scan=False) if hasattr(network, "scan") else network
    x = np.asarray(x, np.float32)
    order = {}  # a jitted function sorts what it returns

    def keep(module, method):
        owns = any(not isinstance(value, Mapping) for value in module.variables.get("params", {}).values())
        if owns and method == "__call__":
            order["/".join(module.path)] = None
        return owns and method == "__call__"

    @jax.jit
    def run(variables, x):
        return network.apply(variables, x, train=False, capture_intermediates=keep, mutable=["intermediates"])

    def outputs(variables) -> dict[str, np.ndarray]:
        fitting = fit(network, variables)
        with input_errors(x.shape):
            jax.eval_shape(run, fitting, x)
        y, kept = jax.device_get(run(fitting, x))
        found: Any = flatten_dict(kept["intermediates"], sep="/")
        return {path: found[f"{path}/__call__"][0] for path in order} | {OUTPUT: np.asarray(y)}

    return outputs


def _torch_outputs(module, paths, x) -> dict[str, np.ndarray]:
    """Return {our path: output, features last, of the PyTorch module whose name `paths` maps to it}."""
    import torch

    modules, found, hooks = dict(module.named_modules()), {}, []
    if lacking := sorted(set(paths) - set(modules)):
        raise InputError(
            f"the PyTorch module lacks layer {lacking[0]} of the network; pass a module of the same architecture"
        )

    def keeper(path):
        # A copy, because an in-place ReLU overwrites its input.
        return lambda _, args, output: found.update({path: np.array(output.detach().cpu().numpy())})

    training = [(m, m.training) for m in module.modules()]
    try:
        hooks += [modules[name].register_forward_hook(keeper(path)) for name, path in paths.items()]
        with torch.no_grad():
            found[OUTPUT] = module.eval()(torch.tensor(np.moveaxis(np.asarray(x, np.float32), -1, 1))).numpy()
    finally:
        for m, mode in training:
            m.training = mode
        for hook in hooks:
            hook.remove()
    return {path: np.moveaxis(y, 1, -1) if y.ndim == 4 else y for path, y in found.items()}


def _squeezed_as(ours, theirs):
    """Reshape `theirs` like `ours` if only axes of length 1 differ: one may have a Dense where the other convolves."""
    same = [n for n in ours.shape if n > 1] == [n for n in theirs.shape if n > 1]
    return theirs.reshape(ours.shape) if same else theirs


def _compared(a: dict[str, Any], b: dict[str, Any], tolerance):
    layers = [LayerDifference(path, a[path].shape, _difference(a[path], b.get(path))) for path in a]
    return Comparison(tuple(layers), tolerance)


def _difference(a, b):
    if b is None or a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    largest = max(np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0))
    return float(np.abs(a - b).max(initial=0.0) / largest) if largest else 0.0
