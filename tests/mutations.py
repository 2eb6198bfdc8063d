"""Check that the tests are strong: apply small faults to the package, one at a time, and see each one caught.

    python tests/mutations.py              # all of them
    python tests/mutations.py fold stride  # those whose name contains a word
    python tests/mutations.py --list

Each mutation replaces one text in a copy of the package and runs the tests named beside it on that copy. It is caught if
a test fails. The exit code is 1 if a mutation survives, and 2 if its text is no longer in the file.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutation(NamedTuple):
    """One small fault, and the tests that must fail."""

    name: str
    file: str  # in deepjax/
    old: str  # found exactly once in the file
    new: str
    tests: str  # arguments of pytest


F, T = "functional", "tests/functional"
MUTATIONS = [
    Mutation("batch norm: dropped mask", f"{F}/batch_normalization.py",
             "batch, count = _moments_and_count(x, mask, axis_name)\n    y = _normalize(x, scale, bias, batch, epsilon)\n    return y, _mix(momentum, running, _corrected(\"batch_norm\"",
             "batch, count = _moments_and_count(x, None, axis_name)\n    y = _normalize(x, scale, bias, batch, epsilon)\n    return y, _mix(momentum, running, _corrected(\"batch_norm\"",
             f"{T}/test_batch_norm.py"),
    Mutation("batch norm: variance divided by n + 1", f"{F}/batch_normalization.py",
             "batch.var * (count / jnp.maximum(count - 1, 1))", "batch.var * (count / jnp.maximum(count + 1, 1))",
             f"{T}/test_batch_norm.py"),
    Mutation("batch norm backward: sign of dmean", f"{F}/batch_normalization.py",
             "dmean = -inverse * dz.sum", "dmean = inverse * dz.sum", f"{T}/test_batch_norm.py"),
    Mutation("local response norm: alpha not divided by size", f"{F}/normalization.py",
             "alpha * total / size", "alpha * total", f"{T}/test_normalization.py"),
    Mutation("cross entropy: sign of smoothing", f"{F}/losses.py",
             "- smoothing * log_p.mean(-1)", "+ smoothing * log_p.mean(-1)", f"{T}/test_losses.py"),
    Mutation("alpha dropout: share of the dropped", f"{F}/dropout.py",
             "(1 + (1 - keep) * _SELU_SATURATION**2)", "(1 + keep * _SELU_SATURATION**2)", f"{T}/test_dropout.py -k alpha"),
    Mutation("stochastic depth: decay rule", f"{F}/dropout.py",
             "return 1 - unit / units * (1 - last)", "return 1 - unit / units * last", f"{T}/test_stochastic_depth.py -k survival"),
    Mutation("convolution: kernel not flipped in the input gradient", f"{F}/convolution/canonical.py",
             "jnp.flip(kernel, tuple(range(len(form.axes)))).swapaxes(-1, -2)", "kernel.swapaxes(-1, -2)",
             f"{T}/convolution/test_maps.py -k geometry"),
    Mutation("convolution: stride of the kernel gradient", f"{F}/convolution/canonical.py",
             "rhs_dilation=[a.stride for a in form.axes]", "rhs_dilation=[a.dilation for a in form.axes]",
             f"{T}/convolution/test_maps.py -k geometry"),
    Mutation("transposed convolution: output padding", f"{F}/convolution/form.py",
             "Axis(y, w, s, low, high - m // s * s, d)", "Axis(y, w, s, low + m, high - m, d)",
             f"{T}/convolution/test_functions.py -k transpose"),
    Mutation("pooling: mean of a padded window", f"{F}/pooling.py",
             "    if count_padding:  #", "    if not count_padding:  #", f"{T}/test_pooling.py"),
    Mutation("ReLU family: slope at negative inputs", f"{F}/activations.py",
             "jnp.where(x > 0, x, spread(slope, x) * x)", "jnp.where(x > 0, x, spread(slope, x) * -x)",
             f"{T}/test_activations.py"),
    Mutation("initializers: fan of xavier", "initializers.py",
             '"xavier_normal", 1, "fan_avg"', '"xavier_normal", 1, "fan_in"', "tests/test_initializers.py -k variance_scaling"),
    Mutation("initializers: groups ignored", "initializers.py",
             'return _he("he_normal", "normal", mode, slope, groups, axes)',
             'return _he("he_normal", "normal", mode, slope, 1, axes)', "tests/test_initializers.py -k grouped"),
    Mutation("units: zero-padding shortcut starts at pixel 1", "units/branch.py",
             "jnp.pad(x[:, :: self.stride, :: self.stride]", "jnp.pad(x[:, 1 :: self.stride, :: self.stride]",
             "tests/units/test_joins.py tests/zoo/test_zoo.py -k 'pad or zero or shortcut or torch'"),
    Mutation("units: sqrt remat loses a group", "units/loop.py",
             "starts = size * np.arange(groups)", "starts = size * np.minimum(np.arange(groups), 1)",
             "tests/units/test_stack.py"),
    Mutation("units: reversible inverse", "units/loop.py", "x1 = y1 - value", "x1 = y1 + value",
             "tests/units/test_stack.py -k reversible"),
    Mutation("zoo: where a bottleneck strides", "zoo/residual.py",
             "strided=1 if bottleneck and not paper_stride else 0", "strided=0",
             "tests/zoo/test_residual.py -k strides"),
    Mutation("optimizers: order of nadam's momenta", "optimizers/transforms.py",
             "(1 - product * after)", "(1 - product)", "tests/optimizers/test_optimizers.py -k nadam"),
    Mutation("optimizers: adagrad's epsilon under the root", "optimizers/transforms.py",
             "g / (jnp.sqrt(t) + epsilon)", "g / jnp.sqrt(t + epsilon)", "tests/optimizers/test_optimizers.py -k adagrad"),
    Mutation("schedules: share of one-cycle's first phase", "optimizers/schedules.py",
             "if schedule.warmup else 0.3", "if schedule.warmup else 0.25", "tests/optimizers/test_schedules.py -k cycle"),
    Mutation("augmentation: crops never reach the last offset", "data/augment.py",
             "0, 2 * pad + 1)", "0, 2 * pad)", "tests/data/test_augment.py"),
    Mutation("CutMix: share of targets", "data/mixing.py",
             "1 - box.mean()", "box.mean()", "tests/data/test_mixing.py"),
    Mutation("LSUV: variance in place of deviation", "init_from_data/lsuv.py",
             "(jnp.sqrt(shift**2 + v * rest) - shift) / v", "(jnp.sqrt(shift**2 + v * rest) - shift) / v**2",
             "tests/init_from_data/test_lsuv.py"),
    Mutation("looks-linear: sign of the mirrored rows", "init_from_data/looks_linear.py",
             "jnp.stack([matrices, -matrices], 2)", "jnp.stack([matrices, matrices], 2)",
             "tests/init_from_data/test_looks_linear.py"),
    Mutation("summary: padding of receptive fields", "summary/spans.py",
             "offset=span.offset - window.low * step", "offset=span.offset + window.low * step",
             "tests/summary/test_receptive_field.py"),
    Mutation("summary: one selection of pixels per map", "summary/costs.py",
             "if kept and taken not in self.cost.taken:", "if kept:", "tests/summary/test_slides.py"),
    Mutation("folding: sign of the shift", "transforms/fold.py",
             "bias = bias * factor + shift", "bias = bias * factor - shift", "tests/transforms/test_fold.py"),
    Mutation("PyTorch weights: features exchanged", "weights/pytorch.py",
             "value = np.moveaxis(value, (0, 1), (-1, -2))", "value = np.moveaxis(value, (0, 1), (-2, -1))",
             "tests/weights/test_pytorch.py"),
    Mutation("classification: padding counts in the loss", "tasks/classification.py",
             "jnp.where(mask, losses, 0).sum()", "losses.sum()", "tests/tasks"),
    Mutation("step: gradients of one device", "training/step.py",
             "gradients, loss = jax.lax.psum((gradients, loss), axis_name)", "loss = jax.lax.psum(loss, axis_name)",
             "tests/training/test_step.py"),
    Mutation("averaging: weight of the newest", "training/averaging.py",
             "lambda old, new: jnp.where(count == 0, new, old + (new - old) / (count + 1)), average",
             "lambda old, new: jnp.where(count == 0, new, old + (new - old) / (count + 2)), average",
             "tests/training/test_averaging.py"),
    Mutation("checkpoints: damage overlooked", "runs/checkpoint.py",
             "if found.get(name) != digest:", "if found.get(name) is None:", "tests/training/test_loop.py -k damage"),
    Mutation("hunt: what a where removes is linked", "doctor/origins.py",
             "(chosen == i) & ~np.isfinite", "(chosen >= 0) & ~np.isfinite", "tests/doctor/test_non_finite.py"),
    Mutation("hunt: order of a reversed scan", "doctor/origins.py",
             "reversed(order) if params[\"reverse\"] else order", "order", "tests/doctor/test_non_finite.py"),
    Mutation("hunt: passes in the order of computation", "doctor/origins.py",
             "(PASSES.index(direction_of(search, event, ends)), event.number)", "event.number", "tests/doctor/test_non_finite.py"),
    Mutation("hunt: factors of the backward pass are in the forward pass", "doctor/origins.py",
             "event.place.transposed or not _is_forward(event, ends)", "event.place.transposed", "tests/doctor/test_non_finite.py"),
    Mutation("coordinates: change from the initial activations", "doctor/coordinates.py",
             "jnp.abs(new[name] - old[name]).mean()", "jnp.abs(new[name]).mean()", "tests/doctor/test_coordinates.py"),
    Mutation("coordinates: the first unit of a scan", "doctor/outputs.py",
             "value[(-1,) *", "value[(0,) *", "tests/doctor/test_coordinates.py"),
]  # fmt: skip


def main(arguments):
    """Run the chosen mutations; return the exit code."""
    chosen = [m for m in MUTATIONS if not arguments or any(word in m.name for word in arguments)]
    if arguments == ["--list"]:
        print("\n".join(f"{m.name}: {m.file}" for m in MUTATIONS))
        return 0
    code = 0
    for mutation in chosen:
        verdict = run(mutation)
        code = max(code, {"caught": 0, "SURVIVED": 1}.get(verdict, 2))
        print(f"{verdict:9} {mutation.name}", flush=True)
    return code


def run(mutation):
    """Return "caught", "SURVIVED", or why the mutation could not be made."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "deepjax", Path(folder) / "deepjax", ignore=shutil.ignore_patterns("__pycache__"))
        if not (Path(folder) / "deepjax" / "configs").exists():
            shutil.copytree(ROOT / "configs", Path(folder) / "configs")
        file = Path(folder) / "deepjax" / mutation.file
        text = file.read_text() if file.exists() else ""
        if text.count(mutation.old) != 1:
            return f"STALE ({text.count(mutation.old)} places)"
        file.write_text(text.replace(mutation.old, mutation.new))
        # Through a shell, for the quotes in `tests`; the copy comes first on the path.
        command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider {mutation.tests}"
        environment = os.environ | {"PYTHONPATH": folder, "PYTHONSAFEPATH": "1"}
        done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        return f"ERROR ({done.stdout.strip().splitlines()[-1:]})"
    return "caught" if done.returncode else "SURVIVED"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
