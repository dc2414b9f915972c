"""How far apart the sides are where they cannot be equal: embeddings and logits, held against the noise floor.

Logits are judged, roughly, from the two sides' rows where no ladder was walked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from parity.compare.ladder import Ladder, Measured, Spread
from parity.judge.gates.common import NO_LADDER, Pair, greatest, measured_rows, named, result
from parity.judge.gates.limits import LABELS_KL, SHARE_BEYOND, embeddings_comparable, tiles_equal
from parity.judge.verdict import GateResult, Limits
from parity.results import label_kl
from pipeline.contract import Gate


@dataclass(frozen=True)
class _Words:
    """What a gate of a distance says."""

    stage: str
    metric: str
    unit: str
    not_finite: tuple[str, str]
    too_far: tuple[str, str]


_EMBEDDINGS = _Words(
    stage="embeddings",
    metric="median relative error of the picture's embeddings",
    unit="",
    not_finite=(
        "the vision half's arithmetic overflows, or its weights hold values that are not finite",
        "export the mmproj as F32 instead of F16, and look for inf and nan in the merged weights",
    ),
    too_far=(
        "the tiles are the same, so the vision half differs: a stale mmproj, its weights, or its layer-norm epsilon",
        "export the mmproj again from the merged model, with layer_norm_eps written into its config; if it stays red,"
        " export it as F32: green then means its quantization",
    ),
)
_LOGITS = _Words(
    stage="logits",
    metric="median KL of the next token over the vocabulary",
    unit=" nats",
    not_finite=(
        "the language half's arithmetic overflows, or its weights hold values that are not finite",
        "export with another type (F32 instead of F16), or run with a KV cache of type f16, to find the part",
    ),
    too_far=(
        "the picture's embeddings agree, so the language half differs: an adapter dropped in the merge or the export,"
        " swapped tensors, too coarse a quantization, or the KV cache's type",
        "export to F16 and run with a KV cache of type f16: red as well means the wrong weights (merge and export"
        " again), green means the quantization",
    ),
)

_ALONG = replace(_LOGITS, stage="generation", metric="median over the answers of the mean KL of a token")
_LARGEST = replace(
    _LOGITS, metric="median of the largest logit difference, in standard deviations", unit=" standard deviations"
)


def embeddings(ladder: Ladder | None, limits: Limits | None) -> GateResult:
    """S4: what the vision half made of the picture, as near as the noise floor and the types allow."""
    rows = measured_rows(ladder)
    if not ladder or not limits or not rows:
        return result("embeddings", "not measured", NO_LADDER)
    comparable = [row for row in rows if embeddings_comparable(row)]
    if not comparable:
        return result("embeddings", "not measured", "nothing to compare: tiles or tokens differ in every image")
    cosine = min((row.embeddings_cosine for row in comparable if row.embeddings_cosine is not None), default=None)
    more = "" if cosine is None else f"; smallest cosine of a token {cosine:.6f}"
    return _distance(
        _EMBEDDINGS,
        [(row.embeddings_error, row) for row in comparable],
        (limits.embeddings, limits.embeddings_each),
        ladder.header.floor.embeddings_error,
        more,
        earlier=None if all(tiles_equal(row) for row in comparable) else "tiles",
    )


def logits(pairs: Sequence[Pair], ladder: Ladder | None, limits: Limits | None, gate: Gate) -> GateResult:
    """S5: the next token's distribution, as near as the noise floor and the types allow."""
    if broken := _broken_labels(pairs):
        return broken
    rows = measured_rows(ladder)
    if not ladder or not limits or not rows:
        return _label_logits(pairs, gate)
    top = sum(not row.logits_top1_equal for row in rows)
    over_labels = [row.logits_kl_labels for row in rows if row.logits_kl_labels is not None]
    largest = [row.logits_max for row in rows if row.logits_max is not None]
    more = f"; the most likely token differs in {top} of {len(rows)}"
    if over_labels:
        more += f"; KL over the labels {median(over_labels):.2g}"
    if largest:
        more += f"; largest logit difference {max(largest):.2g} standard deviations"
    errors = [math.inf if row.embeddings_error is None else row.embeddings_error for row in rows]
    earlier = "embeddings" if median(errors) > limits.embeddings else None
    by_kl = _distance(
        _LOGITS,
        [(row.logits_kl, row) for row in rows],
        (limits.logits, limits.logits_each),
        ladder.header.floor.logits_kl,
        more,
        earlier,
    )
    if by_kl.red:
        return by_kl
    # A model that is sure of its answer has a small KL whatever happens to the other tokens' logits.
    by_largest = _distance(
        _LARGEST,
        [(row.logits_max, row) for row in rows],
        (limits.largest, limits.largest_each),
        ladder.header.floor.logits_max,
        f"; median KL {by_kl.value:.2g} nats (limit {by_kl.limit:.2g}){more}",
        earlier,
    )
    return by_largest if by_largest.red else by_kl


