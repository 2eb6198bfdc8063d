"""What a run reports while it trains: plain lines, or a live bar on a terminal."""

import time
import warnings

PLAIN_SECONDS = 10.0  # between two plain lines within an epoch


class Display:
    """Progress as plain lines.

    Args:
      log: a function of one line, such as `print`. None: lines are dropped, and warnings are Python's.
    """

    def __init__(self, log=None):
        self.log = log
        self.first, self.last_line = None, 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __call__(self, text):
        """Report one line."""
        if self.log:
            self.log(text)

    def warn(self, text):
        """Report a problem that does not end the run."""
        if self.log:
            self.log(f"warning: {text}")
        else:
            warnings.warn(text, stacklevel=2)

    def step(self, step, total, epoch, epochs, numbers):
        """Report the state after `step` steps of `total`, in the 1-based `epoch`; `numbers` is text."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.last_line = (step, now), now
        elif now - self.last_line >= PLAIN_SECONDS:
            self.last_line = now
            first_step, started = self.first
            left = (now - started) / max(step - first_step, 1) * (total - step)
            self(f"step {step}/{total}  epoch {epoch}/{epochs}  {numbers}  {duration(left)} left")


class LiveDisplay(Display):
    """Progress as a bar at the bottom of a terminal or notebook, with lines above it.

    Args:
      console: a rich Console.
    """

    def __init__(self, console):
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        super().__init__(lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True))
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=12),
            TextColumn("{task.completed}/{task.total} {task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self.task = None

    def __exit__(self, *_):
        self.bar.stop()

    def step(self, step, total, epoch, epochs, numbers):
        """Move the bar."""
        fields = {"completed": step, "epoch": f"{epoch}/{epochs}", "numbers": numbers}
        if self.task is None:
            self.task = self.bar.add_task("", total=total, **fields)
            self.bar.start()
        self.bar.update(self.task, **fields)


def duration(seconds):
    """Return seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
