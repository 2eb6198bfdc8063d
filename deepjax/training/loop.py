"""Training with all its input and output: progress, records, checkpoints, signals, and the final test."""

import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

from deepjax import data, optimizers, tasks, zoo
from deepjax.config import Config
from deepjax.data import as_dataset
from deepjax.errors import InputError, Stopped, TrainingFailed
from deepjax.fields import from_dict
from deepjax.functional import native
from deepjax.runs import workdir
from deepjax.training import averaging, setup
from deepjax.training.calls import Calls, each_step
from deepjax.training.model import with_given
from deepjax.training.progress import Display, duration
from deepjax.training.signals import Signals
from deepjax.training.state import Progress, parameter_count
from deepjax.training.watch import Watch


def train(
    config: Config,
    name: str = "run",
    *,
    model: Any = None,
    data: "data.Dataset | Mapping | None" = None,
    log: Callable[[str], Any] | None = None,
) -> dict:
    """Train what a config describes, from the start or from the newest checkpoint in its workdir.

    Args:
      config: the experiment.
      name: name of the run. Without config.workdir, its folder is the one of runs/NAME, runs/NAME-2, ... that holds a
        run of this config, else the first one that is free.
      model: a Linen module of your own instead of the zoo's `config.model`. It is called with those of `train` and
        `mask` (bool [batch], the real examples) that it takes, and returns logits [batch, classes].
      data: a data set of your own instead of `config.data.name`: a `data.Dataset`, or the arguments of
        `data.from_arrays` as a dict: "x_train", "y_train", "x_test", "y_test", and perhaps others.
      log: receives each line of progress, for example `print`; or a `progress.Display`, such as `NotebookDisplay()`.
        None: nothing is printed.

    Returns:
      The contents of summary.json.

    Raises:
      InputError: something in the config cannot work. Nothing has been computed or overwritten.
      TrainingFailed: the loss is not finite. The checkpoints so far are complete.
      Stopped: SIGINT or SIGTERM arrived. Everything is saved, and the same call resumes the run.
    """
    display = log if isinstance(log, Display) else Display(log)
    dataset = as_dataset(data)
    if config.wandb:
        from deepjax.runs.metrics import import_wandb  # imports TensorBoard

        import_wandb(config.wandb)
    config = with_given(setup.with_absolute_paths(config), model, dataset)
    network = setup.check(config, model)
    folder, note = workdir.find_workdir(config, name)
    if summary := workdir.finished(folder, config):
        display(f"{folder}: finished, {summary['result']}")
        return summary
    experiment = setup.setup(config, network, folder, dataset=dataset)
    if note:
        display(note)
    # Everything fits. Nothing was written before this line.
    with workdir.locked(folder):
        workdir.write_config(folder, config, name, experiment.mesh.devices)
        workdir.write_data(folder, experiment.dataset, experiment.statistics)
        with Trainer(experiment, folder, display) as trainer:
            # The checkpoint has been restored. The record of a run that cannot go on was not changed.
            if changes := workdir.update_config(folder, config, experiment.mesh.devices):
                display(changes)
            return trainer.run()


