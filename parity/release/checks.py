"""What the gate looks at in an app, what it is held against, and what it finds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["green", "red", "not checked"]


@dataclass(frozen=True)
class AppCheck:
    """One thing that was looked at."""

    name: str
    status: Status
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Judged:
    """What a verdict was given for."""

    halves: Mapping[str, str]
    """``model`` and ``mmproj`` -> SHA-256."""
    contract: str
    """The contract's digest."""


@dataclass(frozen=True)
class Demands:
    """What else must be so; None: not asked."""

    package: str | None = None
    certificate: str | None = None
    """SHA-256 of the certificate that must have signed the app, hex."""
    libraries: Path | None = None
    """A list of native libraries: a line each, a SHA-256 or a GNU build id and the library's name."""
