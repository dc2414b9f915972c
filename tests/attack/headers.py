"""GGUF and safetensors files with every length, count, type, shape and offset of their headers damaged."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from malformed import json_cases, of_bytes
from trial import Case

_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # ggml's docs/gguf.md
_FLOATS = {6: "<f", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Field:
    """A number in a GGUF's header."""

    name: str
    offset: int
    width: int
    float_: bool = False


class _Walk:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.fields: list[Field] = []
        self.texts: dict[str, str] = {}

    def number(self, name: str, width: int, keep: bool = True) -> int:
        if keep:
            self.fields.append(Field(name, self.at, width))
        value = int.from_bytes(self.data[self.at : self.at + width], "little")
        self.at += width
        return value

    def text(self, name: str, keep: bool = True) -> str:
        length = self.number(f"{name}'s length", 8, keep)
        self.at += length
        return self.data[self.at - length : self.at].decode(errors="replace")

    def value(self, name: str, kind: int, keep: bool = True) -> None:
        if kind == _STRING:
            self.texts[name] = self.text(name, keep)
        elif kind == _ARRAY:
            inner, count = self.number(f"{name}'s element type", 4), self.number(f"{name}'s count", 8)
            for index in range(count):
                self.value(f"{name}[{index}]", inner, keep=index == 0)
        else:
            if keep:
                self.fields.append(Field(name, self.at, _WIDTHS[kind], kind in _FLOATS))
            self.at += _WIDTHS[kind]


def walk_gguf(data: bytes) -> tuple[list[Field], dict[str, str]]:
    """(every number of the header, key -> text) of a valid GGUF; of an array only the first item."""
    walk = _Walk(data)
    walk.at = 4
    walk.number("the version", 4)
    tensors, keys = walk.number("the count of tensors", 8), walk.number("the count of keys", 8)
    for number in range(keys):
        name = walk.text(f"key {number}")
        walk.value(name, walk.number(f"{name}'s type", 4))
    for number in range(tensors):
        keep = number < 3 or number == tensors - 1
        name = walk.text(f"tensor {number}", keep)
        dimensions = walk.number(f"{name}'s dimensions", 4, keep)
        for index in range(dimensions):
            walk.number(f"{name}'s size {index}", 8, keep)
        walk.number(f"{name}'s type", 4, keep)
        walk.number(f"{name}'s offset", 8, keep)
    return walk.fields, walk.texts


def _patched(data: bytes, offset: int, patch: bytes) -> bytes:
    return data[:offset] + patch + data[offset + len(patch) :]


