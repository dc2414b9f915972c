"""What a difference hangs on: llama.cpp's side is made like Hugging Face's step by step, until every stage is green.

    template    the text around the picture, token for token
    limits      as many tokens for the picture
    pixels      the processor's own resized bytes
    embeddings  what Hugging Face's vision half made of them

Each step keeps those before it. The first that leaves nothing red names the cause, and the steps before it that changed
something are causes, too; where none does, the language half is left.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from parity.compare.ladder import Measured
from parity.compare.photos import Photo
from parity.compare.traces import first_apart, measure_traces, pictures_of
from parity.engines.given import CannotConform, Given
from parity.engines.mtmd import Mtmd
from parity.engines.trace import Answer, Trace
from parity.judge.causes import Cause, Causes, Kind
from parity.judge.gates.limits import LEAST_FLOATS, parted_at
from parity.judge.verdict import Limits
from parity.results import Row
from pipeline.core.errors import UserError

MOST = 32
"""Pictures that are conformed, evenly over those that differ."""
NAMED = 5
FAR = 1.5
"""Times as many tokens that no rounding of a picture's sides makes of it."""
AGAIN = 3
"""Tries where libmtmd gives values that are not finite, which it may not when it is opened again: it then reads memory
that it never wrote (Pixtral's line breaks, tools/mtmd/models/pixtral.cpp:74)."""
ROUNDED = 2
"""Levels of 255 up to which a byte differs by rounding alone."""
SCALED = 1.1
"""Times as many pixels from which on a side is said to have enlarged a picture, or the other way round to have shrunk
it: rounding its sides changes them less."""


@dataclass(frozen=True)
class Found:
    """One thing that differs in one picture."""

    kind: Kind
    detail: str
    fix: str
    weight: int = 0
    """Of findings of one kind the heaviest is told: the mending of a limit must do for all pictures."""


@dataclass(frozen=True)
class Subject:
    """A picture that differs, and both sides of it as they are."""

    photo: Photo
    prompt: str
    """As llama.cpp's side writes it."""
    answer: Answer
    """Hugging Face's."""
    reference: Trace
    candidate: Trace
    rows: tuple[Row, Row]
    limits: tuple[int, int] | None = None
    """The fewest and the most tokens that the processor gives a picture, where it says so."""
    lost: bool = False
    """Whether llama.cpp's values were no numbers when the picture was answered first."""


@dataclass(frozen=True)
class Conformed:
    """What was found of a picture, and what makes llama.cpp's inputs equal to Hugging Face's, up to the pixels."""

    found: list[Found]
    """First things first; never empty."""
    given: Given
    rgb: npt.NDArray[np.uint8]
    tokens: int | None
    """That libmtmd must be made to give the picture."""


