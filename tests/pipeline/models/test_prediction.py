"""The numeric helpers that both sides share."""

import numpy as np
import pytest
import scipy.special

from pipeline.models.prediction import TOP_LOGITS, log_softmax, top_logits


@pytest.mark.parametrize("levels", [10, 100_000])  # with 10 levels nearly every logit is tied with others
def test_top_logits_are_the_greatest_and_ties_go_by_id(levels: int) -> None:
    logits = np.random.default_rng(0).integers(0, levels, 5000).astype(np.float32)
    expected = sorted(range(len(logits)), key=lambda index: (-logits[index], index))[:TOP_LOGITS]
    assert top_logits(logits) == tuple((index, float(logits[index])) for index in expected)


def test_top_logits_of_a_broken_model_are_still_that_many() -> None:
    logits = np.full(50, np.nan, np.float32)
    logits[7] = 1.0
    assert [index for index, _ in top_logits(logits)] == [7, 0, 1, 2, 3, 4, 5, 6]
    assert [index for index, _ in top_logits(logits[:3])] == [0, 1, 2]


def test_log_softmax_is_scipys() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (3, 500)).astype(np.float32)
    expected = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    assert np.allclose(log_softmax(logits), expected, atol=1e-12)
