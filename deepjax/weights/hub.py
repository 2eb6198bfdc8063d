"""Pretrained weights from the Hugging Face hub.

The hub's repositories of timm hold torchvision's published ImageNet weights. A fetched file stays in a cache folder,
with a record of its commit and its SHA-256. Every later use checks the file against that record. Nothing is fetched
twice.
"""

import hashlib
import json
import os
import re
from pathlib import Path

import jax
from filelock import FileLock

from deepjax import zoo
from deepjax.errors import InputError, choices, first_line
from deepjax.files import write_json
from deepjax.weights.bundle import Pretrained, load_file
from deepjax.weights.files import SUFFIXES, read_state_dict
from deepjax.weights.pytorch import from_torch
from deepjax.zoo.cards import HubFile, Preprocessing

# {network.tag, as timm names it: (network, its file)}, from the networks' cards
PRETRAINED: dict[str, tuple[str, HubFile]] = {
    f"{network}.{tag}": (network, file) for network, card in zoo.CARDS.items() for tag, file in card.hub.items()
}


def load_pretrained(
    name, *, num_classes=None, reset_head=False, key=None, revision=None, cache_dir=None, endpoint=None, **options
) -> Pretrained:
    """Load a network with trained weights, from a file, from the cache, or else from the hub.

        found = load_pretrained("resnet50.tv2_in1k")
        logits = found.network.apply(found.variables, images, train=False)

    Args:
      name: a key of `PRETRAINED`, such as resnet50.tv2_in1k; or a network's name, which stands for its tv_in1k; or the
        path of a .safetensors file that `save_pretrained` or `deepjax convert` wrote.
      num_classes: number of logits, if other than the weights'; needs reset_head.
      reset_head: initialize the layers whose size is the number of classes, instead of loading them.
      key: PRNG key of the layers that are initialized. None: jax.random.key(0).
      revision: commit, tag or branch of the repository. None: the main branch, as it was when it was first fetched.
      cache_dir: folder of fetched files. None: `cache_folder()`.
      endpoint: the hub's address. None: the environment variable HF_ENDPOINT, or else huggingface.co.
      **options: options of the network, see `zoo.options_of`.

    Raises:
      InputError: an unknown name, revision or file; weights that cannot be fetched, are damaged, or do not fit.
    """
    key = jax.random.key(0) if key is None else key
    if Path(name).suffix in SUFFIXES:
        if revision is not None:
            raise InputError(f"revision {revision!r}: {name} is a file, and files have no revision; leave it out")
        return load_file(name, num_classes=num_classes, reset_head=reset_head, key=key, **options)
    network_name, file = PRETRAINED[find(name)]
    network = zoo.create(network_name, options, num_classes=num_classes)
    path, record = fetch(name, revision=revision, cache_dir=cache_dir, endpoint=endpoint)
    tensors = _renamed(read_state_dict(path), file.renamed)
    variables = from_torch(network, tensors, reset_head=reset_head, key=key, fresh=file.absent)
    source = {"network": network_name, "options": options, **record}
    return Pretrained(network, variables, file.preprocessing, None, source)


def find(name) -> str:
    """Return the key of `PRETRAINED` that a name stands for. Raise InputError if there is none."""
    key = name if name in PRETRAINED else f"{name}.tv_in1k"
    if key not in PRETRAINED:
        raise InputError(f"there are no pretrained weights for {name!r}; {choices(str(name), PRETRAINED)}")
    return key


def preprocessing(name) -> Preprocessing:
    """Return how images are prepared for a key of `PRETRAINED`, or for a network's IMAGENET1K_V1 weights.

    Raises:
      InputError: a name that is neither, or a network of which torchvision has no weights.
    """
    if name in PRETRAINED:
        return PRETRAINED[name][1].preprocessing
    if name not in zoo.CARDS:
        raise InputError(f"preprocessing of {name!r} is unknown; {choices(str(name), [*zoo.CARDS, *PRETRAINED])}")
    return zoo.preprocessing(name)


def cache_folder() -> Path:
    """Return the folder of fetched files: deepjax in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepjax"


def is_cached(name, *, revision=None, cache_dir=None) -> bool:
    """Return whether `load_pretrained` needs no connection for these weights."""
    return (_folder(find(name), revision, cache_dir) / "record.json").exists()


def fetch(name, *, revision=None, cache_dir=None, endpoint=None) -> tuple[Path, dict[str, str]]:
    """Return (weights file, its record: repository, file, revision, sha256). Args and errors as `load_pretrained`."""
    key = find(name)
    file, folder = PRETRAINED[key][1], _folder(key, revision, cache_dir)
    path, note = folder / file.file, folder / "record.json"
    if not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not note.exists():  # another process may have fetched it in the meantime
                record = _download(file, folder, revision, endpoint)
                write_json(note, record)  # the record is written last: its existence marks the download as complete
                return path, record
    try:
        record = dict(json.loads(note.read_bytes()))
        intact = path.is_file() and sha256(path) == record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise InputError(
            f"{path} is damaged: its contents do not match {note.name}; delete {folder} and run the command again"
        )
    return path, record


def sha256(path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(file, folder, revision, endpoint):
    """Fetch the file of one commit and return its record. Raise InputError if that fails."""
    import huggingface_hub as hub

    wanted = revision or "main"
    where = f"{file.repository} {file.file}"
    try:  # no token: the repositories are public
        url = hub.hf_hub_url(file.repository, file.file, revision=wanted, endpoint=endpoint)
        about = hub.get_hf_file_metadata(url, token=False, endpoint=endpoint)
        if not about.commit_hash:
            raise InputError("the response names no commit; is the endpoint a Hugging Face hub?")
        hub.hf_hub_download(
            file.repository, file.file, revision=about.commit_hash, local_dir=folder, token=False, endpoint=endpoint
        )
    except hub.errors.RevisionNotFoundError:
        raise InputError(
            f"revision {wanted!r} is not in the hub's {file.repository}; leave it out, or take one that is listed there"
        ) from None
    except Exception as error:  # the hub's client may use any HTTP library
        raise InputError(f"{where} cannot be fetched from the hub: {first_line(error)}") from None
    digest = sha256(folder / file.file)
    if len(about.etag or "") == len(digest) and about.etag != digest:  # the ETag of a large file is its SHA-256
        (folder / file.file).unlink()
        raise InputError(f"{where} was damaged on its way from the hub; run the command again")
    return {"repository": file.repository, "file": file.file, "revision": about.commit_hash, "sha256": digest}


def _folder(key, revision, cache_dir):
    """Return the folder of a revision, which may be a path, such as refs/pr/1, but must not lead out of the cache."""
    if revision is not None and not re.fullmatch(r"(?!.*\.\.)\w[\w./-]*", revision):
        raise InputError(f"revision {revision!r}: give a commit, a tag or a branch")
    return Path(cache_dir or cache_folder()) / key / (revision or "main").replace("/", "--")


def _renamed(tensors, prefixes):
    """Return the tensors under torchvision's names and in its shapes. prefixes: {prefix in the file: torchvision's}."""
    found = {}
    for theirs, value in tensors.items():
        old = next((old for old in prefixes if theirs.startswith(old)), "")
        flat = old and value.ndim == 4  # a dense layer that was a convolution over the whole map
        found[prefixes.get(old, "") + theirs.removeprefix(old)] = value.reshape(len(value), -1) if flat else value
    return found
