"""What a person sees while work runs: a live bar in a terminal, a plain line every few seconds elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 5.0
STAGE_WIDTH = 10

Advance = Callable[[int, int, str], None]
"""(units done, units in all, a few words)"""


class Reporter:
    """Prints one line a stage, and progress with its rate and what remains. ``quiet`` prints nothing."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console, self.quiet = console, quiet

    def say(self, stage: str, text: str) -> None:
        """One line."""
        if not self.quiet:
            self._console.print(f"{stage:<{STAGE_WIDTH}} {text}", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, stage: str, unit: str) -> Iterator[Advance]:
        """Yield a function to call as units get done; the first call's count is where the work started."""
        if self.quiet:
            yield _nothing
        elif self._console.is_terminal:
            with self._bar(stage, unit) as advance:
                yield advance
        else:
            yield self._plain(stage, unit)

    @contextmanager
    def _bar(self, stage: str, unit: str) -> Iterator[Advance]:
        columns = (
            TextColumn(f"{stage:<{STAGE_WIDTH}}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        meter = _Meter(unit)
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task("", total=None, rate="", note="")

            def advance(done: int, total: int, note: str = "") -> None:
                rate, _ = meter.read(done, total)
                bar.update(task, completed=done, total=total, rate=rate, note=note)

            yield advance

    def _plain(self, stage: str, unit: str) -> Advance:
        meter = _Meter(unit)
        last = time.monotonic()

        def advance(done: int, total: int, note: str = "") -> None:
            nonlocal last
            rate, left = meter.read(done, total)
            if time.monotonic() - last >= PLAIN_SECONDS:
                last = time.monotonic()
                self.say(stage, ", ".join(part for part in (f"{done}/{total}", rate, left, note) if part))

        return advance


def _nothing(done: int, total: int, note: str) -> None:
    pass


class _Meter:
    """Rate and time left, counted from the first reading, so that a resumed run's head start is not speed."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._start: tuple[float, int] | None = None

    def read(self, done: int, total: int) -> tuple[str, str]:
        now = time.monotonic()
        if self._start is None:
            self._start = (now, done)
        seconds, units = now - self._start[0], done - self._start[1]
        if seconds < 0.5 or units < 1:
            return "", ""
        rate = units / seconds
        left = round((total - done) / rate)
        return f"{rate:.3g} {self._unit}/s", f"{left // 60}:{left % 60:02d} left"
