"""Procedural photos, numpy alone: water, land, fire, wood and metal, and up to 40 families for other labels.

Every texture is ``(Stream, height, width) -> float32 [H, W, 3] in 0..1``, the same on every machine: see
:mod:`pipeline.dataset.noise`, whose rules hold here as well.
"""

import colorsys
from collections.abc import Callable

import numpy as np

from pipeline.dataset.noise import Array, Stream, blend, fbm, lit, noise, noise_at, ramp, smoothstep, span, wave

MAX_GENERIC = 40
"""Label sets larger than this have no generated pictures that a person could tell apart."""


def water(stream: Stream, height: int, width: int) -> Array:
    """Open sea seen towards the horizon, or clear shallows with a web of light from above."""
    if stream.chance(0.35):
        return _shallows(stream, height, width)
    horizon = stream.uniform(-0.5, 0.3) * height
    down = (span(height) - horizon) / height
    depth = 1 / (np.clip(down, 0, None) + 0.12)  # far rows lie closer together
    lattice = stream.grid(64, 64)
    across = (span(width) - (width / 2)) / width
    cells = stream.uniform(5, 9)
    y = np.broadcast_to((depth * (cells * stream.uniform(1.6, 2.6)))[:, None], (height, width))
    x = depth[:, None] * across[None, :] * (cells * 0.7)
    bend = noise_at(lattice, y * 0.5 + 7, x * 0.5)
    swell = noise_at(lattice, y + bend * 1.5, x + bend)
    ripple = noise_at(lattice, y * 2.7 + bend, x * 2.3 + 11)
    surface = swell * 0.62 + ripple * 0.38
    hue = stream.uniform(0, 1)
    deep = (4 + 16 * hue, 34 + 36 * hue, 78 - 8 * hue)
    middle = (20 + 14 * hue, 92 + 36 * hue, 148 - 6 * hue)
    sea = ramp(smoothstep(0.15, 0.9, surface), (deep, middle, (130, 188, 210)))
    glint = smoothstep(0.70, 0.84, surface) * stream.uniform(0.2, 0.9)
    sea = sea + (1 - sea) * glint[:, :, None]
    haze = smoothstep(0.0, 0.5, down)[:, None] * np.ones((1, width), np.float32)
    sea = blend(np.broadcast_to(np.asarray((0.56, 0.70, 0.80), np.float32), sea.shape), sea, 0.45 + 0.55 * haze)
    return blend(
        sea, _sky(stream, height, width), 1 - smoothstep(-0.004, 0.004, down)[:, None] + np.zeros_like(surface)
    )


def _shallows(stream: Stream, height: int, width: int) -> Array:
    cell = stream.uniform(26, 48)
    y, x = np.meshgrid(span(height) / cell, span(width) / cell, indexing="ij")
    lattice = stream.grid(32, 32)
    warp = noise_at(lattice, y * 0.7, x * 0.7 + 9) * 1.6
    web = 1 - np.abs(noise_at(lattice, y + warp, x + warp + 3) - 0.5) * 4.5
    fine = 1 - np.abs(noise_at(lattice, y * 2 + 5, x * 2 - warp) - 0.5) * 4.5
    light = np.clip(web, 0, 1) * 0.7 + np.clip(fine, 0, 1) * 0.3
    green = stream.uniform(0, 1)
    floor = ((2 + 10 * green, 62 + 60 * green, 120), (24, 132 + 36 * green, 182 - 12 * green), (218, 246, 246))
    shade = noise(stream, height, width, height / 2, width / 2) * 0.5 + 0.7
    return ramp(light * light * 0.95, floor) * shade[:, :, None]


def _sky(stream: Stream, height: int, width: int) -> Array:
    tone = stream.uniform(0, 1)
    cloud = fbm(stream, height, width, height / 5, width / 2.5, 3)
    fall = (span(height) / height)[:, None] * 0.9
    clear = ((70 + 90 * tone, 120 + 60 * tone, 185 + 10 * tone), (225, 228, 228))
    return ramp(fall + smoothstep(0.5, 0.8, cloud) * 0.7, clear)


