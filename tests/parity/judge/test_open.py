"""The gates of open answers, and what is judged otherwise where a check has terms and no app's contract."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sides import FLOOR, WEIGHTS, assert_red, assert_stops, change_header, change_ladder, change_rows, gate

from parity.compare.ladder import AnswerMeasured, Ladder, LadderHeader, Measured, NoiseFloor, Spread, header_digest
from parity.judge.gates.limits import limits_of
from parity.judge.judge import as_judged, judge
from parity.judge.verdict import Verdict
from parity.results import Header, Results, Row
from parity.terms import CheckTerms, ToolRuntime
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes

TERMS = CheckTerms(prompt="Describe this image.", runtime=ToolRuntime(type_k="f16", type_v="f16"))
SCORED = CheckTerms(prompt="What is it?", metric="exact_match")
OPEN_FLOOR = NoiseFloor.model_validate(
    FLOOR.model_dump()
    | {"logits_kl_labels": None, "answer_kl": Spread(median=1e-5, p95=4e-5, largest=1e-4).model_dump()}
)
STEPS = 10
STAGES = [
    "provenance", "runtime", "decoded", "pixels", "tiles", "tokens", "embeddings", "logits", "generation", "agreement",
]  # fmt: skip
LAYOUT = ((7, 8), 4, (9,))


def side(n: int, name: str, terms: CheckTerms, **header: Any) -> Results:
    """n pictures, answered alike by either side."""
    generator = random.Random(name)
    rows = {}
    for number in range(n):
        key = sha256_bytes(f"image {number}".encode())
        rows[key] = Row(
            key=key,
            image_id=f"image_{number:04d}",
            rgb_sha256=sha256_bytes(f"rgb {number}".encode()),
            truth=None,
            text=f"A picture of {number}.",
            label=f"A picture of {number}.",
            generated_token_ids=tuple(range(STEPS - 1)),
            top_logits=((5, -0.1 - generator.random() / 1000), (6, -3.0 - generator.random() / 1000)),
            stop_reason="end",
            layout=LAYOUT,
        )
    values: dict[str, Any] = {
        "side": name,
        "engine": "transformers" if name == "hf" else "llama.cpp",
        "images": n,
        "contract_sha256": terms.digest,
        "dataset_sha256": sha256_bytes(b"dataset"),
        "model": {"model": sha256_bytes(name.encode())},
        "weights_sha256": WEIGHTS if name == "hf" else None,
        "versions": {"llama-cpp-python": "0.3.36"},
        "device": {"cpu": "some"},
        "runtime": {"fed": "rgb"},
        "prompt_token_ids": [],
        "image_slots": [],
    }
    return Results(Header.model_validate(values | header), rows)


def measured(row: Row) -> Measured:
    return Measured(
        key=row.key,
        image_id=row.image_id,
        size=(640, 480),
        decoded_equal=True,
        decoded_apart=0,
        pixels_equal=True,
        tiles=(1, 1),
        tile_sizes=((4, 4), (4, 4)),
        tiles_bytes=0,
        tiles_bytes_share=0.0,
        tiles_floats=1e-7,
        tokens_equal=True,
        tokens_first=None,
        positions_equal=True,
        pictures=(4, 4),
        embeddings_error=0.003,
        embeddings_cosine=0.9999,
        logits_kl=2e-6,
        logits_kl_labels=None,
        logits_top1_equal=True,
        logits_max=0.005,
        generated_equal=True,
        label_equal=True,
        answer=AnswerMeasured(
            steps=STEPS, kl_mean=3e-6, kl_largest=9e-6, differ=0, diverges_at=None, logprob_apart=0.01
        ),
    )


def walked(ours: Results, theirs: Results, terms: CheckTerms) -> Ladder:
    header = LadderHeader(
        reference_sha256=header_digest(ours.header),
        candidate_sha256=header_digest(theirs.header),
        contract_sha256=terms.digest,
        dataset_sha256=ours.header.dataset_sha256,
        text_type="F16",
        mmproj_type="F16",
        kv_type="f16/f16",
        floor=OPEN_FLOOR,
    )
    return Ladder(header, {key: measured(row) for key, row in ours.rows.items()})


def judged(
    n: int = 200,
    change: Callable[[Measured], dict[str, object]] = lambda row: {},
    count: int | None = None,
    terms: CheckTerms = TERMS,
) -> Verdict:
    """The verdict on n pictures with ``count`` lines of the ladder changed."""
    ours, theirs = side(n, "hf", terms), side(n, "llamacpp", terms)
    return judge(ours, theirs, terms, (), change_ladder(walked(ours, theirs, terms), change, count))


def answer(row: Measured, **about: object) -> dict[str, object]:
    assert row.answer
    return {"answer": row.answer.model_copy(update=about)}


def test_answers_that_agree_pass() -> None:
    verdict = judged()
    assert (verdict.status, verdict.exit_code) == ("PASS", 0)
    assert [one.stage for one in verdict.gates] == STAGES
    assert {one.status for one in verdict.gates if one.stage != "runtime"} == {"green"}
    assert gate(verdict, "agreement").rung == "S7"
    assert verdict.labels == ()


def test_equal_texts_do_not_hide_a_divergence() -> None:
    """A padded picture may give the same answer, letter for letter; the distributions on the way tell."""
    verdict = judged(change=lambda row: answer(row, kl_mean=4e-3, kl_largest=0.02))
    assert_red(verdict, "generation", "median 0.004 nats", "0 of 200 answers diverge somewhere")
    assert gate(verdict, "agreement").status == "green"
    assert "200 of 200 answers are equal to the letter" in gate(verdict, "agreement").detail
    assert verdict.agreement == 1


def test_the_limit_along_the_answer_follows_from_its_own_floor() -> None:
    limits = judged().limits
    assert limits
    # 1 for the engine, 0.1 for each half as F16, 0.02 for keys and for values: 1.24 times the floor's median.
    assert limits.answer == pytest.approx(1.24e-5)
    assert limits.answer_each == pytest.approx(4.96e-5)
    assert judged(change=lambda row: answer(row, kl_mean=1.2e-5)).status == "PASS"
    assert_red(judged(change=lambda row: answer(row, kl_mean=1.3e-5)), "generation")
    # One in four may be beyond its own limit.
    assert judged(change=lambda row: answer(row, kl_mean=1e-3), count=50).status == "PASS"
    assert_red(judged(change=lambda row: answer(row, kl_mean=1e-3), count=51), "generation", "51 of 200 images")


def test_a_divergence_that_is_no_number_is_red() -> None:
    assert_red(judged(change=lambda row: answer(row, kl_mean=None), count=1), "generation", "not finite")


# Shares and their intervals worked out by hand from Wilson's formula, z = 1.96, for the mean over n pictures.
@pytest.mark.parametrize(
    ("n", "apart", "status", "interval"),
    [
        (200, 0, "green", "98.1% to 100.0%"),
        (73, 0, "green", "95.0% to 100.0%"),
        (72, 0, "undecided", "94.9% to 100.0%"),
        (4, 0, "undecided", "51.0% to 100.0%"),
        (200, 20, "green", "96.4% to 99.7%"),  # one token of ten in 20 pictures: 99 %
        (200, 100, "undecided", "91.0% to 97.3%"),  # 95 %
        (200, 200, "red", "85.1% to 93.4%"),  # 90 %
    ],
)
def test_agreement_with_its_interval(n: int, apart: int, status: str, interval: str) -> None:
    verdict = judged(n, lambda row: answer(row, differ=1), apart)
    found = gate(verdict, "agreement")
    assert found.status == status
    assert f"95 % interval {interval}, at least 95% wanted" in found.detail
    assert found.samples == n
    assert found.beyond == apart
    if status == "undecided":
        assert_stops(verdict, "INCONCLUSIVE", 3, "agreement")
    assert found.limit == pytest.approx(0.05)
    assert found.value is not None
    assert (found.value <= found.limit) == (status == "green")


def test_the_interval_is_wilsons() -> None:
    n, share, z = 200, 0.99, 1.959964
    centre = (share * n + z * z / 2) / (n + z * z)
    half = z * math.sqrt(n * share * (1 - share) + z * z / 4) / (n + z * z)
    found = gate(judged(200, lambda row: answer(row, differ=1), 20), "agreement")
    assert found.value == pytest.approx(1 - (centre - half), abs=1e-6)


def test_how_many_pictures_would_do_is_said() -> None:
    assert "about 73 pictures would" in gate(judged(4), "agreement").cause
    hopeless = gate(judged(40, lambda row: answer(row, differ=1), 20), "agreement")
    assert hopeless.status == "undecided"
    assert "no number of pictures would do at this share" in hopeless.cause


def test_another_agreement_may_be_asked_for() -> None:
    lower = TERMS.model_copy(update={"open_gate": TERMS.open_gate.model_copy(update={"agreement": 0.5})})
    assert judged(4, terms=lower).status == "PASS"


def scored(n: int, wrong_ours: int, wrong_theirs: int) -> Verdict:
    """Answers of which the last few score nothing, on either side."""
    sides = []
    for name, wrong in (("hf", wrong_ours), ("llamacpp", wrong_theirs)):
        one = side(n, name, SCORED)
        text = iter(["Word  one"] * (n - wrong) + ["other"] * wrong)
        # What the rows say of their score is not asked: it follows from the words.
        sides.append(
            change_rows(one, lambda row, text=text: {"score": 1.0, "truth": "word one", "text": next(text)})  # type: ignore[misc]
        )
    return judge(*sides, SCORED, (), walked(*sides, SCORED))


@pytest.mark.parametrize(
    ("n", "ours", "theirs", "status", "points"),
    [
        (200, 10, 10, "green", "+0.00 points"),
        (200, 10, 14, "undecided", "-2.00 points"),
        (200, 10, 20, "red", "-5.00 points"),
        (200, 20, 10, "red", "+5.00 points"),  # better by chance is no equal answer either
        (20, 0, 0, "green", "95 % interval -2.34 to +2.34"),  # t(19) 2.093, times 100 / 20 / sqrt(20)
        (10, 0, 0, "undecided", "95 % interval -7.15 to +7.15"),  # t(9) 2.262, times 100 / 10 / sqrt(10)
    ],
)
def test_scores_against_the_expected_answers(n: int, ours: int, theirs: int, status: str, points: str) -> None:
    found = gate(scored(n, ours, theirs), "score")
    assert found.status == status
    assert points in found.detail
    assert found.detail.startswith("exact_match ")


def test_a_picture_without_a_score_is_not_passed_over() -> None:
    ours, theirs = (change_rows(side(30, name, SCORED), lambda _: {"truth": None}) for name in ("hf", "llamacpp"))
    found = gate(judge(ours, theirs, SCORED, (), walked(ours, theirs, SCORED)), "score")
    assert (found.status, found.detail) == ("undecided", "30 of 30 pictures have no score")


def unknown(row: Measured) -> dict[str, object]:
    """As a layout of pixels that nobody knows leaves it."""
    return dict.fromkeys(("tiles", "tile_sizes", "tiles_bytes", "tiles_bytes_share", "tiles_floats"))


@pytest.mark.parametrize("count", [None, 1])
def test_an_unknown_layout_of_pixels_is_never_green(count: int | None) -> None:
    """Neither where it is the family's nor where it is one picture's."""
    found = gate(judged(change=unknown, count=count), "tiles")
    assert found.status == "not measured"
    assert "pixel layout" in found.detail


def test_what_is_known_of_the_tiles_is_red_beside_what_is_not() -> None:
    ours, theirs = side(20, "hf", TERMS), side(20, "llamacpp", TERMS)
    ladder = change_ladder(walked(ours, theirs, TERMS), lambda row: {"tiles_bytes": 90, "tiles_bytes_share": 0.9})
    found = gate(judge(ours, theirs, TERMS, (), change_ladder(ladder, unknown, 5)), "tiles")
    assert found.status == "red"
    assert "the one side stretches a picture where the other pads or crops it" in found.cause


def test_sizes_and_counts_are_told_by_the_picture() -> None:
    sizes = judged(change=lambda row: unknown(row) | {"tiles": (1, 1), "tile_sizes": ((8, 4), (8, 6))}, count=3)
    assert_red(sizes, "tiles", "640x480 becomes 8x4 in Hugging Face and 8x6 in libmtmd", "3 of 200 images")
    counts = judged(change=lambda row: unknown(row) | {"tiles": (13, 10)}, count=3)
    assert_red(counts, "tiles", "13 pictures of 640x480", "10 pictures")
    tokens = judged(change=lambda row: {"tokens_equal": False, "tokens_first": 3}, count=2)
    assert_red(tokens, "tokens", "the prompts differ first at position 3 of image_0000")
    positions = judged(change=lambda row: {"positions_equal": False}, count=2)
    assert_red(positions, "tokens", "the same tokens stand at other positions in 2 of 200 images")


# ---- provenance ------------------------------------------------------------------------------------------------------


def refused(verdict: Verdict, *facts: str) -> None:
    assert (verdict.status, verdict.exit_code, verdict.first_bad_stage) == ("REFUSED", 4, "provenance")
    for fact in facts:
        assert fact in gate(verdict, "provenance").detail


def against(change: Callable[[Results], Results], name: str = "llamacpp", ladder: bool = True) -> Verdict:
    """The verdict where one side's results are changed."""
    ours, theirs = side(20, "hf", TERMS), side(20, "llamacpp", TERMS)
    changed = (change(ours), theirs) if name == "hf" else (ours, change(theirs))
    return judge(*changed, TERMS, (), walked(*changed, TERMS) if ladder else None)


