"""What the ladder's numbers may be: the measured noise floor times a factor that follows from the exported types.

The floor is Hugging Face in bfloat16 against float32 on samples of the same run, so the limits follow the model: one
that is sure of its answers has small KLs, and small limits. How much more than that a quantized type costs does not
follow from the floor; the tables below have it.
"""

import math

from parity.compare.ladder import LadderHeader, Measured, Rung, Spread
from parity.judge.verdict import Limits
from pipeline.contract import Gate

# Measured as multiples of the floor (medians), each part alone in an F32 model with an F32 cache, on embedded:tiny
# trained (96 images) | embedded:tiny untrained with tripled weights, much the coarsest model known here (48) |
# SmolLM2-135M with a vision half, a little trained (10). What is allowed is somewhat above the greatest.
EMBEDDINGS_FACTOR = {"F32": 1.0, "F16": 1.0, "Q8_0": 3.0}
"""mmproj type -> factor on the floor of the embeddings' relative error.

Measured: F32 0.014 | 0.055 | 0.038, F16 0.020 | 0.088 | 0.073, Q8_0 0.42 | 1.9 | 1.8."""

# KL grows with the square of what is added to the logits, and the squares of independent errors add up: one sum.
BASE_FACTOR = 1.0
"""Share of the engine itself in the factor on the floor of the KL, whatever the types: 3e-6 | 9e-4 | 2e-6 with F32
throughout, and room for what the parts do to one another."""
TEXT_FACTOR = {
    "F32": 0.0,
    "F16": 0.1,  # 0.001 | 0.006 | 0.002
    "Q8_0": 6.0,  # 0.65 | 4.7 | 1.7
    "Q6_K": 8.0,  # tiny's rows are too short for K types, and fall back to Q8_0; 2.4 with the K type where it fits
    "Q5_K_M": 120.0,  # as Q5_1 1.1 | 94; 100 there
    "Q4_K_M": 130.0,  # as Q5_0 1.1 | 105; 29 there
    "Q4_0": 800.0,  # 1.8 | 660 | 86
}
"""Type of the language half -> its share."""
MMPROJ_FACTOR = {"F32": 0.0, "F16": 0.1, "Q8_0": 1.5}
"""Type of the vision half -> its share. Measured: F16 4e-6 | 0.003 | 2e-5, Q8_0 0.0015 | 1.1 | 0.012."""
KV_FACTOR = {"f32": 0.0, "f16": 0.02, "q8_0": 0.1, "q5_1": 2.5, "q5_0": 3.5, "q4_1": 11.0, "q4_0": 16.0}
"""Type of the cache's keys, or of its values -> its share. Measured, both together, with flash attention: f16
0.0002 | 0.02 | 0.002, q8_0 0.004 | 0.08 | 0.13, q5_1 0.22 | 3.2 | 3.4, q5_0 0.24 | 4.3 | 5.1, q4_1 0.58 | 14 | 17,
q4_0 1.3 | 18 | 24."""
LARGEST_FACTOR = 1.3
"""On the root of the KL's factor: the limit of the largest logit difference, whose floor grows as the error itself.
Measured, shipped types (Q8_0, Q8_0, q4_0): 2.3 | 5.2 | 5.5 times the floor, where 1.3 times the root allows 8.3."""

LEAST_EMBEDDINGS = 1e-3
"""Relative error that is always allowed: F32 against F32 gives 3.4e-4 at most, two ways to sum the same numbers."""
LEAST_KL = 1e-6
"""Nats that are always allowed: F32 against F32 gives 1.4e-7 at most."""
LEAST_LARGEST = 5e-3
"""Standard deviations that are always allowed: F32 against F32 gives 1e-3 at most."""
LEAST_FLOATS = 1e-4
"""S2: (x / 255 - mean) / std rounded in float32 differs by 1e-7; one level of a byte makes 8e-3."""
LABELS_KL = 0.02
"""Nats over the labels that are allowed without a ladder, where no floor is known. Measured, shipped types: median
4.4e-6 | 2.2e-3 | 0.086 (rightly beyond it: there a cache of Q4_0 changes every second answer); a dropped adapter gives
above 1."""
DECODERS_LEVELS = 40
"""Levels of 255 that two decoders may make of one JPEG. Measured, Pillow's libjpeg-turbo against libmtmd's stb_image: 3
at most in 180 photos, as in 42 saved again with chroma 4:4:4 or 4:2:0; 27 with 4:2:2."""
GENERATION_SHARE = 0.01
"""Images with an equal label that may have other generated tokens."""
SHARE_BEYOND = 0.25
"""Share of the images that may be beyond their own limit. The median alone would let two fifths be broken."""


