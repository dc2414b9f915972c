"""Each gate: a sound pair is green, a broken thing is red at its own stage, too few images are undecided."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from sides import (
    FIVE,
    FORTY,
    STAGES,
    Answers,
    assert_red,
    assert_stops,
    change_header,
    change_ladder,
    change_rows,
    gate,
    ladder_of,
    pair,
    results,
    right,
    spoil,
)

from parity.compare.ladder import Ladder, Measured
from parity.judge.gates.distances import label_kl
from parity.judge.gates.limits import limits_of, parted_at
from parity.judge.judge import judge
from parity.judge.verdict import GateResult, Verdict
from parity.results import Results, Row
from pipeline.contract import Contract, Gate
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes

LETTERBOX = GateResult(stage="letterbox", status="green", detail="80 sizes")


def walked(change: Callable[[Measured], dict[str, object]], count: int | None = None) -> Verdict:
    """The verdict on a sound pair whose ladder is changed in ``count`` rows."""
    ours, theirs = pair()
    return judge(ours, theirs, FIVE, [LETTERBOX], change_ladder(ladder_of(ours, theirs), change, count))


def test_equal_sides_pass() -> None:
    verdict = judge(*pair(), FIVE, [LETTERBOX])
    assert (verdict.status, verdict.exit_code, verdict.first_bad_stage) == ("PASS", 0, None)
    assert [one.stage for one in verdict.gates] == [*STAGES[:2], "letterbox", *STAGES[2:]]
    assert {one.stage for one in verdict.gates if one.status == "not measured"} == {
        "runtime", "decoded", "tiles", "embeddings",
    }  # fmt: skip
    assert all(one.status in ("green", "not measured") and not one.cause for one in verdict.gates)
    assert all("ladder" in gate(verdict, stage).detail for stage in ("decoded", "tiles", "embeddings"))
    assert (verdict.n, verdict.agreement, verdict.difference.points, verdict.difference.mcnemar_p) == (200, 1, 0, 1)
    assert (verdict.cause, verdict.fix) == ("", "")


def test_a_clean_ladder_passes_and_every_rung_is_measured() -> None:
    verdict = walked(lambda row: {"decoded_equal": True})
    assert verdict.status == "PASS"
    rungs = [one for one in verdict.gates if one.rung]
    assert [one.rung for one in rungs] == [f"S{number}" for number in range(8)]
    assert all(one.status == "green" and one.samples == 200 for one in rungs)
    near = gate(verdict, "embeddings")
    assert (near.limit, near.floor) == (pytest.approx(0.015), 0.005)
    assert near.value == pytest.approx(0.009, rel=0.05)
    assert len(near.worst) == 5
    assert [worst.value for worst in near.worst] == sorted((worst.value for worst in near.worst), reverse=True)
    assert verdict.notes == ()


def test_a_value_is_the_smallest_limit_that_would_pass() -> None:
    ours, theirs = pair()
    ladder = ladder_of(ours, theirs)
    for stage in ("embeddings", "logits"):
        found = gate(judge(ours, theirs, FIVE, (), ladder), stage)
        assert found.value is not None
        assert found.limit is not None
        enough = found.value / found.limit
        for factor, status in ((enough * 1.001, "green"), (enough * 0.999, "red")):
            tried = judge(ours, theirs, FIVE, (), ladder, Gate(noise_factor=factor))
            assert gate(tried, stage).status == status


# ---- what the sides were given ---------------------------------------------------------------------------------------


def assert_refused(verdict: Verdict, *facts: str) -> None:
    assert_stops(verdict, "REFUSED", 4, "provenance", *facts)
    assert len(verdict.gates) == len(STAGES), "the rest is filled in"


def test_sides_that_do_not_belong_together_are_refused() -> None:
    ours, theirs = pair()
    other = Contract(max_new_tokens=8)
    assert_refused(judge(ours, theirs, other), "Hugging Face ran under contract", other.digest[:12])
    changed = change_header(theirs, contract_sha256=other.digest)
    assert_refused(judge(ours, changed, FIVE), "llama.cpp ran under contract", other.digest[:12])
    moved = change_header(theirs, dataset_sha256=sha256_bytes(b"other"))
    assert_refused(judge(ours, moved, FIVE), "Hugging Face ran on dataset", sha256_bytes(b"other")[:12])
    ours = change_header(ours, weights_sha256="1" * 64)
    stale = change_header(theirs, weights_sha256="2" * 64)
    assert_refused(judge(ours, stale, FIVE), "from weights 111111111111", "from 222222222222")


@pytest.mark.parametrize("key", ["llama-cpp-python", "llama_commit"])
def test_another_llama_cpp_is_refused(key: str) -> None:
    ours, theirs = pair()
    ours = change_header(ours, versions={key: "0.3.36"})
    assert judge(ours, change_header(theirs, versions={"llama_commit": "a", key: "0.3.36"}), FIVE).status == "PASS"
    assert_refused(judge(ours, change_header(theirs, versions={key: "0.3.37"}), FIVE), key, "0.3.36", "0.3.37")
    assert judge(ours, change_header(theirs, versions={key: "0.3.36"}), FIVE).status == "PASS"


def test_the_engine_is_set_up_as_the_app_sets_it_up() -> None:
    ours, theirs = pair()
    runtime = {**FIVE.runtime.model_dump(mode="json"), "n_threads": 2, "fed": "rgb"}

    def verdict(**changes: object) -> Verdict:
        return judge(ours, change_header(theirs, runtime=runtime | changes), FIVE)

    assert gate(verdict(), "runtime").status == "green"
    assert verdict(n_threads=6).status == "PASS"
    assert_red(verdict(type_k="f16"), "runtime", "type_k is f16, not q4_0")
    assert_red(verdict(flash_attn=False, type_v="f16"), "runtime", "type_v is f16", "flash_attn is false, not true")
    assert_red(verdict(n_ctx=4096), "runtime", "n_ctx is 4096, not 1024")
    assert_red(verdict(n_batch=256), "runtime", "n_batch is 256, not 512")
    some = judge(ours, change_header(theirs, runtime={"type_k": "q4_0"}), FIVE)
    assert "not stated: n_ctx" in gate(some, "runtime").detail


def test_a_batch_beyond_the_context_is_the_context() -> None:
    contract = Contract.model_validate({"runtime": {"n_ctx": 512, "n_batch": 2048}})
    ours, theirs = (results(right(200, contract), side, contract) for side in ("hf", "llamacpp"))
    for stated, status in ((512, "green"), (1024, "green"), (256, "red")):
        verdict = judge(ours, change_header(theirs, runtime={"n_ctx": 512, "n_batch": stated}), contract)
        assert gate(verdict, "runtime").status == status


def test_a_check_from_elsewhere_stands_behind_runtime() -> None:
    broken = GateResult(stage="letterbox", status="red", detail="3 of 80 sizes differ", cause="a", fix="b")
    ours, theirs = pair()
    swapped = change_rows(theirs, lambda row: {"rgb_sha256": sha256_bytes(row.key.encode())})
    verdict = judge(ours, swapped, FIVE, [broken])
    assert_red(verdict, "letterbox", "3 of 80")
    assert gate(verdict, "pixels").red
    assert judge(ours, theirs, Contract(max_new_tokens=8), [broken]).first_bad_stage == "provenance"


def test_other_decoded_bytes() -> None:
    assert gate(walked(lambda row: {}), "decoded").status == "not measured"
    verdict = walked(lambda row: {"decoded_equal": int(row.image_id[-4:]) >= 3})
    assert_red(verdict, "decoded", "3 of 200", "image_0000")
    assert gate(verdict, "decoded").beyond == 3


def test_swapped_channels_turn_pixels_red() -> None:
    ours, theirs = pair(100)
    swapped = change_rows(theirs, lambda row: {"rgb_sha256": sha256_bytes(row.key.encode())})
    verdict = judge(ours, swapped, FIVE)
    assert_red(verdict, "pixels", "100 of 100 canvases differ", "image_0000", "llama.cpp was not given the dataset's")
    assert "Hugging Face was not given" not in gate(verdict, "pixels").detail
    assert "channel order" in verdict.cause


def test_some_pixels_differ() -> None:
    ours, theirs = pair(100)
    verdict = judge(change_rows(ours, lambda row: {"rgb_sha256": sha256_bytes(row.key.encode())}, 2), theirs, FIVE)
    assert_red(
        verdict, "pixels", "2 of 100 canvases differ", "image_0000, image_0001", "Hugging Face was not given", "in 2"
    )
    assert "channel order" not in verdict.cause


def test_both_sides_given_the_same_wrong_pixels() -> None:
    """Equal bytes are not enough: under RGB they are the dataset's. Under BGR no hash of them is known."""
    sides = [change_rows(side, lambda row: {"rgb_sha256": sha256_bytes(row.key.encode())}) for side in pair()]
    verdict = judge(*sides, FIVE)
    assert_red(verdict, "pixels", "200 of 200 canvases are the same bytes on both sides but not the dataset's")
    bgr = Contract.model_validate({"image": {"channel_order": "bgr"}})
    sides = [change_header(side, contract_sha256=bgr.digest, runtime={"fed": "bgr"}) for side in sides]
    assert judge(*sides, bgr).status == "PASS"


