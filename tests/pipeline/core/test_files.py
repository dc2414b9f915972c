"""Writes are whole or not there, and a folder is one run's at a time."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from places import small_disk, unprivileged

from pipeline.core.commandline import disk_full
from pipeline.core.errors import CheckFailed, UserError
from pipeline.core.files import (
    FolderInUse,
    atomic_folder,
    canonical_json,
    clear_left,
    lock,
    read_regular,
    remove,
    sha256_file,
    shown,
    write_bytes,
)


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
    with lock(tmp_path), pytest.raises(FolderInUse, match="in use by another run"):
        lock(tmp_path)
    lock(tmp_path).close()


def make_folder(path: Path) -> None:
    with atomic_folder(path) as scratch:
        (scratch / "a").write_text("new")


def make_file(path: Path) -> None:
    write_bytes(path, b"new")


def device(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    os.mknod(path, 0o20666, os.makedev(1, 3))


def bind(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


OTHERS: dict[str, Callable[[Path], None]] = {
    "a device": device,
    "a FIFO": os.mkfifo,
    "a socket": bind,
    "a link": lambda path: path.symlink_to(path.parent / "elsewhere"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("write", [make_file, make_folder])
def test_what_is_neither_file_nor_folder_is_not_replaced(
    tmp_path: Path, kind: str, write: Callable[[Path], None]
) -> None:
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "target"
    (elsewhere.mkdir if write is make_folder else elsewhere.touch)()
    OTHERS[kind](target)
    before = os.lstat(target)
    with pytest.raises(UserError, match=f"target is {kind.removesuffix(' to nothing')}.*: give another path") as error:
        write(target)
    assert "\n" not in str(error.value)
    assert os.lstat(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "target"]


def test_a_file_does_not_replace_a_folder_nor_a_folder_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="folder is a folder, and a file is to be written there"):
        make_file(tmp_path / "folder")
    with pytest.raises(UserError, match="file is a file, and a folder is to be written there"):
        make_folder(tmp_path / "file")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("x" * 300, "File name too long"),
        (("x" * 200 + "/") * 30, "File name too long"),
        ("file/below", "a part of its path is not a folder"),
        ("file/far/below", "a part of its path is not a folder"),
        ("/proc/nothing/here", "No such file or directory"),
    ],
)
@pytest.mark.parametrize("write", [make_file, make_folder, lock])
def test_a_place_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, place: str, reason: str, write: Callable[[Path], object]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        write(tmp_path / place)
    assert str(error.value) == f"{tmp_path / place} cannot be written ({reason}): choose another place"


@pytest.mark.parametrize("write", [make_file, make_folder])
def test_a_path_of_nearly_4000_letters_is_written(tmp_path: Path, write: Callable[[Path], None]) -> None:
    target = tmp_path.joinpath(*["x" * 9] * 380, "target")
    write(target)
    assert target.exists()


@pytest.mark.parametrize("write", [make_file, make_folder, lock])
def test_a_place_without_permission_is_one_sentence(write: Callable[[Path], object]) -> None:
    with unprivileged() as folder:
        folder.chmod(0o555)
        with pytest.raises(UserError, match=r"cannot be written \(Permission denied\): choose another place"):
            write(folder / "new")
        folder.chmod(0o755)


@pytest.mark.parametrize("write", [make_file, make_folder])
def test_a_full_disk_is_not_the_places_fault(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with small_disk(tmp_path / "disk", "16k") as disk:
        with pytest.raises(OSError, match="No space left") as error:  # noqa: PT012  (until it is full)
            for number in range(10):
                write(disk / str(number))
        assert error.value.errno == errno.ENOSPC
        assert not [path for path in disk.iterdir() if path.name.startswith(".")]


def save_torch(path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed here: `make test` has it")
    torch.save({"weight": torch.zeros(1 << 20)}, path)


def save_safetensors(path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed here: `make test` has it")
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1 << 20)}, path)


def save_numpy(path: Path) -> None:
    import numpy as np

    with open(path, "wb") as file:
        np.zeros(1 << 20).tofile(file)


def save_in_a_child(path: Path) -> None:
    code = f"open({str(path)!r}, 'wb').write(bytes(1 << 20))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    raise CheckFailed(done.stderr)


@pytest.mark.parametrize("save", [save_torch, save_safetensors, save_numpy, save_in_a_child])
def test_a_full_disk_is_known_in_every_librarys_words(tmp_path: Path, save: Callable[[Path], None]) -> None:
    with small_disk(tmp_path / "disk", "100k") as disk:
        with pytest.raises(Exception) as error:  # noqa: PT011  (each library has its own)
            save(disk / "file")
        assert disk_full(error.value)
        with pytest.raises(KeyError) as outer:
            raise KeyError("another, on the way") from error.value
        assert disk_full(outer.value)
    assert not disk_full(OSError(errno.EIO, "Input/output error"))
    assert not disk_full(RuntimeError("expected scalar type Float but found Half"))


@pytest.mark.parametrize("name", ["two\nlines", "a 'quoted' \"name\"", "[1]*?", "\udcff", "a" * 200])
@pytest.mark.parametrize("write", [make_file, make_folder])
def test_odd_names_are_names(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    write(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


def test_what_is_shown_is_one_line() -> None:
    assert shown("a\nb\x1b[1m\udcff ö 水 \u2028") == r"a\nb\x1b[1m\udcff ö 水 \u2028"


@pytest.mark.parametrize("read", [read_regular, sha256_file])
def test_only_regular_files_are_read(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for path in (tmp_path / "fifo", tmp_path / "link", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="it is not a regular file"):
            read(path)


CHANGES = ("rename", "replace", "mkdir", "rmdir", "unlink", "chmod")
"""What files.py, shutil and tempfile change folders with."""


def killed_at(count: int, code: str, *given: Path) -> bool:
    """Run ``code`` and SIGKILL it before its n-th call that changes a folder; whether it came so far."""
    trap = f"""
