"""A verdict as a person reads it: on a terminal with colours, elsewhere as plain text that says the same.

Nothing is told by colour alone. Made for 80 to 100 columns: the verdict stands last, where a terminal still shows it.
"""

import io
from collections.abc import Sequence
from itertools import zip_longest

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from parity.compare.ladder import RUNGS
from parity.judge.verdict import Flip, Flips, GateResult, GateStatus, Side, Status, Verdict, images_name
from parity.report.brief import brief, flips_line, further_causes, photos_needed, shown_gates, what_ran
from parity.report.staircase import bet_words, class_words, pass_line, stop_words
from parity.results import display_name
from pipeline.evaluation import confusion_lines

MAX_WIDTH = 100
MATRIX_LABELS = 10
"""Confusion matrices are shown up to this many labels; beyond it, the commonest confusions."""
SHOWN_FLIPS = 8
"""Flips listed of each kind; ``verdict.json`` has more."""
SHOWN_CONFUSIONS = 10
SHOWN_TEXT = 150
"""Characters of an open answer."""

_STYLES: dict[Status, str] = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow", "REFUSED": "yellow"}
_MARKS: dict[GateStatus, tuple[str, str]] = {
    "green": ("✓ ok", "green"),
    "red": ("✗ RED", "bold red"),
    "undecided": ("? open", "bold yellow"),
    "not measured": ("·", "dim"),
}
_ASCII = str.maketrans({"✓": "+", "✗": "X", "→": ">", "·": ".", "…": "~", "│": "|"} | dict.fromkeys("╭╮╰╯─", "-"))
"""For a terminal that can show ASCII alone; the marks stand beside words."""


def render_text(verdict: Verdict, width: int = 88, verbose: bool = True) -> str:
    """The verdict as plain text at most ``width`` columns wide, without trailing spaces, one newline at the end."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    _print(verdict, console, verbose)
    return _trimmed(buffer.getvalue())


def print_verdict(verdict: Verdict, console: Console, verbose: bool = False, then: Sequence[str] = ()) -> None:
    """Print the verdict, and last what it comes to; in ASCII alone where the console's encoding has no more.

    ``verbose``: with all that was measured, else a line a check. ``then``: lines below it: where the report is, what to
    run next.
    """
    _print(verdict, console, verbose, then)


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.rstrip().split("\n")) + "\n"


def _print(verdict: Verdict, console: Console, verbose: bool, then: Sequence[str] = ()) -> None:
    width = min(console.width, MAX_WIDTH)
    parts = _all(verdict, width) if verbose else [_brief_gates(verdict, width)]
    parts.append(_headline(verdict))
    parts += [Text(plain(line), overflow="fold") for line in then]
    with console.capture() as captured:
        for part in parts:
            console.print(part, width=width)
    text = _trimmed(captured.get())
    if not console.encoding.lower().startswith("utf"):
        text = text.translate(_ASCII).encode("ascii", "replace").decode()
    console.file.write(text)


def _all(verdict: Verdict, width: int) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if verdict.status != "REFUSED":
        parts += [_sides(verdict), _facts(verdict)]
    parts += [_gates(verdict)]
    parts += _causes(verdict)
    parts += _audit(verdict)
    if verdict.status == "REFUSED":
        return parts
    parts += _runs(verdict)
    if verdict.labels:
        parts += _flip_lists(verdict)
        parts += _matrices(verdict, width) if len(verdict.labels) <= MATRIX_LABELS else _confusions(verdict)
    else:
        parts += _answers(verdict)
    return parts


def _brief_gates(verdict: Verdict, width: int) -> RenderableType:
    """A line a check, and one of the answers that changed."""
    lines = []
    for gate in shown_gates(verdict):
        mark, style = _MARKS[gate.status]
        lines.append((Text(mark[:1], style=style), gate.rung or "", gate.stage, brief(gate)))
    if verdict.status != "REFUSED":
        lines.append((Text(" "), "", "flips" if verdict.labels else "answers", flips_line(verdict)))
    names = max(len(stage) for _, _, stage, _ in lines)
    found = []
    for mark_of, rung, stage, said in lines:
        line = Text.assemble("  ", mark_of, f" {rung:2} {plain(stage):{names}}  ", plain(said))
        line.truncate(width, overflow="ellipsis")
        found.append(line)
    return Group(*found)


def plain(text: str) -> str:
    """Without characters that would move the cursor or colour the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _name(side: Side) -> str:
    return plain(display_name(side.side))


def section(title: str, *parts: RenderableType) -> RenderableType:
    """A heading with its parts below it."""
    return Group(Text(), Text(title, style="bold"), *(Padding(part, (0, 0, 0, 2)) for part in parts))


