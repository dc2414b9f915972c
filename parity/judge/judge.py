"""PASS, FAIL, INCONCLUSIVE or REFUSED, from two sides' saved results, without running a model.

:func:`judge` pairs the rows by content key, walks the gates of :mod:`parity.judge.gates` in order and counts; it
imports neither torch nor scikit-learn nor llama.cpp. What it makes is :class:`parity.judge.verdict.Verdict`, which says
when it is which; ``parity/report/screen.py`` shows one to a person.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from parity.compare.ladder import Ladder
from parity.judge.baseline import Baseline
from parity.judge.beside import belongs
from parity.judge.causes import Causes
from parity.judge.gates import answers, distances, inputs, scores
from parity.judge.gates import ladder as rungs
from parity.judge.gates.common import Pair
from parity.judge.gates.limits import limits_of
from parity.judge.gates.provenance import Case, provenance
from parity.judge.scoring import difference_of, drift, flips_of, side_scores
from parity.judge.verdict import (
    GateResult,
    Runs,
    RunScore,
    Status,
    Verdict,
)
from parity.judge.words import follow, headline
from parity.results import Header, Results
from parity.terms import EXACT_MATCH, CheckTerms, Terms
from pipeline.contract import Gate
from pipeline.core.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS, EXIT_REFUSED, UserError
from pipeline.core.files import write_json
from pipeline.core.provenance import digest

EXIT_CODES: dict[Status, int] = {
    "PASS": EXIT_PASS,
    "FAIL": EXIT_FAIL,
    "INCONCLUSIVE": EXIT_INCONCLUSIVE,
    "REFUSED": EXIT_REFUSED,
}
ChecksOf = Callable[[Results], Sequence[GateResult]]
CauseOf = Callable[[Results, Results], Causes | None]
REFUSING = ("provenance", "bundle", "device provenance")
"""Gates that refuse where they are red."""
_SEVERITY: tuple[Status, ...] = ("PASS", "INCONCLUSIVE", "FAIL", "REFUSED")


def judge(
    reference: Results,
    candidate: Results,
    terms: Terms,
    checks: Sequence[GateResult] = (),
    ladder: Ladder | None = None,
    gate: Gate | None = None,
    baseline: Baseline | None = None,
    causes: Causes | None = None,
) -> Verdict:
    """Judge a candidate by a reference.

    Where answers are open and none is expected, the reference's are taken for right.

    ``checks`` are gates tried elsewhere; they stand behind ``runtime``. ``ladder`` is what :mod:`parity.compare.ladder`
    measured of the same two sides (:func:`belongs` says whether it is); rows of other images are left out. ``gate``
    takes the place of the contract's, to try other limits without another contract. ``causes``: what conforming found,
    which explains better than a gate can.

    Raises UserError: no images, images that one side lacks, different truths for one image, labels that the terms do
    not have.
    """
    gate = gate or terms.gate
    changed = overrides(terms.gate, gate)
    reference, candidate = as_judged(reference, candidate, terms)
    pairs = _paired(reference, candidate)
    if terms.labels:
        for results in (reference, candidate):
            check_labels(results, terms)
    if ladder:
        kept = {key: row for key, row in ladder.rows.items() if key in reference.rows}
        ladder = replace(ladder, rows=kept)
    limits = limits_of(ladder.header, gate) if ladder else None
    difference = difference_of(pairs, gate.margin_points)
    walked = [
        provenance(Case(reference, candidate, terms, pairs, ladder)),
        inputs.runtime(candidate.header, terms, ladder),
        *checks,
        rungs.decoded(ladder),
        inputs.pixels(reference, candidate, pairs, terms),
        rungs.tiles(ladder, terms),
        inputs.tokens(reference.header, candidate.header, ladder),
        distances.embeddings(ladder, limits),
        distances.logits(pairs, ladder, limits, gate),
    ]
    if isinstance(terms, CheckTerms) and not terms.labels:
        walked += [distances.along(ladder, limits), answers.agreement(pairs, ladder, terms)]
        if terms.metric:
            walked.append(answers.score(pairs, terms, gate.margin_points))
    else:
        walked += [
            rungs.generation(pairs, ladder),
            scores.answers(reference, candidate, terms),
            scores.accuracy(reference, candidate, pairs, difference, gate),
            scores.classes(pairs, terms, gate),
        ]
    if baseline:
        walked.append(scores.baseline(candidate, walked, baseline, gate))
    status, bad = conclude(walked)
    walked = follow(walked)
    told = causes.found[0] if causes and causes.found and status == "FAIL" and bad and bad.rung else None
    if told and bad:
        # What was proven takes the place of what the gate would guess.
        known = {"cause": told.detail, "fix": told.fix}
        walked = [gate.model_copy(update=known) if gate.stage == bad.stage else gate for gate in walked]
    sides = (side_scores(reference, terms.labels), side_scores(candidate, terms.labels))
    split = f"{reference.header.split} " if reference.header.split else ""
    images = f"{len(pairs)} {split}image{'s'[: len(pairs) != 1]}"
    alike = sum(a.label == b.label for a, b in pairs)
    said = headline(status, bad, sides, difference, bool(terms.labels), images, alike, walked)
    # An undecided verdict's headline is its cause.
    why = "" if status == "INCONCLUSIVE" else told.detail if told else bad.cause if bad else ""
    return Verdict(
        name=terms.name,
        status=status,
        exit_code=EXIT_CODES[status],
        headline=said + "".join(f" ({one})" for one in changed),
        first_bad_stage=bad.stage if bad else None,
        cause=why,
        fix=told.fix if told else bad.fix if bad else "",
        notes=_notes(reference.header, ladder, walked, changed),
        n=len(pairs),
        split=reference.header.split,
        labels=terms.labels,
        gates=tuple(walked),
        gate=gate,
        overrides=changed,
        evidence=_evidence(reference, candidate, ladder, baseline),
        limits=limits,
        difference=difference,
        agreement=alike / len(pairs),
        flips=flips_of(pairs, ladder, limits),
        label_logprobs=drift(pairs),
        reference=sides[0],
        candidate=sides[1],
        causes=causes,
        reference_header=reference.header,
        candidate_header=candidate.header,
    )


def judge_runs(
    reference: Results,
    candidates: Sequence[tuple[str, Results]],
    terms: Terms,
    checks: Sequence[GateResult] = (),
    ladder: Ladder | None = None,
    gate: Gate | None = None,
    baseline: Baseline | None = None,
    own_checks: ChecksOf | None = None,
    cause_of: CauseOf | None = None,
) -> Verdict:
    """Judge several runs, (name, results), of the candidate one by one; the worst verdict carries all their scores.

    ``ladder`` is used for the run that it belongs to. ``own_checks``: what is tried of each candidate alone, behind
    ``checks``. ``cause_of``: what made a candidate's pixels differ. One run gives what :func:`judge` gives. Raises as
    it does.
    """
    verdicts = []
    for _, candidate in candidates:
        own = ladder if ladder and belongs(ladder, reference, candidate) else None
        tried = [*checks, *(own_checks(candidate) if own_checks else ())]
        causes = cause_of(reference, candidate) if cause_of else None
        verdicts.append(judge(reference, candidate, terms, tried, own, gate, baseline, causes))
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


def conclude(walked: Sequence[GateResult]) -> tuple[Status, GateResult | None]:
    """(status, the gate that decides it); see :mod:`parity.judge.verdict`."""
    red = [gate for gate in walked if gate.red]
    if refusing := next((gate for gate in red if gate.stage in REFUSING), None):
        return "REFUSED", refusing
    if red:
        return "FAIL", red[0]
    open_gate = next((gate for gate in walked if gate.status == "undecided"), None)
    return ("INCONCLUSIVE", open_gate) if open_gate else ("PASS", None)


def overrides(stated: Gate, used: Gate) -> tuple[str, ...]:
    """What was judged by other limits than the contract's, one sentence each."""
    values = used.model_dump(mode="json")
    return tuple(
        f"judged with gate.{key} {_plain(values[key])}, and the contract says {_plain(value)}"
        for key, value in stated.model_dump(mode="json").items()
        if values[key] != value
    )


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _evidence(
    reference: Results, candidate: Results, ladder: Ladder | None, baseline: Baseline | None
) -> dict[str, str]:
    files = {
        "reference": reference.sha256,
        "candidate": candidate.sha256,
        "ladder": ladder.sha256 if ladder else None,
        "baseline": digest(baseline.model_dump(mode="json")) if baseline else None,
    }
    return {name: found for name, found in files.items() if found}


