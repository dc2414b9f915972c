"""What came out where answers are open: how far the candidate goes along with the reference's answers, and how well
either meets the answers expected."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from parity.compare.ladder import Ladder
from parity.judge.gates.common import NO_LADDER, Pair, greatest, measured_rows, named, result
from parity.judge.statistics import wilson
from parity.judge.verdict import GateResult
from parity.terms import CheckTerms


def agreement(pairs: Sequence[Pair], ladder: Ladder | None, terms: CheckTerms) -> GateResult:
    """S7: given the reference's answer so far, the candidate puts the same token first.

    The share of a picture's tokens, and of these the mean. Its interval is Wilson's over the pictures: a share varies
    at most as a yes or no does (Bhatia and Davis), so that is wide enough, and has a width even where all agree.
    """
    stage = "agreement"
    rows = [row for row in measured_rows(ladder) if row.answer]
    if len(rows) < len(pairs):
        # Nothing else compares open answers, so without this one a verdict would pass on nothing.
        return result(
            stage,
            "undecided",
            f"{len(pairs) - len(rows)} of {len(pairs)} answers were not followed token by token",
            NO_LADDER if not rows else "the ladder beside the results has no answer for some of the images",
            "run `parity check` again: it follows each answer and writes what it finds beside the results",
        )
    shares = [1 - row.answer.differ / row.answer.steps for row in rows if row.answer]
    mean, floor = fmean(shares), terms.open_gate.agreement
    low, high = wilson(mean * len(rows), len(rows))  # type: ignore[arg-type]
    equal = sum(a.text == b.text for a, b in pairs)
    tokens = sum(row.answer.steps for row in rows if row.answer)
    detail = (
        f"{mean:.1%} of {tokens} tokens agree in the mean over {len(rows)} pictures, 95 % interval {low:.1%} to"
        f" {high:.1%}, at least {floor:.0%} wanted; {equal} of {len(pairs)} answers are equal to the letter"
    )
    apart = [row for row in rows if row.answer and row.answer.differ]
    numbers: dict[str, Any] = {
        "metric": "share of tokens whose first choice differs, upper end of its 95 % interval",
        "value": 1 - low,
        "limit": 1 - floor,
        "samples": len(rows),
        "beyond": len(apart),
        "worst": greatest([(1 - share, row.image_id, row.key) for share, row in zip(shares, rows, strict=True)]),
    }
    if high < floor:
        return result(
            stage,
            "red",
            f"{detail}; {named([row.image_id for row in apart])}",
            "the candidate goes on differently from the reference: see the first stage that is red",
            "fix the first red stage; where none is, the quantization is too coarse for open answers",
            **numbers,
        )
    if low < floor:
        needed = _pictures_needed(mean, floor)
        enough = "no number of pictures would do at this share" if needed is None else f"about {needed} pictures would"
        return result(
            stage,
            "undecided",
            detail,
            f"{len(rows)} pictures are too few to show that {floor:.0%} of the tokens agree: {enough}",
            "check on more pictures, or allow a lower --agreement",
            **numbers,
        )
    return result(stage, "green", detail, **numbers)


def _pictures_needed(mean: float, floor: float) -> int | None:
    """Pictures at which the interval's lower end reaches ``floor``, were the share to stay."""
    if mean <= floor:
        return None
    return next(n for n in range(1, 100_000) if wilson(mean * n, n)[0] >= floor)  # type: ignore[arg-type]


def score(pairs: Sequence[Pair], terms: CheckTerms, margin_points: float) -> GateResult:
    """The mean scores against the expected answers are at most the margin apart, either way.

    The interval of the mean difference is Student's over the pictures (paired), at least as wide as that of one picture
    in ``n`` which differs by a whole score.
    """
    from scipy.stats import t

    stage, n = "score", len(pairs)
    both = [(a.score, b.score) for a, b in pairs if a.score is not None and b.score is not None]
    if len(both) < n:
        return result(
            stage,
            "undecided",
            f"{n - len(both)} of {n} pictures have no score",
            "a score was asked for, and the results do not give one for every picture",
            "write a score into each row of both results, or judge without a metric",
        )
    ours, theirs = (100 * fmean(pair[side] for pair in both) for side in (0, 1))
    gaps = [100 * (y - x) for x, y in both]
    spread = stdev(gaps) / math.sqrt(n) if n > 1 else math.inf
    half = float(t.ppf(0.975, max(n - 1, 1))) * max(spread, 100 / n / math.sqrt(n))
    gap = theirs - ours
    detail = (
        f"{terms.metric} {ours:.2f} and {theirs:.2f} of 100 over {n} pictures: {gap:+.2f} points, 95 % interval"
        f" {gap - half:+.2f} to {gap + half:+.2f}, {margin_points:g} are allowed either way"
    )
    numbers: dict[str, Any] = {
        "metric": f"points between the means of {terms.metric}",
        "value": abs(gap),
        "limit": margin_points,
        "samples": n,
        "beyond": sum(x != y for x, y in both),
        "worst": greatest([(abs(gap), a.image_id, a.key) for gap, (a, _) in zip(gaps, pairs, strict=True)]),
    }
    if abs(gap) > margin_points:
        return result(
            stage,
            "red",
            detail,
            "the answers match the expected ones more or less often: see the first stage that is red",
            "fix the first red stage; where none is, the quantization is too coarse",
            **numbers,
        )
    if gap - half < -margin_points:
        return result(
            stage,
            "undecided",
            detail,
            f"{n} pictures are too few to rule out that the candidate is worse by {margin_points:g} points",
            "check on more pictures, or allow a larger --margin",
            **numbers,
        )
    return result(stage, "green", detail, **numbers)