def _headline(verdict: Verdict) -> RenderableType:
    d = verdict.difference
    lines: list[RenderableType] = [Text(plain(verdict.headline), style="bold")]
    if verdict.status == "REFUSED":
        pass  # nothing was judged, so that a number here would mislead
    elif verdict.labels:
        sides = (verdict.reference, verdict.candidate)
        scores = ", ".join(f"{_name(side)} {side.accuracy:.1%}" for side in sides)
        interval = f"95 % interval {d.low:+.2f} to {d.high:+.2f}"
        images = f"{verdict.n} {images_name(verdict)}"
        lines.append(Text(f"{scores}: {d.points:+.2f} points, {interval}, {d.margin_points:g} allowed; {images}"))
    else:
        equal = round(verdict.agreement * verdict.n)
        lines.append(Text(f"{equal} of {verdict.n} answers are equal to the letter"))
    if verdict.runs:
        worst = f"the worst of {len(verdict.runs.runs)} runs, {verdict.runs.mean_points:+.2f} points in the mean"
        lines.append(Text(worst))
    if verdict.audit:
        lines.append(Text(plain(f"{verdict.audit.device_header.shown}: {stop_words(verdict.audit)}")))
        lines.append(Text(f"PASS after {pass_line(verdict.audit.rows)}"))
    table = _grid(2)
    if verdict.cause and verdict.status != "PASS":
        table.add_row("cause", Text(plain(verdict.cause)))
    for line in further_causes(verdict):
        table.add_row("also", Text(plain(line)))
    if verdict.fix and verdict.status != "PASS":
        photos = photos_needed(verdict) if verdict.status == "INCONCLUSIVE" else ""
        table.add_row("do", Text(plain(verdict.fix + photos)))
    for note in verdict.notes:
        table.add_row("note", Text(plain(note), style="dim"))
    if table.row_count:
        lines.append(table)
    lines.append(Text(plain(" · ".join(what_ran(verdict))), style="dim"))
    title = Text(verdict.status, style="bold")
    return Panel(Group(*lines), title=title, title_align="left", border_style=_STYLES[verdict.status], padding=(0, 1))


def _sides(verdict: Verdict) -> RenderableType:
    a, b = verdict.reference, verdict.candidate
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2))
    table.add_column("", min_width=12)
    for side in (a, b):
        table.add_column(Text(_name(side)), justify="right", min_width=14)
    cells = [_side_cells(side, verdict.n, bool(verdict.labels)) for side in (a, b)]
    for name in cells[0]:
        table.add_row(name, *(column[name] for column in cells))
    phases = dict.fromkeys((*a.ms_median, *b.ms_median))
    for phase in phases:
        times = (f"{s.ms_median[phase]:.1f}" if phase in s.ms_median else "-" for s in (a, b))
        table.add_row(Text(f"ms {plain(phase)}"), *times)
    return section("Two sides", table)


def _side_cells(side: Side, n: int, labelled: bool) -> dict[str, str]:
    timed = side.images_per_second is not None
    scores = {
        "accuracy": f"{side.accuracy:.2%}",
        "95 % interval": f"{side.accuracy_low:.1%} to {side.accuracy_high:.1%}",
        "right": f"{side.correct} of {n}",
        "macro F1": f"{side.macro_f1:.4f}",
    }
    return (scores if labelled else {}) | {
        "no answer": f"{side.unanswered}",
        "images/s": f"{side.images_per_second:.2f}" if timed else "-",
        "seconds": f"{side.seconds:.1f}" if timed else "-",
    }


def _facts(verdict: Verdict) -> RenderableType:
    d, flips, equal = verdict.difference, verdict.flips, round(verdict.agreement * verdict.n)
    table = _grid(2)
    if not verdict.labels:
        table.add_row("agreement", f"{verdict.agreement:.2%}: {equal} of {verdict.n} answers are equal to the letter")
        for note in verdict.notes:
            table.add_row("note", Text(plain(note)))
        return section(f"{_name(verdict.candidate)} against {_name(verdict.reference)}", table)
    table.add_row(
        "difference",
        f"{d.points:+.2f} points, 95 % interval {d.low:+.2f} to {d.high:+.2f} (Tango), margin {d.margin_points:g}",
    )
    table.add_row("agreement", f"{verdict.agreement:.2%}: {equal} of {verdict.n} answers are equal")
    table.add_row(
        "flips",
        f"{flips.right_to_wrong.count} right → wrong, {flips.wrong_to_right.count} wrong → right,"
        f" {flips.wrong_to_other_wrong.count} wrong → other wrong",
    )
    table.add_row("McNemar's p", f"{d.mcnemar_p:.3g} (exact), that both are equally often right")
    table.add_row(
        f"p if {d.margin_points:g} worse",
        f"{d.p_inferior:.3g} (score test): chance of seeing this if truly {d.margin_points:g} points worse; below 0.025"
        " that is ruled out",
    )
    enough = "no number of images would rule it out" if d.needed is None else f"plan a run on {d.needed:,} or more"
    table.add_row("images", f"{verdict.n:,}; {enough}")
    if verdict.label_logprobs:
        drift = verdict.label_logprobs
        table.add_row(
            "log-prob drift",
            Text(f"mean {drift.mean:.2g}, largest {drift.largest:.2g} ({plain(drift.image_id)}, {plain(drift.label)})"),
        )
    for note in verdict.notes:
        table.add_row("note", Text(plain(note)))
    return section(f"{_name(verdict.candidate)} against {_name(verdict.reference)}", table)


