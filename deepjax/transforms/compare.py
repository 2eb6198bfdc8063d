"""Two sets of weights, or ours and a PyTorch module, layer by layer: where do their answers part?"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.errors import FlaxError
from flax.traverse_util import flatten_dict

from deepjax import zoo
from deepjax.errors import InputError, first_line
from deepjax.weights.pytorch import fit, to_torch, whole_network

TOLERANCE = 1e-4  # float32 rounding stays below it, a wrong epsilon does not
OUTPUT = "output"  # the row of what the whole network gives


class Layer(NamedTuple):
    """One layer's answers on both sides."""

    path: str  # units of scans one by one: stage1_rest/unit2/branch/conv1
    shape: tuple[int, ...]
    difference: float  # largest, over the largest value; inf where shapes differ or one is not finite


class Comparison(NamedTuple):
    """What `compare` finds: layers in the order of the calls, the network's output last."""

    layers: tuple[Layer, ...]
    tolerance: float

    @property
    def first(self) -> Layer | None:
        """The first layer whose difference is above the tolerance; None: they agree."""
        return next((layer for layer in self.layers if not layer.difference <= self.tolerance), None)


def compare(network, variables_a, variables_b, x, *, tolerance=TOLERANCE) -> Comparison:
    """Run two sets of variables of a network in inference, and compare what each of its layers gives.

    Args:
      network: of the zoo, or its name; its scans are run unit by unit.
      variables_a: {"params": ..., "batch_stats": ...}; in scans stacked or not.
      variables_b: the same.
      x: [batch, height, width, channels].
      tolerance: of a layer's largest difference over its largest value.

    Raises:
      InputError: variables that are not the network's.
    """
    answers = _runner(network, x)
    return _compared(answers(variables_a), answers(variables_b), tolerance)


def compare_with_torch(network, variables, torch_module, x, *, tolerance=TOLERANCE) -> Comparison:
    """`compare` of our network with torchvision's of the same form, by the layers' names in both.

    Args:
      network: of the zoo, or its name.
      variables: ours.
      torch_module: a torch.nn.Module; its mode is put back.
      x: [batch, height, width, channels], as ours takes it.
      tolerance: as of `compare`.

    Raises:
      InputError: a network that torchvision does not have, or a module that has not the layers of it.
    """
    network = zoo.create(network) if isinstance(network, str) else network
    names = {ours: name if isinstance(name, str) else name[0] for ours, name in network.torch_names().items()}
    ours = _runner(network, x)(variables)
    theirs = _torch_answers(torch_module, {name: path for path, name in names.items() if path in ours}, x)
    return _compared(ours, {path: _squeezed_as(ours[path], y) for path, y in theirs.items()}, tolerance)


def torchvision_module(name, network, variables):
    """torchvision's network of that name, a torch.nn.Module that holds our variables.

    Args:
      name: in the zoo, and in torchvision.
      network: ours of that name.
      variables: of it.

    Raises:
      InputError: PyTorch or torchvision is not installed, or has no such network, or not with its options.
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
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}  # else it warns, and takes long
    module = models.get_model(name, weights=None, num_classes=network.num_classes, **options)
    try:
        module.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state_dict.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:40])
        raise InputError(f"torchvision's {name} does not take the weights: {reason}") from None
    return module


def _runner(network, x):
    """variables -> {path of a layer that has parameters: its output}, in the order of the calls."""
    network = whole_network(zoo.create(network) if isinstance(network, str) else network)
    network = network.clone(scan=False) if hasattr(network, "scan") else network
    order = {}  # jit sorts what it returns
    x = np.asarray(x, np.float32)

    def keep(module, method):
        own = any(not isinstance(value, Mapping) for value in module.variables.get("params", {}).values())
        if own and method == "__call__":
            order["/".join(module.path)] = None
        return own and method == "__call__"

    @jax.jit
    def run(variables, x):
        return network.apply(variables, x, train=False, capture_intermediates=keep, mutable=["intermediates"])

    def answers(variables) -> dict[str, np.ndarray]:
        fitting = fit(network, variables)
        try:
            jax.eval_shape(run, fitting, x)
        except InputError:
            raise
        except (TypeError, ValueError, FlaxError) as error:
            reason = first_line(error)
            raise InputError(f"the network and its weights do not take x {np.shape(x)}: {reason}") from None
        y, kept = jax.device_get(run(fitting, x))
        outputs: Any = flatten_dict(kept["intermediates"], sep="/")
        return {path: outputs[f"{path}/__call__"][0] for path in order} | {OUTPUT: np.asarray(y)}

    return answers


def _torch_answers(module, paths, x) -> dict[str, np.ndarray]:
    """{our path: output of the PyTorch module that is named in paths, as we lay it out}."""
    import torch

    modules, found, hooks = dict(module.named_modules()), {}, []
    if lacking := sorted(set(paths) - set(modules)):
        raise InputError(
            f"the PyTorch module has no layer {lacking[0]}, which the network has; compare one of its form"
        )

    def keeper(path):
        # A copy at once: an in-place ReLU overwrites what it is given.
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
    """Theirs in the shape of ours where only axes of length 1 differ: a dense layer may be a convolution there."""
    same = [n for n in ours.shape if n > 1] == [n for n in theirs.shape if n > 1]
    return theirs.reshape(ours.shape) if same else theirs


def _compared(a: dict[str, Any], b: dict[str, Any], tolerance):
    return Comparison(tuple(Layer(path, a[path].shape, _difference(a[path], b.get(path))) for path in a), tolerance)


def _difference(a, b):
    if b is None or a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    largest = max(np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0))
    return float(np.abs(a - b).max(initial=0.0) / largest) if largest else 0.0
