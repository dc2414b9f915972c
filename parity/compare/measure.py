"""Holds both sides of an image against each other, stage by stage, and sums up what rounding alone does."""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from parity.compare.ladder import Measured, NoiseFloor, Spread
from parity.results import Row, label_kl
from pipeline.core.errors import UserError
from pipeline.models.prediction import Taps


def measure(reference: tuple[Row, Taps], candidate: tuple[Row, Taps], decoded_equal: bool | None) -> Measured:
    """Hold both sides of one image against each other, stage by stage."""
    (ours, a), (theirs, b) = reference, candidate
    first = next((i for i, (x, y) in enumerate(zip_longest(a.prompt_ids, b.prompt_ids)) if x != y), None)
    tiles_bytes, tiles_share, tiles_floats = _compare_tiles(a, b)
    error, cosine = _compare_embeddings(a.embeddings, b.embeddings)
    kl, largest = _compare_logits(a.log_probs, b.log_probs)
    return Measured(
        key=ours.key,
        image_id=ours.image_id,
        decoded_equal=decoded_equal,
        pixels_equal=ours.rgb_sha256 == theirs.rgb_sha256,
        tiles=(len(a.tiles), len(b.tiles)),
        tiles_bytes=tiles_bytes,
        tiles_bytes_share=tiles_share,
        tiles_floats=tiles_floats,
        tokens_equal=first is None,
        tokens_first=first,
        embeddings_error=error,
        embeddings_cosine=cosine,
        logits_kl=kl,
        logits_kl_labels=_labels_kl(ours, theirs),
        logits_top1_equal=bool(a.log_probs.argmax() == b.log_probs.argmax()),
        logits_max=largest,
        generated_equal=ours.generated_token_ids == theirs.generated_token_ids,
        label_equal=ours.label == theirs.label,
    )


def follow(line: Measured, ours: Row, theirs: Row) -> Measured:
    """A comparison with what follows from the sides' rows alone taken from these."""
    kl = _labels_kl(ours, theirs)
    about = {
        "image_id": ours.image_id,
        "pixels_equal": ours.rgb_sha256 == theirs.rgb_sha256,
        "logits_kl_labels": kl if kl == kl else None,
        "generated_equal": ours.generated_token_ids == theirs.generated_token_ids,
        "label_equal": ours.label == theirs.label,
    }
    return line.model_copy(update=about)


def tile_bytes(taps: Taps) -> npt.NDArray[np.uint8]:
    """The pictures as bytes again, [tiles, 3, tile, tile]: each side's normalization undone with its own numbers."""
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (taps.mean, taps.std))
    levels = np.rint((np.stack(list(taps.tiles)) * std + mean) * np.float32(255))
    return np.clip(levels, 0, 255).astype(np.uint8)


def _compare_tiles(a: Taps, b: Taps) -> tuple[int | None, float | None, float | None]:
    """(largest difference of a byte, share of bytes that differ, largest difference of a float)."""
    if [tile.shape for tile in a.tiles] != [tile.shape for tile in b.tiles]:
        return None, None, None
    if all(np.array_equal(x, y) for x, y in zip(a.tiles, b.tiles, strict=True)):
        return 0, 0.0, 0.0  # the usual case, and much quicker than turning floats into bytes
    apart = np.abs(tile_bytes(a).astype(np.int16) - tile_bytes(b))
    floats = max(float(np.abs(x - y).max()) for x, y in zip(a.tiles, b.tiles, strict=True))
    return int(apart.max()), float((apart > 0).mean()), floats


def _compare_embeddings(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> tuple[float | None, float | None]:
    """(relative error, smallest cosine)."""
    if a.shape != b.shape:
        return None, None
    with np.errstate(all="ignore"):  # zeros and infinities give NaN, which is written as null and fails the gate
        error = np.linalg.norm(b - a) / np.linalg.norm(a)
        cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return float(error), float(cosine.min())


def _compare_logits(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> tuple[float | None, float | None]:
    """(KL divergence of b from a, largest difference in standard deviations of a)."""
    if a.shape != b.shape:
        return None, None
    apart = a - b
    with np.errstate(all="ignore"):
        kl = float(np.exp(a) @ apart)
        # A log-probability is a logit less a constant, and both constants go with the mean.
        apart -= apart.mean()
        largest = float(np.abs(apart).max() / a.std())
    return max(kl, 0.0) if kl == kl else kl, largest


def _labels_kl(a: Row, b: Row) -> float | None:
    """KL over the labels; None where a side has none or the sides have others, NaN where a value is no number."""
    if not a.label_logprobs or a.label_logprobs.keys() != b.label_logprobs.keys():
        return None
    found = label_kl(a, b)
    return float("nan") if found is None else found


def noise_floor(measured: Sequence[Measured]) -> NoiseFloor:
    """Sum up comparisons of float32 with bfloat16, at least one; of open answers what was found along them.

    Raises UserError where the model gives no number for any of them.
    """

    def spread(name: str, values: Sequence[float | None]) -> Spread:
        known = [value for value in values if value is not None]
        if not known:
            raise UserError(
                f"the model gives values that are not finite ({name} of all {len(measured)} images, float32 against"
                " bfloat16): look for inf and nan in its weights"
            )
        median, p95, largest = np.quantile(np.asarray(known, np.float64), (0.5, 0.95, 1.0)).tolist()
        return Spread(median=median, p95=p95, largest=largest)

    along = [row.answer for row in measured if row.answer]
    return NoiseFloor(
        samples=len(measured),
        embeddings_error=spread("embeddings", [row.embeddings_error for row in measured]),
        logits_kl=spread("logits", [row.logits_kl for row in measured]),
        logits_kl_labels=None if along else spread("labels", [row.logits_kl_labels for row in measured]),
        logits_max=spread("logits", [row.logits_max for row in measured]),
        answer_kl=spread("answers", [answer.kl_mean for answer in along]) if along else None,
        generated_differ=sum(bool(row.answer.differ) if row.answer else not row.generated_equal for row in measured),
        labels_differ=0 if along else sum(not row.label_equal for row in measured),
    )
