"""The first layer: where inside a half the outputs diverge.

Hugging Face's layers are kept for one picture; llama.cpp's are compared as they are computed, so that memory holds the
layers of one side alone.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Literal

import numpy as np
import numpy.typing as npt

from parity.engines.auto import AutoSide, layer_outputs
from parity.engines.given import Given
from parity.engines.mtmd import Mtmd
from parity.judge.causes import LayerErrors
from parity.pairs.conforming import Subject

JUMP = 10.0
"""A layer jumps where its error is more than this many times the median of those before it, and beyond the limit."""
MATCHED = 4096
"""Rows up to which another order of patches is looked for."""

Half = Literal["vision", "language"]
Layers = Sequence[npt.NDArray[np.float32]]


def layer_errors(
    half: Half,
    reference: Callable[[], AutoSide],
    candidate: Callable[[], Mtmd],
    subject: Subject,
    prompt: str,
    given: Given,
    rgb: npt.NDArray[np.uint8],
    limit: float,
) -> LayerErrors:
    """Each layer's relative error in one picture, along Hugging Face's own answer.

    ``reference``, ``candidate``: open the sides, one after the other. ``prompt``: as Hugging Face writes it. ``given``,
    ``rgb``: what makes the half's inputs the same on both sides, as found by conforming. ``limit``: of the embeddings
    of one picture.
    """
    chosen = [*subject.answer.ids][: len(subject.reference.log_probs) - 1]
    side = reference()
    with layer_outputs(side.model) as outputs:
        # One more token than is followed, so that each of them goes through the layers.
        side.answer(subject.photo.rgb, prompt, 0, follow=[*chosen, min(side.end_ids)])
    del side
    layers = [np.concatenate(calls) for calls in outputs[half == "language"] if calls]
    sums = [[0.0, 0.0, 0] for _ in layers]
    other = candidate()
    with other.layers(half, _taker(layers, sums)):
        other.answer(rgb, subject.prompt, chosen, 1, given, steps=len(chosen) + 1)
    errors = tuple(
        float(np.sqrt(apart / whole)) if rows == len(layer) and whole > 0 else None
        for layer, (apart, whole, rows) in zip(layers, sums, strict=True)
    )
    return LayerErrors(half=half, image_id=subject.photo.image_id, errors=errors, first=first_jump(errors, limit))


def _taker(layers: Layers, sums: list[list[float]]) -> Callable[[int, npt.NDArray[np.float32]], None]:
    def take(number: int, rows: npt.NDArray[np.float32]) -> None:
        if number >= len(layers):
            return
        begin = int(sums[number][2])
        own = layers[number][begin : begin + len(rows)]
        sums[number][2] += len(rows)
        if own.shape != rows.shape:  # the last layer may keep the rows alone that are wanted
            return
        apart, whole = float(((own - rows) ** 2).sum()), float((own**2).sum())
        if apart > 0.01 * whole and len(rows) <= MATCHED:
            apart = min(apart, _reordered(own, rows))
        sums[number][0] += apart
        sums[number][1] += whole

    return take


def _reordered(own: npt.NDArray[np.float32], rows: npt.NDArray[np.float32]) -> float:
    """The squared distance where each row is held against the nearest: a tower may work in another order of patches
    (Qwen2.5-VL's windows)."""
    products = own @ rows.T
    nearest = (products / np.maximum(np.linalg.norm(rows, axis=1), 1e-12)).argmax(axis=1)
    if len(np.unique(nearest)) < 0.9 * len(own):
        return float("inf")
    return float(((own - rows[nearest]) ** 2).sum())


def first_jump(errors: Sequence[float | None], limit: float) -> int | None:
    """The first layer whose error is out of step with those before it; None where none is."""
    before: list[float] = []
    for number, error in enumerate(errors):
        if error is None:
            continue
        if error > limit and error > JUMP * (median(before) if before else 0.0):
            return number
        before.append(error)
    return None
