"""`.ci/run` with every command that it calls played by a stub: what it ends with, and what it leaves behind."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "run"

# An engine answers once dockerd runs, which ends by the signal that it is sent.
STUBS = {
    "make": 'echo "$*" >> made\ncase "$*" in "$FAILS") exit 2 ;; esac',
    "timeout": '[ -z "${SLOW:-}" ] || exit 124\nshift 2\nexec "$@"',
    "docker": "[ -e engine ]",
    "dockerd": "trap 'rm engine; exit' TERM\necho $$ > \"$2\"\ntouch engine\nwhile :; do sleep 0.05; done",
    "sudo": 'exec "$@"',
    "apt-get": "",
    "chromium": "",
    "ccache": "",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with nothing in it but the script, and the stubs in ``bin/``."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci")
    (tmp_path / "bin").mkdir()
    for name, body in STUBS.items():
        stub = tmp_path / "bin" / name
        stub.write_text(f"#!/bin/sh\n{body}\n")
        stub.chmod(0o755)
    return tmp_path


def ci(checkout: Path, **variables: str) -> tuple[int, list[tuple[str, bool]], str]:
    """Run it; returns the exit code, the steps of the table with whether each passed, and all that was printed."""
    path = f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {"FAILS": "nothing", **os.environ, "PATH": path, **variables}
    command = [checkout / ".ci" / "run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    table = done.stdout.rpartition("\n\n")[2].splitlines()
    lines = [re.fullmatch(r" *\d+ s  (.+?)(  <== FAILED)?", line) for line in table]
    assert all(lines), table
    steps = [(line[1], not line[2]) for line in lines if line]
    assert steps.pop() == ("in all", True)
    return done.returncode, steps, done.stdout + done.stderr


def test_it_ends_with_the_seconds_of_every_step(checkout: Path) -> None:
    code, steps, said = ci(checkout)
    assert code == 0, said
    names = [name for name, passed in steps if passed]
    assert names[:5] == ["make setup", "make lint", "make test", "make parity", "again"]
    assert "start_engine" in names
    assert len(names) == len(steps) > 10
    made = (checkout / "made").read_text().splitlines()
    assert made == [name.removeprefix("make ").replace("again", "parity") for name in names if name != "start_engine"]


@pytest.mark.parametrize("fails", ["lint", "docker-build"])
def test_a_step_that_fails_is_the_last_and_is_marked(checkout: Path, fails: str) -> None:
    code, steps, _ = ci(checkout, FAILS=fails)
    assert code == 2
    assert steps[-1] == (f"make {fails}", False)
    assert all(passed for _, passed in steps[:-1])
    assert steps[0] == ("make setup", True)


def test_a_second_run_that_takes_long_is_a_failure(checkout: Path) -> None:
    code, steps, said = ci(checkout, SLOW="yes")
    assert code == 1
    assert steps[-1] == ("again", False)
    assert "a stage ran again though nothing had changed" in said


@pytest.mark.parametrize("fails", ["nothing", "test-docker"])
def test_the_engine_that_it_started_is_ended_by_its_number(checkout: Path, fails: str) -> None:
    ci(checkout, FAILS=fails)
    number = int((checkout / ".cache" / "dockerd.pid").read_text())
    assert not Path(f"/proc/{number}").exists()
    assert not (checkout / "engine").exists(), "it was told to end and did what it does then"
    assert not re.search(r"\b(pkill|killall|pidof|pgrep)\b", SCRIPT.read_text())


def test_an_engine_that_was_there_is_left_alone(checkout: Path) -> None:
    (checkout / "engine").touch()
    code, steps, _ = ci(checkout)
    assert code == 0
    assert "start_engine" not in dict(steps)
    assert (checkout / "engine").exists()
