"""What a verdict says in sentences: the headline, and which red gates only follow from an earlier one."""

import math
from collections.abc import Sequence

from parity.judge.verdict import Difference, GateResult, Side, Status
from parity.results import display_name

_DIFFERENT = {
    "runtime": "{b} does not run as the contract says",
    "letterbox": "the letterbox does not match Android's",
    "decoded": "{b} decodes the pictures differently",
    "pixels": "{b} gets different pixels",
    "tiles": "{b} resizes or cuts the pictures differently",
    "tokens": "{b} gets a different prompt",
    "embeddings": "{b}'s vision half computes different embeddings",
    "logits": "{b}'s language half computes different logits",
    "generation": "{b} generates different tokens",
    "answers": "labels are read by different rules",
    "accuracy": "{b}'s accuracy differs by more than {margin:g} points",
    "classes": "{b} is worse at some classes",
    "agreement": "{b}'s answers diverge",
    "score": "{b}'s score differs by more than {margin:g} points",
    "baseline": "{b} is worse than its baseline",
    "audit": "{b} loses too many of the pictures that the host gets right",
}
"""Gate -> what it means for whoever ships when it is red."""

FOLLOWS = "follows from "
"""How the cause of a gate begins that is red because of an earlier one."""
_LADDER = (
    *("decoded", "pixels", "tiles", "tokens", "embeddings", "logits", "generation", "agreement", "answers", "score"),
    *("accuracy", "classes", "baseline"),
)
"""The gates that work on what the ones before them let through."""
_INPUTS = ("decoded", "pixels", "tiles", "tokens")
"""What is the same whatever an engine computes."""


def what_is_wrong(stage: str, name: str, margin_points: float) -> str:
    """What a red gate means, in a few words; ``name``: of the side that was judged."""
    return _DIFFERENT.get(stage, "{b} differs at " + stage).format(b=name, margin=margin_points)


def headline(
    status: Status,
    bad: GateResult | None,
    sides: tuple[Side, Side],
    difference: Difference,
    labelled: bool,
    images: str,
    equal: int,
    walked: Sequence[GateResult],
) -> str:
    """The verdict in one sentence. ``images``: how many of which; ``equal``: answers equal to the letter."""
    ours, theirs = sides
    name = display_name(theirs.side)
    if status == "REFUSED":
        return f"Nothing was judged: {bad.detail if bad else ''}"
    if status == "INCONCLUSIVE":
        return f"Undecided: {bad.cause if bad else ''}"
    if bad is not None:
        before, after = (f"{100 * side.accuracy:.1f}" for side in (ours, theirs))
        moved = f"accuracy {before} to {after} %" if before != after else f"accuracy unchanged, {before} %"
        found = moved if labelled else f"{equal} of {images} answered alike"
        return f"Do not ship: {what_is_wrong(bad.stage, name, difference.margin_points)} ({found})"
    if labelled:
        # Rounded up: it is a bound.
        worst, allowed = math.ceil(round(max(-difference.low, 0.0) * 10, 6)) / 10, difference.margin_points
        return f"OK to ship: {name} is at most {worst:.1f} points worse ({allowed:g} allowed), {images}"
    agreed = next((gate for gate in walked if gate.stage == "agreement" and gate.value is not None), None)
    if agreed is None or agreed.value is None or agreed.limit is None:
        return f"OK to ship: {name} answers as {display_name(ours.side)} does, {images}"
    return f"OK to ship: at least {1 - agreed.value:.1%} of the tokens agree ({1 - agreed.limit:.0%} wanted), {images}"


def follow(walked: Sequence[GateResult]) -> list[GateResult]:
    """The gates, where those that are red behind an earlier red one say so in place of a cause and a cure of their own.

    With other pixels everything behind them differs, whatever else is wrong: what a later stage would advise is a guess
    until the earlier one is green.
    """
    found, red = list[GateResult](), list[GateResult]()
    for gate in walked:
        told = gate
        if gate.red and gate.stage in _LADDER:
            # How an engine is set up changes nothing of what it is given.
            before = [one for one in red if one.stage != "runtime" or gate.stage not in _INPUTS]
            earlier = next((one for one in before if one.stage != "runtime"), before[0] if before else None)
            if earlier:
                where = f"{earlier.rung} {earlier.stage}" if earlier.rung else earlier.stage
                told = gate.model_copy(update={"cause": f"{FOLLOWS}{where}", "fix": ""})
        if gate.red and (gate.stage in _LADDER or gate.stage == "runtime"):
            red.append(gate)
        found.append(told)
    return found