def conform(side: Mtmd, subject: Subject, limits: Limits) -> Conformed:
    """Make llama.cpp's side of a picture like Hugging Face's, step by step, until it is green."""
    found: list[Found] = []
    tokens: int | None = None
    given, photo = Given(), subject.photo
    inputs = given
    rgb, latest = photo.rgb, subject.candidate
    a = subject.reference

    odd = _no_numbers(photo, latest) or (_unsteady(photo) if subject.lost else None)

    def tried() -> bool:
        nonlocal latest, odd
        for number in range(AGAIN):
            try:
                with side.reopened() if number else nullcontext():
                    _, latest = side.answer(rgb, subject.prompt, subject.answer.ids, 1, given, steps=len(a.log_probs))
            except (CannotConform, UserError):  # it does not fit, or not into the context that was asked for
                return False
            if not (now := _no_numbers(photo, latest)):
                break
            odd = odd or now
        return _mended(subject, latest, limits)

    def so_far(*more: Found) -> Conformed:
        return Conformed([*found, *more, *([odd] if odd else [])], inputs, rgb, tokens)

    if parted_at(_measured(subject, latest), limits) is None:
        return so_far(*([] if odd else [_unsteady(photo)]))
    texts = _texts(a, latest)
    if texts is not None and texts != _texts(latest, latest):
        given = inputs = replace(given, texts=texts)
        found.append(_template(side, a, latest))
        if tried():
            return so_far()
    with ExitStack() as stack:
        count, theirs = a.ids.count(-1), latest.ids.count(-1)
        sizes = _size(a), _size(latest)
        if a.pixels and latest.pixels and len(a.pixels.tiles) != len(latest.pixels.tiles):
            return so_far(_tiling(photo, a, latest))
        apart = first_apart(a, latest) is not None and count != theirs
        if apart:
            # As many tokens also mend a size that is rounded otherwise: only where they are far more or fewer is it a
            # limit that libmtmd has and the processor has not.
            far = not 1 / FAR < count / max(theirs, 1) < FAR or _steps_apart(*sizes)
            for least, most in filter(None, (subject.limits, (count, count) if far else None)):
                with side.limited(least, most):
                    if tried():
                        return so_far(_limits(photo, (count, theirs), sizes, (least, most), _GREEN))
            tokens = count
            stack.enter_context(side.limited(count, count))
            tried()
            if far and _size(latest) == sizes[0] != sizes[1]:
                allowed = subject.limits or (count, count)
                found.append(_limits(photo, (count, theirs), sizes, allowed, "the sizes agree"))
                sizes = sizes[0], sizes[0]
        pixels = _pixels(photo, a, latest, sizes)
        if pixels and a.pixels:
            levels = a.pixels.levels
            if len(levels) == 1 and (sizes[0] != sizes[1] or apart):
                rgb = np.ascontiguousarray(levels[0].transpose(1, 2, 0))
            else:
                given = inputs = replace(given, tiles=a.pixels.tiles)
            if tried():
                return so_far(replace(pixels, detail=f"{pixels.detail}; with the processor's pixels {_GREEN}"))
            found.append(pixels)
        rows = pictures_of(a, latest)
        if rows is None:
            return so_far() if found else so_far(_UNKNOWN)
        given = replace(given, embeddings=rows[0])
        if tried():
            return so_far(*([] if odd else [_VISION]))
    return so_far(_LANGUAGE)


_GREEN = "all stages are green"
_VISION = Found(
    "vision",
    f"with Hugging Face's embeddings of the picture {_GREEN}: the vision half",
    "convert the mmproj again from this model's folder, as F32 to rule its type out; if it stays red, llama.cpp"
    " computes this vision tower differently",
)
_UNKNOWN = Found(
    "unknown",
    "the sides lay the picture out differently, and nothing could be conformed",
    "compare the tiles and the tokens of the pictures named",
)
_LANGUAGE = Found(
    "language",
    "even with Hugging Face's own embeddings of the picture the logits differ: the language half",
    "convert the text half again from this model's folder (adapter merged?), as F16 to rule its type out; if it stays"
    " red, llama.cpp computes this language model differently",
)


def _measured(subject: Subject, latest: Trace) -> Measured:
    return measure_traces((subject.rows[0], subject.reference), (subject.rows[1], latest), subject.photo.size, None)


def _mended(subject: Subject, latest: Trace, limits: Limits) -> bool:
    # What was put in place of llama.cpp's own is equal or not on purpose: what follows from it counts.
    row = _measured(subject, latest).model_copy(update={"pixels_equal": True, "tiles": None})
    return parted_at(row, limits) is None


def _texts(a: Trace, like: Trace) -> list[list[int]] | None:
    """The ids of ``a`` around its pictures, cut as ``like``'s pictures cut them; None where they do not fit."""
    runs = [part for part in like.layout if isinstance(part, int)]
    own = [part for part in a.layout if isinstance(part, int)]
    texts: list[list[int]] = [[]]
    if len(own) == len(runs):
        for part in a.layout:
            if isinstance(part, int):
                texts.append([])
            else:
                texts[-1] += part
        return texts
    if len(runs) == 1 and own:  # tokens between a picture's rows are the picture's
        ids = a.ids
        last = len(ids) - 1 - ids[::-1].index(-1)
        return [ids[: ids.index(-1)], ids[last + 1 :]]
    return None


