"""What came out: answers, accuracy, classes, and all of it against a committed baseline."""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from parity.judge.baseline import KEY_DIGITS, Baseline
from parity.judge.gates.common import Pair, greatest, named, result, short
from parity.judge.gates.limits import LEAST_EMBEDDINGS, LEAST_KL
from parity.judge.statistics import tango, wilson
from parity.judge.verdict import Difference, GateResult
from parity.results import Results
from parity.terms import Terms
from pipeline.contract import Gate
from pipeline.core.errors import UserError

_LEAST = {"embeddings": LEAST_EMBEDDINGS, "logits": LEAST_KL}


def answers(reference: Results, candidate: Results, contract: Terms) -> GateResult:
    """Each side's label is what the contract's answer rule reads out of its text."""
    stage = "answers"
    for results in (reference, candidate):
        wrong = [row for row in results.rows.values() if row.label != contract.parse_answer(row.text)]
        if wrong:
            row = wrong[0]
            return result(
                stage,
                "red",
                f"{results.header.shown} read {len(wrong)} of {len(results.rows)} answers differently from"
                f" the contract, for example {row.image_id}: {row.text!r} as {row.label or 'no answer'}, not as"
                f" {contract.parse_answer(row.text) or 'no answer'}",
                "that side's rule for reading an answer is not the contract's answer_rule and labels",
                "give that side the contract's labels, in their order, and its answer_rule",
                metric="answers read differently",
                value=float(len(wrong)),
                limit=0.0,
                samples=len(results.rows),
                beyond=len(wrong),
                worst=greatest([(1.0, one.image_id, one.key) for one in wrong]),
            )
    n = len(reference.rows) + len(candidate.rows)
    numbers: dict[str, Any] = {"metric": "answers read differently", "value": 0.0, "limit": 0.0, "samples": n}
    return result(stage, "green", f"labels are read by the same rule ({contract.answer_rule})", **numbers)


def accuracy(
    reference: Results, candidate: Results, pairs: Sequence[Pair], difference: Difference, gate: Gate
) -> GateResult:
    """The accuracies are at most the margin apart, either way: a much better candidate is another model, too.

    Compared in whole numbers and fractions, so that 3 of 100 images are exactly 3 points. Undecided where the images
    are too few to rule out a candidate that is worse by the margin, or where the reference has not learnt.
    """
    n = len(pairs)
    names = (reference.header.shown, candidate.header.shown)
    ours, theirs = (sum(pair[side].correct for pair in pairs) for side in (0, 1))
    # The shortest decimal that gives this float is what the contract's author wrote.
    margin = Fraction(str(gate.margin_points))
    detail = (
        f"{difference.points:+.2f} points ({gate.margin_points:g} allowed either way): {names[0]} {ours}, {names[1]}"
        f" {theirs} right of {n}"
    )
    numbers: dict[str, Any] = {
        "metric": "percentage points between the accuracies",
        "value": abs(difference.points),
        "limit": gate.margin_points,
        "samples": n,
        "beyond": sum(a.correct != b.correct for a, b in pairs),
    }
    if abs(theirs - ours) * 100 > margin * n:
        return result("accuracy", "red", detail, *_why_inaccurate(reference, candidate, pairs), **numbers)
    label, commonest = Counter(a.truth for a, _ in pairs).most_common(1)[0]
    low, _ = wilson(ours, n)
    if low <= commonest / n:
        return result(
            "accuracy",
            "undecided",
            f"{detail}; {names[0]} is right in {ours / n:.1%} (at least {low:.1%}), always saying {label} in"
            f" {commonest / n:.1%}",
            f"{names[0]} has not been shown to be better than always giving the commonest label, and equal accuracies"
            " say little about a model that has not learnt",
            "train the model until it is clearly better than that, or judge on more images",
            **numbers,
        )
    if difference.low < -gate.margin_points:
        # No invitation to add images until it passes, which would let bad builds through.
        more = f"{difference.needed} images or more" if difference.needed else "more images"
        return result(
            "accuracy",
            "undecided",
            f"{detail}; its 95 % interval goes down to {difference.low:+.2f}; at the differences seen it takes {more}"
            " to narrow it enough",
            f"{n} images are too few to rule out that {names[1]} is worse by {gate.margin_points:g}"
            f" points: plan the next run on {more}",
            f"plan a run on {more} and judge it once, at its end: adding images until it passes lets bad builds"
            " through",
            **numbers,
        )
    return result("accuracy", "green", f"{detail}; 95 % interval from {difference.low:+.2f} on", **numbers)


