"""The release gate: a run that PASSes, and the app that was built with its bundle. Shows and writes what it found."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from parity.judge.bundle import HALVES
from parity.release.checks import AppCheck, Demands, Judged
from parity.release.proof import prove, require_release
from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes, write_json

_MARKS = {"green": "✓", "red": "✗", "not checked": "·"}


@dataclass(frozen=True)
class Gated:
    """What the gate found of an app."""

    proof: tuple[str, ...]
    """What was checked of the run, a line each."""
    checks: tuple[AppCheck, ...]

    @property
    def released(self) -> bool:
        """Whether nothing is wrong with the app."""
        return not any(check.status == "red" for check in self.checks)


def gate(folder: Path, apps: Sequence[Path], demands: Demands, public_key: Path | None = None) -> Gated:
    """Require a run to PASS, and the files of an app to hold just what it judged.

    Raises as prove and check_app do; UserError without the extra ``release``, too.
    """
    if not apps:
        return Gated(tuple(require_release(folder, public_key)), ())
    saved, proof = prove(folder, public_key)
    try:
        from parity.release.app import check_app
    except ImportError as error:
        raise UserError(f"looking into an app needs the extra 'release' ({error}): run `make setup`") from None
    halves = {half: saved.verdict.candidate_header.model[half] for half in sorted(HALVES, reverse=True)}
    return Gated(tuple(proof), tuple(check_app(apps, Judged(halves, saved.contract.digest), demands)))


def shown(found: Gated) -> list[str]:
    """All of it for a person, a line each check."""
    lines = list(found.proof)
    width = max((len(check.name) for check in found.checks), default=0)
    for check in found.checks:
        lines.append(f"  {_MARKS[check.status]} {check.name:<{width}}  {check.detail}")
        if check.status == "red":
            lines.append(f"  {'':<{width + 2}}  do: {check.fix}")
    if found.checks:
        red = [check.name for check in found.checks if check.status == "red"]
        left = [check.name for check in found.checks if check.status == "not checked"]
        rest = f" (not checked: {', '.join(left)})" if left else ""
        lines.append(f"NOT RELEASED: {', '.join(red)}" if red else f"RELEASED: the app holds what was judged{rest}")
    return lines


def write_gate(found: Gated, path: Path) -> None:
    """Write it as JSON."""
    write_json(path, {"schema_version": 1, "released": found.released} | asdict(found))


def write_gate_junit(found: Gated, path: Path) -> None:
    """Write it as JUnit XML: a test case for each check of the app, and one for the run."""
    suite = ElementTree.Element(
        "testsuite",
        {
            "name": "release gate",
            "tests": str(len(found.checks) + 1),
            "failures": str(sum(check.status == "red" for check in found.checks)),
            "errors": "0",
            "skipped": str(sum(check.status == "not checked" for check in found.checks)),
        },
    )
    ElementTree.SubElement(suite, "testcase", {"name": "run", "classname": "gate"})
    for check in found.checks:
        case = ElementTree.SubElement(suite, "testcase", {"name": check.name, "classname": "gate"})
        text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in check.detail)
        if check.status == "red":
            ElementTree.SubElement(case, "failure", {"message": text}).text = f"{text}\nWhat to do: {check.fix}"
        elif check.status == "not checked":
            ElementTree.SubElement(case, "skipped", {"message": text})
    write_bytes(path, ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))
