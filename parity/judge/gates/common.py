"""What the gates share."""

from collections.abc import Sequence

from parity.compare.ladder import RUNGS, Ladder, Measured, Rung
from parity.judge.verdict import GateResult, GateStatus, Worst
from parity.results import Row

EXAMPLES = 3
"""How many images a gate's detail names."""
MAX_WORST = 5
NO_LADDER = "no ladder was walked: `parity run` writes one beside the results"

Pair = tuple[Row, Row]
"""Reference and candidate row of one image."""

_RUNG_OF: dict[str, Rung] = {stage: rung for rung, stage in RUNGS.items()} | {"agreement": "S7"}


def result(
    stage: str,
    status: GateStatus,
    detail: str,
    cause: str = "",
    fix: str = "",
    *,
    metric: str = "",
    value: float | None = None,
    limit: float | None = None,
    floor: float | None = None,
    samples: int = 0,
    beyond: int = 0,
    worst: tuple[Worst, ...] = (),
) -> GateResult:
    """A gate's result at its rung of the ladder."""
    return GateResult(
        stage=stage,
        rung=_RUNG_OF.get(stage),
        status=status,
        detail=detail,
        cause=cause,
        fix=fix,
        metric=metric,
        value=value,
        limit=limit,
        floor=floor,
        samples=samples,
        beyond=beyond,
        worst=worst,
    )


def greatest(values: Sequence[tuple[float, str, str]]) -> tuple[Worst, ...]:
    """The greatest of (value, image id, key), those of 0 left out."""
    found = sorted((item for item in values if item[0] > 0), key=lambda item: (-item[0], item[1], item[2]))
    return tuple(Worst(image_id=image_id, key=key, value=value) for value, image_id, key in found[:MAX_WORST])


def named(image_ids: Sequence[str]) -> str:
    """A few of them, in words."""
    names = ", ".join(image_ids[:EXAMPLES])
    return f"for example {names}" if len(image_ids) > EXAMPLES else names


def short(digest: str) -> str:
    """A digest as a person compares it."""
    return digest[:12]


def measured_rows(ladder: Ladder | None) -> list[Measured]:
    """By image id; none without a ladder."""
    return list(ladder.rows.values()) if ladder else []
