"""Read an APK, an AAB or another zip so that nobody can read it differently.

A zip says what it holds twice, at its end and before each file, and leaves room between; readers differ in whom they
believe. What a signature covers, what Python lists and what Android loads can then be three things. So all of the file
is accounted for here, byte by byte, and whatever has two readings is refused: what is read is what Android's loader
(AOSP, system/libziparchive/zip_archive.cc) reads, or nothing is. The format is PKWARE's APPNOTE 6.3.10, the signing
block that of Android's APK Signature Scheme v2.
"""

import mmap
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import UserError

STORED, DEFLATED = 0, 8
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
_END_RECORD = struct.Struct("<4s4H2IH")
_DESCRIPTOR = struct.Struct("<3I")
_DESCRIPTOR_MARK = b"PK\x07\x08"
_SIGNING_MAGIC = b"APK Sig Block 42"
_PAGE = 4096
"""apksigner begins a signing block at a multiple of this many bytes."""
_LATER, _UTF8 = 1 << 3, 1 << 11
"""Flags: sizes and checksum follow the data; the name is UTF-8."""
_KNOWN_FLAGS = _LATER | _UTF8 | 0b110
"""The two bits more say how hard deflate tried."""
_FLAGS = {1 << 0: "encrypted", 1 << 5: "a patch", 1 << 6: "strongly encrypted", 1 << 13: "masked"}
_REFUSED_EXTRA = {
    0x0001: "sizes of ZIP64, which no app needs",
    0x7075: "a second name (0x7075), which some readers believe",
    0x6375: "a second comment (0x6375), which some readers believe",
    0x9901: "AES encryption",
}
_MOST = 16 << 30
"""Bytes of all files together, more than any store takes."""
_CHUNK = 1 << 20


class _Lie(Exception):
    """What is wrong with the archive."""


@dataclass(frozen=True)
class Entry:
    """One file in an archive."""

    name: str
    method: int
    compressed: int
    """Bytes in the archive."""
    size: int
    """Bytes of the file itself."""
    crc: int
    start: int
    """Where in the archive its data begin."""


@dataclass(frozen=True)
class Archive:
    """An archive whose every byte is accounted for."""

    name: str
    entries: tuple[Entry, ...]
    """In the order of their data."""
    signing: tuple[int, int] | None
    """(start, end) of the APK signing block; None where there is none."""
    data: mmap.mmap | memoryview

    def chunks(self, entry: Entry) -> Iterator[memoryview | bytes]:
        """The file's own bytes, in parts. Raises UserError where they are not what the directory says."""
        held = memoryview(self.data)[entry.start : entry.start + entry.compressed]
        parts = _stored(held) if entry.method == STORED else _inflated(held, entry, self.name)
        crc = size = 0
        for part in parts:
            crc = zlib.crc32(part, crc)
            size += len(part)
            yield part
        if (crc, size) != (entry.crc, entry.size):
            raise UserError(f"{self.name}: {entry.name!r} is damaged: its bytes are not those of its checksum")

    def read(self, entry: Entry, most: int) -> bytes:
        """The whole file. Raises UserError where it has more than ``most`` bytes, too."""
        if entry.size > most:
            raise UserError(f"{self.name}: {entry.name!r} has {entry.size} bytes, more than the {most} expected there")
        return b"".join(self.chunks(entry))


def open_archive(path: Path) -> Archive:
    """The archive in a file. Raises UserError: it cannot be read, or has two readings; one sentence says which."""
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        why = error.strerror if isinstance(error, OSError) else "it is empty"
        raise UserError(f"{path} cannot be read: {why}") from None
    return read_archive(data, str(path))


def read_archive(data: mmap.mmap | memoryview, name: str) -> Archive:
    """The archive in ``data``, called ``name``. Raises UserError as open_archive does."""
    try:
        return _read(memoryview(data), data, name)
    except _Lie as lie:
        raise UserError(f"{name} is no archive that every reader reads alike: {lie}; build it again") from None


def _read(view: memoryview, data: mmap.mmap | memoryview, name: str) -> Archive:
    end, count, start = _end_record(view)
    found = _directory(view, start, end, count)
    at = 0
    entries = []
    for entry, flags, local in sorted(found, key=lambda one: one[2]):
        at = _skip_holes(view, at, local)
        if local != at:
            raise _Lie(
                f"the data of {entry.name!r} begin at byte {local}, inside those of another file"
                if local < at
                else f"{local - at} bytes before {entry.name!r} belong to no file"
            )
        placed, at = _local(view, entry, flags, local, start)
        entries.append(placed)
    return Archive(name, tuple(entries), _signing_block(view, at, start), data)


