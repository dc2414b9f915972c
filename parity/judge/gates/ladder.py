"""What is equal or is not: decoded, tiles, generation. From a walked ladder, generation from the sides' rows."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from parity.compare.ladder import Ladder, Measured
from parity.judge.gates.common import NO_LADDER, Pair, greatest, measured_rows, named, result
from parity.judge.gates.limits import GENERATION_SHARE, LEAST_FLOATS, decoded_alike, tiles_equal
from parity.judge.statistics import wilson
from parity.judge.verdict import GateResult
from parity.results import Row
from parity.terms import CheckTerms, Terms

ROUNDING_LEVELS = 2
"""A byte that is at most this far off comes of rounding or of another resampling filter on a smooth picture."""
SWAPPED_SHARE = 0.68
"""Swapping red and blue changes at most two bytes of three."""


def decoded(ladder: Ladder | None) -> GateResult:
    """S0: both sides' own decoders made the same bytes of the file."""
    rows = measured_rows(ladder)
    own = [row for row in rows if row.decoded_equal is not None]
    if not own:
        detail = "no side but one decoded the files: both were given the same canvases" if rows else NO_LADDER
        return result("decoded", "not measured", detail)
    near = [row.decoded_apart for row in own if not row.decoded_equal and row.decoded_apart is not None]
    good = f"{len(own)} of {len(own)} files were decoded to the same bytes"
    if near:
        good = (
            f"{len(own) - len(near)} of {len(own)} files were decoded to the same bytes, the others within {max(near)}"
            " levels of 255, as two JPEG decoders round; both sides were given the same"
        )
    return _equality(
        "decoded",
        own,
        [row for row in own if not decoded_alike(row)],
        "pictures decoded to other bytes",
        good,
        "a decoder differs: another JPEG library, an ignored orientation tag, colour space or transparency",
        "decode the files named on both sides and compare size and first differing byte; see contract.image",
    )


def _equality(
    stage: str, rows: Sequence[Measured], unequal: Sequence[Measured], metric: str, good: str, cause: str, fix: str
) -> GateResult:
    numbers: dict[str, Any] = {
        "metric": metric,
        "value": float(len(unequal)),
        "limit": 0.0,
        "samples": len(rows),
        "beyond": len(unequal),
        "worst": greatest([(1.0, row.image_id, row.key) for row in unequal]),
    }
    if not unequal:
        return result(stage, "green", good, **numbers)
    detail = f"{len(unequal)} of {len(rows)} {metric}, {named([row.image_id for row in unequal])}"
    return result(stage, "red", detail, cause, fix, **numbers)