def test_a_pair_need_not_say_which_weights_it_was_made_from() -> None:
    assert gate(against(lambda side: side), "provenance").status == "green"
    same = against(lambda side: change_header(side, weights_sha256=WEIGHTS))
    assert gate(same, "provenance").status == "green"


def test_weights_known_to_be_others_are_refused() -> None:
    other = sha256_bytes(b"other weights")
    refused(against(lambda side: change_header(side, weights_sha256=other)), "files were made from weights", other[:12])


@pytest.mark.parametrize("layout", [None, (), ((7, 8),), (4,)])
def test_a_row_without_its_prompt_is_refused(layout: Any) -> None:
    for name in ("hf", "llamacpp"):
        verdict = against(lambda side: change_rows(side, lambda row: {"layout": layout}, 1), name, ladder=False)
        refused(verdict, "do not say the prompt that it was given")


def test_copied_logits_are_refused() -> None:
    ours = side(20, "hf", TERMS)
    verdict = against(lambda side: change_rows(side, lambda row: {"top_logits": ours.rows[row.key].top_logits}, 1))
    refused(verdict, "log-probabilities are Hugging Face's to the last bit in 1 of 20 images, image_0000")


def test_results_under_other_terms_are_refused() -> None:
    other = TERMS.model_copy(update={"prompt": "Another question?"})
    refused(against(lambda side: change_header(side, contract_sha256=other.digest)), "ran under contract")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: {"pictures": (4, 5)}, "pictures of image_0000"),
        (lambda row: answer(row, diverges_at=2), "answer of image_0000"),
        (lambda row: {"generated_equal": False}, "generated_equal of image_0000"),
        (lambda row: {"pixels_equal": False}, "pixels_equal of image_0000"),
        (lambda row: {"tokens_first": 1}, "tokens_first of image_0000"),
    ],
)
def test_a_ladder_that_says_otherwise_than_the_rows_is_refused(
    change: Callable[[Measured], dict[str, object]], words: str
) -> None:
    refused(judged(20, change, 1), "the ladder contradicts the results", words)


