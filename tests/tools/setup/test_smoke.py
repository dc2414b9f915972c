"""`make smoke` says which Pythons were tried and how it went; what it runs is there. The run itself is CI's."""

import sys
from pathlib import Path

import pytest

from pipeline.core.pinned import read_lock
from tools.setup import smoke

ROOT = Path(__file__).parents[3]
OTHERS = [f"Python 3.{minor}" for _, minor in smoke.PYTHONS if minor != sys.version_info[1]]


def test_what_it_runs_and_leaves_out_is_there():
    assert [path for path in smoke.TESTS if not (ROOT / path).exists()] == []
    assert sorted(smoke.LEFT_OUT - set(read_lock(ROOT / "locks" / "cpu.txt"))) == []


def test_a_python_that_is_not_here_is_skipped_and_said_to_be(monkeypatch, capsys):
    monkeypatch.setattr(smoke, "find_python", lambda versions: None)
    assert smoke.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines if "skipped, no python3." in line] == OTHERS
    assert len(lines) == len(smoke.PYTHONS)


@pytest.mark.parametrize(("passed", "code", "word"), [(True, 0, "passed"), (False, 1, "FAILED")])
def test_its_exit_code_is_that_of_the_tests(monkeypatch, capsys, passed, code, word):
    monkeypatch.setattr(smoke, "find_python", lambda versions: f"python3.{versions[0][1]}")
    monkeypatch.setattr(smoke, "smoke", lambda python: passed)
    assert smoke.main() == code
    assert f"{OTHERS[-1]}: {word}, " in capsys.readouterr().out


def test_an_environment_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch, capsys):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho working\necho 'no disk'\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(smoke, "find_python", lambda versions: str(broken))
    assert smoke.main() == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {OTHERS[0]}: `{broken} -m venv ")
    assert said.endswith("...` failed: no disk\n")
