"""The bench's tables and floors; the speeds themselves are ``make bench``'s."""

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bench.ladder import memory
from bench.predictors import Way, flags, png, rows
from bench.report import ladder_missed, letterbox_text, missed, predictor_text, table
from pipeline.contract import Contract, Runtime
from pipeline.core.errors import UserError
from pipeline.core.files import lock
from pipeline.core.progress import Reporter
from pipeline.recipe import Recipe
from pipeline.workflow.build import Build

PHOTOS = [
    {"photo": "640x480", "megapixels": 0.3, "pillow_ms": 1.0, "ours_ms": 2.0, "ratio": 0.5},
    {"photo": "4000x3000", "megapixels": 12.0, "pillow_ms": 150.0, "ours_ms": 12.5, "ratio": 12.0},
]


def ways(server=2.0, cli=20.0, server_same=40):
    """Rows as ``bench.predictors.run`` makes them, with these ratios."""
    common = {"images": 40, "load_s": 0.2, "same_label": 40}
    return [
        {**common, "way": "in process", "ms": 8.0, "ratio": 1.0},
        {**common, "way": "llama-server", "ms": 8.0 * server, "ratio": server, "same_label": server_same},
        {**common, "way": "  PNG ready made", "ms": 12.0, "ratio": 1.5},
        {
            **common,
            "way": "llama-mtmd-cli",
            "images": 8,
            "ms": 8.0 * cli,
            "ratio": cli,
            "load_s": None,
            "same_label": 8,
        },
    ]


def test_columns_stand_under_their_heads():
    text = table(("photo", "ms"), [("1x1", "12.25"), ("4000x3000", "3.50")])
    assert text.split("\n") == [
        "photo         ms",
        "1x1        12.25",
        "4000x3000   3.50",
    ]


def test_the_letterbox_table_shows_the_ratio_and_where_the_floor_holds():
    _, small, large = letterbox_text(PHOTOS).split("\n")
    assert small.split() == ["640x480", "0.3", "1.00", "2.00", "0.5x", "-"]
    assert large.split() == ["4000x3000", "12.0", "150.00", "12.50", "12.0x", "1.0x"]


def test_the_predictor_table_shows_speed_loading_ratio_floor_and_agreement():
    head, own, server, ready_made, cli = predictor_text(ways()).split("\n")
    assert own.split() == ["in", "process", "40", "8.00", "125.0", "0.20", "-", "-", "-"]
    assert server.split() == ["llama-server", "40", "16.00", "62.5", "0.20", "2.0x", "1.8x", "40", "of", "40"]
    assert ready_made.split()[-5:] == ["1.5x", "-", "40", "of", "40"]
    assert "each image" in cli
    assert cli.split()[-5:] == ["20.0x", "10.0x", "8", "of", "8"]
    assert len({len(line) for line in (server, ready_made, head)}) == 1


def test_nothing_is_missed_where_every_floor_is_reached():
    assert missed(PHOTOS, ways(server=1.8, cli=10.0)) == []


@pytest.mark.parametrize(
    ("photos", "given", "words"),
    [
        ([{**PHOTOS[1], "ratio": 0.99}], ways(), "letterbox of 4000x3000: 0.99x"),
        (PHOTOS, ways(server=1.79), "1.79x the speed of llama-server, 1.8x or more"),
        (PHOTOS, ways(cli=9.9), "9.90x the speed of llama-mtmd-cli, 10.0x or more"),
        (PHOTOS, ways(server_same=39), "llama-server: another label than in process for 1 of 40 images"),
    ],
)
def test_each_floor_is_held(photos, given, words):
    (problem,) = missed(photos, given)
    assert words in problem


