"""A trained network as one file: for other programs, for other machines, for PyTorch."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp

from deepjax import files, weights
from deepjax.errors import InputError
from deepjax.training.inference import Run
from deepjax.training.step import apply_model
from deepjax.weights.files import TORCH, check_suffix, save_state_dict

PLATFORMS = ("cpu", "cuda", "tpu")


def answers(run):
    """A function of images as they are stored that standardizes them, and gives logits.

    uint8 [batch, H, W, C] (for a set of features, float32 [batch, features]) -> float32 [batch, classes], whose softmax
    are the probabilities. Of several snapshots it is the logarithm of their mean probability.
    """

    def answer(images):
        mask = jnp.ones(images.shape[:1], bool)
        x = run.standardizer.apply(images)
        logits = [
            apply_model(run.model, variables, x, mask, train=False).astype(jnp.float32) for variables in run.members
        ]
        if len(logits) == 1:
            return logits[0]
        return jax.nn.logsumexp(jnp.stack([jax.nn.log_softmax(each) for each in logits]), 0) - jnp.log(len(logits))

    return answer


def stablehlo(run, *, platforms=PLATFORMS) -> bytes:
    """`answers` with its weights as StableHLO, for any batch size: what `jax.export.deserialize` reads.

        call = jax.export.deserialize(bytearray(Path("net.stablehlo").read_bytes())).call
        logits = call(images)

    Standardization is part of it; reading, resizing and cropping of images are not.

    Args:
      run: a Run or a Classifier.
      platforms: where it shall run, of cpu, cuda, rocm and tpu.

    Raises:
      InputError: flatbuffers, which JAX's serialization needs, is not installed.
    """
    if not find_spec("flatbuffers"):
        raise InputError("format stablehlo needs the package flatbuffers; pip install flatbuffers")
    from jax import export

    batch = export.symbolic_shape("batch")
    dtype = jnp.uint8 if len(run.shape) == 3 else jnp.float32
    images = jax.ShapeDtypeStruct((*batch, *run.shape), dtype)
    exported = export.export(jax.jit(answers(run)), platforms=tuple(platforms))(images)
    return bytes(exported.serialize())


def pretrained(run) -> weights.Pretrained:
    """A run, or a Classifier, as what `weights.save_pretrained` writes.

    The images' preparation is told as a resize and a crop. Of a run whose images were resized whole, these do the same
    for square images.

    Raises InputError for what such a file has no place for: snapshots, features, non-square images, another
    standardization than that of channels.
    """
    if not isinstance(run, Run):
        return weights.Pretrained(run.model, run.members[0], run.preprocessing, run.classes, run.source)
    where, height = run.config.workdir, run.shape[0]
    if len(run.members) > 1:
        raise InputError(f"{where} has {len(run.members)} snapshots, a weights file is of one; export as stablehlo")
    if len(run.shape) != 3 or run.shape[1] != height:
        raise InputError(f"{where} takes inputs of shape {run.shape}, not square images; export as stablehlo")
    if run.standardizer.kind != "channel":
        raise InputError(
            f"{where} standardizes images by {run.standardizer.kind}, for which a weights file has no place; export as "
            f"stablehlo"
        )
    mean, std = (tuple(map(float, values)) for values in (run.standardizer.shift, run.standardizer.scale))
    resize = round(height * 256 / 224) if run.fit == "photograph" else height
    return weights.Pretrained(
        run.model.clone(usual_input=run.shape, dtype=None),
        run.variables,
        weights.Preprocessing(resize, height, mean, std),
        run.classes,
        {"network": run.config.model, "options": dict(run.config.model_options)},
    )


def export(run, form, path, *, layout="deepjax", platforms=PLATFORMS):
    """Write a Run or a Classifier to a file.

    Args:
      run: of `inference.load_run` or `load_classifier`.
      form: "stablehlo" (see there) or "safetensors".
      path: of the file; for safetensors with that ending, or with layout torch .pth or .pt.
      layout: of safetensors. "deepjax": with class names and preprocessing, see `weights.load_pretrained`. "torch":
        PyTorch's names, for networks that torchvision has.
      platforms: of stablehlo.

    Raises:
      InputError: another form or layout, and as `stablehlo`, `pretrained` and `weights.to_torch`.
    """
    if form == "stablehlo":
        files.write_bytes(path, stablehlo(run, platforms=platforms))
    elif form == "safetensors" and layout == "deepjax":
        weights.save_pretrained(check_suffix(path, (".safetensors",)), pretrained(run))
    elif form == "safetensors" and layout == "torch":
        check_suffix(path, (".safetensors", *TORCH))
        found = pretrained(run)
        save_state_dict(path, weights.to_torch(found.network, found.variables))
    else:
        raise InputError(f"format {form!r} and layout {layout!r}: choose stablehlo, or safetensors of deepjax or torch")
