"""A committed baseline: what a candidate reached once, so that getting worse is a failure of its own.

Written by ``parity baseline``, small and without a date: the same results give the same bytes.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from parity.judge.verdict import Status, Verdict
from parity.results import Results
from pipeline.core.errors import UserError
from pipeline.core.files import read_regular, write_json
from pipeline.core.jsonl import Hex
from pipeline.core.settings import Frozen
from pipeline.core.wording import first_fault

BASELINE = "baseline.json"
"""In a run's folder: the baseline that its verdict was held against."""
KEY_DIGITS = 16
"""Hex digits of a key that a baseline keeps: 64 bits tell 10,000 images apart with a chance of 3e-12 to err."""
_MEASURED: tuple[Literal["embeddings"], Literal["logits"]] = ("embeddings", "logits")

Key16 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Figure(Frozen):
    """What a gate measured."""

    metric: str
    """The same number only where the words are the same."""
    value: float = Field(ge=0, allow_inf_nan=False)


class Baseline(Frozen):
    """One candidate's results, as far as a later one is held against them."""

    schema_version: Literal[1] = 1
    kind: Literal["baseline"] = "baseline"
    status: Status
    """Of the verdict at that time."""
    contract_sha256: Hex
    dataset_sha256: Hex
    side: str
    model: dict[str, Hex]
    versions: dict[str, str]
    n: int = Field(ge=1)
    accuracy: float = Field(ge=0, le=1, allow_inf_nan=False)
    measured: dict[Literal["embeddings", "logits"], Figure]
    """Stage -> its number; one that was not measured is left out."""
    correct: dict[Key16, bool]
    """First 16 hex digits of an image's key -> whether the candidate was right."""


def make_baseline(verdict: Verdict, candidate: Results) -> Baseline:
    """A baseline out of a candidate and its verdict. Raises UserError where the verdict is REFUSED."""
    if verdict.status == "REFUSED":
        raise UserError(
            f"no baseline can be made of sides that do not belong together ({verdict.headline}): {verdict.fix}"
        )
    header = candidate.header
    return Baseline(
        status=verdict.status,
        contract_sha256=header.contract_sha256,
        dataset_sha256=header.dataset_sha256,
        side=header.side,
        model=header.model,
        versions=header.versions,
        n=verdict.n,
        accuracy=verdict.candidate.accuracy,
        measured={
            stage: Figure(metric=gate.metric, value=gate.value)
            for gate in verdict.gates
            for stage in _MEASURED
            if gate.stage == stage and gate.value is not None
        },
        correct={key[:KEY_DIGITS]: row.correct for key, row in sorted(candidate.rows.items())},
    )


def write_baseline(baseline: Baseline, path: Path) -> None:
    """Write it atomically."""
    write_json(path, baseline.model_dump(mode="json"))


def read_baseline(path: Path) -> Baseline:
    """Read a baseline. Raises UserError: unreadable, not a baseline, another schema version."""
    try:
        return Baseline.model_validate_json(read_regular(path))
    except OSError as error:
        raise UserError(f"baseline {path} cannot be read: {error.strerror}; `parity baseline` writes one") from None
    except ValidationError as error:
        raise UserError(f"{path} is not a baseline ({first_fault(error)}): write it with `parity baseline`") from None
