"""``junit.xml``: what a build server shows as tests; one case a gate and one a class.

The form is that of Jenkins' and Maven Surefire's schemas, which the servers share: ``testsuites`` / ``testsuite`` /
``testcase`` with at most one of ``failure`` and ``skipped``. Undecided and not measured are skipped, with the reason.
"""

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from parity.judge.statistics import tango
from parity.judge.verdict import ClassScore, GateResult, Verdict
from parity.results import Results, display_name

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""


def junit_xml(verdict: Verdict, reference: Results, candidate: Results) -> bytes:
    """UTF-8 XML. The rows are needed for the classes, whose difference is a paired one."""
    cases = [_gate_case(gate) for gate in verdict.gates]
    classes = next((gate for gate in verdict.gates if gate.stage == "classes"), None)
    for ours, theirs in zip(verdict.reference.per_class, verdict.candidate.per_class, strict=True):
        cases.append(_class_case(verdict, (ours, theirs), classes, _surely_lower(ours.label, reference, candidate)))
    seconds = verdict.reference.seconds + verdict.candidate.seconds
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": "0",
        "skipped": str(sum(case.find("skipped") is not None for case in cases)),
        "time": f"{seconds:.3f}",
    }
    root = ElementTree.Element("testsuites", {"name": "parity"} | counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "parity"} | counts)
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(verdict).items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": _clean(value)})
    suite.extend(cases)
    ElementTree.SubElement(suite, "system-out").text = _clean(f"{verdict.status}: {verdict.headline}")
    ElementTree.indent(root)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="utf-8") + b"\n"


def _properties(verdict: Verdict) -> Mapping[str, str]:
    audit = verdict.audit
    by_plan = {
        "plan_sha256": audit.plan_sha256,
        "plan_claim": audit.claim,
        "plan_stop": audit.stop or "none",
        "plan_pictures": str(audit.counted),
        "plan_lost": " ".join(str(lost.picture) for lost in audit.lost),
        "plan_pass_line": " ".join(f"{row.losses}:{row.pictures}" for row in audit.rows),
    } if audit else {}  # fmt: skip
    return by_plan | {
        "verdict": verdict.status,
        "first_bad_stage": verdict.first_bad_stage or "",
        "images": str(verdict.n),
        "split": verdict.split or "unknown",
        **(
            {
                "difference_points": f"{verdict.difference.points:.4f}",
                "margin_points": f"{verdict.difference.margin_points:g}",
            }
            if verdict.labels
            else {"agreement": f"{verdict.agreement:.4f}"}
        ),
        "other_limits": "; ".join(verdict.overrides),
        "contract_sha256": verdict.reference_header.contract_sha256,
        "dataset_sha256": verdict.reference_header.dataset_sha256,
    }


def _case(kind: str, name: str, seconds: float = 0.0) -> ElementTree.Element:
    return ElementTree.Element("testcase", classname=f"parity.{kind}", name=_clean(name), time=f"{seconds:.3f}")


def _gate_case(gate: GateResult) -> ElementTree.Element:
    case = _case("gates", f"{gate.rung} {gate.stage}" if gate.rung else gate.stage)
    text = "\n".join(line for line in (gate.detail, gate.cause and f"Likely cause: {gate.cause}",
                                       gate.fix and f"What to do: {gate.fix}", _number(gate)) if line)  # fmt: skip
    _conclude(case, gate.status, gate.detail, text)
    return case


def _number(gate: GateResult) -> str:
    if gate.value is None:
        return ""
    parts = [f"{gate.metric or 'value'}: {gate.value:.6g}"]
    parts += [
        f"{name} {value:.6g}"
        for name, value in (("limit", gate.limit), ("noise floor", gate.floor))
        if value is not None
    ]
    return ", ".join(parts)


def _surely_lower(label: str, reference: Results, candidate: Results) -> float:
    """Percentage points by which a label's recall is surely lower: the near end of Tango's 95 % interval, or 0."""
    pairs = [
        (row, candidate.rows[key])
        for key, row in reference.rows.items()
        if row.truth == label and key in candidate.rows
    ]
    if not pairs:
        return 0.0
    won = sum(b.correct and not a.correct for a, b in pairs)
    lost = sum(a.correct and not b.correct for a, b in pairs)
    return max(-100 * tango(won, lost, len(pairs))[1], 0.0)


def _class_case(
    verdict: Verdict, scores: tuple[ClassScore, ClassScore], classes: GateResult | None, lower: float
) -> ElementTree.Element:
    ours, theirs = scores
    case = _case("classes", f"recall of {ours.label}")
    if not ours.support:
        _conclude(case, "not measured", f"no image shows {ours.label}", "")
        return case
    found = "\n".join(
        f"{display_name(side.side)}: recall {score.recall:.1%}, 95 % interval {score.recall_low:.1%} to"
        f" {score.recall_high:.1%}, {score.support} images"
        for side, score in ((verdict.reference, ours), (verdict.candidate, theirs))
    )
    status, message = "green", found
    if classes and classes.status in ("red", "undecided"):
        # The gate names a label that it holds against a floor of the contract by its detail alone.
        named = next((part for part in classes.detail.split("; ") if part.startswith(f"{ours.label}: ")), "")
        beyond = classes.limit is not None and lower > classes.limit
        if named or (beyond and classes.red):
            status, message = (
                classes.status,
                named or f"{ours.label}: significantly lower, by {lower:.1f} points at least",
            )
    text = (
        found
        if status == "green" or not classes
        else f"{found}\nLikely cause: {classes.cause}\nWhat to do: {classes.fix}"
    )
    _conclude(case, status, message, text)
    return case


def _conclude(case: ElementTree.Element, status: str, message: str, text: str) -> None:
    if status == "red":
        ElementTree.SubElement(case, "failure", message=_clean(message), type="parity").text = _clean(text)
    elif status == "green":
        ElementTree.SubElement(case, "system-out").text = _clean(text)
    else:
        ElementTree.SubElement(case, "skipped", message=_clean(f"{status}: {message}"))
        if text:
            ElementTree.SubElement(case, "system-out").text = _clean(text)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("�", text)
