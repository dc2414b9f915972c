"""A phone's answers to some of the pictures: what it ran, what it was given, and what the plan says to it.

The phone is held against the host, since both run the same GGUFs. The gates of whole results serve here, too, on the
pictures that count; ``audit`` and ``device classes`` are the plan's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from parity.judge.audit import ALPHA, Course, at_least, follow
from parity.judge.gates import distances, inputs, scores
from parity.judge.gates.common import NO_LADDER, Pair, named, result, short
from parity.judge.gates.provenance import Case, Finding, provenance
from parity.judge.plan import Layout, Plan, check_plan, layout_of, plan_digest, rows_of, terms_of
from parity.judge.verdict import Audit, ClassCheck, GateResult, Lost, PassRow
from parity.results import Results, Row
from pipeline.contract import Contract, Gate

STATED = "plan_sha256"
"""In the header's ``runtime``: the plan that a phone ran by."""


@dataclass(frozen=True)
class Prefix:
    """What a phone has answered of a plan."""

    plan: Plan
    layout: Layout
    answered: tuple[str, ...]
    """Keys of the order, as far as the phone has answered them without a gap."""
    rows: tuple[PassRow, ...]
    """With the census as far as it is answered."""
    course: Course
    counted: int
    """Pictures of the order that are counted: up to the stop."""

    @property
    def gap(self) -> str | None:
        """The picture that comes next, if the plan has one."""
        return self.layout.order[len(self.answered)] if len(self.answered) < len(self.layout.order) else None


def device_provenance(
    reference: Results, host: Results, device: Results, plan: Plan, contract: Contract, pairs: Sequence[Pair]
) -> GateResult:
    """The plan is of these results and whole, and the phone ran by it, on the same files, dataset and contract."""
    stage = "device provenance"
    if found := _other_plan(reference, host, device, plan) or _other_truth(host, device, pairs):
        return result(stage, "red", found.detail, found.cause, found.fix)
    same = provenance(Case(host, device, contract, pairs, None))
    stated = f", plan {short(plan_digest(plan))}" if STATED in device.header.runtime else ""
    return same.model_copy(update={"stage": stage, "detail": same.detail + ("" if same.red else stated)})


def _other_plan(reference: Results, host: Results, device: Results, plan: Plan) -> Finding | None:
    name = device.header.shown
    if wrong := check_plan(plan, reference, host):
        return Finding(
            f"the plan does not belong to these results: {wrong}",
            "the plan is of another build, or it or the results were changed after it was made",
            "judge by the plan that was made for these results before the phone's first picture; another build needs"
            " another plan, and all its pictures anew",
        )
    stated = device.header.runtime.get(STATED, plan_digest(plan))
    if stated != plan_digest(plan):
        return Finding(
            f"{name} ran by plan {short(str(stated))}, the one given is {short(plan_digest(plan))}",
            "the phone was started by another plan, and a build has one: planning again after a bad start is peeking",
            "judge by the plan that the phone ran by",
        )
    for role in sorted(plan.model.keys() | device.header.model.keys()):
        planned, ran = plan.model.get(role, ""), device.header.model.get(role, "")
        if planned != ran:
            return Finding(
                f"{name}'s {role} is {short(ran) or 'not stated'}, and the plan is for {short(planned) or 'no such'}",
                f"{name} has another build's files",
                "put the files that the host ran on the phone, and run it from the first picture on",
            )
    return None


def _other_truth(host: Results, device: Results, pairs: Sequence[Pair]) -> Finding | None:
    for a, b in pairs:
        if a.truth != b.truth:
            return Finding(
                f"image {a.image_id} is {a.truth!r} in {host.header.shown}'s results and {b.truth!r} in"
                f" {device.header.shown}'s",
                "the phone was given other labels, or its file was changed",
                "run the phone on the same dataset",
            )
    return None