def write_verdict(verdict: Verdict, path: Path) -> None:
    """Write ``verdict.json`` atomically."""
    write_json(path, verdict.model_dump(mode="json"))


def as_judged(reference: Results, candidate: Results, terms: Terms) -> tuple[Results, Results]:
    """Both sides as they are judged and shown: where no answer is expected, the reference's are taken for right.

    A score that follows from text and truth alone is not taken on trust.
    """
    if terms.labels or not isinstance(terms, CheckTerms):
        return reference, candidate
    exact = terms.metric == EXACT_MATCH
    truths = {
        key: row.label if row.truth is None else terms.parse_answer(row.truth) for key, row in reference.rows.items()
    }

    def with_truths(results: Results) -> Results:
        rows = {}
        for key, row in results.rows.items():
            score = terms.score(row.text, row.truth) if exact else row.score
            rows[key] = row.model_copy(update={"truth": truths.get(key), "score": score})
        return replace(results, rows=rows)

    return with_truths(reference), with_truths(candidate)


def _paired(reference: Results, candidate: Results) -> list[Pair]:
    """Rows of the same key, by image id, or UserError."""
    ours, theirs = reference.header.shown, candidate.header.shown
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


def check_labels(results: Results, contract: Terms) -> None:
    """Raise UserError where a row has a label that the contract does not have."""
    known = set(contract.labels)
    for row in results.rows.values():
        for label in (row.truth, row.label, *row.label_logprobs):
            if label is not None and label not in known:
                raise UserError(
                    f"image {row.image_id} in {results.header.shown}'s results has the label {label!r}, none of those"
                    f" of contract {contract.name!r} ({', '.join(contract.labels)}): judge by the contract it ran under"
                )


def _notes(
    ours: Header, ladder: Ladder | None, walked: Sequence[GateResult], changed: Sequence[str]
) -> tuple[str, ...]:
    notes = [f"{one}: a gate for release takes no such verdict" for one in changed]
    if ladder is None:
        notes.append("without a ladder no stage between canvas and answer was compared")
    if ours.split == "validation":
        notes.append(
            "the verdict uses the validation images, on which the best checkpoint was chosen, so both accuracies may be"
            " optimistic: set dataset.test_fraction or dataset.test_path"
        )
    past = next((gate for gate in walked if gate.stage == "baseline" and gate.status == "not measured"), None)
    if past:
        notes.append(f"the baseline says nothing: {past.detail}")
    return tuple(notes)
