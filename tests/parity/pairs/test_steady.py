"""Values that are there one time and no numbers the next: named as what they are, and no cause of their own besides."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.compare.photos import Photo
from parity.engines.given import Given
from parity.engines.trace import Answer, Trace
from parity.judge.verdict import Limits
from parity.pairs.conforming import Found, Subject, conform, sum_up
from parity.results import Row

LIMITS = Limits(
    embeddings=0.01, embeddings_each=0.01, logits=1e-3, logits_each=1e-3, largest=0.1, largest_each=0.1,
    answer=1e-3, answer_each=1e-3,
)  # fmt: skip
HEX = "0" * 64


def trace(value: float = 1.0) -> Trace:
    """A prompt of a token, a picture of two positions and a token."""
    inputs = np.ones((4, 3), np.float32)
    inputs[1] = value
    return Trace(
        layout=((5,), 2, (6,)),
        positions=np.arange(4, dtype=np.int32)[None],
        pixels=None,
        inputs=inputs,
        log_probs=np.log(np.array([[0.6, 0.4]], np.float32)) * (1 if np.isfinite(value) else np.nan),
    )


@pytest.fixture
def photo(monkeypatch: pytest.MonkeyPatch) -> Photo:
    monkeypatch.setattr(Photo, "rgb", property(lambda _: np.zeros((4, 6, 3), np.uint8)))
    return Photo(Path("photo.png"), "photo.png", None, key=HEX, rgb_sha256=HEX, size=(6, 4))


def subject(photo: Photo, candidate: Trace, lost: bool = False) -> Subject:
    row = Row(
        key=HEX, image_id="photo.png", rgb_sha256=HEX, truth=None, text="a", label=None,
        generated_token_ids=(1,), top_logits=(), ms={}, stop_reason="length", layout=((5,), 2, (6,)),
    )  # fmt: skip
    answer = Answer((1,), "a", "length", {})
    return Subject(photo, "<__media__>", answer, trace(), candidate, (row, row), None, lost)


class Side:
    """llama.cpp, whose values are no numbers until it is opened again."""

    def __init__(self, mends: bool) -> None:
        self.mends, self.opened = mends, 0

    def answer(self, *_: Any, given: Given | None = None, **__: Any) -> tuple[Answer, Trace]:
        steady = self.mends and self.opened > 0
        return Answer((1,), "a", "length", {}), trace(1.0 if steady else np.nan)

    @contextmanager
    def reopened(self) -> Iterator[None]:
        self.opened += 1
        yield


def kinds(found: list[Found]) -> list[str]:
    return [finding.kind for finding in found]


def test_what_another_answer_mends_is_no_cause_of_a_half(photo: Photo) -> None:
    side: Any = Side(mends=True)
    for lost in (False, True):
        (found,) = conform(side, subject(photo, trace(), lost), LIMITS).found
        assert found.kind == "unknown"
        assert found.detail.startswith("6x4: what was not finite, or beyond a limit, is not so when")


def test_embeddings_that_are_no_numbers_are_named(photo: Photo) -> None:
    side: Any = Side(mends=True)
    (found,) = conform(side, subject(photo, trace(np.nan)), LIMITS).found
    assert found.detail == "6x4: 1 of the 2 embeddings that libmtmd makes are not finite (NaN, infinity)"
    assert side.opened > 0


def test_the_limit_that_does_for_all_pictures_is_told() -> None:
    found = [(f"{n}.png", [Found("limits", f"{n} tokens", f"give {n}", weight=n)]) for n in (1200, 2304, 1197)]
    (cause,) = sum_up(found, 3).found
    assert (cause.detail, cause.fix, cause.pictures) == ("2304 tokens", "give 2304", 3)