@pytest.mark.parametrize(
    ("change", "facts", "cause"),
    [
        (
            {"tiles": (1, 2), "tiles_bytes": None, "tiles_bytes_share": None, "tiles_floats": None},
            ["reference's encoder is given 1 picture, the candidate's 2 pictures"],
            "libmtmd made 1x1 + overview (2 pictures), Hugging Face the overview alone",
        ),
        (
            {"tiles": (17, 5), "tiles_bytes": None, "tiles_bytes_share": None},
            ["17 pictures"],
            "libmtmd made 2x2 + overview (5 pictures)",
        ),
        ({"tiles_bytes": None, "tiles_bytes_share": None, "tiles_floats": None}, ["other sizes"], "tile size"),
        ({"tiles_bytes": 2, "tiles_bytes_share": 0.9}, ["by up to 2 of 255", "90.0%"], "resampling filter"),
        ({"tiles_bytes": 200, "tiles_bytes_share": 0.66}, ["by up to 200"], "red and blue swapped"),
        ({"tiles_bytes": 200, "tiles_bytes_share": 0.95}, ["by up to 200"], "another crop"),
        ({"tiles_floats": 0.06}, ["the bytes are equal", "0.06"], "mean or the standard deviation"),
    ],
)
def test_other_tiles(change: dict[str, object], facts: list[str], cause: str) -> None:
    for count in (None, 1):
        verdict = walked(lambda row: change, count)
        assert_red(verdict, "tiles", *facts, f"{count or 200} of 200")
        assert cause in verdict.cause


