"""The families' suite: one family from its making to its row, and rows held against what is expected of them.

`make test` tries Qwen2.5-VL at two sizes; the slow tests hold three more against the committed expectation.
"""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from session import Once
from typer.testing import CliRunner

from parity import cli
from parity.engines.mtmd import Mtmd
from parity.pairs.survey import SIZES, counted, prepared, survey
from parity.studies.families import suite, table
from parity.studies.families.suite import TERMS, draw, run_families
from parity.studies.families.table import (
    Families,
    FamilyRow,
    compare,
    exit_code,
    markdown,
    print_families,
    read_families,
    with_table,
    write_expected,
)
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.progress import Reporter
from pipeline.models.auto import load_processor

ROOT = Path(__file__).parents[4]
NAME = "qwen2.5-vl"
TWO = ((256, 256), (640, 480))
EXPECTED = ROOT / "docs" / "families.json"


def reporter(said: io.StringIO | None = None) -> Reporter:
    """One that writes into ``said``, or says nothing."""
    return Reporter(Console(file=said or io.StringIO(), width=200), quiet=said is None)


@pytest.fixture(scope="module")
def ran(once: Once) -> Path:
    """The folder of a run of one family."""
    return once("families-suite", lambda folder: run_families((NAME,), folder, reporter(), TWO))


@pytest.fixture
def row(ran: Path) -> FamilyRow:
    return read_families(ran / "families.json").by_name[NAME]


# ---- a family -------------------------------------------------------------------------------------------------------


def test_a_family_is_made_and_judged_size_by_size(row: FamilyRow) -> None:
    square, photo = row.sizes
    assert (square.size, square.stage, square.causes, square.layout_equal) == ("256x256", None, (), True)
    # F32 on both sides. Measured: 6.4e-4 and 8e-7 nats.
    assert square.bytes_differ == 0
    assert square.embeddings_error is not None
    assert square.embeddings_error < 2e-3
    assert square.kl is not None
    assert square.kl < 1e-4
    assert (photo.stage, photo.causes, photo.layout_equal) == ("S2", ("padding",), True)
    assert photo.bytes_differ is not None
    assert photo.bytes_differ > 0.3
    assert [(cause.kind, cause.sizes) for cause in row.causes] == [("padding", ("640x480",))]
    assert "Hugging Face stretches it to 644x476" in row.causes[0].detail
    assert row.verdict == "FAIL"


def test_the_survey_counts_as_the_processor_and_libmtmd_really_do(ran: Path, row: FamilyRow) -> None:
    folder = ran / NAME
    processor = load_processor(str(folder / "model"))
    few = [size for size in SIZES if size[0] * size[1] < 400_000]
    assert [counted(processor, size) for size in few] == [prepared(processor, size)[0] for size in few]
    halves = [folder / "gguf" / name for name in ("model-F32.gguf", "mmproj-model-F32.gguf")]
    with Mtmd(*halves, TERMS.runtime) as side:
        found = survey(processor, side)
        theirs = [side.picture((width, height))[0] for width, height in TWO]
        assert survey(WithoutCount(processor), side, few).differ == survey(processor, side, few).differ
    # What both sides made of the same sizes when they answered.
    assert [size.tokens for size in row.sizes] == [(counted(processor, s), n) for s, n in zip(TWO, theirs, strict=True)]
    assert found == row.survey
    assert (found.sizes, "4000x3000" in {other.size for other in found.differ}) == (20, True)


class WithoutCount:
    """A processor that does not say how many positions a picture takes."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, **inputs: Any) -> Any:
        return self._processor(**inputs)

    def __getattr__(self, name: str) -> Any:
        if name == "_get_num_multimodal_tokens":
            raise AttributeError(name)
        return getattr(self._processor, name)


def test_a_second_run_does_nothing(ran: Path) -> None:
    said = io.StringIO()
    assert run_families((NAME,), ran, reporter(said), TWO) == read_families(ran / "families.json")
    assert f"{NAME} unchanged: 1 of 2 sizes pass; padding" in said.getvalue()


def test_an_interrupted_run_goes_on(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed run has answers and no row; the same model and pair are made again, and nothing is answered twice."""
    shutil.copytree(ran / NAME, tmp_path / NAME)
    (tmp_path / NAME / "row.json").unlink()
    (tmp_path / NAME / "stages" / "row.json").unlink()
    ladder = tmp_path / NAME / "check" / "ladder.jsonl"
    before = ladder.stat().st_mtime_ns

    def convert(_: Path, out: Path, **__: Any) -> list[Path]:
        shutil.copytree(ran / NAME / "gguf", out)
        return [out / "model-F32.gguf", out / "mmproj-model-F32.gguf"]

    # To make and to convert would take most of the time here.
    monkeypatch.setattr(suite, "make_family", lambda _, folder: shutil.copytree(ran / NAME / "model", folder))
    monkeypatch.setattr(suite, "convert_family", convert)
    found = run_families((NAME,), tmp_path, reporter(), TWO)
    assert ladder.stat().st_mtime_ns == before
    assert found == read_families(ran / "families.json")


def test_an_unknown_family_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["families", "llava-9", "--out", str(tmp_path)])
    assert isinstance(done.exception, UserError)
    assert "no family 'llava-9'" in str(done.exception)


def test_pictures_are_the_same_each_time_and_smooth(tmp_path: Path) -> None:
    for number in range(2):
        draw((64, 48), tmp_path / f"{number}.png")
    first, second = ((tmp_path / f"{number}.png").read_bytes() for number in range(2))
    assert first == second
    levels = np.asarray(Image.open(tmp_path / "0.png")).astype(int)
    assert levels.shape == (48, 64, 3)
    assert np.abs(np.diff(levels, axis=1)).max() < 60  # of 255


