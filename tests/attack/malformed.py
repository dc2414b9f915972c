"""Systematic damage to a valid file: to its values, its bytes, and to what is at its place."""

import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trial import Case

DEPTHS = pytest.mark.parametrize("depth", ["quick", pytest.param("all", marks=pytest.mark.attack)])
"""Of a test: ``quick`` tries a few cases, for `make test`."""
SEED = 20261127

DEEP = 100_000
VALUES: dict[str, str] = {
    "null": "null",
    "an empty list": "[]",
    "an empty object": "{}",
    "true": "true",
    "-1": "-1",
    "0": "0",
    "1.5": "1.5",
    "1e999": "1e999",
    "-1e999": "-1e999",
    "1e308": "1e308",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "2**63": str(2**63),
    "5,000 digits": "9" * 5000,
    "an empty text": '""',
    "a text": '"x"',
    "a list of null": "[null]",
    "an object of null": '{"": null}',
    "100,000 nested lists": "[" * DEEP + "]" * DEEP,
    "100,000 nested objects": '{"a":' * DEEP + "1" + "}" * DEEP,
    "200 nested lists": "[" * 200 + "]" * 200,
    "900 nested lists": "[" * 900 + "]" * 900,
    "1 MB of text": '"' + "x" * (1 << 20) + '"',
    "100,000 numbers": "[" + "1," * DEEP + "1]",
    "half a surrogate": '"\\ud800"',
    "a zero byte": '"a\\u0000b"',
    "a path out": '"../../../../etc/passwd"',
    "a device": '"/dev/zero"',
    "a long name": '"' + "n" * 300 + '"',
    "a bad escape": '"\\x"',
}
"""Name -> JSON to put in place of a value. Not all of it is JSON."""

Path_ = tuple[str | int, ...]


def paths_of(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """The place of every value, the whole one first; of a list, only the first and the last item."""
    yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths_of(inner, (*at, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1}) if value else ():
            yield from paths_of(value[index], (*at, index))


def inside(value: Any, path: Path_) -> Any:
    """The value at a place."""
    for step in path:
        value = value[step]
    return value


_MARK = "@@here@@"


def with_raw(value: Any, path: Path_, raw: str, dump: Callable[[Any], str] = json.dumps) -> bytes:
    """The document with ``raw`` in place of the value at ``path``."""
    if not path:
        return raw.encode()
    changed = deepcopy(value)
    inside(changed, path[:-1])[path[-1]] = _MARK
    return dump(changed).replace(json.dumps(_MARK), raw).encode()


def _without(value: Any, path: Path_) -> bytes:
    changed = deepcopy(value)
    del inside(changed, path[:-1])[path[-1]]
    return json.dumps(changed).encode()


def _twice(value: Any, path: Path_) -> bytes:
    changed = deepcopy(value)
    owner = inside(changed, path[:-1])
    owner[_MARK] = owner[path[-1]]
    return json.dumps(changed).replace(json.dumps(_MARK), json.dumps(path[-1])).encode()


def _more(value: Any, path: Path_, key: str) -> bytes:
    changed = deepcopy(value)
    inside(changed, path)[key] = 1
    return json.dumps(changed).encode()


def _write(make: Callable[[], bytes], path: Path) -> None:
    path.write_bytes(make())


def of_bytes(name: str, make: Callable[..., bytes], *given: Any) -> Case:
    """A case of a file's content, which is made when it is tried."""
    return Case(name, partial(_write, partial(make, *given)))


def json_cases(text: bytes | str, wrap: Callable[[bytes], bytes] = bytes) -> list[Case]:
    """Every value of a JSON document replaced, removed, doubled, and unknown keys added. ``wrap`` makes the file of the
    document."""
    value = json.loads(text)

    def case(name: str, make: Callable[..., bytes], *given: Any) -> Case:
        return of_bytes(name, lambda: wrap(make(*given)))

    found = []
    for path in paths_of(value):
        place = ".".join(map(str, path)) or "all"
        found += [case(f"{place}: {name}", with_raw, value, path, raw) for name, raw in VALUES.items()]
        if path and isinstance(path[-1], str):
            found.append(case(f"{place}: removed", _without, value, path))
            found.append(case(f"{place}: twice", _twice, value, path))
        if isinstance(inside(value, path), dict):
            for key in ("unknown", "", "\ud800", "k" * 100_000):
                found.append(case(f"{place}: and the key {key[:9]!a}", _more, value, path, key))
    return found


def byte_cases(data: bytes, cuts: int = 150, flips: int = 150, seed: int = SEED) -> list[Case]:
    """A file cut short, with bits turned, in other encodings, or not its content at all."""
    chance = random.Random(seed)
    step = max(len(data) // cuts, 1)
    found = [of_bytes(f"cut at {length}", bytes, data[:length]) for length in range(0, len(data), step)]
    found += [of_bytes(f"cut {more} before the end", bytes, data[:-more]) for more in (1, 2, 3)]
    for _ in range(flips):
        place, bit = chance.randrange(max(len(data), 1)), chance.randrange(8)
        found.append(of_bytes(f"bit {bit} of byte {place}", _flipped, data, place, bit))
    others = {
        "nothing": b"",
        "a line break": b"\n",
        "a zero byte": b"\0",
        "a byte order mark in front": b"\xef\xbb\xbf" + data,
        "CRLF": data.replace(b"\n", b"\r\n"),
        "CR": data.replace(b"\n", b"\r"),
        "twice": data * 2,
        "without its first line": data.partition(b"\n")[2],
        "zero bytes behind": data + bytes(4096),
        "zero bytes of its size": bytes(len(data)),
        "0xff of its size": b"\xff" * len(data),
        "a text behind": data + b"and so on",
        "a line without end": b"x" * (8 << 20),
        "4 MB of line breaks": b"\n" * (4 << 20),
        "random bytes": chance.randbytes(4096),
        "a ZIP": b"PK\x03\x04" + chance.randbytes(2000),
        "a pickle": b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94.",
    }
    found += [of_bytes(name, bytes, content) for name, content in others.items()]
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-7", "cp037"):
        found.append(of_bytes(f"in {encoding}", _recoded, data, encoding))
    return found


def _flipped(data: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(data)
    if changed:
        changed[place] ^= 1 << bit
    return bytes(changed)


def _recoded(data: bytes, encoding: str) -> bytes:
    return data.decode(errors="replace").encode(encoding, errors="replace")


def _socket(path: Path) -> None:
    """A socket, by a short name, as the longest that one may have is 108 bytes."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("x")


def place_cases() -> list[Case]:
    """What is no regular file: nothing of it may hang a reader, fill the memory, or end it without a sentence."""
    links = {
        "a link to nothing": "nothing-is-here",
        "a link to /dev/null": "/dev/null",
        "a link to /dev/zero": "/dev/zero",
        "a link to /dev/full": "/dev/full",
        "a link to /proc/self/mem": "/proc/self/mem",
        "a link to a folder": "/proc",
    }
    return [
        Case("nothing there", lambda path: None),
        Case("a FIFO", os.mkfifo),
        Case("a folder", _folder),
        Case("a socket", _socket),
        Case("a link to itself", lambda path: path.symlink_to(path.name)),
        *(Case(name, partial(_linked, target)) for name, target in links.items()),
    ]


def _linked(target: str, path: Path) -> None:
    path.symlink_to(target)


def some(cases: list[Case], depth: str, quick: int = 60) -> list[Case]:
    """All cases, or ``quick`` of them drawn by a fixed seed."""
    if depth == "all" or len(cases) <= quick:
        return cases
    return random.Random(SEED).sample(cases, quick)