def tiles(ladder: Ladder | None, terms: Terms) -> GateResult:
    """S2: the vision encoder is given as many pictures, the same bytes, the same floats."""
    measured = measured_rows(ladder)
    if not measured:
        return result("tiles", "not measured", NO_LADDER)
    rows = [row for row in measured if row.tiles is not None]
    if not rows:
        return result("tiles", "not measured", "the processor's pixel layout is none of those known here")
    bad = [row for row in rows if not tiles_equal(row)]
    number = [(row, row.tiles) for row in bad if row.tiles and row.tiles[0] != row.tiles[1]]
    others = [row for row, _ in number]
    shape = [row for row in bad if row not in others and (row.tiles_bytes is None or row.tiles_floats is None)]
    other = [row for row in bad if row.tiles_bytes]
    largest = max((row.tiles_bytes or 0 for row in rows), default=0)
    numbers: dict[str, Any] = {
        "metric": "largest difference of a byte, 0..255",
        "value": float(largest) if not number and not shape else None,
        "limit": 0.0,
        "samples": len(rows),
        "beyond": len(bad),
        "worst": greatest([(float(row.tiles_bytes or 1), row.image_id, row.key) for row in bad]),
    }
    if not bad and len(rows) < len(measured):
        some = named([row.image_id for row in measured if row.tiles is None])
        detail = (
            f"the pixel layout of {len(measured) - len(rows)} of {len(measured)} pictures is none known here, {some}"
        )
        return result("tiles", "not measured", detail)
    if not bad:
        each = _pictures(rows[0].tiles[0]) if len({row.tiles for row in rows}) == 1 and rows[0].tiles else "pictures"
        detail = f"{each}, the same bytes and floats, in {len(rows)} of {len(rows)} images"
        return result("tiles", "green", detail, **numbers)
    where = f"{len(bad)} of {len(rows)} images, {named([row.image_id for row in bad])}"
    if number:
        first, (ours, theirs) = number[0]
        if isinstance(terms, CheckTerms):
            return result(
                "tiles",
                "red",
                f"the reference's encoder is given {_pictures(ours)} of {shown_size(first)}, the candidate's"
                f" {_pictures(theirs)}, and numbers differ in {len(number)} of {len(rows)} images",
                "libmtmd cuts pictures of that size into other tiles than the processor does",
                "feed pictures of a size at which both cut alike, or letterbox first; see the causes",
                **numbers,
            )
        return result(
            "tiles",
            "red",
            f"the reference's encoder is given {_pictures(ours)}, the candidate's {_pictures(theirs)}, in"
            f" {len(number)} of {len(rows)} images",
            f"libmtmd made {_plan(theirs)}, Hugging Face {_plan(ours)}, and the contract has {terms.tiling}",
            "set contract.tiling to the plan that the app runs and train with it, or export with a preproc_image_size"
            " that gives the contract's plan",
            **numbers,
        )
    if shape and isinstance(terms, CheckTerms):
        sizes = shape[0].tile_sizes or ((0, 0), (0, 0))
        return result(
            "tiles",
            "red",
            f"{shown_size(shape[0])} becomes {sizes[0][0]}x{sizes[0][1]} in Hugging Face and"
            f" {sizes[1][0]}x{sizes[1][1]} in libmtmd; sizes differ in {where}",
            "libmtmd resizes to another size than the processor: other rounding, or other limits",
            "feed pictures of a size that both take as it is, or give the processor's limits to llama.cpp",
            **numbers,
        )
    if shape:
        return result(
            "tiles",
            "red",
            f"the pictures have other sizes, or floats that are not finite, in {where}",
            "the mmproj's tile size or its mean and standard deviation are not those of the image processor",
            "compare image_size, image_mean and image_std in the mmproj with preprocessor_config.json",
            **numbers,
        )
    if other:
        share = max(row.tiles_bytes_share or 0.0 for row in other)
        detail = f"bytes differ by up to {largest} of 255, in up to {share:.1%} of a picture's bytes, in {where}"
        if largest <= ROUNDING_LEVELS:
            cause = "one or two levels are another resampling filter or another rounding between canvas and tile"
            fix = "make the canvas as large as the tile (no resampling), or train with the filter that libmtmd has"
        elif any(not row.pixels_equal for row in other):
            cause = "the canvases differ already (pixels): the tiles only follow"
            fix = "fix the pixels first"
        elif share <= SWAPPED_SHARE:
            cause = "up to two bytes of three differ much, as with red and blue swapped on the way to the encoder"
            fix = "hand libmtmd R, G, B bytes, or set contract.image.channel_order to what the app does and train"
        elif isinstance(terms, CheckTerms):
            cause = "nearly all bytes differ much: the one side stretches a picture where the other pads or crops it"
            fix = "feed pictures that need no change of shape, or letterbox first; see the causes"
        else:
            cause = "nearly all bytes differ much: another crop, offset or size of the picture inside its tile"
            fix = "save both sides' tiles of the images named and compare them; see the tile plan and the padding"
        return result("tiles", "red", detail, cause, fix, **numbers)
    floats = max(row.tiles_floats or 0.0 for row in bad)
    numbers |= {"metric": "largest difference of the normalized floats", "value": floats, "limit": LEAST_FLOATS}
    numbers["worst"] = greatest([(row.tiles_floats or 0.0, row.image_id, row.key) for row in bad])
    return result(
        "tiles",
        "red",
        f"the bytes are equal and the normalized floats differ by up to {floats:.2g}, in {where}",
        "the mean or the standard deviation of the normalization differs",
        "compare clip.vision.image_mean and image_std in the mmproj with preprocessor_config.json, and export again",
        **numbers,
    )


