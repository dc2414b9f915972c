"""What the generated photos are made of: named streams of random numbers, smooth noise, colour ramps.

The same stream gives the same bytes on every machine: random numbers come from a bit generator's raw output (whose
stream numpy promises to keep, unlike that of ``Generator``'s methods), and the arithmetic is +, -, *, /, floor, sqrt
alone, each its own pass over the array: IEEE 754 fixes their results, while ``sin``, ``exp``, ``@`` and ``sum`` differ
by processor.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
"""float32 throughout; numpy's stubs take a float32 array times a Python float for float64."""


class Stream:
    """A named stream of random numbers."""

    def __init__(self, name: str) -> None:
        self._bits = np.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big"))

    def uniform(self, low: float, high: float) -> float:
        """One number, evenly from ``low`` to ``high``."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def chance(self, probability: float) -> bool:
        """True that often."""
        return self.uniform(0, 1) < probability

    def integer(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both possible."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def grid(self, rows: int, columns: int) -> Array:
        """float32 [rows, columns], evenly from 0 to 1 in steps of 1/256."""
        raw = self._bits.random_raw(-(-rows * columns // 8)).astype("<u8").view(np.uint8)
        return raw[: rows * columns].reshape(rows, columns).astype(np.float32) / 256


def span(length: int) -> Array:
    return np.arange(length, dtype=np.float32)


def fade(t: Array) -> Array:
    """Smoothstep of 0..1."""
    return t * t * (3 - 2 * t)


def smoothstep(low: float, high: float, value: Array) -> Array:
    """0 up to ``low``, 1 from ``high``, smooth between."""
    return fade(np.clip((value - low) / (high - low), 0, 1))


def wave(t: Array) -> Array:
    """A sine's stand-in: period 1, 0..1, peak at 0.5, from a polynomial."""
    t = t - np.floor(t)
    return fade(1 - np.abs(2 * t - 1))


def noise(stream: Stream, height: int, width: int, cell_y: float, cell_x: float) -> Array:
    """Smooth random field [H, W] in 0..1 whose features measure ``cell_y`` x ``cell_x`` pixels."""
    lattice = stream.grid(int(height / cell_y) + 3, int(width / cell_x) + 3)
    y = span(height) / cell_y + stream.uniform(0, 1)
    x = span(width) / cell_x + stream.uniform(0, 1)
    row, column = np.floor(y), np.floor(x)
    fy, fx = fade(y - row)[:, None], fade(x - column)
    i, j = row.astype(np.intp), column.astype(np.intp)
    lines = lattice[:, j] + (lattice[:, j + 1] - lattice[:, j]) * fx
    out: Array = lines[i] + (lines[i + 1] - lines[i]) * fy
    return out


def noise_at(lattice: Array, y: Array, x: Array) -> Array:
    """Smooth random field at any coordinates (in cells, [H, W]), repeating outside the lattice. Both its sides are
    powers of two."""
    rows, columns = lattice.shape
    row, column = np.floor(y), np.floor(x)
    fy, fx = fade(y - row), fade(x - column)
    i0, j0 = row.astype(np.int32) & (rows - 1), column.astype(np.int32) & (columns - 1)
    i1, j1 = ((i0 + 1) & (rows - 1)) * columns, (j0 + 1) & (columns - 1)
    i0 = i0 * columns
    flat = lattice.ravel()
    top, bottom = flat.take(i0 + j0), flat.take(i1 + j0)
    top = top + (flat.take(i0 + j1) - top) * fx
    bottom = bottom + (flat.take(i1 + j1) - bottom) * fx
    out: Array = top + (bottom - top) * fy
    return out


def fbm(stream: Stream, height: int, width: int, cell_y: float, cell_x: float, octaves: int) -> Array:
    """Noise of ``octaves`` sizes, each half as large and half as strong as the one before; 0..1."""
    total = np.zeros((height, width), np.float32)
    weight, norm = 1.0, 0.0
    for _ in range(octaves):
        total = total + noise(stream, height, width, max(cell_y, 1.0), max(cell_x, 1.0)) * weight
        norm, weight, cell_y, cell_x = norm + weight, weight / 2, cell_y / 2, cell_x / 2
    return total / norm


def ramp(value: Array, colors: Sequence[tuple[float, float, float]]) -> Array:
    """Colour [..., 3] of ``value`` 0..1 on evenly spaced control colours (0..255), through a table of 1024 entries."""
    stops = np.asarray(colors, np.float32) / 255
    place = np.arange(1024, dtype=np.float32) * ((len(colors) - 1) / 1023)
    low = np.minimum(np.floor(place).astype(np.intp), len(colors) - 2)
    table = stops[low] + (stops[low + 1] - stops[low]) * (place - low.astype(np.float32))[:, None]
    index = (np.clip(value, 0, 1) * 1023).astype(np.int32)
    out: Array = table.take(index, axis=0)
    return out


def blend(a: Array, b: Array, weight: Array) -> Array:
    """``a`` where ``weight`` [H, W] is 0, ``b`` where it is 1."""
    return a + (b - a) * weight[:, :, None]


def lit(height_map: Array, strength: float) -> Array:
    """Light from the upper left on a height map [H, W]; 1 on flat ground."""
    slope = np.zeros_like(height_map)
    slope[1:, 1:] = height_map[1:, 1:] - height_map[:-1, :-1]
    out: Array = np.clip(1 + slope * strength, 0.25, 1.8)
    return out
