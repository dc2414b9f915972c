"""A host that a phone can be held against, plans for it, and what a phone makes of them."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from sides import FIVE, results, right, spoil

from parity.judge.phone import draw_plan, judge_phone
from parity.judge.plan import Plan, Wishes, plan_digest
from parity.judge.verdict import Verdict
from parity.results import Results
from pipeline.contract import Contract
from pipeline.core.files import sha256_bytes

SEED = "5eed" * 16


def filed(side: Results) -> Results:
    """As if it had been read from a finished file."""
    return replace(side, sha256=sha256_bytes(f"{side.header.side} {len(side.rows)}".encode()))


def both(n: int = 600, wrong: int = 30, flips: int = 2, contract: Contract = FIVE) -> tuple[Results, Results]:
    """Reference and host: the first ``wrong`` answers are wrong on both, the next ``flips`` on the host alone."""
    ours = spoil(right(n, contract), wrong, contract)
    theirs = spoil(ours, flips, contract, start=wrong)
    return filed(results(ours, contract=contract)), filed(results(theirs, "llamacpp", contract))


def plan_of(sides: tuple[Results, Results], contract: Contract = FIVE, seed: str | None = SEED, **wishes: Any) -> Plan:
    return draw_plan(*sides, contract, Wishes(**({"margin_points": 3.0} | wishes)), [], seed=seed)


def phone(
    host: Results,
    plan: Plan,
    upto: int | None = None,
    lost: Collection[int] = (),
    silent: Collection[int] = (),
    contract: Contract = FIVE,
    **header: object,
) -> Results:
    """The phone's answers to the plan's first ``upto`` pictures: the host's, but for those at the places ``lost``
    (answered with another label) and ``silent`` (without one); places count from 1."""
    rows = {}
    for place, key in enumerate(plan.order[:upto], start=1):
        row = host.rows[key]
        if place in lost:
            label = contract.labels[(contract.labels.index(row.truth) + 1) % len(contract.labels)]
            row = row.model_copy(update={"label": label, "text": f" {label}"})
        if place in silent:
            row = row.model_copy(update={"label": None, "text": ""})
        rows[key] = row
    values = {
        "side": "device",
        "images": len(rows),
        "device": {"cpu": "of a phone"},
        "runtime": {"fed": "rgb", "plan_sha256": plan_digest(plan)},
    }
    return Results(host.header.model_copy(update=values | header), rows)


def judged(sides: tuple[Results, Results], device: Results, plan: Plan, contract: Contract = FIVE) -> Verdict:
    return judge_phone(*sides, device, plan, contract)


def right_places(host: Results, plan: Plan, beyond: int = 0) -> Sequence[int]:
    """Places of the plan's pictures that the host gets right, behind the first ``beyond``."""
    return [place for place, key in enumerate(plan.order, start=1) if place > beyond and host.rows[key].correct]
