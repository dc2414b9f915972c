"""What a difference hangs on, found on real pairs by making one side like the other, step by step."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anypair import EXACT, Tiny, damaged, open_reference, reworded, swapped, tiny_pair
from session import Once
from trying import Trying, broken_language, trying

from parity.engines.auto import AutoSide
from parity.judge.causes import Kind
from parity.judge.gates.limits import parted_at
from parity.pairs.conforming import Found, _cut, _framed, sum_up

CLEAN = (112, 84)
"""Whole tokens of Qwen2.5-VL on either side, and more than libmtmd's least."""


@pytest.fixture(scope="module")
def qwen(once: Once) -> Tiny:
    return tiny_pair(once, "qwen2.5-vl")


@pytest.fixture(scope="module")
def reference(qwen: Tiny) -> AutoSide:
    return open_reference(qwen)


QWEN: dict[tuple[int, int], tuple[str, str, str]] = {
    (160, 120): ("S2", "padding", "160x120: Hugging Face stretches it to 168x112, libmtmd scales and pads it"),
    (126, 84): ("S2", "resize", "126x84: Hugging Face resizes to 112x84, libmtmd to 140x84: resize rounding"),
    (60, 60): ("S2", "limits", "60x60: Hugging Face gives it 4 tokens, libmtmd 9; with as many all stages"),
}
"""Size -> (where it parts, cause, detail) on the pair as it was converted."""


@pytest.fixture(scope="module")
def stock(qwen: Tiny, reference: AutoSide, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trying]:
    with trying(qwen, tmp_path_factory.mktemp("stock"), [CLEAN, *QWEN], reference) as opened:
        yield opened


def causes(found: list[Found]) -> list[Kind]:
    return [one.kind for one in found]


def test_a_clean_pair_parts_nowhere(stock: Trying) -> None:
    assert parted_at(stock.measured(), stock.limits) is None


@pytest.mark.parametrize("size", QWEN)
def test_what_the_converted_pair_does_otherwise(stock: Trying, size: tuple[int, int]) -> None:
    number = 1 + list(QWEN).index(size)
    rung, kind, detail = QWEN[size]
    assert parted_at(stock.measured(number), stock.limits) == rung
    found = stock.conformed(number).found
    assert causes(found) == [kind]
    assert found[0].detail.startswith(detail)
    assert found[0].fix == FIXES[kind]


FIXES = {
    "padding": "feed pictures that need no change of shape, such as 168x112, or letterbox first",
    "resize": "feed pictures whose sides are multiples of 28, or letterbox first",
    "limits": "give llama.cpp --image-min-tokens 4",
}


def test_the_fix_that_is_named_for_limits_works(qwen: Tiny, reference: AutoSide, stock: Trying, tmp_path: Path) -> None:
    runtime = EXACT.model_copy(update={"image_min_tokens": 4})
    with trying(qwen, tmp_path, [(60, 60)], reference, stock.limits, runtime=runtime) as mended:
        assert parted_at(mended.measured(), stock.limits) is None


def test_too_large_for_the_processor(qwen: Tiny, stock: Trying, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    for file in qwen.folder.iterdir():
        (folder / file.name).symlink_to(file)
    settings = folder / "preprocessor_config.json"
    content = json.loads(settings.read_text())
    content["size"]["longest_edge"] = 28 * 28 * 16
    settings.unlink()
    settings.write_text(json.dumps(content))
    with trying(Tiny(folder, qwen.text, qwen.mmproj), tmp_path, [(224, 224)], limits=stock.limits) as capped:
        (found,) = capped.conformed().found
    assert found.kind == "limits"
    assert found.detail.startswith("224x224: Hugging Face gives it 16 tokens, libmtmd 64")
    assert found.fix == "give llama.cpp --image-max-tokens 16"


def test_limits_and_padding_are_both_named(qwen: Tiny, reference: AutoSide, stock: Trying, tmp_path: Path) -> None:
    """A picture that takes other tokens by libmtmd's limits alone, and is padded besides."""
    runtime = EXACT.model_copy(update={"image_max_tokens": 16})
    with trying(qwen, tmp_path, [(290, 200)], reference, stock.limits, runtime=runtime) as capped:
        found = capped.conformed().found
    assert causes(found) == ["limits", "padding"]
    assert "all stages are green" not in found[0].detail
    assert found[0].fix == "give llama.cpp --image-max-tokens 1280"  # the processor's own
    assert "all stages are green" in found[1].detail


PLANTED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "swapped vision tensors": (
        {"tensors": swapped("v.blk.1.attn_q.weight", "v.blk.2.attn_q.weight")}, "S4", "vision",
        "with Hugging Face's embeddings of the picture all stages are green",
    ),
    "epsilon": (
        {"keys": {"clip.vision.attention.layer_norm_epsilon": 0.05}}, "S4", "vision", "the vision half",
    ),
    "mean": (
        {"keys": {"clip.vision.image_mean": [0.5, 0.5, 0.5]}}, "S2", "pixels",
        "112x84: both sides make the same bytes of it, and normalize them up to",
    ),
}  # fmt: skip
"""Fault -> (what is changed in the vision half, where it shows, cause, words of it)."""


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_in_the_vision_half(qwen: Tiny, reference: AutoSide, stock: Trying, tmp_path: Path, fault: str) -> None:
    change, rung, kind, words = PLANTED[fault]
    pair = Tiny(qwen.folder, qwen.text, damaged(qwen.mmproj, tmp_path / "damaged.gguf", **change))
    with trying(pair, tmp_path, [CLEAN], reference, stock.limits) as broken:
        assert parted_at(broken.measured(), stock.limits) == rung
        found = broken.conformed().found
    assert causes(found) == [kind]
    assert words in found[0].detail
    assert found[0].fix


