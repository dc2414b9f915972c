"""What the page knows of each image: both rows side by side, the kind of a flip, where the outputs diverged.

The columns that the page's script reads are made here; one list a property, so that ten thousand images stay small.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from parity.compare.ladder import RUNGS, Ladder, Measured, Rung
from parity.judge.gates.limits import parted_at
from parity.judge.verdict import Verdict
from parity.results import Results, Row, display_name

Kind = Literal["same", "lost", "won", "other"]
"""Equal answers; right to wrong; wrong to right; wrong to other wrong."""
KINDS: dict[Kind, str] = {
    "lost": "right → wrong",
    "won": "wrong → right",
    "other": "wrong → other wrong",
    "same": "same answer",
}
NO_ANSWER = "no answer"


@dataclass(frozen=True)
class Pair:
    """One image on both sides."""

    index: int
    """Its place among the pairs, which are sorted by image id, then key."""
    reference: Row
    candidate: Row
    measured: Measured | None
    parted: Rung | None
    """First rung beyond its limit; None where none is but the answer, or where the ladder was not walked."""

    @property
    def key(self) -> str:
        return self.reference.key

    @property
    def kind(self) -> Kind:
        a, b = self.reference, self.candidate
        if a.label == b.label:
            return "same"
        return "lost" if a.correct else "won" if b.correct else "other"


def pair_up(verdict: Verdict, reference: Results, candidate: Results, ladder: Ladder | None) -> list[Pair]:
    """The images that both sides answered, by image id."""
    rows = ladder.rows if ladder else {}
    stated: dict[str, Rung | None] = {}
    for flips in (verdict.flips.right_to_wrong, verdict.flips.wrong_to_right, verdict.flips.wrong_to_other_wrong):
        stated |= {flip.key: flip.parted_at for flip in flips.examples}
    keys = sorted(reference.rows.keys() & candidate.rows.keys(), key=lambda key: (reference.rows[key].image_id, key))
    return [
        Pair(
            index=index,
            reference=reference.rows[key],
            candidate=candidate.rows[key],
            measured=rows.get(key),
            parted=stated.get(key)
            or (parted_at(rows[key], verdict.limits) if verdict.limits and key in rows else None),
        )
        for index, key in enumerate(keys)
    ]


def probabilities(row: Row, labels: Sequence[str]) -> list[float | None]:
    """Softmax of a row's label log-probabilities over the labels that have one, 0..1."""
    values = [row.label_logprobs.get(label) for label in labels]
    known = [value for value in values if value is not None]
    if not known:
        return [None] * len(values)
    top = max(known)
    total = sum(math.exp(value - top) for value in known)
    return [None if value is None else math.exp(value - top) / total for value in values]


def margin(row: Row) -> float | None:
    """Log-probability of the truth minus that of the best other label, nats: above 0 where the truth is likeliest."""
    truth = row.label_logprobs.get(row.truth) if row.truth else None
    others = [value for label, value in row.label_logprobs.items() if label != row.truth and value is not None]
    return truth - max(others) if truth is not None and others else None


def columns(pairs: Sequence[Pair], verdict: Verdict, saw: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """The page's data about every image, as plain lists; ``saw``: see :mod:`parity.report.pictures`."""
    names = list(verdict.labels)
    for pair in pairs:  # a label that the verdict does not know is shown all the same
        for label in (pair.reference.truth, pair.reference.label, pair.candidate.label):
            if label is not None and label not in names:
                names.append(label)
    place: dict[str | None, int] = {None: -1} | {name: number for number, name in enumerate(names)}
    texts: dict[str, int] = {}
    rungs = list(RUNGS)
    sides = [[pair.reference for pair in pairs], [pair.candidate for pair in pairs]]
    return {
        "labels": names,
        "scored": len(verdict.labels),
        "sides": [display_name(verdict.reference.side), display_name(verdict.candidate.side)],
        "rungs": [[rung, name] for rung, name in RUNGS.items()],
        "id": [pair.reference.image_id for pair in pairs],
        "key": [pair.key[:16] for pair in pairs],
        "truth": [place[pair.reference.truth] for pair in pairs],
        "answer": [[place[row.label] for row in side] for side in sides],
        "text": [[texts.setdefault(row.text, len(texts)) for row in side] for side in sides],
        "logprobs": [
            [_short(row.label_logprobs.get(label), 4) for row in side for label in verdict.labels] for side in sides
        ],
        "parted": [rungs.index(pair.parted) if pair.parted else -1 for pair in pairs],
        "saw": ["".join(saw.get(pair.key, ("c", "c"))[side] for pair in pairs) for side in (0, 1)],
        "measured": [_measured(pair.measured) for pair in pairs] if any(pair.measured for pair in pairs) else None,
        "texts": list(texts),
    }


def _short(value: float | None, digits: int) -> float | None:
    """The value to so many significant digits; None where it is no finite number."""
    return float(f"{value:.{digits}g}") if value is not None and math.isfinite(value) else None


def _measured(m: Measured | None) -> list[Any] | None:
    """In the order in which the page's script reads it."""
    if m is None:
        return None
    return [
        m.decoded_equal,
        m.pixels_equal,
        *(m.tiles or (None, None)),
        m.tiles_bytes,
        _short(m.tiles_bytes_share, 3),
        _short(m.tiles_floats, 3),
        m.tokens_equal,
        m.tokens_first,
        _short(m.embeddings_error, 3),
        _short(m.embeddings_cosine, 6),
        _short(m.logits_kl, 3),
        _short(m.logits_kl_labels, 3),
        m.logits_top1_equal,
        _short(m.logits_max, 3),
        m.generated_equal,
        m.label_equal,
    ]