def _template(side: Mtmd, a: Trace, b: Trace) -> Found:
    x, y = _texts(a, b) or [], _texts(b, b) or []
    number = next(number for number, (one, other) in enumerate(zip(x, y, strict=True)) if one != other)
    where = "before the picture" if number == 0 else "behind the picture" if number == len(x) - 1 else "in the picture"
    ours, theirs = side.shown(x[number]), side.shown(y[number])
    return Found(
        "template",
        f"{where} Hugging Face has {_cut(ours, theirs)!r} and llama.cpp {_cut(theirs, ours)!r}",
        "write the prompt in the app as Hugging Face's processor makes it, and send it raw",
    )


def _cut(text: str, other: str) -> str:
    """The part of a text that differs, with a little around it."""
    same = next((i for i, (x, y) in enumerate(zip(text, other, strict=False)) if x != y), min(len(text), len(other)))
    end = 0
    while end < min(len(text), len(other)) - same and text[-1 - end] == other[-1 - end]:
        end += 1
    begin, stop = max(same - 12, 0), min(len(text) - end + 12, len(text))
    return ("…" if begin else "") + text[begin:stop] + ("…" if stop < len(text) else "")


def _size(trace: Trace) -> tuple[int, int]:
    """Width and height of the first tile; zeros where it is not known."""
    if trace.pixels is None:
        return 0, 0
    _, height, width = trace.pixels.tiles[0].shape
    return width, height


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _tiling(photo: Photo, a: Trace, b: Trace) -> Found:
    assert a.pixels
    assert b.pixels
    return Found(
        "tiling",
        f"{_shown(photo.size)}: the processor cuts it into {len(a.pixels.tiles)} pictures, libmtmd into"
        f" {len(b.pixels.tiles)}: another grid (llama.cpp, mtmd-image.cpp)",
        "feed pictures of one tile's size, or letterbox to it first",
    )


def _limits(
    photo: Photo,
    counts: tuple[int, int],
    sizes: tuple[tuple[int, int], tuple[int, int]],
    limits: tuple[int, int],
    good: str,
) -> Found:
    """``counts``, ``sizes``: of both sides as they are. ``limits``: with which ``good`` is so."""
    (ours, theirs), (least, most) = counts, limits
    # Too few tokens: the processor enlarged a small picture, or libmtmd shrank a large one. Too many: the other way
    # round, by the same sides.
    width, height = sizes[0] if theirs < ours else sizes[1]
    small = width * height > SCALED * photo.size[0] * photo.size[1]
    option = f"--image-min-tokens {least}" if small else f"--image-max-tokens {most}"
    return Found(
        "limits",
        f"{_shown(photo.size)}: Hugging Face gives it {ours} tokens, libmtmd {theirs}; with as many"
        f" {good}: libmtmd's limits are not the processor's",
        f"give llama.cpp {option}",
        weight=most,
    )


def _steps_apart(ours: tuple[int, int], theirs: tuple[int, int]) -> bool:
    """Whether two sizes are further apart than rounding makes them: by more than a step in one side."""
    step = math.gcd(*ours, *theirs)
    return any(abs(one - other) > step for one, other in zip(ours, theirs, strict=True))


def _no_numbers(photo: Photo, trace: Trace) -> Found | None:
    """That libmtmd's embeddings hold values that are not finite; None where they hold none."""
    rows = trace.inputs[np.array(trace.ids) == -1]
    bad = int((~np.isfinite(rows)).any(axis=1).sum())
    if not bad:
        return None
    return Found(
        "vision",
        f"{_shown(photo.size)}: {bad} of the {len(rows)} embeddings that libmtmd makes are not finite (NaN, infinity)",
        "run it again: where they are numbers then, llama.cpp reads memory that it never wrote; else look for nan and"
        " inf in the mmproj",
    )


