"""Hashes and atomic writes: a reader sees a whole file or none, whatever killed the writer.

What a killed writer leaves behind is hidden, ``.<name>.<8 letters>.tmp`` or ``.old``. A writer at work holds its own
locked, so that :func:`clear_left` can tell the two apart. A target that is there already must be a regular file or a
folder: a device is not replaced, and a link neither followed nor replaced, as either would surprise somebody.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from pipeline.core.errors import UserError

OF_THE_PLACE = {
    getattr(errno, name)
    for name in (
        *("EACCES", "EBUSY", "EEXIST", "EINVAL", "EISDIR", "ELOOP", "ENAMETOOLONG", "ENOENT", "ENOTDIR", "ENXIO"),
        *("ENODEV", "EOPNOTSUPP", "EPERM", "EROFS", "ETXTBSY", "EXDEV"),
    )
}
"""Errors that another place would not have. A full disk or a failing one is none of them."""

_FULL = re.compile(
    "No space left on device|Disk quota exceeded"  # the kernel's, also in a child's words and in safetensors'
    r"|PytorchStreamWriter failed|unexpected pos \d+"  # torch.save, and what closing its file makes of it
    r"|\d+ requested and \d+ written"  # numpy's tofile
)

_LEFT = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.(tmp|old)", re.DOTALL)  # see _beside_name; tempfile's were alike

_KINDS = {
    stat.S_IFLNK: "a link, which is neither followed nor replaced",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


class FolderInUse(UserError):
    """Another process has the folder."""


def shown(text: object) -> str:
    """``text`` on one line: line breaks, control characters and bytes that are not UTF-8 as escapes."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c
        for c in str(text)
    )


def says_full(text: str) -> bool:
    """Whether the words of an error mean a full disk; each library that writes has its own."""
    return bool(_FULL.search(text))


def sha256_bytes(data: bytes) -> str:
    """Lower-case hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read. Raises OSError for any other: a FIFO is waited for, a device may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def read_regular(path: Path) -> bytes:
    """The content of a regular file. Raises as :func:`open_regular`."""
    with open_regular(path) as file:
        return file.read()


def sha256_file(path: Path) -> str:
    """Lower-case hex SHA-256 of a file's content, read in blocks. Raises as :func:`open_regular`."""
    found = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):  # hashlib.file_digest is 3.11's; pipeline/export/verify.py runs on 3.9
            found.update(block)
    return found.hexdigest()


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


@contextmanager
def _place(path: Path) -> Iterator[None]:
    """Turn an OSError that is the place's into a UserError that names it."""
    try:
        yield
    except OSError as error:
        if error.errno not in OF_THE_PLACE:
            raise
        split = error.errno in (errno.EEXIST, errno.ENOTDIR)
        reason = "a part of its path is not a folder" if split else error.strerror
        raise UserError(f"{shown(path)} cannot be written ({reason}): choose another place") from None


def _check_target(path: Path, kind: int, wanted: str) -> None:
    """Raise UserError unless ``path`` is free or of the ``kind`` (``stat.S_IFREG`` or ``stat.S_IFDIR``)."""
    try:
        found = stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if found != kind:
        what = _KINDS.get(found, "something else")
        raise UserError(f"{shown(path)} is {what}, and {wanted} is to be written there: give another path")


def _mark(handle: int) -> None:
    """Lock what is being written, as being in use. A file system without locks has only the run's own lock."""
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_SH)  # a shared one, since NFS locks what is open for reading in no other way