def test_one_picture_may_be_asked_several_questions() -> None:
    first = next(iter(side(20, "hf", TERMS).rows.values())).rgb_sha256
    ours, theirs = (
        change_rows(side(20, name, TERMS), lambda row: {"rgb_sha256": first}) for name in ("hf", "llamacpp")
    )
    assert gate(judge(ours, theirs, TERMS, (), walked(ours, theirs, TERMS)), "provenance").status == "green"
    named = change_rows(ours, lambda row: {"image_id": "one"})
    same = change_rows(theirs, lambda row: {"image_id": "one"})
    ladder = change_ladder(walked(named, same, TERMS), lambda row: {"image_id": "one"})
    refused(judge(named, same, TERMS, (), ladder), "has two rows with the image_id of one")


# ---- what is taken for right -----------------------------------------------------------------------------------------


def test_the_references_answers_are_taken_for_right() -> None:
    ours, theirs = side(3, "hf", TERMS), side(3, "llamacpp", TERMS)
    theirs = change_rows(theirs, lambda row: {"text": "Else.", "label": "Else."}, 1)
    a, b = as_judged(ours, theirs, TERMS)
    assert [row.truth for row in a.rows.values()] == [row.text for row in ours.rows.values()]
    assert [row.truth for row in b.rows.values()] == [row.text for row in ours.rows.values()]
    assert [row.correct for row in b.rows.values()] == [False, True, True]
    assert {row.truth for row in ours.rows.values()} == {None}  # the files stay as they are


