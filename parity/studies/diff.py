"""Two results files of any sides or runs, compared: last release against this one, one phone against another.

No verdict: nothing is right by definition, and files of other contracts, datasets or models may be compared. Images are
matched by content key; those that only one file has are counted and left out.
"""

from collections.abc import Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from parity.judge.gates.common import Pair
from parity.judge.scoring import drift
from parity.judge.statistics import mcnemar_exact, tango
from parity.judge.verdict import Drift
from parity.report.screen import plain, section
from parity.results import Header, Results
from pipeline.core.errors import EXIT_FAIL, EXIT_PASS, UserError
from pipeline.core.settings import Frozen

LISTED = 20
"""Images that a list names at most."""
SHOWN = 10
_ONE_BY_ONE = ("model", "versions", "device", "runtime")
_WHOLE = ("side", "contract_sha256", "dataset_sha256", "weights_sha256", "prompt_token_ids", "image_slots")


class Setting(Frozen):
    """Something that the two headers say otherwise; null where one does not say it."""

    name: str
    """``versions.torch``, ``runtime.n_ctx``, ``dataset_sha256``, ..."""
    a: str | None
    b: str | None


class Change(Frozen):
    """An image that the two files answer differently."""

    image_id: str
    key: str
    truth: str
    a: str | None
    b: str | None


class Images(Frozen):
    """Some images: how many, and the first by image id."""

    count: int
    examples: tuple[str, ...]


class Comparison(Frozen):
    """What two results files differ in; A is the first, B the second."""

    schema_version: Literal[1] = 1
    a: str
    """Name of the first file."""
    b: str
    same_answers: bool
    settings: tuple[Setting, ...]
    n: int
    """Images that both have."""
    only_a: Images
    only_b: Images
    other_truth: Images
    """Images whose truth was changed; B's is taken for both."""
    agreement: float
    """Share of equal answers."""
    a_correct: int
    b_correct: int
    gained: int
    """Images that B alone gets right."""
    lost: int
    """Images that A alone gets right."""
    points: float
    """B's accuracy minus A's, percentage points."""
    low: float
    """Lower end of Tango's 95 % interval."""
    high: float
    mcnemar_p: float
    changes: tuple[Change, ...]
    """Every image with another answer, by image id."""
    other_text: Images
    """Images with an equal answer out of other generated tokens."""
    other_pixels: Images
    """Images of which the two models were given other bytes."""
    label_logprobs: Drift | None
    """None where a file has none."""

    @property
    def exit_code(self) -> int:
        """0 where all answers are the same, else 1."""
        return EXIT_PASS if self.same_answers else EXIT_FAIL


def compare(a: Results, b: Results, names: tuple[str, str] = ("A", "B")) -> Comparison:
    """Compare two results. Raises UserError where they have no image in common."""
    keys = [key for key in a.rows if key in b.rows]
    if not keys:
        raise UserError(
            f"{names[0]} ({len(a.rows)} images) and {names[1]} ({len(b.rows)} images) have no image in common: give two"
            " results of the same pictures"
        )
    pairs = sorted(((a.rows[key], b.rows[key]) for key in keys), key=lambda pair: (pair[0].image_id, pair[0].key))
    right = [(x.label == y.truth, y.correct) for x, y in pairs]
    gained = sum(then < now for then, now in right)
    lost = sum(then > now for then, now in right)
    low, high = tango(gained, lost, len(pairs))
    changed = [(x, y) for x, y in pairs if x.label != y.label]
    equal = [(x, y) for x, y in pairs if x.label == y.label]
    return Comparison(
        a=names[0],
        b=names[1],
        same_answers=not changed,
        settings=tuple(_settings(a.header, b.header)),
        n=len(pairs),
        only_a=_images([row.image_id for key, row in a.rows.items() if key not in b.rows]),
        only_b=_images([row.image_id for key, row in b.rows.items() if key not in a.rows]),
        other_truth=_ids([pair for pair in pairs if pair[0].truth != pair[1].truth]),
        agreement=len(equal) / len(pairs),
        a_correct=sum(then for then, _ in right),
        b_correct=sum(now for _, now in right),
        gained=gained,
        lost=lost,
        points=100 * (gained - lost) / len(pairs),
        low=100 * low,
        high=100 * high,
        mcnemar_p=mcnemar_exact(gained, lost),
        changes=tuple(
            Change(image_id=y.image_id, key=y.key, truth=y.truth or "", a=x.label, b=y.label) for x, y in changed
        ),
        other_text=_ids([pair for pair in equal if pair[0].generated_token_ids != pair[1].generated_token_ids]),
        other_pixels=_ids([pair for pair in pairs if pair[0].rgb_sha256 != pair[1].rgb_sha256]),
        label_logprobs=drift(pairs),
    )


