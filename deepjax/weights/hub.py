"""Pretrained weights from the Hugging Face hub.

The hub's repositories of timm hold torchvision's published ImageNet weights. What is fetched stays in a folder with a
record of the commit that it is from and its SHA-256, against which every later use checks it; nothing is fetched twice.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import jax
from filelock import FileLock

from deepjax import zoo
from deepjax.errors import InputError, choices, first_line
from deepjax.files import write_json
from deepjax.weights.files import TORCH, read_state_dict
from deepjax.weights.pretrained import PREPROCESSING, Pretrained, load_file
from deepjax.weights.pytorch import from_torch


@dataclass(frozen=True)
class Source:
    """Where pretrained weights are, and what they are."""

    network: str  # name in the zoo
    repository: str
    preprocessing: str = "imagenet"  # a key of PREPROCESSING
    names: dict[str, str] = field(default_factory=dict)  # beginnings of timm's names -> of torchvision's
    absent: tuple[str, ...] = ()  # layers that the file may lack: not needed for inference
    file: str = "model.safetensors"


# In timm's VGG, the first two dense layers are convolutions of 7x7 and 1x1 with the same numbers in the same order.
VGG = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}


def _sources(networks, tag="tv_in1k", **fields):
    return {f"{name}.{tag}": Source(name, f"timm/{name}.{tag}", **fields) for name in networks.split()}


# {name.tag, as timm has it: Source}. tv: IMAGENET1K_V1 of torchvision, tv2: IMAGENET1K_V2.
PRETRAINED = (
    _sources("resnet18 resnet34 resnet50 resnet101 resnet152")
    | _sources("wide_resnet50_2 wide_resnet101_2 resnext50_32x4d resnext101_32x8d")
    | _sources("resnext101_64x4d", preprocessing="imagenet_v2")
    | _sources("resnet50 resnet101 resnet152", "tv2_in1k", preprocessing="imagenet_v2")
    | _sources("wide_resnet50_2 wide_resnet101_2", "tv2_in1k", preprocessing="imagenet_v2")
    | _sources("resnext50_32x4d resnext101_32x8d", "tv2_in1k", preprocessing="imagenet_v2")
    | _sources("densenet121 densenet161 densenet169 densenet201")
    | _sources("vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn", names=VGG)
    | _sources("inception_v3", preprocessing="inception", absent=("AuxLogits.",))
)


def load_pretrained(
    name, *, num_classes=None, reset_head=False, key=None, revision=None, cache_dir=None, endpoint=None, **options
) -> Pretrained:
    """A network with trained weights, from the hub (once fetched: from the cache) or from a file.

        found = load_pretrained("resnet50.tv2_in1k")
        logits = found.network.apply(found.variables, images, train=False)

    Args:
      name: a key of `PRETRAINED`, such as resnet50.tv2_in1k; or a network's name: its tv_in1k; or the path of a
        .safetensors file that `save_variables` or `deepjax convert` wrote.
      num_classes: logits, if other than the weights'; needs reset_head.
      reset_head: the layers whose size is the number of classes begin anew.
      key: PRNG key of what begins anew; None: jax.random.key(0).
      revision: commit, tag or branch of the repository. None: what is in the cache of its main branch, else the
        newest.
      cache_dir: folder of what was fetched; None: `cache_folder()`.
      endpoint: the hub's address; None: huggingface.co, or what the environment variable HF_ENDPOINT says.
      **options: of the network, see `zoo.options_of`.

    Raises:
      InputError: an unknown name, revision or file; weights that cannot be fetched, are damaged, or do not fit.
    """
    key = jax.random.key(0) if key is None else key
    if Path(name).suffix in (".safetensors", *TORCH):
        if revision is not None:
            raise InputError(f"revision {revision!r}: {name} is a file, which has none")
        return load_file(name, num_classes=num_classes, reset_head=reset_head, key=key, **options)
    source = PRETRAINED[find(name)]
    network = zoo.create(source.network, num_classes=num_classes, **options)
    path, record = fetch(name, revision=revision, cache_dir=cache_dir, endpoint=endpoint)
    tensors = _translated(read_state_dict(path), source.names)
    variables = from_torch(network, tensors, reset_head=reset_head, key=key, fresh=source.absent)
    source_of = {"network": source.network, "options": options, **record}
    return Pretrained(network, variables, PREPROCESSING[source.preprocessing], None, source_of)


def find(name) -> str:
    """The key of `PRETRAINED` that a name means. Raises InputError for one that has no weights there."""
    key = name if name in PRETRAINED else f"{name}.tv_in1k"
    if key not in PRETRAINED:
        raise InputError(f"no pretrained weights are known for {name!r}; {choices(str(name), PRETRAINED)}")
    return key


def cache_folder() -> Path:
    """The folder of what was fetched: deepjax in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepjax"