def test_tokens() -> None:
    ours, theirs = pair(100)

    def red(ids: tuple[int, ...], slots: tuple[tuple[int, int], ...], *facts: str) -> None:
        verdict = judge(ours, change_header(theirs, prompt_token_ids=ids, image_slots=slots), FIVE)
        assert_red(verdict, "tokens", *facts)

    both = ((1, 2), (4, 2))
    red((7, -1, -1, 9), ((1, 2),), "tile plans differ: Hugging Face has 2 pictures, llama.cpp has 1 picture")
    red((7, -1, -1, 6, -1, -1, 9), both, "at position 3", "token 8", "token 6")
    red((5, 7, -1, -1, 8, -1, -1, 9), ((2, 2), (5, 2)), "at position 0", "token 7", "token 5", "7 and 8 tokens")
    red((7, -1, -1, 8, -1, -1), both, "at position 6", "token 9", "llama.cpp has no more tokens")
    red((7, -1, 3, 8, -1, -1, 9), ((1, 1), (4, 2)), "at position 2", "a picture", "token 3")
    ours = change_header(ours, prompt_token_ids=(7, -1, -1, -1, -1, 9), image_slots=((1, 2), (3, 2)))
    red((7, -1, -1, -1, -1, 9), ((1, 3), (4, 1)), "picture 1 takes 2 positions from 1")


