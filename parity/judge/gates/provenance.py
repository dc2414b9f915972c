"""Whether two sides can be compared at all: what they are, what they say of themselves, and whether files contradict
one another. What is red here makes the verdict REFUSED.

Each check returns what it found, with its cause and what to do, or None; the first that finds something decides.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from parity.compare.ladder import Ladder, Measured
from parity.judge.gates.common import Pair, named, result, short
from parity.judge.verdict import GateResult
from parity.results import Header, Results, Row, label_kl
from parity.terms import CheckTerms, Terms, cache_types, channel_order

LLAMA_KEYS = ("llama-cpp-python", "llama_commit", "llama.cpp")
"""The versions that say which llama.cpp a side knows."""
ORDER = ("hf", "llamacpp")
"""Sides from the trained model on; any other side comes behind them. A reference stands before what it judges."""
KL_TOLERANCE = 1e-3
"""Relative, between a ladder's KL over the labels and that of the rows: an image that is run again where a ladder was
lost may differ in its last digits (1e-5 nats where a batch was filled otherwise). Measured: 0 in 300
of 300 images of an undisturbed run, and of one whose ladder was lost."""
LEAST_KL = 1e-6
"""Nats that are always allowed."""
MOST_PROBABILITY = 1.001
"""Of all labels together. Measured: 0.995 at most in 600 rows."""
WIDEST_FLOOR = {"embeddings_error": 1.0, "logits_kl": 1.0, "logits_max": 3.0}
"""Median of a noise floor at which bfloat16 alone leaves nothing of the signal: an error as large as the embeddings,
one nat, three standard deviations. Measured with embedded:tiny trained: 0.002, 1e-5 and 0.02."""


@dataclass(frozen=True)
class Finding:
    """Why two sides cannot be compared."""

    detail: str
    cause: str
    fix: str


@dataclass(frozen=True)
class Case:
    """All that there is to compare."""

    reference: Results
    candidate: Results
    terms: Terms
    pairs: Sequence[Pair]
    ladder: Ladder | None

    @property
    def headers(self) -> tuple[Header, Header]:
        """Reference's and candidate's."""
        return self.reference.header, self.candidate.header


def provenance(case: Case) -> GateResult:
    """Two different sides mean the contract given, the same dataset, the same weights and the same llama.cpp, say so,
    and nothing that they or the ladder say contradicts the rest."""
    for check in CHECKS:
        if found := check(case):
            return result("provenance", "red", found.detail, found.cause, found.fix)
    ours, theirs = case.headers
    same = [f"contract {short(case.terms.digest)}", f"dataset {short(ours.dataset_sha256)}"]
    same += [f"weights {short(ours.weights_sha256)}"] if ours.weights_sha256 else []
    stated = ours.versions.keys() & theirs.versions.keys()
    same += [f"{key} {ours.versions[key]}" for key in LLAMA_KEYS if key in stated]
    return result("provenance", "green", "the same on both sides: " + ", ".join(same))


def _different_sides(case: Case) -> Finding | None:
    ours, theirs = case.headers
    if ours.side == theirs.side:
        return Finding(
            f"both files hold answers of {ours.shown}",
            "one file was given twice, or two runs of one side",
            "give the reference's results and the candidate's; `parity diff` compares two runs of one side",
        )
    places = [ORDER.index(side.side) if side.side in ORDER else len(ORDER) for side in (ours, theirs)]
    if places[1] < places[0]:
        return Finding(
            f"{theirs.shown} is to be judged by {ours.shown}",
            "the two files were given the wrong way round",
            f"give {theirs.shown}'s results first: the reference is what stands nearer to the trained model",
        )
    if ours.engine == theirs.engine and ours.device == theirs.device:
        return Finding(
            f"{ours.shown} and {theirs.shown} both ran {ours.engine} on the same machine",
            "one side's file was copied and its name changed",
            "run the other side; `parity diff` compares two runs of one engine",
        )
    return None


def _same_inputs(case: Case) -> Finding | None:
    ours, theirs = case.headers
    for side in (ours, theirs):
        if side.contract_sha256 != case.terms.digest:
            return Finding(
                f"{side.shown} ran under contract {short(side.contract_sha256)}, the one given is"
                f" {short(case.terms.digest)}",
                "the contract was changed after that side had run, or the wrong contract was given",
                f"run {side.shown} again under this contract, or judge with the contract it ran under",
            )
    if ours.dataset_sha256 != theirs.dataset_sha256:
        return Finding(
            f"{ours.shown} ran on dataset {short(ours.dataset_sha256)}, {theirs.shown} on"
            f" {short(theirs.dataset_sha256)}",
            "the dataset was made again or changed between the two runs",
            "run both sides on the same dataset",
        )
    if ours.split and theirs.split and ours.split != theirs.split:
        return Finding(
            f"{ours.shown} answered the {ours.split} images, {theirs.shown} the {theirs.split} images",
            "the sides were given different parts of the dataset",
            f"run {theirs.shown} again on the {ours.split} images",
        )
    return None


def _stated(case: Case) -> Finding | None:
    """What nobody says cannot be compared, and must not count as equal."""
    # A pair from somewhere else does not say which weights it was made from, and each picture has its own prompt.
    any_pair = isinstance(case.terms, CheckTerms)
    for results in (case.reference, case.candidate):
        side = results.header
        layouts = any_pair and all(_laid_out(row) for row in results.rows.values())
        missing = {
            "which files it ran (model)": not side.model,
            "which trained weights its files were made from (weights_sha256)": not side.weights_sha256 and not any_pair,
            "the versions of what ran (versions)": not side.versions,
            "how its engine was set up (runtime)": not side.runtime,
            "the prompt that it was given (prompt_token_ids)": not side.prompt_token_ids and not layouts,
            "where in the prompt the picture stands (image_slots)": not side.image_slots and not layouts,
            "any text of its prompt (prompt_token_ids)": set(side.prompt_token_ids) <= {-1} and not layouts,
            "which llama.cpp ran (versions)": side.engine == "llama.cpp" and not side.versions.keys() & set(LLAMA_KEYS),
        }
        for what, lacks in missing.items():
            if lacks:
                return Finding(
                    f"{side.shown}'s results do not say {what}",
                    "the file was not written by this project's side, or was changed",
                    f"run {side.shown} again, from files that were exported here",
                )
        ids, slots = side.prompt_token_ids, side.image_slots
        pictures = {place for place, token in enumerate(ids) if token == -1}
        if {place for start, length in slots for place in range(start, min(start + length, len(ids) + 1))} != pictures:
            return Finding(
                f"{side.shown}'s image_slots are not the picture's positions in its prompt_token_ids",
                "the header was changed, or what wrote it counts differently",
                f"run {side.shown} again",
            )
    return None


def _as_fed(case: Case) -> Finding | None:
    """A side that states another channel order than the contract's was given other bytes, so the canvases differ."""
    order = channel_order(case.terms)
    if any(a.rgb_sha256 != b.rgb_sha256 for a, b in case.pairs):
        return None  # the gate `pixels` has more to say
    for side in case.headers:
        if side.runtime.get("fed", order) != order:
            return Finding(
                f"{side.shown} says that it was fed {str(side.runtime['fed']).upper()}, the contract has"
                f" {order.upper()}, and both sides' canvases are the same bytes",
                "the header was changed, or both sides were not fed as the contract says",
                f"run {side.shown} again under this contract",
            )
    return None