def test_an_expected_answer_is_taken_before_the_references() -> None:
    ours, theirs = (
        change_rows(side(3, name, SCORED), lambda row: {"truth": "A  picture\nof 1."}, 3) for name in ("hf", "llamacpp")
    )
    a, _ = as_judged(ours, theirs, SCORED)
    assert {row.truth for row in a.rows.values()} == {"A picture of 1."}  # however it is spaced
    assert [row.correct for row in a.rows.values()] == [False, True, False]


def test_labels_are_left_alone() -> None:
    terms = CheckTerms(prompt="Which?", labels=("cat", "dog"))
    ours, theirs = side(3, "hf", terms), side(3, "llamacpp", terms)
    assert as_judged(ours, theirs, terms) == (ours, theirs)


def test_a_truth_that_only_one_side_has_is_told() -> None:
    ours, theirs = side(3, "hf", SCORED), side(3, "llamacpp", SCORED)
    theirs = replace(theirs, rows=dict(list(theirs.rows.items())[:2]))
    with pytest.raises(UserError, match=r"1 of 3 images of Hugging Face are missing from llama\.cpp's results"):
        judge(ours, theirs, SCORED)


def test_without_a_floor_of_answers_there_is_no_limit_for_them() -> None:
    ours, theirs = side(3, "hf", TERMS), side(3, "llamacpp", TERMS)
    ladder = walked(ours, theirs, TERMS)
    header = ladder.header.model_copy(update={"floor": FLOOR})
    assert limits_of(header, TERMS.gate).answer is None
    verdict = judge(ours, theirs, TERMS, (), replace(ladder, header=header))
    assert gate(verdict, "generation").status == "undecided"
    assert verdict.status == "INCONCLUSIVE"


def test_open_answers_are_not_passed_without_a_ladder() -> None:
    ours, theirs = side(20, "hf", TERMS), side(20, "llamacpp", TERMS)
    verdict = judge(ours, theirs, TERMS)
    assert (verdict.status, verdict.exit_code) == ("INCONCLUSIVE", 3)
    assert {gate(verdict, stage).status for stage in ("generation", "agreement")} == {"undecided"}


def test_one_answer_that_was_not_followed_leaves_it_open() -> None:
    verdict = judged(change=lambda row: {"answer": None}, count=1)
    found = gate(verdict, "agreement")
    assert (found.status, found.detail) == ("undecided", "1 of 200 answers were not followed token by token")
    assert verdict.status == "INCONCLUSIVE"


def test_a_ladder_of_shorter_answers_is_refused() -> None:
    verdict = judged(change=lambda row: answer(row, steps=1), count=1)
    assert verdict.status == "REFUSED"
    assert "the answer to image_0000 has 1 tokens there, and the rows have 10" in gate(verdict, "provenance").detail