def test_tokens_that_differ_in_one_image_alone() -> None:
    verdict = walked(lambda row: {"tokens_equal": False, "tokens_first": 12}, 1)
    assert_red(verdict, "tokens", "1 of 200 images", "position 12 of image_0000")


# ---- what each stage made of it --------------------------------------------------------------------------------------


def test_other_embeddings() -> None:
    verdict = walked(lambda row: {"embeddings_error": 0.2})
    assert_red(verdict, "embeddings", "median 0.2", "200 of 200")
    assert "stale mmproj" in verdict.cause
    # The logits follow, and are said to.
    verdict = walked(lambda row: {"embeddings_error": 0.2, "logits_kl": 0.5})
    assert gate(verdict, "logits").cause == "follows from S4 embeddings"
    assert gate(verdict, "logits").fix == ""


def test_broken_embeddings_in_a_part_of_the_images_do_not_hide_behind_the_median() -> None:
    assert_red(walked(lambda row: {"embeddings_error": 0.5}, 60), "embeddings", "60 of 200")
    assert walked(lambda row: {"embeddings_error": 0.05}, 10).status == "PASS"


@pytest.mark.parametrize(("stage", "key"), [("embeddings", "embeddings_error"), ("logits", "logits_kl")])
def test_a_value_that_is_no_number_is_red(stage: str, key: str) -> None:
    verdict = walked(lambda row: {key: None}, 1)
    assert_red(verdict, stage, "1 of 200 images give values that are not finite", "image_0000")
    assert "overflows" in verdict.cause
    assert gate(walked(lambda row: {key: None}), stage).value is None


def test_embeddings_that_nothing_can_be_compared_of_are_not_measured() -> None:
    other: dict[str, object] = {"tiles": (1, 2), "tiles_bytes": None, "tiles_bytes_share": None}
    verdict = walked(lambda row: other | {"embeddings_error": None})
    assert_red(verdict, "tiles")
    assert gate(verdict, "embeddings").status == "not measured"


def test_other_logits() -> None:
    verdict = walked(lambda row: {"logits_kl": 0.3, "logits_top1_equal": False})
    assert_red(verdict, "logits", "median 0.3 nats", "the most likely token differs in 200 of 200")
    assert "language half differs" in verdict.cause


def test_near_ties_are_no_reason_to_fail() -> None:
    assert walked(lambda row: {"logits_top1_equal": False}, 20).status == "PASS"


def test_limits_follow_the_floor_the_types_and_the_factor() -> None:
    ours, theirs = pair()
    fine = ladder_of(ours, theirs, text_type="F16", mmproj_type="F16", kv_type="f16/f16").header
    coarse = ladder_of(ours, theirs, text_type="Q4_K_M", mmproj_type="Q8_0", kv_type="q4_0/q4_0").header
    assert limits_of(fine, Gate()).logits < limits_of(coarse, Gate()).logits
    assert limits_of(fine, Gate()).embeddings < limits_of(coarse, Gate()).embeddings
    double = limits_of(fine, Gate(noise_factor=2.0))
    assert double.embeddings == pytest.approx(2 * limits_of(fine, Gate()).embeddings)
    strange = ladder_of(ours, theirs, text_type="IQ1_S").header
    assert (
        limits_of(strange, Gate()).logits >= limits_of(ladder_of(ours, theirs, text_type="Q4_0").header, Gate()).logits
    )
    assert limits_of(coarse, Gate()).logits_each == pytest.approx(8 * limits_of(coarse, Gate()).logits)


def unsure(row: Row) -> dict[str, object]:
    return {"label_logprobs": dict.fromkeys(row.label_logprobs, -2.0)}


