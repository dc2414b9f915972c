"""What a run left on the disk, judged again: a report is never made of a verdict that its files do not give."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import ValidationError

from parity.compare.ladder import Ladder
from parity.judge.baseline import BASELINE, read_baseline
from parity.judge.beside import find_contract, find_ladder
from parity.judge.bundle import HALVES, bundle_gate, halves_in
from parity.judge.causes import CAUSES, read_causes
from parity.judge.goldens import checks_of
from parity.judge.judge import as_judged, judge
from parity.judge.mistakes import CanvasOf, Pixels
from parity.judge.phone import judge_phone
from parity.judge.plan import PLAN, read_plan
from parity.judge.verdict import SCHEMA_VERSION, GateResult, Verdict
from parity.results import Header, Results, read_results
from parity.terms import Terms
from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.files import read_regular
from pipeline.core.wording import first_fault
from pipeline.dataset.records import STORED_FORMATS

DEVICE = "device"
"""What a phone's side is called."""
PHOTOS = "photos.json"
"""Beside a check's results: key -> where the picture's file is, seen from that folder."""


@dataclass(frozen=True)
class Saved:
    """What a parity folder holds."""

    folder: Path
    verdict: Verdict
    contract: Terms
    reference: Results
    candidate: Results
    ladder: Ladder | None
    image_of: Callable[[str], bytes | None]


def read_saved(path: Path) -> Saved:
    """Read a run's folder, or the ``parity`` folder in it, and judge again what it holds.

    The pictures come from ``dataset`` beside the parity folder; without it the report has none. Raises UserError where
    the verdict or a side's results are missing, cannot be read, or are not of one run; where the verdict is stale: not
    what the saved results give, or not of the GGUFs in ``bundle`` beside the parity folder.
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
    path = folder / f"{reference.header.side}.results.jsonl"
    ladder = find_ladder(None, path, reference, [candidate])
    contract = find_contract(None, path, reference)
    _check_stale(folder, verdict, _judge_again(folder, verdict, contract, reference, candidate, ladder))
    _check_bundle(folder, verdict)
    shown = as_judged(reference, candidate, contract)
    images = photo_images(folder) if (folder / PHOTOS).exists() else dataset_images(folder.parent / "dataset")
    return Saved(folder, verdict, contract, *shown, ladder, images)


def _judge_again(
    folder: Path, verdict: Verdict, contract: Terms, reference: Results, candidate: Results, ladder: Ladder | None
) -> Verdict:
    """What the files give now, under the limits that the verdict was given under."""
    held = any(gate.stage == "baseline" for gate in verdict.gates)
    baseline = read_baseline(folder / BASELINE) if held else None
    rest = ladder, verdict.gate, baseline, read_causes(folder / CAUSES)
    if "plan" in verdict.evidence and isinstance(contract, Contract):
        side = verdict.audit.device_header.side if verdict.audit else DEVICE
        device = read_results(folder / f"{side}.results.jsonl", unfinished=True)
        checks = _checks(folder, verdict, contract, device.header)
        made = judge_phone(reference, candidate, device, read_plan(folder / PLAN), contract, checks, *rest)
    else:
        made = judge(reference, candidate, contract, _checks(folder, verdict, contract, candidate.header), *rest)
    return made.model_copy(update={"runs": verdict.runs})


def _checks(folder: Path, verdict: Verdict, contract: Terms, judged: Header) -> list[GateResult]:
    """The gates that are tried apart from the sides, tried again; a bundle is looked for beside the folder."""
    held = any(gate.stage == "bundle" for gate in verdict.gates)
    return checks_of(contract, judged) + ([bundle_gate(judged, folder.parent / "bundle")] if held else [])


def _check_stale(folder: Path, verdict: Verdict, made: Verdict) -> None:
    """Raise UserError where a verdict is not the one that its files give."""
    if made == verdict:
        return
    if made.status != verdict.status:
        why = f"it says {verdict.status}, and the files beside it give {made.status} ({made.headline})"
    else:
        names = [name for name in Verdict.model_fields if getattr(made, name) != getattr(verdict, name)]
        verb = "is" if len(names) == 1 else "are"
        why = f"its {' and '.join(names[:3])} {verb} not what the files beside it give"
    raise UserError(f"{folder / 'verdict.json'} is stale: {why}; run `parity run` or `parity judge` again")


def _check_bundle(folder: Path, verdict: Verdict) -> None:
    """Raise UserError where the GGUFs beside a run's results are not those that were judged."""
    bundle = folder.parent / "bundle"
    judged = verdict.candidate_header.model
    if not bundle.is_dir() or judged.keys() != HALVES:
        return
    found = halves_in(bundle)
    others = [name for half, (name, value) in found.items() if value != judged[half]]
    if others or found.keys() != judged.keys():
        what = (
            f"{bundle / others[0]} is not a file that was judged"
            if others
            else f"{bundle} lacks a file that was judged"
        )
        raise UserError(f"{folder / 'verdict.json'} is stale: {what}; run `parity run` again")


def read_verdict(path: Path) -> Verdict:
    """Read ``verdict.json``. Raises UserError where it is missing, not a verdict, or of another schema version."""
    try:
        data = json.loads(read_regular(path))
    except OSError as error:
        raise UserError(f"verdict {path} cannot be read: {error.strerror}; run `parity run` first") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"verdict {path} is not valid JSON: {error}") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"verdict {path} has schema version {version}, and this program reads version {SCHEMA_VERSION}: judge again"
        )
    try:
        return Verdict.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise UserError(f"{path} is not a verdict: {first_fault(error)}; judge again") from None


def canvases(image_of: Callable[[str], bytes | None]) -> CanvasOf:
    """The same pictures decoded."""

    def canvas_of(key: str) -> Pixels | None:
        data = image_of(key)
        try:
            return (
                None
                if data is None
                else np.asarray(Image.open(io.BytesIO(data), formats=STORED_FORMATS).convert("RGB"))
            )
        except Exception:  # damaged files raise nearly anything
            return None

    return canvas_of


def photo_images(folder: Path) -> Callable[[str], bytes | None]:
    """Key -> the bytes of a check's picture; None where its file is gone."""
    try:
        places = json.loads((folder / PHOTOS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        places = {}

    def image_of(key: str) -> bytes | None:
        try:
            return (folder / places[key]).read_bytes()
        except (OSError, KeyError, TypeError, ValueError):
            return None

    return image_of


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