def _images(names: Sequence[str]) -> Images:
    return Images(count=len(names), examples=tuple(sorted(names)[:LISTED]))


def _ids(pairs: Sequence[Pair]) -> Images:
    return _images([y.image_id for _, y in pairs])


def _settings(a: Header, b: Header) -> list[Setting]:
    found = []
    for name in _WHOLE:
        x, y = getattr(a, name), getattr(b, name)
        if x != y:
            found.append(Setting(name=name, a=_said(x), b=_said(y)))
    for name in _ONE_BY_ONE:
        ours: dict[str, Any] = getattr(a, name)
        theirs: dict[str, Any] = getattr(b, name)
        for key in dict.fromkeys((*ours, *theirs)):
            if key not in ours or key not in theirs or ours[key] != theirs[key]:
                x, y = (_said(side[key]) if key in side else None for side in (ours, theirs))
                found.append(Setting(name=f"{name}.{key}", a=x, b=y))
    return found


def _said(value: object) -> str | None:
    if isinstance(value, tuple):
        return f"{len(value)}: {' '.join(str(item) for item in value)}"
    return None if value is None else str(value)


def print_comparison(found: Comparison, console: Console) -> None:
    """Print it as tables."""
    for part in _parts(found):
        console.print(part, width=min(console.width, 100))


def _parts(found: Comparison) -> list[RenderableType]:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("A", Text(plain(found.a)))
    facts.add_row("B", Text(plain(found.b)))
    equal = round(found.agreement * found.n)
    facts.add_row("agreement", f"{found.agreement:.2%}: {equal} of {found.n} answers are equal")
    facts.add_row(
        "right",
        f"{found.a_correct} and {found.b_correct} of {found.n}: {found.points:+.2f} points,"
        f" 95 % interval {found.low:+.2f} to {found.high:+.2f} (Tango), McNemar's p {found.mcnemar_p:.3g}",
    )
    facts.add_row("", f"B gained {found.gained} images and lost {found.lost}")
    if found.label_logprobs:
        one = found.label_logprobs
        where = f"{plain(one.image_id)}, {plain(one.label)}"
        facts.add_row("log-prob drift", Text(f"mean {one.mean:.2g}, largest {one.largest:.2g} ({where})"))
    for name, images in (
        ("only in A", found.only_a),
        ("only in B", found.only_b),
        ("other truth", found.other_truth),
        ("other pixels", found.other_pixels),
        ("other text", found.other_text),
    ):
        if images.count:
            more = ", ..." if images.count > 3 else ""
            facts.add_row(name, Text(plain(f"{images.count} images: {', '.join(images.examples[:3])}{more}")))
    parts = [section("Two results", facts)]
    if found.settings:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2))
        for head in ("", "A", "B"):
            table.add_column(head, overflow="fold")
        for one_setting in found.settings:
            cells = ((one_setting.a or "-")[:64], (one_setting.b or "-")[:64])
            table.add_row(plain(one_setting.name), *(Text(plain(cell)) for cell in cells))
        parts.append(section("Different settings", table))
    if found.changes:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for head in ("image", "truth", "A", "B"):
            table.add_column(head, overflow="fold")
        for change in found.changes[:SHOWN]:
            answers = (change.a or "no answer", change.b or "no answer")
            table.add_row(*(Text(plain(cell)) for cell in (change.image_id, change.truth, *answers)))
        left = len(found.changes) - SHOWN
        rest = [Text(f"and {left} more", style="dim")] if left > 0 else []
        parts.append(section("Other answers", table, *rest))
    return parts
