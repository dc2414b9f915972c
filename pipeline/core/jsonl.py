"""Files of one header line and one line an image, JSON each: only ever appended to, so a killed run goes on.

Lines are found by the content hash of the image, never by position. Invariants of what is read: the header is of the
version that its class has, and no key stands twice.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar, get_args

from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.core.settings import Frozen

SYNC_SECONDS = 5.0
"""Longest stretch of finished work, in seconds, that a power cut can take back."""

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256, lower-case hex."""


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


Number = Annotated[float | None, AfterValidator(_finite)]
"""A float; null where the model gave NaN or an infinity, which JSON cannot hold."""


class Line(Frozen):
    """One line. Built from Python values leniently, read from JSON strictly."""

    model_config = ConfigDict(strict=False)


class HeaderLine(Line):
    """A file's first line. Two files with equal headers hold lines of the same run."""

    WHAT: ClassVar[str]
    """What such a file is, for messages."""
    MARK: ClassVar[str]
    """A key that tells this header from those of other files."""

    schema_version: int


class Keyed(Line):
    """A line about one image."""

    key: Hex
    """The image's content: SHA-256 of the decoded canvas, RGB bytes row by row."""
    image_id: str
    """For people; nothing is matched by it."""


AnyLine = TypeVar("AnyLine", bound=Line)
Head = TypeVar("Head", bound=HeaderLine)
Item = TypeVar("Item", bound=Keyed)


class LinesWriter(Generic[Head, Item]):
    """Appends rows to a file of one header line and one line an image; going on from an earlier run is the same call.

    A file with an equal header keeps its rows (:attr:`keys` says which images need not run again); one with another
    header, or with a line that cannot be read, starts anew. Rows are not kept in memory. Use as a context manager.

    Raises UserError where the path holds something that is not such a file, which is left alone.
    """

    def __init__(self, path: Path, header: Head, row: type[Item]) -> None:
        self._row = row
        self.keys: set[str] = set()
        """Of the rows in the file."""
        length = self._resume(path, header)
        if length is None:
            # The header arrives whole or not at all, so only a row can ever be torn.
            write_bytes(path, line_of(header))
        else:
            os.truncate(path, length)
        self._file = open(path, "ab")  # noqa: SIM115  (closed by close)
        self._synced = time.monotonic()

    def _resume(self, path: Path, header: Head) -> int | None:
        """Bytes of the file to keep; None to start anew."""
        if not path.exists() or path.stat().st_size == 0:
            return None
        first, _ = _first_line(path, type(header))
        try:
            found, lines = _open_lines(path, type(header))
            if found != header:
                return None
            length, keys = len(first), set()
            for row, size in _rows(path, lines, self._row):
                length += size
                keys.add(row.key)
        except UserError:
            return None
        self.keys = keys
        return length

    def append(self, row: Item) -> None:
        """Write one row; it survives a killed process at once and a power cut after :data:`SYNC_SECONDS`.

        Raises ValueError where the key has a row already.
        """
        if row.key in self.keys:
            raise ValueError(f"image {row.image_id} ({row.key}) has a row already")
        self._file.write(line_of(row))
        self._file.flush()
        self.keys.add(row.key)
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Bring everything to the disk."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def line_of(value: Line) -> bytes:
    """The line that stands in a file, with its line break."""
    return value.model_dump_json().encode() + b"\n"


def _first_line(path: Path, head: type[HeaderLine]) -> tuple[bytes, object]:
    """(the line, its schema version) of a file that claims to hold what ``head`` heads, or UserError."""
    try:
        with open(path, "rb") as file:
            line = file.readline(1 << 20)
    except OSError as error:
        raise UserError(f"{head.WHAT} file {path} cannot be read: {error.strerror}; run that side first") from None
    try:
        data: Any = json.loads(line)
    except ValueError:
        data = None
    if not isinstance(data, dict) or not {"schema_version", head.MARK} <= data.keys() or not line.endswith(b"\n"):
        raise UserError(f"{path} is not a {head.WHAT} file (its first line is not a header): give another path")
    return line, data["schema_version"]


def read_lines(path: Path, head: type[Head], item: type[Item]) -> tuple[Head, dict[str, Item]]:
    """(header, key -> row in the order of the file). A last line without its line break (the run was killed in it) is
    dropped.

    Raises UserError: missing or unreadable file, not such a file, another schema version, a line that is not one (with
    its number), a key that stands twice.
    """
    header, lines = _open_lines(path, head)
    return header, {row.key: row for row, _ in _rows(path, lines, item)}


def _open_lines(path: Path, head: type[Head]) -> tuple[Head, Iterator[bytes]]:
    """(header, the lines behind it that are whole)."""
    first, version = _first_line(path, head)
    (known,) = get_args(head.model_fields["schema_version"].annotation)
    if version != known:
        raise UserError(
            f"{path} was written with schema version {version}, and this program reads version {known}: run that side"
            " again"
        )

    def lines() -> Iterator[bytes]:
        with open(path, "rb") as file:
            file.readline()
            for line in file:
                if line.endswith(b"\n"):
                    yield line

    return _parse(head, first, path, 1), lines()


def _rows(path: Path, lines: Iterable[bytes], item: type[Item]) -> Iterator[tuple[Item, int]]:
    """(row, bytes of its line) one by one, each key once."""
    seen: set[str] = set()
    for number, line in enumerate(lines, start=2):
        row = _parse(item, line[:-1], path, number)
        if row.key in seen:
            raise UserError(
                f"{path} line {number}: image {row.image_id} has a row already (key {row.key}): run that side again"
            )
        seen.add(row.key)
        yield row, len(line)


def _parse(model: type[AnyLine], line: bytes, path: Path, number: int) -> AnyLine:
    try:
        return model.model_validate_json(line, strict=True)
    except ValidationError as error:
        item = error.errors()[0]
        where = ".".join(str(part) for part in item["loc"])
        reason = f"{where}: {item['msg']}" if where else item["msg"]
        raise UserError(f"{path} line {number} is not a {model.__name__.lower()}: {reason}") from None