def _same_weights(case: Case) -> Finding | None:
    ours, theirs = case.headers
    known = ours.weights_sha256 and theirs.weights_sha256
    if ours.weights_sha256 != theirs.weights_sha256 and (known or not isinstance(case.terms, CheckTerms)):
        return Finding(
            f"{ours.shown}'s files were made from weights {short(ours.weights_sha256 or '')}, {theirs.shown}'s from"
            f" {short(theirs.weights_sha256 or '')}",
            "one side has the files of another training",
            f"export the weights that {ours.shown} ran, and run {theirs.shown} again",
        )
    for key in LLAMA_KEYS:
        a, b = ours.versions.get(key), theirs.versions.get(key)
        if a and b and a != b:
            return Finding(
                f"{ours.shown} was made with {key} {a}, {theirs.shown} with {key} {b}",
                "llama.cpp was changed between the two runs",
                "build both from the one pinned llama.cpp, and run the older side again",
            )
    return None


def _own_images(case: Case) -> Finding | None:
    """A dataset has each picture once, under one id. The candidate may be fed one picture for all: that is for `pixels`
    to say."""
    side = case.reference
    # One picture may be asked several questions.
    for what in ("image_id",) if isinstance(case.terms, CheckTerms) else ("rgb_sha256", "image_id"):
        seen: dict[str, Row] = {}
        for row in side.rows.values():
            first = seen.setdefault(getattr(row, what), row)
            if first is not row:
                return Finding(
                    f"{side.header.shown} has two rows with the {what} of {row.image_id} (keys {short(first.key)} and"
                    f" {short(row.key)})",
                    "rows were copied under other keys",
                    f"run {side.header.shown} again",
                )
    return None


def _possible(case: Case) -> Finding | None:
    """The labels' answers exclude one another under ``contains``, so their probabilities sum to 1 at most."""
    if case.terms.answer_rule != "contains":
        return None
    for side in (case.reference, case.candidate):
        for row in side.rows.values():
            total = sum(math.exp(value) for value in row.label_logprobs.values() if value is not None)
            if total > MOST_PROBABILITY:
                return Finding(
                    f"{side.header.shown}'s label_logprobs of {row.image_id} are probabilities that sum to {total:.3f}",
                    "the file was changed, or what wrote it measures differently",
                    f"run {side.header.shown} again",
                )
    return None


