"""What the swap matrix says: which part of the shipped pair carries its error, and whether a part is broken.

A row of the matrix takes Hugging Face's tensors for all that comes before the part that it tries, so that a fault
further up cannot hide what the part does. KL grows with the square of what is added to the logits, and the squares of
independent errors add up. Measured with the tiny model on 281 images (64 images): the parts' mean KLs add up to 0.99
(0.87) of the shipped pair's, the mean squares of their logits' differences to 1.00 (1.01), their roots to 1.45 (1.44).
The words go by the KL, which weighs a token by how likely it is; the squares weigh all tokens alike, stand beside it,
and need fewer images.
"""

from collections.abc import Mapping
from typing import Literal

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from parity.judge.gates.limits import LEAST_FLOATS, embeddings_limit, logits_factor, logits_limit
from parity.report.screen import MAX_WIDTH, plain, section
from pipeline.contract import KvType, Runtime
from pipeline.core.gguf_types import MmprojType, TextType
from pipeline.core.jsonl import Number
from pipeline.core.settings import Frozen

Takes = Literal["own", "pixels", "embeddings"]
PartName = Literal[
    "conversion and engine, language half",
    "conversion and engine, vision half",
    "preprocessing",
    "vision quantization",
    "text quantization",
    "runtime",
]
FLOOR, EXACT, SHIPPED, SWAPPED = "hf-bfloat16", "exact", "shipped", "swapped-channels"
EXACT_KV: KvType = "f32"


class Variant(Frozen):
    """What a row tries. Hugging Face's row has neither types nor runtime."""

    name: str
    """Of its file, and what the attribution finds it by."""
    title: str
    takes: Takes = "own"
    """What is put in of Hugging Face's: nothing, the normalized pictures, or the image embeddings."""
    text_type: TextType | None = None
    mmproj_type: MmprojType | None = None
    runtime: Runtime | None = None
    fed: Literal["rgb", "bgr"]

    @property
    def llama(self) -> tuple[TextType, MmprojType, Runtime]:
        """Types and runtime of a row of llama.cpp's; ValueError for Hugging Face's."""
        if self.text_type is None or self.mmproj_type is None or self.runtime is None:
            raise ValueError(f"{self.name} is Hugging Face's")
        return self.text_type, self.mmproj_type, self.runtime


class SwapRow(Frozen):
    """What a variant gave against Hugging Face in float32. A null stands where the model gave NaN or an infinity."""

    variant: Variant
    samples: int
    tiles_floats: Number
    """Largest difference of the normalized pictures made (which ``takes`` puts others in place of)."""
    embeddings_error: Number
    """Relative, Frobenius; median over the images."""
    kl_median: Number
    """KL divergence of the next token over the vocabulary, nats."""
    kl_mean: Number
    kl_p95: Number
    kl_labels_median: Number
    """KL divergence over the labels' probabilities made to sum to 1, nats."""
    kl_labels_mean: Number
    logits_rms: Number
    """Root of the mean square of the logits' differences, in the reference's standard deviations."""
    top1_changes: int
    label_flips: int
    """Images with another label than the reference gives."""
    correct: int
    reference_correct: int
    """Hugging Face's in float32, which is the same in every row."""

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0..1."""
        return self.correct / self.samples


class Part(Frozen):
    """A part of the way from the Hugging Face model to the shipped pair's answers."""

    name: PartName
    what: str
    """The files or settings that it stands for."""
    kl: Number
    """Mean KL that it adds, nats: :attr:`row` less :attr:`base`."""
    share: Number
    """Of the shipped pair's mean KL; below 0 where the part undoes another's error."""
    square_share: Number
    """Of the shipped pair's mean square of the logits' differences."""
    row: str
    base: str | None
    broken: bool
    """It is beyond what its type explains."""


class Attribution(Frozen):
    """Where the shipped pair's error comes from."""

    parts: tuple[Part, ...]
    together: Number
    """Mean KL of the shipped pair less the sum of the parts, nats: what they do to one another."""
    carrier: PartName
    """The broken part, else the one that adds most."""
    broken: bool
    sentence: str
    fix: str


