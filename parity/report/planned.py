"""A plan as a person reads it before the phone's first picture."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.judge.plan import Plan
from parity.judge.verdict import PassRow
from parity.report.screen import MAX_WIDTH, plain, section
from parity.report.staircase import pass_line

SHOWN_ROWS = 8
SECONDS = (5, 40)
"""What a phone needs a picture, about."""


def print_plan(plan: Plan, path: Path, console: Console) -> None:
    """Print where the PASS line runs, what it costs, and how to go on."""
    width = min(console.width, MAX_WIDTH)
    right = round(plan.share * plan.pictures)
    census = f", first a census of {len(plan.census)}" if plan.census else ""
    checks = sum(map(len, plan.class_checks.values()))
    console.print(
        Text(
            f"{plain(str(path))}: PASS after {pass_line(plan.rows, 3)}; margin {plan.wishes.margin_points:g} points,"
            f" false PASS in {100 * plan.alpha:g} % at most"
        ),
        width=width,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2))
    for head in ("lost at most", "PASS after pictures", f"of {plan.pictures:,}", *(f"at {s} s each" for s in SECONDS)):
        table.add_column(head, justify="right")
    for row in plan.rows[:SHOWN_ROWS]:
        table.add_row(*_cells(row, plan.pictures))
    last = plan.rows[-1]
    more = len(plan.rows) - SHOWN_ROWS
    rest = [Text(f"and {more} more rows, to {last.losses} lost after {last.pictures:,} pictures")] if more > 0 else []
    console.print(section("The PASS line", table, *rest), width=width)
    console.print(
        section(
            "The order",
            Text(
                f"{len(plan.order):,} pictures at most{census}: {checks} of {len(plan.class_checks)} classes, which"
                f" can only turn red; then in random order {plan.wishes.block} of all kinds, and of the others those of"
                f" the {right:,} that the host gets right"
            ),
            Text(
                "The phone answers them in this order and skips none: a crash or a time-out is a row without a label,"
                " which counts as lost. Judge with --plan as often as you like; make no other plan for this build."
            ),
        ),
        width=width,
    )


def _cells(row: PassRow, pictures: int) -> list[str]:
    times = [_duration(row.pictures * seconds) for seconds in SECONDS]
    return [str(row.losses), f"{row.pictures:,}", f"{row.pictures / pictures:.1%}", *times]


def _duration(seconds: int) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"
