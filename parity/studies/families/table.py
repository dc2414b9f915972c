"""What the families' checks found, as data (``families.json``), as a table on the screen and in Markdown, and held
against the committed expectation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.compare.ladder import RUNGS, Rung
from parity.judge.causes import Kind
from parity.judge.verdict import Status
from parity.pairs.survey import Survey
from parity.studies.families.models import FAMILIES
from pipeline.core.errors import EXIT_FAIL, EXIT_PASS, UserError
from pipeline.core.files import read_regular, write_json, write_text
from pipeline.core.settings import Frozen
from pipeline.core.wording import first_fault

Row = TypeVar("Row", bound=BaseModel)

BEGIN, END = "<!-- families: made by `parity families --write` -->", "<!-- families: end -->"


class Size(Frozen):
    """One picture of a family."""

    size: str
    """``640x480``"""
    stage: Rung | None
    """The first at which the picture is beyond its limit; null where it is at none: PASS."""
    causes: tuple[Kind, ...]
    tokens: tuple[int, int]
    """Positions that the picture takes in Hugging Face and in llama.cpp."""
    layout_equal: bool
    """S3: the whole prompt, token for token."""
    bytes_differ: float | None
    """S2: share of the bytes; null where the pictures' sizes or numbers differ, or are not known."""
    embeddings_error: float | None
    """S4, relative; null where the layouts differ, or values are no numbers."""
    kl: float | None
    """S5, nats; null where values are no numbers."""

    @property
    def status(self) -> Literal["PASS", "FAIL"]:
        """Of this picture alone."""
        return "FAIL" if self.stage else "PASS"


class Told(Frozen):
    """A cause as ``parity check`` words it, of the first of its pictures."""

    kind: Kind
    detail: str
    fix: str
    sizes: tuple[str, ...]


class FamilyRow(Frozen):
    """One family."""

    name: str
    model_type: str
    untried: str = ""
    """What transformers lacks for it, in words; then nothing else is known."""
    refused: str = ""
    """What the converter or llama.cpp says, in words, where they do not take it."""
    mended: str = ""
    """What llama.cpp says of the pair as the converter writes it, in words, where it was mended to go on."""
    verdict: Status | None = None
    sizes: tuple[Size, ...] = ()
    causes: tuple[Told, ...] = ()
    survey: Survey | None = None

    @property
    def sentence(self) -> str:
        """In a few words."""
        if self.untried or self.refused:
            return f"not tried: {self.untried}" if self.untried else f"refused: {self.refused}"
        good = sum(size.stage is None for size in self.sizes)
        kinds = ", ".join(cause.kind for cause in self.causes)
        return f"{good} of {len(self.sizes)} sizes pass" + (f"; {kinds}" if kinds else "")


class Families(Frozen):
    """All of them."""

    schema_version: Literal[1] = 1
    versions: dict[str, str]
    families: tuple[FamilyRow, ...]

    @property
    def by_name(self) -> dict[str, FamilyRow]:
        """Name -> row."""
        return {row.name: row for row in self.families}


class Change(Frozen):
    """How a family is other than expected."""

    kind: Literal["better", "worse", "otherwise"]
    family: str
    detail: str

    @property
    def sentence(self) -> str:
        """``qwen3-vl is better: ...``"""
        return f"{self.family} is {'other' if self.kind == 'otherwise' else self.kind} than expected: {self.detail}"


def read_families(path: Path) -> Families:
    """Read ``families.json``. Raises UserError where it is missing or is none."""
    return _read(Families, path)


def read_row(path: Path) -> FamilyRow:
    """Read a family's ``row.json``. Raises UserError as :func:`read_families` does."""
    return _read(FamilyRow, path)


