"""The checks that lead to a verdict, in the order in which a picture becomes an answer.

Each compares one thing of two sides that answered the same images. The first that is red is where the sides part; what
comes after it is likely to be red because of it. Causes and fixes are likely ones: a gate sees results, not programs.
"""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import zip_longest

from parity.results import Results, Row
from pipeline.contract import Contract, Frozen

EXAMPLES = 3
"""How many images a gate's detail names."""

Pair = tuple[Row, Row]
"""Reference and candidate row of one image."""


class GateResult(Frozen):
    """One check's outcome."""

    stage: str
    passed: bool
    detail: str
    """What was found, with numbers."""
    cause: str = ""
    """One sentence: what most likely made it red; empty where the gate is green."""
    fix: str = ""
    """One sentence: what to do about it."""


def provenance(reference: Results, candidate: Results, contract: Contract) -> GateResult:
    """Both sides ran under the contract given, on the same dataset."""
    stage = "provenance"
    for side in (reference.header, candidate.header):
        if side.contract_sha256 != contract.digest:
            return GateResult(
                stage=stage,
                passed=False,
                detail=f"{side.side} ran under contract {_short(side.contract_sha256)}, the one given is"
                f" {_short(contract.digest)}",
                cause="the contract was changed after that side had run, or the wrong contract was given",
                fix=f"run {side.side} again under this contract, or judge with the contract it ran under",
            )
    ours, theirs = reference.header, candidate.header
    if ours.dataset_sha256 != theirs.dataset_sha256:
        return GateResult(
            stage=stage,
            passed=False,
            detail=f"{ours.side} ran on dataset {_short(ours.dataset_sha256)}, {theirs.side} on"
            f" {_short(theirs.dataset_sha256)}",
            cause="the dataset was made again or changed between the two runs",
            fix="run both sides on the same dataset",
        )
    detail = f"same contract {_short(contract.digest)}, same dataset {_short(ours.dataset_sha256)}"
    return GateResult(stage=stage, passed=True, detail=detail)


def pixels(reference: Results, candidate: Results, pairs: Sequence[Pair], contract: Contract) -> GateResult:
    """The bytes handed to the two models are equal, image by image, and are the dataset's where that can be told.

    A sample's key is the hash of its RGB canvas, so under ``channel_order: rgb`` it is what a model must be given.
    """
    stage, n = "pixels", len(pairs)
    names = (reference.header.side, candidate.header.side)
    unequal = [pair for pair in pairs if pair[0].rgb_sha256 != pair[1].rgb_sha256]
    rgb = contract.image.channel_order == "rgb"
    strays = {
        name: [pair for pair in pairs if rgb and pair[index].rgb_sha256 != pair[index].key]
        for index, name in enumerate(names)
    }
    if not unequal and not any(strays.values()):
        return GateResult(stage=stage, passed=True, detail=f"{n} of {n} canvases are the same bytes on both sides")
    if unequal:
        detail = f"{len(unequal)} of {n} canvases differ between the sides, {_examples(unequal)}"
    else:
        own = strays[names[0]]
        detail = f"{len(own)} of {n} canvases are the same bytes on both sides but not the dataset's, {_examples(own)}"
    for name, own in strays.items():
        if own and unequal:
            detail += f"; {name} was not given the dataset's canvas in {len(own)}"
    if len(unequal) == n or len(strays[names[0]]) == n:
        cause = "every image differs, as with a swapped channel order (RGB against BGR) or another letterbox"
        fix = "compare the contract's image.channel_order and image.resample with what that side does"
    else:
        cause = "only some images differ, as with another rounding in the letterbox or another image decoder"
        fix = "letterbox the images named with both sides and compare size, offset and first differing byte"
    return GateResult(stage=stage, passed=False, detail=detail, cause=cause, fix=fix)


def tokens(reference: Results, candidate: Results) -> GateResult:
    """Both sides lay the prompt out as the same token ids with the same picture slots."""
    stage = "tokens"
    ours, theirs = reference.header, candidate.header
    a, b = ours.prompt_token_ids, theirs.prompt_token_ids
    if len(ours.image_slots) != len(theirs.image_slots):
        return GateResult(
            stage=stage,
            passed=False,
            detail=f"tile plans differ: {ours.side} has {_pictures(ours.image_slots)}, {theirs.side} has"
            f" {_pictures(theirs.image_slots)}",
            cause="llama.cpp cuts by the mmproj's preproc_image_size, and that is not the contract's tile plan",
            fix="export again so that preproc_image_size follows the contract's tiling, or change the tiling and train",
        )
    # None stands for "ended before", which equals no token.
    for position, (x, y) in enumerate(zip_longest(a, b)):
        if x != y:
            return GateResult(
                stage=stage,
                passed=False,
                detail=f"the prompts differ first at position {position}: {ours.side} has {_token(x)}, {theirs.side}"
                f" has {_token(y)} ({len(a)} and {len(b)} tokens in all)",
                cause="the tokenizer, the prompt template or a beginning-of-sequence token is not the same",
                fix="compare the two tokenizers on the contract's prompt, and export from the folder that was trained",
            )
    for number, (slot, other) in enumerate(zip(ours.image_slots, theirs.image_slots, strict=True), start=1):
        if slot != other:
            return GateResult(
                stage=stage,
                passed=False,
                detail=f"picture {number} takes {slot[1]} positions from {slot[0]} on in {ours.side},"
                f" {other[1]} from {other[0]} on in {theirs.side}",
                cause="the sides disagree on how many positions a picture takes",
                fix="compare scale_factor and tile size in the model's config and in the mmproj",
            )
    return GateResult(stage=stage, passed=True, detail=f"the same {len(a)} tokens with {_pictures(ours.image_slots)}")


