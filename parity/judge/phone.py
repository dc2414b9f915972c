"""A phone that answers some of the pictures: its plan is drawn where the host passes, its answers are judged by it."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from parity.compare.ladder import Ladder
from parity.judge.baseline import Baseline
from parity.judge.causes import Causes
from parity.judge.gates.device import (
    STATED,
    audit_of,
    device_gates,
    device_provenance,
    read_prefix,
)
from parity.judge.judge import EXIT_CODES, check_labels, conclude, judge
from parity.judge.plan import Plan, Wishes, find_plan, make_plan, plan_digest
from parity.judge.verdict import GateResult, Status, Verdict
from parity.judge.words import what_is_wrong
from parity.results import Results
from pipeline.contract import Contract, Gate
from pipeline.core.errors import UserError

SEED_BYTES = 32


def draw_plan(
    reference: Results,
    host: Results,
    contract: Contract,
    wishes: Wishes,
    folders: Sequence[Path],
    checks: Sequence[GateResult] = (),
    ladder: Ladder | None = None,
    seed: str | None = None,
) -> Plan:
    """A plan for a host that passes. ``folders``: where an earlier plan of the same build would lie.

    ``seed``: 64 hex digits instead of drawn ones, to make a plan again; the plan says so. Raises UserError: the host
    does not pass, the build has a plan already, and as :func:`parity.judge.plan.make_plan` does.
    """
    if seed is not None and not re.fullmatch(r"[0-9a-f]{64}", seed):
        raise UserError(f"--seed {seed[:80]}: a seed is 64 hex digits; leave it out, and it is drawn")
    gate = contract.gate.model_copy(update={"margin_points": wishes.margin_points})
    verdict = judge(reference, host, contract, checks, ladder, gate)
    name = host.header.shown
    if verdict.status != "PASS":
        raise UserError(
            f"no plan: {name} itself is {verdict.status} ({verdict.headline}), and a phone is held against it; `parity"
            " judge` says more"
        )
    if earlier := find_plan(folders, host):
        raise UserError(
            f"{earlier} is a plan of this build: a build has one, and planning again after a bad start is peeking; go"
            " on with that one"
        )
    # Only now that all else is fixed: whoever knew the seed before could choose the pictures.
    return make_plan(reference, host, wishes, seed or os.urandom(SEED_BYTES).hex(), seed is None)


def judge_phone(
    reference: Results,
    host: Results,
    device: Results,
    plan: Plan,
    contract: Contract,
    checks: Sequence[GateResult] = (),
    ladder: Ladder | None = None,
    gate: Gate | None = None,
    baseline: Baseline | None = None,
    causes: Causes | None = None,
) -> Verdict:
    """Judge a host by the reference on all pictures, and a phone by its plan on those that it has answered.

    ``causes``: what made the phone's pixels differ. ``device`` may be unfinished. The margin is the plan's; the rest is
    as for :func:`parity.judge.judge.judge`. Raises UserError as that does.
    """
    limits = (gate or contract.gate).model_copy(update={"margin_points": plan.wishes.margin_points})
    verdict = judge(reference, host, contract, checks, ladder, limits, baseline)
    known = Results(device.header, {key: row for key, row in device.rows.items() if key in host.rows})
    check_labels(known, contract)
    pairs = [(host.rows[key], row) for key, row in known.rows.items()]
    belongs = device_provenance(reference, host, known, plan, contract, pairs)
    walked, audit, notes = [*verdict.gates, belongs], None, list(verdict.notes)
    if not belongs.red:
        prefix = read_prefix(reference, host, known, plan)
        counted = [(host.rows[key], known.rows[key]) for key in prefix.answered[: prefix.counted]]
        walked += device_gates(prefix, host, known, contract, limits, counted)
        audit = audit_of(prefix, host, device, claim_of(reference, device, plan))
        notes += _notes(device, plan, audit.uncounted)
    status, bad = conclude(walked)
    if bad and bad.stage == "device pixels" and causes and causes.found:
        proven = bad.model_copy(update={"cause": causes.found[0].detail, "fix": causes.found[0].fix})
        walked, bad = [proven if gate is bad else gate for gate in walked], proven
    evidence = verdict.evidence | {"plan": plan_digest(plan)}
    if device.sha256:
        evidence["device"] = device.sha256
    return verdict.model_copy(
        update={
            "status": status,
            "exit_code": EXIT_CODES[status],
            "headline": _headline(verdict, status, bad, device),
            "first_bad_stage": bad.stage if bad else None,
            "cause": "" if status == "INCONCLUSIVE" else bad.cause if bad else "",
            "fix": bad.fix if bad else "",
            "gates": tuple(walked),
            "notes": tuple(notes),
            "evidence": evidence,
            "audit": audit,
        }
    )


def claim_of(reference: Results, device: Results, plan: Plan) -> str:
    """What a PASS says. The pictures stand for others like them; nothing is said of each of these."""
    return (
        f"on photos like these, {device.header.shown} is less than {plan.wishes.margin_points:g} points"
        f" worse than {reference.header.shown} (one-sided, {100 * (1 - plan.alpha):g} % confidence)"
    )


def _headline(verdict: Verdict, status: Status, bad: GateResult | None, device: Results) -> str:
    name = device.header.shown
    others = "".join(f" ({one})" for one in verdict.overrides)
    if bad is None:
        allowed = verdict.difference.margin_points
        return f"OK to ship: on photos like these {name} is less than {allowed:g} points worse{others}"
    if bad in verdict.gates:  # the host's
        return verdict.headline
    if status == "REFUSED":
        return f"Nothing was judged of {name}: {bad.detail}{others}"
    if status == "INCONCLUSIVE":
        return f"Undecided: {bad.cause}{others}"
    wrong = what_is_wrong(bad.stage.removeprefix("device "), name, verdict.difference.margin_points)
    return f"Do not ship: {wrong}{others}"


def _notes(device: Results, plan: Plan, uncounted: int) -> list[str]:
    name = device.header.shown
    notes = []
    if STATED not in device.header.runtime:
        notes.append(f"{name}'s results do not say by which plan it ran (runtime.{STATED})")
    if not plan.seed_drawn:
        notes.append("the plan's seed was given, not drawn: whoever gave it could have chosen the pictures")
    if uncounted:
        notes.append(
            f"{uncounted} of {name}'s {len(device.rows)} rows are not counted: they lie beyond a gap or the stop, or"
            " are not in the plan"
        )
    return notes