def land(stream: Stream, height: int, width: int) -> Array:
    """Hills under a sky, ground seen from the air, or dunes."""
    kind = stream.integer(0, 2)
    if kind == 0:
        return _hills(stream, height, width)
    if kind == 1:
        return _ground(stream, height, width)
    return _dunes(stream, height, width)


def _ground(stream: Stream, height: int, width: int) -> Array:
    cell = stream.uniform(50, 120)
    relief = fbm(stream, height, width, cell, cell, 6)
    cover = fbm(stream, height, width, cell * 0.8, cell * 0.8, 4)
    dry = stream.uniform(0, 1)
    green = ramp(cover, ((38 + 60 * dry, 62 + 22 * dry, 24), (92 + 40 * dry, 112, 50), (150, 142, 84)))
    soil = ramp(cover, ((74, 52, 34), (134, 100, 66), (186, 156, 112)))
    bare = smoothstep(0.42, 0.58, relief + stream.uniform(-0.14, 0.1))
    return blend(green, soil, bare) * lit(relief, 9)[:, :, None]


def _hills(stream: Stream, height: int, width: int) -> Array:
    out = _sky(stream, height, width)
    layers = stream.integer(3, 4)
    rows = span(height)[:, None]
    top = stream.uniform(0.12, 0.4)
    dry = stream.uniform(0, 1)
    for layer in range(layers):
        near = (layer + 1) / layers
        crest = fbm(stream, 1, width, 1, width / stream.uniform(1.5, 3), 4) * (0.30 * height)
        edge = ((top + (0.92 - top) * layer / layers) * height) + crest - (0.15 * height)
        grain = fbm(stream, height, width, 5 + 9 * near, 9 + 18 * near, 3)
        near_ground = ((36 + 40 * dry, 52 + 10 * dry, 20), (104 + 40 * dry, 112, 52), (184, 172, 100))
        ground = ramp(grain, near_ground)
        haze = np.asarray((0.58, 0.66, 0.70), np.float32)
        ground = ground * near + haze * (1 - near)
        out = blend(out, ground, smoothstep(-1.0, 1.0, rows - edge))
    return out


def _dunes(stream: Stream, height: int, width: int) -> Array:
    rows, columns = span(height)[:, None], span(width)[None, :]
    big = fbm(stream, height, width, height / 2, width / 1.5, 3)
    lean = stream.uniform(-0.35, 0.35)
    crest = (rows + columns * lean) / (height / stream.uniform(1.6, 3)) + big * 2.2
    phase = crest - np.floor(crest)
    shade = np.where(phase < 0.7, phase / 0.7, (1 - phase) / 0.3)
    near = np.clip(rows / height, 0.15, None)
    ripple = wave(crest * stream.uniform(7, 11) + big * 3) * 0.16 * near
    grain = stream.grid(height, width) * 0.10
    red = stream.uniform(0, 1)
    sand = (
        (98, 62 - 14 * red, 36 - 8 * red),
        (190, 140 - 26 * red, 88 - 26 * red),
        (238, 208 - 16 * red, 158 - 26 * red),
    )
    return ramp(shade * 0.66 + ripple + grain + 0.08, sand)


def fire(stream: Stream, height: int, width: int) -> Array:
    """Flames rising out of the dark, with sparks."""
    cell = stream.uniform(0.13, 0.24) * width
    rows, columns = np.meshgrid(span(height), span(width), indexing="ij")
    lattice = stream.grid(64, 64)
    rise = 1 - rows / height
    y, x = rows / (cell * stream.uniform(1.8, 2.6)), columns / cell
    sway = (noise_at(lattice, y * 0.9, x * 0.6 + 20) - 0.5) * (1 + rise)
    tongue = noise_at(lattice, y, x + sway)
    lick = noise_at(lattice, y * 2.1 + 13, x * 2 + sway * 2.2)
    curl = noise_at(lattice, y * 4.3 + 31, x * 4.1 + sway * 3.4)
    flame = tongue * 0.50 + lick * 0.30 + curl * 0.20
    centre = stream.uniform(0.3, 0.7)
    aside = np.abs(columns / width - centre) * stream.uniform(0.2, 1.3)
    heat = flame * 1.5 + stream.uniform(0.05, 0.3) - rise * stream.uniform(0.7, 1.1) - aside
    dark = (stream.uniform(4, 22), stream.uniform(3, 12), stream.uniform(3, 20))
    colors = (dark, (92, 16, 5), (206, 58, 8), (246, 134, 16), (255, 208, 66), (255, 248, 196))
    out = ramp(smoothstep(-0.05, 1.15, heat), colors)
    for _ in range(stream.integer(0, 24)):
        row, column = stream.integer(0, height - 3), stream.integer(0, width - 3)
        if heat[row, column] < 0.4:
            side = stream.integer(1, 2)
            out[row : row + side, column : column + side] = (1.0, 0.62, 0.16)
    return out


