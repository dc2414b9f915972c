"""Hashes and atomic writes: a reader sees a whole file or none, whatever killed the writer."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.core.errors import UserError


def sha256_bytes(data: bytes) -> str:
    """Lower-case hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Lower-case hex SHA-256 of a file's content, read in blocks."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):  # hashlib.file_digest is 3.11's; pipeline/export/verify.py runs on 3.9
            found.update(block)
    return found.hexdigest()


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: temporary file in the same folder, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes 0600, which other users of a shared folder could not read
        os.replace(name, path)
        _fsync_folder(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically, keys in the order given, one newline at the end."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def lock(folder: Path) -> IO[str]:
    """Keep other processes out of ``folder`` for as long as the returned file is open (a killed process closes it).

    Raises UserError where another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / ".lock", "w", encoding="utf-8")  # noqa: SIM115  (the open file is the lock)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(f"{folder} is in use by another run: wait for it to end, or choose another --runs") from None
    return file


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty scratch folder beside ``path`` that takes its place when the block ends without an error.

    An existing ``path`` is replaced. A block that raises leaves ``path`` as it was; what a killed block left behind is
    cleared away by the next one, so two processes must not write the same folder (:func:`lock`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f".{path.name}.*.old"):
        if not path.exists() and (old / "old").exists():  # killed between the two renames below
            os.rename(old / "old", path)
        shutil.rmtree(old)
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(left)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    os.chmod(scratch, 0o755)
    try:
        yield scratch
        for file in scratch.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
            os.rename(path, old / "old")
            os.rename(scratch, path)
            shutil.rmtree(old)
        else:
            os.rename(scratch, path)
        _fsync_folder(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
