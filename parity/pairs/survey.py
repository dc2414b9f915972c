"""How many positions a picture takes on either side, over many sizes, without a picture and without weights of HF's."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from parity.engines.chat import picture_text
from parity.engines.mtmd import Mtmd
from pipeline.core.settings import Frozen

SIZES = (
    *((256, 256), (60, 60), (100, 100), (224, 224), (272, 272), (336, 336), (448, 448), (462, 462), (512, 512)),
    *((640, 480), (480, 640), (777, 333), (800, 600), (1000, 300), (300, 1000), (1024, 768), (1280, 720)),
    *((720, 1280), (1920, 1080), (4000, 3000)),
)
"""Width and height. The first shows what a processor counts; 60 and 100 are below the least of some, 4000x3000 above
their most; 272, 462 and 720 are halves of a patch for some."""


SHOWN = 4
"""Sizes that a sentence names."""


class Other(Frozen):
    """A size that the sides lay out otherwise."""

    size: str
    hf: int
    llamacpp: int


class Survey(Frozen):
    """The sizes looked at."""

    sizes: int
    differ: tuple[Other, ...]

    def __str__(self) -> str:
        equal = f"of {self.sizes} sizes of pictures {self.sizes - len(self.differ)} take as many tokens on both sides"
        if not self.differ:
            return equal
        some = ", ".join(f"{one.size} ({one.hf} and {one.llamacpp})" for one in self.differ[:SHOWN])
        more = len(self.differ) - SHOWN
        return f"{equal}; not {some}" + (f" and {more} more" if more > 0 else "")


def survey(processor: Any, side: Mtmd, sizes: Sequence[tuple[int, int]] = SIZES) -> Survey:
    """Count a picture's positions at each (width, height) by transformers' processor and by libmtmd.

    transformers counts by ``_get_num_multimodal_tokens``, which servers use and which makes no picture; where a
    processor has no such method, it prepares a blank picture. Some count the tokens around a picture, too: libmtmd's
    are then counted likewise. Raises UserError where libmtmd refuses a size.
    """
    slots, whole = prepared(processor, sizes[0])
    told = counted(processor, sizes[0])
    around = told == whole != slots
    known = told in (slots, whole)
    differ = []
    for width, height in sizes:
        ours = counted(processor, (width, height)) if known else prepared(processor, (width, height))[0]
        theirs = side.picture((width, height))[around]
        assert ours is not None
        if ours != theirs:
            differ.append(Other(size=f"{width}x{height}", hf=ours, llamacpp=theirs))
    return Survey(sizes=len(sizes), differ=tuple(differ))


def counted(processor: Any, size: tuple[int, int]) -> int | None:
    """What the processor says that a picture of (width, height) takes; None where it does not say so."""
    if not hasattr(processor, "_get_num_multimodal_tokens"):
        return None
    return int(processor._get_num_multimodal_tokens(image_sizes=[size[::-1]]).num_image_tokens[0])


def prepared(processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(positions of a picture, those with the tokens around it) where a picture of (width, height) is really prepared.

    A picture's positions are one token again and again, so they are the commonest.
    """
    blank = Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8))
    made = processor(text=[picture_text(processor)], images=[blank], return_tensors="np", add_special_tokens=False)
    ids = made["input_ids"][0].tolist()
    return Counter(ids).most_common(1)[0][1], len(ids)
