"""What the swap matrix says: which part of the shipped pair carries its error, and whether a part is broken.

A row of the matrix takes Hugging Face's tensors for all that comes before the part that it tries, so that a fault
further up cannot hide what the part does. KL grows with the square of what is added to the logits, and the squares of
independent errors add up. Measured with the tiny model on 281 images (64 images): the parts' mean KLs add up to 0.99
(0.87) of the shipped pair's, the mean squares of their logits' differences to 1.00 (1.01), their roots to 1.45 (1.44).
The words go by the KL, which weighs a token by how likely it is; the squares weigh all tokens alike, stand beside it,
and need fewer images.
"""

from collections.abc import Mapping

from parity.judge.gates.limits import LEAST_FLOATS, embeddings_limit, logits_factor, logits_limit
from parity.studies.swap.matrix import (
    FLOOR,
    SHIPPED,
    Attribution,
    Part,
    PartName,
    SwapRow,
    kv_name,
    mmproj_row,
    number,
    runtime_row,
    text_row,
)


def attribute(rows: Mapping[str, SwapRow], noise_factor: float) -> Attribution:
    """Say which part carries the error. ``rows`` by their names; ``noise_factor`` is the contract's.

    A part is broken where its row is beyond the ladder's own limit for its types (:mod:`parity.judge.gates.limits`,
    with Hugging Face in bfloat16 on the same images as the floor) and the row that it is compared with is not.
    """
    shipped, floor = rows[SHIPPED], rows[FLOOR]
    text_type, mmproj_type, runtime = shipped.variant.llama

    def beyond(name: str) -> bool:
        row = rows[name]
        text, mmproj, used = row.variant.llama
        if row.variant.takes == "embeddings":
            mmproj = "F32"  # it had no part in what was decoded
        else:
            limit = embeddings_limit(floor.embeddings_error or 0.0, mmproj, noise_factor)
            if row.embeddings_error is None or row.embeddings_error > limit:
                return True
        factor = logits_factor(text, mmproj, f"{used.type_k}/{used.type_v}")
        return row.kl_median is None or row.kl_median > logits_limit(floor.kl_median or 0.0, factor, noise_factor)

    kv = f"KV {kv_name(runtime)}, flash attention {'on' if runtime.flash_attn else 'off'}"
    chain: tuple[tuple[PartName, str, str, str | None], ...] = (
        ("conversion and engine, language half", "F32", "exact-embeddings", None),
        ("conversion and engine, vision half", "F32", "exact-pixels", "exact-embeddings"),
        ("preprocessing", "the pictures that libmtmd makes", SHIPPED, "shipped-pixels"),
        ("vision quantization", f"mmproj {mmproj_type}", mmproj_row(mmproj_type), "exact-pixels"),
        ("text quantization", f"text {text_type}", text_row(text_type), "exact-embeddings"),
        ("runtime", kv, runtime_row(runtime), "exact-embeddings"),
    )
    parts = []
    for name, what, row, base in chain:
        kl = _less(rows[row].kl_mean, rows[base].kl_mean if base else 0.0)
        if name == "preprocessing":
            broken = not _same_pictures(rows[SHIPPED])
        else:
            broken = row != base and beyond(row) and not (base and beyond(base))
        square = _less(_square(rows[row]), _square(rows[base]) if base else 0.0)
        parts.append(
            Part(name=name, what=what, kl=kl, share=_share(kl, shipped.kl_mean),
                 square_share=_share(square, _square(shipped)), row=row, base=base, broken=broken)
        )  # fmt: skip
    known = [part.kl for part in parts if part.kl is not None]
    together = _less(shipped.kl_mean, sum(known)) if len(known) == len(parts) else None
    faults = [part for part in parts if part.broken]
    first = max(faults or parts, key=lambda part: float("inf") if part.kl is None else part.kl)
    sentence, fix = _broken_words(first, rows) if faults else _sound_words(first, rows)
    return Attribution(
        parts=tuple(parts), together=together, carrier=first.name, broken=bool(faults), sentence=sentence, fix=fix
    )


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _square(row: SwapRow) -> float | None:
    return None if row.logits_rms is None else row.logits_rms**2


