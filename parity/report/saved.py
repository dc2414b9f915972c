"""Reports made again from what a run left on the disk."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from parity.compare.ladder import Ladder
from parity.judge.beside import find_ladder
from parity.judge.verdict import SCHEMA_VERSION, Verdict
from parity.results import Results, read_results
from pipeline.core.errors import UserError


@dataclass(frozen=True)
class Saved:
    """What a parity folder holds."""

    folder: Path
    verdict: Verdict
    reference: Results
    candidate: Results
    ladder: Ladder | None
    image_of: Callable[[str], bytes | None]


def read_saved(path: Path) -> Saved:
    """Read a run's folder, or the ``parity`` folder in it.

    The pictures come from ``dataset`` beside the parity folder; without it the report has none. Raises UserError where
    the verdict or a side's results are missing, cannot be read, or are not of one run.
    """
    folder = path if (path / "verdict.json").exists() else path / "parity"
    verdict = read_verdict(folder / "verdict.json")
    sides = []
    for header in (verdict.reference_header, verdict.candidate_header):
        file = folder / f"{header.side}.results.jsonl"
        results = read_results(file)
        if results.header != header:
            raise UserError(
                f"{file} is of another run than {folder / 'verdict.json'}: run `parity run` or `parity judge` again"
            )
        sides.append(results)
    reference, candidate = sides
    ladder = find_ladder(None, folder / f"{reference.header.side}.results.jsonl", reference, [candidate])
    return Saved(folder, verdict, reference, candidate, ladder, dataset_images(folder.parent / "dataset"))


def read_verdict(path: Path) -> Verdict:
    """Read ``verdict.json``. Raises UserError where it is missing, not a verdict, or of another schema version."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"verdict {path} cannot be read: {error.strerror}; run `parity run` first") from None
    except ValueError as error:
        raise UserError(f"verdict {path} is not valid JSON: {error}") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"verdict {path} has schema version {version}, and this program reads version {SCHEMA_VERSION}: judge again"
        )
    try:
        return Verdict.model_validate_json(json.dumps(data))
    except ValidationError as error:
        item = error.errors()[0]
        where = ".".join(str(part) for part in item["loc"])
        raise UserError(f"{path} is not a verdict: {where}: {item['msg']}; judge again") from None


def dataset_images(dataset: Path) -> Callable[[str], bytes | None]:
    """Key -> the bytes of an image's file; None where the dataset does not have it."""
    paths: dict[str, Path] = {}
    try:
        for name in ("val.json", "test.json"):
            if name == "test.json" and not (dataset / name).exists():
                continue
            for record in json.loads((dataset / name).read_text(encoding="utf-8")):
                if key := record.get("rgb_sha256"):
                    paths[key] = dataset / record["image_path"]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        paths.clear()  # no dataset, or none of ours: the page says that it has no pictures

    def image_of(key: str) -> bytes | None:
        try:
            return paths[key].read_bytes()
        except (KeyError, OSError):
            return None

    return image_of