class SwapMatrix(Frozen):
    """``swap.json``."""

    schema_version: Literal[1] = 1
    samples: int
    contract_sha256: str
    dataset_sha256: str
    model: dict[str, str]
    """``model`` and ``mmproj`` of the shipped pair -> SHA-256."""
    rows: tuple[SwapRow, ...]
    attribution: Attribution


def text_row(text_type: TextType) -> str:
    """Name of the row that tries this type of language half alone."""
    return "exact-embeddings" if text_type == "F32" else f"text-{text_type}"


def mmproj_row(mmproj_type: MmprojType) -> str:
    """Name of the row that tries this type of vision half alone."""
    return "exact-pixels" if mmproj_type == "F32" else f"mmproj-{mmproj_type}"


def runtime_row(runtime: Runtime) -> str:
    """Name of the row that tries this KV cache and flash attention alone."""
    if runtime.type_k == runtime.type_v == EXACT_KV and not runtime.flash_attn:
        return "exact-embeddings"
    return f"kv-{kv_name(runtime).replace('/', '-')}{'-flash' if runtime.flash_attn else ''}"


def kv_name(runtime: Runtime) -> str:
    """The cache's types as a person reads them."""
    return runtime.type_k if runtime.type_k == runtime.type_v else f"{runtime.type_k}/{runtime.type_v}"


def attribute(rows: Mapping[str, SwapRow], noise_factor: float) -> Attribution:
    """Say which part carries the error. ``rows`` by their names; ``noise_factor`` is the contract's.

    A part is broken where its row is beyond the ladder's own limit for its types (:mod:`parity.judge.gates.limits`,
    with Hugging Face in bfloat16 on the same images as the floor) and the row that it is compared with is not.
    """
    shipped, floor = rows[SHIPPED], rows[FLOOR]
    text_type, mmproj_type, runtime = shipped.variant.llama

    def beyond(name: str) -> bool:
        row = rows[name]
        text, mmproj, used = row.variant.llama
        if row.variant.takes == "embeddings":
            mmproj = "F32"  # it had no part in what was decoded
        else:
            limit = embeddings_limit(floor.embeddings_error or 0.0, mmproj, noise_factor)
            if row.embeddings_error is None or row.embeddings_error > limit:
                return True
        factor = logits_factor(text, mmproj, f"{used.type_k}/{used.type_v}")
        return row.kl_median is None or row.kl_median > logits_limit(floor.kl_median or 0.0, factor, noise_factor)

    kv = f"KV {kv_name(runtime)}, flash attention {'on' if runtime.flash_attn else 'off'}"
    chain: tuple[tuple[PartName, str, str, str | None], ...] = (
        ("conversion and engine, language half", "F32", "exact-embeddings", None),
        ("conversion and engine, vision half", "F32", "exact-pixels", "exact-embeddings"),
        ("preprocessing", "the pictures that libmtmd makes", SHIPPED, "shipped-pixels"),
        ("vision quantization", f"mmproj {mmproj_type}", mmproj_row(mmproj_type), "exact-pixels"),
        ("text quantization", f"text {text_type}", text_row(text_type), "exact-embeddings"),
        ("runtime", kv, runtime_row(runtime), "exact-embeddings"),
    )
    parts = []
    for name, what, row, base in chain:
        kl = _less(rows[row].kl_mean, rows[base].kl_mean if base else 0.0)
        if name == "preprocessing":
            broken = not _same_pictures(rows[SHIPPED])
        else:
            broken = row != base and beyond(row) and not (base and beyond(base))
        square = _less(_square(rows[row]), _square(rows[base]) if base else 0.0)
        parts.append(
            Part(name=name, what=what, kl=kl, share=_share(kl, shipped.kl_mean),
                 square_share=_share(square, _square(shipped)), row=row, base=base, broken=broken)
        )  # fmt: skip
    known = [part.kl for part in parts if part.kl is not None]
    together = _less(shipped.kl_mean, sum(known)) if len(known) == len(parts) else None
    faults = [part for part in parts if part.broken]
    first = max(faults or parts, key=lambda part: float("inf") if part.kl is None else part.kl)
    sentence, fix = _broken_words(first, rows) if faults else _sound_words(first, rows)
    return Attribution(
        parts=tuple(parts), together=together, carrier=first.name, broken=bool(faults), sentence=sentence, fix=fix
    )


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _square(row: SwapRow) -> float | None:
    return None if row.logits_rms is None else row.logits_rms**2


