"""Why an image's answer changed: within what rounding may do, or not."""

import math

from parity.compare.ladder import RUNGS
from parity.judge.verdict import Verdict
from parity.report.rows import Pair, probabilities

BEFORE_THE_ANSWER = ("S0", "S1", "S2", "S3", "S4", "S5")
"""Stages whose limits say what rounding may do; behind them stands the answer itself."""


def why(pair: Pair, verdict: Verdict) -> str:
    """One sentence on a flip.

    The KL of an image's next token within its limit bounds what any probability can have moved (Pinsker's inequality:
    by the root of half of it), so a flip behind such an image can only be a near tie.
    """
    if pair.parted in BEFORE_THE_ANSWER:
        return f"diverged at {pair.parted} {RUNGS[pair.parted]}: not explained by noise"
    if pair.measured is None or verdict.limits is None:
        return "not known: no ladder was walked"
    shares = [dict(zip(verdict.labels, probabilities(row, verdict.labels), strict=True)) for row in
              (pair.reference, pair.candidate)]  # fmt: skip
    a, b = pair.reference.label, pair.candidate.label
    if a is None or b is None or a == b or any(side.get(one) is None for side in shares for one in (a, b)):
        return "all stages within their limits: a near tie between tokens"
    said = " against ".join(f"{100 * (side[a] or 0):.0f}/{100 * (side[b] or 0):.0f}" for side in shares)
    ours, theirs = ((side[a] or 0) - (side[b] or 0) for side in shares)
    # Twice what one probability can have moved.
    widest = 2 * math.sqrt(verdict.limits.logits_each / 2)
    if max(abs(ours), abs(theirs)) <= widest:
        return f"near tie: {a}/{b} {said} %, within rounding"
    return f"{a}/{b} {said} %: not explained by noise"