class Trainer:
    """One process's share of a run. `run` continues from the newest checkpoint to the summary.

    What is tested: the state that validated best by config.best (the newest, without validation); with config.swa_start
    the averaged weights, and with config.snapshots all snapshots together, whichever epoch validated best.
    """

    def __init__(self, experiment, folder, display):
        # Imported here: they import Orbax and TensorBoard, which `import deepjax.training` must not.
        from deepjax.runs.checkpoint import Checkpoints
        from deepjax.runs.metrics import MetricsLog
        from deepjax.runs.weights import final_checkpoints

        self.exp, self.config, self.task = experiment, experiment.config, experiment.task
        self.folder, self.display = folder, display
        self.key = workdir.key_of(self.config)
        workdir.remove_partial(folder)
        self.checkpoints = Checkpoints(folder / "checkpoints", self.config.keep)
        self.final: Any = final_checkpoints(self.config, folder)
        restored = self.checkpoints.newest(experiment.abstract_state, display.warn, repair=True)
        self.state = restored[0] if restored else experiment.initial_state(display)
        self.progress = from_dict(Progress, restored[1]) if restored else Progress()
        self.parameters = parameter_count(self.state.params)
        self.done = int(self.state.step)
        project = self.config.wandb
        self.metrics = MetricsLog(folder, self.done, display.warn, project=project, config=asdict(self.config))
        self.total = experiment.loader.steps * self.config.epochs
        validation = experiment.dataset.validation
        self.validate = experiment.evaluator(validation) if len(validation) else None
        self.calls = Calls(experiment, self.done, folder, display)
        self.step = self.calls.program
        self.watch = Watch(experiment, self.done, folder, display)
        self.clock, self.compiling = time.monotonic(), 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for opened in (self.step, self.watch, self.metrics, self.checkpoints, self.final):
            if opened is not None:
                opened.close()

    def run(self):
        """Train the epochs that are left, then test. Return the summary."""
        self._introduce()
        with Signals() as signals, self.display:
            self.clock = time.monotonic()
            while not self._finished():
                self._train_epoch(signals)
                self._end_epoch()
                if signals.received:
                    self._stop(signals.received)
        return self._summarize()  # everything is saved: a signal may end it, and the same command repeats it

    def _finished(self):
        patience = self.config.patience
        return self.progress.epochs == self.config.epochs or (patience and self.progress.stale >= patience)

    def _introduce(self):
        devices = self.exp.mesh.devices
        self.display(self.task.describe(self.exp.dataset))
        config, dataset, start = self.config, self.exp.dataset, "initialized at random"
        for note in dataset.notes:
            self.display(note)
        if config.data.balance:
            self.display(data.describe_balance(config.data, dataset.train.labels, dataset.classes))
        if config.teacher:
            self.display(f"teacher: {config.teacher}, {config.teacher_share:g} of the loss")
        if config.pretrained or config.init != "model":
            start = f"pretrained: {config.pretrained}" if config.pretrained else f"initialized by {config.init}"
        self.display(f"{config.model}: {self.parameters:,} parameters, {start}")
        kind, strategy = devices[0].device_kind, self.config.devices.strategy
        whole = devices[0].platform == "cpu" and (len(devices) == 1 or strategy == "pmap")  # see native.runs_whole
        by = "; convolutions by deepjax_native" if whole and native.package() else ""
        self.display(f"{len(devices)} x {kind}, {strategy}{by}; writing to {self.folder}")
        if self.done:
            self.display(f"continuing at step {self.done} of {self.total}")

    def _tick(self):
        """Add the time since the last tick to the run's, without the time that compiling took."""
        compiling = self.step.seconds + self.watch.seconds + (self.validate.seconds if self.validate else 0.0)
        now = time.monotonic()
        self.progress.seconds += now - self.clock - (compiling - self.compiling)
        self.progress.compile_seconds += compiling - self.compiling
        self.clock, self.compiling = now, compiling

    def _train_epoch(self, signals):
        p, loader = self.progress, self.exp.loader
        first = self.done - p.epochs * loader.steps
        if first == 0:
            p.sums, p.count = {}, 0.0
        pending = None
        for whole, rows, count in self.calls.epoch(p.epochs, first):
            if self.step.seconds == 0:
                with signals.released():
                    self._compile(whole, rows)
            self.watch(self.state, rows, self.done)
            self.state, metrics = self.step(self.state, whole, rows, self.key)
            if pending is not None:  # fetched one call late, so that the device does not wait for the host
                self._account(*pending)
            self.done += count
            pending = self.done, count, metrics
            if self.done % loader.steps and (signals.received or self.calls.checkpoint_is_due(self.done)):
                self._account(*pending)
                pending = None
                self._save()
                if signals.received:
                    self._stop(signals.received)
        if pending is not None:
            self._account(*pending)

    def _compile(self, whole, rows):
        def announce(seconds):
            self.display(f"compiling the training step: about {max(seconds, 1):.0f} s, less if it was compiled before")

        seconds = self.step.compile(self.state, whole, rows, self.key, announce=announce)
        self.display(f"compiled in {seconds:.1f} s")
        self.watch.compile(self.state, rows)

    def _account(self, step, count, metrics):
        """Process the metrics of a call, whose last step is `step`: check, sum, record and display them."""
        self._tick()
        for number, values in enumerate(each_step(metrics, count), step - count + 1):
            self._add(number, values)
        p = self.progress
        numbers = f"{self.task.text(self._means())}, {p.examples / max(p.seconds, 1e-9):,.0f} examples/s"
        self.display.step(step, self.total, p.epochs + 1, self.config.epochs, numbers)

    def _add(self, step, values):
        """Fail if a step's metrics are not finite, add them to the epoch's means, and record them."""
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            self._fail(f"the loss is {values['loss']}, its gradient's norm {values['grad_norm']}", step)
        p, count = self.progress, values.pop("count")
        for name in values.keys() - {"grad_norm", "learning_rate"}:
            p.sums[name] = p.sums.get(name, 0.0) + values[name] * count
        p.count += count
        p.examples += int(count)
        if step % self.config.log_every == 0:
            self._record("train", step, step / self.exp.loader.steps, values)

    def _means(self):
        return {name: total / self.progress.count for name, total in self.progress.sums.items()}

    def _record(self, kind, step, epoch, values):
        self.metrics.write(kind, step, epoch, **values, seconds=round(self.progress.seconds, 3))

    def _fail(self, problem, step):
        steps = self.checkpoints.steps
        good = f"the last good checkpoint is {self.checkpoints.folder / str(steps[-1])}" if steps else "no checkpoint"
        rate = float(self.exp.schedule(self.exp.times.updates_before(step - 1)))
        rate *= float(optimizers.rate_scale(self.state.opt_state))
        raise TrainingFailed(
            f"at step {step} {problem} (learning rate {rate:.4g}); {good}; lower --optimizer.learning-rate, lengthen "
            f"--schedule.warmup or set --optimizer.clip-norm, in another --workdir; `deepjax doctor --nan` with the "
            f"same config and options names the operation and the layer{self.watch.failed()}"
        )

    def _end_epoch(self):
        """Validate, update the averages and the plateau, record the epoch's means, save."""
        p = self.progress
        p.epochs = self.done // self.exp.loader.steps
        p.train = self._means()
        line = f"epoch {p.epochs}/{self.config.epochs}  training {self.task.text(p.train)}"
        validation = {}
        if self.validate is not None:
            result = self._finite("validation", self.validate(self.state.eval_variables))
            validation = result.metrics
            self._compare(result)
            line += f"  validation {self.task.text(validation)}"
        self._observe((validation or p.train)["loss"])
        self._include()
        self._tick()
        self._record("train_epoch", self.done, p.epochs, p.train)
        if validation:
            self._record("validation", self.done, p.epochs, validation)
        self._save()
        self.display(f"{line}  {duration(p.seconds)}")

    def _observe(self, loss):
        """Pass an epoch's loss to the schedule plateau, whose state is in the optimizer's state."""
        if self.config.schedule.name == "plateau":
            opt_state = optimizers.observe(self.state.opt_state, loss, self.config.schedule)
            self.state = self.state.replace(opt_state=self.exp.mesh.replicate(opt_state))

    def _include(self):
        """Add the parameters to SWA's average, from its first epoch on."""
        if 0 < self.config.swa_start <= self.progress.epochs:
            params, done = self.state.eval_variables["params"], self.progress.epochs - self.config.swa_start
            average = averaging.include(self.state.swa, params, done)
            self.state = self.state.replace(swa=self.exp.mesh.replicate(average))

    def _compare(self, result):
        p, rank = self.progress, tasks.rank(result.metrics, self.config.best)
        p.stale = 0 if p.best is None or rank < p.best["rank"] else p.stale + 1
        # Of equally good states, the newest is the best, because it has been trained longer.
        if p.best is None or rank <= p.best["rank"]:
            p.best = {"step": self.done, "epoch": p.epochs, "rank": rank, **result.metrics}

    def _save(self):
        # The check runs on the host, to which the parameters are copied for saving. On the device, it would be another
        # program to compile.
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(self.state.params))):
            self._fail("the update has made parameters that are not finite", self.done)
        if self.config.snapshots and self.done % (self.total // self.config.snapshots) == 0:
            self.final.save(averaging.final_state(self.state, self.state.eval_variables), {"best": None})
        self.checkpoints.save(self.state, asdict(self.progress))

    def _stop(self, number):
        self._draw_curves()
        raise Stopped(
            f"stopped by {signal.Signals(number).name} at step {self.done} of {self.total}, saved in {self.folder}; "
            f"run the same command again to resume",
            number,
        )

    def _draw_curves(self):
        from deepjax.runs import metrics, plots

        lines = metrics.read(self.folder, self.display.warn)
        plots.draw(self.folder, lambda: {"curves.png": plots.curves(lines, self.task.curves)}, self.display.warn)

    def _summarize(self):
        """Test, write summary.json, then draw: a figure that fails does not cost the result."""
        from deepjax.runs import plots

        p, dataset = self.progress, self.exp.dataset
        members, epoch = self._final_weights()
        test, more = self._test([variables for _, variables in members], [step for step, _ in members])
        result = (
            f"test {self.task.text(test.metrics)} ({self._tested(epoch, len(members))}, {len(dataset.test):,} examples)"
        )
        summary = {
            "result": result,
            **{f"test_{name}": value for name, value in test.metrics.items()},
            **{f"train_{name}": value for name, value in p.train.items()},
            "steps": self.done,
            "epochs": p.epochs,
            "seconds": round(p.seconds, 2),
            "compile_seconds": round(p.compile_seconds, 2),
            "examples_per_second": round(p.examples / max(p.seconds, 1e-9), 1),
            "parameters": self.parameters,
            "best_epoch": epoch,
            **more,
        }
        workdir.write_record(self.folder, "summary.json", summary)
        self._draw_curves()
        title = f"{self.config.model} on {dataset.name}: test {self.task.text(test.metrics)}"
        plots.draw(self.folder, lambda: self.task.figures(test, title, dataset.test), self.display.warn)
        self.metrics.summarize(summary)
        self.display(f"{result} after {duration(p.seconds)}; see {self.folder}{self._next_command()}")
        return summary

    def _next_command(self):
        """Return the command to try next: prediction for image files, else evaluation."""
        if len(self.exp.dataset.shape) == 3 and self.config.model in zoo.MODELS:
            return f"; next: deepjax predict {self.folder} IMAGE-or-FOLDER"
        return f"; next: deepjax eval {self.folder}" if self.config.model in zoo.MODELS else ""

    def _tested(self, epoch, count):
        """Return in words what was tested."""
        if self.config.swa_start:
            return f"mean of the weights of {epoch + 1 - self.config.swa_start} epochs"
        return f"{count} snapshots together" if self.config.snapshots else f"epoch {epoch}"

    def _final_weights(self):
        """Return ([(step, variables) to test together, oldest first], the epoch they are of)."""
        p, state = self.progress, self.state
        if self.config.swa_start:
            variables = {"params": state.swa, "batch_stats": state.batch_stats}
            variables = self.exp.moment_estimator()(variables)
            self.final.save(averaging.final_state(state, variables), {"best": None})
            return [(self.done, variables)], p.epochs
        if self.config.snapshots:
            found = self.final.whole(None, self.display.warn)
            if not found:
                raise InputError(f"the snapshots in {self.final.folder} are missing; train again in another --workdir")
            return [(weights.step, self.exp.mesh.replicate(weights.variables)) for weights in found], p.epochs
        if p.best is not None and p.best["step"] != self.done:
            try:
                best, _ = self.checkpoints.restore(p.best["step"])
                return [(best.step, self.exp.mesh.replicate(best.variables))], p.best["epoch"]
            except InputError as error:
                self.display.warn(f"{error}; testing the newest state instead of the best")
        return [(self.done, state.eval_variables)], p.epochs

    def _test(self, members, steps):
        """Return (evaluation on the test set, what the summary adds if several weights or epochs are averaged)."""
        evaluator = self.exp.evaluator(self.exp.dataset.test)
        if self.final is None:
            return self._finite("test", evaluator(members[0])), {}
        alone, last = evaluator.ensemble(members[::-1])  # the last one, the last two, ...
        more: dict = {}
        if self.validate is not None:
            validation = self._finite("validation", self.validate.ensemble(members[::-1])[1][-1])
            more = {f"validation_{name}": value for name, value in validation.metrics.items()}
        if self.config.snapshots:
            more["snapshots"] = [
                {"step": step, "epoch": step // self.exp.loader.steps}
                | {f"test_{name}": value for name, value in one.metrics.items()}
                for step, one in zip(steps, alone[::-1], strict=True)
            ]
            more["last_snapshots"] = [evaluation.metrics for evaluation in last]
        return self._finite("test", last[-1]), more

    def _finite(self, split, evaluation):
        if not math.isfinite(evaluation.loss):
            self._fail(f"the {split} loss is {evaluation.loss}", self.done)
        return evaluation
