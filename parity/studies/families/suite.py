"""``parity families``: a tiny model of each family made, converted, surveyed and checked.

<out>/  families.json  families.md
        <family>/  model/  gguf/  pictures/<width>x<height>.png  check/ (as parity check leaves it)  row.json
"""

import ctypes
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from parity.compare.ladder import Measured, read_ladder
from parity.compare.photos import load_photos
from parity.compare.runner import LADDER
from parity.engines.mtmd import try_pair
from parity.engines.probe import probe
from parity.judge.gates.limits import limits_of, parted_at
from parity.judge.verdict import Limits, Verdict
from parity.pairs.job import Check
from parity.pairs.opening import AnyPair, Opened
from parity.pairs.survey import survey
from parity.studies.families.models import FAMILIES, Family, add_line_break, convert_family, lost_tensor, make_family
from parity.studies.families.table import Families, FamilyRow, Size, Told, markdown, read_row, rounded
from parity.terms import CheckTerms, OpenGate, ToolRuntime
from pipeline.core.errors import UserError
from pipeline.core.files import clear_left, lock, remove, write_json, write_text
from pipeline.core.progress import Reporter
from pipeline.core.provenance import machine, versions
from pipeline.export.convert import atomic_file
from pipeline.models.auto import load_processor
from pipeline.workflow.stage import Stage

SIZES = ((256, 256), (640, 480), (1280, 720), (1000, 300))
"""Width and height of the pictures."""
M_PERTURB = -6
PATCHES = 8
"""Random colours a side, of which a picture is made: smooth, so that another resize is no more than that."""
TERMS = CheckTerms(
    name="families",
    prompt="Describe this image.",
    max_new_tokens=8,
    runtime=ToolRuntime(type_k="f32", type_v="f32", flash_attn="off"),
    # Four pictures that all agree cannot show more than half: what matters is each picture's own stages.
    open_gate=OpenGate(agreement=0.5),
)


def run_families(
    names: Sequence[str], folder: Path, reporter: Reporter, sizes: Sequence[tuple[int, int]] = SIZES
) -> Families:
    """Make, convert, survey and check each family, unless that was done, into ``folder``; write the table.

    ``names``: of :data:`FAMILIES`; none: all. ``sizes``: (width, height). Raises UserError for a name that is none.
    What transformers, the converter or llama.cpp refuses stands in the row, in words.
    """
    for name in names:
        if name not in FAMILIES:
            raise UserError(f"there is no family {name!r}: give one of {', '.join(FAMILIES)}")
    chosen = [FAMILIES[name] for name in dict.fromkeys(names or FAMILIES)]
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        clear_left(folder)
        rows = []
        with steady_memory(), reporter.progress("families", "families") as advance:
            for number, family in enumerate(chosen):
                advance(number, len(chosen), family.name)
                rows.append(_row(family, folder, reporter, (*sizes, *family.sizes)))
        found = Families(versions=versions(), families=tuple(rows))
        write_json(folder / "families.json", found.model_dump(mode="json"))
        write_text(folder / "families.md", markdown(found))
    return found


