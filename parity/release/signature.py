"""Who signed an app: checked by Android's own programs, where they are installed.

A signature scheme is not something to write twice. apksigner (Android's) verifies an APK; jarsigner (Java's) verifies a
bundle for a store, which has no APK signature. Of an APK's certificate only its SHA-256 is taken from what is printed.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 600
_APK_CERTIFICATE = re.compile(r"^(?:V\S+ )?Signer.* certificate SHA-256 digest: ([0-9a-f]{64})\s*$", re.MULTILINE)
_JAR_CERTIFICATE = re.compile(r"^\s*SHA256: ((?:[0-9A-F]{2}:){31}[0-9A-F]{2})\s*$", re.MULTILINE)
_SELF_SIGNED = 4
"""Bit of jarsigner's exit code under -strict: a certificate that no authority signed, as all of Android's."""


@dataclass(frozen=True)
class Signature:
    """What a program said of an archive's signature."""

    program: str
    """Empty where it is not installed."""
    valid: bool
    certificates: frozenset[str]
    """SHA-256 of each signer's certificate, hex."""
    said: str
    """The first line of what was wrong."""


def read_signature(path: Path, bundled: bool) -> Signature:
    """The signature of an APK, or of a bundle for a store (``bundled``)."""
    return _of_bundle(path) if bundled else _of_apk(path)


def _of_apk(path: Path) -> Signature:
    code, said = _run(["apksigner", "verify", "--print-certs", str(path.absolute())])
    if code is None:
        return Signature("", False, frozenset(), "apksigner is not installed")
    found = frozenset(_APK_CERTIFICATE.findall(said))
    return Signature("apksigner", code == 0 and bool(found), found, _first(said) if code else "")


def _of_bundle(path: Path) -> Signature:
    code, said = _run(["jarsigner", "-verify", "-strict", str(path.absolute())])
    if code is None:
        return Signature("", False, frozenset(), "jarsigner is not installed")
    listed, printed = _run(["keytool", "-printcert", "-jarfile", str(path.absolute())])
    found = frozenset(one.replace(":", "").lower() for one in _JAR_CERTIFICATE.findall(printed if listed == 0 else ""))
    valid = not code & ~_SELF_SIGNED and "jar verified" in said and bool(found)
    return Signature("jarsigner", valid, found, "" if valid else _first(said))


def _run(words: Sequence[str]) -> tuple[int | None, str]:
    """(exit code, all that was printed); None where the program is not there."""
    program = shutil.which(words[0])
    if program is None:
        return None, ""
    try:
        done = subprocess.run(
            [program, *words[1:]], capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, f"{words[0]} did not end within {_SECONDS} seconds"
    return done.returncode, done.stdout + done.stderr


def _first(said: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in said.splitlines() if line.strip()), "it says nothing")[:200]