def shown_size(row: Measured) -> str:
    """``1280x720``"""
    return f"{row.size[0]}x{row.size[1]}" if row.size else row.image_id


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _plan(count: int) -> str:
    """The tile plan that gives so many pictures."""
    grid = math.isqrt(max(count - 1, 0))
    if count == 1:
        return "the overview alone (1 picture)"
    return f"{grid}x{grid} + overview ({count} pictures)" if grid * grid == count - 1 else _pictures(count)


def generation(pairs: Sequence[Pair], ladder: Ladder | None) -> GateResult:
    """S6: where the labels are equal, so are the generated tokens, but for the few that the noise floor may show.

    Both shares are known from some images only: the lower end of the one's interval is held against the upper end of
    the other's.

    Answers without a label do not count: what a model babbles hangs on near ties, and `accuracy` has such answers.
    """
    stage = "generation"
    equal = [(a, b) for a, b in pairs if a.label == b.label and a.label is not None]
    if not equal:
        return result(stage, "not measured", "no image has the same label on both sides")
    unequal = [(a, b) for a, b in equal if a.generated_token_ids != b.generated_token_ids]
    floor = ladder.header.floor if ladder else None
    noise = floor.generated_differ / floor.samples if floor else None
    numbers: dict[str, Any] = {
        "metric": "share of equal labels with other generated tokens, lower end of its 95 % interval",
        "value": wilson(len(unequal), len(equal))[0],
        "limit": max(wilson(floor.generated_differ, floor.samples)[1] if floor else 0.0, GENERATION_SHARE),
        "floor": noise,
        "samples": len(equal),
        "beyond": len(unequal),
        "worst": greatest([(_apart(a, b), a.image_id, a.key) for a, b in unequal]),
    }
    share = len(unequal) / len(equal)
    detail = f"{len(unequal)} of {len(equal)} images with equal labels have other generated tokens ({share:.1%})"
    if numbers["value"] <= numbers["limit"]:
        return result(stage, "green", detail, **numbers)
    detail += (
        f", {named([a.image_id for a, _ in unequal])}: {unequal[0][0].text[:40]!r} and {unequal[0][1].text[:40]!r}"
    )
    return result(stage, "red", detail, *_why_generated(unequal), **numbers)


def _apart(a: Row, b: Row) -> float:
    """Tokens from the first difference on, of the longer one."""
    x, y = a.generated_token_ids, b.generated_token_ids
    common = next((i for i, (one, other) in enumerate(zip(x, y, strict=False)) if one != other), min(len(x), len(y)))
    return float(max(len(x), len(y)) - common)


def _why_generated(unequal: Sequence[Pair]) -> tuple[str, str]:
    """(cause, fix) by what most of them look like."""
    kinds: dict[str, Callable[[Row, Row], bool]] = {
        "endless": lambda a, b: a.stop_reason == "end" and b.stop_reason == "length",
        "reference endless": lambda a, b: a.stop_reason == "length" and b.stop_reason == "end",
        "longer": lambda a, b: b.generated_token_ids[: len(a.generated_token_ids)] == a.generated_token_ids,
    }
    counts = Counter(next((kind for kind, holds in kinds.items() if holds(a, b)), "other") for a, b in unequal)
    kind = counts.most_common(1)[0][0]
    if kind == "endless":
        return (
            "the end token is not recognised: llama.cpp goes on to max_new_tokens",
            "set tokenizer.ggml.eos_token_id in the GGUF to the token that ends the trained answers, and export again",
        )
    if kind == "reference endless":
        return (
            "the reference does not stop at the end token, and the candidate does",
            "train with the end token in the loss, and give generate() the same end token as the GGUF has",
        )
    if kind == "longer":
        return (
            "the candidate writes more after the label: another end token or another max_new_tokens",
            "compare the end tokens of tokenizer and GGUF, and max_new_tokens on both sides",
        )
    return (
        "the labels are read alike out of other tokens: another sampling, case or white space",
        "see that both sides decode greedily, without penalties, from the same prompt",
    )