def _read(model: type[Row], path: Path) -> Row:
    try:
        return model.model_validate_json(read_regular(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; `parity families --write` makes it") from None
    except ValidationError as error:
        raise UserError(f"{path} is no table of families: {first_fault(error)}; run `parity families` again") from None


def rounded(value: float | None) -> float | None:
    """To three digits: what is beyond them follows the machine."""
    return None if value is None else float(f"{value:.3g}")


def compare(expected: Families, found: Families) -> list[Change]:
    """What is better, worse or otherwise than expected, in what both have.

    Status, first stage and causes of each size, how many sizes of the survey differ, and what is refused count; the
    numbers do not, as they follow the machine. What transformers cannot run here is not compared.
    """
    changes = []
    for row in found.families:
        known = expected.by_name.get(row.name)
        if known is None:
            changes.append(Change(kind="otherwise", family=row.name, detail="it is new"))
        elif not (known.untried or row.untried):
            changes += _changes(known, row)
    return changes


def _changes(known: FamilyRow, row: FamilyRow) -> list[Change]:
    found: list[Change] = []

    def add(rank: int, detail: str) -> None:
        kind: Literal["better", "worse", "otherwise"] = "better" if rank > 0 else "worse" if rank < 0 else "otherwise"
        found.append(Change(kind=kind, family=row.name, detail=detail))

    if bool(known.refused) != bool(row.refused):
        add(-1 if row.refused else 1, row.refused or f"it is no longer refused ({known.refused})")
        return found
    if bool(known.mended) != bool(row.mended):
        add(-1 if row.mended else 1, row.mended or f"it loads as the converter writes it (before: {known.mended})")
    sizes = {size.size: size for size in known.sizes}
    for size in row.sizes:
        before = sizes.get(size.size)
        if before and (change := _size_changed(before, size)):
            add(*change)
    if known.survey and row.survey and known.survey.sizes == row.survey.sizes:
        a, b = (len(survey.differ) for survey in (known.survey, row.survey))
        if a != b:
            add(a - b, f"{b} of {row.survey.sizes} sizes surveyed take another number of positions, {a} before")
    return found


def _size_changed(before: Size, now: Size) -> tuple[int, str] | None:
    """(above 0: better, below: worse; in words) of one size."""
    stages = [None if size.stage is None else list(RUNGS).index(size.stage) for size in (before, now)]
    was, is_now = (len(RUNGS) if stage is None else stage for stage in stages)
    if was == is_now and {*before.causes} == {*now.causes}:
        return None
    rank = is_now - was or len(before.causes) - len(now.causes)
    return rank, f"{now.size} was {_words(before)} and is {_words(now)}"


def _words(size: Size) -> str:
    if size.stage is None:
        return "PASS"
    kinds = f" ({', '.join(size.causes)})" if size.causes else ""
    return f"FAIL at {size.stage} {RUNGS[size.stage]}{kinds}"


def exit_code(changes: Sequence[Change]) -> int:
    """1 where anything is other than expected, better included: the expectation is then to be written anew."""
    return EXIT_FAIL if changes else EXIT_PASS


def merged(expected: Families | None, found: Families) -> Families:
    """The expectation with the rows just found in place of its own, in the order of the families."""
    rows: Mapping[str, FamilyRow] = {**(expected.by_name if expected else {}), **found.by_name}
    names = [*(name for name in FAMILIES if name in rows), *(name for name in rows if name not in FAMILIES)]
    return Families(versions=found.versions, families=tuple(rows[name] for name in names))


def write_expected(docs: Path, found: Families) -> None:
    """Put what was found into ``families.json`` and ``families.md`` of ``docs``; rows that were not run stay.

    Raises UserError where another llama.cpp than the pinned one ran, of which the expectation is not.
    """
    if other := found.versions.get("llama.cpp"):
        raise UserError(f"the expectation is of the pinned llama.cpp, and {other} ran: leave LLAMA_CPP out, or --write")
    path, page = docs / "families.json", docs / "families.md"
    whole = merged(read_families(path) if path.is_file() else None, found)
    text = with_table(page.read_text(encoding="utf-8"), whole, page)
    write_json(path, whole.model_dump(mode="json"))
    write_text(page, text)


def print_families(found: Families, changes: Sequence[Change], console: Console) -> None:
    """A table, what was refused in words, then what is other than expected."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("family", "PASS", "S2 equal", "S3 equal", "S4 at most", "KL at most", "survey", "causes"):
        table.add_column(name, justify="left" if name in ("family", "causes") else "right", no_wrap=name == "family")
    for row in found.families:
        table.add_row(*_cells(row))
    console.print(table)
    lines = [
        f"{row.name}: {words}" for row in found.families for words in (row.untried, row.refused, row.mended) if words
    ]
    lines += [change.sentence for change in changes]
    lines.append(_summary(changes))
    for line in lines:
        console.print(Text(line, style="bold" if line == lines[-1] else ""), soft_wrap=True)


def _cells(row: FamilyRow) -> list[str]:
    if not row.sizes:
        return [row.name, "not tried" if row.untried else "refused", "", "", "", "", "", ""]
    count = len(row.sizes)
    return [
        row.name,
        f"{sum(size.stage is None for size in row.sizes)} of {count}",
        f"{sum(size.bytes_differ == 0 for size in row.sizes)} of {count}",
        f"{sum(size.layout_equal for size in row.sizes)} of {count}",
        _number(max((size.embeddings_error for size in row.sizes if size.embeddings_error is not None), default=None)),
        _number(max((size.kl for size in row.sizes if size.kl is not None), default=None)),
        _surveyed(row),
        ", ".join(cause.kind for cause in row.causes),
    ]


def _summary(changes: Sequence[Change]) -> str:
    if not changes:
        return "every family is as expected"
    counts = [(kind, sum(change.kind == kind for change in changes)) for kind in ("better", "worse", "otherwise")]
    return "other than expected: " + ", ".join(f"{count} {kind}" for kind, count in counts if count)


def _surveyed(row: FamilyRow) -> str:
    return f"{row.survey.sizes - len(row.survey.differ)} of {row.survey.sizes}" if row.survey else "-"


def markdown(found: Families) -> str:
    """The table of ``docs/families.md``, and below it what is told in words; ends with a line break."""
    heads = ("family", "loads", "size", "verdict", "S2 bytes apart", "S3 positions", "S4 error", "S5 KL", "cause")
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in found.families:
        if not row.sizes:
            what = "not tried here" if row.untried else "refused"
            lines.append(f"| {row.name} | {what} |" + " |" * (len(heads) - 2))
        for number, size in enumerate(row.sizes):
            loads = ("mended" if row.mended else "yes") if not number else ""
            cells = (row.name if not number else "", loads, size.size, *_measured(size), ", ".join(size.causes))
            lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for row in found.families:
        lines += _told(row)
    return "\n".join(lines) + "\n"


def _measured(size: Size) -> tuple[str, ...]:
    ours, theirs = size.tokens
    layout = str(ours) if size.layout_equal else f"{ours}, {theirs}" if ours != theirs else f"{ours}, other text"
    share = "other size" if size.bytes_differ is None else f"{size.bytes_differ:.0%}"
    where = f"FAIL {size.stage}" if size.stage else "PASS"
    return where, share, layout, _number(size.embeddings_error), _number(size.kl)


def _told(row: FamilyRow) -> list[str]:
    """What a row says in words."""
    note = FAMILIES[row.name].note if row.name in FAMILIES else ""
    said = [words for words in (note, row.untried, row.refused, row.mended) if words]
    if row.survey:
        others = ", ".join(f"{one.size} ({one.hf}, {one.llamacpp})" for one in row.survey.differ[:3])
        more = len(row.survey.differ) - 3
        others += f" and {more} more" if more > 0 else ""
        said.append(f"Survey: {_surveyed(row)} equal" + (f", not {others}" if others else ""))
    return [f"- **{row.name}** (`{row.model_type}`): {'. '.join(said)}."]


def with_table(text: str, found: Families, path: Path) -> str:
    """A Markdown file's text with the table anew between its two comments. Raises UserError where it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{path} has no place for the table: give it the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{markdown(found)}{END}{after}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
