"""Checkpoints that survive a kill at any moment, the middle of a save included.

transformers writes a checkpoint file by file into its final folder. A checkpoint counts only once its marker stands,
which is written last and lists every file's hash; a folder without one is a save that was cut short and is removed.
Older checkpoints are removed only after a newer one counts, so there is always one to resume from.
"""

import json
import shutil
from pathlib import Path

from pipeline.core.files import sha256_file, write_json

MARKER = "complete.json"


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def _folders(root: Path) -> list[Path]:
    return sorted(root.glob("checkpoint-*"), key=_step)


def mark_complete(folder: Path) -> None:
    """Declare a checkpoint folder whole."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    write_json(folder / MARKER, {str(path.relative_to(folder)): sha256_file(path) for path in files})


def is_complete(folder: Path) -> bool:
    """Whether the marker stands and every file has the hash that it lists."""
    try:
        listed = json.loads((folder / MARKER).read_text())
        return all(sha256_file(folder / name) == digest for name, digest in listed.items())
    except (OSError, ValueError):
        return False


def last_complete(root: Path) -> Path | None:
    """The newest whole checkpoint under ``root``; half-written ones are removed."""
    whole = None
    for folder in _folders(root):
        if is_complete(folder):
            whole = folder
        else:
            shutil.rmtree(folder)
    return whole


def keep_only(root: Path, steps: set[int]) -> None:
    """Remove every checkpoint but those of ``steps``."""
    for folder in _folders(root):
        if _step(folder) not in steps:
            shutil.rmtree(folder)