def answers(reference: Results, candidate: Results, contract: Contract) -> GateResult:
    """Each side's label is what the contract's answer rule reads out of its text."""
    stage = "answers"
    for results in (reference, candidate):
        wrong = [row for row in results.rows.values() if row.label != contract.parse_answer(row.text)]
        if wrong:
            row = wrong[0]
            return GateResult(
                stage=stage,
                passed=False,
                detail=f"{results.header.side} read {len(wrong)} of {len(results.rows)} answers otherwise than the"
                f" contract does, for example {row.image_id}: {row.text!r} as {row.label or 'no answer'}, not as"
                f" {contract.parse_answer(row.text) or 'no answer'}",
                cause="that side's rule for reading an answer is not the contract's answer_rule and labels",
                fix="give that side the contract's labels, in their order, and its answer_rule",
            )
    return GateResult(stage=stage, passed=True, detail=f"labels are read by the same rule ({contract.answer_rule})")


def accuracy(reference: Results, candidate: Results, pairs: Sequence[Pair], contract: Contract) -> GateResult:
    """The accuracies are at most the margin apart, either way: a much better candidate is another model, too.

    Compared in whole numbers and fractions, so that 3 of 100 images are exactly 3 points.
    """
    n = len(pairs)
    ours, theirs = (sum(pair[side].correct for pair in pairs) for side in (0, 1))
    # The shortest decimal that gives this float is what the contract's author wrote.
    margin = Fraction(str(contract.gate.margin_points))
    passed = abs(theirs - ours) * 100 <= margin * n
    points = (theirs - ours) * 100 / n
    detail = (
        f"{reference.header.side} {ours}, {candidate.header.side} {theirs} right of {n}: {points:+.2f} points,"
        f" {contract.gate.margin_points:g} are allowed either way"
    )
    if passed:
        return GateResult(stage="accuracy", passed=True, detail=detail)
    cause, fix = _why_inaccurate(reference, candidate, pairs)
    return GateResult(stage="accuracy", passed=False, detail=detail, cause=cause, fix=fix)


def _why_inaccurate(reference: Results, candidate: Results, pairs: Sequence[Pair]) -> tuple[str, str]:
    """(cause, fix) by what the answers of the worse side look like."""
    n = len(pairs)
    correct = [sum(pair[side].correct for pair in pairs) for side in (0, 1)]
    worse = 0 if correct[0] < correct[1] else 1
    name = (reference, candidate)[worse].header.side
    rows = [pair[worse] for pair in pairs]
    broken = sum(None in row.label_logprobs.values() for row in rows)
    if broken:
        return (
            f"{name} gave log-probabilities that are no numbers in {broken} of {n} images: its arithmetic overflows",
            "export with another type (F32 instead of F16), or run with a KV cache of type f16, to find the part",
        )
    silent = [row for row in rows if row.label is None]
    others_silent = sum(pair[1 - worse].label is None for pair in pairs)
    if (len(silent) - others_silent) * 10 > n:
        return (
            f"{name} gives no label in {len(silent)} of {n} images (it writes {silent[0].text[:40]!r}), as a model"
            " without its adapter does",
            "see that the adapter was merged before the export and that the answer ends with the end token",
        )
    label, count = Counter(row.label for row in rows).most_common(1)[0]
    other_count = sum(pair[1 - worse].label == label for pair in pairs)
    if count * 10 >= n * 8 and other_count * 2 < count:
        return (
            f"{name} says {label or 'nothing'} to {count} of {n} images: it hardly looks at the picture",
            "see that the mmproj belongs to this model and was exported after the training",
        )
    return (
        "where the inputs are equal the weights must differ: an adapter dropped in the merge or the export, files of"
        " another run, or a quantization that is too coarse",
        "export to F16 and judge again: red as well means the wrong weights, green means the quantization",
    )


def _short(digest: str) -> str:
    return digest[:12]


def _pictures(slots: Sequence[tuple[int, int]]) -> str:
    return f"{len(slots)} picture" + ("s" if len(slots) != 1 else "")


def _token(token: int | None) -> str:
    if token is None:
        return "no more tokens"
    return "a picture" if token == -1 else f"token {token}"


def _examples(pairs: Sequence[Pair]) -> str:
    names = ", ".join(pair[0].image_id for pair in pairs[:EXAMPLES])
    return f"for example {names}" if len(pairs) > EXAMPLES else names
