"""The ladder: what each stage of both sides made of one image, compared stage by stage.

    S0 decoded     the file's RGB bytes, decoded by each side's own decoder (equality)
    S1 pixels      the bytes handed to the model (equality)
    S2 tiles       the pictures as the vision encoder gets them: number, bytes, normalized floats
    S3 tokens      the whole prompt's ids with the pictures' slots (equality)
    S4 embeddings  what the vision half makes of the picture: relative error, cosine
    S5 logits      the next token's logits after the prompt: KL over vocabulary and labels, top-1, largest difference
    S6 generation  the generated token ids (equality)
    S7 accuracy    the label

On disk a ladder is JSONL like a side's results: one header line, then one line an image, appended as the images are
done. :mod:`parity.compare.measure` makes the lines; limits and judgement are :mod:`parity.judge.gates`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from parity.results import Header
from pipeline.core.appending import LinesWriter
from pipeline.core.jsonl import HeaderLine, Hex, Keyed, Line, Number, read_lines
from pipeline.core.provenance import digest

Rung = Literal["S0", "S1", "S2", "S3", "S4", "S5", "S6", "S7"]

RUNGS: dict[Rung, str] = {
    "S0": "decoded",
    "S1": "pixels",
    "S2": "tiles",
    "S3": "tokens",
    "S4": "embeddings",
    "S5": "logits",
    "S6": "generation",
    "S7": "accuracy",
}
"""Rung -> the gate of that name."""


Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _not_negative(value: float | None) -> float | None:
    if value is not None and value < 0:
        raise ValueError("a distance is 0 or more")
    return value


def _cosine(value: float | None) -> float | None:
    if value is not None and abs(value) > 1.001:  # with room for sums in float32; measured: 0.9999998 at most
        raise ValueError("a cosine is between -1 and 1")
    return value


Cosine = Annotated[Number, AfterValidator(_cosine)]
Distance = Annotated[Number, AfterValidator(_not_negative)]


class AnswerMeasured(Line):
    """Both sides along the reference's own answer, token by token (teacher forcing): open answers."""

    steps: int = Field(ge=1)
    """Tokens that the reference chose, its end token included."""
    kl_mean: Distance
    """Over the steps: KL divergence over the vocabulary, reference against candidate, nats."""
    kl_largest: Distance
    differ: Count
    """Steps at which the candidate puts another token first."""
    diverges_at: Count | None
    """The first token at which the free answers differ; null where they are equal."""
    logprob_apart: Distance
    """Largest difference of the log-probabilities that both give to a token of the answer, nats."""

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.differ > self.steps:
            raise ValueError("more steps differ than there are")
        return self


class Measured(Keyed):
    """What one image's comparison gave. A null stands where an earlier stage left nothing to compare (other shapes)."""

    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Width and height of the picture handed over, where they are not the contract's."""

    decoded_equal: bool | None
    """S0; null where a side did not decode the file itself."""
    pixels_equal: bool
    """S1"""
    decoded_apart: Annotated[int, Field(ge=0, le=255)] | None = None
    """S0: largest difference of a byte between the decoders; null where they make other sizes, or were not compared."""
    tiles: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None
    """S2: pictures that the reference's and the candidate's encoder are given; null where a side's are not known."""
    tile_sizes: tuple[tuple[Count, Count], tuple[Count, Count]] | None = None
    """S2: width and height of the first of them, on either side."""
    tiles_bytes: Annotated[int, Field(ge=0, le=255)] | None
    """S2: largest difference of a byte, 0..255."""
    tiles_bytes_share: Share | None
    """S2: share of the bytes that differ, 0..1."""
    tiles_floats: Distance
    """S2: largest difference of the normalized floats."""
    tokens_equal: bool
    """S3"""
    tokens_first: Count | None
    """S3: the first position at which the prompts differ."""
    positions_equal: bool | None = None
    """S3: what tells the language half where a token stands; null where the prompts differ, or it was not compared."""
    pictures: tuple[Count, Count] | None = None
    """S3: positions that the picture's embeddings take on either side, where each row has a layout of its own."""
    embeddings_error: Distance
    """S4: ||candidate - reference|| / ||reference||, Frobenius, all pictures together."""
    embeddings_cosine: Cosine
    """S4: the smallest cosine of two tokens' embeddings."""
    logits_kl: Distance
    """S5: KL divergence of the next token over the vocabulary, reference against candidate, nats."""
    logits_kl_labels: Distance
    """S5: the same over the labels' probabilities, made to sum to 1."""
    logits_top1_equal: bool
    """S5"""
    logits_max: Distance
    """S5: largest difference of two logits after each side's mean is taken off, in units of the reference's standard
    deviation over the vocabulary."""
    generated_equal: bool
    """S6"""
    label_equal: bool
    """S7"""
    answer: AnswerMeasured | None = None
    """S6: of open answers."""


class Spread(Line):
    """A number over many images."""

    median: Positive
    p95: Positive
    largest: Positive

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not self.median <= self.p95 <= self.largest:
            raise ValueError("the median, the 95th percentile and the largest do not rise")
        return self


class NoiseFloor(Line):
    """Hugging Face in bfloat16 against Hugging Face in float32, on samples of the run."""

    samples: int = Field(ge=1)
    embeddings_error: Spread
    logits_kl: Spread
    logits_kl_labels: Spread | None
    """null where answers are open."""
    logits_max: Spread
    answer_kl: Spread | None = None
    """Of open answers: the mean over the steps."""
    generated_differ: Count
    """Images whose generated ids differ."""
    labels_differ: Count

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        if max(self.generated_differ, self.labels_differ) > self.samples:
            raise ValueError("more images differ than there are samples")
        return self


class Compared(Line):
    """What is compared, whichever sides run it."""

    contract_sha256: Hex
    dataset_sha256: Hex
    text_type: str = Field(min_length=1)
    """Type of the language half's tensors, as exported: Q8_0, ..."""
    mmproj_type: str = Field(min_length=1)
    kv_type: str = Field(min_length=1)
    """Type of the KV cache's keys and values, ``k/v``: q4_0/q4_0, ..."""
    floor: NoiseFloor


class LadderHeader(Compared, HeaderLine):
    """What was compared, between which results."""

    WHAT = "ladder"
    MARK = "kind"

    schema_version: Literal[2] = 2
    kind: Literal["ladder"] = "ladder"
    reference_sha256: Hex
    """Digest of the reference's results header."""
    candidate_sha256: Hex


@dataclass(frozen=True)
class Ladder:
    """All images' comparisons."""

    header: LadderHeader
    rows: dict[str, Measured]
    """Key -> comparison."""
    sha256: str | None = None
    """Of the file, as its closing line states it; None where the ladder was never in one."""


def read_ladder(path: Path) -> Ladder:
    """Read a whole ladder file. Raises UserError as read_results does."""
    lines = read_lines(path, LadderHeader, Measured)
    return Ladder(lines.header, lines.rows, lines.sha256)


class LadderWriter(LinesWriter[LadderHeader, Measured]):
    """The images' comparisons."""

    def __init__(self, path: Path, header: LadderHeader, wanted: Collection[str] | None = None) -> None:
        super().__init__(path, header, Measured, wanted)


def header_digest(header: Header) -> str:
    """What a ladder names its sides by: all that the header says but for the number of images."""
    return digest(header.model_dump(mode="json", exclude={"images"}))