def test_logits_are_judged_from_the_rows_where_no_ladder_was_walked() -> None:
    ours, theirs = pair()
    near = gate(judge(ours, theirs, FIVE), "logits")
    assert near.value is not None
    assert 0 < near.value < 1e-5
    verdict = judge(ours, change_rows(theirs, unsure), FIVE)
    assert_red(verdict, "logits", "over the labels", "200 of 200", "no ladder")
    assert "adapter" in verdict.cause
    broken = change_rows(theirs, lambda row: {"label_logprobs": row.label_logprobs | {"fire": None}}, 9)
    verdict = judge(ours, broken, FIVE)
    assert_red(verdict, "logits", "9 of 200 images give log-probabilities of the labels that are not finite")
    assert_red(judge(ours, broken, FIVE, (), ladder_of(ours, broken)), "logits", "9 of 200 images give log-prob")
    silent = change_rows(theirs, lambda _: {"label_logprobs": {}})
    assert gate(judge(ours, silent, FIVE), "logits").status == "not measured"


def test_the_labels_kl_equals_scipys() -> None:
    from scipy.special import softmax
    from scipy.stats import entropy

    generator = random.Random(5)
    (row, *_) = results(right(1)).rows.values()
    for _ in range(20):
        a, b = ([generator.gauss(-5, 4) for _ in FIVE.labels] for _ in range(2))
        sides = [
            row.model_copy(update={"label_logprobs": dict(zip(FIVE.labels, values, strict=True))}) for values in (a, b)
        ]
        assert label_kl(*sides) == pytest.approx(entropy(softmax(a), softmax(b)), rel=1e-9, abs=1e-14)
    assert label_kl(row, row) == 0


@pytest.mark.parametrize(
    ("ours", "theirs", "cause"),
    [
        (((4, 2), "end"), ((4, 2, 5, 5, 5), "length"), "the end token is not recognised: llama.cpp goes on"),
        (((4, 2, 5, 5, 5), "length"), ((4, 2), "end"), "the reference does not stop"),
        (((4, 2), "end"), ((4, 2, 5), "end"), "writes more after the label"),
        (((4, 2), "end"), ((3, 2), "end"), "other tokens"),
    ],
)
def test_other_generated_tokens_behind_equal_labels(
    ours: tuple[tuple[int, ...], str], theirs: tuple[tuple[int, ...], str], cause: str
) -> None:
    sides = [
        change_rows(side, lambda _, said=said: {"generated_token_ids": said[0], "stop_reason": said[1]})
        for side, said in zip(pair(), (ours, theirs), strict=True)
    ]
    for ladder in (None, ladder_of(*sides)):
        verdict = judge(*sides, FIVE, (), ladder)
        assert_red(verdict, "generation", "200 of 200 images with equal labels")
        assert cause in verdict.cause


def test_few_other_tokens_are_noise() -> None:
    ours, theirs = pair()
    few = change_rows(theirs, lambda _: {"generated_token_ids": (2,)}, 3)
    found = gate(judge(ours, few, FIVE), "generation")
    assert (found.status, found.beyond, found.limit) == ("green", 3, 0.01)
    many = change_rows(theirs, lambda _: {"generated_token_ids": (2,)}, 10)
    assert judge(ours, many, FIVE).first_bad_stage == "generation"
    ladder = ladder_of(ours, many)
    noisy_floor = ladder.header.floor.model_copy(update={"generated_differ": 4})
    noisy = replace(ladder, header=ladder.header.model_copy(update={"floor": noisy_floor}))
    assert judge(ours, many, FIVE, (), noisy).status == "PASS", "bfloat16 does as much"
    apart = results([(truth, None) for truth, _ in right(200)], "llamacpp")
    assert gate(judge(ours, apart, FIVE), "generation").status == "not measured"


# ---- what came out ---------------------------------------------------------------------------------------------------


def test_answers_read_by_another_rule() -> None:
    ours, theirs = pair(100)
    verdict = judge(ours, change_rows(theirs, lambda _: {"text": " Fire and water"}, 3), FIVE)
    # image 0 is water and reads as water, which comes first in the contract
    assert_red(verdict, "answers", "llama.cpp read 2 of 100", "image_0001", "' Fire and water' as land, not as water")


