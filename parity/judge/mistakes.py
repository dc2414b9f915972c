"""What was really done to pixels that differ: tried in code and compared by hash, where a gate could only guess.

A row states the SHA-256 of the bytes that its model was given. What apps are known to do wrong is done here to the
canvas, and to the photo where it is at hand; where what comes out has the hash that is stated, for every image tried,
the cause is proven.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from parity.judge.causes import Cause, Causes
from parity.results import Results
from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.letterbox import letterbox, open_photo, scaled_size

TRIED = 24
"""Images on which everything is tried, evenly over those that differ; red and blue swapped is tried on all."""
NAMED = 5

Pixels = npt.NDArray[np.uint8]
"""[size, size, 3]"""
CanvasOf = Callable[[str], Pixels | None]
"""Key -> the dataset's canvas as RGB; None where there is none."""
PhotoOf = Callable[[str], Path | None]
"""Key -> the photo that a canvas was made of; None where it is not at hand."""


@dataclass(frozen=True)
class Mistake:
    """Something that an app may do to a picture."""

    said: str
    """As "llama.cpp received" goes on."""
    fix: str
    on_canvas: Callable[[Pixels], Pixels] | None = None
    on_photo: Callable[[Image.Image, Contract], Image.Image] | None = None


def prove_pixels(
    reference: Results, candidate: Results, contract: Contract, canvas_of: CanvasOf, photo_of: PhotoOf | None = None
) -> Causes | None:
    """What made the bytes differ that two sides were given; None where they are equal, or nothing tried gives them."""
    pairs = [(row, candidate.rows[key]) for key, row in reference.rows.items() if key in candidate.rows]
    apart = [pair for pair in pairs if pair[0].rgb_sha256 != pair[1].rgb_sha256]
    canvas = canvas_of(apart[0][0].key) if apart else None
    if canvas is None:
        return None
    swapped = contract.image.channel_order == "bgr"
    # The side that was not given what the contract says is the one to explain.
    meant = sha256_bytes(_bytes(canvas, swapped))
    index = next((index for index in (1, 0) if apart[0][index].rgb_sha256 != meant), 1)
    name = (reference, candidate)[index].header.shown
    stated = {pair[index].key: pair[index].rgb_sha256 for pair in apart}
    ids = {pair[0].key: pair[0].image_id for pair in apart}
    found = (None if swapped else _moved(stated, ids, name)) or _tried(
        stated, contract, canvas_of, photo_of, swapped, name
    )
    if found is None:
        return None
    names = tuple(ids[key] for key in list(stated)[:NAMED])
    cause = Cause(kind="pixels", detail=found[0], fix=found[1], pictures=len(stated), image_ids=names)
    return Causes(how="matched", tried=len(stated), differ=len(stated), found=(cause,))


def _bytes(rgb: Pixels, swapped: bool) -> bytes:
    return np.ascontiguousarray(rgb[..., ::-1] if swapped else rgb).tobytes()


def _moved(stated: dict[str, str], ids: dict[str, str], name: str) -> tuple[str, str] | None:
    """Pictures that stand under one another's keys."""
    strays = [(key, given) for key, given in stated.items() if given in ids]
    if len(strays) < len(stated):
        return None
    key, given = strays[0]
    return (
        f"{name} received the pictures in another order: {len(strays)} rows have another image's canvas, such as"
        f" {ids[key]}, which has that of {ids[given]}",
        "match pictures and rows by key, not by their place in a list",
    )