def is_cached(name, *, revision=None, cache_dir=None) -> bool:
    """Whether `load_pretrained` would do without the network."""
    return (_folder(find(name), revision, cache_dir) / "record.json").exists()


def fetch(name, *, revision=None, cache_dir=None, endpoint=None) -> tuple[Path, dict[str, str]]:
    """(weights file, its record: repository, file, revision, sha256). Arguments and errors as `load_pretrained`."""
    key = find(name)
    source, folder = PRETRAINED[key], _folder(key, revision, cache_dir)
    path, note = folder / source.file, folder / "record.json"
    if not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not note.exists():  # nor has another process fetched it meanwhile
                record = _download(source, folder, revision, endpoint)
                write_json(note, record)  # from here on the weights file counts as complete
                return path, record
    try:
        record = dict(json.loads(note.read_text()))
        whole = path.is_file() and sha256(path) == record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(
            f"{path} is damaged: it is not what {note.name} says was fetched; delete {folder} and try again"
        )
    return path, record


def sha256(path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(source, folder, revision, endpoint):
    """Fetch the file of one commit; its record. InputError if that fails."""
    import huggingface_hub as hub

    wanted = revision or "main"
    try:  # no token: these are public
        url = hub.hf_hub_url(source.repository, source.file, revision=wanted, endpoint=endpoint)
        about = hub.get_hf_file_metadata(url, token=False, endpoint=endpoint)
        if not about.commit_hash:
            raise InputError("no commit in its answer; is the endpoint a Hugging Face hub?")
        hub.hf_hub_download(
            source.repository,
            source.file,
            revision=about.commit_hash,
            local_dir=folder,
            token=False,
            endpoint=endpoint,
        )
    except hub.errors.RevisionNotFoundError:
        raise InputError(
            f"revision {wanted!r} is not in the hub's {source.repository}; leave it out, or look there"
        ) from None
    except Exception as error:  # of whichever HTTP library the hub's client uses
        raise InputError(
            f"{source.repository} {source.file} cannot be fetched from the hub: {first_line(error)}"
        ) from None
    digest = sha256(folder / source.file)
    if len(about.etag or "") == len(digest) and about.etag != digest:  # of large files the ETag is the SHA-256
        (folder / source.file).unlink()
        raise InputError(f"{source.repository} {source.file} came damaged from the hub; try again")
    return {
        "repository": source.repository,
        "file": source.file,
        "revision": about.commit_hash,
        "sha256": digest,
    }


def _folder(key, revision, cache_dir):
    """Where a revision is kept. It may be a path, such as refs/pr/1, but must not lead out of the cache."""
    if revision is not None and not re.fullmatch(r"(?!.*\.\.)\w[\w./-]*", revision):
        raise InputError(f"revision {revision!r}: give a commit, a tag or a branch")
    return Path(cache_dir or cache_folder()) / key / (revision or "main").replace("/", "--")


def _translated(tensors, names):
    """Under torchvision's names and in its shapes: {old beginning: new beginning}."""
    found = {}
    for theirs, value in tensors.items():
        old = next((old for old in names if theirs.startswith(old)), "")
        flat = old and value.ndim == 4  # a dense layer that was a convolution over the whole map
        found[names.get(old, "") + theirs.removeprefix(old)] = value.reshape(len(value), -1) if flat else value
    return found