@pytest.mark.parametrize("better", [False, True])
@pytest.mark.parametrize(
    ("n", "apart", "margin", "red"),
    [
        (100, 3, 3.0, False),
        (100, 4, 3.0, True),
        (200, 6, 3.0, False),
        (200, 7, 3.0, True),
        (1000, 1, 0.1, False),  # 0.1 as a float is more than a tenth, 100 * 1 / 1000 is not
        (1000, 7, 0.7, False),  # 0.7 as a float is less than seven tenths
        (1000, 8, 0.7, True),
        (300, 1, 0.33, True),
        (100, 50, 50.0, False),
    ],
)
def test_the_margin_is_exact_both_ways(n: int, apart: int, margin: float, red: bool, better: bool) -> None:
    good, bad = right(n), spoil(right(n), apart)
    ours, theirs = (bad, good) if better else (good, bad)
    verdict = judge(results(ours), results(theirs, "llamacpp"), FIVE, gate=Gate(margin_points=margin))
    assert gate(verdict, "accuracy").red == red
    assert verdict.difference.points == pytest.approx((1 if better else -1) * 100 * apart / n)
    assert verdict.difference.margin_points == margin
    if red:
        assert_red(verdict, "accuracy", f"of {n}")
    else:  # at the very margin for the worse it is open
        assert better or gate(verdict, "accuracy").status == "undecided"


def test_other_limits_need_no_other_contract() -> None:
    ours, theirs = results(right(400)), results(spoil(right(400), 5), "llamacpp")
    assert judge(ours, theirs, FIVE).status == "PASS"
    assert_red(judge(ours, theirs, FIVE, gate=Gate(margin_points=1.0)), "accuracy")


def test_too_few_images_to_tell() -> None:
    """None differ; 3.84 * 0.97 / 0.03 = 124.2 images show 3 points."""
    verdict = judge(*pair(124), FIVE)
    assert_stops(verdict, "INCONCLUSIVE", 3, "accuracy", "goes down to -3.0", "it takes 125 images or more")
    assert verdict.headline == (
        "Undecided: 124 images are too few to rule out that llama.cpp is worse by 3 points: plan the next run on 125"
        " images or more"
    )
    assert verdict.difference.needed == 125
    assert verdict.difference.p_inferior > 0.025
    verdict = judge(*pair(125), FIVE)
    assert verdict.status == "PASS"
    assert verdict.difference.p_inferior < 0.025


def test_a_reference_that_has_not_learnt() -> None:
    chance: Answers = [(truth, "wood") for truth, _ in right(400)]
    verdict = judge(results(chance), results(chance, "llamacpp"), FIVE)
    assert_stops(verdict, "INCONCLUSIVE", 3, "accuracy", "always saying water in 20.0%")
    assert verdict.headline.startswith("Undecided: Hugging Face has not been shown to be better")
    assert "not learnt" in verdict.headline
    # 92 of 400 are more than 80, and not surely more.
    barely = [(truth, truth if number < 15 else "wood") for number, (truth, _) in enumerate(right(400))]
    verdict = judge(results(barely), results(barely, "llamacpp"), FIVE)
    assert_stops(verdict, "INCONCLUSIVE", 3, "accuracy", "right in 23.0%")


def test_red_is_told_before_what_is_open() -> None:
    few = results(right(20)), results(spoil(right(20), 10), "llamacpp")
    assert_red(judge(*few, FIVE), "accuracy")
    ours, theirs = pair(20)
    assert_red(judge(ours, change_header(theirs, prompt_token_ids=(1, -1), image_slots=((1, 1),)), FIVE), "tokens")


def test_the_likely_cause_of_a_lost_accuracy() -> None:
    good = results(right(100))
    silent = [(truth, None) for truth, _ in right(100)]
    assert "without its adapter" in judge(good, results(silent, "llamacpp"), FIVE).cause
    stuck: Answers = [(truth, "wood") for truth, _ in right(100)]
    verdict = judge(good, results(stuck, "llamacpp"), FIVE)
    assert "llama.cpp says wood to 100 of 100" in verdict.cause
    assert "mmproj" in verdict.fix
    assert "quantization" in judge(good, results(spoil(right(100), 40), "llamacpp"), FIVE).cause
    assert "Hugging Face says wood to 100" in judge(results(stuck), results(right(100), "llamacpp"), FIVE).cause


