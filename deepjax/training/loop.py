"""Training with all its input and output: progress, records, checkpoints, signals, and the summary."""

import math
import signal
import threading
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from rich.console import Console

from deepjax import optimizers
from deepjax.config import Config
from deepjax.errors import InputError, Stopped, TrainingFailed
from deepjax.runs import metrics as metrics_log
from deepjax.runs import plots, workdir
from deepjax.runs.checkpoint import Checkpoints
from deepjax.training import averaging, evaluate, experiment, sharding
from deepjax.training.compiled import Compiled
from deepjax.training.progress import ProgressDisplay, duration
from deepjax.training.state import parameter_count


def train(config: Config, name: str = "run", *, console: Console | None = None) -> dict:
    """Train what a config describes, from the start or from where its workdir stopped.

    Args:
      config: the experiment.
      name: what to call it; config.workdir defaults to runs/NAME.
      console: a rich Console to report to; None: standard output.

    Returns:
      The contents of summary.json.

    Raises:
      InputError: something in the config cannot work, before anything is computed or overwritten.
      TrainingFailed: the loss is not finite. Checkpoints so far are whole.
      Stopped: SIGINT or SIGTERM came; everything is saved, and the same call continues.
    """
    console = console or Console()
    config = experiment.with_absolute_paths(config)
    experiment.check(config)
    folder = workdir.check_workdir(config, name)
    if summary := workdir.finished(folder, config):
        _say(console, f"{folder}: finished, test error {100 * summary['test_error']:.2f} %")
        return summary
    exp = experiment.load(config, folder)
    # Only now, when all has proved to fit, is anything written.
    with workdir.locked(folder):
        if changes := workdir.write_config(folder, config, name, exp.devices):
            _say(console, changes)
        workdir.write_data(folder, exp.dataset, exp.statistics)
        with Trainer(exp, folder, console) as trainer:
            return trainer.run()


def _say(console, text):
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@dataclass
class Progress:
    """What resuming needs besides the state; kept in each checkpoint as JSON."""

    epochs: int = 0  # finished, validation included
    loss_sum: float = 0.0  # over the examples of the current epoch
    correct: int = 0
    count: float = 0.0
    train_loss: float | None = None  # mean of the last whole epoch
    best: dict | None = None  # {"step", "epoch", "error", "loss"} of the best validation
    lowest_loss: float | None = None  # on validation
    stale: int = 0  # epochs since then
    seconds: float = 0.0  # of training and validation, compilation left out
    compile_seconds: float = 0.0
    images: int = 0


