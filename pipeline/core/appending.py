"""Appending to a file of lines (:mod:`pipeline.core.jsonl`), and going on with one that a killed run left.

While a file grows it has no closing line. ``.<name>.written`` beside it then holds the lengths and the digests of what
was written, and rows that do not agree with it are not kept: something else changed them.
"""

import hashlib
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self

from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.core.jsonl import (
    EndLine,
    Head,
    Item,
    Reading,
    State,
    first_line,
    line_of,
    opened,
    parse_line,
    same_run,
)

SYNC_SECONDS = 5.0
"""Longest stretch of finished work, in seconds, that a power cut can take back."""


class LinesWriter(Generic[Head, Item]):
    """Appends rows to a file; going on from an earlier run is the same call.

    A file of the same run keeps its rows (:attr:`keys` says which images need not run again); one of another run starts
    anew. So does one whose content is not what was written there, or that has a row which ``check`` finds wrong:
    :attr:`changed` then says why. Rows are not kept in memory. Use as a context manager: where the block ends and every
    image has its row, the closing line is written.

    ``wanted``: keys of the images that are to have a row; rows of others stay. ``check``: what is wrong with a row in a
    few words, or None.

    Raises UserError where the path holds something that is not such a file, which is left alone.
    """

    def __init__(
        self,
        path: Path,
        header: Head,
        row: type[Item],
        wanted: Collection[str] | None = None,
        check: Callable[[Item], str | None] | None = None,
    ) -> None:
        self.keys: set[str] = set()
        """Of the rows in the file."""
        self.changed = ""
        """Why rows that stood there are written again, in a few words; empty where none are."""
        self._path, self._row = path, row
        self._written = _Written(path)
        kept = self._resume(header, check)
        if wanted is not None:
            header = header.model_copy(update={"images": len(self.keys | set(wanted))})
        self._images, first = header.images, line_of(header)
        self._closed = kept.closed if kept else False
        self._length, self._digest = len(first), hashlib.sha256(first)
        if kept is None:
            # The header arrives whole or not at all, so only a row can ever be torn.
            write_bytes(path, first)
            self._written.note(self._state, self._state)
        elif kept.header == header:
            self._length, self._digest = kept.length, kept.digest
            if not kept.closed:
                self._written.note(self._state, self._state)
                os.truncate(path, kept.length)
        else:  # as many images as before, or more: the rows move behind another header
            rows = path.read_bytes()[kept.first : kept.length]
            self._length += len(rows)
            self._digest.update(rows)
            self._closed = False
            self._written.note((kept.length, kept.digest.hexdigest()), self._state)
            write_bytes(path, first + rows)
        self._file = open(path, "ab")  # noqa: SIM115  (closed by close)
        self._synced = time.monotonic()

    @property
    def _state(self) -> tuple[int, str]:
        return self._length, self._digest.hexdigest()

    def _resume(self, header: Head, check: Callable[[Item], str | None] | None) -> "_Kept[Head] | None":
        """What to go on from; None to start anew."""
        path = self._path
        if not path.exists() or (path.is_file() and path.stat().st_size == 0):
            return None
        if not path.is_file():
            raise UserError(f"{path} is not a regular file: give another path")
        known, whole = self._written.read(), True
        with opened(path, type(header)) as file:
            first, _ = first_line(path, file, type(header))
            try:
                found = parse_line(type(header), first, path, 1)
            except UserError:
                return None  # another version's
            if not same_run(found, header):
                return None
            reading = Reading(path, file, self._row, first)
            kept, keys, count, wrong = None, list[str](), 0, None

            def stand(closed: bool) -> _Kept[Head]:
                return _Kept(found, len(first), reading.length, reading.digest.copy(), closed)

            if reading.is_at(known):
                kept = stand(closed=False)
            try:
                for row in reading:
                    keys.append(row.key)
                    wrong = wrong or (check(row) if check else None)
                    if reading.is_at(known):
                        kept, count = stand(closed=False), len(keys)
            except UserError:
                whole = False
            if whole and reading.end and reading.end.rows == found.images:
                kept, count = stand(closed=True), len(keys)
        if wrong:
            self.changed = wrong
            return None
        if count < len(keys) - 1 or not whole or (keys and kept is None):  # a kill leaves one row that is not noted yet
            self.changed = "it was changed after it was written"
        self.keys = set(keys[:count])
        return kept

    def append(self, row: Item) -> None:
        """Write one row; it survives a killed process at once and a power cut after :data:`SYNC_SECONDS`.

        Raises ValueError where the key has a row already.
        """
        if row.key in self.keys:
            raise ValueError(f"image {row.image_id} ({row.key}) has a row already")
        if self._closed:
            self._written.note(self._state, self._state)
            os.truncate(self._path, self._length)
            self._closed = False
        line, before = line_of(row), self._state
        self._length += len(line)
        self._digest.update(line)
        self._written.note(before, self._state)  # first, so that a kill between the two leaves one of the two states
        self._file.write(line)
        self._file.flush()
        self.keys.add(row.key)
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._written.sync(self._state)
            self._synced = time.monotonic()

    def close(self, finish: bool = True) -> None:
        """Bring everything to the disk, and, with ``finish``, write the closing line where every image has its row."""
        if self._file.closed:
            return
        if finish and not self._closed and len(self.keys) == self._images:
            self._file.write(line_of(EndLine(rows=self._images, sha256=self._digest.hexdigest())))
            self._closed = True
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._written.close(remove=self._closed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(finish=kind is None)


@dataclass(frozen=True)
class _Kept(Generic[Head]):
    """The part of a file that is kept."""

    header: Head
    first: int
    """Bytes of the header's line."""
    length: int
    digest: Any
    closed: bool
    """Whether the closing line stands behind it."""


class _Written:
    """What a file that still grows was written with, in ``.<name>.written`` beside it: its states before and after the
    last row, one of which is on the disk whenever the process is killed, and the one that a power cut leaves."""

    def __init__(self, path: Path) -> None:
        self.path = written_beside(path)
        self._synced: State | None = None
        self._handle: int | None = None

    def read(self) -> set[State]:
        """The states; none where there is no such file, or it is damaged."""
        try:
            lines = self.path.read_text(encoding="ascii").splitlines()
            return {(int(length), digest) for length, digest in (line.split() for line in lines)}
        except (OSError, ValueError):
            return set()

    def note(self, before: State, after: State) -> None:
        """Write down what is about to change."""
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        states = (self._synced or before, before, after)
        text = "".join(f"{length:020d} {digest}\n" for length, digest in states)  # always as long: in place, in one go
        os.pwrite(self._handle, text.encode("ascii"), 0)

    def sync(self, state: State) -> None:
        """``state`` is on the disk for good."""
        self._synced = state
        self.note(state, state)
        assert self._handle is not None
        os.fsync(self._handle)

    def close(self, remove: bool) -> None:
        """``remove``: the file it is about is whole, and vouches for itself."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        if remove:
            self.path.unlink(missing_ok=True)


def written_beside(path: Path) -> Path:
    """Where the state of a growing file is kept."""
    return path.with_name(f".{path.name}.written")
