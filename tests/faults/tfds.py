"""Damage prepared TFDS folders in many ways: `python tests/faults/tfds.py [COUNT] [SEED]`.

A small set and an intact one lie in one folder. Each trial damages a copy of the small set: bytes of its files, or
values of its JSON files. Then `deepjax datasets` must exit with 0 and list the intact set. Loading the damaged one must
end in the images and labels that were written, or in an InputError of one line. Prints failures, then `N of COUNT`.
"""

import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu"}
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from calls import call

from data.sources.test_prepared import write_tfds
from deepjax import config, data
from deepjax.errors import InputError

VERSION = Path("shapes") / "1.0.0"
LABELS = {"train": [k % 3 for k in range(30)], "test": [2, 1, 0]}
RECORDS = "shapes-train.array_record-00000-of-00001"
# "30" and "3" are what some fields hold; -1 and 10**14 are numbers of examples, classes or pixels.
ODD = (None, True, -1, 0, 3, 10**14, 1.5, "", "x", "-1", "30", str(10**14), [], {}, ["x"], {"x": 1}, "\x00", "../x")
ODD += ("tensorflow_datasets.core.features.text_feature.Text", "os.path", "tfrecord", "shapes")


def places(value, path=()):
    """Return the paths of all values in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, inner in items for place in places(inner, (*path, key))]


def change_json(path, rng):
    """Replace, remove or rename one value of a JSON file; return what was done."""
    whole = json.loads(path.read_text())
    *outer, last = rng.choice(places(whole))
    holder = whole
    for key in outer:
        holder = holder[key]
    action = rng.choice(("replace", "replace", "replace", "remove", "rename"))
    if action == "rename" and isinstance(holder, dict):
        holder[last + "x"] = holder.pop(last)
    elif action == "replace":
        holder[last] = rng.choice(ODD)
    else:
        del holder[last]
    path.write_text(json.dumps(whole))
    return f"{action} {[*outer, last]} {holder.get(last, '') if isinstance(holder, dict) else holder}"


def change_bytes(path, rng):
    """Cut a file, overwrite some of its bytes, or put something else in its place; return what was done."""
    whole = path.read_bytes()
    action = rng.choice(("cut", "cut", "overwrite", "overwrite", "overwrite", "noise", "remove", "folder", "double"))
    if action in ("remove", "folder"):
        path.unlink()
        if action == "folder":
            path.mkdir()
        return action
    damaged = bytearray(whole)
    if action == "cut":
        damaged = damaged[: rng.randrange(len(whole))]
    elif action == "noise":
        damaged = bytearray(rng.randbytes(len(whole)))
    elif action == "double":
        damaged += whole
    else:
        for _ in range(rng.choice((1, 8, 64))):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
    path.write_bytes(damaged)
    return action


def written(split, pixels, labels):
    """Return whether images and labels are those of `write_tfds`."""
    numbers, expected = np.arange(len(LABELS[split])), np.array(LABELS[split])
    corners = np.stack([numbers, 7 * expected % 256, 0 * numbers], 1)
    return np.array_equal(labels, expected) and np.array_equal(pixels[:, 0, 0], corners)


def problem(root, intact=False):
    """Return what is wrong with how a damaged set, or an intact one, is handled; "" if nothing is."""
    code, out, err = call("datasets", "--data-dir", root)
    if code or err or not any(line.startswith("intact ") and "30 + 3 images" in line for line in out.splitlines()):
        return f"`deepjax datasets`: {code}, {err}, {out}"
    code, out, err = call("datasets", "--data-dir", root, "--json")
    if code or err or "intact" not in {row["name"] for row in json.loads(out)}:
        return f"`deepjax datasets --json`: {code}, {err}, {out}"
    try:
        data.about(config.Data("shapes"), str(root), 0)
    except InputError as error:
        about = str(error)
    else:
        about = ""
    try:
        found = data.load(config.Data("shapes", validation=0.0), str(root), 0)
    except InputError as error:
        line = str(error)
        one = "\n" not in line + about and len(line) < 400 and " at 0x" not in line
        return "" if one and not intact else f"refused: {line}"
    splits = {"train": found.train, "test": found.test}
    right = all(written(split, arrays.images, arrays.labels) for split, arrays in splits.items())
    return "" if right and found.shape == (20, 30, 3) else f"loads something else: {found.shape} {found.train.labels}"


def trial(intact, number, rng):
    """Damage a copy of the folder; return (what was done, what is wrong)."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "sets"
        shutil.copytree(intact, root)
        name = rng.choice(("dataset_info.json", "dataset_info.json", "features.json", "features.json", RECORDS))
        change = change_bytes if name == RECORDS or number % 3 == 0 else change_json
        done = f"{name}: {change(root / VERSION / name, rng)}"
        try:
            return done, problem(root)
        except Exception:
            return done, traceback.format_exc(limit=-4)


def main(count=94, seed=0):
    rng, good = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        root = write_tfds(Path(folder), LABELS)
        shutil.copytree(root / "shapes", root / "intact")
        for path in (root / "intact" / "1.0.0").iterdir():
            path.rename(path.with_name(path.name.replace("shapes", "intact")))
        info = root / "intact" / "1.0.0" / "dataset_info.json"
        info.write_text(info.read_text().replace("shapes", "intact"))
        assert not (wrong := problem(root, intact=True)), wrong
        for number in range(count):
            done, wrong = trial(root, number, rng)
            good += not wrong
            if wrong:
                print(f"{number}. {done}\n   {wrong}", flush=True)
    print(f"{good} of {count}")
    return good < count


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