class Trainer:
    """One process's share of a run. `run` goes from the newest checkpoint to the summary.

    What is tested: the state that validated best (the newest, without validation); with config.swa_start the averaged
    weights, and with config.snapshots all snapshots together, whichever epoch validated best.
    """

    def __init__(self, exp, folder, console):
        self.exp, self.config, self.folder, self.console = exp, exp.config, folder, console
        self.key = workdir.key_of(self.config)
        workdir.remove_partial(folder)
        self.checkpoints = Checkpoints(folder / "checkpoints", self.config.keep)
        self.finals: Any = averaging.finals(self.config, folder)
        self.state, self.progress = exp.init(partial(_say, console)), Progress()
        self.parameters = parameter_count(self.state.params)
        if restored := self.checkpoints.newest(self.state, self._warn, repair=True):
            self.state, self.progress = restored[0], Progress(**restored[1])
        self.done = int(self.state.step)
        self.records = metrics_log.MetricsLog(folder, self.done)
        self.total = exp.loader.steps * self.config.epochs
        self.validate = exp.evaluator(exp.dataset.validation) if len(exp.dataset.validation) else None
        self.step = Compiled(exp.step)
        self.clock, self.compiling = time.monotonic(), 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.records.close()
        self.checkpoints.close()
        if self.finals:
            self.finals.close()

    def run(self):
        """Train the epochs that are left, then test. Returns the summary."""
        self._introduce()
        with Signals() as signals, ProgressDisplay(self.done, self.total, self.config.epochs, self.console) as display:
            self.clock = time.monotonic()
            while not self._finished():
                self._train_epoch(signals, display)
                self._end_epoch(display)
                if signals.received and not self._finished():
                    self._stop(signals.received)
            return self._summarize()

    def _finished(self):
        patience = self.config.patience
        return self.progress.epochs == self.config.epochs or (patience and self.progress.stale >= patience)

    def _introduce(self):
        d, devices = self.exp.dataset, self.exp.devices
        shape = "x".join(map(str, d.shape))
        for line in (
            f"{d.name}: {len(d.train):,} training, {len(d.validation):,} validation, {len(d.test):,} test examples "
            f"of {shape}, {len(d.classes)} classes",
            f"{self.config.model}: {self.parameters:,} parameters",
            f"{len(devices)} x {devices[0].device_kind}, {self.config.devices.strategy}; writing to {self.folder}",
            *([f"continuing at step {self.done} of {self.total}"] if self.done else []),
        ):
            _say(self.console, line)

    def _warn(self, text):
        _say(self.console, f"warning: {text}")

    def _tick(self):
        """Add the time since the last tick to the run's, what compiling took left out."""
        compiling = self.step.seconds + (self.validate.seconds if self.validate else 0.0)
        now = time.monotonic()
        self.progress.seconds += now - self.clock - (compiling - self.compiling)
        self.progress.compile_seconds += compiling - self.compiling
        self.clock, self.compiling = now, compiling

    def _train_epoch(self, signals, display):
        p, config, loader = self.progress, self.config, self.exp.loader
        first = self.done - p.epochs * loader.steps
        if first == 0:
            p.loss_sum, p.correct, p.count = 0.0, 0, 0.0
        pending = None
        for rows in map(self.exp.place, loader.epoch(p.epochs, first)):
            if self.step.seconds == 0:
                display.line(f"compiled in {self.step.compile(self.state, loader.data, rows, self.key):.1f} s")
            self.state, metrics = self.step(self.state, loader.data, rows, self.key)
            if pending is not None:  # fetched a step late, so that the device never waits for the host
                self._account(self.done, pending, display)
            self.done += 1
            pending = metrics
            last = self.done % loader.steps == 0
            due = config.checkpoint_every and self.done % config.checkpoint_every == 0
            if not last and (signals.received or due):
                self._account(self.done, pending, display)
                pending = None
                self._save()
                if signals.received:
                    self._stop(signals.received)
        if pending is not None:
            self._account(self.done, pending, display)

    def _account(self, step, metrics, display):
        """Take in one step's metrics: refuse what is not finite, add to the epoch's means, record, show."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            self._fail(f"the loss is {values['loss']}, its gradient's norm {values['grad_norm']}", step)
        p = self.progress
        count = values.pop("count")
        p.loss_sum += values["loss"] * count
        p.correct += round(values["accuracy"] * count)
        p.count += count
        p.images += int(count)
        self._tick()
        if step % self.config.log_every == 0:
            epoch = step / self.exp.loader.steps
            self.records.write("train", step, epoch, **values, seconds=round(p.seconds, 3))
        display.step(step, p.epochs, p.loss_sum / p.count, p.correct / p.count, p.images / max(p.seconds, 1e-9))

    def _fail(self, what, step):
        steps = self.checkpoints.steps
        good = (
            f"the last good checkpoint is {self.checkpoints.folder / str(steps[-1])}" if steps else "no checkpoint yet"
        )
        rate = float(self.exp.schedule((step - 1) // self.config.optimizer.accumulate))
        rate *= float(optimizers.rate_scale(self.state.opt_state))
        raise TrainingFailed(
            f"at step {step} {what} (learning rate {rate:.4g}); {good}; lower --optimizer.learning-rate, lengthen "
            f"--schedule.warmup or set --optimizer.clip-norm, in another --workdir"
        )

    def _end_epoch(self, display):
        """Validate, record the epoch's means, save."""
        p, steps = self.progress, self.exp.loader.steps
        p.epochs = self.done // steps
        p.train_loss = p.loss_sum / p.count
        train_error = 1 - p.correct / p.count
        line = (
            f"epoch {p.epochs}/{self.config.epochs}  training loss {p.train_loss:.4f} error {100 * train_error:.2f} %"
        )
        validation = None
        if self.validate is not None:
            result = self._finite("validation", self.validate(self.state.eval_variables))
            validation = {"error": result.error, "loss": result.loss}
            self._compare(validation)
            line += f"  validation loss {result.loss:.4f} error {100 * result.error:.2f} %"
        self._observe(p.train_loss if validation is None else validation["loss"])
        self._include()
        self._tick()
        seconds = round(p.seconds, 3)
        self.records.write("train_epoch", self.done, p.epochs, loss=p.train_loss, error=train_error, seconds=seconds)
        if validation:
            self.records.write("validation", self.done, p.epochs, **validation, seconds=seconds)
        self._save()
        display.line(f"{line}  {duration(p.seconds)}")

    def _observe(self, loss):
        """Show an epoch's loss to the schedule plateau, whose memory is in the optimizer's state."""
        if self.config.schedule.name == "plateau":
            opt_state = optimizers.observe(self.state.opt_state, loss, self.config.schedule)
            self.state = self.state.replace(opt_state=sharding.replicate(opt_state, self.exp.devices))

    def _include(self):
        """Take the parameters into SWA's average, where its time has come."""
        if 0 < self.config.swa_start <= self.progress.epochs:
            params, done = self.state.eval_variables["params"], self.progress.epochs - self.config.swa_start
            average = averaging.include(self.state.swa, params, done)
            self.state = self.state.replace(swa=sharding.replicate(average, self.exp.devices))

    def _compare(self, validation):
        p = self.progress
        rank = validation["error"], validation["loss"]
        # Of equals the newest, which has been trained longer.
        if p.best is None or rank <= (p.best["error"], p.best["loss"]):
            p.best = {"step": self.done, "epoch": p.epochs, **validation}
        if p.lowest_loss is None or validation["loss"] < p.lowest_loss:
            p.lowest_loss, p.stale = validation["loss"], 0
        else:
            p.stale += 1

    def _save(self):
        # On the host, where they go anyway: for the device it would be one more program to compile.
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(self.state.params))):
            self._fail("the update has made parameters that are not finite", self.done)
        if self.config.snapshots and self.done % (self.total // self.config.snapshots) == 0:
            self.finals.save(averaging.final_state(self.state, self.state.eval_variables), {"best": None})
        self.checkpoints.save(self.state, asdict(self.progress))

    def _stop(self, number):
        self._draw_curves()
        raise Stopped(
            f"stopped by {signal.Signals(number).name} at step {self.done} of {self.total}, saved in {self.folder}; "
            f"the same command continues",
            number,
        )

    def _draw_curves(self):
        plots.save(plots.curves(metrics_log.read(self.folder)), self.folder / "curves.png")

    def _summarize(self):
        """Test, draw, and write summary.json last."""
        p, dataset = self.progress, self.exp.dataset
        states, epoch = self._final_states()
        test, more = self._test(states)
        self._draw_curves()
        title = f"{self.config.model} on {dataset.name}: test error {100 * test.error:.2f} %"
        figure = plots.confusion(test.confusion(len(dataset.classes)), dataset.classes, title)
        plots.save(figure, self.folder / "confusion.png")
        summary = {
            "test_error": test.error,
            "test_loss": test.loss,
            "train_loss": p.train_loss,
            "steps": self.done,
            "epochs": p.epochs,
            "seconds": round(p.seconds, 2),
            "compile_seconds": round(p.compile_seconds, 2),
            "images_per_second": round(p.images / max(p.seconds, 1e-9), 1),
            "parameters": self.parameters,
            "best_epoch": epoch,
            **more,
        }
        workdir.write_record(self.folder, "summary.json", summary)
        _say(
            self.console,
            f"test error {100 * test.error:.2f} %, loss {test.loss:.4f} ({self._tested(epoch, len(states))}, "
            f"{len(dataset.test):,} examples) after {duration(p.seconds)}; see {self.folder}",
        )
        return summary

    def _tested(self, epoch, count):
        """What was tested, in words."""
        if self.config.swa_start:
            return f"mean of the weights of {epoch + 1 - self.config.swa_start} epochs"
        return f"{count} snapshots together" if self.config.snapshots else f"epoch {epoch}"

    def _final_states(self):
        """(states to test together, the epoch they are of)."""
        p, state = self.progress, self.state
        if self.config.swa_start:
            variables = {"params": state.swa, "batch_stats": state.batch_stats}
            state = averaging.final_state(state, self.exp.moment_estimator()(variables))
            self.finals.save(state, {"best": None})
            return [state], p.epochs
        if self.config.snapshots:
            states = self.finals.whole(averaging.final_state(state, state.eval_variables), self._warn)
            if not states:
                raise InputError(f"the snapshots in {self.finals.folder} are gone; train anew in another --workdir")
            return states, p.epochs
        if p.best is not None and p.best["step"] != self.done:
            try:
                return [self.checkpoints.restore(p.best["step"], state)[0]], p.best["epoch"]
            except InputError as error:
                self._warn(f"{error}; testing the newest state instead of the best")
        return [state], p.epochs

    def _test(self, states):
        """(Evaluation on the test set, what the summary tells besides where several weights or states are averaged)."""
        dataset, steps = self.exp.dataset, self.exp.loader.steps
        evaluator, newest_first = self.exp.evaluator(dataset.test), [state.eval_variables for state in states[::-1]]
        if self.finals is None:
            return self._finite("test", evaluator(newest_first[0])), {}
        alone, last = evaluate.ensemble(evaluator, newest_first)
        more: dict = {}
        if self.validate is not None:
            validation = self._finite("validation", evaluate.ensemble(self.validate, newest_first)[1][-1])
            more = {"validation_error": validation.error, "validation_loss": validation.loss}
        if self.config.snapshots:
            more["snapshots"] = [
                {"step": step, "epoch": step // steps, "test_error": one.error, "test_loss": one.loss}
                for step, one in zip([int(state.step) for state in states], alone[::-1])
            ]
            more["last_snapshots_test_errors"] = [evaluation.error for evaluation in last]  # the last, the last two...
        return self._finite("test", last[-1]), more

    def _finite(self, split, evaluation):
        if not math.isfinite(evaluation.loss):
            self._fail(f"the {split} loss is {evaluation.loss}", self.done)
        return evaluation


class Signals:
    """While active, SIGINT and SIGTERM are noted in `received`; a second SIGINT interrupts at once."""

    def __init__(self):
        self.received = 0
        self.before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
