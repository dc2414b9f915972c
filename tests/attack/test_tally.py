"""The table at the end of a session of attacks: a kind a line, all of them, and whatever the workers found."""

import subprocess
import sys
from pathlib import Path

import pytest
import tally
from trial import Hang, Outcome, Room, Trials, tried

from pipeline.core.errors import CheckFailed, UserError

HERE = Path(__file__).parent


def test_the_table_adds_up_kinds_and_counts() -> None:
    lines = tally.table({"photo": {"tried": 12, "hangs": 1}, "kills": {"tried": 300, "lost": 2}})
    assert [line.split() for line in lines[1:]] == [
        ["kills", "300", "0", "0", "0", "2", "0"],
        ["photo", "12", "0", "1", "0", "0", "0"],
        ["all", "312", "0", "1", "0", "2", "0"],
    ]
    assert lines[0].split() == ["kind", "tried", "tracebacks", "hangs", "wrong", "codes", "lost", "false", "PASS"]
    assert len({len(line) for line in lines}) == 1
    assert tally.table({}) == []


def test_a_count_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no count crashes"):
        tally.tally("photo", crashes=1)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_workers_found_is_in_the_table_and_fails_the_session(workers: str, tmp_path: Path) -> None:
    for name in ("conftest.py", "tally.py", "trial.py"):
        (tmp_path / name).write_text((HERE / name).read_text())
    for number in (1, 2):
        (tmp_path / f"test_{number}.py").write_text(
            "from trial import Outcome\n"
            "def test_good(trials): trials.note('photo', 'a good one', Outcome())\n"
            "def test_bad(trials): trials.note('photo', 'a bad one', Outcome('lost', 'a photo is gone'))\n"
        )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", workers, "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parents[1])
    assert done.returncode == 1, done.stdout + done.stderr
    table = [line.split() for line in done.stdout.splitlines() if line.startswith(("photo", "all"))]
    assert table == [["photo", "4", "0", "0", "0", "2", "0"], ["all", "4", "0", "0", "0", "2", "0"]]
    assert "2 failed, 2 passed" in done.stdout
    assert "a photo is gone" in done.stdout


# --- what a trial counts ---------------------------------------------------------------------------------------------


def raises(error: BaseException) -> None:
    raise error


def loop(_: Path) -> None:
    while True:
        try:
            sum(range(1000))
        except Exception:
            continue


def grow(_: Path) -> None:
    bytearray(8 << 30)


def die(_: Path) -> None:
    import os

    os.abort()


def test_a_sentence_and_a_value_count_as_nothing() -> None:
    assert tried(lambda: None) == Outcome()
    for error in (UserError("no"), CheckFailed("no")):
        assert tried(lambda error=error: raises(error)) == Outcome(text="no", refused=True)


@pytest.mark.parametrize(
    ("reader", "count", "text"),
    [
        (loop, "hangs", "not back after 1 s"),
        (grow, "tracebacks", "MemoryError"),
        (die, "tracebacks", "the process died, exit code -6"),
        (lambda path: raises(ValueError("what")), "tracebacks", "ValueError: what"),
        (lambda path: raises(SystemExit(3)), "tracebacks", "SystemExit: 3"),
        (lambda path: raises(RecursionError("deep")), "tracebacks", "RecursionError: deep"),
    ],
    ids=["loop", "grow", "die", "ValueError", "SystemExit", "RecursionError"],
)
def test_everything_else_counts(reader: object, count: str, text: str) -> None:
    room = Room(reader, seconds=1)  # type: ignore[arg-type]
    try:
        for _ in range(2):  # another child takes the place of one that died
            outcome = room.attempt(Path("/dev/null"))
            assert outcome.count == count
            assert text in outcome.text
    finally:
        room.close()


def test_a_hang_is_no_exception() -> None:
    """A reader that catches every exception must not catch the alarm."""
    assert not issubclass(Hang, Exception)


def test_the_file_of_a_bad_case_is_kept_and_named(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    (tmp_path / "file").write_text("bad")
    before = tally.found().get("own", {}).get("tried", 0)
    trials._keep("own", "a name/with: signs", tmp_path / "file")
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.read_text() == "bad"
    assert tally.found().get("own", {}).get("tried", 0) == before
