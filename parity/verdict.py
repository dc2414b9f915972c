"""PASS or FAIL, from two sides' saved results, without running a model.

:func:`judge` pairs the rows by content key, walks the gates of :mod:`parity.gates` in order and counts; it imports
neither torch nor scikit-learn nor llama.cpp. ``parity/screen.py`` shows a verdict to a person.

Invariants of a :class:`Verdict`: FAIL exactly where a gate is red, and then ``first_bad_stage`` is the first such gate;
every confusion matrix sums to ``n``.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from parity import gates
from parity.gates import GateResult, Pair
from parity.results import Header, Results, Row
from parity.statistics import mcnemar_exact, tango, wilson
from pipeline.contract import Contract, Frozen
from pipeline.errors import EXIT_FAIL, EXIT_PASS, UserError
from pipeline.files import write_json

MAX_EXAMPLES = 20
"""Flips that a verdict lists of each kind."""


class ClassScore(Frozen):
    """One label's scores on one side, 0..1; a score that is 0/0 is 0."""

    label: str
    support: int
    """Images whose truth it is."""
    precision: float
    recall: float
    f1: float


class Side(Frozen):
    """One side alone."""

    side: str
    correct: int
    accuracy: float
    accuracy_low: float
    """Lower end of Wilson's 95 % interval."""
    accuracy_high: float
    macro_f1: float
    """Mean F1 of the labels that occur as a truth or an answer."""
    unanswered: int
    """Answers in which no label was found; they count as wrong."""
    per_class: tuple[ClassScore, ...]
    """In the order of the contract's labels."""
    confusion: tuple[tuple[int, ...], ...]
    """Rows: truth. Columns: answer, in the order of the contract's labels, then no answer."""
    seconds: float
    """What the images took together, as the side timed them (loading not included)."""
    images_per_second: float | None
    """None where the side measured no times."""
    ms_median: dict[str, float]
    """Phase -> median milliseconds an image."""


class Difference(Frozen):
    """Candidate's accuracy minus the reference's, in percentage points."""

    points: float
    low: float
    """Lower end of Tango's 95 % interval."""
    high: float
    margin_points: float
    mcnemar_p: float
    """Exact p of "both sides are equally often right"."""


class Flip(Frozen):
    """An image that the sides answer differently."""

    image_id: str
    truth: str
    reference: str | None
    candidate: str | None


class Flips(Frozen):
    """Different answers of one kind."""

    count: int
    examples: tuple[Flip, ...]
    """The first 20 by image id."""


class AllFlips(Frozen):
    """Different answers by what they cost."""

    right_to_wrong: Flips
    """The reference was right, the candidate is wrong or silent."""
    wrong_to_right: Flips
    wrong_to_other_wrong: Flips


class Drift(Frozen):
    """How far the labels' log-probabilities are apart; a number to watch, not a gate."""

    mean: float
    """Mean absolute difference over images and labels, nats."""
    largest: float
    image_id: str
    """Where the largest is."""
    label: str


class Verdict(Frozen):
    """All that is known of two sides; see the module's docstring."""

    schema_version: Literal[1] = 1
    status: Literal["PASS", "FAIL"]
    exit_code: int
    first_bad_stage: str | None
    cause: str
    """Of the first red gate; empty on PASS."""
    fix: str
    notes: tuple[str, ...]
    """What weakens the verdict, one sentence each."""
    n: int
    labels: tuple[str, ...]
    gates: tuple[GateResult, ...]
    difference: Difference
    agreement: float
    """Share of images with equal answers; two answers without a label are equal."""
    flips: AllFlips
    label_logprobs: Drift | None
    """None where a side has none; values that are not finite are left out."""
    reference: Side
    candidate: Side
    reference_header: Header
    candidate_header: Header


def judge(reference: Results, candidate: Results, contract: Contract, checks: Sequence[GateResult] = ()) -> Verdict:
    """Judge a candidate by a reference. ``checks`` are gates tried elsewhere; they stand behind ``provenance``.

    Raises UserError: no images, images that one side lacks, different truths for one image, labels that the contract
    does not have.
    """
    pairs = _paired(reference, candidate)
    for results in (reference, candidate):
        _check_labels(results, contract)
    walked = (
        gates.provenance(reference, candidate, contract),
        *checks,
        gates.pixels(reference, candidate, pairs, contract),
        gates.tokens(reference, candidate),
        gates.answers(reference, candidate, contract),
        gates.accuracy(reference, candidate, pairs, contract),
    )
    bad = next((gate for gate in walked if not gate.passed), None)
    sides = (_side(reference, contract.labels), _side(candidate, contract.labels))
    difference = _difference(pairs, contract.gate.margin_points)
    return Verdict(
        status="FAIL" if bad else "PASS",
        exit_code=EXIT_FAIL if bad else EXIT_PASS,
        first_bad_stage=bad.stage if bad else None,
        cause=bad.cause if bad else "",
        fix=bad.fix if bad else "",
        notes=_notes(pairs, sides[0], difference),
        n=len(pairs),
        labels=contract.labels,
        gates=walked,
        difference=difference,
        agreement=sum(a.label == b.label for a, b in pairs) / len(pairs),
        flips=_flips(pairs),
        label_logprobs=_drift(pairs),
        reference=sides[0],
        candidate=sides[1],
        reference_header=reference.header,
        candidate_header=candidate.header,
    )


