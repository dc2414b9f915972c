"""What an app's archives hold that a verdict speaks of: GGUFs and contracts, by their content, wherever they lie.

A name proves nothing: a model can be called ``libfoo.so``, lie in ``res/raw``, be compressed once more, or stand
behind other bytes. So every file is read, and what is compressed by a format that Python unpacks is read unpacked, too.
What an app unpacks by code of its own, or loads from elsewhere, cannot be seen in its archive.
"""

import bz2
import hashlib
import json
import lzma
import mmap
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Protocol

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from parity.release.archive import STORED, Archive, Entry, read_archive
from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.settings import validate

_MODEL = re.compile(rb"GGUF(?:[\x01-\x03]\0\0\0|\0\0\0[\x01-\x03])")
"""Magic and version, of either byte order."""
_OVERLAP = 7
_SMALL = 1 << 20
"""Bytes. No contract has more, and no model that this is about has less."""
_LIBRARY = 256 << 20
"""Bytes of a native library that are looked at."""
_UNPACKED = 8 << 30
"""Bytes that a file in an archive may unpack to."""
_DEPTH = 3
_CLOSED = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar"}
"""How files begin that Python does not unpack."""
_NATIVE = re.compile(r"(?:^|/)lib/([^/]+)/([^/]+\.so)$")


@dataclass(frozen=True)
class Model:
    """A GGUF."""

    archive: str
    name: str
    """In the archive."""
    sha256: str
    size: int
    packed: str
    """How it is compressed; empty where it lies there as it is, so that llama.cpp can map it."""

    @property
    def where(self) -> str:
        """Archive and name."""
        return f"{self.archive}: {self.name}"


@dataclass(frozen=True)
class Library:
    """A native library."""

    where: str
    abi: str
    name: str
    sha256: str
    build_id: str
    """GNU build id, hex; empty where it has none."""


@dataclass
class Contents:
    """All that was found; each list in the order of the files."""

    files: int = 0
    models: list[Model] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    """Where a GGUF begins inside another file."""
    closed: list[str] = field(default_factory=list)
    """What could hold a model and cannot be looked into, and why."""
    contracts: list[tuple[str, str]] = field(default_factory=list)
    """(where, digest) of each contract; the digest is empty where it is none that can be kept."""
    libraries: list[Library] = field(default_factory=list)


def look_into(archive: Archive, found: Contents | None = None, depth: int = 0) -> Contents:
    """Read every file of an archive. Raises UserError where one is damaged."""
    found = found or Contents()
    for entry in archive.entries:
        if entry.name.endswith("/") and not entry.size:
            continue
        found.files += 1
        _look(archive, entry, found, depth)
    return found


def _look(archive: Archive, entry: Entry, found: Contents, depth: int) -> None:
    where = f"{archive.name}: {entry.name}"
    seen = _seen(archive.chunks(entry))
    packed = "" if entry.method == STORED else "deflated"
    _note(seen, archive.name, entry.name, packed, found)
    if native := _NATIVE.search(entry.name):
        abi, name = native.groups()
        found.libraries.append(Library(where, abi, name, seen.sha256, _build_id(archive, entry)))
    if entry.size <= _SMALL and seen.head.lstrip()[:1] == b"{":
        _note_contract(archive.read(entry, _SMALL), where, found)
    unpack = next((make for magic, make in _UNPACK.items() if seen.head.startswith(magic)), None)
    if unpack:
        _look_packed(archive, entry, where, unpack, found)
    elif seen.head.startswith(b"PK\x03\x04"):
        _look_nested(archive, entry, where, found, depth)
    elif entry.size > _SMALL:
        found.closed += [f"{where} is compressed by {kind}" for magic, kind in _CLOSED.items()
                         if seen.head.startswith(magic)]  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """What one pass over a file's bytes tells."""

    sha256: str
    size: int
    head: bytes
    models: tuple[int, ...]
    """Where a GGUF begins."""