def _same_pictures(row: SwapRow) -> bool:
    return row.tiles_floats is not None and row.tiles_floats <= LEAST_FLOATS


_FIXES: dict[PartName, str] = {
    "conversion and engine, language half": "the F32 file does not compute what Hugging Face computes: compare its"
    " metadata (RoPE, norm epsilon, head counts) with config.json, and the versions of converter and model",
    "conversion and engine, vision half": "the F32 file does not compute what Hugging Face computes: compare its"
    " metadata (norm epsilon, scale factor, activation) with config.json, and the versions of converter and model",
    "preprocessing": "compare image_mean, image_std and the tile size in the mmproj with the image processor's, then"
    " the channel order that is fed",
    "vision quantization": "more than the type explains: the file is stale, of other weights, or damaged; export again",
    "text quantization": "more than the type explains: the file is stale, of other weights, or damaged; export again",
    "runtime": "more than the settings explain: try the other KV types and flash attention, and the llama.cpp version",
}


def _broken_words(part: Part, rows: Mapping[str, SwapRow]) -> tuple[str, str]:
    """The swaps of the shipped pair as evidence, then the part alone."""
    own, pixels, embeddings = (rows[name].kl_median for name in (SHIPPED, "shipped-pixels", "shipped-embeddings"))
    swaps = (
        f"the shipped pair's median KL is {number(own)}, with HF's pixels {number(pixels)}, with HF's image embeddings"
        f" {number(embeddings)}"
    )
    alone = rows[part.row]
    if part.name == "preprocessing":
        proof = f"libmtmd's pictures differ from HF's by up to {number(alone.tiles_floats)}"
    elif "vision" in part.name:
        proof = f"alone it moves the image embeddings by {number(alone.embeddings_error)}"
    else:
        proof = f"alone it gives {number(alone.kl_median)}"
    return f"Broken: {part.name} ({part.what}): {proof}; {swaps}.", _FIXES[part.name] + "."


def _sound_words(part: Part, rows: Mapping[str, SwapRow]) -> tuple[str, str]:
    shipped, floor = rows[SHIPPED], rows[FLOOR]
    share = "" if part.share is None else f" {part.share:.0%} of"
    sentence = (
        f"Nothing is broken; {part.name} ({part.what}) carries{share} the shipped pair's error, mean KL"
        f" {number(part.kl)} of {number(shipped.kl_mean)} nats."
    )
    if shipped.kl_mean is not None and floor.kl_mean is not None and shipped.kl_mean <= floor.kl_mean:
        return sentence, f"Nothing to do: bfloat16 alone makes more in Hugging Face, {number(floor.kl_mean)}."
    return sentence, _better(part, rows)


def _better(part: Part, rows: Mapping[str, SwapRow]) -> str:
    """What to change where the part's error is too much, with what was measured of it."""
    if part.name == "runtime":
        tried = [row for name, row in rows.items() if name.startswith("kv-")]
        setting = "contract.runtime (type_k, type_v, flash_attn) and the app with it"
    elif part.name == "text quantization":
        tried, setting = [row for name, row in rows.items() if name.startswith("text-")], "export.text_type"
    elif part.name == "vision quantization":
        tried, setting = [row for name, row in rows.items() if name.startswith("mmproj-")], "export.mmproj_type"
    else:
        return f"If that is too much: {_FIXES[part.name]}."
    others = [row for row in tried if row.variant.name != part.row and row.kl_mean is not None]
    best = min(others, key=lambda row: row.kl_mean or 0.0, default=None)
    if best is None or (part.kl is not None and (best.kl_mean or 0.0) >= part.kl):
        return "No other setting tried does better."
    return f"If that is too much, change {setting}: {best.variant.title} has {number(best.kl_mean)} alone."
