"""A GitHub job's summary (Markdown) and annotations (workflow commands).

Ids, labels and texts are untrusted: in the summary every active character of theirs stands behind a backslash, which
CommonMark reads as that character and nothing else; in a command the characters that end it are escaped as GitHub's
toolkit does.
"""

import re
from collections.abc import Sequence

from parity.judge.verdict import Flip, GateResult, Verdict, images_name
from parity.report.brief import cause_name, counted, shown_gates, what_ran
from parity.report.staircase import pass_line, stop_words
from parity.results import display_name

MAX_BYTES = 1 << 20
"""What GitHub shows of a step's summary; a longer one is refused whole."""
SHOWN_FLIPS = 10
SHOWN_TEXT = 400
"""Characters of one cell."""
_MARKS = {
    "green": "✅ green",
    "red": "❌ red",
    "undecided": "❔ undecided",
    "not measured": "\N{HEAVY MINUS SIGN} not measured",
}
_STATUS = {"PASS": "✅", "FAIL": "❌", "INCONCLUSIVE": "❔", "REFUSED": "⛔"}
_DASH = "\N{EN DASH}"
_ACTIVE = re.compile(r"[\\`*_{}\[\]<>#|~&:@$^]|(?<=www)\.", re.IGNORECASE)
"""What Markdown, HTML, GitHub's mathematics, mentions and bare links are made of, away from the start of a line."""


