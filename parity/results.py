"""What one side answered, on disk (:mod:`pipeline.core.jsonl`): a header, a row an image, a closing line.

What a row holds follows what a phone writes. Rows are found by the content hash of the sample, never by position.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.core.appending import LinesWriter
from pipeline.core.jsonl import HeaderLine, Hex, Keyed, Number, read_lines
from pipeline.dataset.split import Split

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Layout = tuple[tuple[TokenId, ...] | Annotated[int, Field(ge=1)], ...]
"""A prompt, part by part: the ids of a text, or how many positions a picture's embeddings take."""


def _log_of_probability(value: float | None) -> float | None:
    if value is not None and value > 1e-6:  # the last digits of a sum in float64
        raise ValueError("the logarithm of a probability is 0 at most")
    return value


LogProb = Annotated[Number, AfterValidator(_log_of_probability)]


_NAMES = {"hf": "Hugging Face", "llamacpp": "llama.cpp", "device": "the device"}


def display_name(side: str) -> str:
    """A side's name as a person knows it."""
    return _NAMES.get(side, side)


class Header(HeaderLine):
    """What ran, on what, under which contract. Two files with equal headers hold rows of the same run."""

    WHAT = "results"
    MARK = "side"

    schema_version: Literal[4] = 4
    side: str = Field(min_length=1)
    """``hf``, ``llamacpp``, ``device``, ..."""
    engine: str = Field(min_length=1)
    """What computed: ``transformers``, ``llama.cpp``."""
    contract_sha256: Hex
    """Of what both sides are asked: :attr:`pipeline.contract.Contract.digest`, or that of a check's terms."""
    dataset_sha256: Hex
    """:attr:`pipeline.dataset.records.Dataset.digest`"""
    split: Split | None = None
    """Which of the dataset's images were answered; null where the side does not say."""
    photos: int | None = Field(default=None, ge=1)
    """Labelled photos in the whole dataset, those to train on among them; null where the side does not know."""
    model: dict[str, Hex]
    """Role -> SHA-256 of the file or folder used: ``model`` and ``mmproj`` for llama.cpp, ``merged`` for hf."""
    weights_sha256: Hex | None = None
    """Digest of the fine-tuned weights that this side's files were made from; null where unknown."""
    versions: dict[str, str]
    """Package -> version."""
    device: dict[str, str]
    """What it ran on: host, cpu, ..."""
    runtime: dict[str, str | int | Finite | bool | None]
    """How the engine was set up: n_ctx, n_threads, type_k, ...; ``plan_sha256`` where it ran by a plan."""
    prompt_token_ids: tuple[int, ...]
    """The whole prompt's layout: the ids of its text, and -1 at every position that a picture's embedding takes. Empty
    where it depends on the picture: then each row has its own."""
    image_slots: tuple[tuple[int, int], ...]
    """(start, length) of each picture in :attr:`prompt_token_ids`, in order."""

    @property
    def shown(self) -> str:
        """The side's name as a person knows it."""
        return display_name(self.side)


class Row(Keyed):
    """What the side made of one image."""

    rgb_sha256: Hex
    """SHA-256 of the bytes really given to the model."""
    truth: str | None
    """The ground truth: a label, or the text expected; null where none is known."""
    text: str
    """All that was generated."""
    label: str | None
    """The label that the contract's answer rule reads out of ``text``; null where it finds none."""
    generated_token_ids: tuple[TokenId, ...]
    """Without the end token."""
    label_logprobs: dict[str, LogProb] = Field(default_factory=dict)
    """Label -> natural log of the probability of its answer tokens after the prompt; empty where the side has none."""
    top_logits: tuple[tuple[TokenId, Number], ...] = ()
    """(token id, logit) of the first step's greatest logits, greatest first."""
    ms: dict[str, Milliseconds] = Field(default_factory=dict)
    """Milliseconds: ``encode``, ``prefill``, ``generate``, ... and, if known, ``total``."""
    stop_reason: Literal["end", "length"]
    """An end token, or ``max_new_tokens`` reached."""
    score: Finite | None = None
    """How well an open answer meets the one expected, by the terms' metric."""
    layout: Layout | None = None
    """The prompt, where it is not the header's."""

    @property
    def correct(self) -> bool:
        """Whether the answer is the truth."""
        return self.label is not None and self.label == self.truth


def label_kl(a: Row, b: Row) -> float | None:
    """KL divergence of ``b`` from ``a`` over the labels that both have, each side's probabilities made to sum to 1.

    Nats, 0 or more; None where a log-probability is no number.
    """
    labels = [label for label in a.label_logprobs if label in b.label_logprobs]
    sides = []
    for row in (a, b):
        values = [row.label_logprobs[label] for label in labels]
        if any(value is None for value in values):
            return None
        known = [value for value in values if value is not None]
        top = max(known)
        total = top + math.log(sum(math.exp(value - top) for value in known))
        sides.append([value - total for value in known])
    return max(sum(math.exp(x) * (x - y) for x, y in zip(*sides, strict=True)), 0.0)


@dataclass(frozen=True)
class Results:
    """One side's answers."""

    header: Header
    rows: dict[str, Row]
    """Key -> row, in the order of the file."""
    sha256: str | None = None
    """Of the file, as its closing line states it; None where the answers were never in one, or it has none."""


def read_results(path: Path, unfinished: bool = False) -> Results:
    """Read one side's whole file, or what there is of an ``unfinished`` one, as a phone leaves it that stops early.

    Raises UserError as :func:`pipeline.core.jsonl.read_lines` does.
    """
    lines = read_lines(path, Header, Row, unfinished)
    return Results(lines.header, lines.rows, lines.sha256)


class ResultsWriter(LinesWriter[Header, Row]):
    """One side's answers."""

    def __init__(
        self,
        path: Path,
        header: Header,
        wanted: Collection[str] | None = None,
        check: Callable[[Row], str | None] | None = None,
    ) -> None:
        super().__init__(path, header, Row, wanted, check)
