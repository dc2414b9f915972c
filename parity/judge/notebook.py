"""A verdict as a notebook shows it: HTML without a script, in its own colours on any background."""

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parity.judge.verdict import Verdict

_COLOURS = {"PASS": "#1a7f37", "FAIL": "#b42318", "INCONCLUSIVE": "#9a6700", "REFUSED": "#9a6700"}
_MARKS = {"green": "✓", "red": "✗", "undecided": "?", "not measured": "·"}

_CELL = "<td style='text-align:left'>"


def verdict_html(verdict: "Verdict") -> str:
    """Status, headline, what to do and a row for each check."""
    advice = "".join(
        f"<p style='margin:.2em 0'><b>{name}</b> {escape(text)}</p>"
        for name, text in (("Cause", verdict.cause), ("What to do", verdict.fix))
        if text and verdict.status != "PASS"
    )
    rows = "".join(
        f"<tr><td>{_MARKS[gate.status]}</td><td>{escape(gate.rung or '')}</td>{_CELL}{escape(gate.stage)}</td>"
        f"{_CELL}{escape(gate.detail)}</td></tr>"
        for gate in verdict.gates
    )
    colour = _COLOURS[verdict.status]
    return (
        f"<div style='border-left:4px solid {colour};padding:.2em 0 .2em 1em'>"
        f"<p style='margin:.2em 0;font-weight:bold'><span style='color:{colour}'>{verdict.status}</span>"
        f" {escape(verdict.headline)}</p>{advice}"
        f"<details><summary>{len(verdict.gates)} checks</summary><table>{rows}</table></details></div>"
    )