def lose(label: str, count: int, n: int = 1000) -> tuple[Results, Results]:
    """``count`` images of ``label`` lost, and as many of another won, so that the accuracy stays."""
    good = right(n)
    other = "land" if label != "land" else "water"
    ours, theirs = list(good), list(good)
    for side, name in ((theirs, label), (ours, other)):
        own = [index for index, (truth, _) in enumerate(side) if truth == name][:count]
        for index in own:
            side[index] = (name, "metal" if name != "metal" else "wood")
    return results(ours), results(theirs, "llamacpp")


def test_a_label_that_is_lost_while_the_accuracy_stays() -> None:
    verdict = judge(*lose("fire", 60), FIVE)
    assert verdict.difference.points == 0
    found = gate(verdict, "classes")
    assert found.status == "red"
    assert "fire: recall 100.0% and 70.0% of 200 images, -30.0 points" in found.detail
    assert "confuses fire" in found.cause
    assert gate(judge(*lose("fire", 25), FIVE), "classes").status == "green", "12.5 points might be 10"
    strict = Gate(class_margin_points=5.0)
    assert gate(judge(*lose("fire", 25), FIVE, gate=strict), "classes").status == "red"


def test_recall_floors() -> None:
    answers = spoil(right(1000), 100)  # 20 of each 200
    ours, theirs = results(answers), results(answers, "llamacpp")

    def verdict(floor: float) -> Verdict:
        return judge(ours, theirs, FIVE, gate=Gate(recall_floors={"fire": floor}))

    assert verdict(0.85).status == "PASS"  # Wilson of 180 of 200: 85.1 % to 93.4 %
    assert "1 recall floors reached" in gate(verdict(0.85), "classes").detail
    assert_stops(verdict(0.9), "INCONCLUSIVE", 3, "classes", "fire: recall 85.1% to 93.4% (180 of 200), floor 90.0%")
    assert_red(verdict(0.95), "classes", "fire: recall 85.1% to 93.4%")
    with pytest.raises(UserError, match="'ice', none of those"):
        judge(ours, theirs, FIVE, gate=Gate(recall_floors={"ice": 0.5}))


def test_a_floor_of_a_label_without_images_is_open() -> None:
    answers: Answers = [(truth, truth) for truth in ("water", "land") * 200]
    verdict = judge(results(answers), results(answers, "llamacpp"), FIVE, gate=Gate(recall_floors={"fire": 0.5}))
    assert_stops(verdict, "INCONCLUSIVE", 3, "classes", "fire", "0 of 0")


def test_a_label_that_no_image_tests_is_open() -> None:
    answers: Answers = [(truth, truth) for truth in ("water", "land", "wood") * 100]
    verdict = judge(results(answers), results(answers, "llamacpp"), FIVE)
    assert_stops(verdict, "INCONCLUSIVE", 3, "classes", "no image is of fire, metal")


# ---- each image on its own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "rung"),
    [
        ({"decoded_equal": False, "pixels_equal": False, "logits_kl": 9.0}, "S0"),
        ({"pixels_equal": False, "tiles_bytes": 3}, "S1"),
        ({"tiles_bytes": 1}, "S2"),
        ({"tiles": (1, 2)}, "S2"),
        ({"tokens_equal": False}, "S3"),
        ({"embeddings_error": 0.05}, "S4"),
        ({"embeddings_error": None}, "S4"),
        ({"logits_kl": 0.1}, "S5"),
        ({"logits_kl": None}, "S5"),
        ({"logits_max": 0.5}, "S5"),
        ({"logits_max": None}, "S5"),
        ({"generated_equal": False}, "S6"),
        ({"label_equal": False}, None),
        ({"logits_kl": 1e-3, "embeddings_error": 0.0165}, None),  # beyond the median's limit, within an image's own
    ],
)
def test_a_flip_knows_where_its_image_parted(change: dict[str, object], rung: str | None) -> None:
    ours, theirs = results(right(200)), results(spoil(right(200), 2), "llamacpp")
    ladder = change_ladder(ladder_of(ours, theirs), lambda row: change, 1)
    first, second = judge(ours, theirs, FIVE, (), ladder).flips.right_to_wrong.examples
    assert (first.parted_at, second.parted_at) == (rung, None)
    assert parted_at(ladder.rows[first.key], limits_of(ladder.header, FIVE.gate)) == rung
    assert first.key in ours.rows


