"""Numbers to places: the gauges of the stages."""

import math

import pytest

from parity.judge.verdict import GateResult
from parity.report.drawing import gauge


@pytest.mark.parametrize(
    ("value", "limit", "place", "words"),
    [
        (0.0, 2.0, 0.5, "less than 1 % of the limit"),
        (1.0, 2.0, 31.0, "50 % of the limit"),
        (2.0, 2.0, 62.0, "100 % of the limit"),
        (20.0, 2.0, 62.0 + 38 / 3, "1000 % of the limit"),
        (2_000_000.0, 2.0, 100.0, "1,000,000 times the limit"),
        (math.inf, 2.0, 100.0, "inf times the limit"),
    ],
)
def test_a_gauge_has_its_limit_at_one_place(value: float, limit: float, place: float, words: str) -> None:
    made = gauge(GateResult(stage="logits", status="green", detail="", value=value, limit=limit, floor=1.0))
    assert made is not None
    assert (made.limit, made.floor) == (62.0, 31.0)
    assert made.value == pytest.approx(place, abs=0.01)
    assert made.words == words


def test_what_must_not_differ_at_all_has_no_gauge() -> None:
    assert gauge(GateResult(stage="pixels", status="red", detail="", value=3.0, limit=0.0)) is None
    assert gauge(GateResult(stage="runtime", status="green", detail="")) is None
