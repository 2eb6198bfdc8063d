"""The child process that measures one cell. Its argument is the cell as JSON, and its output is lines of JSON.

It prints one line at the end of each phase (build, trace, lower, compile). Then it reads lines from standard input.
Each line is a number of seconds: the process takes training steps for that time, at least one, and prints their times.
"""

import json
import os
import sys
import time
from pathlib import Path

from deepjax.benchmarks.cells import TORCH, Cell


def main():
    """Prepare the cell's program, then answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries must not mix with the answers

    def answer(record):
        print(json.dumps(record), file=answers, flush=True)

    program = load(Cell(**json.loads(sys.argv[1])))
    answer({"phase": "build"})
    for phase in program.prepare():
        answer(phase)
    for line in sys.stdin:
        answer(turn(program, float(line)))


def load(cell):
    """Return the cell's program: a `programs.Program` or a `torch_net.TorchProgram`."""
    if cell.variant in TORCH:
        from deepjax.benchmarks import torch_net

        return torch_net.TorchProgram(cell)
    from deepjax.benchmarks import programs

    return programs.Program(cell)


def turn(program, least):
    """Take steps for at least `least` seconds, and at least one step.

    Return {"seconds": [time of each step], "loss": loss before the first step, "peak": bytes of memory}.
    """
    seconds, losses, start = [], [], time.perf_counter()
    while not seconds or time.perf_counter() - start < least:
        before = time.perf_counter()
        losses.append(program.step())
        seconds.append(time.perf_counter() - before)
    return {"seconds": seconds, "loss": losses[0], "peak": peak_memory()}


def peak_memory():
    """Return this process's peak memory in bytes, compilation included, or None if the system does not report it."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


if __name__ == "__main__":
    main()