def _why_inaccurate(reference: Results, candidate: Results, pairs: Sequence[Pair]) -> tuple[str, str]:
    """(cause, fix) by what the answers of the worse side look like."""
    n = len(pairs)
    correct = [sum(pair[side].correct for pair in pairs) for side in (0, 1)]
    worse = 0 if correct[0] < correct[1] else 1
    name = (reference, candidate)[worse].header.shown
    rows = [pair[worse] for pair in pairs]
    silent = [row for row in rows if row.label is None]
    others_silent = sum(pair[1 - worse].label is None for pair in pairs)
    if (len(silent) - others_silent) * 10 > n:
        return (
            f"{name} gives no label in {len(silent)} of {n} images (it writes {silent[0].text[:40]!r}), as a model"
            " without its adapter does",
            "see that the adapter was merged before the export and that the answer ends with the end token",
        )
    label, count = Counter(row.label for row in rows).most_common(1)[0]
    other_count = sum(pair[1 - worse].label == label for pair in pairs)
    if count * 10 >= n * 8 and other_count * 2 < count:
        return (
            f"{name} says {label or 'nothing'} to {count} of {n} images: it hardly looks at the picture",
            "see that the mmproj belongs to this model and was exported after the training",
        )
    return (
        "where the inputs are equal the weights must differ: an adapter dropped in the merge or the export, files of"
        " another run, or a quantization that is too coarse",
        "export to F16 and judge again: red as well means the wrong weights, green means the quantization",
    )


def classes(pairs: Sequence[Pair], contract: Terms, gate: Gate) -> GateResult:
    """No label's recall is surely worse by the class margin, and the candidate's recalls reach their floors.

    Red against the reference only where the whole of Tango's 95 % interval is beyond the margin: 40 labels tried at
    once then give no false alarm worth speaking of, since a sound candidate's difference is 0, not the margin.
    Undecided where a label of the contract has no image.
    """
    unknown = sorted(gate.recall_floors.keys() - set(contract.labels))
    if unknown:
        raise UserError(
            f"gate.recall_floors has the label {unknown[0]!r}, none of those of contract {contract.name!r}"
            f" ({', '.join(contract.labels)})"
        )
    lost: list[tuple[float, str, str]] = []  # how far surely worse, in points; the label; what was found
    lowest: tuple[float, str] = (math.inf, "")  # the greatest loss seen
    below, open_floors = [], []
    for label in contract.labels:
        own = [pair for pair in pairs if pair[0].truth == label]
        hits = [sum(pair[side].correct for pair in own) for side in (0, 1)]
        if own:
            won = sum(b.correct and not a.correct for a, b in own)
            down = sum(a.correct and not b.correct for a, b in own)
            low, high = tango(won, down, len(own))
            found = (
                f"{label}: recall {hits[0] / len(own):.1%} and {hits[1] / len(own):.1%} of {len(own)} images,"
                f" {100 * (won - down) / len(own):+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
            )
            lost.append((-100 * high, label, found))
            lowest = min(lowest, ((won - down) / len(own), found))
        floor = gate.recall_floors.get(label)
        if floor is not None:
            reached = wilson(hits[1], len(own)) if own else (0.0, 1.0)
            what = f"{label}: recall {reached[0]:.1%} to {reached[1]:.1%} ({hits[1]} of {len(own)}), floor {floor:.1%}"
            if reached[1] < floor:
                below.append(what)
            elif reached[0] < floor:
                open_floors.append(what)
    lost.sort(key=lambda item: -item[0])
    worse = [item for item in lost if item[0] > gate.class_margin_points]
    numbers: dict[str, Any] = {
        "metric": "percentage points by which the worst label's recall is significantly lower",
        "value": max(lost[0][0], 0.0),
        "limit": gate.class_margin_points,
        "samples": len(pairs),
    }
    if worse:
        return result(
            "classes",
            "red",
            "; ".join(item[2] for item in worse[:3]) + _rest(len(worse) - 3),
            f"the candidate confuses {_list([item[1] for item in worse])} where the reference does not: a quantization"
            " that is too coarse for it, or an answer that is tokenized differently",
            "look at these images' flips and at the label's tokens on both sides, and try a finer text type",
            **numbers,
        )
    if below:
        return result(
            "classes",
            "red",
            "; ".join(below[:3]) + _rest(len(below) - 3),
            "the candidate's recall is below the floor that the contract sets; the reference may be no better",
            "train on more pictures of that label, or lower gate.recall_floors",
            **numbers,
        )
    if open_floors:
        return result(
            "classes",
            "undecided",
            "; ".join(open_floors[:3]) + _rest(len(open_floors) - 3),
            "there are too few images of the label to tell whether its recall reaches the floor",
            "judge on more images of that label",
            **numbers,
        )
    untested = [label for label in contract.labels if not any(a.truth == label for a, _ in pairs)]
    if untested:
        return result(
            "classes",
            "undecided",
            f"no image is of {', '.join(untested[:3])}" + _rest(len(untested) - 3),
            f"nothing is known of {_list(untested)}: the candidate may confuse them with any other label",
            "judge on images of every label, or take the label out of the contract",
            **numbers,
        )
    floors = f"; {len(gate.recall_floors)} recall floors reached" if gate.recall_floors else ""
    return result("classes", "green", f"no label is significantly worse; the lowest is {lowest[1]}{floors}", **numbers)