def read_prefix(reference: Results, host: Results, device: Results, plan: Plan) -> Prefix:
    """What a phone has answered of a plan in which :func:`device_provenance` found nothing wrong."""
    layout = layout_of(plan, host)
    end = next((place for place, key in enumerate(layout.order) if key not in device.rows), len(layout.order))
    answered = layout.order[:end]
    known = set(answered)
    whole = known.issuperset(plan.census)  # before that it changes nothing
    census = {key: device.rows[key] for key in plan.census} if whole else {}
    terms = terms_of(reference, host, census, plan.census)
    margin = plan.wishes.margin_points
    rows = rows_of(layout, host, terms, margin)
    steps = []
    if whole:
        for key in layout.audit:
            if key not in known:
                break
            steps.append((host.rows[key].correct, device.rows[key].correct))
    n = len(host.rows)
    course = follow(
        steps,
        [row.right for row in rows],
        plan.wishes.block,
        n - len(plan.census),
        n * (margin / 100 + terms.difference),
    )
    counted = layout.reached[course.at - 1] if course.stop and course.at else end
    return Prefix(plan, layout, answered, rows, course, counted)


def device_gates(
    prefix: Prefix, host: Results, device: Results, contract: Contract, gate: Gate, pairs: Sequence[Pair]
) -> list[GateResult]:
    """All but ``device provenance``. ``pairs``: of host and phone, the pictures that are counted."""
    shown = Results(device.header, {b.key: b for _, b in pairs})
    beside = Results(host.header, {a.key: a for a, _ in pairs})
    walked = {
        "device runtime": inputs.runtime(device.header, contract),
        "device pixels": inputs.pixels(beside, shown, pairs, contract),
        "device tokens": inputs.tokens(host.header, device.header, None),
        "device logits": _logits(pairs, gate),
        "device answers": scores.answers(beside, shown, contract),
        "audit": _audit(prefix, host, device),
        "device classes": _classes(prefix, host, device, gate),
    }
    # They stand on no rung of the ladder, which is of host and reference.
    return [one.model_copy(update={"stage": stage, "rung": None}) for stage, one in walked.items()]


def _logits(pairs: Sequence[Pair], gate: Gate) -> GateResult:
    if not any(b.label_logprobs for _, b in pairs):
        return result("logits", "not measured", "the phone's results have no log-probabilities of the labels")
    found = distances.logits(pairs, None, None, gate)
    return found.model_copy(update={"detail": found.detail.removesuffix(f"; {NO_LADDER}")})


def _audit(prefix: Prefix, host: Results, device: Results) -> GateResult:
    """The plan's rules on the pictures answered without a gap."""
    course, rows, plan = prefix.course, prefix.rows, prefix.plan
    name, stage = device.header.shown, "audit"
    lost = len(course.lost)
    detail = (
        f"{lost} lost of {course.right} that {host.header.shown} gets right, after {prefix.counted} of"
        f" {len(host.rows)} pictures"
    )
    if course.stop == "PASS":
        row = rows[lost]
        return result(stage, "green", f"{detail}; row {lost} passes after {row.pictures} pictures", samples=course.at)
    if course.stop == "FAIL":
        return result(
            stage,
            "red",
            f"{detail}; a bet on a loss of more than {plan.wishes.margin_points:g} points has won {course.wealth:.0f}"
            f" times its stake, and {1 / ALPHA:.0f} are enough",
            f"{name} loses far more than the margin: the app feeds or sets up the model differently, or its llama.cpp"
            " computes differently",
            "compare the pictures lost with the host's answers; a corrected build gets a plan of its own",
            samples=course.at,
        )
    if course.stop == "FUTILE":
        most = len(prefix.layout.order)
        allowed = (
            f"a PASS allows {rows[-1].losses} within {most}" if rows else f"the census alone rules a PASS out in {most}"
        )
        return result(
            stage,
            "undecided",
            f"{detail}; {allowed} pictures",
            f"{name} lost more pictures than the plan allows: no further picture can bring a PASS",
            "look at the pictures lost; a corrected build gets a plan of its own, and another plan for this one would"
            " be peeking",
            samples=course.at,
        )
    passes = ""
    if rows and lost < len(rows):
        passes = f"it passes after {rows[lost].pictures} pictures if it loses no more"
    waiting = prefix.gap is not None and any(key in device.rows for key in prefix.layout.order[len(prefix.answered) :])
    if waiting:
        assert prefix.gap is not None
        missing = host.rows[prefix.gap]
        return result(
            stage,
            "undecided",
            f"{detail}; picture {len(prefix.answered) + 1} of the plan, {missing.image_id}, has no row, and what stands"
            " beyond it is not counted",
            f"{name} skipped {missing.image_id} (key {short(missing.key)})",
            "let the phone answer it; where that crashes the app or takes too long, write its row without a label,"
            " which counts as lost",
            samples=course.at,
        )
    return result(
        stage,
        "undecided",
        f"{detail}; {passes}" if passes else detail,
        f"{name} has not answered enough pictures yet: {passes}" if passes else f"{name} has answered too few pictures",
        "let the phone go on in the plan's order, and judge again as often as you like",
        samples=course.at,
    )