def test_labels_are_compared_image_by_image():
    """The same labels for other images are no agreement; what stands around a label does not matter."""
    own = Way("in process", {"a": 1, "b": 2}, iter, 0.1, [4.0, 6.0], {"a": " fire", "b": " water"})
    same = Way("same", {"b": 2}, iter, None, [50.0], {"b": "\n Water\n\n"})
    swapped = Way("swapped", {"a": 1, "b": 2}, iter, 0.1, [10.0, 10.0], {"a": " water", "b": " fire"})
    first, second, third = rows([own, same, swapped], Contract())
    assert (first["ms"], first["same_label"], first["ratio"]) == (5.0, 2, 1.0)
    assert (second["same_label"], second["images"], second["ratio"]) == (1, 1, 10.0)
    assert (third["same_label"], third["ratio"]) == (0, 2.0)


def test_a_way_is_timed_turn_by_turn():
    way = Way("echo", {"a": "fire", "b": "wood"}, iter, None)
    way.turn()
    way.turn()
    assert way.texts == {"a": "fire", "b": "wood"}
    assert len(way.ms) == 2, "one figure a turn"
    assert all(0 <= ms < 1000 for ms in way.ms)


def test_the_programs_get_the_runtime_profile_of_the_contract(tmp_path):
    runtime = Runtime(n_ctx=2048, n_batch=256, type_k="q8_0", type_v="f16", flash_attn=False)
    given = flags(Contract(runtime=runtime), tmp_path / "m.gguf", tmp_path / "p.gguf", 3)
    options = dict(zip(given[::2], given[1::2], strict=True))
    assert options["--threads"] == "3"
    assert (options["--ctx-size"], options["--batch-size"], options["--ubatch-size"]) == ("2048", "256", "256")
    assert (options["--cache-type-k"], options["--cache-type-v"], options["--flash-attn"]) == ("q8_0", "f16", "off")


def test_the_picture_for_the_server_loses_nothing():
    import io

    import numpy as np
    from PIL import Image

    canvas = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(canvas)))), canvas)


@pytest.mark.parametrize(
    ("ratio", "mb", "words"),
    [(1.2, 810.0, []), (2.4, 810.0, ["2.40x the time"]), (1.2, 1000.0, ["1.25x the memory"])],
)
def test_the_ladders_ceilings(ratio: float, mb: float, words: list[str]) -> None:
    held = [{"images": images, "mb": size, "images_per_second": 90.0} for images, size in ((100, 800.0), (10000, mb))]
    found = ladder_missed({"plain": 8.0, "ladder": 8.0 * ratio, "ratio": ratio}, held)
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))


def test_what_the_measuring_process_says_is_told(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"name": "nowhere", "dataset": {"source": "photos", "path": str(tmp_path / "no")}})
    with pytest.raises(UserError, match=r"over 3 images ended with exit code 1: .*/no' is not a folder"):
        memory(Build(recipe, tmp_path / "nowhere", Reporter(Console(), quiet=True), threads=1), counts=(3,))


def test_a_measuring_process_that_says_nothing_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="exit code 1: it left no message"):
        memory(Build(Recipe(name="x"), tmp_path, Reporter(Console(), quiet=True), threads=1), counts=(3,))


@pytest.mark.slow
def test_memory_is_measured_while_the_runs_folder_is_locked(tmp_path: Path) -> None:
    settings = {
        "name": "small",
        "dataset": {"n_per_class": 8},
        "base": {"model": "embedded:tiny"},
        "train": {"epochs": 1, "gradient_checkpointing": False},
    }
    root = tmp_path / "small"
    build = Build(
        Recipe.model_validate(settings), root, Reporter(Console(), quiet=True), threads=1, held=lock(root)
    )  # fmt: skip
    build.ensure_export()
    with pytest.raises(UserError, match="in use by another run"):
        lock(root)
    (row,) = memory(build, counts=(3,))
    assert row["images"] == 3
    assert 200 < row["mb"] < 2000  # measured 700, most of it libraries
    assert row["images_per_second"] > 0


def test_nothing_is_drawn_through_the_tables(tiny: Path) -> None:
    """transformers draws a bar for each model that it loads, unless it was told not to before it was imported."""
    code = (
        "import sys, bench.__main__ as bench; from pathlib import Path; from pipeline.models.smolvlm import folder;"
        " bench.quieten(); folder.load_model(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