@contextmanager
def steady_memory() -> Iterator[None]:
    """Let malloc fill what it hands out while the block runs (``M_PERTURB`` of glibc's malloc.h), where it can.

    llama.cpp multiplies memory that it never wrote by 0 (tools/mtmd/models/pixtral.cpp:74), which leaves nan where nan
    was: Pixtral would fail now and then. Filled with 0xfe it is a number, every time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(M_PERTURB, 1)
    try:
        yield
    finally:
        mallopt(M_PERTURB, 0)


def draw(size: tuple[int, int], path: Path) -> None:
    """A smooth picture of (width, height) as PNG, the same each time."""
    generator = np.random.default_rng(size[0] * 10_000 + size[1])
    colours = generator.integers(0, 256, (PATCHES, PATCHES, 3), dtype=np.uint8)
    with atomic_file(path) as scratch:
        Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(scratch, "PNG")


def _row(family: Family, folder: Path, reporter: Reporter, sizes: Sequence[tuple[int, int]]) -> FamilyRow:
    root = folder / family.name
    depends: dict[str, Any] = {
        "family": family.name,
        "sizes": [list(size) for size in sizes],
        "terms": TERMS.digest,
        "versions": versions(),
        "machine": machine(),
    }
    work = partial(_try, family.name, root, tuple(sizes))
    Stage("row", depends, work, ("row.json",)).run(root, lambda _, text: reporter.say(family.name, text))
    return read_row(root / "row.json")


def _try(name: str, root: Path, sizes: Sequence[tuple[int, int]]) -> str:
    """One family, from its making to its row."""
    root.mkdir(parents=True, exist_ok=True)
    row = _tried(name, root, sizes)
    write_json(root / "row.json", row.model_dump(mode="json"))
    return row.sentence


def _tried(name: str, root: Path, sizes: Sequence[tuple[int, int]]) -> FamilyRow:
    family = FAMILIES[name]
    model, gguf, pictures = root / "model", root / "gguf", root / "pictures"
    for place in (model, gguf, pictures):  # of an earlier run, perhaps with other code
        remove(place)
    make_family(name, model)
    row = FamilyRow(name=name, model_type=family.model_type)

    def words(error: Exception) -> str:
        return str(error).removeprefix(f"{model}: ").replace(f"{root}/", "")

    try:
        processor = load_processor(str(model))
    except UserError as error:
        return row.model_copy(update={"untried": words(error)})
    try:
        text, mmproj = convert_family(model, gguf, mend=False)
        if lost_tensor(model, mmproj):
            row = row.model_copy(update={"mended": _mended(model, text, mmproj, words)})
        for size in sizes:
            draw(size, pictures / f"{_named(size)}.png")
        photos, _ = load_photos(pictures, TERMS.prompt)
        pair, quiet = AnyPair(str(model), text, mmproj), Reporter(Console(stderr=True), quiet=True)
        with Opened(pair, photos, TERMS, quiet) as opened:
            verdict = Check(opened, root / "check").run()
            counts = survey(processor, opened.candidate())
    except UserError as error:
        return row.model_copy(update={"refused": words(error)})
    measured = _measured(root / "check", verdict, sizes)
    return row.model_copy(update={**measured, "survey": counts})


def _mended(model: Path, text: Path, mmproj: Path, words: Callable[[Exception], str]) -> str:
    """Add what the converter lost, where llama.cpp does not load the pair without it; what it says, else empty."""
    try:
        probe(text, mmproj, try_pair, (TERMS.runtime, SIZES[:1]))
    except UserError as error:
        add_line_break(model, mmproj)
        lacking = re.search(r"unable to find tensor [\w.]+", str(error))  # llama.cpp says it three times over
        return f"llama.cpp does not load the pair as converted: {lacking[0]}" if lacking else words(error)
    return ""


def _measured(folder: Path, verdict: Verdict, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The part of a row that the check's files tell."""
    ladder = read_ladder(folder / LADDER)
    limits = limits_of(ladder.header, TERMS.gate)
    rows = {row.image_id.removesuffix(".png"): row for row in ladder.rows.values()}
    found = verdict.causes.found if verdict.causes else ()
    causes = tuple(
        Told(
            kind=cause.kind,
            detail=cause.detail,
            fix=cause.fix,
            sizes=tuple(sorted((name.removesuffix(".png") for name in cause.image_ids), key=[*rows].index)),
        )
        for cause in found
    )
    return {
        "verdict": verdict.status,
        "sizes": tuple(_size(_named(size), rows[_named(size)], limits, causes) for size in sizes),
        "causes": causes,
    }


def _size(name: str, row: Measured, limits: Limits, causes: Sequence[Told]) -> Size:
    return Size(
        size=name,
        stage=parted_at(row, limits),
        causes=tuple(cause.kind for cause in causes if name in cause.sizes),
        tokens=row.pictures or (0, 0),
        layout_equal=row.tokens_equal and row.positions_equal is not False,
        bytes_differ=rounded(row.tiles_bytes_share),
        embeddings_error=rounded(row.embeddings_error),
        kl=rounded(row.logits_kl),
    )


def _named(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