@pytest.mark.slow
def test_a_fault_in_the_language_half(once: Once, reference: AutoSide, stock: Trying, tmp_path: Path) -> None:
    with trying(broken_language(once), tmp_path, [CLEAN, (160, 120)], reference, stock.limits) as broken:
        assert parted_at(broken.measured(), stock.limits) == "S5"
        (found,) = broken.conformed().found
        also = broken.conformed(1).found
    assert found.kind == "language"
    assert found.detail.startswith("even with Hugging Face's own embeddings of the picture the logits differ")
    assert causes(also) == ["padding", "language"]


def test_a_template_without_its_line_break(qwen: Tiny, reference: AutoSide, stock: Trying, tmp_path: Path) -> None:
    made = reworded(qwen.text, tmp_path / "t.gguf", r"'<|im_start|>' + role + '\n'", "'<|im_start|>' + role + ''")
    with trying(Tiny(qwen.folder, made, qwen.mmproj), tmp_path, [CLEAN], reference, stock.limits) as broken:
        assert parted_at(broken.measured(), stock.limits) == "S3"
        (found,) = broken.conformed().found
    assert found.kind == "template"
    assert found.detail.startswith(r"before the picture Hugging Face has '…_start|>user\n<|vision_sta…' and llama.cpp")


def test_two_faults_at_once_are_both_named(qwen: Tiny, reference: AutoSide, stock: Trying, tmp_path: Path) -> None:
    made = reworded(qwen.text, tmp_path / "t.gguf", "<|im_start|>assistant\\n", "<|im_start|>assistant:")
    with trying(Tiny(qwen.folder, made, qwen.mmproj), tmp_path, [(160, 120)], reference, stock.limits) as broken:
        found = broken.conformed().found
    assert causes(found) == ["template", "padding"]
    assert "behind the picture" in found[0].detail


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "kinds", "words"),
    [
        ("smolvlm", (256, 256), ["template"], "'…start|>User:<fake_token_…' and llama.cpp '…start|>User: <fake_token_"),
        ("gemma3", (224, 224), ["template"], r"'…f_turn>user\n\n\n<start_of_im…' and llama.cpp '…f_turn>user\n<start"),
        ("gemma3", (200, 100), ["template", "padding"], "Hugging Face has"),
        ("qwen2.5-vl", (640, 480), ["padding"], "640x480: Hugging Face stretches it to 644x476, libmtmd scales and"),
        ("qwen2.5-vl", (462, 462), ["resize"], "462x462: Hugging Face resizes to 448x448, libmtmd to 476x476"),
        ("qwen3-vl", (1280, 720), ["resize"], "1280x720: Hugging Face resizes to 1280x704, libmtmd to 1280x736"),
        ("qwen3-vl", (100, 100), ["limits"], "give llama.cpp --image-min-tokens 64"),
        ("glm-4v", (640, 480), ["padding"], "640x480: Hugging Face stretches it to"),
        ("pixtral", (640, 480), ["limits"], "give llama.cpp --image-max-tokens"),
        ("internvl3", (640, 480), ["template", "tiling"], "Hugging Face has"),
        ("internvl3", (224, 224), ["template", "vision"], "Hugging Face has"),
    ],
)  # fmt: skip
def test_known_causes_of_every_family(
    once: Once, tmp_path: Path, name: str, size: tuple[int, int], kinds: list[str], words: str
) -> None:
    with trying(tiny_pair(once, name), tmp_path, [size]) as stock:
        assert parted_at(stock.measured(), stock.limits) is not None
        found = stock.conformed().found
    assert causes(found) == kinds
    assert words in found[0].detail + found[0].fix


def test_padding_is_seen_beside_a_plain_background() -> None:
    """A product on white: Hugging Face's tile has an edge of one colour, too, but another one."""
    white = np.full((3, 8, 8), 255, np.uint8)
    white[:, 3:5, 3:5] = 9
    padded = white.copy()
    padded[:, :1] = 0
    assert _framed(white, padded)
    assert not _framed(white, white)
    busy = np.arange(192, dtype=np.uint8).reshape(3, 8, 8)
    assert not _framed(busy, busy + 1)


@pytest.mark.parametrize(
    ("ours", "theirs", "shown"),
    [
        ("user\n\n\n<image>what is this", "user\n<image>what is this", "user\n\n\n<image>what …"),
        ("the same beginning, x", "the same beginning, ", "… beginning, x"),
        ("", "a", ""),
        ("abc", "", "abc"),
    ],
)
def test_the_part_of_a_text_that_differs(ours: str, theirs: str, shown: str) -> None:
    assert _cut(ours, theirs) == shown


def test_causes_are_summed_up() -> None:
    padding, template, vision = (Found(kind, f"{kind} detail", "fix") for kind in ("padding", "template", "vision"))  # type: ignore[arg-type]
    pictures = [
        ("a", [template, padding]),
        ("b", [padding]),
        ("c", [vision]),
        *((f"d{n}", [padding]) for n in range(6)),
    ]
    causes = sum_up(pictures, 20)
    assert (causes.tried, causes.differ) == (9, 20)
    assert [(cause.kind, cause.pictures) for cause in causes.found] == [("padding", 8), ("template", 1), ("vision", 1)]
    assert causes.found[0].image_ids == ("a", "b", "d0", "d1", "d2")
    assert sum_up([], 0).found == ()