def _tried(
    stated: dict[str, str],
    contract: Contract,
    canvas_of: CanvasOf,
    photo_of: PhotoOf | None,
    swapped: bool,
    name: str,
) -> tuple[str, str] | None:
    """The first mistake that gives all of the bytes stated."""
    keys = list(stated)
    count = min(TRIED, len(keys))
    some = [keys[number * len(keys) // count] for number in range(count)]
    photos = {key: _photo(photo_of(key) if photo_of else None) for key in some}
    for mistake in _mistakes(contract):
        for other in (False, True):
            if mistake is _SAME and not other:
                continue
            chosen = keys if mistake is _SAME else some
            if all(_gives(mistake, key, stated, contract, canvas_of, photos, swapped != other) for key in chosen):
                said = mistake.said if not other else f"{mistake.said} and with red and blue swapped"
                fix = mistake.fix
                if mistake is _SAME:
                    wrong, meant = ("R,G,B", "B,G,R") if swapped else ("B,G,R", "R,G,B")
                    said = f"{wrong} where the contract says {meant}"
                    fix = (
                        "swap red and blue in the app's bridge, or train with contract.image.channel_order:"
                        f" {'rgb' if swapped else 'bgr'}"
                    )
                tried = f"{len(chosen)} of {len(stated)} canvases" + ("" if len(chosen) == len(stated) else " tried")
                return f"{name} received {said}: {tried} match yours after that change", fix
    return None


def _gives(
    mistake: Mistake,
    key: str,
    stated: dict[str, str],
    contract: Contract,
    canvas_of: CanvasOf,
    photos: dict[str, Image.Image | None],
    swapped: bool,
) -> bool:
    if mistake.on_photo is not None:
        photo = photos.get(key)
        if photo is None:
            return False
        try:
            made: Pixels | None = np.asarray(mistake.on_photo(photo, contract))
        except (UserError, ValueError, OSError):  # a picture of which this makes nothing
            return False
    else:
        made = canvas_of(key)
        if made is not None and mistake.on_canvas is not None:
            made = mistake.on_canvas(made)
    return made is not None and sha256_bytes(_bytes(made, swapped)) == stated[key]


def _photo(path: Path | None) -> Image.Image | None:
    try:
        return open_photo(path) if path else None
    except UserError:
        return None


_SAME = Mistake("your canvas", "")
_SHIFTS = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y]
_PILLOW = {
    "Pillow's bilinear filter (with antialiasing)": Image.Resampling.BILINEAR,
    "Pillow's bicubic filter": Image.Resampling.BICUBIC,
    "Pillow's Lanczos filter": Image.Resampling.LANCZOS,
    "Pillow's box filter": Image.Resampling.BOX,
    "Pillow's Hamming filter": Image.Resampling.HAMMING,
    "Pillow's nearest-neighbour filter": Image.Resampling.NEAREST,
}
_SETTINGS: tuple[tuple[str, Any, str], ...] = (
    ("exif", "transpose", "photos turned by their EXIF orientation"),
    ("exif", "ignore", "photos not turned by their EXIF orientation"),
    ("offset", "floor", "pictures whose odd margin is rounded down"),
    ("offset", "round_half_up", "pictures whose odd margin is rounded up"),
    ("geometry", "float64", "pictures whose scaled size was computed in float64"),
    ("geometry", "float32", "pictures whose scaled size was computed in float32"),
    ("resample", "android_bilinear", "photos resized with Android's bilinear filter"),
    ("alpha", "drop", "photos whose alpha was dropped"),
    ("alpha", "black", "photos composited over black"),
    ("colour_space", "ignore", "photos whose colour profile was ignored"),
    ("colour_space", "android", "photos converted from their own colour space"),
    ("pad_color", (255, 255, 255), "pictures padded with white"),
    ("pad_color", (128, 128, 128), "pictures padded with gray (128)"),
    ("pad_color", (127, 127, 127), "pictures padded with gray (127)"),
    ("pad_color", (114, 114, 114), "pictures padded with gray (114)"),
    ("pad_color", (0, 0, 0), "pictures padded with black"),
)
"""Setting of ``contract.image``, a value that it may have, what it then does."""


def _mistakes(contract: Contract) -> Iterator[Mistake]:
    """What is cheap to try first."""
    yield _SAME
    turned = "turn a photo as contract.image.exif says, once"
    yield Mistake("pictures upside down", "read the rows from the top", on_canvas=lambda rgb: rgb[::-1])
    yield Mistake("pictures mirrored", "read the columns from the left", on_canvas=lambda rgb: rgb[:, ::-1])
    yield Mistake(
        "pictures with rows and columns exchanged", "do not exchange rows and columns",
        on_canvas=lambda rgb: rgb.transpose(1, 0, 2),
    )  # fmt: skip
    for turns in (1, 2, 3):
        yield Mistake(f"pictures turned by {90 * turns} degrees", turned, on_canvas=partial(_turned, turns=turns))
    for x, y in _SHIFTS:
        yield Mistake(
            f"pictures moved by {x:+d}, {y:+d} pixels",
            "place the picture as contract.image.offset says",
            on_canvas=partial(_shifted, x=x, y=y),
        )
    for key, value, said in _SETTINGS:
        if getattr(contract.image, key) != value:
            image = contract.image.model_copy(update={key: value})
            other = contract.model_copy(update={"image": image})
            yield Mistake(
                said,
                f"do it as contract.image.{key} says, or set contract.image.{key} to what the app does and train",
                on_photo=partial(_under, other=other),
            )
    for said, resample in _PILLOW.items():
        yield Mistake(
            f"photos resized with {said}",
            "resize as contract.image.resample says, or set that to what the app does and train",
            on_photo=partial(_resized, resample=resample),
        )
    yield Mistake(
        "photos stretched to a square",
        "keep the photo's proportions and pad it, as the contract says",
        on_photo=lambda photo, contract: photo.convert("RGB").resize(
            (contract.image.size, contract.image.size), Image.Resampling.BILINEAR
        ),
    )


def _turned(rgb: Pixels, turns: int) -> Pixels:
    return np.rot90(rgb, turns)


def _shifted(rgb: Pixels, x: int, y: int) -> Pixels:
    return np.roll(rgb, (y, x), (0, 1))


def _under(photo: Image.Image, _: Contract, other: Contract) -> Image.Image:
    return letterbox(photo, other)


def _resized(photo: Image.Image, contract: Contract, resample: Image.Resampling) -> Image.Image:
    """The contract's geometry with one of Pillow's filters."""
    settings = contract.image
    width, height = scaled_size(photo.size, settings)
    half = 1 if settings.offset == "round_half_up" else 0
    canvas = Image.new("RGB", (settings.size, settings.size), settings.pad_color)
    place = ((settings.size - width + half) // 2, (settings.size - height + half) // 2)
    canvas.paste(photo.convert("RGB").resize((width, height), resample), place)
    return canvas
