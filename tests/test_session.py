"""The tests' own rules, in one process and in several."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from session import BEGIN_WITH, make_once

TESTS = Path(__file__).parent


def test_what_is_shared_is_made_once_and_whole_for_all(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "first").touch()
        time.sleep(0.2)
        with open(tmp_path / "count", "a") as count:
            count.write("made\n")
        (folder / "last").touch()

    def ask(_: int) -> set[str]:
        return {path.name for path in make_once(tmp_path / "shared", "thing", make).iterdir()}

    with ThreadPoolExecutor(3) as askers:  # each opens the lock anew, as a process does
        assert list(askers.map(ask, range(3))) == [{"first", "last"}] * 3
    assert (tmp_path / "count").read_text() == "made\n"


def test_what_could_not_be_made_is_not_taken_for_made(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        make_once(tmp_path, "thing", fail)
    made = make_once(tmp_path, "thing", lambda folder: (folder / "whole").touch())
    assert [path.name for path in made.iterdir()] == ["whole"]


def test_what_is_to_begin_with_exists() -> None:
    for begin in BEGIN_WITH:
        file, _, function = begin.partition("::")
        assert f"def {function}" in (TESTS.parent / file).read_text()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_skip_without_a_reason_fails(tmp_path: Path, workers: str) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.skip\ndef test_one(): pass\n"
        "@pytest.mark.skip(reason='of this')\ndef test_two(): pass\n"
        "def test_three(once):\n    once('thing', lambda folder: None)\n"
        "def test_four(once):\n    once('thing', lambda folder: None)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "--numprocesses", workers, "--basetemp", "kept"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "test_one was skipped without a reason: give one" in done.stdout
    assert "2 passed, 1 skipped, 1 error" in done.stdout.splitlines()[-1]
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("thing")] == ["kept/once/thing"]
