"""Convert damaged, odd and foreign weights files: `python tests/faults/weights.py [SEED]`. Needs PyTorch.

`odd_weights.py` writes the files. `deepjax convert` must exit with 0 and write the right numbers, or with 2 and one
line on standard error. Numbers that are damaged beyond detection may become other finite numbers. Files that are finite
but overflow are used to `predict`. Prints failures, then `N of COUNT`.
"""

import json
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu"}
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from calls import call, is_one_line
from odd_weights import ANY, NETWORK, PLAIN, REFUSED, RIGHT, VARIABLES, cases, ours
from PIL import Image

from deepjax import weights
from deepjax.weights import files


def convert(folder, suffix, content, must):
    """Return what is wrong with the conversion of a file; "" if nothing is."""
    source, result = folder / f"a{suffix}", folder / "out.safetensors"
    source.write_bytes(content)
    result.unlink(missing_ok=True)
    is_ours = files.MARK.encode() in content[:1000] and must == REFUSED
    options = [] if is_ours else ["--options", "width=4"]
    code, out, err = call("convert", "resnet18", source, result, "--layout", "deepjax", *options)
    said = f"exit code {code}: {out}{err}"
    if code == 2:
        refused = is_one_line(err) and not out and not result.exists() and " at 0x" not in err
        return "" if refused and must != RIGHT else said
    if code or err or must == REFUSED:
        return said
    found = weights.to_torch(NETWORK, weights.load_file(result).variables)
    if must == ANY:
        return "" if all(np.isfinite(value).all() for value in found.values()) else f"not finite: {said}"
    return "" if all(np.array_equal(found[name], value) for name, value in PLAIN.items()) else f"other numbers: {said}"


def predict(folder, change, code):
    """Return what is wrong with predictions by weights that were changed: change(name of a variable, its values)."""
    image, source = folder / "a.png", folder / "a.safetensors"
    Image.new("RGB", (40, 40), (200, 100, 0)).save(image)
    changed = jax.tree_util.tree_map_with_path(lambda path, leaf: change(path[-1].key, leaf), VARIABLES)
    source.write_bytes(ours(changed, preprocessing={"resize": 36, "crop": 32}))
    found, out, err = call("predict", "resnet18", image, "--weights", source, "--json")
    if found != code or "nan" in (out + err).lower():
        return f"exit code {found}: {out}{err}"
    return "" if (json.loads(out) and not err if code == 0 else is_one_line(err) and not out) else f"{out}{err}"


PREDICTED = (
    ("usual weights", lambda name, leaf: leaf, 0),
    ("negative variances", lambda name, leaf: -leaf if name == "var" else leaf, 2),
    ("kernels that overflow", lambda name, leaf: leaf * np.float32(1e30) if name == "kernel" else leaf, 2),
)


def main(seed=0):
    trials = [(what, convert, *given) for what, *given in cases(random.Random(seed))]
    trials += [(what, predict, *given) for what, *given in PREDICTED]
    good = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (what, check, *given) in enumerate(trials):
            problem = check(Path(folder), *given)
            good += not problem
            if problem:
                print(f"{number}. {what}\n   {problem}", flush=True)
    print(f"{good} of {len(trials)}")
    return good < len(trials)


if __name__ == "__main__":
    with warnings.catch_warnings(action="ignore"):  # PyTorch's, of tensors in beta that are written here
        sys.exit(main(*map(int, sys.argv[1:])))
