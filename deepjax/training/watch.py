"""Measure the layers every few steps of training, say what is wrong, and stop a run that cannot learn."""

import json
import math
import time
from typing import Any

import jax
import numpy as np

from deepjax import files
from deepjax.doctor import watching
from deepjax.doctor.measure import measurer
from deepjax.doctor.report import Finding
from deepjax.errors import TrainingFailed, first_line
from deepjax.parallel import is_main
from deepjax.runs.workdir import key_of
from deepjax.training.examined import subject_of

NAME, REPORT = "watch.jsonl", "doctor.html"
KEY = 2**31 + 2  # folded into the run's key, as `setup.PARAMETERS`
SHARE = 0.05  # of the time of training, above which a note is shown


class Watch:
    """The function (state, rows, done) that measures the state on the batch to come, where config.watch asks for it.

    It writes a line of watch.jsonl, and changes nothing of the run. The batch is neither augmented nor mixed. With
    several devices, the first one measures the whole batch.

    Args:
      experiment: of the run.
      done: steps of the state from which training continues. Later lines, and the line of this state, which will be
        measured again, are removed.
      folder: folder of the run.
      display: receives the findings, each once for a layer.
    """

    def __init__(self, experiment, done, folder, display):
        self.exp, self.every, self.display = experiment, experiment.config.watch, display
        self.path, self.report_path = folder / NAME, folder / REPORT
        self.seconds = 0.0  # of compiling
        self.records, self.file = _read(self.path, done), None
        if is_main() and (self.every or self.path.exists()):
            files.write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.records))
        if is_main() and self.every:
            self.file = self.path.open("a", encoding="utf-8")
        self.raised = {name for line in self.records for name in line["findings"]}
        self.found: list[Finding] = []
        self.first: Any = None  # (steps done, measurement)
        self.newest: Any = None
        self.measure: Any = None
        self.ended, self.noted = None, False  # the end of the last watch: (time, steps done)

    def compile(self, state, rows):
        """Compile for a state and rows of these shapes, by measuring them once."""
        if self.every:
            started = time.monotonic()
            self._measured(state, rows)
            self.seconds = time.monotonic() - started
            self.display(f"compiled the watch in {self.seconds:.1f} s")

    def __call__(self, state, rows, done):
        """Measure a state that has done so many steps, if it is time. Raise TrainingFailed if the run is hopeless.

        Args:
          state: `TrainState` on the devices.
          rows: of the next call of the step, on the devices.
          done: steps of the state.
        """
        if not self.every or done % self.every:
            return
        jax.block_until_ready(state)
        started = time.monotonic()
        measured = self._measured(state, rows)
        self.newest = done, measured
        self.first = self.first or self.newest
        self._record(done, measured)
        self._note_cost(started, done)
        if problem := watching.hopeless(self.records):
            finding: Any = watching.stuck(measured)
            text = f"at step {done} the run cannot learn ({finding.code}): {problem}"
            raise TrainingFailed(
                f"{text}{self._save(f'The run cannot learn: {problem}.', finding)}; the remedy, in another --workdir: "
                f"{finding.remedy.rstrip('.')}"
            )

    def failed(self) -> str:
        """Write the report of a run whose loss is not finite. Return what to add to the error: the file, or nothing."""
        if not self.newest:
            return ""
        return self._save("The loss, its gradient or a parameter is not finite.", None)

    def close(self):
        """Close the file."""
        if self.file:
            self.file.close()

    def _measured(self, state, rows):
        variables, inputs, targets, optimizer_state = self._arguments(state, rows)
        key = jax.random.fold_in(jax.random.fold_in(key_of(self.exp.config), KEY), int(state.step))
        if self.measure is None:
            subject = subject_of(self.exp, variables, inputs, targets)
            self.measure = measurer(subject, variables, inputs, key, jit=jax.jit)
        return self.measure(variables, inputs, targets, key, optimizer_state)

    def _arguments(self, state, rows):
        """Return (variables, inputs, targets, optimizer's state) on the first device; the batch without padding."""
        exp, rows = self.exp, jax.device_get(rows)
        if min(exp.config.steps_per_call, exp.loader.steps) > 1:
            rows = jax.tree.map(lambda x: x[0], rows)  # of the first step of the call
        if exp.mesh.strategy == "pmap":
            rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
        batch = jax.device_get(exp.loader.fetch(exp.loader.data, rows))
        # Padding is replaced by real examples, so that the shapes stay the same and it does not count.
        places = np.resize(np.flatnonzero(batch["mask"]), len(batch["mask"]))
        inputs, targets = jax.device_get(exp.task.prepare(jax.tree.map(lambda x: x[places], batch)))
        parts = jax.device_put((state.params, state.batch_stats, state.opt_state), exp.mesh.devices[0])
        variables = {"params": parts[0]} | ({"batch_stats": parts[1]} if parts[1] else {})
        return variables, inputs, targets, parts[2]

    def _record(self, done, measured):
        """Write the line, and show the findings that are new."""
        new = []
        for finding in watching.findings(measured):
            name = f"{finding.code} in {finding.layer}"
            if name not in self.raised:
                self.raised.add(name)
                new.append(name)
                self.found.append(finding)
                self.display.warn(f"step {done}: {name}: {finding.evidence}")
        stuck = watching.stuck(measured)
        line = {"kind": "watch", "step": done, "findings": new, "stuck": stuck.evidence if stuck else ""}
        line |= watching.record(measured)
        self.records.append({name: line[name] for name in ("step", "loss", "stuck", "findings")})
        if self.file:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()

    def _note_cost(self, started, done):
        """Show, once, that watching takes more than SHARE of the time."""
        now = time.monotonic()
        if self.ended and not self.noted:
            watch, steps = now - started, started - self.ended
            self.noted = True
            if watch > SHARE * (watch + steps):
                enough = math.ceil(self.every * watch * (1 - SHARE) / (SHARE * max(steps, 1e-9)))
                self.display(
                    f"step {done}: the watch takes {100 * watch / (watch + steps):.0f} % of the time; with --watch "
                    f"{enough} it would take {100 * SHARE:.0f} %"
                )
        self.ended = now

    def _save(self, verdict, finding):
        """Write the report; return what to say of it. `finding`: for which the run is stopped, or None."""
        found = [each for each in self.found if not finding or (each.code, each.layer) != (finding.code, finding.layer)]
        losses = [line["loss"] for line in self.records if line["loss"] is not None]
        report = watching.report(verdict, [finding, *found] if finding else found, self.first, self.newest, losses)
        try:
            if is_main():
                report.save(self.report_path)
        except Exception as error:  # fonts, memory, a full disk: the reason for which the run ends matters more
            self.display.warn(f"{self.report_path} cannot be written ({type(error).__name__}: {first_line(error)})")
            return ""
        return f"; the report is {self.report_path}"


def _read(path, done):
    """Return the lines of steps before `done`, oldest first. Lines that are damaged are left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
            if line["step"] < done and {"loss", "stuck", "findings"} <= line.keys():
                lines.append(line)
        except (ValueError, TypeError, KeyError, AttributeError):  # a process was killed while it wrote
            continue
    return lines
