"""What a side of any family made of one picture on the way to its answer, in one shape for every family."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from parity.results import Layout


@dataclass(frozen=True)
class Answer:
    """What llama.cpp or Hugging Face answered to one picture."""

    ids: tuple[int, ...]
    """Without the end token."""
    text: str
    stop_reason: Literal["end", "length"]
    ms: dict[str, float]


@dataclass(frozen=True)
class Pixels:
    """The pictures that a vision encoder was given."""

    tiles: Sequence[npt.NDArray[np.float32]]
    """Normalized, each [3, height, width], in the order in which they are encoded."""
    mean: tuple[float, ...]
    """Of each channel: what turned bytes into ``tiles``."""
    std: tuple[float, ...]

    @property
    def levels(self) -> list[npt.NDArray[np.uint8]]:
        """The tiles as bytes again, each [3, height, width]."""
        mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return [np.clip(np.rint((tile * std + mean) * np.float32(255)), 0, 255).astype(np.uint8) for tile in self.tiles]


@dataclass(frozen=True)
class Trace:
    """One picture's way through a side."""

    layout: Layout
    """The prompt: ids of its text, and how many positions a picture's embeddings take."""
    positions: npt.NDArray[np.int32]
    """[1, length], or [3, length] (time, height, width) where the model has M-RoPE."""
    pixels: Pixels | None
    """None where the family's pixel layout is unknown."""
    inputs: npt.NDArray[np.float32]
    """What the language half is given, [length, width]: text and picture. Where a side does not show the text's rows,
    they are NaN. The vision half's deeper layers (deepstack) are appended to a row, so that width is a multiple of the
    model's."""
    log_probs: npt.NDArray[np.float32]
    """Natural-log probabilities, [steps, vocabulary]: of the token after the prompt, and after each token of the
    reference's answer."""

    @property
    def ids(self) -> list[int]:
        """The prompt, -1 at every position of a picture."""
        return [token for part in self.layout for token in ([-1] * part if isinstance(part, int) else part)]


def layout_of(ids: Sequence[int]) -> Layout:
    """A layout from ids with -1 at every position of a picture."""
    parts: list[list[int] | int] = []
    for token in ids:
        if token == -1:
            if parts and isinstance(parts[-1], int):
                parts[-1] += 1
            else:
                parts.append(1)
        elif parts and isinstance(parts[-1], list):
            parts[-1].append(token)
        else:
            parts.append([token])
    return tuple(part if isinstance(part, int) else tuple(part) for part in parts)
