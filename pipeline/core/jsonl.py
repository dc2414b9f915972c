"""Files of one header line, one line an image and a closing line, JSON each: only ever appended to, so a killed run
goes on.

    {"schema_version": 3, "images": 300, ...}        the header: what the lines are of, and how many the whole file has
    {"key": ..., ...}                                one line an image
    {"kind": "end", "rows": 300, "sha256": ...}      the closing line: SHA-256 of every byte before it

Lines are found by the content hash of the image, never by position. Invariants of what is read: the header is of the
version that its class has, no key stands twice, and the closing line vouches for all lines before it, so that a file
that is cut short, or was changed after it was written, is never taken for a whole one.

This module reads them, with nothing but the standard library and pydantic; :mod:`pipeline.core.appending` writes them.
"""

import hashlib
import json
import math
import os
import select
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, Generic, Literal, TypeVar, get_args

from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from pipeline.core.errors import UserError
from pipeline.core.settings import Frozen
from pipeline.core.wording import fault

MAX_LINE = 1 << 24
"""Bytes of the longest line that is read; the header of a prompt of 100,000 tokens has less than 1 MB."""

PIPE_SECONDS = 30.0
"""How long a pipe may stay empty at its start."""

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
    """A file's first line. Two files whose headers differ in ``images`` at most hold lines of the same run."""

    WHAT: ClassVar[str]
    """What such a file is, for messages."""
    MARK: ClassVar[str]
    """A key that tells this header from those of other files."""

    schema_version: int
    images: int = Field(0, ge=0)
    """How many images have a line once the file is whole."""


class Keyed(Line):
    """A line about one image."""

    key: Hex
    """The image's content: SHA-256 of the decoded canvas, RGB bytes row by row."""
    image_id: str
    """For people; nothing is matched by it."""


class EndLine(Line):
    """A whole file's last line."""

    kind: Literal["end"] = "end"
    rows: int = Field(ge=0)
    """Lines between the header and this one."""
    sha256: Hex
    """Of every byte before this line."""


State = tuple[int, str]
"""How far a file goes: (bytes, their SHA-256)."""

AnyLine = TypeVar("AnyLine", bound=Line)
Head = TypeVar("Head", bound=HeaderLine)
Item = TypeVar("Item", bound=Keyed)


@dataclass(frozen=True)
class Lines(Generic[Head, Item]):
    """A file's content."""

    header: Head
    rows: dict[str, Item]
    """Key -> row, in the order of the file."""
    sha256: str | None
    """What the closing line states; None where the file has none, being unfinished."""


def line_of(value: Line) -> bytes:
    """The line that stands in a file, with its line break."""
    return value.model_dump_json().encode() + b"\n"


def whole_file(header: HeaderLine, lines: Collection[bytes]) -> bytes:
    """A file of these lines, closing line included; ``header.images`` is set to their number."""
    content = line_of(header.model_copy(update={"images": len(lines)})) + b"".join(lines)
    return content + line_of(EndLine(rows=len(lines), sha256=hashlib.sha256(content).hexdigest()))


def same_run(a: HeaderLine, b: HeaderLine) -> bool:
    """Whether two headers are of one run, however many of its images each is for."""
    return a.model_copy(update={"images": b.images}) == b


def read_lines(path: Path, head: type[Head], item: type[Item], unfinished: bool = False) -> Lines[Head, Item]:
    """Read a file in one pass, so that a pipe will do.

    ``unfinished``: one without a closing line is read as far as it goes, too, a torn last line dropped.

    Raises UserError: missing or unreadable file, not such a file, another schema version, a line that is not one (with
    its number), a key that stands twice, no closing line, or one that was written behind other lines.
    """
    with opened(path, head) as file:
        first, version = first_line(path, file, head)
        if version != _version(head):
            raise UserError(
                f"{path} was written with schema version {str(version)[:20]}, and this program reads version"
                f" {_version(head)}: run that side again"
            )
        header = parse_line(head, first, path, 1)
        reading = Reading(path, file, item, first)
        rows = {row.key: row for row in reading}
    end = reading.end
    if end is None and not unfinished:
        raise UserError(
            f"{path} is not finished: it has {len(rows)} of {header.images} images and no closing line, as a run that"
            " was stopped leaves it; run that side again to go on with it"
        )
    if end is not None and end.rows != header.images:
        raise UserError(
            f"{path} has {end.rows} images, and its header says {header.images}: it was changed after it was written,"
            " run that side again"
        )
    return Lines(header, rows, end.sha256 if end else None)


