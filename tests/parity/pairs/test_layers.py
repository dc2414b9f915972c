"""The first layer at which the outputs diverge, found where a fault was planted."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from anypair import Tiny, damaged, open_reference, swapped, tiny_pair
from session import Once
from trying import Trying, broken_language, trying

from parity.engines.auto import AutoSide
from parity.pairs.layers import JUMP, _reordered, _taker, first_jump

SIZE = (112, 84)


@pytest.fixture(scope="module")
def qwen(once: Once) -> Tiny:
    return tiny_pair(once, "qwen2.5-vl")


@pytest.fixture(scope="module")
def reference(qwen: Tiny) -> AutoSide:
    return open_reference(qwen)


@pytest.fixture(scope="module")
def stock(qwen: Tiny, reference: AutoSide, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trying]:
    with trying(qwen, tmp_path_factory.mktemp("stock"), [SIZE], reference) as opened:
        yield opened


def test_a_clean_pair_has_no_first_layer(stock: Trying) -> None:
    vision, language = stock.layers_of("vision"), stock.layers_of("language")
    assert (vision.half, language.half) == ("vision", "language")
    assert (len(vision.errors), len(language.errors)) == (4, 3)
    for half in (vision, language):
        assert half.first is None
        known = [error for error in half.errors if error is not None]
        # llama.cpp keeps of the last language layer those rows alone that are wanted.
        assert len(known) == (4 if half is vision else 2)
        # Measured: 7.5e-4 at most.
        assert max(known) < 3e-3


@pytest.mark.parametrize("layer", [0, 2])
def test_a_fault_in_a_layer_of_the_vision_half(
    qwen: Tiny, reference: AutoSide, stock: Trying, tmp_path: Path, layer: int
) -> None:
    change = swapped(f"v.blk.{layer}.ffn_gate.weight", f"v.blk.{layer}.ffn_up.weight")
    pair = Tiny(qwen.folder, qwen.text, damaged(qwen.mmproj, tmp_path / "m.gguf", tensors=change))
    with trying(pair, tmp_path, [SIZE], reference, stock.limits) as broken:
        vision = broken.layers()
    assert vision.half == "vision"
    assert vision.first == layer
    assert vision.image_id == "0-112x84.png"
    assert all(error is not None and error > 0.1 for error in vision.errors[layer:])


@pytest.mark.slow
def test_a_fault_in_a_layer_of_the_language_half(
    once: Once, reference: AutoSide, stock: Trying, tmp_path: Path
) -> None:
    with trying(broken_language(once), tmp_path, [SIZE], reference, stock.limits) as broken:
        assert broken.layers_of("vision").first is None
        language = broken.layers()
    assert (language.half, language.first) == ("language", 1)
    assert language.errors[0] is not None
    assert language.errors[0] < 3e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tensors", "layer"),
    [
        ("gemma3", ("v.blk.1.attn_q.weight", "v.blk.1.attn_k.weight"), 1),
        ("qwen3-vl", ("v.blk.2.attn_out.weight", "v.blk.3.attn_out.weight"), 2),
    ],
)
def test_layers_of_other_families(once: Once, tmp_path: Path, name: str, tensors: tuple[str, str], layer: int) -> None:
    pair = tiny_pair(once, name)
    side = open_reference(pair)
    size = (224, 224) if name == "gemma3" else (256, 256)
    with trying(pair, tmp_path / "stock", [size], side) as stock:
        limits = stock.limits
        assert stock.layers_of("vision").first is None
    made = damaged(pair.mmproj, tmp_path / "m.gguf", tensors=swapped(*tensors))
    with trying(Tiny(pair.folder, pair.text, made), tmp_path / "broken", [size], side, limits) as broken:
        assert broken.layers().first == layer


@pytest.mark.parametrize(
    ("errors", "first"),
    [
        ([1e-3, 1e-3, 2e-3], None),
        ([1e-3, 1e-3, 0.5, 0.6], 2),
        ([0.5, 0.5], 0),  # before any layer, or in the first
        ([1e-3, 5e-3, 9e-3, 0.02, 0.03], None),  # it grows from layer to layer
        ([1e-4, 1e-4, 5e-3], None),  # fifty times as much, and within the limit
        ([None, 1e-3, None, 0.5], 3),
        ([None, None], None),
        ([], None),
    ],
)
def test_a_jump(errors: list[float | None], first: int | None) -> None:
    assert first_jump(errors, 0.01) == first
    assert JUMP == 10


def test_rows_in_another_order_are_the_same_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    shuffled = rows[np.random.default_rng(1).permutation(40)]
    assert _reordered(rows, shuffled) == pytest.approx(0, abs=1e-6)
    sums = [[0.0, 0.0, 0]]
    _taker([rows], sums)(0, shuffled)
    assert sums[0][0] == pytest.approx(0, abs=1e-6)
    assert sums[0][2] == 40
    # Other rows are not hidden by it: neither of another direction nor of another size, nor one for all.
    other = np.random.default_rng(2).normal(size=(40, 16)).astype(np.float32)
    assert _reordered(rows, other) > 0.1 * (rows**2).sum()
    assert _reordered(rows, 2 * shuffled) == pytest.approx((rows**2).sum(), rel=1e-5)
    assert _reordered(rows, np.tile(rows[:1], (40, 1))) == np.inf


def test_rows_of_another_width_are_not_compared() -> None:
    rows = np.ones((4, 8), np.float32)
    sums = [[0.0, 0.0, 0]]
    take = _taker([rows], sums)
    take(0, np.ones((4, 6), np.float32))
    take(5, rows)  # a layer that Hugging Face does not have
    assert sums == [[0.0, 0.0, 4]]
