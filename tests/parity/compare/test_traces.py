"""Two traces of one picture, held against each other stage by stage. The traces are made up, the numbers worked out."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from parity.compare.ladder import Measured
from parity.compare.traces import first_apart, measure_traces, pictures_of
from parity.engines.trace import Pixels, Trace, layout_of
from parity.judge.gates.limits import parted_at
from parity.judge.verdict import Limits
from parity.results import Row
from pipeline.core.files import sha256_bytes

IDS = [5, 6, -1, -1, -1, -1, 7, 8]
WIDTH = 3
KEY = sha256_bytes(b"picture")
LIMITS = Limits(
    embeddings=0.01, embeddings_each=0.01, logits=1e-3, logits_each=1e-3, largest=0.1, largest_each=0.1,
    answer=1e-3, answer_each=1e-3,
)  # fmt: skip


def logs(*rows: Sequence[float]) -> npt.NDArray[np.float32]:
    """Log-probabilities of rows of probabilities."""
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows)).astype(np.float32)


STEPS = ((0.7, 0.2, 0.05, 0.05), (0.1, 0.8, 0.05, 0.05), (0.25, 0.25, 0.4, 0.1))


def trace(ids: Sequence[int] = IDS, rows: npt.NDArray[np.float32] | None = None, **about: Any) -> Trace:
    """One side's trace: a picture's embeddings count up from 1."""
    slots = np.array(ids) == -1
    inputs = np.full((len(ids), WIDTH), np.nan, np.float32)
    count = int(slots.sum())
    inputs[slots] = np.arange(1, 1 + count * WIDTH).reshape(count, WIDTH) if rows is None else rows
    values: dict[str, Any] = {
        "positions": np.arange(len(ids), dtype=np.int32)[None],
        "pixels": Pixels([np.zeros((3, 2, 4), np.float32)], (0.5,) * 3, (0.5,) * 3),
        "inputs": inputs,
        "log_probs": logs(*STEPS),
    }
    return Trace(layout=layout_of(ids), **(values | about))


def row(ids: Sequence[int] = (0, 1, 2), text: str = "a b", **about: Any) -> Row:
    values: dict[str, Any] = {
        "key": KEY, "image_id": "a", "rgb_sha256": KEY, "truth": None, "text": text, "label": text,
        "generated_token_ids": tuple(ids), "stop_reason": "end",
    }  # fmt: skip
    return Row(**(values | about))


def held(a: Trace, b: Trace, ours: Row | None = None, theirs: Row | None = None, decoders: Any = (True, 0)) -> Measured:
    return measure_traces((ours or row(), a), (theirs or row(), b), (640, 480), decoders)


def test_equal_sides_are_equal_everywhere() -> None:
    found = held(trace(), trace())
    assert parted_at(found, LIMITS) is None
    assert (found.tokens_equal, found.tokens_first, found.positions_equal) == (True, None, True)
    assert (found.tiles, found.tile_sizes) == ((1, 1), ((4, 2), (4, 2)))
    assert (found.tiles_bytes, found.tiles_bytes_share, found.tiles_floats) == (0, 0, 0)
    assert (found.embeddings_error, found.logits_kl, found.logits_max) == (0, 0, 0)
    assert found.embeddings_cosine == pytest.approx(1)
    assert found.pictures == (4, 4)
    assert found.size == (640, 480)
    assert found.answer
    assert (found.answer.steps, found.answer.differ, found.answer.diverges_at) == (3, 0, None)
    assert (found.answer.kl_mean, found.answer.kl_largest, found.answer.logprob_apart) == (0, 0, 0)


@pytest.mark.parametrize(
    ("theirs", "place"),
    [
        ([5, 9, -1, -1, -1, -1, 7, 8], 1),
        ([5, 6, -1, -1, -1, -1, 7], 7),
        ([5, 6, -1, -1, -1, -1, 7, 8, 9], 8),
        ([5, 6, -1, -1, -1, 7, 8], 5),
        ([5, 6, -1, -1, -1, -1, -1, 7, 8], 6),
        ([6, -1, -1, -1, -1, 7, 8], 0),
        ([5, 6], 2),
    ],
)
def test_the_first_position_apart(theirs: list[int], place: int) -> None:
    found = held(trace(), trace(theirs))
    assert (found.tokens_equal, found.tokens_first, found.positions_equal) == (False, place, None)
    assert parted_at(found, LIMITS) == "S3"


def test_tokens_between_the_rows_of_a_picture_are_the_pictures() -> None:
    """Pixtral: Hugging Face has [IMG_BREAK] (50 here) behind each row, libmtmd a slot."""
    ours, theirs = trace([5, -1, -1, 50, -1, -1, 7]), trace([5, -1, -1, -1, -1, -1, 7])
    assert first_apart(ours, theirs) is None
    given = np.arange(15, dtype=np.float32).reshape(5, WIDTH)
    ours.inputs[1:6] = given
    theirs.inputs[1:6] = given
    rows = pictures_of(ours, theirs)
    assert rows
    assert np.array_equal(rows[0], given)
    assert np.array_equal(rows[1], given)
    assert held(ours, theirs).embeddings_error == 0
    assert held(ours, theirs).pictures == (4, 5)
    # The other way round they are not hidden: what Hugging Face has as a picture is no text.
    assert first_apart(theirs, ours) == 3


def test_tokens_between_a_pictures_rows_have_positions_too() -> None:
    ours, theirs = trace([5, -1, 50, -1, 7]), trace([5, -1, -1, -1, 7])
    moved = theirs.positions.copy()
    moved[0, 2] += 1
    assert held(ours, theirs).positions_equal is True
    assert held(ours, replace(theirs, positions=moved)).positions_equal is False


def test_positions_of_three_axes() -> None:
    places = np.stack([np.arange(8), np.arange(8), np.arange(8)]).astype(np.int32)
    ours, theirs = trace(positions=places), trace(positions=places.copy())
    assert held(ours, theirs).positions_equal is True
    theirs.positions[2, 3] += 1
    found = held(ours, theirs)
    assert found.positions_equal is False
    assert found.tokens_equal
    assert parted_at(found, LIMITS) == "S3"
    # One axis is as good as three that say the same.
    assert held(ours, trace()).positions_equal is True
    assert held(trace(), theirs).positions_equal is False


def test_embeddings_apart() -> None:
    base = np.arange(1, 13, dtype=np.float32).reshape(4, WIDTH)
    assert held(trace(), trace(rows=base * 1.1)).embeddings_error == pytest.approx(0.1, rel=1e-5)
    found = held(trace(), trace(rows=base * np.array([[1], [1], [1], [-1]])))
    assert found.embeddings_cosine == pytest.approx(-1)
    assert parted_at(found, LIMITS) == "S4"


def test_embeddings_of_other_counts_or_widths_are_not_compared() -> None:
    for theirs in (trace([5, 6, -1, -1, -1, 7, 8]), trace(inputs=np.zeros((8, 2 * WIDTH), np.float32))):
        found = held(trace(), theirs)
        assert (found.embeddings_error, found.embeddings_cosine) == (None, None)
        assert parted_at(found, LIMITS) in ("S3", "S4")


def test_embeddings_are_compared_where_only_the_text_differs() -> None:
    base = np.arange(1, 13, dtype=np.float32).reshape(4, WIDTH)
    found = held(trace(), trace([5, -1, -1, -1, -1, 9, 9, 9], rows=base * 1.5))
    assert found.tokens_first == 1
    assert found.embeddings_error == pytest.approx(0.5, rel=1e-5)


def test_no_number_is_no_pass() -> None:
    base = np.full((4, WIDTH), np.nan, np.float32)
    found = held(trace(), trace(rows=base))
    assert found.embeddings_error is None
    assert parted_at(found, LIMITS) == "S4"
    broken = np.full((3, 4), np.nan, np.float32)
    found = held(trace(), trace(log_probs=broken))
    assert (found.logits_kl, found.logits_max) == (None, None)
    assert parted_at(found, LIMITS) == "S5"
    assert found.answer
    assert found.answer.kl_mean is None
    # A later step alone.
    late = logs(*STEPS)
    late[2] = np.nan
    found = held(trace(), trace(log_probs=late))
    assert found.logits_kl == 0
    assert parted_at(found, LIMITS) == "S6"
    zeros = held(trace(rows=np.zeros((4, WIDTH), np.float32)), trace(rows=np.zeros((4, WIDTH), np.float32)))
    assert zeros.embeddings_error is None  # 0 / 0: nothing was shown


def test_the_divergence_is_that_of_the_definition() -> None:
    other = ((0.6, 0.3, 0.05, 0.05), (0.1, 0.8, 0.05, 0.05), (0.25, 0.25, 0.1, 0.4))
    found = held(trace(), trace(log_probs=logs(*other)))
    first = 0.7 * np.log(0.7 / 0.6) + 0.2 * np.log(0.2 / 0.3)
    third = 0.4 * np.log(0.4 / 0.1) + 0.1 * np.log(0.1 / 0.4)
    assert found.logits_kl == pytest.approx(first, rel=1e-5)
    assert found.logits_top1_equal
    assert found.answer
    assert found.answer.kl_mean == pytest.approx((first + third) / 3, rel=1e-5)
    assert found.answer.kl_largest == pytest.approx(third, rel=1e-5)
    assert found.answer.differ == 1
    assert found.answer.logprob_apart == pytest.approx(np.log(4), rel=1e-5)
    apart = np.log(0.7 / 0.6), np.log(0.2 / 0.3), 0.0, 0.0
    centred = np.array(apart) - np.mean(apart)
    assert found.logits_max == pytest.approx(np.abs(centred).max() / np.log(STEPS[0]).std(), rel=1e-4)
    assert parted_at(found, LIMITS) == "S5"


def test_a_vocabulary_may_be_padded_on_one_side() -> None:
    more = np.concatenate([logs(*STEPS), np.full((3, 2), -np.inf, np.float32)], axis=1)
    for a, b in ((trace(), trace(log_probs=more)), (trace(log_probs=more), trace())):
        found = held(a, b)
        assert (found.logits_kl, found.logits_max) == (0, 0)


def test_a_token_without_any_probability_on_both_sides() -> None:
    rows = ((0.7, 0.3, 0.0, 0.0),) * 3
    found = held(trace(log_probs=logs(*rows)), trace(log_probs=logs(*rows)))
    assert (found.logits_kl, found.logits_max) == (0, 0)
    assert found.answer
    assert found.answer.logprob_apart == 0
    alone = held(trace(), trace(log_probs=logs(*((0.8, 0.2, 0.0, 0.0),) * 3)))
    assert (alone.logits_kl, alone.logits_max) == (None, None)  # without end: no number
    assert parted_at(alone, LIMITS) == "S5"


def test_free_answers_part() -> None:
    found = held(trace(), trace(), row((0, 1, 2)), row((0, 3, 2), "a c"))
    assert found.answer
    assert found.answer.diverges_at == 1
    assert (found.generated_equal, found.label_equal) == (False, False)
    longer = held(trace(), trace(), row((0, 1)), row((0, 1, 2), "a b c")).answer
    assert longer
    assert longer.diverges_at == 2


def test_tiles_apart() -> None:
    level = np.float32(2 / 255)  # with a deviation of 0.5 a byte is this much
    tile = np.full((3, 2, 4), 1 / 255, np.float32)  # the byte 128
    mean = (0.5,) * 3
    ours = trace(pixels=Pixels([tile], mean, mean))
    other = tile.copy()
    other[0, 0, 0] += 3 * level
    found = held(ours, trace(pixels=Pixels([other], mean, mean)))
    assert (found.tiles_bytes, found.tiles_bytes_share) == (3, pytest.approx(1 / 24))
    assert parted_at(found, LIMITS) == "S2"
    # Another normalization of the same bytes shows in the floats alone.
    found = held(ours, trace(pixels=Pixels([tile + level], (0.5 - 1 / 255,) * 3, mean)))
    assert (found.tiles_bytes, found.tiles_bytes_share) == (0, 0)
    assert found.tiles_floats == pytest.approx(float(level), rel=1e-5)
    assert parted_at(found, LIMITS) == "S2"


def test_tiles_of_other_numbers_or_sizes() -> None:
    mean = (0.5,) * 3
    two = Pixels([np.zeros((3, 2, 4), np.float32)] * 2, mean, mean)
    found = held(trace(), trace(pixels=two))
    assert (found.tiles, found.tiles_bytes) == ((1, 2), None)
    assert parted_at(found, LIMITS) == "S2"
    wide = Pixels([np.zeros((3, 2, 6), np.float32)], mean, mean)
    found = held(trace(), trace(pixels=wide))
    assert found.tile_sizes == ((4, 2), (6, 2))
    assert parted_at(found, LIMITS) == "S2"


def test_an_unknown_layout_of_pixels_is_not_compared() -> None:
    found = held(trace(pixels=None), trace())
    assert (found.tiles, found.tile_sizes, found.tiles_bytes, found.tiles_floats) == (None, None, None, None)
    assert parted_at(found, LIMITS) is None


@pytest.mark.parametrize(
    ("decoders", "equal", "apart", "rung"),
    [
        ((True, 0), True, 0, None),
        ((False, 3), False, 3, None),  # two JPEG decoders
        ((False, 41), False, 41, "S0"),
        ((False, None), False, None, "S0"),  # other sizes
        (None, None, None, None),
    ],
)
def test_what_the_decoders_make(decoders: Any, equal: bool | None, apart: int | None, rung: str | None) -> None:
    found = held(trace(), trace(), decoders=decoders)
    assert (found.decoded_equal, found.decoded_apart) == (equal, apart)
    assert parted_at(found, LIMITS) == rung


def test_other_bytes_handed_over() -> None:
    found = held(trace(), trace(), row(), row(rgb_sha256=sha256_bytes(b"other")))
    assert not found.pixels_equal
    assert parted_at(found, LIMITS) == "S1"