def _pixels(photo: Photo, a: Trace, b: Trace, stock: tuple[tuple[int, int], tuple[int, int]]) -> Found | None:
    """What the pixels differ in; None where they are equal or unknown. ``stock``: the sizes as the sides made them."""
    if not a.pixels or not b.pixels:
        return None
    ours, theirs = stock
    name = _shown(photo.size)
    if ours != theirs:
        step = math.gcd(ours[0], ours[1], theirs[0], theirs[1])
        return Found(
            "resize",
            f"{name}: Hugging Face resizes to {_shown(ours)}, libmtmd to {_shown(theirs)}: resize rounding"
            " (llama.cpp, mtmd-image.cpp)",
            f"feed pictures whose sides are multiples of {step}, or letterbox first",
        )
    x, y = a.pixels.levels, b.pixels.levels
    if all(np.array_equal(one, other) for one, other in zip(x, y, strict=True)):
        tiles = zip(a.pixels.tiles, b.pixels.tiles, strict=True)
        apart = max(float(np.abs(one - other).max()) for one, other in tiles)
        if apart <= LEAST_FLOATS:
            return None
        return Found(
            "pixels",
            f"{name}: both sides make the same bytes of it, and normalize them up to {apart:.2g} apart: another mean"
            " or standard deviation",
            "compare image_mean and image_std in the mmproj with the processor's, and convert it again",
        )
    if any(_framed(one, other) for one, other in zip(x, y, strict=True)):
        how = f"to {_shown(ours)}" if len(x) == 1 else f"and cuts it into {len(x)} pictures"
        example = f", such as {_shown(ours)}" if len(x) == 1 else ""
        return Found(
            "padding",
            f"{name}: Hugging Face stretches it {how}, libmtmd scales and pads it: padding"
            " (llama.cpp, clip-model.h, PAD_CEIL)",
            f"feed pictures that need no change of shape{example}, or letterbox first",
        )
    levels = max(
        (int(np.abs(one.astype(np.int16) - other).max()) for one, other in zip(x, y, strict=True)
         if one.shape == other.shape), default=255,
    )  # fmt: skip
    why = "the resize rounds differently" if levels <= ROUNDED else "another resampling"
    return Found(
        "pixels",
        f"{name}: both sides make {_shown(ours)} of it, its bytes up to {levels} of 255 apart: {why}",
        "feed pictures of just that size",
    )


def _framed(ours: npt.NDArray[np.uint8], theirs: npt.NDArray[np.uint8]) -> bool:
    """Whether a tile [3, height, width] of libmtmd's has an edge of one colour, as padding has, where Hugging Face's
    has another."""
    edges = (np.s_[:, :1], np.s_[:, -1:], np.s_[:, :, :1], np.s_[:, :, -1:])
    return any(
        bool((theirs[edge] == theirs[edge][:, :1, :1]).all()) and not np.array_equal(ours[edge], theirs[edge])
        for edge in edges
    )


def _unsteady(photo: Photo) -> Found:
    """That llama.cpp answers a picture otherwise when it is asked again."""
    return Found(
        "unknown",
        f"{_shown(photo.size)}: what was not finite, or beyond a limit, is not so when it is answered again:"
        " llama.cpp reads memory that it never wrote",
        "report it to llama.cpp, or try another version",
    )


def sum_up(found: Sequence[tuple[str, list[Found]]], differ: int) -> Causes:
    """The causes of (image id, what was found), the earliest stage first among those that explain as much."""
    groups: dict[Kind, list[tuple[str, Found]]] = {}
    for image_id, findings in found:
        for finding in findings:
            groups.setdefault(finding.kind, []).append((image_id, finding))
    told = {kind: max((finding for _, finding in group), key=lambda one: one.weight) for kind, group in groups.items()}
    return Causes(
        tried=len(found),
        differ=differ,
        found=tuple(
            Cause(
                kind=kind,
                detail=told[kind].detail,
                fix=told[kind].fix,
                pictures=len(groups[kind]),
                image_ids=tuple(image_id for image_id, _ in groups[kind][:NAMED]),
            )
            for kind in sorted(groups, key=lambda kind: -len(groups[kind]))
        ),
    )
