"""Compare torchvision's networks with ours: `python tests/parity resnet18 googlenet`, or `--all`.

Parameters and running moments are random. Compared are: logits in evaluation; logits in training (without dropout, with
batch statistics, of auxiliary heads too); the running moments after that step; the gradient of the cross entropy,
summed over the heads, with respect to every parameter. Each figure is the largest difference over the largest value of
what is compared. Moments and gradients are compared array by array.

Evaluation runs in float32 and in float64. The column "torch" is the difference of PyTorch's own float32 logits from its
float64 ones, because random running moments make some networks amplify rounding errors. Therefore evaluation runs a
second time, "settled": with the batch's own moments as running moments, as they nearly are in a trained network.
Training runs in float64: in a deep network, some ReLU's input always lies so near to 0 that float32 rounds it to the
other side, which changes gradients by percents, between PyTorch's own float32 and float64 too.

Needs torch and torchvision: `pip install deepjax[parity,test]`.
"""

import argparse
import copy
import importlib.util
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python tests/parity` has only this folder on its path
import helpers
from deepjax import functional, weights, zoo

SIZES = {"inception_v3": 299}  # pixels, for networks whose auxiliary head needs more than SIZE
SIZE, BATCH = 96, 4
SLOW_INIT = ("googlenet", "inception_v3")  # torchvision warns of it


class Parity(NamedTuple):
    """The largest differences between a network's outputs and torchvision's."""

    name: str
    parameters: int
    logits: float  # in float32
    torch: float  # PyTorch's float32 logits from its float64 ones
    wide_logits: float  # in float64
    settled: float  # in float32, with the batch's moments as the running ones
    wide_settled: float  # in float64, as all that follow
    train_logits: float
    moments: float
    gradients: float

    @property
    def holds(self):
        """Whether everything computed in float64 agrees to 1e-6, and float32 logits to 1e-4.

        If PyTorch's own rounding error with random moments comes near to 1e-4, the settled float32 logits count instead
        of the random ones. If it exceeds 0.1, the float64 logits with random moments do not count either.
        """
        wide = max(self.wide_settled, self.train_logits, self.moments, self.gradients) < 1e-6
        float32 = self.logits if self.torch < 2e-5 else self.settled
        return wide and float32 < 1e-4 and (self.wide_logits < 1e-6 or self.torch > 0.1)


def names():
    """Return the names of the networks that torchvision and the zoo have."""
    return [name for name in helpers.import_torchvision().models.list_models() if name in zoo.MODELS]


def torch_network(name, seed):
    """Return torchvision's network of that name with random parameters and moments."""
    options = {"init_weights": False} if name in SLOW_INIT else {}  # all of them are drawn anyway
    model = helpers.import_torchvision().models.get_model(name, weights=None, **options)
    helpers.randomize_torch(model, seed)
    return model


def torch_outputs(model, size, batch):
    """Return (state dict, settled state dict, images NCHW, labels, outputs) of a network of torchvision."""
    import torch

    state_dict = copy.deepcopy(model.state_dict())
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
    model.eval()
    with torch.no_grad():
        outputs = {"logits": model(x).numpy()}
    labels = torch.arange(batch) * 7 % outputs["logits"].shape[1]
    model.double()
    with torch.no_grad():
        outputs["wide_logits"] = model(x.double()).numpy()
    model.train()
    for module in model.modules():
        if "Dropout" in type(module).__name__ or type(module).__name__ == "StochasticDepth":
            module.eval()
    out = model(x.double())
    outs = [out] if isinstance(out, torch.Tensor) else list(out)  # logits, then the auxiliary heads'
    torch.stack([torch.nn.functional.cross_entropy(logits, labels) for logits in outs]).sum().backward()
    outputs["train_logits"] = torch.stack(outs).detach().numpy()
    outputs["gradients"] = {
        key: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for key, p in model.named_parameters()
    }
    outputs["moments"] = {key: value.clone().numpy() for key, value in model.state_dict().items() if "running_" in key}
    settled = settle(model, x)
    with torch.no_grad():
        outputs["settled"] = model.eval()(x).numpy()
        outputs["wide_settled"] = model.double()(x.double()).numpy()
    return state_dict, settled, x.numpy(), labels.numpy(), outputs


def settle(model, x):
    """Set the running moments of a float64 module in training mode to the batch's. Return its float32 state dict."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model(x.double())
    return copy.deepcopy(model.float().state_dict())


def without_dropout(network):
    """Return the network without dropout and stochastic depth."""
    fields = network.__dataclass_fields__
    rates = (("dropout", 0.0), ("auxiliary_dropout", 0.0), ("survival", 1.0))
    return network.clone(**{f: v for f, v in rates if f in fields})


def our_outputs(network, state_dict, settled, x, labels):
    """Return the outputs of our network, under PyTorch's names."""
    network = without_dropout(network)
    variables = weights.from_torch(network, state_dict)
    images = np.moveaxis(x, 1, -1)
    evaluate = jax.jit(lambda v, x: network.apply(v, x, train=False))
    settled = weights.from_torch(network, settled)
    outputs = {"logits": evaluate(variables, images), "settled": evaluate(settled, images)}

    def loss(params, batch_stats, x):
        out, new = network.apply({"params": params, "batch_stats": batch_stats}, x, train=True, mutable=["batch_stats"])
        outs = jax.numpy.stack(out) if isinstance(out, tuple) else out[None]
        loss = sum(functional.cross_entropy(logits, labels).mean() for logits in outs)
        return loss, (outs, new.get("batch_stats", {}))

    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, variables)
        images = images.astype(np.float64)
        outputs["wide_logits"] = evaluate(wide, images)
        outputs["wide_settled"] = evaluate(jax.tree.map(np.float64, settled), images)
        step = jax.jit(jax.grad(loss, has_aux=True))
        result = step(wide["params"], wide.get("batch_stats", {}), images)
        gradients, (logits, moments) = jax.device_get(result)
    back = weights.to_torch(network, {"params": gradients} | ({"batch_stats": moments} if moments else {}))
    return outputs | {
        "train_logits": logits,
        "gradients": {key: value for key, value in back.items() if key in {*state_dict} and "running_" not in key},
        "moments": {key: value for key, value in back.items() if "running_" in key},
    }


def compare(name, size=None, batch=BATCH, pair=None):
    """Return the Parity of a network with torchvision's of the same name, or of a pair (torchvision's, ours)."""
    model, network = pair or (torch_network(name, 0), zoo.create(name))
    *given, theirs = torch_outputs(model, max(size or SIZE, SIZES.get(name, 0)), batch)
    ours = our_outputs(network, *given)
    parameters = sum(value.size for value in theirs["gradients"].values())
    largest = max(np.abs(value).max() for value in theirs["gradients"].values())

    def each(what, floor=0.0):
        pairs = [(ours[what][key], value) for key, value in theirs[what].items()]
        return max((difference(a, b, floor) for a, b in pairs), default=0.0)

    return Parity(
        name,
        parameters,
        difference(ours["logits"], theirs["logits"]),
        difference(theirs["logits"], theirs["wide_logits"]),
        difference(ours["wide_logits"], theirs["wide_logits"]),
        difference(ours["settled"], theirs["settled"]),
        difference(ours["wide_settled"], theirs["wide_settled"]),
        difference(ours["train_logits"], theirs["train_logits"]),
        each("moments"),
        each("gradients", 1e-3 * largest),
    )


def difference(a, b, floor=0.0):
    """Return the largest difference over the largest value, or over `floor` if that is larger."""
    return float(np.abs(np.asarray(a) - b).max() / max(np.abs(b).max(), floor, 1e-30))


def main():
    """Print a table; exit with 1 if a network does not agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--all", action="store_true", help="every network that torchvision and the zoo have")
    parser.add_argument("--size", type=int, help=f"pixels of the images' sides (default {SIZE})")
    parser.add_argument("--batch", type=int, default=BATCH)
    options = parser.parse_args()
    if missing := [package for package in ("torch", "torchvision") if importlib.util.find_spec(package) is None]:
        parser.error(f"{' and '.join(missing)} missing; pip install '.[parity,test]'")
    jax.config.update("jax_default_matmul_precision", "highest")
    good = True
    print("| network | parameters | float32 | (torch) | float64 | settled float32 | settled float64 ", end="")
    print("| training | moments | gradients |\n" + "| --- " * 10 + "|")
    for name in names() if options.all else options.names:
        start = time.monotonic()
        row = compare(name, options.size, options.batch)
        figures = " | ".join(f"{value:.1e}" for value in row[2:])
        print(f"| `{name}` | {row.parameters:,} | {figures} |", flush=True)
        print(f"{name}: {time.monotonic() - start:.0f} s{'' if row.holds else ', does not agree'}", file=sys.stderr)
        good &= row.holds
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