# ---- no false alarm --------------------------------------------------------------------------------------------------


def resampled(ours: Results, theirs: Results, ladder: Ladder, seed: int) -> tuple[Results, Results, Ladder]:
    """The same images drawn anew with replacement; a drawn image gets a key of its own."""
    generator = random.Random(seed)
    keys = list(ours.rows)
    sides: tuple[dict[str, Row], dict[str, Row]] = ({}, {})
    rows = {}
    for number, drawn in enumerate(generator.choices(keys, k=len(keys))):
        key = sha256_bytes(f"{drawn} {number}".encode())
        new = {"key": key, "rgb_sha256": key, "image_id": f"drawn_{number:04d}"}
        for side, made in zip((ours, theirs), sides, strict=True):
            made[key] = side.rows[drawn].model_copy(update=new)
        rows[key] = ladder.rows[drawn].model_copy(update={"key": key, "image_id": new["image_id"]})
    return replace(ours, rows=sides[0]), replace(theirs, rows=sides[1]), replace(ladder, rows=rows)


@pytest.mark.parametrize("contract", [FIVE, FORTY], ids=["5", "40"])
def test_fifty_resamplings_of_a_clean_pair_are_never_failed(contract: Contract) -> None:
    """300 images at 92 %, 2 lost and 2 won: what Q8_0 does to a model that has learnt."""
    answers = spoil(right(300, contract), 24, contract)
    ours = results(answers, contract=contract)
    theirs = results(spoil(right(300, contract), 24, contract, start=2), "llamacpp", contract)
    ladder = ladder_of(ours, theirs)
    found = [
        judge(*sides[:2], contract, (), sides[2]) for sides in (resampled(ours, theirs, ladder, s) for s in range(50))
    ]
    assert {verdict.status for verdict in found} <= {"PASS", "INCONCLUSIVE"}
    assert sum(verdict.status == "PASS" for verdict in found) > 40


def test_files_of_another_type_are_caught_at_the_runtime() -> None:
    ours = results(right(200))
    for half, odd, declared in (
        ("text", "Q4_0+Q8_0", "Q8_0"),
        ("mmproj", "Q8_0", "F16"),
        ("text", "Q8_0", "Q4_0"),  # finer, but held against the limits of the coarse type
        ("text", "Q6_K+Q8_0", "Q4_K_M"),
    ):
        stated = {"text_types": "Q8_0", "mmproj_types": "Q8_0"} | {f"{half}_types": odd}
        theirs = results(right(200), "llamacpp")
        header = theirs.header.model_copy(update={"runtime": theirs.header.runtime | stated})
        theirs = Results(header, theirs.rows)
        types = {"text_type": "Q8_0", "mmproj_type": "Q8_0"} | {f"{half}_type": declared}
        verdict = judge(ours, theirs, FIVE, (), ladder_of(ours, theirs, **types))
        assert_red(verdict, "runtime", f"matrices of {odd}, and {declared} was exported")
    fell_back = theirs.header.runtime | {"text_types": "Q5_0+Q8_0", "mmproj_types": "Q8_0"}
    theirs = Results(theirs.header.model_copy(update={"runtime": fell_back}), theirs.rows)
    ladder = ladder_of(ours, theirs, text_type="Q4_K_M")
    assert judge(ours, theirs, FIVE, (), ladder).status == "PASS"


def test_a_sure_model_whose_other_logits_are_far_off_is_caught_at_the_logits() -> None:
    """Its KL is small whatever happens to the tokens it does not want."""
    ours, theirs = results(right(200)), results(right(200), "llamacpp")
    ladder = change_ladder(ladder_of(ours, theirs), lambda row: {"logits_max": 0.3})
    verdict = judge(ours, theirs, FIVE, (), ladder)
    assert_red(verdict, "logits", "median 0.3 standard deviations", "median KL")
