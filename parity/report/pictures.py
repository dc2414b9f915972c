"""Which pictures the page carries, and what each side saw of them.

A sample's key is the hash of its canvas and a row states the hash of the bytes that the model was really given, so what
a side saw is known, not assumed: the canvas, the canvas with red and blue swapped, or other bytes that nobody kept.
Flips and worst samples come whole, as the dataset has them; the others as small previews, up to a limit.
"""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from parity.report.rows import Pair
from parity.results import Header
from pipeline.core.files import sha256_bytes
from pipeline.dataset.records import STORED_FORMATS, in_parallel

Saw = Literal["c", "s", "o"]
"""The canvas; the canvas with R and B swapped; other bytes."""
ImageOf = Callable[[str], bytes | None]
"""Key -> the canvas's file as the dataset has it, or None where there is none."""


@dataclass(frozen=True)
class Budget:
    """How much of a page may be pictures, before base64 makes it a third more."""

    full_bytes: int = 6 << 20
    """Whole canvases. The project's own are 75 KB each, so that this is 80 of them."""
    previews: int = 10_000
    preview_bytes: int = 16 << 20
    side: int = 64
    """Side of a preview, pixels: about 0.8 KB each as WebP."""


@dataclass(frozen=True)
class Pictures:
    """What goes into the page."""

    full: dict[str, str]
    """Key -> data URL of the whole canvas."""
    previews: dict[str, str]
    """Key -> data URL of a preview."""
    saw: dict[str, tuple[Saw, Saw]]
    """Key -> what the reference and the candidate saw."""


@dataclass(frozen=True)
class _Found:
    saw: tuple[Saw, Saw]
    url: str = ""
    """Empty where there is no picture, or none that can be read."""
    size: int = 0
    """Bytes that the URL holds."""


def collect(
    pairs: Sequence[Pair], wanted: Sequence[str], headers: tuple[Header, Header], image_of: ImageOf, budget: Budget
) -> Pictures:
    """Read, in parallel, the pictures of a page: ``wanted`` keys whole, in this order, as long as they fit."""
    by_key = {pair.key: pair for pair in pairs}
    whole = [key for key in dict.fromkeys(wanted) if key in by_key]
    first = set(whole)
    full: dict[str, str] = {}
    previews: dict[str, str] = {}
    saw: dict[str, tuple[Saw, Saw]] = {}
    used = 0
    for start in range(0, len(whole), 64):  # in parts, so that little more is read than fits
        part = whole[start : start + 64]
        for key, found in _looked(part, lambda key: _look(by_key[key], headers, image_of, None)):
            used += found.size
            if used <= budget.full_bytes:
                saw[key] = found.saw
                if found.url:
                    full[key] = found.url
        if used > budget.full_bytes:
            break
    rest = [key for key in (*whole, *(pair.key for pair in pairs if pair.key not in first)) if key not in saw]
    used = 0
    for key, found in _looked(rest[: budget.previews], lambda key: _look(by_key[key], headers, image_of, budget.side)):
        used += found.size
        saw[key] = found.saw
        if found.url and used <= budget.preview_bytes:
            previews[key] = found.url
    for key, pair in by_key.items():
        saw.setdefault(key, _saw(pair, headers, None))
    return Pictures(full, previews, saw)


def _looked(keys: Sequence[str], look: Callable[[str], _Found]) -> Iterable[tuple[str, _Found]]:
    return zip(keys, in_parallel(look, list(keys), None), strict=True)


def _look(pair: Pair, headers: tuple[Header, Header], image_of: ImageOf, side: int | None) -> _Found:
    data = image_of(pair.key)
    if data is None:
        return _Found(_saw(pair, headers, None))
    try:
        with Image.open(io.BytesIO(data), formats=STORED_FORMATS) as image:
            mime = Image.MIME[image.format or ""]
            rgb = image.convert("RGB")
    except Exception:  # damaged files raise nearly anything; the page says that the picture is missing
        return _Found(_saw(pair, headers, None))
    saw = _saw(pair, headers, rgb)
    if side is None:
        return _Found(saw, _url(mime, data), len(data))
    buffer = io.BytesIO()
    rgb.resize((side, side), Image.Resampling.BOX).save(buffer, "WEBP", quality=60, method=2)
    return _Found(saw, _url("image/webp", buffer.getvalue()), buffer.tell())


def _saw(pair: Pair, headers: tuple[Header, Header], rgb: Image.Image | None) -> tuple[Saw, Saw]:
    swapped = ""
    if rgb is not None and not pair.reference.rgb_sha256 == pair.candidate.rgb_sha256 == pair.key:
        swapped = sha256_bytes(np.ascontiguousarray(np.asarray(rgb)[..., ::-1]).tobytes())

    def of(given: str, header: Header) -> Saw:
        if given == pair.key:
            return "c"
        if rgb is None:  # nothing to hash: what the header says
            return "s" if header.runtime.get("fed") == "bgr" else "o"
        return "s" if given == swapped else "o"

    return of(pair.reference.rgb_sha256, headers[0]), of(pair.candidate.rgb_sha256, headers[1])


def _url(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def counted(pictures: Pictures, pairs: Sequence[Pair]) -> Mapping[str, int]:
    """How many images have which picture."""
    full, previews = len(pictures.full), len(pictures.previews)
    return {"full": full, "previews": previews, "none": len(pairs) - full - previews}
