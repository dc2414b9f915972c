"""The verdict: each gate goes red at its place, the numbers are right, and the screen says what a person must know."""

import io
import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from parity.gates import GateResult
from parity.results import Header, Results, ResultsWriter, Row, read_results
from parity.screen import print_verdict, render_text
from parity.statistics import mcnemar_exact, tango
from parity.verdict import Verdict, judge, write_verdict
from pipeline.contract import Contract
from pipeline.errors import UserError
from pipeline.files import sha256_bytes

FIVE = Contract()
TWO = Contract(labels=("day", "night"))
THREE = Contract(labels=("red panda", "Eisbär", "물고기"))
FORTY = Contract(labels=tuple(f"kind {chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(40)))
CONTRACTS = pytest.mark.parametrize("contract", [TWO, THREE, FIVE, FORTY], ids=["2", "3", "5", "40"])

Answers = Sequence[tuple[str, str | None]]
"""(truth, label) of each image."""


def results(answers: Answers, side: str = "hf", contract: Contract = FIVE, **header: object) -> Results:
    """One side's answers; image i has the same key on every side."""
    rows = {}
    for number, (truth, label) in enumerate(answers):
        key = sha256_bytes(f"image {number}".encode())
        rows[key] = Row(
            key=key,
            image_id=f"image_{number:04d}",
            rgb_sha256=key,
            truth=truth,
            text=" " + (label or "hmm"),
            label=label,
            generated_token_ids=(1,),
            label_logprobs={name: -1.0 if name == label else -3.0 for name in contract.labels},
            ms={"encode": 10.0, "prefill": 5.0, "generate": 5.0},
            stop_reason="end",
        )
    values: dict[str, object] = {
        "side": side,
        "contract_sha256": contract.digest,
        "dataset_sha256": sha256_bytes(b"dataset"),
        "model": {"model": sha256_bytes(side.encode())},
        "versions": {},
        "device": {},
        "runtime": {},
        "prompt_token_ids": [7, -1, -1, 8, -1, -1, 9],
        "image_slots": [[1, 2], [4, 2]],
    }
    return Results(Header.model_validate(values | header), rows)


def change_rows(side: Results, change: Callable[[Row], dict[str, object]], count: int | None = None) -> Results:
    """With the first ``count`` rows changed, all by default."""
    rows = dict(side.rows)
    for key in list(rows)[:count]:
        rows[key] = rows[key].model_copy(update=change(rows[key]))
    return replace(side, rows=rows)


def change_header(side: Results, **values: object) -> Results:
    return replace(side, header=side.header.model_copy(update=values))


def right(n: int, contract: Contract = FIVE) -> list[tuple[str, str | None]]:
    """n right answers, the labels in turn."""
    labels = contract.labels
    return [(labels[number % len(labels)], labels[number % len(labels)]) for number in range(n)]


def spoil(answers: Answers, count: int, contract: Contract = FIVE, start: int = 0) -> list[tuple[str, str | None]]:
    """With ``count`` answers turned into the next label."""
    labels, spoilt = contract.labels, list(answers)
    for number in range(start, start + count):
        truth = spoilt[number][0]
        spoilt[number] = (truth, labels[(labels.index(truth) + 1) % len(labels)])
    return spoilt


def noisy(n: int, contract: Contract, seed: int) -> list[tuple[str, str | None]]:
    generator = random.Random(seed)
    options = (*contract.labels, None)
    return [
        (truth, label if generator.random() < 0.8 else generator.choice(options)) for truth, label in right(n, contract)
    ]


def pair(n: int = 100) -> tuple[Results, Results]:
    return results(right(n)), results(right(n), "llamacpp")


def gate(verdict: Verdict, stage: str) -> GateResult:
    return next(gate for gate in verdict.gates if gate.stage == stage)


def assert_red(verdict: Verdict, stage: str, *facts: str) -> None:
    """FAIL at ``stage``, everything before it green, and the facts in its detail."""
    assert (verdict.status, verdict.exit_code, verdict.first_bad_stage) == ("FAIL", 1, stage)
    stages = [one.stage for one in verdict.gates]
    assert all(one.passed for one in verdict.gates[: stages.index(stage)])
    for fact in facts:
        assert fact in gate(verdict, stage).detail
    assert verdict.cause == gate(verdict, stage).cause
    assert verdict.cause
    assert verdict.fix


def test_equal_sides_pass() -> None:
    verdict = judge(*pair(), FIVE, [GateResult(stage="letterbox", passed=True, detail="80 sizes")])
    assert (verdict.status, verdict.exit_code, verdict.first_bad_stage) == ("PASS", 0, None)
    assert [one.stage for one in verdict.gates] == [
        "provenance", "letterbox", "pixels", "tokens", "answers", "accuracy",
    ]  # fmt: skip
    assert all(one.passed and not one.cause for one in verdict.gates)
    assert (verdict.n, verdict.agreement, verdict.difference.points, verdict.difference.mcnemar_p) == (100, 1, 0, 1)
    assert (verdict.cause, verdict.fix) == ("", "")


def test_provenance() -> None:
    ours, theirs = pair()
    other = Contract(max_new_tokens=8)
    assert_red(judge(ours, theirs, other), "provenance", "hf ran under contract", other.digest[:12])
    changed = change_header(theirs, contract_sha256=other.digest)
    assert_red(judge(ours, changed, FIVE), "provenance", "llamacpp ran under contract", other.digest[:12])
    moved = change_header(theirs, dataset_sha256=sha256_bytes(b"other"))
    assert_red(judge(ours, moved, FIVE), "provenance", "hf ran on dataset", sha256_bytes(b"other")[:12])


def test_a_check_from_elsewhere_stands_behind_provenance() -> None:
    broken = GateResult(stage="letterbox", passed=False, detail="3 of 80 sizes differ", cause="a", fix="b")
    ours, theirs = pair()
    swapped = change_rows(theirs, lambda row: {"rgb_sha256": sha256_bytes(row.key.encode())})
    verdict = judge(ours, swapped, FIVE, [broken])
    assert_red(verdict, "letterbox", "3 of 80")
    assert not gate(verdict, "pixels").passed
    assert_red(judge(ours, theirs, Contract(max_new_tokens=8), [broken]), "provenance")


def test_swapped_channels_turn_pixels_red() -> None:
    ours, theirs = pair()
    swapped = change_rows(theirs, lambda row: {"rgb_sha256": sha256_bytes(row.key.encode())})
    verdict = judge(ours, swapped, FIVE)
    assert_red(verdict, "pixels", "100 of 100 canvases differ", "image_0000", "llamacpp was not given the dataset's")
    assert "hf was not given" not in gate(verdict, "pixels").detail
    assert "channel order" in verdict.cause


def test_some_pixels_differ() -> None:
    ours, theirs = pair()
    verdict = judge(change_rows(ours, lambda _: {"rgb_sha256": "0" * 64}, 2), theirs, FIVE)
    assert_red(verdict, "pixels", "2 of 100 canvases differ", "image_0000, image_0001", "hf was not given", "in 2")
    assert "channel order" not in verdict.cause


def test_both_sides_given_the_same_wrong_pixels() -> None:
    """Equal bytes are not enough: under RGB they are the dataset's. Under BGR no hash of them is known."""
    sides = [change_rows(side, lambda row: {"rgb_sha256": sha256_bytes(row.key.encode())}) for side in pair()]
    assert_red(
        judge(*sides, FIVE), "pixels", "100 of 100 canvases are the same bytes on both sides but not the dataset's"
    )
    bgr = Contract.model_validate({"image": {"channel_order": "bgr"}})
    sides = [change_header(side, contract_sha256=bgr.digest) for side in sides]
    assert judge(*sides, bgr).status == "PASS"


def test_tokens() -> None:
    ours, theirs = pair()

    def red(ids: tuple[int, ...], slots: tuple[tuple[int, int], ...], *facts: str) -> None:
        verdict = judge(ours, change_header(theirs, prompt_token_ids=ids, image_slots=slots), FIVE)
        assert_red(verdict, "tokens", *facts)

    both = ((1, 2), (4, 2))
    red((7, -1, -1, 9), ((1, 2),), "tile plans differ: hf has 2 pictures, llamacpp has 1 picture")
    red((7, -1, -1, 6, -1, -1, 9), both, "at position 3", "token 8", "token 6")
    red((5, 7, -1, -1, 8, -1, -1, 9), both, "at position 0", "token 7", "token 5", "7 and 8 tokens")
    red((7, -1, -1, 8, -1, -1), both, "at position 6", "token 9", "llamacpp has no more tokens")
    red((7, -1, 3, 8, -1, -1, 9), both, "at position 2", "a picture", "token 3")
    red((7, -1, -1, 8, -1, -1, 9), ((1, 2), (4, 1)), "picture 2 takes 2 positions from 4")


def test_answers_read_by_another_rule() -> None:
    ours, theirs = pair()
    verdict = judge(ours, change_rows(theirs, lambda _: {"text": " Fire and water"}, 3), FIVE)
    # image 0 is water and reads as water, which comes first in the contract
    assert_red(verdict, "answers", "llamacpp read 2 of 100", "image_0001", "' Fire and water' as land, not as water")


@pytest.mark.parametrize("better", [False, True])
@pytest.mark.parametrize(
    ("n", "apart", "margin", "status"),
    [
        (100, 3, 3.0, "PASS"),
        (100, 4, 3.0, "FAIL"),
        (200, 6, 3.0, "PASS"),
        (200, 7, 3.0, "FAIL"),
        (1000, 1, 0.1, "PASS"),  # 0.1 as a float is more than a tenth, 100 * 1 / 1000 is not
        (1000, 7, 0.7, "PASS"),  # 0.7 as a float is less than seven tenths
        (1000, 8, 0.7, "FAIL"),
        (300, 1, 0.33, "FAIL"),
        (100, 100, 100.0, "PASS"),
    ],
)
def test_the_margin_is_exact_both_ways(n: int, apart: int, margin: float, status: str, better: bool) -> None:
    contract = Contract.model_validate({"gate": {"margin_points": margin}})
    good, bad = right(n), spoil(right(n), apart)
    ours, theirs = (bad, good) if better else (good, bad)
    verdict = judge(results(ours, contract=contract), results(theirs, "llamacpp", contract), contract)
    assert verdict.status == status
    assert gate(verdict, "accuracy").passed == (status == "PASS")
    assert verdict.difference.points == pytest.approx((1 if better else -1) * 100 * apart / n)
    if status == "FAIL":
        assert_red(verdict, "accuracy", f"of {n}")


def test_the_likely_cause_of_a_lost_accuracy() -> None:
    good = results(right(100))
    silent = [(truth, None) for truth, _ in right(100)]
    assert "without its adapter" in judge(good, results(silent, "llamacpp"), FIVE).cause
    stuck: Answers = [(truth, "wood") for truth, _ in right(100)]
    verdict = judge(good, results(stuck, "llamacpp"), FIVE)
    assert "llamacpp says wood to 100 of 100" in verdict.cause
    assert "mmproj" in verdict.fix
    broken = change_rows(results(stuck, "llamacpp"), lambda _: {"label_logprobs": {"fire": None}}, 9)
    verdict = judge(good, broken, FIVE)
    assert "no numbers in 9 of 100" in verdict.cause
    assert "9 of 100 images have log-probabilities that are not finite numbers" in verdict.notes
    assert "quantization" in judge(good, results(spoil(right(100), 40), "llamacpp"), FIVE).cause
    assert "hf says wood to 100" in judge(results(stuck), results(right(100), "llamacpp"), FIVE).cause


def test_flips_and_agreement() -> None:
    ours = right(60)
    ours[0:3] = [("water", "land"), ("land", None), ("fire", "metal")]
    theirs = list(ours)
    theirs[0] = ("water", "water")  # wrong -> right
    theirs[1] = ("land", "fire")  # silent -> wrong
    theirs[2] = ("fire", None)  # wrong -> silent
    theirs[10:35] = spoil(theirs, 25, start=10)[10:35]
    theirs[40] = ("water", None)
    verdict = judge(results(ours), results(theirs, "llamacpp"), FIVE)
    flips = verdict.flips
    counts = flips.right_to_wrong.count, flips.wrong_to_right.count, flips.wrong_to_other_wrong.count
    assert counts == (26, 1, 2)
    assert verdict.agreement == pytest.approx(31 / 60)
    assert len(flips.right_to_wrong.examples) == 20
    (won,) = flips.wrong_to_right.examples
    assert (won.image_id, won.truth, won.reference, won.candidate) == ("image_0000", "water", "land", "water")
    assert [(flip.reference, flip.candidate) for flip in flips.wrong_to_other_wrong.examples] == [
        (None, "fire"), ("metal", None),
    ]  # fmt: skip
    assert verdict.difference.mcnemar_p == mcnemar_exact(1, 26)
    low, high = tango(1, 26, 60)
    assert (verdict.difference.low, verdict.difference.high) == (100 * low, 100 * high)


@CONTRACTS
def test_scores_equal_scikit_learn(contract: Contract) -> None:
    answers = noisy(333, contract, seed=1)
    side = judge(results(answers, contract=contract), results(answers, "llamacpp", contract), contract).reference
    truths = [truth for truth, _ in answers]
    given = [label or "" for _, label in answers]
    labels = list(contract.labels)
    assert side.macro_f1 == pytest.approx(f1_score(truths, given, labels=labels, average="macro", zero_division=0))
    scores = precision_recall_fscore_support(truths, given, labels=labels, zero_division=0)
    ours = [(one.precision, one.recall, one.f1, one.support) for one in side.per_class]
    np.testing.assert_allclose(ours, np.transpose(scores), rtol=1e-12)
    assert [list(row) for row in side.confusion] == confusion_matrix(truths, given, labels=[*labels, ""])[:-1].tolist()
    assert side.unanswered == given.count("") == sum(row[-1] for row in side.confusion)
    assert side.correct == sum(truth == label for truth, label in answers)


def test_macro_f1_leaves_out_labels_that_do_not_occur() -> None:
    """scikit-learn's own default; a validation set without metal says nothing of metal."""
    answers: Answers = [("water", "water"), ("water", "land"), ("land", "land"), ("fire", "fire")]
    side = judge(results(answers), results(answers, "llamacpp"), FIVE).reference
    assert side.macro_f1 == pytest.approx(f1_score(*zip(*answers, strict=True), average="macro"))


def test_rows_are_matched_by_key_never_by_position() -> None:
    answers = noisy(50, FIVE, seed=2)
    ours, theirs = results(answers), results(answers, "llamacpp")
    shuffled = list(theirs.rows.items())
    random.Random(3).shuffle(shuffled)
    assert judge(ours, replace(theirs, rows=dict(shuffled)), FIVE).agreement == 1
    renamed = change_rows(theirs, lambda row: {"image_id": row.image_id[::-1]})
    assert judge(ours, renamed, FIVE).agreement == 1


def test_images_that_one_side_lacks_are_an_error() -> None:
    ours, theirs = pair(10)
    short = replace(theirs, rows=dict(list(theirs.rows.items())[3:]))
    with pytest.raises(
        UserError, match=r"3 of 10 images of hf are missing from llamacpp's .*image_0000 .*llamacpp finish"
    ):
        judge(ours, short, FIVE)
    with pytest.raises(UserError, match=r"3 of 10 images of llamacpp are missing from hf's"):
        judge(replace(ours, rows=short.rows), theirs, FIVE)
    elsewhere = change_header(short, dataset_sha256=sha256_bytes(b"other"))
    with pytest.raises(UserError, match="run both sides on the same dataset"):
        judge(ours, elsewhere, FIVE)
    with pytest.raises(UserError, match="nothing to judge"):
        judge(replace(ours, rows={}), replace(theirs, rows={}), FIVE)


def test_contradictory_or_unknown_labels_are_an_error() -> None:
    ours, theirs = pair(10)
    with pytest.raises(UserError, match=r"image_0000 is 'water' in hf's results and 'metal' in llamacpp's"):
        judge(ours, change_rows(theirs, lambda _: {"truth": "metal"}, 1), FIVE)
    with pytest.raises(UserError, match=r"image_0000 in hf's results has the label 'water', none of those of contract"):
        judge(ours, theirs, TWO)


def test_drift_of_log_probabilities() -> None:
    ours, theirs = pair(10)

    def louder(row: Row) -> dict[str, object]:
        return {"label_logprobs": row.label_logprobs | {"metal": -3.5 if row.image_id == "image_0003" else -3.0}}

    drift = judge(ours, change_rows(theirs, louder, 4), FIVE).label_logprobs
    assert drift is not None
    assert (drift.largest, drift.image_id, drift.label) == (0.5, "image_0003", "metal")
    assert drift.mean == pytest.approx(0.5 / 50)
    assert judge(ours, change_rows(theirs, lambda _: {"label_logprobs": {}}), FIVE).label_logprobs is None


def test_speed_is_what_the_side_timed() -> None:
    ours, theirs = pair(10)
    verdict = judge(ours, change_rows(theirs, lambda row: {"ms": row.ms | {"total": 40.0}}), FIVE)
    assert verdict.reference.seconds == pytest.approx(0.2)
    assert verdict.reference.images_per_second == pytest.approx(50)
    assert verdict.candidate.images_per_second == pytest.approx(25)
    assert verdict.candidate.ms_median == {"encode": 10, "prefill": 5, "generate": 5, "total": 40}
    untimed = judge(ours, change_rows(theirs, lambda _: {"ms": {}}), FIVE)
    assert untimed.candidate.images_per_second is None
    assert "-" in render_text(untimed)


def test_notes_say_what_weakens_a_pass() -> None:
    assert judge(*pair(400), FIVE).notes == ()
    (note,) = judge(*pair(20), FIVE).notes
    assert "20 images cannot rule out a difference of 16.1 points" in note
    chance: Answers = [(truth, "wood") for truth, _ in right(400)]
    (note,) = judge(results(chance), results(chance, "llamacpp"), FIVE).notes
    assert "hf is no better than always giving the commonest label (80 of 400)" in note


def test_a_saved_verdict_holds_everything(tmp_path: Path) -> None:
    sides = [results(noisy(50, FIVE, seed=4)), results(noisy(50, FIVE, seed=5), "llamacpp")]
    for side in sides:
        with ResultsWriter(tmp_path / f"{side.header.side}.jsonl", side.header) as writer:
            for row in side.rows.values():
                writer.append(row)
    read = [read_results(tmp_path / f"{side.header.side}.jsonl") for side in sides]
    verdict = judge(read[0], read[1], FIVE)
    assert verdict == judge(sides[0], sides[1], FIVE)
    write_verdict(verdict, tmp_path / "verdict.json")
    text = (tmp_path / "verdict.json").read_text()
    assert Verdict.model_validate_json(text) == verdict
    data = json.loads(text)
    assert (data["status"], data["exit_code"]) == (verdict.status, verdict.exit_code)
    assert data["candidate_header"]["model"] == {"model": sha256_bytes(b"llamacpp")}


@CONTRACTS
@pytest.mark.parametrize("width", [80, 100])
def test_the_screen_has_the_facts(contract: Contract, width: int) -> None:
    ours = results(noisy(120, contract, seed=6), contract=contract)
    theirs = results(noisy(120, contract, seed=7), "llamacpp", contract)
    verdict = judge(ours, theirs, contract)
    text = render_text(verdict, width)
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    joined = " ".join(text.split())
    d, flips = verdict.difference, verdict.flips
    for fact in (
        f"{verdict.status} ",
        "120 images",
        "Hugging Face llama.cpp",
        f"accuracy {verdict.reference.accuracy:.2%} {verdict.candidate.accuracy:.2%}",
        f"macro F1 {verdict.reference.macro_f1:.4f} {verdict.candidate.macro_f1:.4f}",
        "images/s 50.00 50.00",
        "seconds 2.4 2.4",
        f"{d.points:+.2f} points, 95 % interval {d.low:+.2f} to {d.high:+.2f} (Tango), margin 3",
        f"{verdict.agreement:.2%}",
        f"{flips.right_to_wrong.count} right → wrong, {flips.wrong_to_right.count} wrong → right,",
        flips.right_to_wrong.examples[0].image_id,
        *(f"{'✓ ok' if one.passed else '✗ RED'} {one.stage}" for one in verdict.gates),
    ):
        assert fact in joined, fact
    assert ("Confusion" in text) == (contract is not FORTY)
    assert ("Commonest confusions" in text) == (contract is FORTY)


def test_the_screen_tells_what_to_do_on_fail_alone() -> None:
    ours, theirs = pair()
    failed = judge(ours, change_header(theirs, image_slots=((1, 2),)), FIVE)
    text = " ".join(render_text(failed).split())
    assert "FAIL the sides part at: tokens" in text
    assert f"likely {failed.cause} do {failed.fix}" in text
    passed = render_text(judge(ours, theirs, FIVE))
    assert "PASS" in passed
    assert "What to do" not in passed


def test_matrices_stand_side_by_side_where_they_fit() -> None:
    verdict = judge(*pair(), FIVE)
    side_by_side = [line for line in render_text(verdict, 80).splitlines() if line.count("1 water") == 2]
    assert len(side_by_side) == 1
    narrow = render_text(verdict, 60).splitlines()
    assert sum("1 water" in line for line in narrow) == 2


def test_printing_survives_any_terminal() -> None:
    hostile = "\x1b[31m[bold]x[/bold] :smile: \r\n"
    ours, theirs = (change_rows(side, lambda _: {"image_id": hostile}, 1) for side in pair())
    theirs = change_rows(theirs, lambda _: {"label": "metal", "text": "metal"}, 1)
    verdict = judge(ours, theirs, FIVE)
    assert "?[31m[bold]x[/bold] :smile: ??" in render_text(verdict)
    for encoding in ("ascii", "latin-1", "utf-8"):
        raw = io.BytesIO()
        file = io.TextIOWrapper(raw, encoding=encoding)
        print_verdict(verdict, Console(file=file, width=80))
        file.flush()
        text = raw.getvalue().decode(encoding)
        assert "PASS" in text
        assert "ok   provenance" in text or "ok  provenance" in text
        assert "\x1b" not in text
    terminal = io.StringIO()
    print_verdict(verdict, Console(file=terminal, width=80, force_terminal=True, color_system="standard"))
    assert "\x1b[" in terminal.getvalue()


def test_judging_needs_no_heavy_library() -> None:
    heavy = ["torch", "transformers", "llama_cpp", "sklearn", "matplotlib", "numpy", "scipy", "PIL"]
    code = f"import sys, parity.screen, parity.verdict; print([name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == "[]"
