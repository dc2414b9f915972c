"""Plants every fault on a recipe's run, judges, and holds the stage found against the stage expected.

runs/<recipe>/selftest/  selftest.json  selftest.md
"""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from parity.compare.ladder import Ladder, Measured, read_ladder
from parity.compare.measure import follow
from parity.compare.runner import LADDER
from parity.compare.samples import spread
from parity.judge.goldens import letterbox_gate
from parity.judge.verdict import Status
from parity.results import Results, Row, read_results
from parity.run import FILES, open_run
from parity.studies.selftest.bench import Bench, Evidence
from parity.studies.selftest.faults import BAD_INPUT, CONTROLS, FAULTS, NOWHERE, Fault
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes, write_json, write_text
from pipeline.core.progress import Reporter
from pipeline.core.settings import Frozen
from pipeline.export.bundle import mmproj_name, text_name
from pipeline.workflow.build import Build

FOLDER = "selftest"
RESAMPLINGS = 50


class Finding(Frozen):
    """What became of a fault."""

    name: str
    reality: str
    expected: str
    """The stage; ``bad input``, or ``nowhere`` for a control."""
    found: str
    """The stage, ``bad input`` or ``nowhere``."""
    status: Status | None
    """None where there was no verdict."""
    caught: bool
    detail: str
    """What the gate expected says, or the sentence."""
    value: float | None
    """Of the gate expected."""
    limit: float | None
    beyond: str
    """Images beyond the limit on their own, of how many; empty where the gate has none."""
    seconds: float


class SelfTest(Frozen):
    """``selftest.json``."""

    schema_version: int = 1
    recipe: str
    samples: int
    """Images that a fault was run on; those of bytes and tokens alone are run on fewer."""
    images: int
    """Images of the run."""
    findings: tuple[Finding, ...]
    controls: tuple[Finding, ...]
    resamplings: dict[Status, int]
    """Status -> how many resamplings of the clean pair were given it."""
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every fault was caught at its stage, and nothing else was."""
        clean = not self.resamplings.get("FAIL", 0) and not self.resamplings.get("REFUSED", 0)
        return clean and all(finding.caught for finding in (*self.findings, *self.controls))


def try_fault(fault: Fault, bench: Bench) -> Finding:
    """Plant a fault and judge."""
    start = time.perf_counter()
    try:
        verdict = fault.plant(bench).judged()
    except UserError as error:
        caught = fault.stage == BAD_INPUT and fault.sentence in str(error)
        return _finding(fault, start, BAD_INPUT, caught, str(error))
    bad = verdict.status in ("FAIL", "REFUSED")
    found = verdict.first_bad_stage or NOWHERE if bad else NOWHERE
    gate = next((one for one in verdict.gates if one.stage == fault.stage), None)
    detail = gate.detail if gate else verdict.headline
    finding = _finding(fault, start, found, found == fault.stage, detail, verdict.status)
    if gate is None or gate.value is None:
        return finding
    beyond = f"{gate.beyond} of {gate.samples}" if gate.beyond else ""
    return finding.model_copy(update={"value": gate.value, "limit": gate.limit, "beyond": beyond})


def _finding(
    fault: Fault, start: float, found: str, caught: bool, detail: str, status: Status | None = None
) -> Finding:
    return Finding(
        name=fault.name, reality=fault.reality, expected=fault.stage, found=found, status=status, caught=caught,
        detail=detail, value=None, limit=None, beyond="", seconds=round(time.perf_counter() - start, 2),
    )  # fmt: skip


def resampled(evidence: Evidence, generator: random.Random) -> Evidence:
    """As many images drawn with replacement, each draw an image of its own."""
    assert evidence.ladder is not None
    ours: dict[str, Row] = {}
    theirs: dict[str, Row] = {}
    rungs: dict[str, Measured] = {}
    for number, key in enumerate(generator.choices(list(evidence.reference.rows), k=len(evidence.reference.rows))):
        new = sha256_bytes(f"{key} {number}".encode())
        for rows, drawn in ((evidence.reference.rows, ours), (evidence.candidate.rows, theirs)):
            # The hash of what was fed is the key, or was not before either.
            row = rows[key]
            fed = new if row.rgb_sha256 == key else sha256_bytes(f"{row.rgb_sha256} {number}".encode())
            about = {"key": new, "rgb_sha256": fed, "image_id": f"{row.image_id} {number}"}
            drawn[new] = row.model_copy(update=about)
        line = evidence.ladder.rows[key].model_copy(update={"key": new})
        rungs[new] = follow(line, ours[new], theirs[new])
    return replace(
        evidence,
        reference=Results(evidence.reference.header, ours),
        candidate=Results(evidence.candidate.header, theirs),
        ladder=Ladder(evidence.ladder.header, rungs),
    )


def resample(evidence: Evidence, seed: int = 0) -> dict[Status, int]:
    """Judge RESAMPLINGS resamplings of a clean pair; status -> how many."""
    generator = random.Random(seed)
    counts = Counter(resampled(evidence, generator).judged().status for _ in range(RESAMPLINGS))
    return dict(counts)


def open_bench(build: Build, samples: int, scratch: Path) -> Bench:
    """A recipe's run as a bench; builds and runs what is missing."""
    build.ensure_export()
    with open_run(build) as run:
        run.ensure_ladder()
    reference, candidate = (read_results(run.folder / name) for name in FILES.values())
    ladder = read_ladder(run.folder / LADDER)
    return Bench(
        contract=run.contract,
        merged=build.merged_folder,
        base=build.find_base(),
        model=build.bundle_folder / text_name(build.recipe),
        mmproj=build.bundle_folder / mmproj_name(build.recipe),
        saved=Evidence(reference, candidate, ladder, run.contract, (letterbox_gate(),)),
        samples=spread(run.samples, samples),
        scratch=scratch,
    )