def _values(field: Field, now: int) -> dict[str, bytes]:
    if field.float_:
        code = "<f" if field.width == 4 else "<d"
        numbers = {"0": 0.0, "-1": -1.0, "NaN": float("nan"), "inf": float("inf"), "1e30": 1e30, "1e-30": 1e-30}
        return {name: struct.pack(code, number) for name, number in numbers.items()}
    top = 1 << (8 * field.width)
    numbers = {0, 1, 2, 3, 7, now + 1, max(now - 1, 0), now * 2, top // 2 - 1, top // 2, top - 1, 2**31, 2**20, 99}
    return {str(one): one.to_bytes(field.width, "little") for one in sorted(numbers) if one < top and one != now}


def gguf_cases(data: bytes, wanted: Callable[[Field], bool] = lambda field: True) -> list[Case]:
    """Every number of a GGUF's header set to what it cannot be, or hardly."""
    found = []
    for field in walk_gguf(data)[0]:
        if wanted(field):
            now = int.from_bytes(data[field.offset : field.offset + field.width], "little")
            for value, patch in _values(field, now).items():
                found.append(of_bytes(f"{field.name} is {value}", _patched, data, field.offset, patch))
    return found


def gguf_text(data: bytes, key: str) -> str | None:
    """The text under a key of a valid GGUF."""
    return walk_gguf(data)[1].get(key)


# --- safetensors -----------------------------------------------------------------------------------------------------


def safetensors_of(header: bytes, body: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def safetensors_parts(data: bytes) -> tuple[bytes, bytes]:
    """(header, tensors' bytes)."""
    (length,) = struct.unpack("<Q", data[:8])
    return data[8 : 8 + length], data[8 + length :]


def safetensors_cases(data: bytes, tensors: int = 3) -> list[Case]:
    """Every value of the header damaged, of the first tensors, and shapes, offsets and types that do not fit."""
    raw, body = safetensors_parts(data)
    header: dict[str, Any] = json.loads(raw)
    names = [name for name in header if name != "__metadata__"]
    some = {name: header[name] for name in names[:tensors]} | {"__metadata__": header.get("__metadata__", {})}
    rest = {name: header[name] for name in names[tensors:]}

    def wrap(changed: bytes) -> bytes:
        """The rest of the header behind what was changed, where it is still an object."""
        if changed.startswith(b"{") and changed.endswith(b"}") and rest:
            changed = changed[:-1] + (b"," if len(changed) > 2 else b"") + json.dumps(rest).encode()[1:]
        return safetensors_of(changed, body)

    found = json_cases(json.dumps(some), wrap)
    for length in (0, 1, len(raw) - 1, len(raw) + 1, len(data), 2**31, 2**40, 2**63, 2**64 - 1):
        found.append(of_bytes(f"a header of {length} bytes", safetensors_of, raw, body, length))

    def with_tensor(name: str, **values: Any) -> bytes:
        return safetensors_of(json.dumps(header | {name: header[name] | values}).encode(), body)

    first, second = names[0], names[min(1, len(names) - 1)]
    begin, end = header[first]["data_offsets"]
    for what, values in {
        "of no shape": {"shape": []},
        "of shape 0": {"shape": [0]},
        "of a negative shape": {"shape": [-1, -1]},
        "of 2**62 numbers": {"shape": [2**31, 2**31], "data_offsets": [0, 2**63]},
        "of 2**64 rows": {"shape": [2**64, 1]},
        "of another shape": {"shape": [*header[first]["shape"], 1]},
        "turned": {"shape": header[first]["shape"][::-1]},
        "of half as many": {"shape": [1, (end - begin) // 8], "data_offsets": [begin, begin + (end - begin) // 2]},
        "of 1000 dimensions": {"shape": [1] * 1000},
        "as F64": {"dtype": "F64"},
        "as F16": {"dtype": "F16"},
        "as BOOL": {"dtype": "BOOL"},
        "as F8_E4M3": {"dtype": "F8_E4M3"},
        "as F4": {"dtype": "F4"},
        "as X": {"dtype": "X"},
        "behind the file": {"data_offsets": [len(body), len(body) + end - begin]},
        "backwards": {"data_offsets": [end, begin]},
        "over another": {"data_offsets": header[second]["data_offsets"]},
    }.items():
        found.append(of_bytes(f"{first} {what}", lambda values=values: with_tensor(first, **values)))
    without = {name: value for name, value in header.items() if name != first}
    renamed = {("x." + name if name == first else name): value for name, value in header.items()}
    found.append(of_bytes(f"without {first}", lambda: safetensors_of(json.dumps(without).encode(), body)))
    found.append(of_bytes(f"{first} renamed", lambda: safetensors_of(json.dumps(renamed).encode(), body)))
    found.append(of_bytes("no tensors", lambda: safetensors_of(b"{}", b"")))
    twice = raw.rstrip()[:-1] + b"," + json.dumps({first: header[first]}).encode()[1:]
    found.append(of_bytes(f"{first} twice", lambda: safetensors_of(twice, body)))
    nan = b"\xff\xff\xff\x7f" * ((end - begin) // 4)
    found.append(
        of_bytes(f"{first} of NaN", lambda: safetensors_of(raw, body[:begin] + nan + body[begin + len(nan) :]))
    )
    return found
