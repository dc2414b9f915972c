"""A stage runs when it must, and only then."""

import json
from pathlib import Path

import pytest

import pipeline.workflow.stage as stages
from pipeline.workflow.stage import Stage


@pytest.fixture(autouse=True)
def _code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work here is the tests' own; what a digest of code is made of has tests of its own."""
    monkeypatch.setattr(stages, "code_digest", lambda *functions: "one")


class Counter:
    """A stage's work that counts how often it is done."""

    def __init__(self, root: Path) -> None:
        self.root, self.times = root, 0

    def __call__(self) -> str:
        self.times += 1
        (self.root / "out").mkdir(exist_ok=True)
        (self.root / "out" / "file").write_text("made")
        return "made it"


def run(root: Path, work: Counter, said: list[str], **depends: object) -> str:
    stage = Stage("s", {"k": 1} | depends, work, ("out",))
    return stage.run(root, lambda stage, text: said.append(text))


@pytest.fixture
def work(tmp_path: Path) -> Counter:
    return Counter(tmp_path)


def test_unchanged_is_skipped_and_says_its_result(tmp_path: Path, work: Counter) -> None:
    said: list[str] = []
    first, second = run(tmp_path, work, said), run(tmp_path, work, said)
    assert work.times == 1
    assert first == second
    assert said[1] == "unchanged: made it"


def test_another_dependency_runs_it_again(tmp_path: Path, work: Counter) -> None:
    run(tmp_path, work, [])
    run(tmp_path, work, [], k=2)
    assert work.times == 2


@pytest.mark.parametrize("damage", ["change", "remove", "add"])
def test_an_output_that_is_not_what_was_made_runs_it_again(tmp_path: Path, work: Counter, damage: str) -> None:
    run(tmp_path, work, [])
    file = tmp_path / "out" / "file"
    if damage == "change":
        file.write_text("else")
    elif damage == "remove":
        file.unlink()
    else:
        (tmp_path / "out" / "stranger").write_text("x")
    run(tmp_path, work, [])
    assert work.times == 2
    assert file.read_text() == "made"


def test_changed_code_runs_it_again(tmp_path: Path, work: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, work, [])
    monkeypatch.setattr(stages, "code_digest", lambda *functions: "another")
    run(tmp_path, work, [])
    assert work.times == 2


def test_a_torn_record_runs_it_again(tmp_path: Path, work: Counter) -> None:
    run(tmp_path, work, [])
    record = tmp_path / "stages" / "s.json"
    record.write_text(record.read_text()[:-20])
    run(tmp_path, work, [])
    assert work.times == 2
    assert json.loads(record.read_text())["result"] == "made it"


def test_work_that_fails_leaves_no_record(tmp_path: Path) -> None:
    def fail() -> str:
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        Stage("s", {}, fail, ("out",)).run(tmp_path, lambda *_: None)
    assert not (tmp_path / "stages").exists()
