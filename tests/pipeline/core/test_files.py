"""Writes are whole or not there, and a folder is one run's at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_folder, canonical_json, lock, write_bytes


def test_a_failing_block_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")

    def fail() -> None:
        with atomic_folder(target) as folder:
            (folder / "a").write_text("new")
            raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target / "a").read_text() == "old"


def test_a_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for name in ("old", "new"):
        with atomic_folder(target) as folder:
            (folder / name).write_text(name)
    assert [path.name for path in target.iterdir()] == ["new"]


def kill_while(tmp_path: Path, renames: int) -> None:
    """SIGKILL a process that replaces ``target``, at its n-th rename."""
    code = f"""
import os, signal, sys
from pathlib import Path
from pipeline.core.files import atomic_folder
rename, count = os.rename, 0
def dying(a, b):
    global count
    count += 1
    if count == {renames}:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(a, b)
os.rename = dying
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "a").write_text("new")
"""
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "target"], check=False)
    assert result.returncode == -9


@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_between_the_renames_loses_nothing(tmp_path: Path, renames: int) -> None:
    target = tmp_path / "target"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    kill_while(tmp_path, renames)

    def fail() -> None:
        with atomic_folder(target):
            raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        fail()  # the next run, itself failing: the old folder is there again
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_equal_values_give_equal_json() -> None:
    assert canonical_json({"b": 1, "a": "ä"}) == canonical_json({"a": "ä", "b": 1}) == '{"a":"ä","b":1}'.encode()


def test_a_locked_folder_is_refused_until_it_is_free(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(UserError, match="in use by another run"):
        lock(tmp_path)
    lock(tmp_path).close()
