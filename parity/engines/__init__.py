"""One module per side behind one small protocol: same samples in, same kind of prediction out.

A predictor is given decoded canvases; it never reads a file or resizes, so that a difference between two sides is a
difference between the models and what runs them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from parity.results import Header
from pipeline.models.prediction import Prediction, Taps

SideName = Literal["hf", "llamacpp"]


class Predictor(Protocol):
    """One side."""

    side: str
    prompt_ids: list[int]
    """Token ids of the prompt as this side lays it out; -1 at every position of a picture."""
    image_slots: list[tuple[int, int]]
    """(start, length) of each picture encoded."""

    def predict(self, canvases: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Prediction]:
        """Predictions in the order of ``canvases``, each uint8 [size, size, 3] RGB, yielded as they are ready."""
        ...


class Observer(Predictor, Protocol):
    """A side that shows what it made of a canvas on the way to the answer."""

    batch_size: int
    """Images that it answers together."""

    def observe(self, canvases: Iterable[npt.NDArray[np.uint8]]) -> Iterator[tuple[Prediction, Taps]]:
        """The same predictions, each with the stages that led to it."""
        ...


@dataclass(frozen=True)
class OpenSide:
    """A side that is ready to answer."""

    predictor: Any
    header: Header
    """What runs; ``versions.code`` is the digest of what opened the side and answers, not of what keeps the answers."""
