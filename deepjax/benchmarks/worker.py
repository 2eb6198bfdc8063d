"""The child process that measures one program. Its argument is a job as JSON, and its output is lines of JSON.

A job has "kind" (a key of `PROGRAMS`), "phases" (the names of the lines that are printed first), and what the program
of its kind needs. With "threads", the process uses that many processor cores and no others. With "watch" False, the
work of other processes is not measured, as for programs that start processes. With "cpu" True, the times of steps are
processor time of this process.

The process prints one line at the end of each phase, such as build, trace, lower, compile. Then it reads lines from
standard input. Each line is a number of seconds: the process takes steps for that time, at least one, and prints their
times.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

from deepjax import cpu

PROGRAMS = {  # kind of a job: the module whose `load(job)` returns its program, which has `prepare` and `step`
    "net": "deepjax.benchmarks.cells",
    "stage": "deepjax.benchmarks.cells",
    "train": "deepjax.benchmarks.systems",
    "infer": "deepjax.benchmarks.systems",
    "matmul": "deepjax.benchmarks.matmul",
    "layer": "deepjax.benchmarks.layer_maps",
    "input": "deepjax.benchmarks.input_programs",
    "loop": "deepjax.benchmarks.loop_programs",
}


def main():
    """Prepare the job's program, then answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries must not mix with the answers

    def answer(record):
        print(json.dumps(record), file=answers, flush=True)

    job = json.loads(sys.argv[1])
    watched = allowed() if job.get("watch", True) else ()
    if "threads" in job:
        restrict(job["threads"])  # before JAX and PyTorch are imported, which size their pools of threads by it
    cpu.keep_memory()  # in every system
    program = load(job)
    answer({"phase": "build"})
    for phase in program.prepare():
        answer(phase)
    for line in sys.stdin:
        answer(turn(program, float(line), watched, time.process_time if job.get("cpu") else time.perf_counter))


def load(job):
    """Return the job's program."""
    return importlib.import_module(PROGRAMS[job["kind"]]).load(job)


def allowed():
    """Return the numbers of the processor cores that this process may use, or [] where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def restrict(threads):
    """Restrict this process and its threads to as many of its cores, where the system can."""
    if allowed():
        os.sched_setaffinity(0, allowed()[:threads])


def turn(program, least, watched=(), clock=time.perf_counter):
    """Take steps for at least `least` seconds, and at least one step. Their times are those of `clock`.

    Return {"seconds": [time of each step], "loss": loss before the first step, "peak": bytes of memory, "foreign": how
    many of the cores `watched` other processes used meanwhile, None if the system does not report it}.
    """
    seconds, losses, work, start = [], [], other_work(watched), time.perf_counter()
    while not seconds or time.perf_counter() - start < least:
        before = clock()
        losses.append(program.step())
        seconds.append(clock() - before)
    elapsed, after = time.perf_counter() - start, other_work(watched)
    foreign = None if work is None or after is None else max(after - work, 0.0) / elapsed
    return {"seconds": seconds, "loss": losses[0], "peak": peak_memory(), "foreign": foreign}


def other_work(cores, path="/proc/stat"):
    """Return the seconds that these cores worked for other processes, or were taken by other machines, since the start.

    Only differences have a meaning: the work of this process before it was started is not subtracted. None if the
    system does not report it.
    """
    stat = Path(path)
    lines = [line.split() for line in stat.read_text(encoding="utf-8").splitlines()] if stat.exists() else []
    fields = [[int(field) for field in line[1:]] for line in lines if line[0] in {f"cpu{core}" for core in cores}]
    if not fields or not any(map(any, fields)):
        return None
    # user, nice, system, irq, softirq, steal; 3 and 4 are idle and iowait
    ticks = sum(sum(line[:3]) + sum(line[5:8]) for line in fields)
    own = os.times()
    return ticks / os.sysconf("SC_CLK_TCK") - own.user - own.system


def peak_memory():
    """Return this process's peak memory in bytes, compilation included, or None if the system does not report it."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


if __name__ == "__main__":
    main()
