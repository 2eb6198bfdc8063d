"""Damage or edit the files of a finished run, then use the run: `python tests/faults/run_files.py [COUNT] [SEED]`.

Each trial copies a small finished run, changes one of its files, and calls `deepjax train` (which resumes), `eval`,
`predict` or `export` in this process. A trial is passed if the command ends with the result of the undamaged run (or,
with a warning, that of its older checkpoint), or with one line and exit code 1 or 2. It fails with an exception, with
other output on standard error (of libraries in C++ too), or with another result. Prints failures and `N of COUNT`.
Edits change types and shapes, but no number into another one, which would be another run.
"""

import collections
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

import numpy as np
from calls import call, is_one_line
from PIL import Image

PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)
VALUES = (None, True, "x", 0.5, -1, 10**400, [], {}, [[1]], {"a": 1}, float("nan"), "\ud800", [None])
OPTIONS = ["--model", "mlp", "--model-options", "depth=2", "width=8", "norm=batch", "--devices.count", "1"]
OPTIONS += ["--epochs", "3", "--data.augment.translate", "0", "--data.augment.scale", "0"]
RUNS = {"channel": OPTIONS, "zca": [*OPTIONS, "--data.standardize", "zca", "--data.epsilon", "0.1"]}
FORMATS = {"channel": "safetensors", "zca": "stablehlo"}


