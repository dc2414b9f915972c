"""``make docker-lock``: writes every pin of the images anew, from what the package archives offer today."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import sha256_file, write_text
from pipeline.core.pinned import PYTHON_PACKAGE, read_lock
from tools.images.build import NAME, Options, build, folder
from tools.images.debian_base import LOCK, find_mirror, make_base, package_names, read_packages
from tools.images.engine import Engine
from tools.images.pins import read_pins, write_pins
from tools.setup.native import Console

_TAG = "lock"
_BASE = f"{NAME}/base:{_TAG}"


def _archive(root: Path) -> dict[str, str]:
    """The pins of llama.cpp's archive, from the lock that also pins it for the set-up without images."""
    pin = read_lock(root / "locks" / "cpu.txt")[PYTHON_PACKAGE]
    hashes = re.findall(r"sha256:([0-9a-f]{64})", pin.text)
    if len(hashes) != 1:
        raise UserError(f"locks/cpu.txt has {len(hashes)} files of {PYTHON_PACKAGE} and one was expected: the archive")
    name = f"{PYTHON_PACKAGE.replace('-', '_')}-{pin.version}.tar.gz"
    return {"LLAMA_ARCHIVE": name, "LLAMA_ARCHIVE_SHA256": hashes[0]}


def _compiler_lock(root: Path, engine: Engine, mirror: str) -> str:
    """SHA-256 and file name of every package that the ``compiler`` stage adds, as ``sha256sum`` reads them."""
    names = " ".join(package_names(root / "docker" / "debian" / "build.txt"))
    script = (
        f"echo 'deb {mirror} bookworm main' > /etc/apt/sources.list && apt-get -qq update >&2 &&"
        f" apt-get install -qq --no-install-recommends --print-uris -o Acquire::ForceHash=SHA256 {names}"
    )
    answer = engine.ask("run", "--rm", "--user", "0", "--entrypoint", "sh", _BASE, "-c", script)
    found = re.findall(r"^'[^']+' (\S+) \d+ SHA256:([0-9a-f]{64})$", answer, re.MULTILINE)
    if not found:
        raise UserError(f"apt named no packages for docker/debian/build.txt from {mirror}: {answer[:200]!r}")
    return "".join(f"{sha256}  {file}\n" for file, sha256 in sorted(found))


def write_locks(root: Path, engine: Engine, options: Options, console: Console) -> list[str]:
    """Write ``docker/debian/*.lock``, ``versions.env`` and the Dockerfile's pins; returns the names that changed."""
    mirror = find_mirror(options.mirror)
    tar = folder(root) / "base-lock.tar"
    console.step(f"making the base from {mirror}")
    make_base(root, tar, mirror, int(read_pins(root)["DEBIAN_EPOCH"]))
    write_text(root / LOCK, "\n".join(read_packages(tar)) + "\n")
    sha256 = sha256_file(tar)
    changed = write_pins(root, {"BOOTSTRAP_SHA256": sha256, **_archive(root)})
    tar.replace(folder(root) / f"base-{sha256[:12]}.tar")
    build(root, engine, ["base"], Options(base="bootstrap", mirror=mirror, ca=options.ca), console, tag=_TAG)
    console.step("asking for the compilers' packages")
    write_text(root / "docker" / "debian" / "build.lock", _compiler_lock(root, engine, mirror))
    return sorted({*changed, *write_pins(root, {})})
