"""Check a bundle with nothing but Python: every file is the one that was exported, and all of them mean one contract.

    python3 -m pipeline.export.verify BUNDLE_FOLDER

An app's build runs this where none of the project's packages are: this module and what it imports use the standard
library alone and run on Python 3.9. The manifest vouches for the other files; who vouches for the manifest is for a
signature to say (``pipeline/export/signing.py``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.core.errors import EXIT_FAIL, EXIT_PASS, EXIT_USAGE, CheckFailed, UserError
from pipeline.core.files import canonical_json, sha256_bytes, sha256_file

MANIFEST = "manifest.json"
CONTRACT = "contract.json"
SIGNATURE = "model.sig"
"""Beside what the manifest lists, the only file that a bundle may hold."""

KEY_CONTRACT = "parity.contract_sha256"  # pipeline/export/convert.py's, which 3.9 cannot import

# GGUF's value types (ggml's docs/gguf.md): type -> bytes, for those of a fixed width.
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def verify_bundle(folder: Path) -> list[str]:
    """Check the bundle in ``folder``; returns one line for each thing that was found right.

    Raises CheckFailed: a file that is missing, changed or not the manifest's, or a contract digest that differs, named
    in one sentence. Raises UserError: no folder, not a bundle, a manifest of another version, an unreadable file.
    """
    try:
        return _verify(folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror}") from None


def _verify(folder: Path) -> list[str]:
    manifest = _read_manifest(folder)
    outputs, digest = manifest["outputs"], manifest["contract_sha256"]
    present = {path.name for path in folder.iterdir()} - {MANIFEST, SIGNATURE}
    for name in sorted(outputs):
        if name not in present or not (folder / name).is_file():
            raise CheckFailed(f"{folder / name} is missing, but {MANIFEST} lists it: copy the bundle again, whole")
    for name in sorted(present - outputs.keys()):
        raise CheckFailed(f"{folder / name} is no part of the bundle ({MANIFEST} does not list it): remove it")
    ggufs = _pair(folder, outputs)
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
    for name in ggufs:
        _check_digest(folder / name, KEY_CONTRACT, gguf_string(folder / name, KEY_CONTRACT), digest)
        lines.append(f"{name}: a GGUF with the same contract digest")
    return lines


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, its ``outputs`` and ``contract_sha256`` of the right kind."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder of a bundle, such as runs/tiny/bundle")
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} is not a bundle, it has no {MANIFEST}: give another folder, or copy the bundle again"
        )
    manifest = _read_object(path)
    version = manifest.get("schema_version")
    if version != 1:
        raise UserError(f"{path} has schema_version {version!r}, and this program reads 1: use the one that wrote it")
    outputs = manifest.get("outputs")
    if not isinstance(outputs, dict) or not all(isinstance(value, str) for value in outputs.values()):
        raise CheckFailed(f"{path} is damaged: 'outputs' is not a list of files with their SHA-256")
    if not isinstance(manifest.get("contract_sha256"), str):
        raise CheckFailed(f"{path} is damaged: 'contract_sha256' is not a SHA-256")
    return manifest


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        canonical_json(value)  # refuses NaN and half surrogates, which JSON cannot hold
    except (ValueError, RecursionError) as error:
        raise CheckFailed(f"{path} is damaged, it is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckFailed(f"{path} is damaged: it holds no JSON object")
    return value


def _pair(folder: Path, outputs: dict[str, str]) -> list[str]:
    """The names of the GGUF pair; nothing else but the contract may be listed."""
    ggufs = sorted(name for name in outputs if name.endswith(".gguf"))
    halves = [name.startswith("mmproj-") for name in ggufs]
    if outputs.keys() - ggufs != {CONTRACT} or sorted(halves) != [False, True]:
        raise CheckFailed(
            f"{folder / MANIFEST} does not list a bundle ({CONTRACT}, a language half and an mmproj- half, both GGUF)"
            f" but {', '.join(sorted(outputs)) or 'nothing'}"
        )
    return ggufs


def _contract_digest(path: Path) -> str:
    """As ``Contract.digest``: the export writes the file with every default, so parsing it back changes nothing."""
    return sha256_bytes(canonical_json(_read_object(path)))


def _check_digest(path: Path, what: str, found: str | None, expected: str) -> None:
    if found != expected:
        raise CheckFailed(f"{path} belongs to another contract: {what} is {found or 'missing'}, not {expected}")


def gguf_string(path: Path, key: str) -> str | None:
    """The text that a GGUF's metadata holds under ``key``; None where it has no such key, or no text there.

    Raises CheckFailed where the file is not a GGUF of version 3, little-endian, or ends within its metadata.
    """
    with _opened(path) as (head, _, keys):
        for _ in range(keys):
            name, kind = head.string(), head.number(4)
            if name == key.encode():
                return head.string().decode(errors="replace") if kind == _STRING else None
            head.skip(kind)
    return None


def gguf_matrices(path: Path) -> dict[str, int]:
    """Name -> type (``enum ggml_type``) of every tensor of two or more dimensions. Raises as :func:`gguf_string`."""
    found = {}
    with _opened(path) as (head, tensors, keys):
        for _ in range(keys):
            head.string()
            head.skip(head.number(4))
        for _ in range(tensors):
            name, dimensions = head.string().decode(errors="replace"), head.number(4)
            head.take(8 * dimensions)
            kind = head.number(4)
            head.take(8)  # where its data are
            if dimensions > 1:
                found[name] = kind
    return found


@contextmanager
def _opened(path: Path) -> Iterator[tuple[_Head, int, int]]:
    """(the file behind its first numbers, how many tensors, how many keys it has)."""
    with open(path, "rb") as file:
        head = _Head(file, path.stat().st_size)
        try:
            if head.take(4) != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            version = head.number(4)
            if version != 3:
                raise ValueError(f"its version is {version}, and this program reads 3")
            yield head, head.number(8), head.number(8)
        except (ValueError, RecursionError) as error:
            raise CheckFailed(f"{path} cannot be read as GGUF: {error}") from None


class _Head:
    """Reads a GGUF from its start; ValueError where it ends too early or makes no sense."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def take(self, count: int) -> bytes:
        data = self._file.read(min(count, self._size))  # a damaged length may be any 64-bit number
        if len(data) < count:
            raise ValueError("it ends within its metadata")
        return data

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def string(self) -> bytes:
        return self.take(self.number(8))

    def skip(self, kind: int) -> None:
        """Go past a value. An array is its elements' type, their number and the elements, which may be arrays."""
        if kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            element, count = self.number(4), self.number(8)
            if element in _WIDTHS:
                self.take(count * _WIDTHS[element])
            else:
                for _ in range(count):
                    self.skip(element)
        elif kind in _WIDTHS:
            self.take(_WIDTHS[kind])
        else:
            raise ValueError(f"its metadata has a value of the unknown type {kind}")


def report(folder: Path, lines: list[str]) -> str:
    """What was checked, as text; the last line sums it up."""
    return "\n".join([*lines, f"{folder} is whole: {len(lines)} checks passed"])


def main() -> int:
    """Entry point of ``python3 -m pipeline.export.verify``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python3 -m pipeline.export.verify",
        description="Check a bundle: every file against its manifest, and the contract's digest in all of them.",
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