# ---- the expectation ------------------------------------------------------------------------------------------------


def changed(row: FamilyRow, **update: Any) -> Families:
    return Families(versions={}, families=(row.model_copy(update=update),))


def with_size(row: FamilyRow, number: int, **update: Any) -> Families:
    sizes = list(row.sizes)
    sizes[number] = sizes[number].model_copy(update=update)
    return changed(row, sizes=tuple(sizes))


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda row: with_size(row, 0, stage="S4", causes=("vision",)), "worse",
         "256x256 was PASS and is FAIL at S4 embeddings (vision)"),
        (lambda row: with_size(row, 1, stage=None, causes=()), "better",
         "640x480 was FAIL at S2 tiles (padding) and is PASS"),
        (lambda row: with_size(row, 1, stage="S5"), "better", "is FAIL at S5 logits (padding)"),
        (lambda row: with_size(row, 1, causes=("padding", "resize")), "worse", "(padding, resize)"),
        (lambda row: with_size(row, 1, causes=("resize",)), "otherwise", "is FAIL at S2 tiles (resize)"),
        (lambda row: changed(row, refused="llama.cpp cannot load it"), "worse", "llama.cpp cannot load it"),
        (lambda row: changed(row, mended="a tensor is lost"), "worse", "a tensor is lost"),
        (lambda row: changed(row, survey=row.survey.model_copy(update={"differ": ()})), "better",
         "0 of 20 sizes surveyed take another number of positions"),
        (lambda row: changed(row, name="llava-9"), "otherwise", "it is new"),
    ],
)  # fmt: skip
def test_a_changed_row_is_other_than_expected(
    row: FamilyRow, change: Callable[[FamilyRow], Families], kind: str, words: str
) -> None:
    changes = compare(changed(row), change(row))
    assert [(one.kind, one.family) for one in changes] == [(kind, changes[0].family)]
    assert words in changes[0].sentence
    assert exit_code(changes) == 1


def test_other_numbers_and_what_cannot_be_tried_here_are_as_expected(row: FamilyRow) -> None:
    assert compare(changed(row), with_size(row, 0, kl=3e-6, embeddings_error=7e-4)) == []
    assert compare(changed(row), with_size(row, 0, kl=None)) == []
    lacking = changed(FamilyRow(name=NAME, model_type="qwen2_5_vl", untried="it needs torchvision"))
    assert compare(changed(row), lacking) == compare(lacking, changed(row)) == []
    assert exit_code([]) == 0


def test_no_longer_refused_is_better(row: FamilyRow) -> None:
    refused = changed(FamilyRow(name=NAME, model_type="qwen2_5_vl", refused="no such tensor"))
    (change,) = compare(refused, changed(row))
    assert change.sentence == f"{NAME} is better than expected: it is no longer refused (no such tensor)"


def test_values_that_are_no_numbers_break_no_table(row: FamilyRow) -> None:
    odd = with_size(row, 0, kl=None, embeddings_error=None, bytes_differ=None, stage="S4")
    assert "| 256x256 | FAIL S4 | other size |" in markdown(odd)
    said = io.StringIO()
    print_families(odd, compare(changed(row), odd), Console(file=said, width=120))
    assert "other than expected: 1 worse" in said.getvalue()


def test_the_command_ends_with_1_where_a_family_is_other(
    row: FamilyRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = read_families(EXPECTED).by_name[NAME]
    monkeypatch.setattr(suite, "run_families", lambda *_: changed(known, refused="it does not load"))
    done = CliRunner().invoke(cli.app, ["families", NAME, "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert f"{NAME} is worse than expected: it does not load" in done.stdout
    monkeypatch.setattr(suite, "run_families", lambda *_: changed(known))
    done = CliRunner().invoke(cli.app, ["families", NAME, "--out", str(tmp_path)])
    assert done.exit_code == 0
    assert "every family is as expected" in done.stdout


def test_writing_keeps_the_families_that_were_not_run(row: FamilyRow, tmp_path: Path) -> None:
    (tmp_path / "families.md").write_text(f"# Families\n\n{table.BEGIN}\nold\n{table.END}\n\nMore.\n")
    other = row.model_copy(update={"name": "gemma3"})
    for families in (changed(other), changed(row)):
        write_expected(tmp_path, families)
    assert [family.name for family in read_families(tmp_path / "families.json").families] == [NAME, "gemma3"]
    page = (tmp_path / "families.md").read_text()
    assert page.startswith("# Families")
    assert page.endswith("More.\n")
    assert "old" not in page
    with pytest.raises(UserError, match="leave LLAMA_CPP out"):
        write_expected(tmp_path, changed(row).model_copy(update={"versions": {"llama.cpp": "sha256:0"}}))


def test_a_file_that_is_no_table_is_told(tmp_path: Path) -> None:
    path = tmp_path / "families.json"
    with pytest.raises(UserError, match="`parity families --write` makes it"):
        read_families(path)
    write_json(path, {"families": 3})
    with pytest.raises(UserError, match="is no table of families"):
        read_families(path)
    with pytest.raises(UserError, match="has no place for the table"):
        with_table("# Families\n", changed_nothing(), path)


def changed_nothing() -> Families:
    return Families(versions={}, families=())


def test_the_documents_table_is_the_expectation() -> None:
    page = ROOT / "docs" / "families.md"
    text = page.read_text(encoding="utf-8")
    assert with_table(text, read_families(EXPECTED), page) == text
    names = json.loads(EXPECTED.read_text())["families"]
    assert [family["name"] for family in names] == list(suite.FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "internvl3", "pixtral"])
def test_a_family_is_as_the_committed_expectation_says(tmp_path: Path, name: str) -> None:
    assert compare(read_families(EXPECTED), run_families((name,), tmp_path, reporter())) == []
