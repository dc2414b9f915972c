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

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from parity.results import Header
from pipeline.core.jsonl import HeaderLine, Hex, Keyed, Line, LinesWriter, Number, read_lines
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


class Measured(Keyed):
    """What one image's comparison gave. A null stands where an earlier stage left nothing to compare (other shapes)."""

    decoded_equal: bool | None
    """S0; null where a side did not decode the file itself."""
    pixels_equal: bool
    """S1"""
    tiles: tuple[int, int]
    """S2: pictures that the reference's and the candidate's encoder are given."""
    tiles_bytes: int | None
    """S2: largest difference of a byte, 0..255."""
    tiles_bytes_share: float | None
    """S2: share of the bytes that differ, 0..1."""
    tiles_floats: Number
    """S2: largest difference of the normalized floats."""
    tokens_equal: bool
    """S3"""
    tokens_first: int | None
    """S3: the first position at which the prompts differ."""
    embeddings_error: Number
    """S4: ||candidate - reference|| / ||reference||, Frobenius, all pictures together."""
    embeddings_cosine: Number
    """S4: the smallest cosine of two tokens' embeddings."""
    logits_kl: Number
    """S5: KL divergence of the next token over the vocabulary, reference against candidate, nats."""
    logits_kl_labels: Number
    """S5: the same over the labels' probabilities, made to sum to 1."""
    logits_top1_equal: bool
    """S5"""
    logits_max: Number
    """S5: largest difference of two logits after each side's mean is taken off, in units of the reference's standard
    deviation over the vocabulary."""
    generated_equal: bool
    """S6"""
    label_equal: bool
    """S7"""


class Spread(Line):
    """A number over many images."""

    median: float
    p95: float
    largest: float


class NoiseFloor(Line):
    """Hugging Face in bfloat16 against Hugging Face in float32, on samples of the run."""

    samples: int
    embeddings_error: Spread
    logits_kl: Spread
    logits_kl_labels: Spread
    logits_max: Spread
    generated_differ: int
    """Images whose generated ids differ."""
    labels_differ: int


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

    schema_version: Literal[1] = 1
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


def read_ladder(path: Path) -> Ladder:
    """Read a ladder file. A last line without its line break is dropped. Raises UserError as read_results does."""
    return Ladder(*read_lines(path, LadderHeader, Measured))


class LadderWriter(LinesWriter[LadderHeader, Measured]):
    """The images' comparisons."""

    def __init__(self, path: Path, header: LadderHeader) -> None:
        super().__init__(path, header, Measured)


def header_digest(header: Header) -> str:
    """What a ladder names its sides by."""
    return digest(header.model_dump(mode="json"))
