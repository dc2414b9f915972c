"""What takes the place of llama.cpp's own on the way to an answer, to find what a difference hangs on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from parity.engines.libmtmd import Chunks, chunk_tokens


class CannotConform(ValueError):
    """What was to be put in place of llama.cpp's own does not fit there."""


@dataclass(frozen=True)
class Given:
    """What takes the place of llama.cpp's own, to find what a difference hangs on."""

    texts: Sequence[Sequence[int]] | None = None
    """Ids of the text before, between and behind the chunks of a picture."""
    tiles: Sequence[npt.NDArray[np.float32]] | None = None
    """Normalized pictures, each [3, height, width], of its own sizes and number."""
    embeddings: npt.NDArray[np.float32] | None = None
    """[positions of pictures, width]"""


Parts = Sequence[tuple[list[int] | None, Any]]
"""(ids of a text or None, the picture's chunk)"""


def arrange(chunks: Chunks, texts: Sequence[Sequence[int]] | None) -> Parts:
    """The chunks in their order; ``texts`` in place of their own, where they are one more than the pictures.

    Pictures with no text between them count as one. Raises CannotConform where the texts do not fit.
    """
    own = [(chunk_tokens(chunk), chunk) for chunk in chunks]
    if texts is None:
        return own
    groups: list[list[Any]] = []
    behind_text = True
    for text, chunk in own:
        if text is None:
            if behind_text:
                groups.append([])
            groups[-1].append(chunk)
        behind_text = text is not None
    if len(texts) != len(groups) + 1:
        raise CannotConform(f"{len(texts)} texts do not go around {len(groups)} pictures")
    parts: list[tuple[list[int] | None, Any]] = [(list(texts[0]), None)]
    for group, behind in zip(groups, texts[1:], strict=True):
        parts += [(None, chunk) for chunk in group]
        parts.append((list(behind), None))
    return [(ids, chunk) for ids, chunk in parts if ids is None or ids]
