"""Check a bundle with nothing but Python: every file is the one that was exported, and all of them mean one contract.

    python3 -m pipeline.export.verify BUNDLE_FOLDER

The GGUFs are also read up to their tensors' data: whole, the halves that their names say, of the types that their names
say, made of the same weights. An app's build runs this where none of the project's packages are: this module and what
it imports use the standard library alone and run on Python 3.9. The manifest vouches for the other files; who vouches
for the manifest is for a signature to say (``pipeline/export/signing.py``, ``docs/threat-model.md``).
"""

from __future__ import annotations

import argparse
import json
import re
import stat
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.core.errors import EXIT_FAIL, EXIT_PASS, EXIT_USAGE, CheckFailed, UserError
from pipeline.core.files import canonical_json, sha256_bytes, sha256_file
from pipeline.core.gguf_types import FILE_TYPES, MATRIX_TYPES

MANIFEST = "manifest.json"
CONTRACT = "contract.json"
SIGNATURE = "model.sig"
"""Beside what the manifest lists, the only file that a bundle may hold."""

# pipeline/export/convert.py's, which 3.9 cannot import
KEY_CONTRACT = "parity.contract_sha256"
KEY_WEIGHTS = "parity.weights_sha256"

# GGUF's value types (ggml's docs/gguf.md): type -> struct's letter, for those of a fixed width.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _UINT32 = 8, 9, 4

TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1),
    25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip
"""``enum ggml_type`` of ggml.h -> its name, elements of a block, bytes of a block (GGML_QUANT_SIZES of gguf-py)."""

_BLOCK = 1 << 20
_MOST = 1 << 24
"""Bytes of a text, elements of an array of texts, bytes of a JSON file: far more than any model has."""


def verify_bundle(folder: Path) -> list[str]:
    """Check the bundle in ``folder``; returns one line for each thing that was found right.

    Raises CheckFailed: a file that is missing, a link, changed or not the manifest's, a GGUF that is cut or not what
    its name says, or a contract digest that differs, named in one sentence. Raises UserError: no folder, not a bundle,
    a manifest of another version, an unreadable file.
    """
    try:
        return _verify(folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror}") from None


def _verify(folder: Path) -> list[str]:
    manifest = _read_manifest(folder)
    outputs, digest = manifest["outputs"], manifest["contract_sha256"]
    text, mmproj = _check_names(folder / MANIFEST, manifest)
    present = {path.name for path in folder.iterdir()}
    for name in sorted(outputs):
        if name not in present:
            raise CheckFailed(f"{folder / name} is missing, but {MANIFEST} lists it: copy the bundle again, whole")
    for name in sorted(present - outputs.keys() - {MANIFEST, SIGNATURE}):
        raise CheckFailed(f"{_shown(folder / name)} is no part of the bundle ({MANIFEST} does not list it): remove it")
    for name in sorted(present):
        _check_kind(folder / name)
    lines = [f"{MANIFEST}: lists the {len(outputs)} other files, and no more are there"]
    for name, expected in sorted(outputs.items()):
        found = sha256_file(folder / name)
        if found != expected:
            raise CheckFailed(
                f"{folder / name} is not the file that was exported: its SHA-256 is {found}, and {MANIFEST} says"
                f" {expected}"
            )
        lines.append(f"{name}: SHA-256 {found}")
    _check_digest(folder / CONTRACT, "the contract's digest", _contract_digest(folder / CONTRACT), digest)
    lines.append(f"{CONTRACT}: the contract's digest is the manifest's, {digest}")
    export = manifest["recipe"]["export"]
    weights = []
    for name, vision, kind in ((text, False, export["text_type"]), (mmproj, True, export["mmproj_type"])):
        path = folder / name
        gguf = read_gguf(path)
        _check_digest(path, KEY_CONTRACT, gguf.text(KEY_CONTRACT), digest)
        problem = _junk(gguf) or _not_a_half(gguf, vision) or _not_of_type(gguf, kind)
        if problem:
            raise CheckFailed(
                f"{path} is not the {'vision' if vision else 'language'} half of this bundle in {kind}: {problem};"
                " copy the bundle again, or export it again"
            )
        weights.append(gguf.text(KEY_WEIGHTS))
        lines.append(f"{name}: the {'vision' if vision else 'language'} half in {kind}, whole, with the same contract")
    if weights[0] != weights[1]:
        raise CheckFailed(
            f"{folder / mmproj} was not made of the weights that {text} was made of: {KEY_WEIGHTS} is"
            f" {weights[1] or 'missing'} in it and {weights[0] or 'missing'} in the other; export the bundle again"
        )
    return lines