class Reading(Generic[Item]):
    """The rows behind a header, one by one; raises UserError as :func:`read_lines` does."""

    def __init__(self, path: Path, file: IO[bytes], item: type[Item], first: bytes) -> None:
        self._path, self._file, self._item = path, file, item
        self.length = len(first)
        """Bytes of the header and of the rows given so far."""
        self.digest: Any = hashlib.sha256(first)
        """Of these bytes."""
        self.end: EndLine | None = None

    def is_at(self, states: Collection[State]) -> bool:
        """Whether what was read so far is one of ``states``."""
        lengths = {length for length, _ in states}
        return self.length in lengths and (self.length, self.digest.hexdigest()) in states

    def __iter__(self) -> Iterator[Item]:
        path, seen, number = self._path, set[str](), 1
        while line := self._file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise UserError(f"{path} line {number} is longer than {MAX_LINE >> 20} MiB: run that side again")
            if self.end:
                raise UserError(f"{path} line {number} stands behind the closing line: run that side again")
            if not line.endswith(b"\n"):
                return  # the run was killed in it
            if len(line) < 256 and b'"rows"' in line:  # a row has two digests and is longer
                self.end = self._closing(parse_line(EndLine, line[:-1], path, number), len(seen))
                continue
            row = parse_line(self._item, line[:-1], path, number)
            if row.key in seen:
                raise UserError(
                    f"{path} line {number}: image {row.image_id} has a row already (key {row.key}): run that side again"
                )
            seen.add(row.key)
            self.length += len(line)
            self.digest.update(line)
            yield row

    def _closing(self, end: EndLine, rows: int) -> EndLine:
        if end.rows != rows or end.sha256 != self.digest.hexdigest():
            found = f"{rows} rows" if end.rows != rows else "other content"
            raise UserError(
                f"{self._path} was changed after it was written: its closing line is of {end.rows} rows with digest"
                f" {end.sha256[:12]}, and it has {found}; run that side again"
            )
        return end


@contextmanager
def opened(path: Path, head: type[HeaderLine]) -> Iterator[IO[bytes]]:
    """A regular file or a pipe, open for reading."""
    try:
        file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise UserError(f"{head.WHAT} file {path} cannot be read: {error.strerror}; run that side first") from None
    with file:
        kind = os.fstat(file.fileno()).st_mode
        if stat.S_ISFIFO(kind):
            if not select.select([file], [], [], PIPE_SECONDS)[0]:
                raise UserError(f"{path} is a pipe that nothing is written into: give a file")
        elif not stat.S_ISREG(kind):
            raise UserError(f"{path} is neither a file nor a pipe: give a {head.WHAT} file")
        os.set_blocking(file.fileno(), True)
        try:
            yield file
        except OSError as error:
            raise UserError(f"{head.WHAT} file {path} cannot be read: {error.strerror}") from None


def first_line(path: Path, file: IO[bytes], head: type[HeaderLine]) -> tuple[bytes, object]:
    """(the line, its schema version) of a file that claims to hold what ``head`` heads, or UserError."""
    line = file.readline(MAX_LINE)
    try:
        data: Any = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or not {"schema_version", head.MARK} <= data.keys() or not line.endswith(b"\n"):
        raise UserError(f"{path} is not a {head.WHAT} file (its first line is not a header): give another path")
    return line, data["schema_version"]


def _version(head: type[HeaderLine]) -> int:
    """The schema version that is read."""
    (version,) = get_args(head.model_fields["schema_version"].annotation)
    return int(version)


def parse_line(model: type[AnyLine], line: bytes, path: Path, number: int) -> AnyLine:
    try:
        return model.model_validate_json(line, strict=True)
    except ValidationError as error:
        name = "closing line" if model is EndLine else model.__name__.lower()
        raise UserError(f"{path} line {number} is not a {name}: {_reason(error)}") from None


def _reason(error: ValidationError) -> str:
    """All fields that a line lacks, in one sentence, so that who writes such files need not find them one by one; where
    it lacks none, the first thing that is wrong."""
    items = error.errors()
    places = [".".join(str(part) for part in item["loc"]) for item in items]
    # A number is a place in a list, which is too short then.
    missing = [
        place
        for place, item in zip(places, items, strict=True)
        if item["type"] == "missing" and isinstance(item["loc"][-1], str)
    ]
    if len(missing) > 1:
        return f"the fields {', '.join(missing[:-1])} and {missing[-1]} are missing"
    if missing:
        return f"the field {missing[0]} is missing"
    return fault(items[0])