def wood(stream: Stream, height: int, width: int) -> Array:
    """Boards: growth rings cut lengthwise, fibres, knots and seams."""
    upright = stream.chance(0.5)
    if not upright:
        height, width = width, height
    rows, columns = np.meshgrid(span(height), span(width), indexing="ij")
    board = width / stream.integer(1, 5) + 1
    seam = columns / board
    number = np.floor(seam)
    edge = np.minimum(seam - number, 1 - (seam - number)) * board
    drift = noise(stream, height, width, height * 0.7, board * 0.8)
    rings = columns / stream.uniform(9, 20) + drift * stream.uniform(2.5, 6) + number * 3.37
    for _ in range(stream.integer(0, 3)):
        across = (columns - stream.uniform(0, width)) / stream.uniform(9, 20)
        along = (rows - stream.uniform(0, height)) / stream.uniform(20, 42)
        rings = rings + stream.uniform(2.5, 4.5) / (1 + across * across + along * along)
    turn = rings - np.floor(rings)
    late = turn * turn * smoothstep(0.0, 0.12, 1 - turn)  # a ring darkens slowly and ends sharply
    fibre = noise(stream, height, width, stream.uniform(24, 60), 1.3)
    tone = stream.grid(1, 8)[0][number.astype(np.intp) % 8] * 0.22
    value = late * 0.42 + fibre * 0.30 + tone + 0.04
    kind = stream.uniform(0, 1)
    light = (222 - 96 * kind, 180 - 94 * kind, 126 - 76 * kind)
    middle = (176 - 74 * kind, 120 - 60 * kind, 68 - 40 * kind)
    out = ramp(value, (light, middle, (70 - 34 * kind, 40 - 20 * kind, 22 - 10 * kind)))
    out = out * (0.35 + 0.65 * smoothstep(0.4, 1.8, edge))[:, :, None]
    return out if upright else np.ascontiguousarray(out.transpose(1, 0, 2))


def metal(stream: Stream, height: int, width: int) -> Array:
    """Brushed panels with rivets, corrugated sheet, or tread plate."""
    kind = stream.integer(0, 2)
    rows, columns = np.meshgrid(span(height), span(width), indexing="ij")
    streaks = noise(stream, height, width, 1.0, stream.uniform(50, 160))
    light = (
        noise(stream, height, width, height / stream.uniform(1.5, 4), width * 2) * 0.5
        + noise(stream, height, width, height * 2, width / stream.uniform(1, 2.5)) * 0.5
    )
    value = 0.20 + light * 0.62 + (streaks - 0.5) * stream.uniform(0.16, 0.34)
    if kind == 0:
        value = _panels(stream, value, rows, columns)
    elif kind == 1:
        across = rows if stream.chance(0.3) else columns
        turn = across / stream.uniform(16, 40) + light * 0.12
        fold = wave(turn)
        value = value * 0.5 + fold * fold * 0.55 - (wave(turn + 0.3) < 0.03) * 0.1
    else:
        value = _tread(stream, value, rows, columns)
    cool = stream.uniform(-1, 1)
    steel = (
        (20, 22, 25),
        (104 - 5 * cool, 108, 112 + 6 * cool),
        (182 - 4 * cool, 185, 189 + 5 * cool),
        (250, 251, 252),
    )
    return ramp(value, steel)


