"""Every pin of the images: ``docker/versions.env``, and the files whose hashes stand in it.

``docker/Dockerfile`` carries the same values as the defaults of its arguments, so that it also builds without this
project's Makefile. :func:`check_pins` says where the two, or a lock and its hash, disagree; ``make docker-lock`` writes
them anew.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import sha256_file, write_text

VERSIONS = "docker/versions.env"
DOCKERFILE = "docker/Dockerfile"
HASHED = {
    "DEBIAN_BASE_LOCK_SHA256": "docker/debian/base.lock",
    "DEBIAN_BUILD_LOCK_SHA256": "docker/debian/build.lock",
    "BUILD_LOCK_SHA256": "locks/build.txt",
    "TRAIN_CPU_LOCK_SHA256": "locks/train-cpu.txt",
    "TRAIN_CUDA_LOCK_SHA256": "locks/train-cuda.txt",
    "SMOLLM2_LOCK_SHA256": "locks/smollm2.txt",
}
"""Pin -> the file that it is the SHA-256 of."""
HOST_ONLY = ("DEBIAN_EPOCH", "DEBIAN_BASE_LOCK_SHA256", "DEBIAN_BUILD_LOCK_SHA256", "BOOTSTRAP_SHA256")
"""Pins that no instruction of the Dockerfile needs."""
_ARGUMENTS = re.compile(r"(# -- Pins.*\n)((?:ARG .*\n)*)(# -- End of pins\n)")


def read_pins(root: Path) -> dict[str, str]:
    """The pins of ``docker/versions.env`` by name. Raises UserError where a line is not NAME=value."""
    path = root / VERSIONS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"the pins cannot be read: {path}: {error.strerror}") from None
    pins = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, value = line.partition("=")
        words = shlex.split(value)
        if not separator or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name) or len(words) != 1:
            raise UserError(f"{path}, line {number}: {line!r} is not NAME=value (quoted where it has spaces)")
        pins[name] = words[0]
    return pins


def dockerfile_pins(root: Path) -> dict[str, str]:
    """The defaults of the Dockerfile's arguments."""
    found = _ARGUMENTS.search((root / DOCKERFILE).read_text(encoding="utf-8"))
    if not found:
        raise UserError(f"{root / DOCKERFILE} has lost its block of pins: restore it, then run `make docker-lock`")
    return {name: shlex.split(value)[0] for name, value in re.findall(r"ARG (\w+)=(.*)", found[2])}


def build_arguments(pins: Mapping[str, str]) -> dict[str, str]:
    """The pins that the Dockerfile takes."""
    return {name: value for name, value in pins.items() if name not in HOST_ONLY}


def check_pins(root: Path) -> dict[str, str]:
    """The pins, after every one that can be checked here was. Raises UserError naming the first that is wrong."""
    pins = read_pins(root)
    for name, file in HASHED.items():
        if name not in pins:
            raise UserError(f"{root / VERSIONS} lacks {name}, the SHA-256 of {file}: run `make docker-lock`")
        try:
            got = sha256_file(root / file)
        except OSError as error:
            raise UserError(f"{file} is pinned in {VERSIONS} and cannot be read: {error.strerror}") from None
        if got != pins[name]:
            raise UserError(
                f"{file} has SHA-256 {got} and {VERSIONS} pins {pins[name]} ({name}): restore the file, or run"
                " `make docker-lock` if the change is meant"
            )
    for name, value in build_arguments(pins).items():
        there = dockerfile_pins(root).get(name)
        if there != value:
            raise UserError(
                f"{DOCKERFILE} has {name}={there} and {VERSIONS} has {value}: run `make docker-lock` to write it anew"
            )
    return pins


def write_pins(root: Path, changed: Mapping[str, str]) -> list[str]:
    """Write ``changed`` and the hashes of the locks into ``versions.env`` and the Dockerfile; returns what changed."""
    before = read_pins(root)
    after = {**before, **changed, **{name: sha256_file(root / file) for name, file in HASHED.items()}}
    text = (root / VERSIONS).read_text(encoding="utf-8")
    for name, value in after.items():
        line = f"{name}={shlex.quote(value) if re.search(r'[^A-Za-z0-9_.:/@-]', value) else value}"
        text, count = re.subn(rf"(?m)^{name}=.*$", lambda _, line=line: line, text)  # type: ignore[misc]
        text += "" if count else line + "\n"
    write_text(root / VERSIONS, text)
    arguments = "".join(f'ARG {name}="{value}"\n' for name, value in build_arguments(after).items())
    dockerfile = (root / DOCKERFILE).read_text(encoding="utf-8")
    write_text(root / DOCKERFILE, _ARGUMENTS.sub(lambda found: found[1] + arguments + found[3], dockerfile))
    return [name for name, value in after.items() if before.get(name) != value]
