"""Zips made field by field, so that each can lie in one place."""

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

MODEL = b"GGUF\x03\0\0\0" + bytes(range(256)) * 8
EVIL = b"GGUF\x03\0\0\0" + bytes(range(255, -1, -1)) * 8


@dataclass(frozen=True)
class File:
    """A file in a zip. What is not None takes the place of what would be true."""

    name: bytes
    data: bytes = b""
    method: int = 0
    flags: int = 0
    extra: bytes = b""
    central_extra: bytes = b""
    local_name: bytes | None = None
    local: dict[str, Any] = field(default_factory=dict)
    """``crc``, ``compressed``, ``size``, ``method``, ``flags`` of the local header alone."""
    central: dict[str, Any] = field(default_factory=dict)
    """The same and ``offset``, ``disk`` of the central directory alone."""
    later: bool = False
    """Sizes and checksum stand behind the data."""
    marked: bool = True
    descriptor: bytes | None = None
    packed: bytes | None = None
    before: bytes = b""
    """Bytes in front of the local header that belong to nothing."""
    comment: bytes = b""

    @property
    def held(self) -> bytes:
        if self.packed is not None:
            return self.packed
        if self.method != 8:
            return self.data
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
        return deflater.compress(self.data) + deflater.flush()


def local_header(
    name: int, extra: int, flags: int = 0, method: int = 0, crc: int = 0, compressed: int = 0, size: int = 0
) -> bytes:
    """A local header for a name and an extra field of so many bytes."""
    return struct.pack("<4s5H3I2H", b"PK\3\4", 20, flags, method, 0, 33, crc, compressed, size, name, extra)


@dataclass(frozen=True)
class Zip:
    """A zip."""

    files: Sequence[File]
    before_directory: bytes = b""
    after_directory: bytes = b""
    before: bytes = b""
    behind: bytes = b""
    comment: bytes = b""
    end: dict[str, int] = field(default_factory=dict)
    """``disk``, ``first``, ``here``, ``count``, ``size``, ``offset``, ``comment`` of the end record."""
    twice: bytes = b""
    """A second central directory with its end record, in front of the true one."""

    def made(self) -> bytes:
        out = bytearray(self.before)
        directory = bytearray()
        for one in self.files:
            out += one.before
            place = len(out)
            held, flags = one.held, one.flags | (8 if one.later else 0)
            true = {"crc": zlib.crc32(one.data), "compressed": len(held), "size": len(one.data)}
            kind = {"method": one.method, "flags": flags}
            zero = dict.fromkeys(true, 0) if one.later else {}
            there = true | kind | zero | one.local
            name = one.name if one.local_name is None else one.local_name
            out += local_header(len(name), len(one.extra), **there) + name + one.extra
            out += held
            if one.later:
                told = struct.pack("<3I", *true.values()) if one.descriptor is None else one.descriptor
                out += (b"PK\7\x08" if one.marked else b"") + told
            here = {"offset": place, "disk": 0} | true | kind | one.central
            directory += struct.pack(
                "<4s6H3I5H2I", b"PK\1\2", 20, 20, here["flags"], here["method"], 0, 33, here["crc"], here["compressed"],
                here["size"], len(one.name), len(one.central_extra), len(one.comment), here["disk"], 0, 0,
                here["offset"],
            )  # fmt: skip
            directory += one.name + one.central_extra + one.comment
        out += self.twice + self.before_directory
        start = len(out)
        out += directory + self.after_directory
        count = len(self.files)
        told = {"disk": 0, "first": 0, "here": count, "count": count, "size": len(directory), "offset": start}
        told |= {"comment": len(self.comment)} | self.end
        return bytes(out + struct.pack("<4s4H2IH", b"PK\5\6", *told.values()) + self.comment + self.behind)


def signing_block(*pairs: tuple[int, bytes]) -> bytes:
    """An APK signing block."""
    held = b"".join(struct.pack("<QI", len(value) + 4, kind) + value for kind, value in pairs)
    size = len(held) + 24
    return struct.pack("<Q", size) + held + struct.pack("<Q", size) + b"APK Sig Block 42"


BLOCK = signing_block((0x7109871A, b"v2"), (0x42726577, b""))
GOOD = File(b"assets/model.gguf", MODEL)
OTHER = File(b"AndroidManifest.xml", (Path(__file__).parent / "AndroidManifest.axml").read_bytes(), 8)
"""A real one, so that apksigner takes the archive for an app."""
BASE = Zip([GOOD, OTHER])


def _one(**changes: Any) -> Zip:
    return Zip([replace(GOOD, **changes), OTHER])


def _two(**changes: Any) -> Zip:
    return Zip([GOOD, replace(OTHER, **changes)])


