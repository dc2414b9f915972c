"""What a model made of one canvas: the same record for every side, with its two numeric helpers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TOP_LOGITS = 8
"""How many of the first step's greatest logits a prediction keeps."""


@dataclass(frozen=True)
class Prediction:
    """What one side made of one canvas."""

    rgb_sha256: str
    """Hash of the bytes really handed to the model."""
    text: str
    generated_ids: tuple[int, ...]
    """Token ids generated, the end token not among them."""
    stop_reason: str
    """``end`` (an end token) or ``length`` (``max_new_tokens``)."""
    label_logprobs: dict[str, float]
    """Label -> natural log of the probability of its answer tokens after the prompt."""
    top_logits: tuple[tuple[int, float], ...]
    """(token id, logit) of the first step, greatest first."""
    ms: dict[str, float]
    """Milliseconds spent in ``encode`` (vision), ``prefill`` (prompt) and ``generate``."""


@dataclass(frozen=True)
class Taps:
    """What a side made of one canvas on the way to its prediction, for holding two sides against each other."""

    tiles: Sequence[npt.NDArray[np.float32]]
    """The normalized pictures that the vision encoder was given, each [3, tile, tile], overview last."""
    mean: Sequence[float]
    """Of each channel: what turned bytes into ``tiles``."""
    std: Sequence[float]
    prompt_ids: Sequence[int]
    """Ids of the prompt, -1 at every position of a picture."""
    embeddings: npt.NDArray[np.float32]
    """What the vision half made of the tiles, [tiles, tokens, hidden]."""
    log_probs: npt.NDArray[np.float64]
    """Natural-log probabilities of the next token after the prompt, [vocabulary]."""


def top_logits(logits: npt.NDArray[np.float32]) -> tuple[tuple[int, float], ...]:
    """The :data:`TOP_LOGITS` greatest of a [vocabulary] vector; equal logits in the order of their ids."""
    negated = -logits
    count = min(TOP_LOGITS, len(logits))
    last = np.partition(negated, count - 1)[count - 1]
    # Only what can be among them is sorted: all 49,280 take 3.6 ms, half as long as the tiny model needs for an image.
    # "Not greater" keeps NaN, which sorts last.
    candidates = np.flatnonzero(~(negated > last))
    order = candidates[np.argsort(negated[candidates], kind="stable")[:count]]
    return tuple((int(index), float(logits[index])) for index in order)


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Natural-log probabilities of the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
