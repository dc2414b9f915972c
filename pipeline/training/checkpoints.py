"""Checkpoints that survive a kill at any moment, the middle of a save included.

transformers writes a checkpoint file by file into its final folder. A checkpoint counts only once its marker stands,
which is written last and lists every file's hash; a folder without one is a save that was cut short and is removed.
Older checkpoints are removed only after a newer one counts, so there is always one to resume from; each goes at once,
so that a kill leaves no half of one.
"""

import json
import re
from pathlib import Path
from typing import Any

from pipeline.core.files import read_regular, remove, sha256_file, write_json

MARKER = "complete.json"


def step_of(folder: Path) -> int:
    """The optimizer steps that a checkpoint was saved after."""
    return int(folder.name.removeprefix("checkpoint-"))


def _folders(root: Path) -> list[Path]:
    return sorted((path for path in root.glob("checkpoint-*") if re.fullmatch(r"\w+-\d+", path.name)), key=step_of)


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is none that can be read."""
    try:
        value = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def mark_complete(folder: Path) -> None:
    """Declare a checkpoint folder whole."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    write_json(folder / MARKER, {str(path.relative_to(folder)): sha256_file(path) for path in files})


def is_complete(folder: Path) -> bool:
    """Whether the marker stands and every file has the hash that it lists."""
    listed = _read_object(folder / MARKER)
    try:
        return bool(listed) and all(sha256_file(folder / name) == digest for name, digest in listed.items())
    except (OSError, ValueError):  # a name that is none
        return False


def last_complete(root: Path) -> Path | None:
    """The newest whole checkpoint under ``root`` that has the best one so far beside it; broken ones are removed."""
    whole: dict[int, Path] = {}
    for folder in _folders(root):
        if is_complete(folder):
            whole[step_of(folder)] = folder
        else:
            remove(folder)
    for folder in reversed(whole.values()):
        if _read_object(folder / "trainer_state.json").get("best_global_step") in (None, *whole):
            return folder
    return None


def keep_only(root: Path, steps: set[int]) -> None:
    """Remove every checkpoint but those of ``steps``."""
    for folder in _folders(root):
        if step_of(folder) not in steps:
            remove(folder)