def _extra(kind: int, data: bytes) -> bytes:
    return struct.pack("<2H", kind, len(data)) + data


def _unicode_path(name: bytes) -> bytes:
    return _extra(0x7075, b"\1" + struct.pack("<I", zlib.crc32(GOOD.name)) + name)


def _second_directory() -> bytes:
    """A whole zip of the evil model, whose end record stands within the real file."""
    return Zip([File(b"assets/model.gguf", EVIL)]).made()


def _overlapping() -> Zip:
    first = File(b"assets/model.gguf", MODEL)
    return Zip([first, replace(OTHER, central={"offset": 0})])


SOUND: dict[str, Zip] = {
    "stored and deflated": BASE,
    "sizes behind the data": Zip([replace(GOOD, later=True), replace(OTHER, later=True, marked=False)]),
    "zipalign's padding": _one(extra=bytes(3)),
    "an alignment field": _one(extra=_extra(0xD935, b"\x04\0\0\0")),
    "times in an extra field": _one(extra=_extra(0x5455, b"\1\0\0\0\0"), central_extra=_extra(0x5455, b"\1\0\0\0\0")),
    "a signing block": replace(BASE, before_directory=bytes(90) + BLOCK),
    "a hole of Gradle's": Zip([GOOD, replace(OTHER, before=local_header(0, 7) + bytes(7))]),
    "a comment": replace(BASE, comment=b"built by hand"),
    "a folder": Zip([File(b"assets/"), GOOD, OTHER]),
    "an empty file, deflated": Zip([GOOD, File(b"empty", b"", 8)]),
    "a name in another script": Zip([GOOD, File("assets/\u6c34.txt".encode(), b"x", flags=1 << 11)]),
    "short names in res/": Zip([GOOD, File(b"res/aB.xml", b"x"), File(b"res/Ab.xml", b"y")]),
    "no files": Zip([]),
}  # fmt: skip

LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    # what is tried: (the zip, what is said)
    "a second name, in the directory": (_one(central_extra=_unicode_path(b"assets/evil.gguf")).made, "second name"),
    "a second name, before the data": (_one(extra=_unicode_path(b"assets/evil.gguf")).made, "second name"),
    "a second comment": (_one(central_extra=_extra(0x6375, b"\1\0\0\0\0x")).made, "second comment"),
    "two central directories": (replace(BASE, twice=_second_directory()).made, "belong to no file"),
    "a second archive behind": (replace(BASE, behind=_second_directory()).made, "does not end where"),
    "a second archive in the comment": (
        lambda: replace(BASE, comment=_second_directory()).made(), "does not end where",
    ),
    "an end record in the comment": (replace(BASE, comment=b"PK\5\6" + bytes(18)).made, "does not end where"),
    "bytes behind the end": (replace(BASE, behind=b"x").made, "bytes follow its end record"),
    "bytes before the first file": (replace(BASE, before=b"#!/bin/sh\n").made, "belong to no file"),
    "a model between two files": (_two(before=EVIL).made, "belong to no file"),
    "a model before the directory": (replace(BASE, before_directory=EVIL).made, "belong to no file"),
    "a model before the signing block": (
        replace(BASE, before_directory=EVIL + BLOCK).made, "before its signing block",
    ),
    "a page of zeros before the signing block": (
        replace(BASE, before_directory=bytes(4096) + BLOCK).made, "before its signing block",
    ),
    "a signing block of another size": (
        replace(BASE, before_directory=bytes(8) + BLOCK[8:]).made, "signing block",
    ),
    "a signing block with a torn pair": (
        replace(BASE, before_directory=struct.pack("<Q", 36) + struct.pack("<QI", 99, 1) + struct.pack("<Q", 36)
                + b"APK Sig Block 42").made, "signing block is damaged",
    ),
    "a hole with something in it": (
        Zip([GOOD, replace(OTHER, before=local_header(0, len(EVIL)) + EVIL)]).made,
        "belong to no file",
    ),
    "bytes behind the directory": (replace(BASE, after_directory=b"x" * 7).made, "does not end where"),
    "the same name twice": (Zip([GOOD, replace(GOOD, data=EVIL), OTHER]).made, "two files have the name"),
    "names that differ in case": (
        Zip([GOOD, File(b"assets/Model.gguf", EVIL), OTHER]).made, "one name where case does not count",
    ),
    "names that differ in how they are composed": (
        Zip([OTHER, *(File(name.encode(), b"x", flags=1 << 11) for name in ("assets/\xe9", "assets/e\u0301"))]).made,
        "one name where case does not count",
    ),
    "another name before the data": (_one(local_name=b"assets/evil_.gguf").made, "before its data"),
    "another size before the data": (_one(local={"size": 99}).made, "other sizes"),
    "another packed size before the data": (_one(local={"compressed": 99}).made, "other sizes"),
    "another checksum before the data": (_one(local={"crc": 1}).made, "another checksum"),
    "another method before the data": (_two(local={"method": 0}).made, "another kind"),
    "other flags before the data": (_one(local={"flags": 8}).made, "another kind"),
    "another size behind the data": (
        _one(later=True, descriptor=struct.pack("<3I", zlib.crc32(MODEL), len(MODEL), 99)).made, "behind its data",
    ),
    "another checksum behind the data": (
        _one(later=True, descriptor=struct.pack("<3I", 1, len(MODEL), len(MODEL))).made, "behind its data",
    ),
    "files that overlap": (_overlapping().made, "before its data|inside those"),
    "a file within the directory": (_two(central={"offset": 5000}).made, "belong to no file|lie behind|no whole data"),
    "data that reach into the directory": (
        Zip([replace(GOOD, central={"compressed": 9999, "size": 9999})]).made, "no whole data|other sizes",
    ),
    "encrypted": (_one(flags=1).made, "encrypted"),
    "strongly encrypted": (_one(flags=1 << 6).made, "encrypted"),
    "a masked header": (_one(flags=1 << 13).made, "masked"),
    "a patch": (_one(flags=1 << 5).made, "a patch"),
    "AES": (_one(central_extra=_extra(0x9901, b"\2\0AE\3\0\0")).made, "AES"),
    "packed by LZMA": (_one(method=14).made, "method 14"),
    "stored with two sizes": (_one(central={"compressed": len(MODEL), "size": 99}).made, "is stored, with"),
    "ZIP64 sizes": (_one(extra=_extra(1, bytes(16)), central_extra=_extra(1, bytes(16))).made, "ZIP64"),
    "a ZIP64 directory": (replace(BASE, end={"count": 0xFFFF, "here": 0xFFFF}).made, "ZIP64"),
    "a ZIP64 end record": (
        replace(BASE, after_directory=b"PK\6\6" + bytes(52) + b"PK\6\7" + bytes(16)).made, "does not end where",
    ),
    "more files than the directory has": (replace(BASE, end={"count": 3, "here": 3}).made, "counts 3 files"),
    "fewer files than the directory has": (replace(BASE, end={"count": 1, "here": 1}).made, "goes on behind them"),
    "a part of a split archive": (replace(BASE, end={"disk": 1, "first": 1}).made, "split"),
    "a file in another part": (_one(central={"disk": 1}).made, "another part"),
    "a path that leads out": (_one(name=b"assets/../../model.gguf").made, "leads elsewhere"),
    "an absolute path": (_one(name=b"/assets/model.gguf").made, "leads elsewhere"),
    "a path through the same folder": (_one(name=b"assets/./model.gguf").made, "leads elsewhere"),
    "a backslash": (_one(name=b"assets\\model.gguf").made, "backslash"),
    "a zero in a name": (_one(name=b"assets/model.gguf\0.txt").made, "cannot be seen"),
    "a name that is written backwards": (
        _one(name="assets/\u202effugg.ledom".encode(), flags=1 << 11).made, "cannot be seen",
    ),
    "a name that is no UTF-8": (_one(name=b"assets/\xff.gguf").made, "not UTF-8"),
    "a name that is not said to be UTF-8": (_one(name="assets/\xe9.gguf".encode()).made, "not said to be UTF-8"),
    "no name": (_one(name=b"").made, "empty"),
    "a torn extra field": (_one(central_extra=b"\x55\x54\xff\0x").made, "extra fields"),
    "a torn extra field before the data": (_one(extra=b"\x55\x54\xff\0x").made, "extra fields"),
    "more than is stated, unpacked": (_two(central={"size": 99}, local={"size": 99}).made, "do not unpack to the 99"),
    "less than is stated, unpacked": (
        _two(central={"size": 9999}, local={"size": 9999}).made, "do not unpack to the 9999",
    ),
    "bytes behind the deflated data": (_two(packed=OTHER.held + EVIL).made, "do not unpack"),
    "deflated data that end too early": (_two(packed=OTHER.held[:-3]).made, "do not unpack"),
    "other bytes than the checksum's": (_one(central={"crc": 7}, local={"crc": 7}).made, "checksum"),
    "a damaged header in the directory": (lambda: BASE.made().replace(b"PK\1\2", b"PK\1\3", 1), "directory is damaged"),
    "no end record": (lambda: BASE.made()[:-22], "no end record"),
    "an empty file": (lambda: b"", "it is empty"),
    "no zip": (lambda: b"\x7fELF" * 100, "no end record"),
}  # fmt: skip
