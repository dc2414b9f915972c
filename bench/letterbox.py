"""The letterbox against Pillow's LANCZOS of the same photo in memory: ``python -m bench.letterbox``.

Both make a 256x256 RGB canvas of one decoded photo. Turns are taken, ours and Pillow's, so that both see the same
machine; the figures are medians and their ratio.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from bench.report import letterbox_text
from pipeline.letterbox import PHONE, letterbox, scaled_size

PHOTOS = ((1155, 866), (866, 1155), (2000, 1500), (1500, 2000), (4000, 3000), (3000, 4000))  # 1, 3, 12 megapixels


def pillow_letterbox(image: Image.Image) -> Image.Image:
    """What one would write without knowing the phone: LANCZOS, centred on black."""
    size = PHONE.image.size
    scaled = image.convert("RGB").resize(scaled_size(image.size, PHONE.image), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (size, size))
    canvas.paste(scaled, ((size - scaled.width) // 2, (size - scaled.height) // 2))
    return canvas


def run(photos: tuple[tuple[int, int], ...] = PHOTOS, repeats: int = 15) -> list[dict[str, Any]]:
    """Time each size of photo (pixels). Rows of photo, megapixels, pillow_ms, ours_ms and ratio (Pillow / ours)."""
    rows = []
    for width, height in photos:
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        pillow, ours = _medians(Image.fromarray(noise), (pillow_letterbox, letterbox), repeats)
        rows.append(
            {
                "photo": f"{width}x{height}",
                "megapixels": width * height / 1e6,
                "pillow_ms": pillow,
                "ours_ms": ours,
                "ratio": pillow / ours,
            }
        )
    return rows


def _medians(image: Image.Image, jobs: tuple[Callable[[Image.Image], Image.Image], ...], repeats: int) -> list[float]:
    """Milliseconds of each job, the median of ``repeats`` turns after one that does not count."""
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(repeats + 1):
        for job, taken in zip(jobs, times, strict=True):
            start = time.perf_counter()
            job(image)
            taken.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(taken[1:]) for taken in times]


if __name__ == "__main__":
    print(letterbox_text(run()))