def _gates(verdict: Verdict) -> RenderableType:
    table = _grid(4)
    for gate in shown_gates(verdict):
        mark, style = _MARKS[gate.status]
        missing = "not measured: " if gate.status == "not measured" else ""
        detail = Text(plain(f"{missing}{gate.detail}"))
        if numbers := _numbers(gate):
            detail.append(f"\n{numbers}", style="dim")
        table.add_row(Text(mark, style=style), gate.rung or "", Text(plain(gate.stage)), detail)
    return section("Gates, in the order in which a picture becomes an answer", table)


def _numbers(gate: GateResult) -> str:
    """Value, limit and floor; nothing for a count of images that has to be 0."""
    if gate.value is None or not gate.limit:
        return ""
    floor = "" if gate.floor is None else f", floor {gate.floor:.2g}"
    return f"value {gate.value:.2g} (limit {gate.limit:.2g}{floor})"


def _grid(columns: int) -> Table:
    table = Table.grid(padding=(0, 2))
    for _ in range(columns - 1):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _audit(verdict: Verdict) -> list[RenderableType]:
    """A phone's answers against its plan."""
    audit = verdict.audit
    if audit is None:
        return []
    table = _grid(2)
    table.add_row("claim", Text(plain(audit.claim)))
    table.add_row("stop", stop_words(audit))
    table.add_row("PASS after", pass_line(audit.rows))
    for lost in audit.lost[:SHOWN_FLIPS]:
        said = f"{lost.truth} as {lost.label or 'no answer'}"
        table.add_row("lost", Text(plain(f"picture {lost.picture:,}: {lost.image_id}, {said}")))
    if len(audit.lost) > SHOWN_FLIPS:
        table.add_row("", Text(f"and {len(audit.lost) - SHOWN_FLIPS} more", style="dim"))
    if audit.census:
        table.add_row("census", f"{audit.census} pictures, {audit.census_lost} lost, {audit.census_won} won")
    if audit.class_checks:
        table.add_row("classes", class_words(audit.class_checks))
    table.add_row("bet on FAIL", bet_words(audit))
    return [section(f"{plain(audit.device_header.shown)}, by its plan", table)]


def _runs(verdict: Verdict) -> list[RenderableType]:
    runs = verdict.runs
    if runs is None:
        return []
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("run", overflow="fold")
    table.add_column("points", justify="right")
    table.add_column("95 % interval")
    table.add_column("verdict")
    for run in runs.runs:
        between = f"{run.low:+.2f} to {run.high:+.2f}"
        table.add_row(Text(plain(run.name)), f"{run.points:+.2f}", between, run.status)
    summary = (
        f"mean {runs.mean_points:+.2f}, standard deviation {runs.sd_points:.2f} points; {runs.unstable} of {runs.n}"
        " images are not answered alike by all runs; the worst run is the one shown"
    )
    return [section(f"{len(runs.runs)} runs", table, Text(summary))]


def _causes(verdict: Verdict) -> list[RenderableType]:
    causes = verdict.causes
    if causes is None:
        return []
    if not causes.found:
        return [section("Causes", Text(plain(f"none; {causes.survey}")))] if causes.survey else []
    table = _grid(3)
    for cause in causes.found:
        table.add_row(
            Text(cause.kind, style="bold"),
            f"{cause.pictures} of {causes.tried}",
            Text(plain(f"{cause.detail}\nDo: {cause.fix}").replace("?Do: ", "\nDo: ")),
        )
    for one in causes.layers:
        if one.first is not None:
            table.add_row("", "", Text(f"{one.half}: the first layer that jumps is {one.first} of {len(one.errors)}"))
    if causes.survey:
        table.add_row(Text("survey", style="dim"), "", Text(plain(causes.survey), style="dim"))
    return [section(f"Causes, found by conforming ({causes.differ} of {verdict.n} pictures are beyond a limit)", table)]


