"""A trained network as one file: for other programs, other machines, PyTorch."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp

from deepjax import data, files, weights
from deepjax.errors import InputError
from deepjax.inference.predict import outputs
from deepjax.inference.run import Run
from deepjax.weights.files import SUFFIXES, check_suffix, save_state_dict

PLATFORMS = ("cpu", "cuda", "tpu")


def forward(run):
    """Return the function images as they are stored -> logits; standardization is part of it.

    uint8 [batch, H, W, C] (for a set of features, float32 [batch, features]) -> float32 [batch, classes], whose softmax
    are the probabilities. For several snapshots it is the logarithm of their mean probability. For regression it is
    float32 [batch], the prediction in the target's own units; for several snapshots, their mean.
    """

    def function(images):
        return run.task.exported(jnp.stack([outputs(run, variables, images) for variables in run.members]))

    return function


def stablehlo(run, *, platforms=PLATFORMS) -> bytes:
    """Return `forward` with its weights as StableHLO, for any batch size: what `jax.export.deserialize` reads.

        call = jax.export.deserialize(bytearray(Path("net.stablehlo").read_bytes())).call
        logits = call(images)

    Standardization is part of it; reading, resizing and cropping images are not.

    Args:
      run: a Run or a Classifier.
      platforms: backends on which the program can run, among cpu, cuda, rocm and tpu.

    Raises:
      InputError: flatbuffers, which JAX's serialization needs, is not installed.
    """
    if not find_spec("flatbuffers"):
        raise InputError("format stablehlo needs the package flatbuffers; pip install flatbuffers")
    from jax import export

    batch = export.symbolic_shape("batch")
    dtype = jnp.uint8 if len(run.shape) == 3 else jnp.float32
    images = jax.ShapeDtypeStruct((*batch, *run.shape), dtype)
    exported = export.export(jax.jit(forward(run)), platforms=tuple(platforms))(images)
    return bytes(exported.serialize())


def to_pretrained(run) -> weights.Pretrained:
    """Return a run, or a Classifier, as what `weights.save_pretrained` writes.

    Preprocessing is recorded as a resize and a crop. For a run that resizes whole images, these have the same effect on
    square images.

    Raise InputError for what such a file cannot hold: snapshots, features, non-square images, another standardization
    than that of channels.
    """
    if not isinstance(run, Run):
        return weights.Pretrained(run.model, run.members[0], run.preprocessing, run.classes, run.source)
    where, height = run.config.workdir, run.shape[0]
    if not run.classes:
        raise InputError(f"{where} predicts numbers, a weights file holds a classifier; export as stablehlo")
    if len(run.members) > 1:
        raise InputError(f"{where} has {len(run.members)} snapshots, a weights file holds one; export as stablehlo")
    if len(run.shape) != 3 or run.shape[1] != height:
        raise InputError(f"{where} takes inputs of shape {run.shape}, not square images; export as stablehlo")
    if run.standardizer.kind != "channel":
        raise InputError(
            f"{where} standardizes images by {run.standardizer.kind}, which a weights file cannot hold; export as "
            f"stablehlo"
        )
    mean, std = (tuple(map(float, values)) for values in (run.standardizer.shift, run.standardizer.scale))
    resize = round(height * 256 / 224) if run.fit == "photograph" else height
    crop = run.config.data.center_crop
    return weights.Pretrained(
        run.model.clone(usual_input=data.cropped_shape(run.shape, crop), dtype=None),
        run.variables,
        weights.Preprocessing(resize, crop or height, mean, std),
        run.classes,
        {"network": run.config.model, "options": dict(run.config.model_options)},
    )


def export(run, form, path, *, layout="deepjax", platforms=PLATFORMS):
    """Write a Run or a Classifier to a file.

    Args:
      run: from `load_run` or `load_classifier`.
      form: "stablehlo" (see there) or "safetensors".
      path: path of the file; for safetensors with that ending, or with layout torch .pth or .pt.
      layout: of safetensors. "deepjax": with class names and preprocessing, see `weights.load_pretrained`. "torch":
        PyTorch's names, for networks that torchvision has.
      platforms: of stablehlo.

    Raises:
      InputError: another form or layout, and as `stablehlo`, `to_pretrained` and `weights.to_torch`.
    """
    if form == "stablehlo":
        files.write_bytes(path, stablehlo(run, platforms=platforms))
    elif form == "safetensors" and layout == "deepjax":
        weights.save_pretrained(check_suffix(path, (".safetensors",)), to_pretrained(run))
    elif form == "safetensors" and layout == "torch":
        check_suffix(path, SUFFIXES)
        found = to_pretrained(run)
        save_state_dict(path, weights.to_torch(found.network, found.variables))
    else:
        raise InputError(f"format {form!r} and layout {layout!r}: choose stablehlo, or safetensors of deepjax or torch")
