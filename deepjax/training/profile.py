"""A trace of some training steps, for Perfetto and TensorBoard, and a table of the most expensive operations."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import jax

from deepjax.errors import InputError
from deepjax.training.evaluator import Compiled

SHOWN = 10  # operations of the table
CONTAINERS = ("while", "conditional", "call")  # operations whose time is that of the operations inside
INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{.*?op_name="([^"]*)"', re.MULTILINE)


def steps_of(text: str) -> tuple[int, int]:
    """Return the (first, last) step of a text such as "10:20". Raise InputError for another text.

    >>> steps_of("10:20")
    (10, 20)
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise InputError(f"profile {text!r} must be FIRST:LAST, two steps of the run counted from 1, such as 10:20")
    return first, last


def check_steps(text: str, total: int):
    """Raise InputError unless all steps of the text are among the `total` steps of a run. Empty: nothing to check."""
    if text and steps_of(text)[1] > total:
        raise InputError(f"profile {text}: the run has {total} steps; name steps from 1 to {total}")


def step(function, text: str, done: int, folder, display, count=lambda *arguments: 1) -> Compiled:
    """Return the compiled form of a jitted training step, traced if `text` names steps. For the rest see `Profiled`."""
    return Profiled(function, steps_of(text), done, folder, display, count) if text else Compiled(function)


class Profiled(Compiled):
    """A compiled step that is traced while it computes the steps `first` to `last` of a run.

    Args:
      function: the jitted step.
      steps: (first, last), as of `steps_of`.
      done: steps of the run before the next call.
      folder: folder of the run; the trace is written to its folder `profile`.
      display: receives the table, line by line.
      count: arguments of a call -> number of steps that it computes. The steps to trace are whole calls.
    """

    def __init__(self, function, steps, done, folder, display, count):
        super().__init__(function)
        self.count = count
        (self.first, self.last), self.done = steps, done
        self.folder, self.display, self.tracing = Path(folder) / "profile", display, False
        if done >= self.first:
            display.warn(f"profile {self.first}:{self.last}: the run is already at step {done}, so nothing is traced")

    def __call__(self, *arguments):
        """Call the function. At the last step to trace, wait for its results, write the trace and show the table."""
        if self.done + 1 == self.first:
            if not self.seconds:
                self.compile(*arguments)
            jax.profiler.start_trace(self.folder, create_perfetto_trace=True)
            self.tracing = True
        results = super().__call__(*arguments)
        self.done += self.count(*arguments)
        if self.tracing and self.done == self.last:
            jax.block_until_ready(results)
            self.close()
            self._report()
        return results

    def close(self):
        """Write the trace that was begun, if there is one."""
        if self.tracing:
            self.tracing = False
            jax.profiler.stop_trace()

    def _report(self):
        newest = max(self.folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
        times = operation_times(newest)
        layers = dict(INSTRUCTION.findall(self.compiled.as_text()))
        for line in table(times, layers, self.last - self.first + 1):
            self.display(line)
        self.display(f"trace: {newest.parent}, for TensorBoard; perfetto_trace.json.gz is for ui.perfetto.dev")


def operation_times(path) -> Counter[str]:
    """Return the microseconds of each compiled operation in a `perfetto_trace.json.gz`, on all devices and threads.

    (The reader of the other file, `jax.profiler.ProfileData`, ends the process on some of JAX 0.12's events.)
    """
    times = Counter()
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    for event in events:
        name = event.get("args", {}).get("hlo_op")
        if name and event.get("name") == name and not name.startswith(CONTAINERS):
            times[name] += event["dur"]
    return times


def table(times: Counter[str], layers: dict[str, str], steps: int) -> list[str]:
    """Return the lines of a table: milliseconds of a step, share of all operations, operation, and where it is.

    Args:
      times: microseconds of each operation.
      layers: {operation: the name that JAX gave it, with the modules in whose calls it is}.
      steps: number of steps that were traced.

    >>> times, layers = Counter({"dot.1": 3e3, "add.2": 1e3}), {"dot.1": "jit(step)/mlp/hidden1/dot_general"}
    >>> print(*table(times, layers, 2), sep="\\n")
    ms a step    share  operation
        1.500   75.0 %  dot.1  mlp/hidden1/dot_general
        0.500   25.0 %  add.2
    """
    total, lines = sum(times.values()), ["ms a step    share  operation"]
    for name, time in times.most_common(SHOWN):
        where = re.sub(r"^jit\([^)]*\)/|while/body/(closed_call/)?", "", layers.get(name, ""))
        lines.append(f"{time / steps / 1e3:9.3f}  {100 * time / total:5.1f} %  {name}  {where}".rstrip())
    return lines
