"""Holds both sides of any family's pair against each other, stage by stage, for one picture."""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from parity.compare.ladder import AnswerMeasured, Measured
from parity.engines.trace import Pixels, Trace
from parity.results import Row


def measure_traces(
    reference: tuple[Row, Trace],
    candidate: tuple[Row, Trace],
    size: tuple[int, int],
    decoders: tuple[bool, int | None] | None,
) -> Measured:
    """Compare two sides of one picture of (width, height).

    ``decoders``: whether both sides' own decoders make the same bytes of the file, and the largest difference where
    the sizes agree; None where only one decoded it.
    """
    (ours, a), (theirs, b) = reference, candidate
    first = first_apart(a, b)
    rows = pictures_of(a, b)
    error, cosine = _embeddings(*rows) if rows else (None, None)
    n = min(a.log_probs.shape[1], b.log_probs.shape[1])  # a vocabulary may be padded on one side
    x, y = (trace.log_probs[:, :n].astype(np.float64) for trace in (a, b))
    kls, largest = _divergence(x, y)
    tops = x.argmax(axis=1) == y.argmax(axis=1)
    levels, share, floats = _tiles(a.pixels, b.pixels)
    known = a.pixels is not None and b.pixels is not None
    return Measured(
        key=ours.key,
        image_id=ours.image_id,
        size=size,
        decoded_equal=decoders[0] if decoders else None,
        decoded_apart=decoders[1] if decoders else None,
        pixels_equal=ours.rgb_sha256 == theirs.rgb_sha256,
        tiles=(len(a.pixels.tiles), len(b.pixels.tiles)) if a.pixels and b.pixels else None,
        tile_sizes=(_size(a.pixels), _size(b.pixels)) if a.pixels and b.pixels else None,
        tiles_bytes=levels if known else None,
        tiles_bytes_share=share if known else None,
        tiles_floats=floats if known else None,
        tokens_equal=first is None,
        tokens_first=first,
        positions_equal=None if first is not None else _positions_equal(a.positions, b.positions),
        pictures=(a.ids.count(-1), b.ids.count(-1)),
        embeddings_error=error,
        embeddings_cosine=cosine,
        logits_kl=float(kls[0]),
        logits_kl_labels=None,
        logits_top1_equal=bool(tops[0]),
        logits_max=largest,
        generated_equal=ours.generated_token_ids == theirs.generated_token_ids,
        label_equal=ours.label == theirs.label,
        answer=AnswerMeasured(
            steps=len(kls),
            kl_mean=float(kls.mean()),
            kl_largest=float(kls.max()),
            differ=int((~tops).sum()),
            diverges_at=_diverges(ours.generated_token_ids, theirs.generated_token_ids),
            logprob_apart=_apart(x, y, ours.generated_token_ids),
        ),
    )


def first_apart(a: Trace, b: Trace) -> int | None:
    """The first position at which the prompts differ; None where they are the same.

    Inside a picture libmtmd shows slots alone, while Hugging Face may have tokens between a picture's rows
    (``[IMG_BREAK]``): there only the positions count.
    """
    ids = a.ids
    inside = range(ids.index(-1), len(ids) - ids[::-1].index(-1)) if -1 in ids else range(0)
    for place, (x, y) in enumerate(zip_longest(ids, b.ids)):
        if x != y and not (y == -1 and place in inside):
            return place
    return None


def pictures_of(a: Trace, b: Trace) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
    """Both sides' embeddings of the picture, [positions, width]: at the candidate's slots where the prompts are laid
    out alike, else wherever each side has them, if they are as many. None where nothing can be compared."""
    if a.inputs.shape[1] != b.inputs.shape[1]:
        return None
    own, slots = (np.array(trace.ids) == -1 for trace in (a, b))
    if first_apart(a, b) is None:
        return a.inputs[slots], b.inputs[slots]
    if own.sum() == slots.sum():
        return a.inputs[own], b.inputs[slots]
    return None


def _positions_equal(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> bool:
    """Where one side counts in one dimension, the other's three must all be that."""
    return a.shape[1] == b.shape[1] and bool((a == b).all())


def _embeddings(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> tuple[float, float]:
    with np.errstate(all="ignore"):  # zeros and infinities give NaN, which is written as null and fails the gate
        error = np.linalg.norm(b - a) / np.linalg.norm(a)
        cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return float(error), float(cosine.min())


def _divergence(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], float]:
    """(KL divergence at each step, nats; the first step's largest logit difference, standard deviations)."""
    with np.errstate(all="ignore"):
        # What neither side gives any probability has no part in the sum.
        none = np.isneginf(x) & np.isneginf(y)
        kls = np.where(none, 0.0, np.exp(x) * (x - y)).sum(axis=1)
        apart = (x[0] - y[0])[~none[0]]
        apart = apart - apart.mean()
        largest = float(np.abs(apart).max() / x[0][~none[0]].std())
    return np.where(kls < 0, 0.0, kls), largest


def _diverges(a: Sequence[int], b: Sequence[int]) -> int | None:
    return next((place for place, (x, y) in enumerate(zip_longest(a, b)) if x != y), None)


def _apart(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], ids: Sequence[int]) -> float:
    steps = np.arange(min(len(ids), len(x)))
    if not len(steps):
        return 0.0
    chosen = np.array(ids[: len(steps)])
    ours, theirs = x[steps, chosen], y[steps, chosen]
    with np.errstate(all="ignore"):
        return float(np.where(ours == theirs, 0.0, np.abs(ours - theirs)).max())  # -inf, too, is equal to itself


def _size(pixels: Pixels) -> tuple[int, int]:
    _, height, width = pixels.tiles[0].shape
    return width, height


def _tiles(a: Pixels | None, b: Pixels | None) -> tuple[int | None, float | None, float | None]:
    """(largest difference of a byte, share of bytes that differ, largest difference of a float)."""
    if a is None or b is None or [tile.shape for tile in a.tiles] != [tile.shape for tile in b.tiles]:
        return None, None, None
    if all(np.array_equal(x, y) for x, y in zip(a.tiles, b.tiles, strict=True)):
        return 0, 0.0, 0.0
    apart = [np.abs(x.astype(np.int16) - y) for x, y in zip(a.levels, b.levels, strict=True)]
    floats = max(float(np.abs(x - y).max()) for x, y in zip(a.tiles, b.tiles, strict=True))
    differ = sum(int((tile > 0).sum()) for tile in apart)
    return max(int(tile.max()) for tile in apart), differ / sum(tile.size for tile in apart), floats
