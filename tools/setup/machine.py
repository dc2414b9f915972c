"""Which machines and which Pythons the set-up is for. Standard library only, and importable everywhere, to say no."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

PYTHONS = ((3, 11), (3, 12), (3, 13))
"""What the locks were made for, the best tried first."""
_NAMES = {"darwin": "macOS", "win32": "Windows", "linux": "Linux"}


def refusal(system: str, processor: str) -> str | None:
    """Why the set-up cannot work on ``system`` (``sys.platform``) with ``processor`` (``platform.machine()``), and what
    can be done there instead; None where it can."""
    if system == "linux" and processor == "x86_64":
        return None
    # An engine on an ARM processor takes images for ARM unless it is told otherwise.
    emulated = "DOCKER_DEFAULT_PLATFORM=linux/amd64 " if processor != "x86_64" else ""
    instead = {
        "darwin": f"use the containers, through Docker Desktop (`{emulated}make docker-parity`)",
        "win32": "work inside WSL 2, or use the containers there, through Docker Desktop (`make docker-parity`)",
    }.get(system, "use such a machine, which the containers are for, too")
    return f"the locks are for Linux on x86-64 and this is {_NAMES.get(system, system)} on {processor}: {instead}"


def named(versions: Sequence[tuple[int, int]]) -> str:
    """``3.11, 3.12 or 3.13``."""
    texts = [f"{major}.{minor}" for major, minor in versions]
    return f"{', '.join(texts[:-1])} or {texts[-1]}"


def python_version(program: str) -> tuple[int, int] | None:
    """The version of the interpreter ``program``; None where it is none, or a stand-in for one that is not there."""
    probe = [program, "-c", "import sys; print('%d %d' % sys.version_info[:2])"]
    try:
        answer = subprocess.run(probe, capture_output=True, text=True, check=False).stdout.split()
        major, minor = map(int, answer)
    except (OSError, ValueError):
        return None
    return major, minor


def find_python(versions: Sequence[tuple[int, int]] = PYTHONS) -> str | None:
    """An interpreter on the PATH of one of ``versions``, the first that is there."""
    for version in versions:
        program = shutil.which(f"python{version[0]}.{version[1]}")
        if program and python_version(program) == version:
            return program
    return None
