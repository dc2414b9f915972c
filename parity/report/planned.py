"""A plan as a person reads it before the phone's first picture."""

from collections.abc import Iterator
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
    console.print(
        Text(
            f"{plain(str(path))}: PASS after {pass_line(plan.rows, 3)}; margin {plan.wishes.margin_points:g} points,"
            f" false PASS in {100 * plan.alpha:g} % at most"
        ),
        width=width,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2))
    for head in (
        "lost at most",
        "PASS after pictures",
        f"share of {plan.pictures:,}",
        *(f"at {s} s each" for s in SECONDS),
    ):
        table.add_column(head, justify="right")
    for row in plan.rows[:SHOWN_ROWS]:
        table.add_row(*_cells(row, plan.pictures))
    last = plan.rows[-1]
    more = len(plan.rows) - SHOWN_ROWS
    rest = [Text(f"and {more} more rows, to {last.losses} lost after {last.pictures:,} pictures")] if more > 0 else []
    console.print(section("The PASS line", table, *rest), width=width)
    order = Table.grid(padding=(0, 2))
    for name, what in _order(plan):
        order.add_row(name, what)
    console.print(section(f"The order, {len(plan.order):,} pictures at most", order), width=width)
    console.print(
        section(
            "On the phone",
            Text(
                "It answers them in this order and skips none: a crash or a time-out is a row without a label, which"
                " counts as lost. Judge with --plan as often as you like; make no other plan for this build."
            ),
        ),
        width=width,
    )


def _order(plan: Plan) -> Iterator[tuple[str, str]]:
    if plan.census:
        yield "census", f"the {len(plan.census)} with the host's smallest margins"
    if plan.class_checks:
        checks = sum(map(len, plan.class_checks.values()))
        yield "classes", f"{checks} of {len(plan.class_checks)} classes, which can only turn red"
    right = round(plan.share * plan.pictures)
    block = plan.wishes.block
    yield "at random", f"{block} of all kinds, then the rest of the {right:,} that the host gets right"


def _cells(row: PassRow, pictures: int) -> list[str]:
    times = [_duration(row.pictures * seconds) for seconds in SECONDS]
    return [str(row.losses), f"{row.pictures:,}", f"{row.pictures / pictures:.1%}", *times]


def _duration(seconds: int) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"
