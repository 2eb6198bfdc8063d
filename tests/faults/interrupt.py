"""Send SIGINT to commands at many times: `python tests/faults/interrupt.py [COUNT] [SEED]`. Linux only.

Each trial starts a command as a process, as `python -m deepjax` or as the installed script does, and sends SIGINT after
some time: from the first instruction of deepjax (seen by its handler of SIGTERM; before it, only Python itself runs) to
well into training, evaluation, or the work of child processes. The process must end with 130 and one line on standard
error within the time of a step and a checkpoint, and leave no process behind. Trainings go on in the same folder from
trial to trial; at the end, each must reach the summary of a run that nothing interrupted. Prints `N of COUNT`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

STARTS = (["-m", "deepjax"], ["-c", "import sys; from deepjax.__main__ import main; sys.exit(main())"])
MLP = ["--model", "mlp", "--model-options", "depth=2", "width=16", "--devices.count", "1"]
PLAIN = ["--data.augment.translate", "0", "--data.augment.scale", "0"]
PHOTOS = ["--data.name", "photos", "--data.validation", "0", "--data.placement", "host", "--data.workers", "2"]
TRAININGS = {
    "digits": ["train", "digits", *MLP, "--epochs", "120", "--log-every", "1"],
    "photos": ["train", "digits", *MLP, *PHOTOS, *PLAIN, "--epochs", "4", "--batch-size", "8"],
}
# name: (arguments, seconds up to which it is interrupted)
OTHERS = {
    "eval": (["eval", "done"], 3),
    "predict": (["predict", "done", "photos/test/a"], 3),
    "export": (["export", "done", "--format", "stablehlo", "--out", "x"], 3),
    "plan": (["plan", "digits"], 8),  # compiles in child processes
    "find-lr": (["find-lr", "digits", *MLP, "--workdir", "rates"], 5),
    "bench": (["bench", "depth", "--units", "basic", "--depths", "8", "--stage-units", "", "--out", "bench"], 8),
    "models": (["models"], 0.5),
}
LATEST = 14.0  # seconds after which a training is interrupted
PATIENCE = 20.0  # seconds that the process may take to end, on a busy machine


def start(folder, arguments, form, mark):
    """Start a command; return its process when its first instruction has run."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "FAULTS_MARK": mark}
    command = [sys.executable, *STARTS[form], *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if int(status.partition("SigCgt:")[2].split()[0], 16) & 1 << (signal.SIGTERM - 1):
            break
        time.sleep(0.0005)
    return process


def survivors(mark):
    """Return the commands of processes that inherited a mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"FAULTS_MARK={mark}".encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
        except OSError:
            pass
    return found


def interrupted(folder, arguments, form, seconds, mark):
    """Return what is wrong with the end of an interrupted command, or ""; None if it has ended before."""
    process = start(folder, arguments, form, mark)
    time.sleep(seconds)
    if process.poll() is not None:
        out, err = process.communicate()
        return None if process.returncode == 0 else f"failed: {err}"
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        return "did not end"
    took = time.monotonic() - sent
    if process.returncode == 0 and not err and process.args[-1] != "":
        return None if took < 0.5 else "swallowed"  # it was ending when the signal came
    if process.returncode != 130 or err.count("\n") != 1 or not err.startswith("deepjax: "):
        return f"code {process.returncode}, standard error {err!r}"
    if took > PATIENCE:
        return f"took {took:.1f} s"
    time.sleep(0.5)
    return f"left {left}" if (left := survivors(mark)) else ""


def photos(folder):
    """Write a set of small photographs."""
    rng = np.random.default_rng(0)
    for split, name in ((split, name) for split in ("train", "test") for name in "ab"):
        (folder / split / name).mkdir(parents=True)
        for number in range(16):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)).save(
                folder / split / name / f"{number}.png"
            )


def summary(folder, arguments, workdir):
    """Run a training to its end. Return its result, or what is wrong."""
    process = start(folder, [*arguments, "--workdir", workdir], 0, "end")
    _, err = process.communicate(timeout=600)
    if process.returncode or err:
        return f"code {process.returncode}: {err}"
    return json.loads((folder / workdir / "summary.json").read_bytes())["test_loss"]


def main(count=50, seed=0):
    """Run the trials. Return the exit code."""
    rng, times, passed = random.Random(seed), [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        photos(folder / "photos")
        right = {kind: summary(folder, arguments, f"whole-{kind}") for kind, arguments in TRAININGS.items()}
        (folder / "whole-photos").rename(folder / "done")
        used, trial = dict.fromkeys(TRAININGS, 0), 0
        while trial < count:
            kind = rng.choice(list(OTHERS)) if trial % 5 in (1, 3) else "photos" if trial % 10 == 4 else "digits"
            arguments, latest = OTHERS.get(kind) or (TRAININGS[kind], LATEST)
            seconds = rng.choice((0, rng.uniform(0, 0.3), rng.uniform(0, latest), rng.uniform(0, latest)))
            workdir = ["--workdir", f"{kind}-{used[kind]}"] if kind in TRAININGS else []
            wrong = interrupted(folder, [*arguments, *workdir], rng.randrange(2), seconds, str(trial))
            if wrong is None:  # it had ended: the next trial of this training begins another
                used[kind] = used.get(kind, 0) + 1
                continue
            trial, passed = trial + 1, passed + (not wrong)
            times.append(seconds)
            print(f"{kind} after {seconds:.2f} s: {wrong or 'passed'}", flush=True)
        ends = {
            f"{kind}-{n}": summary(folder, TRAININGS[kind], f"{kind}-{n}")
            for kind in TRAININGS
            for n in range(used[kind] + 1)
        }
    differing = {name: end for name, end in ends.items() if end != right[name.partition("-")[0]]}
    print(f"resumed to the same result: {len(ends) - len(differing)} of {len(ends)} {differing or ''}")
    print(f"{passed} of {count}; times in seconds: {', '.join(f'{each:.2f}' for each in sorted(times))}")
    return int(passed < count or bool(differing))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
