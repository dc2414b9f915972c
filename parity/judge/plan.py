"""``plan.json``: which pictures a phone answers, in which order, and after how many it passes.

Written before the phone's first picture by ``parity plan``, and never again for the same build. It binds what was fixed
then: both sides' results, the contract, the dataset, the GGUFs. All in it but the seed and what was asked for follows
from these, so that a reader makes it anew and compares (:func:`check_plan`).

The order: the census, the class checks, then all other pictures by SHA-256(seed, key), which is a random order for
whoever does not choose the seed. The first ``block`` of these are of all kinds, the rest are those that the host gets
right. A picture that stands in it twice is answered once.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from parity.compare.ladder import header_digest
from parity.judge.audit import ALPHA, pass_rows
from parity.judge.statistics import tango
from parity.judge.verdict import PassRow
from parity.results import Results, Row
from pipeline.core.errors import UserError
from pipeline.core.files import read_regular, sha256_bytes, write_text
from pipeline.core.jsonl import Hex
from pipeline.core.settings import Frozen
from pipeline.core.wording import first_fault

PLAN = "plan.json"
"""Beside the host's results, where nothing else is said."""
BLOCK = 30
"""Pictures of all kinds that the random order begins with: the early FAIL is tried on them. Measured: of phones that
lose 60 points all are found in them, at 30 points 7 in 10. They cost (1 - A) of their number more."""
CLASS_CHECKS = 5


class Bound(Frozen):
    """One side's results, as they were when the plan was made."""

    header_sha256: Hex
    results_sha256: Hex
    """What the closing line states."""


class Wishes(Frozen):
    """What was asked for."""

    margin_points: float = Field(gt=0, le=100)
    census: int = Field(0, ge=0)
    """Pictures with the host's smallest margins that are all answered."""
    class_checks: int = Field(CLASS_CHECKS, ge=0)
    """Pictures of each class that are all answered."""
    block: int = Field(BLOCK, ge=1)
    budget: int | None = Field(None, ge=1)
    """Pictures that the phone answers at most; null for as many as there are."""


class Plan(Frozen):
    """The whole plan; keys are those of the results' rows."""

    schema_version: Literal[1] = 1
    kind: Literal["plan"] = "plan"
    reference: Bound
    host: Bound
    contract_sha256: Hex
    dataset_sha256: Hex
    model: dict[str, Hex]
    """Role -> SHA-256 of the files that the host ran, and the phone has to run."""
    wishes: Wishes
    alpha: float
    """Chance of a false PASS, 0..1."""
    seed: Hex
    seed_drawn: bool
    """Whether the system's generator gave it; false where the caller did."""
    pictures: int
    """N: that the host answered."""
    difference: float
    """D: the host's accuracy minus the reference's, -1..1."""
    width: float
    """w: D minus the lower end of Tango's interval."""
    share: float
    """A: of all pictures, those outside of the census that the host gets right."""
    census: tuple[Hex, ...]
    class_checks: dict[str, tuple[Hex, ...]]
    """Label -> pictures of it that the host gets right."""
    order: tuple[Hex, ...]
    """All that the phone may have to answer, in this order."""
    rows: tuple[PassRow, ...]
    """As long as the census is answered as the host answered it."""


@dataclass(frozen=True)
class Layout:
    """Where a plan's pictures stand."""

    order: tuple[str, ...]
    audit: tuple[str, ...]
    """The random order, as far as the budget goes: the block, then those that the host gets right."""
    reached: tuple[int, ...]
    """Pictures that the phone has answered when it has answered the audit's first, second, ..."""


@dataclass(frozen=True)
class Terms:
    """What the rows follow from: D, w and A of :class:`Plan`."""

    difference: float
    width: float
    share: float