def _rest(count: int) -> str:
    return f"; and {count} more label{'s'[: count != 1]}" if count > 0 else ""


def _list(labels: Sequence[str]) -> str:
    return ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")


def baseline(candidate: Results, measured: Sequence[GateResult], past: Baseline, gate: Gate) -> GateResult:
    """The candidate is not significantly worse than the committed one on the images both had, nor further off.

    ``measured``: the gates before this one; embeddings and logits are held against the baseline's numbers. These vary
    little from export to export, hence a factor of 1.5 (``gate.baseline_factor``), far below the gates' own limits.
    """
    stage = "baseline"
    common = [row for row in candidate.rows.values() if row.key[:KEY_DIGITS] in past.correct]
    if not common:
        detail = f"none of the images is among the baseline's {past.n} (dataset {short(past.dataset_sha256)})"
        return result(stage, "not measured", detail)
    before = [past.correct[row.key[:KEY_DIGITS]] for row in common]
    down = [row for row, right in zip(common, before, strict=True) if right and not row.correct]
    up = sum(row.correct and not right for row, right in zip(common, before, strict=True))
    low, high = tango(up, len(down), len(common))
    points = 100 * (up - len(down)) / len(common)
    detail = (
        f"{points:+.2f} points on the {len(common)} images that the baseline has, too: {up} gained, {len(down)} lost,"
        f" 95 % interval {100 * low:+.2f} to {100 * high:+.2f}"
    )
    further = []
    now = {one.stage: one for one in measured}
    for name, then in past.measured.items():
        one = now[name]
        if one.value is None or one.metric != then.metric:
            continue
        allowed = max(gate.baseline_factor * then.value, _LEAST[name])
        detail += f"; {name} {one.value:.2g}, then {then.value:.2g}"
        if one.value > allowed:
            further.append(name)
    numbers: dict[str, Any] = {
        "metric": "percentage points significantly lost",
        "value": max(-100 * high, 0.0),
        "limit": 0.0,
        "samples": len(common),
        "beyond": len(down),
        "worst": greatest([(1.0, row.image_id, row.key) for row in down]),
    }
    if high < 0:
        return result(
            stage,
            "red",
            f"{detail}, {named([row.image_id for row in down])}",
            "the candidate lost images that the baseline's candidate got right: the training, the export or llama.cpp"
            " changed for the worse",
            "see what changed with `parity diff` on both results; commit a new baseline only if it is meant to be",
            **numbers,
        )
    if further:
        return result(
            stage,
            "red",
            detail,
            f"{' and '.join(further)} are more than {gate.baseline_factor:g} times as far off as the baseline's: the"
            " export's types, the converter or llama.cpp changed",
            "export with the baseline's versions and types, or commit a new baseline if the change is meant to be",
            **numbers,
        )
    return result(stage, "green", detail, **numbers)