def limits_of(header: LadderHeader, gate: Gate) -> Limits:
    """The limits for what was compared.

    One image may be as much beyond the median's limit as the floor's 95th percentile is beyond the floor's median: the
    spread over the images is the model's own, and the 95th does not hang on a single sample as the largest does. A type
    that no table has takes the table's greatest factor.
    """
    floor = header.floor
    embeddings = embeddings_limit(floor.embeddings_error.median, header.mmproj_type, gate.noise_factor)
    factor = logits_factor(header.text_type, header.mmproj_type, header.kv_type)
    logits = logits_limit(floor.logits_kl.median, factor, gate.noise_factor)
    largest = max(gate.noise_factor * LARGEST_FACTOR * math.sqrt(factor) * floor.logits_max.median, LEAST_LARGEST)
    answer = logits_limit(floor.answer_kl.median, factor, gate.noise_factor) if floor.answer_kl else None
    return Limits(
        embeddings=embeddings,
        embeddings_each=embeddings * _spread(floor.embeddings_error),
        logits=logits,
        logits_each=logits * _spread(floor.logits_kl),
        largest=largest,
        largest_each=largest * _spread(floor.logits_max),
        answer=answer,
        answer_each=answer * _spread(floor.answer_kl) if answer is not None and floor.answer_kl else None,
    )


def embeddings_limit(floor: float, mmproj_type: str, noise_factor: float) -> float:
    """Of the embeddings' median relative error, where bfloat16 alone makes ``floor``."""
    return max(noise_factor * _of(EMBEDDINGS_FACTOR, mmproj_type) * floor, LEAST_EMBEDDINGS)


def logits_factor(text_type: str, mmproj_type: str, kv_type: str) -> float:
    """On the floor's median KL. ``kv_type``: of keys and values, ``q4_0/q4_0``. An F32 half adds nothing."""
    keys, _, values = kv_type.partition("/")
    cache = _of(KV_FACTOR, keys) + _of(KV_FACTOR, values or keys)
    return BASE_FACTOR + _of(TEXT_FACTOR, text_type) + _of(MMPROJ_FACTOR, mmproj_type) + cache


def logits_limit(floor: float, factor: float, noise_factor: float) -> float:
    """Of the median KL, nats, where bfloat16 alone makes ``floor``."""
    return max(noise_factor * factor * floor, LEAST_KL)


def _of(table: dict[str, float], name: str) -> float:
    return table.get(name, max(table.values()))


def _spread(floor: Spread) -> float:
    return max(floor.p95 / floor.median, 1.0) if floor.median > 0 else 1.0


def embeddings_comparable(row: Measured) -> bool:
    """Whether the earlier stages left embeddings of one shape."""
    if row.pictures:  # tokens between a picture's rows may be text on one side and embeddings on the other
        return row.tokens_equal or row.pictures[0] == row.pictures[1]
    return row.tiles is not None and row.tiles[0] == row.tiles[1] and row.tokens_equal


def decoded_alike(row: Measured) -> bool:
    """S0: the same bytes, or as near as two JPEG decoders come."""
    return row.decoded_equal is not False or (row.decoded_apart is not None and row.decoded_apart <= DECODERS_LEVELS)


def parted_at(row: Measured, limits: Limits) -> Rung | None:
    """The first rung, S0 to S6, at which this image alone is beyond what is allowed."""
    if not decoded_alike(row):
        return "S0"
    if not row.pixels_equal:
        return "S1"
    if not tiles_equal(row):
        return "S2"
    if not row.tokens_equal or row.positions_equal is False:
        return "S3"
    if row.embeddings_error is None or row.embeddings_error > limits.embeddings_each:
        return "S4"
    if row.logits_kl is None or row.logits_kl > limits.logits_each:
        return "S5"
    if row.logits_max is None or row.logits_max > limits.largest_each:
        return "S5"
    if row.answer and limits.answer_each is not None:
        return "S6" if row.answer.kl_mean is None or row.answer.kl_mean > limits.answer_each else None
    return None if row.generated_equal else "S6"


def tiles_equal(row: Measured) -> bool:
    """S2: as many pictures, the same bytes, the same floats; true, too, where a side's pictures are not known."""
    return row.tiles is None or (
        row.tiles[0] == row.tiles[1]
        and row.tiles_bytes == 0
        and row.tiles_floats is not None
        and row.tiles_floats <= LEAST_FLOATS
    )
