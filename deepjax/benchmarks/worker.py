"""The process that measures one cell, which is its argument, as JSON. It answers in lines of JSON.

It tells of each phase as it ends (build, trace, lower, compile). Then, for each line that it reads, a number of
seconds, it takes at least one step and goes on for so long, and answers with what each step took.
"""

import json
import os
import sys
import time
from pathlib import Path

from deepjax.benchmarks.cells import TORCH, Cell


def main():
    """Serve until the standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(record):
        print(json.dumps(record), file=answers, flush=True)

    program = load(Cell(**json.loads(sys.argv[1])))
    answer({"phase": "build"})
    for phase in program.prepare():
        answer(phase)
    for line in sys.stdin:
        answer(turn(program, float(line)))


def load(cell):
    """The cell's program, as `programs.Program` or `torch_net.Program`."""
    if cell.variant in TORCH:
        from deepjax.benchmarks import torch_net

        return torch_net.Program(cell)
    from deepjax.benchmarks import programs

    return programs.Program(cell)


def turn(program, least):
    """At least one step, and more until `least` seconds are over: {"seconds", "loss" before the first one, "peak"}."""
    seconds, losses, start = [], [], time.perf_counter()
    while not seconds or time.perf_counter() - start < least:
        before = time.perf_counter()
        losses.append(program.step())
        seconds.append(time.perf_counter() - before)
    return {"seconds": seconds, "loss": losses[0], "peak": peak_memory()}


def peak_memory():
    """Bytes of memory that this process has held at most, compiling included; None where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


if __name__ == "__main__":
    main()
