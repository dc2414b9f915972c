"""Scores of a side, and how two sides differ: accuracy, classes, flips, drift of the log-probabilities."""

from collections import Counter
from collections.abc import Sequence
from statistics import median

from parity.compare.ladder import Ladder
from parity.judge.gates.common import Pair
from parity.judge.gates.limits import parted_at
from parity.judge.statistics import mcnemar_exact, noninferiority_p, pairs_needed, tango, wilson
from parity.judge.verdict import (
    AllFlips,
    ClassScore,
    Difference,
    Drift,
    Flip,
    Flips,
    Limits,
    Side,
)
from parity.results import Results, Row

MAX_EXAMPLES = 20
"""Flips that a verdict lists of each kind."""


def side_scores(results: Results, labels: tuple[str, ...]) -> Side:
    """One side's own scores over all its rows."""
    rows = list(results.rows.values())
    counts = Counter((row.truth, row.label) for row in rows)
    confusion = tuple(tuple(counts[truth, label] for label in (*labels, None)) for truth in labels)
    per_class = tuple(_class_score(label, index, confusion) for index, label in enumerate(labels))
    occurring = {row.truth for row in rows} | {row.label for row in rows}
    f1 = [score.f1 for score in per_class if score.label in occurring]
    correct = sum(row.correct for row in rows)
    low, high = wilson(correct, len(rows))
    seconds = sum(row.ms["total"] if "total" in row.ms else sum(row.ms.values()) for row in rows) / 1e3
    phases = dict.fromkeys(phase for row in rows for phase in row.ms)
    return Side(
        side=results.header.side,
        correct=correct,
        accuracy=correct / len(rows),
        accuracy_low=low,
        accuracy_high=high,
        macro_f1=sum(f1) / len(f1) if f1 else 0.0,
        unanswered=sum(row.label is None for row in rows),
        per_class=per_class,
        confusion=confusion,
        seconds=seconds,
        images_per_second=len(rows) / seconds if seconds > 0 else None,
        ms_median={phase: median(row.ms[phase] for row in rows if phase in row.ms) for phase in phases},
    )


def _class_score(label: str, index: int, confusion: tuple[tuple[int, ...], ...]) -> ClassScore:
    hits = confusion[index][index]
    support = sum(confusion[index])
    answered = sum(row[index] for row in confusion)
    low, high = wilson(hits, support) if support else (0.0, 1.0)
    return ClassScore(
        label=label,
        support=support,
        precision=hits / answered if answered else 0.0,
        recall=hits / support if support else 0.0,
        recall_low=low,
        recall_high=high,
        f1=2 * hits / (support + answered) if support + answered else 0.0,
    )


def difference_of(pairs: list[Pair], margin_points: float) -> Difference:
    """The candidate's accuracy against the reference's on the same images."""
    won = sum(b.correct and not a.correct for a, b in pairs)
    lost = sum(a.correct and not b.correct for a, b in pairs)
    low, high = tango(won, lost, len(pairs))
    return Difference(
        points=100 * (won - lost) / len(pairs),
        low=100 * low,
        high=100 * high,
        margin_points=margin_points,
        mcnemar_p=mcnemar_exact(won, lost),
        won=won,
        lost=lost,
        p_inferior=noninferiority_p(won, lost, len(pairs), margin_points / 100),
        needed=pairs_needed(won, lost, len(pairs), margin_points / 100),
    )


def flips_of(pairs: list[Pair], ladder: Ladder | None, limits: Limits | None) -> AllFlips:
    """The kinds exclude each other and make up all unequal answers."""
    unequal = [(a, b) for a, b in pairs if a.label != b.label]

    def listed(chosen: list[Pair]) -> Flips:
        return Flips(count=len(chosen), examples=tuple(flip(a, b) for a, b in chosen[:MAX_EXAMPLES]))

    def flip(a: Row, b: Row) -> Flip:
        row = ladder.rows.get(a.key) if ladder else None
        return Flip(
            image_id=a.image_id,
            key=a.key,
            truth=a.truth,
            reference=a.label,
            candidate=b.label,
            parted_at=parted_at(row, limits) if row and limits else None,
        )

    return AllFlips(
        right_to_wrong=listed([(a, b) for a, b in unequal if a.correct]),
        wrong_to_right=listed([(a, b) for a, b in unequal if b.correct]),
        wrong_to_other_wrong=listed([(a, b) for a, b in unequal if not a.correct and not b.correct]),
    )


def drift(pairs: Sequence[Pair]) -> Drift | None:
    """How far the labels' log-probabilities are apart; None where there is nothing to compare."""
    apart: list[tuple[float, Row, str]] = []
    for a, b in pairs:
        for label, x in a.label_logprobs.items():
            y = b.label_logprobs.get(label)
            if x is not None and y is not None:
                apart.append((abs(x - y), a, label))
    if not apart:
        return None
    largest, row, label = max(apart, key=lambda item: item[0])
    return Drift(
        mean=sum(item[0] for item in apart) / len(apart),
        largest=largest,
        image_id=row.image_id,
        label=label,
    )