def _seen(parts: Iterable[memoryview | bytes]) -> _Seen:
    digest = hashlib.sha256()
    size = 0
    head = tail = b""
    models: list[int] = []
    for part in parts:
        digest.update(part)
        if len(head) < 64:
            head += bytes(part[: 64 - len(head)])
        # A magic that two parts share.
        seam = tail + bytes(part[:_OVERLAP])
        models += [size - len(tail) + one.start() for one in _MODEL.finditer(seam) if one.start() < len(tail)]
        models += [size + one.start() for one in _MODEL.finditer(part)]
        size += len(part)
        tail = (tail + bytes(part[-_OVERLAP:]))[-_OVERLAP:]
    return _Seen(digest.hexdigest(), size, head, tuple(dict.fromkeys(models)))


def _note(seen: _Seen, archive: str, name: str, packed: str, found: Contents) -> None:
    if 0 in seen.models:
        found.models.append(Model(archive, name, seen.sha256, seen.size, packed))
    found.hidden += [f"{archive}: {name}, from byte {at:,} on" for at in seen.models if at]


def _note_contract(data: bytes, where: str, found: Contents) -> None:
    try:
        read: Any = json.loads(data)
        if isinstance(read, dict) and {"labels", "prompt_template", "media_marker"} <= read.keys():
            found.contracts.append((where, validate(Contract, read, where).digest))
    except UserError:
        found.contracts.append((where, ""))
    except (ValueError, RecursionError):  # no JSON
        return


class _Unpacker(Protocol):
    """What zlib, bz2 and lzma give."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


def _gzip() -> Any:
    return zlib.decompressobj(16 + zlib.MAX_WBITS)


_UNPACK: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b\x08": _gzip,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\x00": lzma.LZMADecompressor,
}


def _look_packed(archive: Archive, entry: Entry, where: str, make: Callable[[], Any], found: Contents) -> None:
    try:
        seen = _seen(_unpacked(archive.chunks(entry), make))
    except (zlib.error, OSError, lzma.LZMAError, EOFError, ValueError) as error:
        if entry.size > _SMALL:
            found.closed.append(f"{where} does not unpack ({error})")
        return
    _note(seen, archive.name, f"{entry.name} (unpacked)", "compressed once more", found)


def _unpacked(parts: Iterable[memoryview | bytes], make: Callable[[], Any]) -> Iterator[bytes]:
    """What several streams, one behind the other, unpack to. Raises ValueError where it is too much."""
    unpacker = make()
    size = 0
    for part in parts:
        waiting = bytes(part)
        while waiting:
            if unpacker.eof:
                unpacker = make()
            made = unpacker.decompress(waiting)
            waiting = unpacker.unused_data if unpacker.eof else b""
            size += len(made)
            if size > _UNPACKED:
                raise ValueError(f"more than {_UNPACKED >> 30} GiB")
            if made:
                yield made


def _look_nested(archive: Archive, entry: Entry, where: str, found: Contents, depth: int) -> None:
    if depth == _DEPTH:
        found.closed.append(f"{where} is an archive in an archive in an archive")
        return
    try:
        if entry.method == STORED:
            held = memoryview(archive.data)[entry.start : entry.start + entry.size]
            look_into(read_archive(held, where), found, depth + 1)
            return
        with tempfile.TemporaryFile() as file:
            for part in archive.chunks(entry):
                file.write(part)
            file.flush()
            # Not closed by hand: who reads it still holds views of it.
            look_into(read_archive(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), where), found, depth + 1)
    except UserError as error:
        found.closed.append(str(error))


def _build_id(archive: Archive, entry: Entry) -> str:
    if entry.size > _LIBRARY:
        return ""
    try:
        for segment in ELFFile(BytesIO(archive.read(entry, _LIBRARY))).iter_segments():  # what is stripped has these
            for note in segment.iter_notes() if isinstance(segment, NoteSegment) else ():
                if note["n_type"] == "NT_GNU_BUILD_ID":
                    return str(note["n_desc"])
    except (ELFError, ValueError, KeyError, UnicodeDecodeError, OverflowError, MemoryError, TypeError, AttributeError):
        pass  # a damaged library has no build id that could be the right one
    return ""