def _make_folder(folder: Path) -> None:
    """Make a folder and those around it; ``Path.mkdir`` calls itself for each, and a path may have 2,000 parts."""
    for part in (*reversed(folder.parents), folder):
        try:
            if not os.path.isdir(part):
                os.mkdir(part)
        except FileExistsError:
            if not os.path.isdir(part):  # or another process was faster
                raise


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: temporary file in the same folder, fsync, rename.

    Raises UserError where the place is at fault: something else than a file is there, no permission, a name too long.
    """
    with _place(path):
        _check_target(path, stat.S_IFREG, "a file")
        _make_folder(path.parent)
        name = _beside_name(path, ".tmp")
        try:
            with open(name, "xb") as file:
                _mark(file.fileno())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(name, 0o644)  # whatever the umask: other users of a shared folder read it
                os.replace(name, path)
            _fsync_folder(path.parent)
        except BaseException:
            name.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically, keys in the order given, one newline at the end."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def lock(folder: Path) -> IO[str]:
    """Keep other processes out of ``folder`` for as long as the returned file is open (a killed process closes it).

    Raises FolderInUse where another process has it, UserError where it cannot be made or written.
    """
    path = folder / ".lock"
    with _place(folder):
        _make_folder(folder)
        _check_target(path, stat.S_IFREG, "a lock")
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115  (the open file is the lock)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise FolderInUse(f"{folder} is in use by another run: wait for it to end, or choose another --runs") from None
    except OSError as error:
        file.close()
        raise UserError(f"{folder} cannot be locked ({error.strerror}): choose a --runs on another disk") from None
    return file


def clear_left(folder: Path) -> None:
    """Clear what killed writers left in ``folder`` and below, and put back what they had moved away.

    What is in use by others stays. Whatever cannot be removed stays too.
    """
    for parent, folders, files in os.walk(folder):
        _clear(Path(parent), [*folders, *files])
        folders[:] = [name for name in folders if not _LEFT.fullmatch(name)]


def _clear(parent: Path, names: list[str], of: str = "") -> None:
    """Clear what is left of writing ``of``, or of anything, in one folder."""
    for name in names:
        match = _LEFT.fullmatch(name)
        if match and of in ("", match[1]):
            with suppress(OSError):
                _clear_one(parent / name, parent / match[1])


def _clear_one(left: Path, target: Path) -> None:
    handle = os.open(left, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # its writer is at work
        except OSError:
            pass  # a file system without locks
        if not left.is_dir():
            left.unlink()
            return
        if left.suffix == ".old" and not target.exists() and (left / "old").exists():
            os.rename(left / "old", target)  # killed between the two renames of atomic_folder
        shutil.rmtree(left, ignore_errors=True)
    finally:
        os.close(handle)


@contextmanager
def _beside(path: Path, suffix: str) -> Iterator[Path]:
    """An empty folder beside ``path``, marked as in use while the block runs."""
    folder, handle = _beside_name(path, suffix), -1
    try:
        os.mkdir(folder, 0o700)
        handle = os.open(folder, os.O_RDONLY)
        _mark(handle)
        os.chmod(folder, 0o755)
        yield folder
    finally:
        if handle >= 0:
            os.close(handle)
        with suppress(OSError):  # an interrupt before anything is in it
            os.rmdir(folder)


def _beside_name(path: Path, suffix: str) -> Path:
    """A free name beside ``path``. It is known before anything has it, so that an interrupt right after leaves nothing:
    tempfile's functions would be interrupted between making and telling."""
    return path.parent / f".{path.name}.{secrets.token_hex(4)}{suffix}"


def _remove_tree(folder: Path) -> None:
    """Remove a folder with all in it. An interrupt waits for that, as half of it helps nobody."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it, if it is there; a kill leaves the whole of it or nothing in its place.

    Raises UserError where the place forbids it.
    """
    if not os.path.lexists(path):
        return
    with _place(path), _beside(path, ".tmp") as scratch:
        try:
            os.rename(path, scratch / "old")
        finally:
            _remove_tree(scratch)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty scratch folder beside ``path`` that takes its place when the block ends without an error.

    An existing ``path`` is replaced. A block that raises leaves ``path`` as it was; what a killed block left behind is
    cleared away by the next one, so two processes must not write the same folder (:func:`lock`).

    Raises UserError where the place is at fault: something else than a folder is there, no permission, a name too long.
    """
    with ExitStack() as stack:
        with _place(path):
            _check_target(path, stat.S_IFDIR, "a folder")
            _make_folder(path.parent)
            _clear(path.parent, os.listdir(path.parent), of=path.name)
            scratch = stack.enter_context(_beside(path, ".tmp"))
        stack.callback(_remove_tree, scratch)
        yield scratch
        for file in scratch.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        with _place(path):
            _take_place(scratch, path)


def _take_place(scratch: Path, path: Path) -> None:
    """Put ``scratch`` where ``path`` is, in two renames; killed between them, ``path`` waits in its ``.old``."""
    if path.exists():
        with _beside(path, ".old") as old:
            try:
                os.rename(path, old / "old")
                os.rename(scratch, path)
            finally:
                if not os.path.lexists(path):  # interrupted between the two
                    os.rename(old / "old", path)
                _remove_tree(old)
    else:
        os.rename(scratch, path)
    _fsync_folder(path.parent)