def class_checks(prefix: Prefix, device: Results) -> tuple[ClassCheck, ...]:
    """How the pictures of each class came out, as far as they are answered without a gap."""
    known = set(prefix.answered)
    found = []
    for label, keys in prefix.plan.class_checks.items():
        rows = [device.rows[key] for key in keys if key in known]
        lost = sum(not row.correct for row in rows)
        found.append(ClassCheck(label=label, planned=len(keys), answered=len(rows), lost=lost))
    return tuple(found)


def _classes(prefix: Prefix, host: Results, device: Results, gate: Gate) -> GateResult:
    """Red where a class loses more of its few pictures than a loss within the class margin would explain.

    Exact binomial test of each class at alpha divided by their number (Bonferroni); never a reason to pass.
    """
    stage, checks = "device classes", class_checks(prefix, device)
    if not checks:
        return result(stage, "not measured", "the plan has no pictures for it")
    allowed = gate.class_margin_points / 100
    # Pictures that are not answered yet count as kept.
    worse = [one for one in checks if at_least(one.lost, one.planned, allowed) * len(checks) <= ALPHA]
    if worse:
        first = worse[0]
        return result(
            stage,
            "red",
            "; ".join(f"{one.label}: {one.lost} of {one.planned} lost" for one in worse),
            f"{device.header.shown} loses {first.label} far more often than the class margin of"
            f" {gate.class_margin_points:g} points allows",
            "look at that class's pictures and at how the label is written and read on the phone",
        )
    open_checks = [one for one in checks if one.answered < one.planned]
    planned = sum(one.planned for one in checks)
    if open_checks:
        return result(
            stage,
            "undecided",
            f"{planned - sum(one.answered for one in checks)} of the {planned} pictures that check the classes are not"
            f" answered yet, {named([one.label for one in open_checks])}",
            "the plan's first pictures, some of each class, are not all answered",
            "let the phone go on in the plan's order",
        )
    lost = sum(one.lost for one in checks)
    return result(
        stage,
        "green",
        f"{lost} of {planned} pictures of {len(checks)} classes are lost; no class is significantly worse",
    )


def audit_of(prefix: Prefix, host: Results, device: Results, claim: str) -> Audit:
    """What the reports show."""
    plan, course, layout = prefix.plan, prefix.course, prefix.layout
    known = set(prefix.answered)
    census = [(host.rows[key].correct, device.rows[key].correct) for key in plan.census if key in known]
    return Audit(
        plan_sha256=plan_digest(plan),
        claim=claim,
        stop=course.stop,
        pictures=plan.pictures,
        planned=len(layout.order),
        counted=prefix.counted,
        uncounted=len(device.rows) - prefix.counted,
        right=course.right,
        lost=tuple(_lost(layout.reached[at - 1], device.rows[layout.audit[at - 1]]) for at in course.lost),
        rows=prefix.rows,
        block=plan.wishes.block,
        wealth=course.wealth,
        census=len(plan.census),
        census_won=sum(ours > theirs for theirs, ours in census),
        census_lost=sum(theirs > ours for theirs, ours in census),
        class_checks=class_checks(prefix, device),
        device_header=device.header,
    )


def _lost(picture: int, row: Row) -> Lost:
    return Lost(picture=picture, image_id=row.image_id, key=row.key, truth=row.truth or "", label=row.label)
