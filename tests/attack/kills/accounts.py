"""What a run left behind, less what only the clock and chance decide, so that two runs can be compared."""

import json
import re
from pathlib import Path
from typing import Any

from pipeline.core.files import sha256_file

# The pages for people and the bill of materials repeat how fast it was; what they say otherwise is the verdict's.
_PRESENT = {"report.html", "junit.xml", "summary.md", "verdict.txt", "model.cdx.json"}
_CLOCK = re.compile(r"seconds|ms|ms_median|images_per_second|.*runtime|.*_per_second|threads|time|created")


def account(run: Path) -> dict[str, Any]:
    """Path -> what it holds, of every file and folder in a run's folder; the locks, which stay, left out."""
    return {
        path.relative_to(run).as_posix(): _content(path)
        for path in sorted(run.rglob("*"))
        if path.name != ".lock" and not (path.is_dir() and any(path.iterdir()))
    }


def _content(path: Path) -> Any:
    if path.is_dir():
        return "an empty folder"
    if path.name in _PRESENT:
        return path.stat().st_size > 0
    if path.name == "log.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        # What transformers says at the very end is of the last process alone, its mean loss too.
        return [_timeless(line) for line in lines if "train_runtime" not in line]
    if path.suffix == ".jsonl":
        return rows(path)
    if path.parent.name == "stages" and path.suffix == ".json":
        # Hashes of files with times in them are no more equal than these.
        return _timeless({key: value for key, value in _json(path).items() if key == "result"})
    if path.name == "verdict.json":
        return _timeless(_json(path) | {"evidence": None})  # digests of files with times in them
    if path.name == "adapter_config.json" and "checkpoints" not in path.parts:  # there it may be cut short
        return _json(path) | {"base_model_name_or_path": None}  # the run's own folder, unless it was taken from another
    if path.name == "manifest.json":
        # The digest of the training stage is over its log, which has times.
        return _json(path) | {"inputs": sorted(_json(path)["inputs"])}
    return sha256_file(path)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path: Path) -> dict[str, Any]:
    """Key -> row of a file of results or of a ladder, of those that are whole; none where there is no such file.

    Neither header nor what closes the file is a row.
    """
    found = {}
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if line.endswith(b"\n"):
            row = json.loads(line)
            if "image_id" in row:
                found[row["key"]] = _timeless(row)
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if not _CLOCK.fullmatch(key)}
    if isinstance(value, list):
        return [_timeless(one) for one in value]
    return value


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What is not as in an undisturbed run, a line each."""
    lines = [f"left over: {path}" for path in sorted(found.keys() - wanted.keys())]
    lines += [f"missing: {path}" for path in sorted(wanted.keys() - found.keys())]
    return lines + [
        f"different: {path}" for path in sorted(found.keys() & wanted.keys()) if found[path] != wanted[path]
    ]