def chosen(only: Sequence[str]) -> tuple[Fault, ...]:
    """The faults of these names, all where none is given. Raises UserError."""
    unknown = set(only) - {fault.name for fault in FAULTS}
    if unknown:
        names = ", ".join(repr(fault.name) for fault in FAULTS)
        raise UserError(f"there is no fault {sorted(unknown)[0]!r}: give one of {names}")
    return tuple(fault for fault in FAULTS if not only or fault.name in only)


def self_test(bench: Bench, recipe: str, faults: Sequence[Fault], reporter: Reporter) -> SelfTest:
    """Plant the faults one by one."""
    start = time.perf_counter()
    findings: list[Finding] = []
    with reporter.progress(FOLDER, "faults") as advance:
        for fault in (*faults, *CONTROLS):
            advance(len(findings), len(faults) + len(CONTROLS), fault.name)
            findings.append(try_fault(fault, bench))
    return SelfTest(
        recipe=recipe,
        samples=len(bench.samples),
        images=len(bench.saved.reference.rows),
        findings=tuple(findings[: len(faults)]),
        controls=tuple(findings[len(faults) :]),
        resamplings=resample(bench.saved),
        seconds=round(time.perf_counter() - start, 1),
    )


def run(build: Build, samples: int, only: Sequence[str] = ()) -> SelfTest:
    """Do the self-test of a recipe; its files are written where no fault is left out."""
    faults = chosen(only)
    folder = build.root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    # Changed copies of the GGUFs, one at a time; a large model's may not fit where the system keeps its own.
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=folder) as scratch:
        done = self_test(open_bench(build, samples, Path(scratch)), build.recipe.name, faults, build.reporter)
    if not only:
        write_json(folder / "selftest.json", done.model_dump(mode="json") | {"passed": done.passed})
        write_text(folder / "selftest.md", markdown(done))
    return done


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _against(finding: Finding) -> str:
    """Value and limit, in a few words."""
    if finding.value is None:
        return ""
    return f"{_number(finding.value)} ({_number(finding.limit)} allowed)"


def summary(done: SelfTest) -> str:
    """All of it in two sentences."""
    caught = sum(finding.caught for finding in done.findings)
    counts = ", ".join(f"{count} {status}" for status, count in sorted(done.resamplings.items()))
    return (
        f"{caught} of {len(done.findings)} faults caught at their stage, on at most {done.samples} images each;"
        f" {sum(done.resamplings.values())} resamplings of the clean pair ({done.images} images): {counts}"
    )


def markdown(done: SelfTest) -> str:
    """The table as docs/correctness.md has it, and what it does not."""
    lines = ["| fault | what goes wrong | caught at | measured there |", "| --- | --- | --- | --- |"]
    for finding in done.findings:
        at = finding.expected if finding.caught else f"NOT at {finding.expected} but {finding.found}"
        lines.append(f"| {finding.name} | {finding.reality} | {at} | {_against(finding)} |")
    lines += ["", f"{summary(done)}."]
    for control in done.controls:
        if not control.caught:
            lines += ["", f"Nothing was planted in {control.name!r}, and it failed at {control.found}."]
    return "\n".join(lines) + "\n"


def print_self_test(done: SelfTest, console: Console) -> None:
    """The table for a person."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "fault", "expected", "found", "value", "limit", "beyond"):
        table.add_column(column, justify="right" if column in ("value", "limit", "beyond") else "left")
    for finding in (*done.findings, *done.controls):
        table.add_row(
            "ok" if finding.caught else "NO",
            finding.name,
            finding.expected,
            finding.found + (f" ({finding.status})" if finding.status else ""),
            _number(finding.value),
            _number(finding.limit),
            finding.beyond,
            style="" if finding.caught else "bold red",
        )
    console.print(table)
    for finding in (*done.findings, *done.controls):
        if not finding.caught:
            console.print(f"NO: {finding.name}: {finding.detail}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{summary(done)} ({done.seconds:.0f} s)", markup=False, highlight=False, soft_wrap=True)
