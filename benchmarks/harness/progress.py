"""What is running, how fast, and how long it will take: bars in a terminal, a line every minute elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from harness.plans import Run

LINE_EVERY = 60.0


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes, or seconds."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min" if minutes else f"{round(seconds)} s"


class Speed:
    """Steps per second of one run in this process, from the first report on.

    :param total: steps of the run
    """

    def __init__(self, total: int) -> None:
        self.total, self.steps = total, 0
        self.first: tuple[int, float] | None = None
        self.now = 0.0

    def update(self, steps: int, now: float) -> None:
        self.first = self.first or (steps, now)
        self.steps, self.now = steps, now

    @property
    def per_second(self) -> float:
        if self.first is None or self.now <= self.first[1]:
            return 0.0
        return (self.steps - self.first[0]) / (self.now - self.first[1])

    @property
    def left(self) -> int:
        return self.total - self.steps


class Display:
    """Progress of runs side by side.

    :param n_runs: how many are to be done
    :param waiting_steps: steps of all of them
    """

    def __init__(self, n_runs: int, waiting_steps: int) -> None:
        self.n_runs, self.n_done = n_runs, 0
        self.waiting_steps = waiting_steps
        self.running: dict[Run, Speed] = {}
        self.console = Console()
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[Run, Any] = {}
        self._next_line = 0.0

    def __enter__(self) -> "Display":
        self.bars.start()
        self._next_line = time.monotonic() + LINE_EVERY
        return self

    def __exit__(self, *_: Any) -> None:
        self.bars.stop()

    def begin(self, run: Run) -> None:
        self.waiting_steps -= run.steps
        self.running[run] = Speed(run.steps)
        self.tasks[run] = self.bars.add_task(str(run), total=run.steps, speed="starts")

    def update(self, run: Run, steps: int) -> None:
        speed = self.running[run]
        speed.update(steps, time.monotonic())
        self.bars.update(self.tasks[run], completed=steps, speed=f"{speed.per_second:.0f} steps/s")

    def end(self, run: Run, message: str) -> None:
        """It is done, has failed, or is somebody else's."""
        del self.running[run]
        self.bars.remove_task(self.tasks.pop(run))
        self.n_done += 1
        if self.console.is_terminal:
            self.bars.console.print(message, markup=False, highlight=False)
        else:
            print(message, flush=True)

    def seconds_left(self) -> float | None:
        """Of everything, at the speed of what runs now; None if nothing is known yet."""
        speed = sum(each.per_second for each in self.running.values())
        left = self.waiting_steps + sum(each.left for each in self.running.values())
        return left / speed if speed else None

    def line(self) -> str:
        """All of it in one line."""
        parts = [
            f"{run}: {speed.steps:,} of {speed.total:,} steps, {speed.per_second:.0f} steps/s"
            for run, speed in self.running.items()
        ]
        left = self.seconds_left()
        rest = f"; all: {duration(left)} left" if left is not None else ""
        return f"{self.n_done} of {self.n_runs} done; {'; '.join(parts) or 'nothing runs'}{rest}"

    def tick(self) -> None:
        """Now and then: a line where there are no bars."""
        if not self.console.is_terminal and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY
            print(self.line(), flush=True)
