"""The letterbox held against Android's own graphics code, as a gate of every run.

``android_fixtures/goldens`` holds small files with the hashes that Android gave. A run that reproduces them feeds both
sides what the phone would make of a photo; one that does not would compare two models on pictures no phone sees.
"""

import json
from pathlib import Path

from parity.judge.verdict import GateResult
from parity.results import Header
from parity.terms import Terms
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.letterbox import letterbox_file

HOSTS = ("hf", "llamacpp")
"""Sides that run the letterbox that is tried here."""
GOLDENS = Path(__file__).parent.parent.parent / "android_fixtures" / "goldens"


def checks_of(terms: Terms, header: Header | None = None) -> list[GateResult]:
    """The gates that are tried apart from the sides: the letterbox, where there is one.

    ``header``: of the side to judge. A phone's own letterbox is not tried by what runs here.
    """
    if not terms.image:
        return []
    gate = letterbox_gate()
    if header is not None and header.side not in HOSTS and not gate.red:
        detail = f"on {header.side}; on this machine {gate.detail}"
        return [gate.model_copy(update={"status": "not measured", "detail": detail})]
    return [gate]


def letterbox_gate(folder: Path = GOLDENS) -> GateResult:
    """Letterbox every file that the phone's arithmetic must reproduce and compare the bytes' hashes."""
    cases = json.loads((folder / "goldens.json").read_text(encoding="utf-8"))["files"]
    exact, wrong = 0, []
    for case in cases:
        if "letterbox" not in case:
            continue
        try:
            result = letterbox_file(folder / "files" / case["file"])
        except UserError:
            continue  # what Android shows and this project refuses (half a JPEG); the tests name each of them
        if result.exact:
            exact += 1
            if sha256_bytes(result.image.tobytes()) != case["letterbox"]["rgb_sha256"]:
                wrong.append(case["file"])
    if not wrong:
        return GateResult(stage="letterbox", status="green", detail=f"all {exact} of Android's own pictures reproduced")
    return GateResult(
        stage="letterbox",
        status="red",
        detail=f"{len(wrong)} of {exact} of Android's own pictures differ, {wrong[0]} among them",
        cause="pipeline/letterbox.py, or the Pillow under it, no longer makes the phone's pixels",
        fix="install the locked packages with `make setup`; if they are, `make test TESTS=tests/pipeline` says more",
    )
