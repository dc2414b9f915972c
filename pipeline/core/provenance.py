"""What went into a run and what came out of it: hashes, versions, machine."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.core.files import canonical_json, sha256_bytes, sha256_file

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


def folder_hashes(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file under ``folder``, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def weights_digest(model: Path) -> str:
    """SHA-256 over a model folder's weights alone: what every file made from them carries."""
    return digest({path.name: sha256_file(path) for path in sorted(model.glob("*.safetensors"))})


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return sha256_bytes(canonical_json(value))


def versions() -> dict[str, str]:
    """Versions of the packages that determine a result, those not installed left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """The machine that a result was made on."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {"cpu": model, "cores": str(os.cpu_count()), "system": f"{platform.system()} {platform.machine()}"}
