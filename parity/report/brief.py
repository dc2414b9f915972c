"""A verdict in few words: one line a check, what ran, what to do next. Shared by screen, page and summary."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from parity.judge.verdict import GateResult, Verdict
from parity.judge.words import FOLLOWS
from pipeline.contract import Contract
from pipeline.core.pinned import LLAMA_CPP_COMMIT, PYTHON_PACKAGE

_IN_FULL = ("accuracy", "classes", "agreement", "score", "baseline", "audit")
"""Checks whose finding is no share of anything."""

_NAMED = 3
"""Labels that name a contract without a name of its own."""

_NUMERIC = ("embeddings", "logits", "generation", "accuracy", "classes", "baseline")
"""Checks that a swap of parts explains."""


def shown_gates(verdict: Verdict) -> Sequence[GateResult]:
    """The checks to show: where nothing was judged, the one that says why."""
    if verdict.status != "REFUSED":
        return verdict.gates
    return [gate for gate in verdict.gates if gate.stage == verdict.first_bad_stage]


def brief(gate: GateResult) -> str:
    """What a check found, for one line."""
    if gate.status == "not measured":
        return f"not measured: {gate.detail}"
    if gate.red and gate.cause.startswith(FOLLOWS):
        much = of_limit(gate) if gate.floor is not None else ""
        return gate.cause + (f" ({much})" if much else "")
    if gate.stage.removeprefix("device ") in _IN_FULL or (gate.red and not gate.limit):
        return gate.detail
    if gate.limit == 0 and gate.samples:
        return f"{gate.beyond} of {gate.samples} differ"
    if gate.limit and gate.value is not None and gate.floor is not None:
        beyond = f", {gate.beyond} of {gate.samples} images beyond their own" if gate.beyond else ""
        return f"{of_limit(gate)} (value {gate.value:.2g}, limit {gate.limit:.2g}){beyond}"
    return gate.detail


def of_limit(gate: GateResult) -> str:
    """A measured value by its limit: ``6 % of the limit``, ``340 times the limit``; empty without a limit above 0."""
    if gate.value is None or not gate.limit:
        return ""
    share = gate.value / gate.limit
    if share > 10:
        return f"{share:,.0f} times the limit"
    return f"{100 * share:.0f} % of the limit" if share >= 0.01 else "less than 1 % of the limit"


def counted(number: int, what: str) -> str:
    """``1 flip``, ``12 flips``"""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def flips_line(verdict: Verdict) -> str:
    """How many answers changed, by what that cost."""
    flips = verdict.flips
    kinds = (
        (flips.right_to_wrong.count, "right → wrong"),
        (flips.wrong_to_right.count, "wrong → right"),
        (flips.wrong_to_other_wrong.count, "wrong → other wrong"),
    )
    total = sum(count for count, _ in kinds)
    if not total:
        return f"none: both sides answer all {verdict.n:,} images alike"
    if not verdict.labels:
        return f"{total:,} of {verdict.n:,} answers differ"
    return f"{total:,} of {verdict.n:,}: " + ", ".join(f"{count:,} {kind}" for count, kind in kinds if count)


def what_ran(verdict: Verdict, written: datetime | None = None) -> tuple[str, ...]:
    """Recipe, files and their types, llama.cpp's version and backend, the machine, the day; what is not known is left
    out. ``written``: when the candidate's results were.

    Without a recipe it is called by the contract; by its labels where these are its own and its name is the phone's.
    """
    header = verdict.candidate_header
    runtime = header.runtime
    name, usual = str(runtime.get("recipe", verdict.name)), Contract()
    if name == usual.name and verdict.labels and verdict.labels != usual.labels:
        more = len(verdict.labels) - _NAMED
        name = ", ".join(verdict.labels[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    types = [str(runtime[key]) for key in ("text_types", "text_matrices") if key in runtime]
    vision = [str(runtime[key]) for key in ("mmproj_types", "mmproj_matrices") if key in runtime]
    files = str(runtime["files"]) if "files" in runtime else ""
    if types and vision:
        files = f"{files} ({types[0]}, vision {vision[0]})".strip()
    version = header.versions.get("llama.cpp", "") or header.versions.get("llama_commit", "")[:7]
    if not version and header.versions.get(PYTHON_PACKAGE):
        pinned = LLAMA_CPP_COMMIT.get(header.versions[PYTHON_PACKAGE])
        version = pinned[:7] if pinned else f"of {PYTHON_PACKAGE} {header.versions[PYTHON_PACKAGE]}"
    backend = "GPU" if runtime.get("gpu") else "CPU"
    engine = f"llama.cpp {version} on {backend}" if version else header.engine
    machine = header.device.get("model") or header.device.get("cpu", "")
    day = f"{written:%Y-%m-%d}" if written else ""
    return tuple(part for part in (name, files, engine, machine, day) if part)


def further_causes(verdict: Verdict) -> Sequence[str]:
    """The causes behind the first, a line each."""
    if verdict.causes is None or verdict.status != "FAIL":
        return ()
    causes = verdict.causes
    return [f"{one.kind} in {one.pictures} of {causes.tried}: {one.detail}" for one in causes.found[1:]]


def next_steps(verdict: Verdict, report: Path | None, verbose: bool = False, recipe: str = "") -> list[str]:
    """What to look at or to run now, a line each. ``recipe``: of the run, where it was one."""
    lines = [f"report  {report}" + ("" if verbose else "  (-v shows all of it here)")] if report else []
    run = report.parent.parent if report and report.parent.name == "parity" else None
    if verdict.status == "PASS" and run:
        lines.append(f"next    .venv/bin/parity gate {run}  (lets it through for release)")
    elif verdict.status == "FAIL" and recipe and verdict.first_bad_stage in _NUMERIC:
        lines.append(f"next    .venv/bin/parity swap {recipe}  (which part carries the error)")
    elif verdict.status == "FAIL" and _in_a_half(verdict):
        lines.append("next    the same command with --layers  (the first layer that differs)")
    return lines


def _in_a_half(verdict: Verdict) -> bool:
    """Whether a half of the model differs, and its layers were not looked at."""
    causes = verdict.causes
    halves = ("vision", "language")
    return causes is not None and not causes.layers and any(one.kind in halves for one in causes.found)


def proven(verdict: Verdict) -> bool:
    """Whether the cause was found by trying, and is no guess."""
    return verdict.status == "FAIL" and verdict.causes is not None and bool(verdict.causes.found)


def photos_needed(verdict: Verdict) -> str:
    """What the images that a next run needs mean in labelled photos: `` (2,050 labelled photos at this split)``."""
    needed, photos = verdict.difference.needed, verdict.reference_header.photos
    if needed is None or not photos or photos <= verdict.n:
        return ""
    return f" ({-(-needed * photos // verdict.n):,} labelled photos, split as these {photos:,} are)"


def cause_name(verdict: Verdict) -> str:
    """What a verdict's cause is: proven, likely, or what differs between sides that cannot be judged."""
    return "Difference" if verdict.status == "REFUSED" else "Cause" if proven(verdict) else "Likely cause"