def plan_bytes(plan: Plan) -> bytes:
    """What stands in the file."""
    return (json.dumps(plan.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()


def plan_digest(plan: Plan) -> str:
    """SHA-256 of the file: a phone states it as ``plan_sha256`` in its header's ``runtime``."""
    return sha256_bytes(plan_bytes(plan))


def make_plan(reference: Results, host: Results, wishes: Wishes, seed: str, seed_drawn: bool) -> Plan:
    """The plan that follows from both sides' whole results, what is wished for, and a seed of 64 hex digits.

    Raises UserError: a census larger than the results, or without log-probabilities; results that no number of pictures
    within the budget would do for.
    """
    n = len(host.rows)
    census = census_keys(host, wishes.census)
    ranked = sorted(host.rows.keys() - set(census), key=lambda key: _rank(seed, key))
    class_checks = _class_checks(host, ranked, wishes.class_checks)
    layout = lay_out(host, census, class_checks, ranked, wishes)
    terms = terms_of(reference, host, {}, census)
    rows = rows_of(layout, host, terms, wishes.margin_points)
    if not rows:
        raise UserError(
            f"no plan would do: {n} pictures, {_within(wishes)} of them on the phone, cannot show a margin of"
            f" {wishes.margin_points:g} points even without a loss; take more pictures or a larger budget, or run all"
            " of them on the phone and judge its results as a candidate"
        )
    return Plan(
        reference=_bound(reference),
        host=_bound(host),
        contract_sha256=host.header.contract_sha256,
        dataset_sha256=host.header.dataset_sha256,
        model=host.header.model,
        wishes=wishes,
        alpha=ALPHA,
        seed=seed,
        seed_drawn=seed_drawn,
        pictures=n,
        difference=terms.difference,
        width=terms.width,
        share=terms.share,
        census=census,
        class_checks=class_checks,
        order=layout.order,
        rows=rows,
    )


def _within(wishes: Wishes) -> str:
    return "all" if wishes.budget is None else f"{wishes.budget}"


def _bound(results: Results) -> Bound:
    if results.sha256 is None:
        raise ValueError(f"{results.header.side}'s results were never in a finished file")
    return Bound(header_sha256=header_digest(results.header), results_sha256=results.sha256)


def _rank(seed: str, key: str) -> str:
    return sha256_bytes(bytes.fromhex(seed) + bytes.fromhex(key))


def census_keys(host: Results, count: int) -> tuple[str, ...]:
    """The pictures with the smallest margins between the host's two likeliest labels, smallest first.

    Raises UserError: more than there are, rows without log-probabilities.
    """
    if count == 0:
        return ()
    if count >= len(host.rows):
        raise UserError(f"a census of {count} of {len(host.rows)} pictures leaves nothing to draw from: take a smaller")
    margins = {key: _margin(row) for key, row in host.rows.items()}
    if silent := next((host.rows[key] for key, margin in margins.items() if margin is None), None):
        raise UserError(
            f"{host.header.side}'s results have no log-probabilities of the labels for {silent.image_id}, and a census"
            " takes the smallest margins: plan without --census"
        )
    return tuple(sorted(margins, key=lambda key: (margins[key], key))[:count])


def _margin(row: Row) -> float | None:
    """Between the two likeliest labels, nats."""
    known = sorted((value for value in row.label_logprobs.values() if value is not None), reverse=True)
    return known[0] - known[1] if len(known) > 1 else None


def _class_checks(host: Results, ranked: Sequence[str], count: int) -> dict[str, tuple[str, ...]]:
    """The first of each class in the random order that the host gets right."""
    found: dict[str, list[str]] = {}
    for key in ranked:
        row = host.rows[key]
        if row.correct and row.truth and len(found.setdefault(row.truth, [])) < count:
            found[row.truth].append(key)
    return {label: tuple(keys) for label, keys in sorted(found.items()) if keys}


def lay_out(
    host: Results,
    census: Sequence[str],
    class_checks: dict[str, tuple[str, ...]],
    ranked: Sequence[str],
    wishes: Wishes,
) -> Layout:
    """The order that follows from these, as far as the budget goes."""
    audit = [key for place, key in enumerate(ranked) if place < wishes.block or host.rows[key].correct]
    checks = [key for keys in class_checks.values() for key in keys]
    order = tuple(dict.fromkeys([*census, *checks, *audit]))[: wishes.budget]
    places = {key: place for place, key in enumerate(order, start=1)}
    reached = tuple(_reached(audit, places))
    return Layout(order, tuple(audit[: len(reached)]), reached)


def _reached(audit: Sequence[str], places: dict[str, int]) -> Iterator[int]:
    furthest = 0
    for key in audit:
        if key not in places:
            return
        furthest = max(furthest, places[key])
        yield furthest


def layout_of(plan: Plan, host: Results) -> Layout:
    """Of a plan that :func:`check_plan` found nothing wrong with."""
    ranked = sorted(host.rows.keys() - set(plan.census), key=lambda key: _rank(plan.seed, key))
    return lay_out(host, plan.census, plan.class_checks, ranked, plan.wishes)


def terms_of(reference: Results, host: Results, answered: dict[str, Row], census: Sequence[str]) -> Terms:
    """D, w and A, with the phone's rows of the census in the place of the host's."""
    won = lost = 0
    for key, row in reference.rows.items():
        right = answered.get(key, host.rows[key]).correct
        won += right and not row.correct
        lost += row.correct and not right
    n = len(reference.rows)
    low, _ = tango(won, lost, n)
    among = set(census)
    right_left = sum(row.correct for key, row in host.rows.items() if key not in among)
    # Rounded, so that another machine's last digit makes no other plan.
    return Terms(*(round(value, 12) for value in ((won - lost) / n, (won - lost) / n - low, right_left / n)))


def rows_of(layout: Layout, host: Results, terms: Terms, margin_points: float) -> tuple[PassRow, ...]:
    """The rows within a layout's budget; none where no number of pictures would do."""
    at = [
        pictures for key, pictures in zip(layout.audit, layout.reached, strict=True) if host.rows[key].correct
    ]  # after the first picture that the host gets right, the second, ...
    found = pass_rows(terms.share, terms.difference, terms.width, margin_points / 100, len(at))
    return tuple(PassRow(losses=row, right=n, pictures=at[n - 1]) for row, n in enumerate(found))


def check_plan(plan: Plan, reference: Results, host: Results) -> str | None:
    """What of a plan does not follow from the results that it is to be judged with, in words; None where all does."""
    for results, bound in ((reference, plan.reference), (host, plan.host)):
        if results.sha256 is None or bound != _bound(results):
            return f"it was made for other results of {results.header.shown} than these"
    try:
        again = make_plan(reference, host, plan.wishes, plan.seed, plan.seed_drawn)
    except UserError as error:
        return f"with what it holds there is none ({error})"
    wrong = [name for name in Plan.model_fields if getattr(again, name) != getattr(plan, name)]
    return f"its {wrong[0]} is not what follows from its seed and the results" if wrong else None


def write_plan(plan: Plan, path: Path) -> None:
    """Write it atomically. Raises UserError where there is a plan already: the first one counts."""
    if path.exists():
        raise UserError(
            f"{path} is there already: a build has one plan, and planning again after a bad start is peeking; go on"
            " with that one"
        )
    write_text(path, plan_bytes(plan).decode())


def find_plan(folders: Sequence[Path], host: Results) -> Path | None:
    """A file in one of the folders that is a plan for the same host's results."""
    for path in sorted({path for folder in folders for path in folder.glob("*.json")}):
        try:
            plan = read_plan(path)
        except UserError:  # something else
            continue
        if plan.host.results_sha256 == host.sha256:
            return path
    return None


def read_plan(path: Path) -> Plan:
    """Read a plan. Raises UserError: unreadable, not a plan, another schema version, changed since it was written."""
    try:
        data = read_regular(path)
    except OSError as error:
        raise UserError(f"plan {path} cannot be read: {error.strerror}; `parity plan` writes one") from None
    try:
        plan = Plan.model_validate_json(data)
    except ValidationError as error:
        raise UserError(f"{path} is not a plan ({first_fault(error)}): `parity plan` writes one") from None
    if plan_bytes(plan) != data:
        raise UserError(f"{path} was changed after it was written: judge by the file that `parity plan` wrote")
    return plan


def read_plan_for(path: Path, candidates: int, margin: float | None) -> Plan:
    """Read the plan that so many candidates are to be judged by. Raises UserError as :func:`read_plan`, and: other than
    a host and a phone, a margin that is not the plan's."""
    if candidates != 2:
        raise UserError(
            f"--plan judges a host and a phone: give their two results files behind REFERENCE, not {candidates}"
        )
    plan = read_plan(path)
    if margin not in (None, plan.wishes.margin_points):
        raise UserError(
            f"--margin {margin:g}: the margin of {path} is {plan.wishes.margin_points:g} points and was fixed with it;"
            " leave --margin out"
        )
    return plan