def _same_pictures(row: SwapRow) -> bool:
    return row.tiles_floats is not None and row.tiles_floats <= LEAST_FLOATS


_FIXES: dict[PartName, str] = {
    "conversion and engine, language half": "the F32 file does not compute what Hugging Face computes: compare its"
    " metadata (RoPE, norm epsilon, head counts) with config.json, and the versions of converter and model",
    "conversion and engine, vision half": "the F32 file does not compute what Hugging Face computes: compare its"
    " metadata (norm epsilon, scale factor, activation) with config.json, and the versions of converter and model",
    "preprocessing": "compare image_mean, image_std and the tile size in the mmproj with the image processor's, then"
    " the channel order that is fed",
    "vision quantization": "more than the type explains: the file is stale, of other weights, or damaged; export again",
    "text quantization": "more than the type explains: the file is stale, of other weights, or damaged; export again",
    "runtime": "more than the settings explain: try the other KV types and flash attention, and the llama.cpp version",
}


def _broken_words(part: Part, rows: Mapping[str, SwapRow]) -> tuple[str, str]:
    """The swaps of the shipped pair as evidence, then the part alone."""
    own, pixels, embeddings = (rows[name].kl_median for name in (SHIPPED, "shipped-pixels", "shipped-embeddings"))
    swaps = (
        f"the shipped pair's median KL is {number(own)}, with HF's pixels {number(pixels)}, with HF's image embeddings"
        f" {number(embeddings)}"
    )
    alone = rows[part.row]
    if part.name == "preprocessing":
        proof = f"libmtmd's pictures differ from HF's by up to {number(alone.tiles_floats)}"
    elif "vision" in part.name:
        proof = f"alone it moves the image embeddings by {number(alone.embeddings_error)}"
    else:
        proof = f"alone it gives {number(alone.kl_median)}"
    return f"Broken: {part.name} ({part.what}): {proof}; {swaps}.", _FIXES[part.name] + "."


def _sound_words(part: Part, rows: Mapping[str, SwapRow]) -> tuple[str, str]:
    shipped, floor = rows[SHIPPED], rows[FLOOR]
    share = "" if part.share is None else f" {part.share:.0%} of"
    sentence = (
        f"Nothing is broken; {part.name} ({part.what}) carries{share} the shipped pair's error, mean KL"
        f" {number(part.kl)} of {number(shipped.kl_mean)} nats."
    )
    if shipped.kl_mean is not None and floor.kl_mean is not None and shipped.kl_mean <= floor.kl_mean:
        return sentence, f"Nothing to do: bfloat16 alone makes more in Hugging Face, {number(floor.kl_mean)}."
    return sentence, _better(part, rows)


def _better(part: Part, rows: Mapping[str, SwapRow]) -> str:
    """What to change where the part's error is too much, with what was measured of it."""
    if part.name == "runtime":
        tried = [row for name, row in rows.items() if name.startswith("kv-")]
        setting = "contract.runtime (type_k, type_v, flash_attn) and the app with it"
    elif part.name == "text quantization":
        tried, setting = [row for name, row in rows.items() if name.startswith("text-")], "export.text_type"
    elif part.name == "vision quantization":
        tried, setting = [row for name, row in rows.items() if name.startswith("mmproj-")], "export.mmproj_type"
    else:
        return f"If that is too much: {_FIXES[part.name]}."
    others = [row for row in tried if row.variant.name != part.row and row.kl_mean is not None]
    best = min(others, key=lambda row: row.kl_mean or 0.0, default=None)
    if best is None or (part.kl is not None and (best.kl_mean or 0.0) >= part.kl):
        return "No other setting tried does better."
    return f"If that is too much, change {setting}: {best.variant.title} has {number(best.kl_mean)} alone."


def number(value: float | None) -> str:
    """In a column's few characters."""
    if value is None:
        return "NaN"
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


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
