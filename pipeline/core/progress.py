"""What a person sees while work runs: a live bar in a terminal, a plain line every few seconds elsewhere."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_SECONDS = 5.0
STAGE_WIDTH = 10

Advance = Callable[[int, int, str], None]
"""(units done, units in all, a few words)"""


class Reporter:
    """Prints one line a stage, and progress with its rate and what remains. ``quiet`` prints nothing.

    ``stages``: the names of all stages of the run, in order, where they are known; each line then tells which of them
    it is of: ``[3/9] train``.
    """

    def __init__(self, console: Console, quiet: bool = False, stages: Sequence[str] = ()) -> None:
        self._console, self.quiet, self._stages = console, quiet, tuple(stages)

    def counting(self, stages: Sequence[str]) -> "Reporter":
        """The same for a run of these stages."""
        return Reporter(self._console, self.quiet, stages)

    def _label(self, stage: str) -> str:
        if not self._stages:
            return f"{stage:<{STAGE_WIDTH}}"
        of = f"/{len(self._stages)}] "
        number = f"[{self._stages.index(stage) + 1}{of}" if stage in self._stages else ""
        return f"{number:>{len(of) * 2 - 2}}{stage:<{STAGE_WIDTH}}"

    def say(self, stage: str, text: str) -> None:
        """One line."""
        if not self.quiet:
            self._console.print(f"{self._label(stage)} {text}", highlight=False, markup=False, soft_wrap=True)

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
    def working(self, stage: str, what: str) -> Iterator[Callable[[str], None]]:
        """Show that something is being done that cannot be counted. Yields a function that takes the result in a few
        words; where it is called, the stage has a line in the end."""
        said: list[str] = []
        start = time.monotonic()
        if self.quiet or not self._console.is_terminal:
            yield said.append
        else:
            columns = (TextColumn(self._label(stage), markup=False), SpinnerColumn(), TextColumn(what, markup=False))
            with Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True) as bar:
                bar.add_task("", total=None)
                yield said.append
        for words in said:
            self.say(stage, f"{words} ({time.monotonic() - start:.1f} s)")

    @contextmanager
    def _bar(self, stage: str, unit: str) -> Iterator[Advance]:
        columns = (
            TextColumn(self._label(stage), markup=False),
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
        return _rate(rate, self._unit), f"{left // 60}:{left % 60:02d} left"


def _rate(rate: float, unit: str) -> str:
    """``5.2 steps/s``, or ``12.3 s/step`` where one takes more than a second."""
    if rate >= 1:
        return f"{rate:.3g} {unit}/s"
    one = unit.removesuffix("ies") + "y" if unit.endswith("ies") else unit.removesuffix("s")
    seconds = 1 / rate
    return f"{seconds:.0f} s/{one}" if seconds >= 100 else f"{seconds:.3g} s/{one}"
