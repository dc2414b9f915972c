"""What the two sides were given: engine settings, pixels, tokens."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from parity.compare.ladder import Ladder, Measured
from parity.judge.gates.common import NO_LADDER, Pair, greatest, measured_rows, named, result
from parity.judge.verdict import GateResult
from parity.results import Header, Results
from parity.terms import Terms, channel_order
from pipeline.contract import Contract
from pipeline.core.gguf_types import MATRIX_TYPES, NAMED_AFTER


def runtime(theirs: Header, terms: Terms, ladder: Ladder | None = None) -> GateResult:
    """The candidate's engine is set up as the terms' ``runtime`` has it, and runs files of the types exported.

    As far as its header says; the types exported stand in the ladder's.
    """
    if ladder and (odd := _odd_types(theirs, ladder)):
        half, found, declared = odd
        return result(
            "runtime",
            "red",
            f"{theirs.shown}'s {half} half has matrices of {found}, and {declared} was exported",
            f"{theirs.shown} ran another file than the bundle's, or one that was quantized again",
            f"give {theirs.shown} the bundle's own files, or export {found} and judge that",
        )
    wanted: dict[str, Any] = terms.runtime.model_dump(mode="json", exclude={"n_threads", "threads"})
    stated = {key: theirs.runtime[key] for key in wanted if key in theirs.runtime}
    if not stated:
        return result("runtime", "not measured", f"{theirs.shown}'s results state no runtime settings")
    wrong = [key for key, value in stated.items() if value != wanted[key]]
    if "n_batch" in wrong and _batch(wanted | stated) == _batch(wanted):
        wrong.remove("n_batch")
    if not wrong:
        missing = [key for key in wanted if key not in stated]
        detail = ", ".join(f"{key} {_plain(value)}" for key, value in stated.items())
        return result("runtime", "green", detail + (f" (not stated: {', '.join(missing)})" if missing else ""))
    found = ", ".join(f"{key} is {_plain(stated[key])}, not {_plain(wanted[key])}" for key in wrong)
    return result(
        "runtime",
        "red",
        f"{theirs.shown}'s {found}",
        f"{theirs.shown} ran with other settings than the app has",
        f"run {theirs.shown} again with {', '.join(f'{key} {_plain(wanted[key])}' for key in wrong)}, or set"
        " contract.runtime to what the app has",
    )


def _odd_types(theirs: Header, ladder: Ladder) -> tuple[str, str, str] | None:
    """(half, types of its matrices, type exported) of a half that is not of the type it was exported in."""
    for half, key, declared in (
        ("language", "text_types", ladder.header.text_type),
        ("vision", "mmproj_types", ladder.header.mmproj_type),
    ):
        found = theirs.runtime.get(key)
        if not isinstance(found, str):
            continue
        types = set(found.split("+"))
        # Finer than was declared is as wrong: the limits of the logits follow from the type declared.
        if not types <= MATRIX_TYPES.get(declared, {declared}) or not types & NAMED_AFTER.get(declared, {declared}):
            return half, found, declared
    return None


def _batch(settings: dict[str, Any]) -> Any:
    """llama.cpp never uses more than the context (``llama_context``: n_batch = min(n_ctx, n_batch))."""
    try:
        return min(settings["n_batch"], settings["n_ctx"])
    except TypeError:
        return None


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def pixels(reference: Results, candidate: Results, pairs: Sequence[Pair], terms: Terms) -> GateResult:
    """The bytes handed to the two models are equal, image by image, and are the dataset's where that can be told.

    A sample's key is the hash of its RGB canvas, so under ``channel_order: rgb`` it is what a model must be given.
    """
    stage, n = "pixels", len(pairs)
    names = (reference.header.shown, candidate.header.shown)
    unequal = [pair for pair in pairs if pair[0].rgb_sha256 != pair[1].rgb_sha256]
    # A check's key has the picture's size in it, and perhaps its question.
    rgb = isinstance(terms, Contract) and channel_order(terms) == "rgb"
    strays = {
        name: [pair for pair in pairs if rgb and pair[index].rgb_sha256 != pair[index].key]
        for index, name in enumerate(names)
    }
    wrong = {a.key: a for a, _ in (*unequal, *strays[names[0]], *strays[names[1]])}
    numbers: dict[str, Any] = {
        "metric": "canvases that are not the same bytes",
        "value": float(len(wrong)),
        "limit": 0.0,
        "samples": n,
        "beyond": len(wrong),
        "worst": greatest([(1.0, row.image_id, row.key) for row in wrong.values()]),
    }
    if not wrong:
        return result(stage, "green", f"{n} of {n} canvases are the same bytes on both sides", **numbers)
    own = strays[names[0]]
    if unequal:
        detail = f"{len(unequal)} of {n} canvases differ between the sides, {_examples(unequal)}"
    else:
        detail = f"{len(own)} of {n} canvases are the same bytes on both sides but not the dataset's, {_examples(own)}"
    for name, stray in strays.items():
        if stray and unequal:
            detail += f"; {name} was not given the dataset's canvas in {len(stray)}"
    if len(unequal) == n or len(own) == n:
        cause = "every image differs, as with a swapped channel order (RGB against BGR) or another letterbox"
        fix = "compare the contract's image.channel_order and image.resample with what that side does"
    else:
        cause = "only some images differ, as with another rounding in the letterbox or another image decoder"
        fix = "letterbox the images named with both sides and compare size, offset and first differing byte"
    return result(stage, "red", detail, cause, fix, **numbers)


def tokens(ours: Header, theirs: Header, ladder: Ladder | None) -> GateResult:
    """Both sides lay the prompt out as the same token ids with the same picture slots, image by image where known."""
    stage = "tokens"
    a, b = ours.prompt_token_ids, theirs.prompt_token_ids
    if not a and not b:
        return _layouts(measured_rows(ladder))
    if len(ours.image_slots) != len(theirs.image_slots):
        return result(
            stage,
            "red",
            f"tile plans differ: {ours.shown} has {_pictures(ours.image_slots)}, {theirs.shown} has"
            f" {_pictures(theirs.image_slots)}",
            "llama.cpp cuts by the mmproj's preproc_image_size, and that is not the contract's tile plan",
            "export again so that preproc_image_size follows the contract's tiling, or change the tiling and train",
        )
    # None stands for "ended before", which equals no token.
    for position, (x, y) in enumerate(zip_longest(a, b)):
        if x != y:
            return result(
                stage,
                "red",
                f"the prompts differ first at position {position}: {ours.shown} has {_token(x)}, {theirs.shown}"
                f" has {_token(y)} ({len(a)} and {len(b)} tokens in all)",
                "the tokenizer, the prompt template or a beginning-of-sequence token is not the same",
                "compare the two tokenizers on the contract's prompt, and export from the folder that was trained",
            )
    for number, (slot, other) in enumerate(zip(ours.image_slots, theirs.image_slots, strict=True), start=1):
        if slot != other:
            return result(
                stage,
                "red",
                f"picture {number} takes {slot[1]} positions from {slot[0]} on in {ours.shown},"
                f" {other[1]} from {other[0]} on in {theirs.shown}",
                "the sides disagree on how many positions a picture takes",
                "compare scale_factor and tile size in the model's config and in the mmproj",
            )
    rows = list(ladder.rows.values()) if ladder else []
    unequal = [row for row in rows if not row.tokens_equal]
    numbers: dict[str, Any] = {"metric": "images whose prompts differ", "value": float(len(unequal)), "limit": 0.0}
    numbers |= {"samples": len(rows), "beyond": len(unequal)}
    if unequal:
        first = unequal[0]
        where = "" if first.tokens_first is None else f", first at position {first.tokens_first} of {first.image_id}"
        return result(
            stage,
            "red",
            f"the prompts of {len(unequal)} of {len(rows)} images differ{where}, though both sides' headers agree",
            "what a side really feeds depends on the image, and its header tells of one layout alone",
            "compare the tokens of the images named, and the tile plan that each side chooses for them",
            worst=greatest([(1.0, row.image_id, row.key) for row in unequal]),
            **numbers,
        )
    measured = f", also image by image ({len(rows)})" if rows else ""
    return result(
        stage,
        "green",
        f"the same {len(a)} tokens with {_pictures(ours.image_slots)}{measured}",
        **(numbers if rows else {}),
    )


def _layouts(rows: Sequence[Measured]) -> GateResult:
    """Where each row has a layout of its own."""
    stage = "tokens"
    if not rows:
        return result(stage, "not measured", NO_LADDER)
    unequal = [row for row in rows if not row.tokens_equal or row.positions_equal is False]
    numbers: dict[str, Any] = {
        "metric": "images whose prompts differ",
        "value": float(len(unequal)),
        "limit": 0.0,
        "samples": len(rows),
        "beyond": len(unequal),
        "worst": greatest([(1.0, row.image_id, row.key) for row in unequal]),
    }
    if not unequal:
        detail = f"the same ids, slots and positions in {len(rows)} of {len(rows)} images"
        return result(stage, "green", detail, **numbers)
    where = f"in {len(unequal)} of {len(rows)} images, {named([row.image_id for row in unequal])}"
    counts = [(row, row.pictures) for row in unequal if row.pictures and row.pictures[0] != row.pictures[1]]
    if counts:
        row, (ours, theirs) = counts[0]
        size = f"{row.size[0]}x{row.size[1]}" if row.size else row.image_id
        return result(
            stage,
            "red",
            f"{size} takes {ours} positions in Hugging Face and {theirs} in llama.cpp; prompts differ {where}",
            "the sides resize or cut a picture of that size differently, so that it takes other positions",
            "fix the tiles first; see the causes",
            **numbers,
        )
    texts = [row for row in unequal if not row.tokens_equal]
    if texts:
        return result(
            stage,
            "red",
            f"the prompts differ first at position {texts[0].tokens_first} of {texts[0].image_id}; they differ {where}",
            "the chat template, the text around a picture, the tokenizer or a beginning-of-sequence token differs",
            "compare the two prompts (under Provenance in the report), and convert from the folder that was trained",
            **numbers,
        )
    return result(
        stage,
        "red",
        f"the same tokens stand at other positions {where}",
        "the sides count a picture's positions differently (M-RoPE)",
        "see the grid of patches on both sides of the images named",
        **numbers,
    )


def _pictures(slots: Sequence[tuple[int, int]]) -> str:
    return f"{len(slots)} picture" + ("s" if len(slots) != 1 else "")


def _token(token: int | None) -> str:
    if token is None:
        return "no more tokens"
    return "a picture" if token == -1 else f"token {token}"


def _examples(pairs: Sequence[Pair]) -> str:
    return named([a.image_id for a, _ in pairs])
