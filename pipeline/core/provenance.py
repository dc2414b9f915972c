"""What went into a run and what came out of it: hashes, versions, machine."""

import os
import platform
import re
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.core.files import canonical_json, sha256_bytes, sha256_file
from pipeline.core.toolchain import other_llama_cpp

PACKAGES = (
    "android-vlm-parity",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "safetensors",
    "numpy",
    "pillow",
    "llama-cpp-python",
)


def folder_hashes(folder: Path, follow_links: bool = True) -> dict[str, str]:
    """Relative path -> SHA-256 of every file under ``folder``, sorted.

    A file that cannot be read has the reason in place of its hash, and so has a link unless they are followed; the
    names of both are valid UTF-8 whatever the disk says. What is neither a file nor a folder is left out.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix().encode(errors="backslashreplace").decode()
        if path.is_symlink() and not follow_links:
            found[name] = "link to " + os.readlink(path).encode(errors="backslashreplace").decode()
        elif os.path.isfile(path):
            try:
                found[name] = sha256_file(path)
            except OSError as error:
                found[name] = f"unreadable: {error.strerror}"
    return found


def weights_digest(model: Path) -> str:
    """SHA-256 over a model folder's weights alone: what every file made from them carries."""
    return digest({path.name: sha256_file(path) for path in sorted(model.glob("*.safetensors"))})


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return sha256_bytes(canonical_json(value))


def versions() -> dict[str, str]:
    """Versions of the packages that determine a result, those not installed left out; ``llama.cpp`` where another tree
    than the pinned one runs."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    other = other_llama_cpp()
    return found | ({"llama.cpp": other} if other else {})


def machine(proc: Path = Path("/proc")) -> dict[str, str]:
    """The machine that a result was made on: ``cpu``, ``cores``, ``system`` and, where there is one, ``gpu`` and
    ``gpu_driver``. ``proc``: the kernel's own account of it; NVIDIA's driver has its part there, as torch need not be
    loaded for it.
    """
    model = platform.processor() or platform.machine()
    for line in _lines(proc / "cpuinfo"):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    found = {"cpu": model, "cores": str(os.cpu_count()), "system": f"{platform.system()} {platform.machine()}"}
    return found | _gpus(proc / "driver" / "nvidia")


def _gpus(driver: Path) -> dict[str, str]:
    names = Counter(
        line.partition(":")[2].strip()
        for path in sorted(driver.glob("gpus/*/information"))
        for line in _lines(path)
        if line.startswith("Model:")
    )
    if not names:
        return {}
    found = {"gpu": ", ".join(f"{count} x {name}" if count > 1 else name for name, count in names.items())}
    # NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023
    version = re.search(r"Kernel Module\D.*?\s(\d+(?:\.\d+)+)\s", " ".join(_lines(driver / "version")))
    return found | ({"gpu_driver": version[1]} if version else {})


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