def write_verdict(verdict: Verdict, path: Path) -> None:
    """Write ``verdict.json`` atomically."""
    write_json(path, verdict.model_dump(mode="json"))


def _paired(reference: Results, candidate: Results) -> list[Pair]:
    """Rows of the same key, by image id, or UserError."""
    ours, theirs = reference.header.side, candidate.header.side
    for a, b, results in ((ours, theirs, reference), (theirs, ours, candidate)):
        other = candidate if results is reference else reference
        lost = [row for key, row in results.rows.items() if key not in other.rows]
        if lost:
            differ = reference.header.dataset_sha256 != candidate.header.dataset_sha256
            fix = "run both sides on the same dataset" if differ else f"let {b} finish"
            raise UserError(
                f"{len(lost)} of {len(results.rows)} images of {a} are missing from {b}'s results, for example"
                f" {lost[0].image_id} (key {lost[0].key}): {fix}, then judge again"
            )
    if not reference.rows:
        raise UserError(f"neither {ours} nor {theirs} has answered an image: there is nothing to judge")
    pairs = [(row, candidate.rows[key]) for key, row in reference.rows.items()]
    for a_row, b_row in pairs:
        if a_row.truth != b_row.truth:
            raise UserError(
                f"image {a_row.image_id} is {a_row.truth!r} in {ours}'s results and {b_row.truth!r} in {theirs}'s:"
                " run both sides on the same dataset"
            )
    return sorted(pairs, key=lambda pair: (pair[0].image_id, pair[0].key))


def _check_labels(results: Results, contract: Contract) -> None:
    known = set(contract.labels)
    for row in results.rows.values():
        for label in (row.truth, row.label, *row.label_logprobs):
            if label is not None and label not in known:
                raise UserError(
                    f"image {row.image_id} in {results.header.side}'s results has the label {label!r}, none of those of"
                    f" contract {contract.name!r} ({', '.join(contract.labels)}): judge by the contract it ran under"
                )


def _side(results: Results, labels: tuple[str, ...]) -> Side:
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
        macro_f1=sum(f1) / len(f1),
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
    return ClassScore(
        label=label,
        support=support,
        precision=hits / answered if answered else 0.0,
        recall=hits / support if support else 0.0,
        f1=2 * hits / (support + answered) if support + answered else 0.0,
    )


def _difference(pairs: list[Pair], margin_points: float) -> Difference:
    won = sum(b.correct and not a.correct for a, b in pairs)
    lost = sum(a.correct and not b.correct for a, b in pairs)
    low, high = tango(won, lost, len(pairs))
    return Difference(
        points=100 * (won - lost) / len(pairs),
        low=100 * low,
        high=100 * high,
        margin_points=margin_points,
        mcnemar_p=mcnemar_exact(won, lost),
    )


def _flips(pairs: list[Pair]) -> AllFlips:
    """The kinds exclude each other and make up all unequal answers."""
    unequal = [(a, b) for a, b in pairs if a.label != b.label]
    return AllFlips(
        right_to_wrong=_flip_list([(a, b) for a, b in unequal if a.correct]),
        wrong_to_right=_flip_list([(a, b) for a, b in unequal if b.correct]),
        wrong_to_other_wrong=_flip_list([(a, b) for a, b in unequal if not a.correct and not b.correct]),
    )


def _flip_list(pairs: list[Pair]) -> Flips:
    examples = tuple(
        Flip(image_id=a.image_id, truth=a.truth, reference=a.label, candidate=b.label) for a, b in pairs[:MAX_EXAMPLES]
    )
    return Flips(count=len(pairs), examples=examples)


def _drift(pairs: list[Pair]) -> Drift | None:
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


def _notes(pairs: list[Pair], reference: Side, difference: Difference) -> tuple[str, ...]:
    notes = []
    reach = max(abs(difference.low), abs(difference.high))
    if abs(difference.points) <= difference.margin_points < reach:
        notes.append(
            f"{len(pairs)} images cannot rule out a difference of {reach:.1f} points, which is beyond the margin of"
            f" {difference.margin_points:g}: more images would narrow the interval"
        )
    commonest = Counter(a.truth for a, _ in pairs).most_common(1)[0][1]
    if reference.correct <= commonest:
        notes.append(
            f"{reference.side} is no better than always giving the commonest label ({commonest} of {len(pairs)}): equal"
            " accuracies say little about a model that has not learnt"
        )
    broken = sum(None in (*a.label_logprobs.values(), *b.label_logprobs.values()) for a, b in pairs)
    if broken:
        notes.append(f"{broken} of {len(pairs)} images have log-probabilities that are not finite numbers")
    return tuple(notes)