def _end_record(view: memoryview) -> tuple[int, int, int]:
    """(where the end record is, files, where the central directory begins)."""
    size = len(view)
    tail = max(0, size - _END_RECORD.size - 0xFFFF)
    at = bytes(view[tail:]).rfind(_END)
    if at < 0 or tail + at + _END_RECORD.size > size:
        raise _Lie("it has no end record, as a zip has")
    at += tail
    _, disk, first_disk, here, count, length, start, comment = _END_RECORD.unpack_from(view, at)
    if at + _END_RECORD.size + comment != size:
        raise _Lie("bytes follow its end record, or its comment holds another end record")
    if count == 0xFFFF or start == 0xFFFFFFFF or length == 0xFFFFFFFF:
        raise _Lie("it is a ZIP64 archive, which no app needs")
    if disk or first_disk or here != count:
        raise _Lie("it is a part of an archive that was split")
    if start + length != at:
        raise _Lie("its central directory does not end where its end record begins")
    return at, count, start


def _directory(view: memoryview, start: int, end: int, count: int) -> list[tuple[Entry, int, int]]:
    """(the file, flags, where its local header is) of each file that the central directory lists."""
    found: list[tuple[Entry, int, int]] = []
    names: set[str] = set()
    folded: dict[str, str] = {}
    at, total = start, 0
    for _ in range(count):
        if at + _CENTRAL_HEADER.size > end:
            raise _Lie(f"its end record counts {count} files, and its central directory has {len(found)}")
        (mark, _, _, flags, method, _, _, crc, compressed, size, name_length, extra_length, comment_length, disk, _, _,
         local) = _CENTRAL_HEADER.unpack_from(view, at)  # fmt: skip
        at += _CENTRAL_HEADER.size
        if mark != _CENTRAL or at + name_length + extra_length + comment_length > end:
            raise _Lie("its central directory is damaged")
        name = _name(bytes(view[at : at + name_length]), flags)
        _check_extra(bytes(view[at + name_length : at + name_length + extra_length]), name, padded=False)
        at += name_length + extra_length + comment_length
        _check_flags(name, flags)
        if method not in (STORED, DEFLATED):
            raise _Lie(f"{name!r} is compressed by method {method}, which Android does not read")
        if disk:
            raise _Lie(f"{name!r} is in another part of a split archive")
        if method == STORED and compressed != size:
            raise _Lie(f"{name!r} is stored, with {compressed} bytes for a file of {size}")
        if name in names:
            raise _Lie(f"two files have the name {name!r}")
        # aapt2 shortens the names in res/ to a few letters, and case counts there.
        alike = unicodedata.normalize("NFC", name).casefold()
        if alike in folded and not (name.startswith("res/") and folded[alike].startswith("res/")):
            raise _Lie(f"{folded[alike]!r} and {name!r} are one name where case does not count")
        names.add(name)
        folded[alike] = name
        total += size
        found.append((Entry(name, method, compressed, size, crc, 0), flags, local))
    if at != end:
        raise _Lie(f"its end record counts {count} files, and its central directory goes on behind them")
    if total > _MOST:
        raise _Lie(f"its files have {total} bytes, more than any app")
    return found


def _name(raw: bytes, flags: int) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise _Lie(f"the name {raw!r} is not UTF-8") from None
    if not name.isascii() and not flags & _UTF8:
        raise _Lie(f"the name {name!r} is not said to be UTF-8, so that readers differ in it")
    if not name or "\\" in name or any(unicodedata.category(letter) in ("Cc", "Cf", "Cs") for letter in name):
        raise _Lie(f"the name {name!r} is empty, or has a backslash or a character that cannot be seen")
    if any(part in ("", ".", "..") for part in name.removesuffix("/").split("/")):
        raise _Lie(f"the name {name!r} leads elsewhere")
    return name


def _check_flags(name: str, flags: int) -> None:
    if strange := flags & ~_KNOWN_FLAGS:
        what = next((words for bit, words in _FLAGS.items() if strange & bit), f"of a kind ({strange:#x}) unknown here")
        raise _Lie(f"{name!r} is {what}")


def _check_extra(extra: bytes, name: str, padded: bool) -> None:
    """The fields are whole, and none gives a file another name or size. ``padded``: zipalign ends them with zeros."""
    at = 0
    while at < len(extra):
        if padded and not any(extra[at:]):
            return
        if at + 4 > len(extra):
            raise _Lie(f"the extra fields of {name!r} are damaged")
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind in _REFUSED_EXTRA:
            raise _Lie(f"{name!r} has {_REFUSED_EXTRA[kind]}")
        at += 4 + length
        if at > len(extra):
            raise _Lie(f"the extra fields of {name!r} are damaged")


