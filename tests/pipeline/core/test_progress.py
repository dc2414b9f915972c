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


@pytest.mark.parametrize(
    ("seconds", "unit", "said"),
    [
        (0.1, "steps", "10 steps/s"),
        (1.0, "images", "1 images/s"),
        (1.25, "images", "1.25 s/image"),
        (12.3, "steps", "12.3 s/step"),
        (1234.5, "steps", "1234 s/step"),
        (20.0, "families", "20 s/family"),
    ],
)
def test_what_takes_seconds_is_told_in_seconds(clock: Clock, seconds: float, unit: str, said: str) -> None:
    out = io.StringIO()
    with Reporter(Console(file=out, width=100)).progress("x", unit) as advance:
        advance(0, 1000, "")
        clock.now += 100 * seconds
        advance(100, 1000, "")
    assert f", {said}, " in out.getvalue()


def test_stages_are_counted_where_they_are_known(clock: Clock) -> None:
    out = io.StringIO()
    plain = Reporter(Console(file=out, width=100))
    reporter = plain.counting(("dataset", "train", "judge"))
    reporter.say("dataset", "unchanged")
    with reporter.progress("train", "steps") as advance:
        advance(0, 20, "")
        clock.now += 10
        advance(10, 20, "")
    reporter.say("wait", "another stage's")
    with reporter.working("judge", "comparing") as done:
        clock.now += 2
        done("PASS, 300 images")
    with reporter.working("report", "drawing"):
        clock.now += 2
    plain.say("dataset", "not counted")
    assert out.getvalue().splitlines() == [
        "[1/3] dataset    unchanged",
        "[2/3] train      10/20, 1 steps/s, 0:10 left",
        "      wait       another stage's",
        "[3/3] judge      PASS, 300 images (2.0 s)",
        "dataset    not counted",
    ]
    out = io.StringIO()
    Reporter(Console(file=out, width=100)).counting("abcdefghijkl").say("b", "x")
    assert out.getvalue() == " [2/12] b          x\n"


def test_what_cannot_be_counted_is_shown_in_a_terminal_and_said_once() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    with Reporter(console).counting(("judge",)).working("judge", "comparing the answers") as done:
        done("PASS")
    shown = out.getvalue()
    assert "comparing the answers" in shown
    assert shown.count("PASS (0.0 s)") == 1
    assert "[1/1] judge" in shown
    quiet = io.StringIO()
    with Reporter(Console(file=quiet, force_terminal=True), quiet=True).working("judge", "comparing") as done:
        done("PASS")
    assert quiet.getvalue() == ""
