"""The ladder's numbers against scipy's, and what they are where there is nothing to compare."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cosine
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from sides import results

from parity.compare.measure import measure, noise_floor, tile_bytes
from parity.results import Row
from pipeline.models.prediction import Taps

LABELS = ("water", "land", "fire")
GENERATOR = np.random.default_rng(5)


def taps(**changes: Any) -> Taps:
    """Two tiles of noise, 3 tokens of 8 numbers each, a vocabulary of 50."""
    levels = GENERATOR.integers(0, 256, (2, 3, 16, 16))
    values: dict[str, Any] = {
        "tiles": list(((levels / 255 - 0.5) / 0.5).astype(np.float32)),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "prompt_ids": [1, -1, -1, 7],
        "embeddings": GENERATOR.normal(size=(2, 3, 8)).astype(np.float32),
        "log_probs": log_softmax(GENERATOR.normal(0, 3, 50)),
    }
    return Taps(**(values | changes))


def row(**changes: Any) -> Row:
    (made,) = results([("fire", "fire")]).rows.values()
    logprobs = dict(zip(LABELS, GENERATOR.normal(-4, 2, 3).tolist(), strict=True))
    return made.model_copy(update={"label_logprobs": logprobs} | changes)


def test_a_side_against_itself_is_nothing_apart() -> None:
    one = (row(), taps())
    found = measure(one, one, True)
    assert (found.tiles, found.tiles_bytes, found.tiles_floats) == ((2, 2), 0, 0.0)
    assert (found.embeddings_error, found.logits_kl, found.logits_max, found.logits_kl_labels) == (0.0, 0.0, 0.0, 0.0)
    assert found.embeddings_cosine == pytest.approx(1)
    assert found.decoded_equal
    assert found.tokens_equal
    assert found.logits_top1_equal
    assert found.generated_equal
    assert found.label_equal


def test_embeddings_are_compared_as_scipy_does() -> None:
    a, b = taps(), taps()
    found = measure((row(), a), (row(), b), None)
    x, y = (side.embeddings.reshape(-1, 8).astype(float) for side in (a, b))
    assert found.embeddings_error == pytest.approx(np.sqrt(((y - x) ** 2).sum() / (x**2).sum()), rel=1e-5)
    assert found.embeddings_cosine == pytest.approx(min(1 - cosine(*pair) for pair in zip(x, y, strict=True)), abs=1e-5)


def test_distributions_are_compared_as_scipy_does() -> None:
    a, b, ours, theirs = taps(), taps(), row(), row()
    found = measure((ours, a), (theirs, b), None)
    assert found.logits_kl == pytest.approx(entropy(np.exp(a.log_probs), np.exp(b.log_probs)))
    p, q = (softmax([side.label_logprobs[label] for label in LABELS]) for side in (ours, theirs))
    assert found.logits_kl_labels == pytest.approx(entropy(p, q))
    x, y = (side.log_probs - side.log_probs.mean() for side in (a, b))
    assert found.logits_max == pytest.approx(np.abs(x - y).max() / a.log_probs.std())
    assert found.logits_top1_equal == (a.log_probs.argmax() == b.log_probs.argmax())


def test_logits_may_differ_by_a_constant() -> None:
    """A log-probability is a logit less a constant of each side."""
    logits = GENERATOR.normal(0, 3, 50)
    found = measure(
        (row(), taps(log_probs=log_softmax(logits))), (row(), taps(log_probs=log_softmax(logits + 9))), None
    )
    assert found.logits_max == pytest.approx(0, abs=1e-12)
    assert found.logits_kl == pytest.approx(0, abs=1e-12)


def test_a_byte_that_differs_is_counted() -> None:
    a = taps()
    other = [tile.copy() for tile in a.tiles]
    other[1][0, 3, 3] += -2 * 5 / 255 if other[1][0, 3, 3] > 0 else 2 * 5 / 255
    found = measure((row(), a), (row(), replace(a, tiles=other)), None)
    assert (found.tiles_bytes, found.tiles_bytes_share) == (5, 1 / (2 * 3 * 16 * 16))
    assert found.tiles_floats == pytest.approx(10 / 255, rel=1e-4)


def test_another_normalization_of_the_same_bytes_is_told_from_other_bytes() -> None:
    a = taps()
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    levels = tile_bytes(a).astype(np.float32) / 255
    shape = (3, 1, 1)
    other = ((levels - np.reshape(mean, shape)) / np.reshape(std, shape)).astype(np.float32)
    found = measure((row(), a), (row(), replace(a, tiles=list(other), mean=mean, std=std)), None)
    assert found.tiles_bytes == 0
    assert found.tiles_floats is not None
    assert found.tiles_floats > 0.1


def test_other_shapes_leave_nothing_to_compare() -> None:
    a, b = taps(), taps()
    short = replace(b, tiles=b.tiles[:1], embeddings=b.embeddings[:1], prompt_ids=[1, -1, 7], log_probs=b.log_probs[1:])
    found = measure((row(), a), (row(), short), None)
    assert (found.tiles, found.tiles_bytes, found.tiles_floats) == ((2, 1), None, None)
    assert (found.embeddings_error, found.embeddings_cosine, found.logits_kl, found.logits_max) == (None,) * 4
    assert (found.tokens_equal, found.tokens_first) == (False, 2)


def test_values_that_are_no_numbers_are_null() -> None:
    a, b = taps(), taps()
    b.embeddings[0, 0, 0] = np.nan
    b.log_probs[3] = np.nan
    found = measure((row(), a), (row(label_logprobs=dict.fromkeys(LABELS)), b), None)
    assert (found.embeddings_error, found.logits_kl, found.logits_max, found.logits_kl_labels) == (None,) * 4


def test_the_floor_sums_up() -> None:
    pairs = [((row(), taps()), (row(generated_token_ids=(100 + index,)), taps())) for index in range(21)]
    measured = [measure(a, b, None) for a, b in pairs]
    floor = noise_floor(measured)
    errors = sorted(one.embeddings_error or 0 for one in measured)
    assert (floor.samples, floor.generated_differ, floor.labels_differ) == (21, 21, 0)
    assert (floor.embeddings_error.median, floor.embeddings_error.largest) == (errors[10], errors[20])
    assert floor.embeddings_error.p95 == pytest.approx(errors[19])
