"""How a phone's audit went, as a drawing and in words: its losses, a step each, against the PASS line of its plan."""

from collections.abc import Sequence
from dataclasses import dataclass

from parity.judge.audit import ALPHA
from parity.judge.verdict import Audit, ClassCheck, PassRow
from parity.report.drawing import Axis, axis

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
AHEAD = 3
"""Rows that are drawn beyond the losses seen."""


@dataclass(frozen=True)
class Staircase:
    """Losses over pictures, in a view box of 1000 x 1000 with y downwards; places on the axes in percent."""

    pictures: Axis
    losses: Axis
    passing: str
    """Path around the area in which the phone passes."""
    line: str
    """Path of its edge, the PASS line."""
    steps: str
    """Path of the phone's losses."""
    end: tuple[float, float]
    """Where the phone stands, percent from the left and from the top."""
    limit: float | None
    """Height above which no PASS is possible, percent from the top; None where it lies beyond the drawing."""


def staircase(audit: Audit) -> Staircase | None:
    """None where the plan has no row, as after a census that leaves no room."""
    if not audit.rows:
        return None
    shown = audit.rows[: len(audit.lost) + AHEAD]
    furthest = max(audit.counted, shown[-1].pictures)
    end = 1.06 * furthest
    across = Axis(0.0, end, tuple(tick for tick in axis((0.0, end), 7).ticks if tick <= end))
    top = max(len(audit.lost), shown[-1].losses) + 1
    step = max(1, top // 8)
    # Half a loss below 0, so that a staircase without a step is not hidden by the axis.
    up = Axis(-0.5, top - 0.5, tuple(float(tick) for tick in range(0, top, step)))

    def x(pictures: float) -> str:
        return f"{10 * across.at(pictures):.1f}"

    def y(losses: float) -> str:
        return f"{1000 - 10 * up.at(losses):.1f}"

    line = f"M{x(shown[0].pictures)} {y(-0.5)}"
    for row, after in zip(shown, [*shown[1:], None], strict=True):
        line += f"V{y(row.losses + 0.5)}" + (f"H{x(after.pictures)}" if after else f"H{x(across.high)}")
    steps = f"M{x(0)} {y(0)}"
    for number, lost in enumerate(audit.lost, start=1):
        steps += f"H{x(lost.picture)}V{y(number)}"
    steps += f"H{x(audit.counted)}"
    last = audit.rows[-1].losses + 0.5
    return Staircase(
        pictures=across,
        losses=up,
        passing=f"{line}V{y(-0.5)}Z",
        line=line,
        steps=steps,
        end=(across.at(audit.counted), round(100 - up.at(len(audit.lost)), 3)),
        limit=round(100 - up.at(last), 3) if last < up.high else None,
    )


def with_losses(count: int) -> str:
    """``without a loss``, ``with one``, ``with two``, ..."""
    if count == 0:
        return "without a loss"
    return f"with {_NUMBERS[count] if count < len(_NUMBERS) else count}"


def pass_line(rows: Sequence[PassRow], shown: int = 4) -> str:
    """The first rows in a sentence."""
    if not rows:
        return "no number of pictures would do"
    parts = [f"{row.pictures:,} {with_losses(row.losses)}" for row in rows[:shown]]
    first = parts[0].replace(" without", " pictures without", 1)
    return ", ".join([first, *parts[1:]]) + (", ..." if len(rows) > shown else "")


def stop_words(audit: Audit) -> str:
    """Which rule stopped the phone, and where."""
    lost = f"{len(audit.lost)} lost"
    if audit.stop == "PASS":
        return f"PASS after {audit.counted:,} pictures, {lost}"
    if audit.stop == "FAIL":
        return f"FAIL after {audit.counted:,} pictures, {lost}"
    if audit.stop == "FUTILE":
        return f"no PASS is possible any more after {audit.counted:,} pictures, {lost}"
    return f"none so far: {audit.counted:,} of at most {audit.planned:,} pictures, {lost}"


def bet_words(audit: Audit) -> str:
    """How near an early FAIL came."""
    return f"{audit.wealth:.2g} of {1 / ALPHA:.0f}, on the first {audit.block} pictures of the random order"


def class_words(checks: Sequence[ClassCheck]) -> str:
    """How the pictures of each class came out, together."""
    lost, answered, planned = (sum(getattr(one, name) for one in checks) for name in ("lost", "answered", "planned"))
    of = f"{planned}" if answered == planned else f"{answered} (of {planned})"
    return f"{lost} lost of {of} in {len(checks)} classes"