def places(value):
    """Yield (parent, key) of every entry of a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield value, key
        yield from places(entry)


def edit(value, rng):
    """Delete one entry of a JSON value, wrap it in a list, or give it another type. Return it in words."""
    parent, key = rng.choice(list(places(value)))
    old, how = parent[key], rng.choice(("type", "type", "delete", "wrap"))
    if how == "delete":
        del parent[key]
        return f"deleted {key!r}"
    wrong = [new for new in VALUES if type(new) is not type(old) and not (type(old) is float and type(new) is int)]
    wrong += [float("nan"), 10**400] if type(old) is float else []
    parent[key] = [old] if how == "wrap" else rng.choice(wrong)
    return f"{key!r} = {str(parent[key])[:20]}"


def damage_bytes(path, rng):
    """Truncate, empty, overwrite, flip or remove a file, or put a folder in its place. Return it in words."""
    content, how = path.read_bytes(), rng.choice(("cut", "cut", "empty", "random", "flip", "removed", "folder"))
    path.unlink()
    if how in ("cut", "empty"):
        path.write_bytes(content[: rng.randrange(len(content)) if content and how == "cut" else 0])
    elif how == "random":
        path.write_bytes(rng.randbytes(len(content)))
    elif how == "flip":
        flipped = np.frombuffer(content or b"0", np.uint8).copy()
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped.tobytes())
    elif how == "folder":
        path.mkdir()
    return how


def damage_json(path, rng):
    """Edit a JSON file, or replace it by another value. Return it in words."""
    if rng.random() < 0.3:
        return damage_bytes(path, rng)
    if rng.random() < 0.2:
        new = rng.choice([*VALUES[:10], [1], "[" * 100_000, '{"a": NaN}'])
        text, how = new if str(new)[:1] in "[{" and isinstance(new, str) else json.dumps(new), f"now {str(new)[:20]}"
    else:
        value = json.loads(path.read_bytes())
        how, text = edit(value, rng), json.dumps(value)
    path.write_text(text, encoding="utf-8")
    return how


def damage_lines(path, rng):
    """Damage one line of metrics.jsonl. Return it in words."""
    lines = path.read_bytes().split(b"\n")
    at = rng.randrange(len(lines))
    new = rng.choice((b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"step": "x"}', lines[at][: len(lines[at]) // 2]))
    path.write_bytes(b"\n".join([*lines[:at], new, *lines[at + 1 :]]))
    return f"line {at + 1} = {new!r}"


def damage_npz(path, rng):
    """Change, delete or add an array. Return it in words."""
    if rng.random() < 0.4:
        return damage_bytes(path, rng)
    with np.load(path) as file:
        arrays = dict(file)
    name = rng.choice(list(arrays))
    old = arrays.pop(name)
    new = {"nan": np.full(old.shape, np.nan, np.float32), "infinite": np.full(old.shape, np.inf, np.float32)}
    new |= {"shape": np.zeros((2, 3), np.float32), "more": np.stack([old, old]), "text": np.array("x")}
    new |= {"whole": np.ones(old.shape, int), "complex": np.ones(old.shape, complex)}
    how = rng.choice(["deleted", *new])
    np.savez(path, **arrays, **({name: new[how]} if how in new else {}))
    return f"{name} {how}"


DAMAGES = {"config.json": damage_json, "data.json": damage_json, "summary.json": damage_json, "inputs.npz": damage_npz}
DAMAGES |= {"metrics.jsonl": damage_lines, "sha256.json": damage_json}


def command(name, folder, kind, image):
    """Return the arguments of a command on a run."""
    if name == "train":
        return [name, "digits", *RUNS[kind], "--workdir", folder]
    if name == "export":
        return [name, folder, "--format", FORMATS[kind], "--out", folder.parent / "out.safetensors"]
    return [name, folder, *([image] if name == "predict" else []), "--json"]


def result(name, kind, folder, out):
    """Return what a command has found, without the paths and times."""
    if name == "train":
        return json.loads((folder / "summary.json").read_bytes())["result"]
    if name != "export":
        return out.replace(str(folder), "RUN")
    content = (folder.parent / "out.safetensors").read_bytes()
    if kind == "channel":
        return content
    from jax import export  # two programs of the same run differ in what they record of their sources

    return export.deserialize(bytearray(content)).call(PIXELS.reshape(1, 8, 8, 1)).tolist()


def problem(code, out, err, found, right, older):
    """Return what is wrong with the end of a command, or ""."""
    if code in (1, 2):
        return "" if is_one_line(err) else f"standard error of code {code}: {err}"
    if code != 0 or err.replace("deepjax: warning: ", "").count("\n") != err.count("deepjax: warning: "):
        return f"code {code}, standard error: {err}"
    fits = found == right or (found == older and "warning: checkpoint" in out + err)
    return "" if fits else f"another result: {str(found)[:300]}"


def references(here, image):
    """Train the runs. Return ({(kind, command): result}, the same without the newest checkpoint)."""
    found = {}, {}
    for kind, options in RUNS.items():
        assert call("train", "digits", *options, "--workdir", here / kind)[0] == 0
        folder = shutil.copytree(here / kind, here / "reference")
        for results in found:
            for name in ("eval", "predict", "export", "train"):
                (folder / "summary.json").unlink(missing_ok=True)
                code, out, err = call(*command(name, folder, kind, image))
                assert code == 0, err
                results[kind, name] = result(name, kind, folder, out)
            shutil.rmtree(max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name)))
        shutil.rmtree(folder)
    return found


def trial(here, image, rng, right, older):
    """Damage one file of a copy, and call a command. Return (its exit code, what was done, what is wrong or "")."""
    kind, name = rng.choice(list(RUNS)), rng.choice(("train", "eval", "predict", "export"))
    folder = shutil.copytree(here / kind, here / "work" / "run")
    inside = sorted(path for path in (folder / "checkpoints").rglob("*") if path.is_file())
    records = sorted(path for path in folder.iterdir() if path.name in DAMAGES)
    path = rng.choice(inside if rng.random() < 0.3 else records)
    if name == "train" and path.name != "summary.json":
        (folder / "summary.json").unlink()
    what = f"{name} {kind} {path.relative_to(folder)}: {DAMAGES.get(path.name, damage_bytes)(path, rng)}"
    code, out, err = call(*command(name, folder, kind, image))
    found = result(name, kind, folder, out) if code == 0 else None
    shutil.rmtree(here / "work")
    return code, what, problem(code, out, err, found, right[kind, name], older[kind, name])


def main(count=400, seed=0):
    """Run the trials. Return the exit code."""
    rng, codes, failed = random.Random(seed), collections.Counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        here, image = Path(folder), Path(folder) / "image.png"
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(here / "cache")
        Image.fromarray(PIXELS).save(image)
        found = references(here, image)
        for number in range(count):
            code, what, wrong = trial(here, image, rng, *found)
            codes[code if isinstance(code, int) else "exception"] += 1
            if wrong:
                failed += 1
                print(f"trial {number}: {what}: {wrong[-1500:]}", flush=True)
    print(f"{count - failed} of {count}; exit codes {dict(codes)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
