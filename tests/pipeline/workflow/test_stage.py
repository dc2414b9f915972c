"""A stage runs when it must, and only then."""

import json
import os
from pathlib import Path

import pytest

import pipeline.workflow.stage as stages
from pipeline.core.errors import UserError
from pipeline.core.files import shown
from pipeline.workflow.stage import Stage
from pipeline.workflow.work import _drop_stale_checkpoints, drop_checkpoints


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


@pytest.mark.parametrize("damage", ["change", "remove", "add"])
def test_what_was_changed_is_said_and_not_gone_on_from(tmp_path: Path, work: Counter, damage: str) -> None:
    said: list[str] = []
    run(tmp_path, work, said)
    names = {"change": "file", "remove": "file", "add": "stranger\n"}
    path = tmp_path / "out" / names[damage]
    path.unlink() if damage == "remove" else path.write_text("else")

    def look() -> str:
        assert not (tmp_path / "out").exists(), "the work would go on from what was edited"
        return work()

    Stage("s", {"k": 1}, look, ("out",)).run(tmp_path, lambda _, text: said.append(text))
    assert said[1] == f"{shown(f'out/{path.name}')} changed since it was made: made again"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_only_the_outputs_that_were_changed_are_removed(tmp_path: Path) -> None:
    def work() -> str:
        for name in ("a", "b"):
            (tmp_path / name).write_text(name + (tmp_path / name).read_text() if (tmp_path / name).exists() else name)
        return "made it"

    stage, said = Stage("s", {}, work, ("a", "b")), list[str]()
    stage.run(tmp_path, lambda *_: None)
    (tmp_path / "a").write_text("edited")
    stage.run(tmp_path, lambda _, text: said.append(text))
    assert said[0] == "a changed since it was made: made again"
    assert [(tmp_path / name).read_text() for name in ("a", "b")] == ["a", "bb"]


@pytest.mark.parametrize(
    "record", [b"[]", b"null", b"7", b'"x"', b"\xff", b"[" * 100_000, b'{"wanted": 1}', b'{"made": []}', "a FIFO"]
)
def test_a_record_that_is_none_runs_it_again(tmp_path: Path, work: Counter, record: bytes | str) -> None:
    run(tmp_path, work, [])
    path = tmp_path / "stages" / "s.json"
    if isinstance(record, str):
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(UserError, match="is a FIFO"):
            run(tmp_path, work, [])
        path.unlink()
    else:
        path.write_bytes(record)
    run(tmp_path, work, [])
    assert work.times == 2 + isinstance(record, str)


@pytest.mark.parametrize("key", ["made", "result", "wanted"])
@pytest.mark.parametrize("value", [None, [], 7, {}, {"out/file": None}])
def test_a_record_with_a_value_that_is_none_runs_it_again(
    tmp_path: Path, work: Counter, key: str, value: object
) -> None:
    run(tmp_path, work, [])
    path = tmp_path / "stages" / "s.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    run(tmp_path, work, [])
    assert work.times == 2


def test_what_is_only_for_a_killed_stage_is_cleaned_behind_its_record(tmp_path: Path) -> None:
    record, seen = tmp_path / "stages" / "s.json", list[bool]()

    def work() -> str:
        (tmp_path / "out").write_text("made")
        return "made it"

    def killed() -> None:
        seen.append(record.exists())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stage("s", {}, work, ("out",), killed).run(tmp_path, lambda *_: None)
    again = Stage("s", {}, lambda: pytest.fail("it is done"), ("out",), lambda: seen.append(record.exists()))
    again.run(tmp_path, lambda *_: None)
    other = tmp_path / "other"
    Stage("s", {}, again.work, ("out",), lambda: seen.append(True)).run(other, lambda *_: None, [tmp_path])
    assert seen == [True] * 3


@pytest.mark.parametrize("owner", [b"mine", b"another", b"\xff", None])
def test_checkpoints_go_when_their_training_is_on_record(tmp_path: Path, owner: bytes | None) -> None:
    """Those of another training, which was killed, are what it goes on from."""
    folder = tmp_path / "checkpoints"
    (folder / "checkpoint-5").mkdir(parents=True)
    if owner is not None:
        (folder / "owner").write_bytes(owner)
    drop_checkpoints(folder, "mine")
    assert folder.exists() == (owner != b"mine")
    _drop_stale_checkpoints(folder, "mine")
    assert [path.name for path in folder.iterdir()] == ["owner"]
    (folder / "checkpoint-6").mkdir()
    _drop_stale_checkpoints(folder, "mine")
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-6", "owner"]


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


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A run that has done the stage."""
    folder = tmp_path / "other"
    folder.mkdir()
    run(folder, Counter(folder), [])
    return folder


def test_what_another_run_has_made_of_the_same_is_taken(tmp_path: Path, other: Path) -> None:
    root = tmp_path / "root"
    work, said = Counter(root), []
    stage = Stage("s", {"k": 1}, work, ("out",))
    made = stage.run(root, lambda _, text: said.append(text), [tmp_path / "none", other])
    assert work.times == 0
    assert said == [f"as in {other}: made it"]
    assert (root / "out" / "file").read_text() == "made"
    assert made == stage.run(root, lambda _, text: said.append(text))
    assert said[1] == "unchanged: made it"
    (root / "out" / "file").unlink()
    assert (other / "out" / "file").read_text() == "made"


@pytest.mark.parametrize(
    "how", ["other dependencies", "a changed file", "a missing file", "a torn record", "no outputs"]
)
def test_what_is_not_the_same_is_not_taken(tmp_path: Path, other: Path, how: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    work = Counter(root)
    file, record = other / "out" / "file", other / "stages" / "s.json"
    if how == "a changed file":
        file.write_text("else")
    elif how == "a missing file":
        file.unlink()
    elif how == "a torn record":
        record.write_text(record.read_text()[:-20])
    depends = {"k": 2 if how == "other dependencies" else 1}
    Stage("s", depends, work, () if how == "no outputs" else ("out",)).run(root, lambda *_: None, [other])
    assert work.times == 1


def test_what_changes_while_it_is_taken_is_not_believed(
    tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    work = Counter(root)
    root.mkdir()

    def copy(source: str, target: str) -> None:
        Path(target).write_text("half")

    monkeypatch.setattr(stages, "_link", copy)
    Stage("s", {"k": 1}, work, ("out",)).run(root, lambda *_: None, [other])
    assert work.times == 1
    assert (root / "out" / "file").read_text() == "made"


def test_files_are_copied_where_the_file_system_has_no_links(
    tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(stages.os, "link", refuse)
    root = tmp_path / "root"
    work = Counter(root)
    Stage("s", {"k": 1}, work, ("out",)).run(root, lambda *_: None, [other])
    assert work.times == 0
    assert (root / "out" / "file").stat().st_nlink == 1


def test_the_record_says_how_threads_waited_and_nothing_depends_on_it(
    tmp_path: Path, work: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = {"reason": "other programs keep 0.9 of 2 cores busy", "GOMP_SPINCOUNT": "1000"}
    monkeypatch.setattr(stages, "settled", lambda: choice)
    first = run(tmp_path, work, [])
    monkeypatch.setattr(stages, "settled", dict)
    assert run(tmp_path, work, []) == first
    assert work.times == 1
    assert json.loads((tmp_path / "stages" / "s.json").read_text())["threads"] == choice
