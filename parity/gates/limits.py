"""What the ladder's numbers may be: the measured noise floor times a factor that follows from the exported types.

The floor is Hugging Face in bfloat16 against float32 on samples of the same run, so the limits follow the model: one
that is sure of its answers has small KLs, and small limits. How much more than that a quantized type costs does not
follow from the floor; the tables below have it.
"""

from dataclasses import dataclass

from parity.judgement import Rung
from parity.stages import LadderHeader, Measured, Spread
from pipeline.contract import Gate

EMBEDDINGS_FACTOR = {"F32": 2.0, "F16": 2.0, "Q8_0": 6.0}
"""mmproj type -> factor on the floor of the embeddings' relative error."""

# KL grows with the square of what is added to the logits, and the squares of independent errors add up: one sum.
BASE_FACTOR = 2.0
"""Share of the engine itself in the factor on the floor of the KL, whatever the types."""
TEXT_FACTOR = {
    "F32": 0.0,
    "F16": 0.0,
    "Q8_0": 3.0,
    "Q6_K": 10.0,
    "Q5_K_M": 40.0,
    "Q4_K_M": 150.0,
    "Q4_0": 300.0,
}
"""Type of the language half -> its share."""
MMPROJ_FACTOR = {"F32": 0.0, "F16": 0.0, "Q8_0": 3.0}
KV_FACTOR = {"f32": 0.0, "f16": 1.0, "q8_0": 2.0, "q5_1": 20.0, "q5_0": 20.0, "q4_1": 80.0, "q4_0": 80.0}
"""Type of the cache's keys, or of its values -> its share."""

LEAST_EMBEDDINGS = 1e-3
"""Relative error that is always allowed: F32 against F32 gives 3.2e-4, two ways to sum the same numbers."""
LEAST_KL = 1e-7
"""Nats that are always allowed: F32 against F32 gives 3e-8."""
LEAST_FLOATS = 1e-4
"""S2: (x / 255 - mean) / std rounded in float32 differs by 1e-7; one level of a byte makes 8e-3."""
LABELS_KL = 0.02
"""Nats over the labels that are allowed without a ladder, where no floor is known: rough."""
GENERATION_SHARE = 0.01
"""Images with an equal label that may have other generated tokens."""
SHARE_BEYOND = 0.25
"""Share of the images that may be beyond their own limit. The median alone would let two fifths be broken."""


@dataclass(frozen=True)
class Limits:
    """For the median over the images, and for one image on its own."""

    embeddings: float
    embeddings_each: float
    logits: float
    logits_each: float


def limits_of(header: LadderHeader, gate: Gate) -> Limits:
    """The limits for what was compared.

    One image may be as much beyond the median's limit as the floor's 95th percentile is beyond the floor's median: the
    spread over the images is the model's own, and the 95th does not hang on a single sample as the largest does. A type
    that no table has takes the table's greatest factor.
    """
    floor = header.floor
    embeddings = max(gate.noise_factor * embeddings_factor(header) * floor.embeddings_error.median, LEAST_EMBEDDINGS)
    logits = max(gate.noise_factor * logits_factor(header) * floor.logits_kl.median, LEAST_KL)
    return Limits(
        embeddings=embeddings,
        embeddings_each=embeddings * _spread(floor.embeddings_error),
        logits=logits,
        logits_each=logits * _spread(floor.logits_kl),
    )


def embeddings_factor(header: LadderHeader) -> float:
    """On the floor's median relative error."""
    return _of(EMBEDDINGS_FACTOR, header.mmproj_type)


def logits_factor(header: LadderHeader) -> float:
    """On the floor's median KL."""
    keys, _, values = header.kv_type.partition("/")
    cache = _of(KV_FACTOR, keys) + _of(KV_FACTOR, values or keys)
    return BASE_FACTOR + _of(TEXT_FACTOR, header.text_type) + _of(MMPROJ_FACTOR, header.mmproj_type) + cache


def _of(table: dict[str, float], name: str) -> float:
    return table.get(name, max(table.values()))


def _spread(floor: Spread) -> float:
    return max(floor.p95 / floor.median, 1.0) if floor.median > 0 else 1.0


def embeddings_comparable(row: Measured) -> bool:
    """Whether the earlier stages left embeddings of one shape."""
    return row.tiles[0] == row.tiles[1] and row.tokens_equal


def parted_at(row: Measured, limits: Limits) -> Rung | None:
    """The first rung, S0 to S6, at which this image alone is beyond what is allowed."""
    if row.decoded_equal is False:
        return "S0"
    if not row.pixels_equal:
        return "S1"
    if not tiles_equal(row):
        return "S2"
    if not row.tokens_equal:
        return "S3"
    if row.embeddings_error is None or row.embeddings_error > limits.embeddings_each:
        return "S4"
    if row.logits_kl is None or row.logits_kl > limits.logits_each:
        return "S5"
    return None if row.generated_equal else "S6"


def tiles_equal(row: Measured) -> bool:
    """S2: as many pictures, the same bytes, the same floats."""
    return (
        row.tiles[0] == row.tiles[1]
        and row.tiles_bytes == 0
        and row.tiles_floats is not None
        and row.tiles_floats <= LEAST_FLOATS
    )