def _check_kind(path: Path) -> None:
    """A bundle holds its files itself: what a link leads to is another file tomorrow, and a FIFO never ends."""
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO"}
        kind = kinds.get(stat.S_IFMT(mode), "a device or socket")
        how = " with `cp -rL`, which copies what links lead to" if stat.S_ISLNK(mode) else ""
        raise CheckFailed(f"{path} is {kind}, and a bundle holds nothing but files: copy the bundle again{how}")


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, its ``outputs`` and ``contract_sha256`` of the right kind."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder of a bundle, such as runs/tiny/bundle")
    path = folder / MANIFEST
    if MANIFEST not in (one.name for one in folder.iterdir()):
        raise UserError(
            f"{folder} is not a bundle, it has no {MANIFEST}: give another folder, or copy the bundle again"
        )
    _check_kind(path)
    manifest = _read_object(path)
    version = manifest.get("schema_version")
    if type(version) is not int:
        raise UserError(f"{path} has no schema_version, so it is not a bundle's: give another folder")
    if version != 1:
        raise UserError(f"{path} has schema_version {version}, and this program reads 1: use the one that wrote it")
    outputs = manifest.get("outputs")
    if not isinstance(outputs, dict):
        raise CheckFailed(f"{path} is damaged: 'outputs' is not a list of files with their SHA-256")
    for name, value in outputs.items():
        if not _is_sha256(value):
            raise CheckFailed(f"{path} is damaged: what 'outputs' has for {_shown(name[:80])} is not a SHA-256")
    if not _is_sha256(manifest.get("contract_sha256")):
        raise CheckFailed(f"{path} is damaged: 'contract_sha256' is not a SHA-256")
    return manifest


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _read_object(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > _MOST:
        raise CheckFailed(f"{path} is damaged: it has {size} bytes, and no export writes more than {_MOST}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once, parse_int=_integer)
        canonical_json(value)  # refuses NaN and half surrogates, which JSON cannot hold
    except (ValueError, RecursionError) as error:
        raise CheckFailed(f"{path} is damaged, it is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckFailed(f"{path} is damaged: it holds no JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that is there twice means one thing to one reader and another to the next."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name[:80]!r} is there twice")
        found[name] = value
    return found


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"it has an integer of {len(digits)} digits")
    return int(digits)


def _check_names(path: Path, manifest: dict[str, Any]) -> tuple[str, str]:
    """The names of the language half and the vision half, as the recipe's export has them; nothing else but the
    contract may be listed."""
    recipe = manifest.get("recipe")
    export = recipe.get("export") if isinstance(recipe, dict) else None
    keys = ("name", "text_type", "mmproj_type")
    given = [str(export[key]) for key in keys if isinstance(export.get(key), str)] if isinstance(export, dict) else []
    if len(given) != len(keys):
        raise CheckFailed(f"{path} is damaged: 'recipe.export' does not name the pair and its types")
    name, text_type, mmproj_type = given
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or not {text_type, mmproj_type} <= MATRIX_TYPES.keys():
        raise CheckFailed(f"{path} is damaged: 'recipe.export' is not what an export is made by")
    text, mmproj = f"{name}-{text_type}.gguf", f"mmproj-{name}-{mmproj_type}.gguf"
    if manifest["outputs"].keys() != {CONTRACT, text, mmproj}:
        listed = ", ".join(map(_shown, sorted(manifest["outputs"])[:5])) or "nothing"
        raise CheckFailed(
            f"{path} does not list a bundle: it should be {CONTRACT}, {text} and {mmproj}, and it is {listed}"
        )
    return text, mmproj


def _shown(name: object) -> str:
    """A name that anybody may have chosen, on one line."""
    text = str(name)
    return text if text.isprintable() else repr(text)


def _contract_digest(path: Path) -> str:
    """As ``Contract.digest``: the export writes the file with every default, so parsing it back changes nothing."""
    return sha256_bytes(canonical_json(_read_object(path)))


def _check_digest(path: Path, what: str, found: str | None, expected: str) -> None:
    if found != expected:
        said = _shown(found[:80]) if found else "missing"
        raise CheckFailed(f"{path} belongs to another contract: {what} is {said}, not {expected}")


# ---- what a GGUF is --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gguf:
    """What a GGUF holds before its tensors' data."""

    keys: dict[str, Any]
    """Texts, numbers and truth values; None for an array."""
    tensors: dict[str, tuple[int, tuple[int, ...]]]
    """Name -> (``enum ggml_type``, shape, the row's length first), in the order of their data."""
    alignment: int
    """Each tensor's data begin at a multiple of this many bytes."""
    behind: int
    """Bytes behind the last tensor's data."""
    offsets: dict[str, int]
    """Name -> where in the file a tensor's data begin."""

    def text(self, key: str) -> str | None:
        """The text under ``key``; None where there is none."""
        value = self.keys.get(key)
        return value if isinstance(value, str) else None

    @property
    def matrices(self) -> dict[str, int]:
        """Name -> type of every tensor of two or more dimensions."""
        return {name: kind for name, (kind, shape) in self.tensors.items() if len(shape) > 1}


def read_gguf(path: Path) -> Gguf:
    """Read all of a GGUF but its tensors' data, by the rules of llama.cpp's reader (gguf_init_from_reader, gguf.cpp).

    Raises CheckFailed: not a GGUF of version 3, little-endian; cut; a key or tensor twice; tensors that overlap, leave
    gaps or have no possible size.
    """
    with open(path, "rb") as file:
        try:
            return _read(_Head(file, path.stat().st_size))
        except ValueError as error:
            raise CheckFailed(f"{path} cannot be read as GGUF: {error}") from None


def _read(head: _Head) -> Gguf:
    if head.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = head.number("I")
    if version == 3 << 24:
        raise ValueError("it is big-endian, and a phone reads little-endian")
    if version != 3:
        raise ValueError(f"its version is {version}, and this program reads 3")
    tensor_count, key_count = head.number("Q"), head.number("Q")
    keys: dict[str, Any] = {}
    alignment = 32
    for _ in range(key_count):
        name, kind = head.text(), head.number("I")
        if not name or name in keys:
            raise ValueError(f"the key {name[:80]!r} is there twice" if name else "a key has no name")
        keys[name] = head.value(kind)
        if name == "general.alignment":
            alignment = keys[name]
            if kind != _UINT32 or alignment < 1 or alignment & (alignment - 1):
                raise ValueError(f"{name} is not a power of 2")
    tensors: dict[str, tuple[int, tuple[int, ...]]] = {}
    offsets: dict[str, int] = {}
    end = padded = 0
    for _ in range(tensor_count):
        name, shape = head.text(), tuple(head.number("Q") for _ in range(head.dimensions()))
        kind, offset = head.number("I"), head.number("Q")
        about = f"tensor {name[:80]!r}"
        if name in tensors:
            raise ValueError(f"{about} is there twice")
        if kind not in TENSOR_TYPES:
            raise ValueError(f"{about} is of the unknown type {kind}")
        _, elements, size = TENSOR_TYPES[kind]
        count = 1
        for length in shape:
            count *= length
        if count < 1 or count >= 1 << 63 or shape[0] % elements:
            raise ValueError(f"{about} of type {TENSOR_TYPES[kind][0]} has the impossible shape {list(shape)}")
        if offset != padded:
            raise ValueError(f"{about} begins at byte {offset} of the data, and the one before it ends at {padded}")
        tensors[name], offsets[name] = (kind, shape), offset
        end = padded + count // elements * size
        padded = _padded(end, alignment)
    data = _padded(head.at, alignment)
    behind = head.size - data - end
    if behind < 0:
        raise ValueError(f"it is cut: its tensors need {-behind} bytes more than it has")
    return Gguf(keys, tensors, alignment, behind, {name: data + offset for name, offset in offsets.items()})


def _padded(count: int, alignment: int) -> int:
    return -(-count // alignment) * alignment


class _Head:
    """Reads a GGUF from its start; ValueError where it ends too early or makes no sense."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self.at = 0
        """How far it was read."""
        self._file, self._block, self._start = file, b"", 0

    def _find(self, count: int) -> int:
        """Where in the block in memory the next ``count`` bytes begin."""
        place = self.at - self._start
        if place + count > len(self._block):
            if self.at + count > self.size:  # a damaged length may be any 64-bit number
                raise ValueError("it ends within its metadata")
            self._file.seek(self.at)
            self._block, self._start, place = self._file.read(max(count, _BLOCK)), self.at, 0
            if len(self._block) < count:
                raise ValueError("it became shorter while it was read")
        return place

    def take(self, count: int) -> bytes:
        place = self._find(count)
        self.at += count
        return self._block[place : place + count]

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def dimensions(self) -> int:
        count: int = self.number("I")
        if not 1 <= count <= 4:  # GGML_MAX_DIMS
            raise ValueError(f"a tensor has {count} dimensions")
        return count

    def text(self) -> str:
        length = self.number("Q")
        if length > _MOST:
            raise ValueError(f"it ends within its metadata, or has a text of {length} bytes")
        return self.take(length).decode()

    def value(self, kind: int) -> Any:
        """The next value. An array, of which None is returned, is its elements' type, their number and the elements."""
        if kind == _STRING:
            return self.text()
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind != _ARRAY:
            raise ValueError(f"its metadata has a value of the unknown type {kind}")
        element, count = self.number("I"), self.number("Q")
        if element in _NUMBERS:
            self.at += count * struct.calcsize("<" + _NUMBERS[element])
        elif element != _STRING:  # nor does llama.cpp read arrays of arrays
            raise ValueError(f"its metadata has an array of the unknown type {element}")
        elif count > _MOST:
            raise ValueError(f"it ends within its metadata, or has an array of {count} texts")
        else:
            length = struct.Struct("<Q").unpack_from
            for _ in range(count):
                place = self._find(8)
                self.at += 8 + length(self._block, place)[0]
        return None


def _junk(gguf: Gguf) -> str | None:
    if gguf.behind >= gguf.alignment:
        return f"{gguf.behind} bytes that are no tensor's follow the last one's data"
    return None


def _not_a_half(gguf: Gguf, vision: bool) -> str | None:
    """Why a GGUF is not a language half or a vision half as llama.cpp loads them (llama-model.cpp, clip.cpp)."""
    architecture = gguf.text("general.architecture")
    if vision != (architecture == "clip") or not architecture:
        return f"general.architecture is {_shown(repr((architecture or '')[:80]))}"
    if vision and gguf.keys.get("clip.has_vision_encoder") is not True:
        return "clip.has_vision_encoder is not true"
    if not vision and "tokenizer.ggml.tokens" not in gguf.keys:
        return "it has no tokenizer.ggml.tokens"
    first = "v.patch_embd.weight" if vision else "token_embd.weight"
    if first not in gguf.tensors:
        return f"it has no tensor {first}"
    strange = next((name for name in gguf.tensors if name.startswith(("v.", "mm.")) != vision), None)
    if strange:
        return f"tensor {strange[:80]!r} is not one of that half"
    key = "clip.vision.block_count" if vision else f"{architecture}.block_count"
    blocks = {match[1] for name in gguf.tensors if (match := re.match(r"(?:v\.)?blk\.(\d{1,9})\.", name))}
    if {int(number) for number in blocks} != set(range(len(blocks))) or gguf.keys.get(key) != len(blocks):
        return f"{key} is {gguf.keys.get(key)}, and its tensors are of {len(blocks)} blocks"
    return None


def _not_of_type(gguf: Gguf, kind: str) -> str | None:
    """Why a half is not of the type that it is named after; see ``pipeline/export/check.py``."""
    stated = gguf.keys.get("general.file_type")
    if stated not in (None, FILE_TYPES[kind]):
        return f"general.file_type is {_shown(repr(stated)[:80])}, and of {kind} it is {FILE_TYPES[kind]}"
    for name, (number, shape) in gguf.tensors.items():
        plain = len(shape) == 1 or name.startswith("v.patch_embd") or "position_embd" in name
        found = TENSOR_TYPES[number][0]
        if found not in ({"F32"} if plain else MATRIX_TYPES[kind]):
            return f"tensor {name[:80]!r} is {found}"
    return None


# ---- the command -----------------------------------------------------------------------------------------------------


def report(folder: Path, lines: list[str]) -> str:
    """What was checked, as text; the last line sums it up."""
    return "\n".join([*lines, f"{_shown(folder)} is whole: {len(lines)} checks passed"])


def main() -> int:
    """Entry point of ``python3 -m pipeline.export.verify``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python3 -m pipeline.export.verify",
        description="Check a bundle: every file against its manifest, the contract's digest in all, and both GGUFs.",
        epilog=f"Exit codes: {EXIT_PASS} whole, {EXIT_FAIL} damaged, {EXIT_USAGE} not a bundle.",
    )
    parser.add_argument("bundle", type=Path, help="the bundle's folder, such as runs/tiny/bundle")
    folder = parser.parse_args().bundle
    try:
        print(report(folder, verify_bundle(folder)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except CheckFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        return EXIT_FAIL
    if (folder / SIGNATURE).exists():
        print(f"{SIGNATURE} was not checked: `make verify` with PUBLIC_KEY does that", file=sys.stderr)
    return EXIT_PASS


if __name__ == "__main__":
    sys.exit(main())