def along(ladder: Ladder | None, limits: Limits | None) -> GateResult:
    """S6 of open answers: the distributions along the reference's own answer, as near as the floor and types allow.

    Equal words do not show it: a padded picture may give the same answer and a KL a thousand times too large.
    """
    rows = [row for row in measured_rows(ladder) if row.answer]
    if not ladder or not limits or limits.answer is None or limits.answer_each is None or not rows:
        return result(
            "generation",
            "undecided",
            "how far the sides are apart along the answers is not known",
            NO_LADDER if not rows else "the ladder's noise floor does not cover answers, so there is no limit for them",
            "run `parity check` again: it measures the floor and follows each answer",
        )
    assert ladder.header.floor.answer_kl is not None  # the limits follow from it
    parted = sum(row.answer.diverges_at is not None for row in rows if row.answer)
    largest = max((row.answer.kl_largest or 0.0 for row in rows if row.answer), default=0.0)
    kls = [math.inf if row.logits_kl is None else row.logits_kl for row in rows]
    return _distance(
        _ALONG,
        [(row.answer.kl_mean, row) for row in rows if row.answer],
        (limits.answer, limits.answer_each),
        ladder.header.floor.answer_kl,
        f"; largest of a token {largest:.2g}; {parted} of {len(rows)} answers diverge somewhere",
        earlier="logits" if median(kls) > limits.logits else None,
    )


def _broken_labels(pairs: Sequence[Pair]) -> GateResult | None:
    """Red where a side's probability of a label is no number, whatever else was measured."""
    broken = [a for a, b in pairs if None in {*a.label_logprobs.values(), *b.label_logprobs.values()}]
    if not broken:
        return None
    return result(
        "logits",
        "red",
        f"{len(broken)} of {len(pairs)} images give log-probabilities of the labels that are not finite,"
        f" {named([row.image_id for row in broken])}",
        *_LOGITS.not_finite,
        samples=len(pairs),
        beyond=len(broken),
    )


def _distance(
    words: _Words,
    measured: Sequence[tuple[float | None, Measured]],
    limits: tuple[float, float],
    floor: Spread,
    more: str,
    earlier: str | None,
) -> GateResult:
    """Red: a value that is no number, a median beyond its limit, or many images beyond their own.

    ``earlier``: the stage at which the inputs of this one differ already.
    """
    limit, each = limits
    n = len(measured)
    broken = [row for value, row in measured if value is None]
    finite = [(value, row) for value, row in measured if value is not None]
    beyond = [row for value, row in finite if value > each]
    middle = median(value for value, _ in finite) if finite else None
    numbers: dict[str, Any] = {
        "metric": words.metric,
        "value": middle,
        "limit": limit,
        "floor": floor.median,
        "samples": n,
        "beyond": len(beyond) + len(broken),
        "worst": greatest([(value, row.image_id, row.key) for value, row in finite]),
    }
    if broken:
        detail = (
            f"{len(broken)} of {n} images give values that are not finite, {named([row.image_id for row in broken])}"
        )
        return result(words.stage, "red", detail, *words.not_finite, **numbers)
    assert middle is not None  # at least one image, none broken
    detail = f"median {middle:.2g}{words.unit}, {len(beyond)} of {n} images beyond {each:.2g} on their own{more}"
    if middle <= limit and len(beyond) <= SHARE_BEYOND * n:
        return result(words.stage, "green", detail, **numbers)
    cause, fix = words.too_far
    if earlier:
        cause, fix = f"the {earlier} differ already: this only follows", f"fix the {earlier} first"
    return result(words.stage, "red", detail, cause, fix, **numbers)


def _label_logits(pairs: Sequence[Pair], gate: Gate) -> GateResult:
    """Without a ladder: KL over the labels, from the log-probabilities in the rows."""
    found = [(label_kl(a, b), a) for a, b in pairs if len(a.label_logprobs.keys() & b.label_logprobs.keys()) > 1]
    if not found:
        return result("logits", "not measured", "a side has no log-probabilities of the labels, and " + NO_LADDER)
    finite = [(value, row) for value, row in found if value is not None]  # all: null was red before
    limit = LABELS_KL * gate.noise_factor
    middle = median(value for value, _ in finite)
    beyond = sum(value > limit for value, _ in finite)
    numbers: dict[str, Any] = {
        "metric": "median KL of the next token over the labels",
        "value": middle,
        "limit": limit,
        "samples": len(found),
        "beyond": beyond,
        "worst": greatest([(value, row.image_id, row.key) for value, row in finite]),
    }
    detail = f"median {middle:.2g} nats over the labels, {beyond} of {len(found)} images beyond the limit; {NO_LADDER}"
    if middle <= limit:
        return result("logits", "green", detail, **numbers)
    cause = (
        "the sides are not sure of the same labels: an adapter dropped in the merge or the export, an mmproj of another"
        " model, or too coarse a quantization"
    )
    return result("logits", "red", detail, cause, _LOGITS.too_far[1], **numbers)