import os, signal, sys
from pathlib import Path
from pipeline.core.files import *
left = {count}
def trapped(call):
    def run(*a, **k):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*a, **k)
    return run
for name in {CHANGES}:
    setattr(os, name, trapped(getattr(os, name)))
place = Path(sys.argv[1])
"""
    result = subprocess.run([sys.executable, "-c", trap + code, *given], check=False)
    assert result.returncode in (0, -9)
    return result.returncode == -9


def test_a_folder_is_removed_at_once_whatever_kills_it(tmp_path: Path) -> None:
    for count in range(1, 20):
        root = tmp_path / str(count)
        for name in ("a", "b/c"):
            (root / "target" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "target" / name).write_text(name)
        killed = killed_at(count, "remove(place)", root / "target")
        if (root / "target").exists():
            assert sorted(path.name for path in (root / "target").rglob("*")) == ["a", "b", "c"]
        remove(root / "target")
        clear_left(root)
        assert list(root.iterdir()) == []
        if not killed:
            assert count > 5
            return
    raise AssertionError("it never came to an end")


@pytest.mark.parametrize(
    "code", ["write_bytes(place, b'new')", "with atomic_folder(place) as made: (made / 'a').touch()"]
)
def test_what_a_kill_leaves_is_cleared(tmp_path: Path, code: str) -> None:
    for count in range(1, 20):
        root = tmp_path / str(count)
        target = root / "deep" / "target"
        target.parent.mkdir(parents=True)
        if "atomic" in code:
            target.mkdir()
            (target / "old").touch()
        killed = killed_at(count, code, target)
        clear_left(root)
        assert [path.name for path in target.parent.iterdir()] in (
            [["target"], []] if "bytes" in code else [["target"]]
        )
        if not killed:
            return
    raise AssertionError("it never came to an end")


def test_what_others_are_writing_is_not_cleared(tmp_path: Path) -> None:
    mine = tmp_path / ".notes.tmp"
    mine.touch()
    with atomic_folder(tmp_path / "target") as folder:
        (folder / "a").touch()
        clear_left(tmp_path)
    assert (tmp_path / "target" / "a").exists()
    assert mine.exists()


def written(folder: Path) -> None:
    write_bytes(folder / "file", b"new")


def replaced(folder: Path) -> None:
    with atomic_folder(folder / "folder") as scratch:
        (scratch / "sub").mkdir()
        (scratch / "sub" / "a").write_text("new")


def removed(folder: Path) -> None:
    remove(folder / "folder")


@pytest.mark.parametrize("work", [written, replaced, removed])
def test_an_interrupt_right_after_any_call_leaves_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], None]
) -> None:
    """As a signal's handler does it: when a call that changed something has returned, before its result is known."""
    names = ("mkdir", "open", "chmod", "replace", "rename", "rmdir", "unlink", "fsync", "scandir")
    real = {name: getattr(os, name) for name in names}
    tried = 0
    for at in range(1, 200):
        folder = tmp_path / f"{work.__name__}-{at}"
        (folder / "folder" / "sub").mkdir(parents=True)
        (folder / "folder" / "sub" / "a").write_text("old")
        (folder / "file").write_text("old")
        calls = 0

        def interrupting(name: str, at: int = at) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                nonlocal calls
                result = real[name](*arguments, **options)
                calls += 1
                if calls == at:
                    raise KeyboardInterrupt
                return result

            return call

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(os, name, interrupting(name))
            try:
                work(folder)
                ended = calls < at
            except KeyboardInterrupt:
                ended = False
        left = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
        assert left == [], (at, left)
        assert (folder / "file").read_text() in ("old", "new")
        found = folder / "folder" / "sub" / "a"
        if work is removed and not (folder / "folder").exists():
            pass  # gone, and all of it
        else:
            assert found.read_text() == "old" or (work is replaced and found.read_text() == "new")
        if ended:
            tried = at - 1
            break
    assert tried >= 5
