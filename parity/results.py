"""What one side answered, on disk: JSONL, one header line, then one line an image.

The file grows while the side runs and is only ever appended to, so a run that is killed goes on where it stopped. What
a line holds follows what a phone writes. Rows are found by the content hash of the sample, never by position.

Invariants of a :class:`Results` that exists: the header is of this version, and no key stands twice.
"""

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError
from pipeline.files import write_bytes

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


Line = TypeVar("Line", bound=_Line)


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


class Row(_Line):
    """What the side made of one image."""

    key: Hex
    """The sample's content: SHA-256 of the decoded canvas, RGB bytes row by row."""
    image_id: str
    """For people; nothing is matched by it."""
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
    return _read(path)[0]


class ResultsWriter:
    """Appends rows to a results file; going on from an earlier run is the same call.

    A file with an equal header keeps its rows (:attr:`rows` says which images need not run again); one with another
    header, or with a line that cannot be read, starts anew. Use as a context manager.

    Raises UserError where the path holds something that is not a results file, which is left alone.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.rows: dict[str, Row] = {}
        """Key -> row of what is in the file."""
        length = self._resume(path, header)
        if length is None:
            # The header arrives whole or not at all, so only a row can ever be torn.
            write_bytes(path, _line(header))
        else:
            os.truncate(path, length)
        self._file = open(path, "ab")  # noqa: SIM115  (closed by close)
        self._synced = time.monotonic()

    def _resume(self, path: Path, header: Header) -> int | None:
        """Bytes of the file to keep; None to start anew."""
        if not path.exists() or path.stat().st_size == 0:
            return None
        _first_line(path)
        try:
            results, length = _read(path)
        except UserError:
            return None
        if results.header != header:
            return None
        self.rows = results.rows
        return length

    def append(self, row: Row) -> None:
        """Write one row; it survives a killed process at once and a power cut after :data:`SYNC_SECONDS`.

        Raises ValueError where the key has a row already.
        """
        if row.key in self.rows:
            raise ValueError(f"image {row.image_id} ({row.key}) has a row already")
        self._file.write(_line(row))
        self._file.flush()
        self.rows[row.key] = row
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


def _line(value: _Line) -> bytes:
    return value.model_dump_json().encode() + b"\n"


def _first_line(path: Path) -> tuple[bytes, object]:
    """(the line, its schema version) of a file that claims to hold results, or UserError."""
    try:
        with open(path, "rb") as file:
            line = file.readline(1 << 20)
    except OSError as error:
        raise UserError(f"results file {path} cannot be read: {error.strerror}; run that side first") from None
    try:
        data: Any = json.loads(line)
    except ValueError:
        data = None
    if not isinstance(data, dict) or not {"schema_version", "side"} <= data.keys() or not line.endswith(b"\n"):
        raise UserError(f"{path} is not a results file (its first line is not a header): give another path")
    return line, data["schema_version"]


def _read(path: Path) -> tuple[Results, int]:
    """(results, length in bytes of the lines that are whole)."""
    first, version = _first_line(path)
    if version != 1:
        raise UserError(
            f"{path} was written with schema version {version}, and this program reads version 1: run that side again"
        )
    header = _parse(Header, first, path, 1)
    content = path.read_bytes()
    length = content.rfind(b"\n") + 1
    rows: dict[str, Row] = {}
    for number, line in enumerate(content[len(first) : length].split(b"\n")[:-1], start=2):
        row = _parse(Row, line, path, number)
        if row.key in rows:
            raise UserError(
                f"{path} line {number}: image {row.image_id} has a row already (key {row.key}): run that side again"
            )
        rows[row.key] = row
    return Results(header, rows), length


def _parse(model: type[Line], line: bytes, path: Path, number: int) -> Line:
    try:
        return model.model_validate_json(line, strict=True)
    except ValidationError as error:
        item = error.errors()[0]
        where = ".".join(str(part) for part in item["loc"])
        reason = f"{where}: {item['msg']}" if where else item["msg"]
        raise UserError(f"{path} line {number} is not a {model.__name__.lower()}: {reason}") from None
