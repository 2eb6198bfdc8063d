"""What a run reports while it trains: plain lines, a live bar on a terminal, or one output in a notebook."""

import time
import warnings
from collections import deque

PLAIN_SECONDS = 10.0  # between two plain lines within an epoch
NOTEBOOK_SECONDS, NOTEBOOK_LINES = 0.5, 10  # between two states in a notebook; lines above the state


class Display:
    """Progress as plain lines.

    Args:
      log: a function of one line, such as `print`. None: lines are dropped, and warnings are Python's.
    """

    seconds = PLAIN_SECONDS

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
        elif now - self.last_line >= self.seconds:
            self.last_line = now
            first_step, started = self.first
            left = (now - started) / max(step - first_step, 1) * (total - step)
            self.within(f"step {step}/{total}  epoch {epoch}/{epochs}  {numbers}  {duration(left)} left")

    def within(self, text):
        """Report one line of the state within an epoch."""
        self(text)


class LiveDisplay(Display):
    """Progress as a bar at the bottom of a terminal, with lines above it.

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


class NotebookDisplay(Display):
    """Progress as one output of a notebook's cell: the newest lines, and below them the state within the epoch.

    Warnings are printed, so that they stay.
    """

    seconds = NOTEBOOK_SECONDS

    def __init__(self):
        super().__init__(self._add)
        self.lines, self.handle = deque(maxlen=NOTEBOOK_LINES), None

    def warn(self, text):
        """Report a problem that does not end the run."""
        print(f"warning: {text}")

    def within(self, text):
        """Replace the line of the state within an epoch."""
        self._show([*self.lines, text])

    def _add(self, text):
        self.lines.append(text)
        self._show(self.lines)

    def _show(self, lines):
        from IPython.display import display

        shown = {"text/plain": "\n".join(lines)}
        if self.handle:
            self.handle.update(shown, raw=True)
        else:
            self.handle = display(shown, raw=True, display_id=True)


def duration(seconds):
    """Return seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
