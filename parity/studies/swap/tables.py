"""The swap matrix and its parts as tables, for the screen and as Markdown."""

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from parity.report.screen import MAX_WIDTH, plain, section
from parity.studies.swap.matrix import SHIPPED, Part, SwapMatrix, SwapRow, Takes, number

_TAKES: dict[Takes, str] = {"own": "", "pixels": "HF pixels", "embeddings": "HF embed."}
_HEADS = ("", "with", "embed.", "KL med.", "mean", "p95", "labels", "top-1", "flips", "right")


def _cells(row: SwapRow) -> tuple[str, ...]:
    numbers = (row.embeddings_error, row.kl_median, row.kl_mean, row.kl_p95, row.kl_labels_mean)
    return (
        row.variant.title,
        _TAKES[row.variant.takes],
        *(number(value) for value in numbers),
        str(row.top1_changes),
        str(row.label_flips),
        f"{row.accuracy:.1%}",
    )


def _part_cells(part: Part) -> tuple[str, ...]:
    shares = ("NaN" if share is None else f"{share:.0%}" for share in (part.share, part.square_share))
    name = f"{part.name} ({part.what})" + (": BROKEN" if part.broken else "")
    return name, number(part.kl), *shares


def _title(matrix: SwapMatrix) -> str:
    share = matrix.rows[0].reference_correct / matrix.samples
    return f"Swaps: llama.cpp against Hugging Face float32 ({share:.1%} right), {matrix.samples} images"


WIDE = 96
"""Columns that the whole table needs; below, the 95th percentile is left to the files."""
_NOTE = (
    "embed.: relative error of the image embeddings, median. KL: of the next token over the vocabulary, nats; labels:"
    " over the labels, mean. top-1, flips: images whose next token, whose label changed."
)
_PARTS_TITLE = "The shipped pair's error, part by part"
_PARTS_HEADS = ("part", "mean KL", "share", "of logits²")


def print_matrix(matrix: SwapMatrix, console: Console) -> None:
    """The matrix on a terminal of 80 columns or more."""
    wide = console.width >= WIDE
    gap = (0, int(wide))  # beside the one column that the box puts between two
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=gap, collapse_padding=True)
    shown = [head for head in _HEADS if head != "p95" or wide]
    for head in shown:
        table.add_column(head, justify="left" if head in ("", "with") else "right", no_wrap=True)
    for row in matrix.rows:
        cells = (Text(plain(cell)) for head, cell in zip(_HEADS, _cells(row), strict=True) if head in shown)
        table.add_row(*cells, style="bold" if row.variant.name == SHIPPED else "")
    parts = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in _PARTS_HEADS:
        parts.add_column(head, justify="left" if head == "part" else "right")
    found = matrix.attribution
    for part in found.parts:
        parts.add_row(*(Text(plain(cell)) for cell in _part_cells(part)), style="bold red" if part.broken else "")
    parts.add_row("what they do to one another", number(found.together))
    words = Text.assemble((plain(found.sentence), "bold red" if found.broken else "bold"), " ", plain(found.fix))
    group = Group(section(_title(matrix), table, Text(_NOTE, style="dim")), section(_PARTS_TITLE, parts, Text(), words))
    console.print(group, width=min(console.width, MAX_WIDTH))


def markdown(matrix: SwapMatrix) -> str:
    """The matrix as Markdown, one newline at the end."""

    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(plain(cell).replace("|", "\\|") for cell in cells) + " |"

    found = matrix.attribution
    lines = [
        f"# {_title(matrix)}",
        "",
        line(_HEADS),
        line(("---", "---", *("---:",) * (len(_HEADS) - 2))),
        *(line(_cells(row)) for row in matrix.rows),
        "",
        _NOTE,
        "",
        f"## {_PARTS_TITLE}",
        "",
        line(_PARTS_HEADS),
        line(("---", "---:", "---:", "---:")),
        *(line(_part_cells(part)) for part in found.parts),
        line(("what they do to one another", number(found.together), "", "")),
        "",
        f"**{found.sentence}** {found.fix}",
    ]
    return "\n".join(lines) + "\n"