def _skip_holes(view: memoryview, at: int, local: int) -> int:
    """Behind the holes that Gradle's packager leaves when it replaces a file: headers without a name and without data
    (zipflinger's VirtualEntry)."""
    while at < local:
        if at + _LOCAL_HEADER.size > local:
            return at
        mark, _, flags, method, _, _, crc, compressed, size, name_length, extra_length = _LOCAL_HEADER.unpack_from(
            view, at
        )
        behind = at + _LOCAL_HEADER.size + extra_length
        if mark != _LOCAL or flags or method or crc or compressed or size or name_length or behind > local:
            return at
        if any(view[at + _LOCAL_HEADER.size : behind]):
            return at
        at = behind
    return at


def _local(view: memoryview, entry: Entry, flags: int, at: int, limit: int) -> tuple[Entry, int]:
    """The entry with its place, and where what belongs to it ends. ``limit``: where the central directory begins."""
    name = entry.name
    if at + _LOCAL_HEADER.size > limit:
        raise _Lie(f"the data of {name!r} lie behind the last file's")
    (mark, _, own_flags, method, _, _, crc, compressed, size, name_length, extra_length) = _LOCAL_HEADER.unpack_from(
        view, at
    )
    start = at + _LOCAL_HEADER.size + name_length + extra_length
    end = start + entry.compressed
    if mark != _LOCAL or end > limit:
        raise _Lie(f"there are no whole data of {name!r} at byte {at}")
    own = bytes(view[at + _LOCAL_HEADER.size : at + _LOCAL_HEADER.size + name_length])
    if own != name.encode():
        raise _Lie(f"{name!r} is {own.decode(errors='replace')!r} before its data")
    _check_extra(bytes(view[at + _LOCAL_HEADER.size + name_length : start]), name, padded=True)
    stated, wanted = (crc, compressed, size), (entry.crc, entry.compressed, entry.size)
    later = bool(flags & _LATER)
    if (own_flags, method) != (flags, entry.method):
        raise _Lie(f"{name!r} is of another kind before its data than in the central directory")
    if stated != wanted and not (later and not any(stated)):
        raise _Lie(f"{name!r} has other sizes or another checksum before its data than in the central directory")
    if later:
        marked = bytes(view[end : end + 4]) == _DESCRIPTOR_MARK
        end += 4 if marked else 0
        if end + _DESCRIPTOR.size > limit or _DESCRIPTOR.unpack_from(view, end) != wanted:
            raise _Lie(f"{name!r} has other sizes or another checksum behind its data than in the central directory")
        end += _DESCRIPTOR.size
    return Entry(name, entry.method, entry.compressed, entry.size, entry.crc, start), end


def _signing_block(view: memoryview, at: int, end: int) -> tuple[int, int] | None:
    """What lies between the last file and the central directory: nothing, or the signing block behind some zeros."""
    if at == end:
        return None
    if end - at < 32 or bytes(view[end - 16 : end]) != _SIGNING_MAGIC:
        raise _Lie(f"{end - at} bytes between its last file and its central directory belong to no file")
    (size,) = struct.unpack_from("<Q", view, end - 24)
    start = end - 8 - size
    if size < 24 or start < at or struct.unpack_from("<Q", view, start)[0] != size:
        raise _Lie("its signing block is damaged")
    if start - at >= _PAGE or any(view[at:start]):
        raise _Lie(f"{start - at} bytes before its signing block belong to no file")
    place, last = start + 8, end - 24
    while place < last:
        length = struct.unpack_from("<Q", view, place)[0] if place + 12 <= last else 0
        if length < 4 or place + 8 + length > last:
            raise _Lie("its signing block is damaged")
        place += 8 + length
    return start, end


def _stored(held: memoryview) -> Iterator[memoryview]:
    for at in range(0, len(held), _CHUNK):
        yield held[at : at + _CHUNK]


def _inflated(held: memoryview, entry: Entry, archive: str) -> Iterator[bytes]:
    """No more than the size stated is ever made, whatever the data unpack to."""
    damaged = UserError(
        f"{archive}: {entry.name!r} is damaged: its data do not unpack to the {entry.size} bytes stated"
    )
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    left = entry.size
    parts: list[memoryview | bytes] = [*_stored(held), b""]  # at last, what is still to come out of the inflater
    for waiting in parts:
        while not inflater.eof:
            try:
                part = inflater.decompress(waiting, _CHUNK)
            except zlib.error:
                raise damaged from None
            waiting = inflater.unconsumed_tail
            left -= len(part)
            if left < 0:
                raise damaged
            if part:
                yield part
            elif not waiting:
                break
        if inflater.eof and waiting:
            raise damaged
    if left or not inflater.eof or inflater.unused_data:
        raise damaged