def summary(verdict: Verdict) -> str:
    """Markdown for ``GITHUB_STEP_SUMMARY``, less than 1 MiB."""
    ours, theirs = display_name(verdict.reference.side), display_name(verdict.candidate.side)
    gap, sides = verdict.difference, (verdict.reference, verdict.candidate)
    lines = [f"## {_STATUS[verdict.status]} Parity: {verdict.status}", "", f"**{escape(verdict.headline)}**", ""]
    if verdict.cause:
        lines += [f"- {cause_name(verdict)}: {escape(verdict.cause)}"]
    if verdict.fix:
        lines += [f"- What to do: {escape(verdict.fix)}"]
    if verdict.status == "INCONCLUSIVE" and gap.needed is not None and verdict.labels and not verdict.audit:
        lines += [f"- Next run: plan it on {gap.needed:,} images or more (this run: {verdict.n:,})"]
    scored = [
        _row("accuracy", [f"{side.accuracy:.2%}" for side in sides]),
        _row("95 % interval", [f"{side.accuracy_low:.1%} to {side.accuracy_high:.1%}" for side in sides]),
        _row("macro F1", [f"{side.macro_f1:.4f}" for side in sides]),
    ]
    difference = (
        f"Difference {gap.points:+.2f} points, 95 % interval {gap.low:+.2f} to {gap.high:+.2f}, margin"
        f" ±{gap.margin_points:g}; {verdict.agreement:.2%} of the answers are the same."
    )
    open_difference = f"{verdict.agreement:.2%} of the answers are equal to the letter."
    judged = [
        f"| {verdict.n:,} {images_name(verdict)} | {escape(ours)} | {escape(theirs)} |",
        "| :-- | --: | --: |",
        *(scored if verdict.labels else []),
        _row("images/s", [f"{s.images_per_second:.1f}" if s.images_per_second else _DASH for s in sides]),
        "",
        difference if verdict.labels else open_difference,
        "",
    ]
    refused = verdict.status == "REFUSED"
    lines += [
        "",
        *([] if refused else judged),
        *_causes(verdict),
        "| | check | value | limit | floor | |",
        "| :-- | :-- | --: | --: | --: | :-- |",
        *(_gate(gate) for gate in shown_gates(verdict)),
        "",
        *_phone(verdict),
        *([] if refused else _flips(verdict, ours, theirs)),
        escape(" · ".join(what_ran(verdict))),
        "",
    ]
    for note in verdict.notes[:20]:
        lines.append(f"> Note: {escape(note)}\n")
    text = "\n".join(lines).rstrip() + "\n"
    while len(text.encode()) >= MAX_BYTES:  # only labels or sides of absurd length could get here
        text = text[: len(text) // 2].rsplit("\n", 1)[0] + "\n"
    return text


def _phone(verdict: Verdict) -> list[str]:
    audit = verdict.audit
    if audit is None:
        return []
    lines = [
        f"**{escape(audit.device_header.shown)}, by its plan**: {escape(audit.claim)}.",
        "",
        f"- Stop: {escape(stop_words(audit))}",
        f"- PASS after {pass_line(audit.rows)}",
    ]
    for lost in audit.lost[:SHOWN_FLIPS]:
        said = f"{lost.truth} as {lost.label or 'no answer'}"
        lines.append(f"- Lost as picture {lost.picture:,}: {escape(lost.image_id)}, {escape(said)}")
    return [*lines, ""]


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def _gate(gate: GateResult) -> str:
    numbers = ["" if value is None else f"{value:.3g}" for value in (gate.value, gate.limit, gate.floor)]
    name = f"{gate.rung} {gate.stage}" if gate.rung else gate.stage
    return f"| {_MARKS[gate.status]} | {escape(name)} | " + " | ".join(numbers) + f" | {escape(gate.detail)} |"


def _causes(verdict: Verdict) -> list[str]:
    if verdict.causes is None or not verdict.causes.found:
        return []
    lines = ["| cause | pictures | | what to do |", "| :-- | --: | :-- | :-- |"]
    lines += [
        f"| {cause.kind} | {cause.pictures:,} | {escape(cause.detail)} | {escape(cause.fix)} |"
        for cause in verdict.causes.found
    ]
    return [*lines, ""]


def _flips(verdict: Verdict, ours: str, theirs: str) -> list[str]:
    flips = verdict.flips
    kinds = {
        "right → wrong": flips.right_to_wrong,
        "wrong → right": flips.wrong_to_right,
        "wrong → other wrong": flips.wrong_to_other_wrong,
    }
    total = sum(found.count for found in kinds.values())
    if not total:
        return ["No flips: both sides answer every image alike."]
    lines = [
        f"**{counted(total, 'flip')}**: " + ", ".join(f"{found.count:,} {kind}" for kind, found in kinds.items()) + ".",
        "",
        f"| image | truth | {escape(ours)} | {escape(theirs)} | diverged at | |",
        "| :-- | :-- | :-- | :-- | :-- | :-- |",
    ]
    listed = [(kind, flip) for kind, found in kinds.items() for flip in found.examples][:SHOWN_FLIPS]
    lines += [_flip(kind, flip) for kind, flip in listed]
    if total > len(listed):
        lines += ["", f"and {total - len(listed):,} more, in `report.html`."]
    return [*lines, ""]


def _flip(kind: str, flip: Flip) -> str:
    answers = (flip.reference or "no answer", flip.candidate or "no answer")
    cells = (flip.image_id, flip.truth or _DASH, *answers, flip.parted_at or _DASH, kind)
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line; control characters become a mark."""
    if len(text) > SHOWN_TEXT:
        text = text[: SHOWN_TEXT - 1] + "…"
    text = "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text)
    return _ACTIVE.sub(r"\\\g<0>", text)


def annotations(verdict: Verdict) -> str:
    """GitHub workflow commands, one a line: an error or a warning for what decides the verdict, a notice for a PASS.

    Escapes as ``@actions/core`` does: %, CR and LF in the message, ``:`` and ``,`` in a property, too.
    """
    lines = []
    bad = next((gate for gate in verdict.gates if gate.stage == verdict.first_bad_stage), None)
    if bad is not None:
        # One for a verdict: what is red behind it follows from it, and four cures for one cause help nobody.
        level = "error" if bad.red else "warning"
        parts = [verdict.headline, verdict.cause and f"{cause_name(verdict)}: {verdict.cause}"]
        parts += [verdict.fix and f"What to do: {verdict.fix}", bad.detail]
        name = f"{bad.rung} {bad.stage}" if bad.rung else bad.stage
        lines.append(_command(level, f"Parity {verdict.status}: {name}", "\n".join(part for part in parts if part)))
    lines += [_command("warning", f"Parity {verdict.status}: other limits", one) for one in verdict.overrides]
    if verdict.status == "PASS":
        lines.append(_command("notice", "Parity PASS", verdict.headline))
    return "".join(line + "\n" for line in lines)


def _command(level: str, title: str, message: str) -> str:
    return f"::{level} title={_data(title).replace(':', '%3A').replace(',', '%2C')}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