def _copied(case: Case) -> Finding | None:
    """Two engines never agree to the last bit: they sum in other orders, the one in float32, the other quantized."""
    ours, theirs = case.headers
    if ours.engine == theirs.engine:
        return None
    copies = [
        a.image_id
        for a, b in case.pairs
        if (len(set(a.label_logprobs.values()) - {None, 0.0}) > 1 and a.label_logprobs == b.label_logprobs)
        or (len({logit for _, logit in a.top_logits} - {None}) > 1 and a.top_logits == b.top_logits)
    ]
    if not copies:
        return None
    return Finding(
        f"{theirs.shown}'s log-probabilities are {ours.shown}'s to the last bit in {len(copies)} of {len(case.pairs)}"
        f" images, {named(copies)}",
        f"rows of {ours.shown} were copied into {theirs.shown}'s results: {ours.engine} and {theirs.engine} never agree"
        " so far",
        f"run {theirs.shown} again",
    )


def _ladder(case: Case) -> Finding | None:
    """The ladder is held against both files: it must be of them, of all of them, and say what they say."""
    if case.ladder is None:
        return None
    for detail in _contradictions(case, case.ladder):
        return Finding(
            f"the ladder contradicts the results: {detail}",
            "the ladder, or one of the two files, was changed or is of another run",
            "run `parity run` again",
        )
    return None


def _contradictions(case: Case, ladder: Ladder) -> Iterator[str]:
    ours, header = case.reference.header, ladder.header
    if header.contract_sha256 != ours.contract_sha256:
        yield f"it is of contract {short(header.contract_sha256)}, they of {short(ours.contract_sha256)}"
    if header.dataset_sha256 != ours.dataset_sha256:
        yield f"it is of dataset {short(header.dataset_sha256)}, they of {short(ours.dataset_sha256)}"
    cache = cache_types(case.terms)
    if header.kv_type != cache:
        yield f"it is of a KV cache of {header.kv_type}, and the contract has {cache}"
    for name, widest in WIDEST_FLOOR.items():
        median = getattr(header.floor, name).median
        if median > widest:
            yield f"its noise floor of {name} is {median:g}, and with more than {widest:g} nothing could be told"
    lost = [row.image_id for row in case.reference.rows.values() if row.key not in ladder.rows]
    if lost:
        yield f"it has no line of {len(lost)} of {len(case.pairs)} images, {named(lost)}"
    slots = tuple(len(side.image_slots) for side in case.headers)
    for line in ladder.rows.values():
        if line.tiles and slots != (0, 0) and line.tiles[0] == line.tiles[1] and line.tiles != slots:
            yield f"it has {line.tiles} pictures of {line.image_id}, and the prompts have slots for {slots}"
    for a, b in case.pairs:
        if wrong := _line_wrong(a, b, ladder.rows[a.key]):
            yield wrong


def _line_wrong(a: Row, b: Row, line: Measured) -> str | None:
    """What a line says otherwise than the rows of its image."""
    kl = label_kl(a, b) if a.label_logprobs and a.label_logprobs.keys() == b.label_logprobs.keys() else None
    said: dict[str, tuple[object, object]] = {
        "image_id": (line.image_id, a.image_id),
        "pixels_equal": (line.pixels_equal, a.rgb_sha256 == b.rgb_sha256),
        "generated_equal": (line.generated_equal, a.generated_token_ids == b.generated_token_ids),
        "label_equal": (line.label_equal, a.label == b.label),
        "tokens_first": (line.tokens_first is None, line.tokens_equal),
        "tiles_bytes_share": (line.tiles_bytes_share is None, line.tiles_bytes is None),
        "logits_kl_labels": (line.logits_kl_labels is None, kl is None),
    }
    if a.layout and b.layout:
        said["pictures"] = (line.pictures, (_positions(a), _positions(b)))
    if line.answer:
        said["answer"] = (line.answer.diverges_at is None, a.generated_token_ids == b.generated_token_ids)
    for name, (stated, given) in said.items():
        if stated != given:
            return f"{name} of {a.image_id} is {getattr(line, name)!r} there"
    chosen = len(a.generated_token_ids) + (a.stop_reason == "end")
    if line.answer and line.answer.steps != chosen:
        return f"the answer to {a.image_id} has {line.answer.steps} tokens there, and the rows have {chosen}"
    if line.tiles_bytes is not None and (line.tiles_bytes == 0) != (line.tiles_bytes_share == 0):
        return f"tiles_bytes of {a.image_id} is {line.tiles_bytes}, with a share of {line.tiles_bytes_share:g} there"
    stated_kl = line.logits_kl_labels
    if kl is not None and stated_kl is not None and abs(stated_kl - kl) > LEAST_KL + KL_TOLERANCE * kl:
        return f"logits_kl_labels of {a.image_id} is {stated_kl:.3g} there, and the rows give {kl:.3g}"
    return None


def _positions(row: Row) -> int:
    """That a picture's embeddings take in a row's own prompt."""
    return sum(part for part in row.layout or () if isinstance(part, int))


def _laid_out(row: Row) -> bool:
    """Whether a row's own prompt has text and a picture."""
    return {type(part) for part in row.layout or ()} == {int, tuple}


CHECKS: tuple[Callable[[Case], Finding | None], ...] = (
    _different_sides,
    _same_inputs,
    _stated,
    _as_fed,
    _same_weights,
    _own_images,
    _possible,
    _copied,
    _ladder,
)
"""In the order in which they are tried."""
