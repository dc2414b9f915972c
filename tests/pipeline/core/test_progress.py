"""What is printed while work runs, without a terminal and with one."""

import io

import pytest
from rich.console import Console

import pipeline.core.progress as progress
from pipeline.core.progress import Reporter


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_plain_lines_tell_rate_and_time_left(clock: Clock) -> None:
    out = io.StringIO()
    with Reporter(Console(file=out, width=100)).progress("train", "steps") as advance:
        for done in range(0, 101, 10):
            advance(done, 200, "loss 1.5")
            clock.now += 1
    lines = out.getvalue().splitlines()
    assert lines == [
        "train      50/200, 10 steps/s, 0:15 left, loss 1.5",
        "train      100/200, 10 steps/s, 0:10 left, loss 1.5",
    ]


def test_a_resumed_runs_head_start_is_not_speed(clock: Clock) -> None:
    out = io.StringIO()
    with Reporter(Console(file=out, width=100)).progress("hf", "images") as advance:
        advance(900, 1000, "")
        clock.now += 10
        advance(910, 1000, "")
    assert "910/1000, 1 images/s, 1:30 left" in out.getvalue()


def test_quiet_prints_nothing() -> None:
    out = io.StringIO()
    reporter = Reporter(Console(file=out), quiet=True)
    reporter.say("train", "x")
    with reporter.progress("train", "steps") as advance:
        advance(1, 2, "")
    assert out.getvalue() == ""


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    with Reporter(Console(file=out, width=100, force_terminal=True)).progress("train", "steps") as advance:
        advance(1, 2, "loss 1.5")
    assert "1/2" in out.getvalue()
