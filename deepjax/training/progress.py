"""What a run shows while it goes: a live bar on a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0  # between two plain lines within an epoch


class ProgressDisplay:
    """Step, epoch, loss, accuracy, images/s and time left. Use as a context manager.

    Args:
      done: steps done before.
      total: steps of the whole run.
      epochs: of the whole run.
      console: a rich Console; its terminal or its absence decides the form.
    """

    def __init__(self, done, total, epochs, console: Console):
        self.total, self.epochs, self.console = total, epochs, console
        self.started = self.last_line = time.monotonic()
        self.first_step = None
        self.bar = None
        if console.is_terminal or console.is_jupyter:
            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(bar_width=12),
                TextColumn("{task.completed}/{task.total} {task.fields[numbers]}"),
                TimeRemainingColumn(compact=True),
                console=console,
            )
            self.task = self.bar.add_task("", total=total, completed=done, epoch=f"0/{epochs}", numbers="")

    def __enter__(self):
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_):
        if self.bar:
            self.bar.stop()

    def step(self, step, epoch, loss, accuracy, images_per_second):
        """Show the state after `step` steps, in 0-based `epoch`."""
        now = time.monotonic()
        numbers = f"loss {loss:.4f} accuracy {accuracy:.3f} {images_per_second:,.0f} images/s"
        if self.first_step is None:
            self.first_step, self.started = step, now
        if self.bar:
            self.bar.update(self.task, completed=step, epoch=f"{epoch + 1}/{self.epochs}", numbers=numbers)
        elif now - self.last_line >= PLAIN_SECONDS:
            self.last_line = now
            text = f"step {step}/{self.total}  epoch {epoch + 1}/{self.epochs}  {numbers}"
            if step > self.first_step:
                left = (now - self.started) / (step - self.first_step) * (self.total - step)
                text += f"  {duration(left)} left"
            self.line(text)

    def line(self, text):
        """A line that stays, above the bar if there is one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def duration(seconds):
    """Seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
