"""Small pictures for these tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, width: int = 32, height: int = 32) -> Image.Image:
    """A noise picture that only its number decides."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(path: Path, number: int, width: int = 48, height: int = 40) -> Path:
    """Picture ``number`` as a file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number, width, height).save(path)
    return path