def _answers(verdict: Verdict) -> list[RenderableType]:
    """Open answers that differ, both in full as far as a line or two go."""
    flips = verdict.flips
    found = [*flips.right_to_wrong.examples, *flips.wrong_to_right.examples, *flips.wrong_to_other_wrong.examples]
    count = sum(kind.count for kind in (flips.right_to_wrong, flips.wrong_to_right, flips.wrong_to_other_wrong))
    if not found:
        return []
    table = _grid(2)
    for flip in found[:SHOWN_FLIPS]:
        parted = f" (parted at {flip.parted_at} {RUNGS[flip.parted_at]})" if flip.parted_at else ""
        table.add_row(Text(plain(flip.image_id), style="bold"), Text(parted.strip(), style="dim"))
        for name, text in ((_name(verdict.reference), flip.reference), (_name(verdict.candidate), flip.candidate)):
            table.add_row(Text(name, style="dim"), Text(plain(_cut(text or "no answer"))))
    more = count - len(found[:SHOWN_FLIPS])
    rest = [Text(f"and {more} more, in report.html", style="dim")] if more > 0 else []
    return [section(f"Answers that differ ({count})", table, *rest)]


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_TEXT else text[: SHOWN_TEXT - 1] + "…"


def _flip_lists(verdict: Verdict) -> list[RenderableType]:
    flips = verdict.flips
    kinds = {
        "right → wrong": flips.right_to_wrong,
        "wrong → right": flips.wrong_to_right,
        "wrong → other wrong": flips.wrong_to_other_wrong,
    }
    return [section(f"Flips, {kind}", *_flip_table(verdict, found)) for kind, found in kinds.items() if found.count]


def _flip_table(verdict: Verdict, flips: Flips) -> list[RenderableType]:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in ("image", "truth", _name(verdict.reference), _name(verdict.candidate), "parted at"):
        table.add_column(Text(head), overflow="fold")
    for flip in flips.examples[:SHOWN_FLIPS]:
        table.add_row(*(Text(plain(cell)) for cell in _flip_cells(flip)))
    more = flips.count - SHOWN_FLIPS
    return [table, Text(f"and {more} more", style="dim")] if more > 0 else [table]


def _flip_cells(flip: Flip) -> tuple[str, ...]:
    parted = f"{flip.parted_at} {RUNGS[flip.parted_at]}" if flip.parted_at else "-"
    return flip.image_id, flip.truth or "-", flip.reference or "no answer", flip.candidate or "no answer", parted


def _matrices(verdict: Verdict, width: int) -> list[RenderableType]:
    """Side by side where they fit, else one below the other."""
    labels = [plain(label) for label in verdict.labels]
    blocks = []
    for side in (verdict.reference, verdict.candidate):
        lines = confusion_lines(labels, side.confusion)
        size = max(cell_len(line) for line in (*lines, _name(side)))
        blocks.append([line + " " * (size - cell_len(line)) for line in (_name(side), *lines)])
    gap = 6
    if sum(cell_len(block[0]) for block in blocks) + gap + 2 <= width:
        empty = " " * cell_len(blocks[0][0])
        lines = [a + " " * gap + b for a, b in zip_longest(*blocks, fillvalue=empty)]
    else:
        lines = [*blocks[0], "", *blocks[1]]
    text = Text("\n".join(lines), no_wrap=True, overflow="crop")
    return [section("Confusion (rows: truth, columns: answer, last column -: no answer)", text)]


def _confusions(verdict: Verdict) -> list[RenderableType]:
    """Truth and wrong answer, by how often on both sides together."""
    names = (*verdict.labels, "no answer")
    a, b = verdict.reference, verdict.candidate
    found = [
        (a.confusion[x][y], b.confusion[x][y], truth, answer)
        for x, truth in enumerate(verdict.labels)
        for y, answer in enumerate(names)
        if x != y and a.confusion[x][y] + b.confusion[x][y]
    ]
    if not found:
        return []
    found.sort(key=lambda item: -(item[0] + item[1]))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in ("truth", "answer"):
        table.add_column(head, overflow="fold")
    for side in (a, b):
        table.add_column(Text(_name(side)), justify="right")
    for ours, theirs, truth, answer in found[:SHOWN_CONFUSIONS]:
        table.add_row(Text(plain(truth)), Text(plain(answer)), str(ours), str(theirs))
    more = len(found) - SHOWN_CONFUSIONS
    rest = [Text(f"and {more} more pairs", style="dim")] if more > 0 else []
    return [section("Commonest confusions", table, *rest)]
