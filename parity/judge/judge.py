"""PASS, FAIL, INCONCLUSIVE or REFUSED, from two sides' saved results, without running a model.

:func:`judge` pairs the rows by content key, walks the gates of :mod:`parity.judge.gates` in order and counts; it
imports neither torch nor scikit-learn nor llama.cpp. What it makes is :class:`parity.judge.verdict.Verdict`, which says
when it is which; ``parity/report/screen.py`` shows one to a person.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median, stdev

from parity.compare.ladder import Ladder, header_digest, read_ladder
from parity.judge.baseline import Baseline
from parity.judge.gates import distances, inputs, scores
from parity.judge.gates import ladder as rungs
from parity.judge.gates.common import Pair
from parity.judge.gates.limits import limits_of, parted_at
from parity.judge.statistics import mcnemar_exact, noninferiority_p, pairs_needed, tango, wilson
from parity.judge.verdict import (
    AllFlips,
    ClassScore,
    Difference,
    Drift,
    Flip,
    Flips,
    GateResult,
    Limits,
    Runs,
    RunScore,
    Side,
    Status,
    Verdict,
    display_name,
)
from parity.results import Header, Results, Row
from pipeline.contract import Contract, Gate, load_contract
from pipeline.core.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS, EXIT_REFUSED, UserError
from pipeline.core.files import write_json

MAX_EXAMPLES = 20
"""Flips that a verdict lists of each kind."""
EXIT_CODES: dict[Status, int] = {
    "PASS": EXIT_PASS,
    "FAIL": EXIT_FAIL,
    "INCONCLUSIVE": EXIT_INCONCLUSIVE,
    "REFUSED": EXIT_REFUSED,
}
_SEVERITY: tuple[Status, ...] = ("PASS", "INCONCLUSIVE", "FAIL", "REFUSED")


def judge(
    reference: Results,
    candidate: Results,
    contract: Contract,
    checks: Sequence[GateResult] = (),
    ladder: Ladder | None = None,
    gate: Gate | None = None,
    baseline: Baseline | None = None,
) -> Verdict:
    """Judge a candidate by a reference.

    ``checks`` are gates tried elsewhere; they stand behind ``runtime``. ``ladder`` is what :mod:`parity.compare.ladder`
    measured of the same two sides (:func:`belongs` says whether it is); rows of other images are left out. ``gate``
    takes the place of the contract's, to try other limits without another contract.

    Raises UserError: no images, images that one side lacks, different truths for one image, labels that the contract
    does not have.
    """
    gate = gate or contract.gate
    pairs = _paired(reference, candidate)
    for results in (reference, candidate):
        _check_labels(results, contract)
    if ladder:
        ladder = Ladder(ladder.header, {key: row for key, row in ladder.rows.items() if key in reference.rows})
    limits = limits_of(ladder.header, gate) if ladder else None
    difference = _difference(pairs, gate.margin_points)
    walked = [
        inputs.provenance(reference.header, candidate.header, contract),
        inputs.runtime(candidate.header, contract, ladder),
        *checks,
        rungs.decoded(ladder),
        inputs.pixels(reference, candidate, pairs, contract),
        rungs.tiles(ladder, contract),
        inputs.tokens(reference.header, candidate.header, ladder),
        distances.embeddings(ladder, limits),
        distances.logits(pairs, ladder, limits, gate),
        rungs.generation(pairs, ladder),
        scores.answers(reference, candidate, contract),
        scores.accuracy(reference, candidate, pairs, difference, gate),
        scores.classes(pairs, contract, gate),
    ]
    if baseline:
        walked.append(scores.baseline(candidate, walked, baseline, gate))
    status, bad = _conclude(walked)
    sides = (_side(reference, contract.labels), _side(candidate, contract.labels))
    return Verdict(
        status=status,
        exit_code=EXIT_CODES[status],
        headline=_headline(status, bad, sides),
        first_bad_stage=bad.stage if bad else None,
        cause=bad.cause if bad else "",
        fix=bad.fix if bad else "",
        notes=_notes(pairs, reference.header, candidate.header, ladder, walked),
        n=len(pairs),
        split=reference.header.split,
        labels=contract.labels,
        gates=tuple(walked),
        limits=limits,
        difference=difference,
        agreement=sum(a.label == b.label for a, b in pairs) / len(pairs),
        flips=_flips(pairs, ladder, limits),
        label_logprobs=drift(pairs),
        reference=sides[0],
        candidate=sides[1],
        reference_header=reference.header,
        candidate_header=candidate.header,
    )


def judge_runs(
    reference: Results,
    candidates: Sequence[tuple[str, Results]],
    contract: Contract,
    checks: Sequence[GateResult] = (),
    ladder: Ladder | None = None,
    gate: Gate | None = None,
    baseline: Baseline | None = None,
) -> Verdict:
    """Judge several runs, (name, results), of the candidate one by one; the worst verdict carries all their scores.

    ``ladder`` is used for the run that it belongs to. One run gives what :func:`judge` gives. Raises as it does.
    """
    verdicts = []
    for _, candidate in candidates:
        own = ladder if ladder and belongs(ladder, reference, candidate) else None
        verdicts.append(judge(reference, candidate, contract, checks, own, gate, baseline))
    worst = max(verdicts, key=lambda verdict: (_SEVERITY.index(verdict.status), -verdict.difference.points))
    if len(verdicts) == 1:
        return worst
    points = [verdict.difference.points for verdict in verdicts]
    answers = [{candidate.rows[key].label for _, candidate in candidates} for key in reference.rows]
    runs = Runs(
        runs=tuple(
            RunScore(
                name=name,
                points=verdict.difference.points,
                low=verdict.difference.low,
                high=verdict.difference.high,
                status=verdict.status,
            )
            for (name, _), verdict in zip(candidates, verdicts, strict=True)
        ),
        mean_points=fmean(points),
        sd_points=stdev(points),
        unstable=sum(len(given) > 1 for given in answers),
        n=worst.n,
    )
    return worst.model_copy(update={"runs": runs})


def belongs(ladder: Ladder, reference: Results, candidate: Results) -> bool:
    """Whether a ladder was measured between just these two runs."""
    ours, theirs = (header_digest(side.header) for side in (reference, candidate))
    return (ladder.header.reference_sha256, ladder.header.candidate_sha256) == (ours, theirs)


def find_contract(given: Path | None, results_path: Path, results: Results) -> Contract:
    """The contract file given, or the one that the results ran under: ``contract.json`` beside them, that of the bundle
    of their run (``../bundle``), or the phone's.

    Where none of these is it, the phone's is returned, and the gate ``provenance`` refuses the results. Raises
    UserError as load_contract does for a file that was given.
    """
    if given:
        return load_contract(given)
    folder = results_path.parent
    for path in (folder / "contract.json", folder.parent / "bundle" / "contract.json"):
        try:
            found = load_contract(path)
        except UserError:  # not there, or a file of something else
            continue
        if found.digest == results.header.contract_sha256:
            return found
    return load_contract()


def find_ladder(
    given: Path | None, reference_path: Path, reference: Results, candidates: Sequence[Results]
) -> Ladder | None:
    """The ladder file given, or ``ladder.jsonl`` beside the reference's results where it is of these runs.

    Raises UserError as read_ladder does, and where a file that was given is of other runs.
    """
    path = given or reference_path.parent / "ladder.jsonl"
    if given is None and not path.exists():
        return None
    ladder = read_ladder(path)
    if any(belongs(ladder, reference, candidate) for candidate in candidates):
        return ladder
    if given:
        raise UserError(f"ladder {path} was measured between other runs than these: run `parity run` again")
    return None


def _conclude(walked: Sequence[GateResult]) -> tuple[Status, GateResult | None]:
    """(status, the gate that decides it); see :mod:`parity.judge.verdict`."""
    red = next((gate for gate in walked if gate.red), None)
    if red:
        refused = any(gate.red and gate.stage == "provenance" for gate in walked)
        return ("REFUSED" if refused else "FAIL"), red
    open_gate = next((gate for gate in walked if gate.status == "undecided"), None)
    return ("INCONCLUSIVE", open_gate) if open_gate else ("PASS", None)


def _headline(status: Status, bad: GateResult | None, sides: tuple[Side, Side]) -> str:
    ours, theirs = (display_name(side.side) for side in sides)
    if bad is None:
        return f"{theirs} is as good as {ours}, within the margin"
    if status == "REFUSED":
        return f"these two sides cannot be compared: {bad.detail}"
    if status == "INCONCLUSIVE":
        return bad.cause
    return f"{theirs} is worse than its baseline" if bad.stage == "baseline" else f"the sides part at: {bad.stage}"


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
        won=won,
        lost=lost,
        p_inferior=noninferiority_p(won, lost, len(pairs), margin_points / 100),
        needed=pairs_needed(won, lost, len(pairs), margin_points / 100),
    )


def _flips(pairs: list[Pair], ladder: Ladder | None, limits: Limits | None) -> AllFlips:
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


def _notes(
    pairs: list[Pair], ours: Header, theirs: Header, ladder: Ladder | None, walked: Sequence[GateResult]
) -> tuple[str, ...]:
    notes = []
    if ladder is None:
        notes.append("without a ladder no stage between canvas and answer was compared")
    elif len(ladder.rows) < len(pairs):
        notes.append(f"the ladder was walked for {len(ladder.rows)} of {len(pairs)} images")
    if ours.split == "validation":
        notes.append(
            "validation images were used, which the best checkpoint was chosen on, so both accuracies may be flattered:"
            " set dataset.test_fraction or dataset.test_path"
        )
    if not (ours.weights_sha256 and theirs.weights_sha256):
        notes.append("the results do not say of which trained weights both sides' files were made")
    past = next((gate for gate in walked if gate.stage == "baseline" and gate.status == "not measured"), None)
    if past:
        notes.append(f"the baseline says nothing: {past.detail}")
    return tuple(notes)
