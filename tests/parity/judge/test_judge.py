"""The verdict's numbers: scores, flips, pairing, several runs; and that saved results give them without a model."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sides import (
    CONTRACTS,
    FIVE,
    THREE,
    TWO,
    Answers,
    assert_stops,
    change_header,
    change_ladder,
    change_rows,
    ladder_of,
    noisy,
    pair,
    results,
    right,
    spoil,
    write_ladder,
    write_results,
)
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from parity.compare.ladder import read_ladder
from parity.judge.beside import belongs, find_contract, find_ladder
from parity.judge.judge import judge, judge_runs, write_verdict
from parity.judge.statistics import mcnemar_exact, noninferiority_p, pairs_needed, tango, wilson
from parity.judge.verdict import Verdict
from parity.report.junit import junit_xml
from parity.report.screen import render_text
from parity.report.summary import annotations, escape, summary
from parity.results import Row, read_results
from pipeline.contract import Contract, Gate
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes


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
    d = verdict.difference
    assert (d.low, d.high, d.won, d.lost) == (100 * low, 100 * high, 1, 26)
    assert d.p_inferior == noninferiority_p(1, 26, 60, 0.03)
    assert d.needed is pairs_needed(1, 26, 60, 0.03) is None


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
    assert [(one.recall_low, one.recall_high) for one in side.per_class] == [
        wilson(round(one.recall * one.support), one.support) for one in side.per_class
    ]
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
        UserError, match=r"3 of 10 images of Hugging Face are missing from llama.cpp's .*image_0000 .*llama.cpp finish"
    ):
        judge(ours, short, FIVE)
    with pytest.raises(UserError, match=r"3 of 10 images of llama.cpp are missing from Hugging Face's"):
        judge(replace(ours, rows=short.rows), theirs, FIVE)
    elsewhere = change_header(short, dataset_sha256=sha256_bytes(b"other"))
    with pytest.raises(UserError, match="run both sides on the same dataset"):
        judge(ours, elsewhere, FIVE)
    with pytest.raises(UserError, match="nothing to judge"):
        judge(replace(ours, rows={}), replace(theirs, rows={}), FIVE)


def test_contradictory_or_unknown_labels_are_an_error() -> None:
    ours, theirs = pair(10)
    with pytest.raises(UserError, match=r"image_0000 is 'water' in Hugging Face's results and 'metal' in llama.cpp's"):
        judge(ours, change_rows(theirs, lambda _: {"truth": "metal"}, 1), FIVE)
    with pytest.raises(
        UserError, match=r"image_0000 in Hugging Face's results has the label 'water', none of those of contract"
    ):
        judge(ours, theirs, TWO)


def test_drift_of_log_probabilities() -> None:
    ours, theirs = pair(10)

    def louder(row: Row) -> dict[str, object]:
        known = ours.rows[row.key].label_logprobs
        metal = known["metal"]
        assert metal is not None
        return {"label_logprobs": known | {"metal": metal - 0.5 if row.image_id == "image_0003" else metal}}

    drift = judge(ours, change_rows(theirs, louder), FIVE).label_logprobs
    assert drift is not None
    assert (drift.largest, drift.image_id, drift.label) == (pytest.approx(0.5), "image_0003", "metal")
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


def test_notes_say_what_weakens_a_verdict() -> None:
    ours, theirs = pair()
    assert judge(ours, theirs, FIVE).notes == ("without a ladder no stage between canvas and answer was compared",)
    assert judge(ours, theirs, FIVE, (), ladder_of(ours, theirs)).notes == ()


def test_other_limits_than_the_contracts_are_told_everywhere() -> None:
    ours, theirs = results(right(200)), results(spoil(right(200), 20), "llamacpp")
    wide = Gate(margin_points=30)
    said = "judged with gate.margin_points 30, and the contract says 3"
    for verdict in (judge(ours, theirs, FIVE, gate=wide), judge(*pair(), FIVE, gate=wide)):
        assert said in verdict.headline
        assert verdict.overrides == (said,)
        assert f"{said}: a gate for release takes no such verdict" in verdict.notes
        assert said in " ".join(render_text(verdict).split())
        assert escape(said) in summary(verdict)
        assert said.encode() in junit_xml(verdict, ours, theirs)
        assert said in annotations(verdict)
    assert judge(*pair(), FIVE, gate=FIVE.gate).overrides == ()


def test_several_runs_are_judged_by_the_worst() -> None:
    ours = results(right(400))
    candidates = [(f"run {bad}", results(spoil(right(400), bad), "llamacpp")) for bad in (0, 4, 20)]
    verdict = judge_runs(ours, candidates, FIVE)
    assert verdict.status == "FAIL"
    assert verdict.difference.lost == 20
    runs = verdict.runs
    assert runs is not None
    assert [(run.name, run.points, run.status) for run in runs.runs] == [
        ("run 0", 0, "PASS"), ("run 4", -1, "PASS"), ("run 20", -5, "FAIL"),
    ]  # fmt: skip
    points = [0, -1, -5]
    assert (runs.mean_points, runs.sd_points) == pytest.approx((np.mean(points), np.std(points, ddof=1)))
    assert (runs.unstable, runs.n) == (20, 400)
    text = " ".join(render_text(verdict).split())
    assert "mean -2.00, standard deviation 2.65 points; 20 of 400 images are not answered alike" in text
    assert judge_runs(ours, candidates[:1], FIVE) == judge(ours, candidates[0][1], FIVE)


def test_a_refused_run_is_worse_than_a_failed_one_and_an_open_one_than_a_passed_one() -> None:
    ours, good = pair()
    refused = change_header(good, dataset_sha256=sha256_bytes(b"other"))
    failed = results(spoil(right(200), 50), "llamacpp")
    open_run = results(spoil(right(200), 3), "llamacpp")
    for candidates, status in (
        ([failed, refused, good], "REFUSED"),
        ([good, failed, open_run], "FAIL"),
        ([good, open_run], "INCONCLUSIVE"),
        ([good, good], "PASS"),
    ):
        assert judge_runs(ours, [(str(i), one) for i, one in enumerate(candidates)], FIVE).status == status


def test_a_ladder_is_used_for_its_own_run_alone() -> None:
    ours, theirs = pair()
    again = change_header(theirs, device={"host": "other"})
    ladder = change_ladder(ladder_of(ours, theirs), lambda row: {"logits_kl": 0.5})
    assert belongs(ladder, ours, theirs)
    assert not belongs(ladder, ours, again)
    verdict = judge_runs(ours, [("other", again), ("own", theirs)], FIVE, (), ladder)
    assert verdict.runs is not None
    assert [run.status for run in verdict.runs.runs] == ["PASS", "FAIL"]


def test_a_saved_verdict_holds_everything(tmp_path: Path) -> None:
    sides = [results(noisy(50, FIVE, seed=4)), results(noisy(50, FIVE, seed=5), "llamacpp")]
    for side in sides:
        write_results(side, tmp_path / f"{side.header.side}.jsonl")
    read = [read_results(tmp_path / f"{side.header.side}.jsonl") for side in sides]
    verdict = judge(read[0], read[1], FIVE)
    assert verdict.evidence == {"reference": read[0].sha256, "candidate": read[1].sha256}
    assert verdict == judge(sides[0], sides[1], FIVE).model_copy(update={"evidence": verdict.evidence})
    write_verdict(verdict, tmp_path / "verdict.json")
    text = (tmp_path / "verdict.json").read_text()
    assert Verdict.model_validate_json(text) == verdict
    data = json.loads(text)
    assert (data["status"], data["exit_code"]) == (verdict.status, verdict.exit_code)
    assert data["candidate_header"]["model"] == {"model": sha256_bytes(b"llamacpp")}


def test_judging_needs_no_heavy_library() -> None:
    heavy = ["torch", "transformers", "llama_cpp", "sklearn", "matplotlib", "numpy", "scipy", "PIL"]
    modules = "parity.report.screen, parity.judge.judge, parity.studies.diff, parity.judge.phone"
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).parents[3]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == "[]"


def test_the_ladder_beside_the_reference_is_taken_where_it_is_of_these_runs(tmp_path: Path) -> None:
    ours, theirs = pair(10)
    again = change_header(theirs, device={"host": "other"})
    path = tmp_path / "hf.results.jsonl"
    assert find_ladder(None, path, ours, [theirs]) is None
    ladder = ladder_of(ours, theirs)
    write_ladder(ladder, tmp_path / "ladder.jsonl")
    ladder = read_ladder(tmp_path / "ladder.jsonl")
    assert find_ladder(None, path, ours, [theirs]) == ladder
    assert find_ladder(None, path, ours, [again, theirs]) == ladder
    assert find_ladder(None, path, ours, [again]) is None
    elsewhere = tmp_path / "other" / "hf.results.jsonl"
    assert find_ladder(None, elsewhere, ours, [theirs]) is None
    assert find_ladder(tmp_path / "ladder.jsonl", elsewhere, ours, [theirs]) == ladder
    with pytest.raises(UserError, match=r"ladder\.jsonl was measured between other runs"):
        find_ladder(tmp_path / "ladder.jsonl", path, ours, [again])
    with pytest.raises(UserError, match=r"none\.jsonl"):
        find_ladder(tmp_path / "none.jsonl", path, ours, [theirs])


def test_results_are_judged_by_the_contract_that_they_ran_under(tmp_path: Path) -> None:
    wide = Contract(gate=Gate(margin_points=7.0))
    ours = change_header(pair(10)[0], contract_sha256=wide.digest)
    path = tmp_path / "run" / "parity" / "hf.results.jsonl"
    path.parent.mkdir(parents=True)

    def put(place: str, contract: Contract) -> None:
        (tmp_path / "run" / place).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / place).write_text(contract.model_dump_json())

    assert find_contract(None, path, ours) == FIVE  # the phone's; the gate `provenance` then refuses
    put("bundle/contract.json", FIVE)  # of another run
    assert find_contract(None, path, ours) == FIVE
    put("bundle/contract.json", wide)
    assert find_contract(None, path, ours) == wide
    (tmp_path / "run" / "parity" / "contract.json").write_text("no contract")
    assert find_contract(None, path, ours) == wide
    (tmp_path / "run" / "bundle" / "contract.json").unlink()
    put("parity/contract.json", wide)
    assert find_contract(None, path, ours) == wide
    put("given.json", THREE)
    assert find_contract(tmp_path / "run" / "given.json", path, ours) == THREE
    with pytest.raises(UserError, match=r"none\.json"):
        find_contract(tmp_path / "none.json", path, ours)


def test_the_verdict_says_which_images_it_used() -> None:
    ours, theirs = pair(10)

    def told(split: str | None) -> tuple[str | None, list[str], str]:
        verdict = judge(*(change_header(side, split=split) for side in (ours, theirs)), FIVE)
        return verdict.split, [note for note in verdict.notes if "validation images" in note], render_text(verdict)

    split, notes, text = told("test")
    assert (split, notes) == ("test", [])
    assert "10 test images" in text
    split, (note,), text = told("validation")
    assert split == "validation"
    assert "on which the best checkpoint was chosen" in note
    assert "dataset.test_fraction" in note
    assert "10 validation images" in text
    split, notes, text = told(None)
    assert (split, notes) == (None, [])
    assert "10 images" in text


def test_two_parts_of_a_dataset_are_not_compared() -> None:
    ours, theirs = pair(10)
    verdict = judge(change_header(ours, split="test"), change_header(theirs, split="validation"), FIVE)
    assert_stops(
        verdict, "REFUSED", 4, "provenance", "Hugging Face answered the test images, llama.cpp the validation images"
    )