def _panels(stream: Stream, value: Array, rows: Array, columns: Array) -> Array:
    """Seams with rivets along them."""
    pitch_y, pitch_x = stream.uniform(90, 190), stream.uniform(90, 220)
    y = rows / pitch_y + stream.uniform(0, 1)
    x = columns / pitch_x + stream.uniform(0, 1)
    dy, dx = (y - np.floor(y)) * pitch_y, (x - np.floor(x)) * pitch_x
    seam = np.minimum(dy, dx)
    value = value * (0.3 + 0.7 * smoothstep(0.6, 2.0, seam))
    step = stream.uniform(18, 30)
    ry, rx = dy - 9, columns / step
    rx = (rx - np.floor(rx) - 0.5) * step
    span = np.sqrt(ry * ry + rx * rx)
    dome = smoothstep(0.0, 1.6, 5 - span)
    shine = 0.55 - (ry + rx) * 0.08
    out: Array = value + (np.clip(shine, 0, 1) - value) * dome
    return out


def _tread(stream: Stream, value: Array, rows: Array, columns: Array) -> Array:
    """Raised lozenges, every other one turned."""
    pitch = stream.uniform(24, 42)
    u, v = (rows + columns) / pitch, (rows - columns) / pitch
    iu, iv = np.floor(u), np.floor(v)
    a, b = u - iu - 0.5, v - iv - 0.5
    turned = (iu + iv) - 2 * np.floor((iu + iv) / 2) > 0
    long, short = np.where(turned, a, b), np.where(turned, b, a)
    inside = 1 - (long * long * 5.5 + short * short * 60)
    bump = smoothstep(0.0, 0.5, inside)
    shine = np.clip(0.62 - (a + b) * 1.4, 0, 1)
    return value * 0.8 + (shine - value * 0.8) * bump


def generic(index: int) -> Callable[[Stream, int, int], Array]:
    """The texture of the ``index``-th label (0..39) of a set that has no pictures of its own.

    One of five patterns in one of eight hues; pattern, hue, size and direction change from one index to the next.
    """
    kind, turn = index % 5, index // 5
    hue = (turn / 8 + kind * 0.381966) % 1.0  # neighbours in the list lie far apart on the colour wheel
    direction = ((1.0, 0.0), (0.6, 0.8), (0.0, 1.0), (-0.6, 0.8))[turn % 4]
    cell = (14.0, 26.0)[(turn // 4 + kind) % 2]

    def texture(stream: Stream, height: int, width: int) -> Array:
        rows, columns = np.meshgrid(span(height), span(width), indexing="ij")
        size = cell * stream.uniform(0.85, 1.18)
        bend = noise(stream, height, width, 90, 90) * stream.uniform(0.2, 0.8)
        u = (rows * (direction[0]) + columns * (direction[1])) / size + bend
        v = (columns * (direction[0]) - rows * (direction[1])) / size + bend
        if kind == 0:  # stripes
            value = wave(u)
        elif kind == 1:  # checks
            value = np.abs(wave(u * 0.5).round() - wave(v * 0.5).round())
        elif kind == 2:  # clouds
            value = smoothstep(0.3, 0.7, fbm(stream, height, width, cell * 1.6, cell * 1.6, 2))
        elif kind == 3:  # rings
            y = rows - (stream.uniform(0.2, 0.8) * height)
            x = columns - (stream.uniform(0.2, 0.8) * width)
            value = wave(np.sqrt(y * y + x * x) / size + bend)
        else:  # dots
            du, dv = u * 0.6, v * 0.6
            du, dv = du - np.floor(du) - 0.5, dv - np.floor(dv) - 0.5
            value = smoothstep(0.0, 0.04, 0.09 - du * du - dv * dv)
        near = hue + stream.uniform(-0.03, 0.03)
        low, high = colorsys.hsv_to_rgb(near % 1, 0.85, 0.28), colorsys.hsv_to_rgb(near % 1, 0.55, 0.95)
        grain = (stream.grid(height, width) - 0.5) * 0.12
        dark, bright = (low[0] * 255, low[1] * 255, low[2] * 255), (high[0] * 255, high[1] * 255, high[2] * 255)
        return ramp(value * 0.86 + 0.07 + grain, (dark, bright))

    return texture


NAMED: dict[str, Callable[[Stream, int, int], Array]] = {
    "water": water,
    "land": land,
    "fire": fire,
    "wood": wood,
    "metal": metal,
}
"""Labels with a texture of their own."""
