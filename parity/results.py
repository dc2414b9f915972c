"""What one side answered, on disk: JSONL, one header line, then one line an image.

The file grows while the side runs and is only ever appended to, so a run that is killed goes on where it stopped. What
a line holds follows what a phone writes. Rows are found by the content hash of the sample, never by position.

Invariants of a :class:`Results` that exists: the header is of this version, and no key stands twice.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes

SYNC_SECONDS = 5.0
"""Longest stretch of finished work, in seconds, that a power cut can take back."""

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256, lower-case hex."""


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


Number = Annotated[float | None, AfterValidator(_finite)]
"""A float; null where the model gave NaN or an infinity, which JSON cannot hold."""


class _Line(BaseModel):
    """Immutable; an unknown key is an error. Read from JSON strictly (see :func:`read_results`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Keyed(_Line):
    """A line about one image."""

    key: Hex
    """The sample's content: SHA-256 of the decoded canvas, RGB bytes row by row."""
    image_id: str
    """For people; nothing is matched by it."""


Line = TypeVar("Line", bound=_Line)
Head = TypeVar("Head", bound=_Line)
Item = TypeVar("Item", bound=_Keyed)


class Header(_Line):
    """What ran, on what, under which contract. Two files with equal headers hold rows of the same run."""

    schema_version: Literal[1] = 1
    side: str = Field(min_length=1)
    """``hf``, ``llamacpp``, ``device``, ..."""
    contract_sha256: Hex
    """:attr:`pipeline.contract.Contract.digest`"""
    dataset_sha256: Hex
    """:attr:`pipeline.dataset.records.Dataset.digest`"""
    model: dict[str, Hex]
    """Role -> SHA-256 of the file or folder used: ``model`` and ``mmproj`` for llama.cpp, ``merged`` for hf."""
    weights_sha256: Hex | None = None
    """Digest of the fine-tuned weights that this side's files were made from; null where unknown."""
    versions: dict[str, str]
    """Package -> version."""
    device: dict[str, str]
    """What it ran on: host, cpu, ..."""
    runtime: dict[str, str | int | float | bool | None]
    """How the engine was set up: n_ctx, n_threads, type_k, ..."""
    prompt_token_ids: tuple[int, ...]
    """The whole prompt's layout: the ids of its text, and -1 at every position that a picture's embedding takes."""
    image_slots: tuple[tuple[int, int], ...]
    """(start, length) of each picture in :attr:`prompt_token_ids`, in order."""


class Row(_Keyed):
    """What the side made of one image."""

    rgb_sha256: Hex
    """SHA-256 of the bytes really given to the model."""
    truth: str
    text: str
    """All that was generated."""
    label: str | None
    """The label that the contract's answer rule reads out of ``text``; null where it finds none."""
    generated_token_ids: tuple[int, ...]
    """Without the end token."""
    label_logprobs: dict[str, Number] = {}
    """Label -> natural log of the probability of its answer tokens after the prompt; empty where the side has none."""
    top_logits: tuple[tuple[int, Number], ...] = ()
    """(token id, logit) of the first step's greatest logits, greatest first."""
    ms: dict[str, float] = {}
    """Milliseconds: ``encode``, ``prefill``, ``generate``, ... and, if known, ``total``."""
    stop_reason: Literal["end", "length"]
    """An end token, or ``max_new_tokens`` reached."""

    @property
    def correct(self) -> bool:
        """Whether the answer is the truth."""
        return self.label == self.truth


@dataclass(frozen=True)
class Results:
    """One side's answers."""

    header: Header
    rows: dict[str, Row]
    """Key -> row, in the order of the file."""


def read_results(path: Path) -> Results:
    """Read one side's file. A last line without its line break (the run was killed in it) is dropped.

    Raises UserError: missing or unreadable file, not a results file, another schema version, a line that is not a row
    (with its number), a key that stands twice.
    """
    return Results(*read_lines(path, Header, Row))


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
            write_bytes(path, _line(header))
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
        self._file.write(_line(row))
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


class ResultsWriter(LinesWriter[Header, Row]):
    """One side's answers."""

    def __init__(self, path: Path, header: Header) -> None:
        super().__init__(path, header, Row)


def _line(value: _Line) -> bytes:
    return value.model_dump_json().encode() + b"\n"


def _first_line(path: Path, head: type[_Line]) -> tuple[bytes, object]:
    """(the line, its schema version) of a file that claims to hold what ``head`` heads, or UserError."""
    what, mark = ("results", "side") if head is Header else ("ladder", "kind")
    try:
        with open(path, "rb") as file:
            line = file.readline(1 << 20)
    except OSError as error:
        raise UserError(f"{what} file {path} cannot be read: {error.strerror}; run that side first") from None
    try:
        data: Any = json.loads(line)
    except ValueError:
        data = None
    if not isinstance(data, dict) or not {"schema_version", mark} <= data.keys() or not line.endswith(b"\n"):
        raise UserError(f"{path} is not a {what} file (its first line is not a header): give another path")
    return line, data["schema_version"]


def read_lines(path: Path, head: type[Head], item: type[Item]) -> tuple[Head, dict[str, Item]]:
    """(header, key -> row in the order of the file). Raises UserError as :func:`read_results` does."""
    header, lines = _open_lines(path, head)
    return header, {row.key: row for row, _ in _rows(path, lines, item)}


def _open_lines(path: Path, head: type[Head]) -> tuple[Head, Iterator[bytes]]:
    """(header, the lines behind it that are whole)."""
    first, version = _first_line(path, head)
    if version != 1:
        raise UserError(
            f"{path} was written with schema version {version}, and this program reads version 1: run that side again"
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


def _parse(model: type[Line], line: bytes, path: Path, number: int) -> Line:
    try:
        return model.model_validate_json(line, strict=True)
    except ValidationError as error:
        item = error.errors()[0]
        where = ".".join(str(part) for part in item["loc"])
        reason = f"{where}: {item['msg']}" if where else item["msg"]
        raise UserError(f"{path} line {number} is not a {model.__name__.lower()}: {reason}") from None
