"""What makes a comparison impossible is REFUSED, with what was found: nothing of it may ever be a PASS."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sides import (
    FIVE,
    assert_stops,
    change_header,
    change_ladder,
    change_rows,
    ladder_of,
    pair,
    results,
    right,
)

from parity.compare.ladder import Ladder, Spread
from parity.judge.gates.provenance import WIDEST_FLOOR
from parity.judge.judge import judge
from parity.judge.verdict import Verdict
from parity.results import Results
from pipeline.core.files import sha256_bytes


def refused(verdict: Verdict, *facts: str) -> None:
    assert_stops(verdict, "REFUSED", 4, "provenance", *facts)


def test_a_sound_pair_passes() -> None:
    ours, theirs = pair()
    assert judge(ours, theirs, FIVE, (), ladder_of(ours, theirs)).status == "PASS"


# ---- the sides -------------------------------------------------------------------------------------------------------


def test_one_file_given_twice() -> None:
    ours, theirs = pair()
    refused(judge(ours, ours, FIVE), "both files hold answers of Hugging Face")
    refused(judge(theirs, theirs, FIVE), "both files hold answers of llama.cpp")


def test_sides_the_wrong_way_round() -> None:
    ours, theirs = pair()
    refused(judge(theirs, ours, FIVE), "Hugging Face is to be judged by llama.cpp")
    device = results(right(200), "device")
    refused(judge(device, theirs, FIVE), "llama.cpp is to be judged by the device")
    assert judge(theirs, change_header(device, device={"cpu": "phone"}), FIVE).status == "PASS"


def test_a_copy_under_another_name() -> None:
    ours, _ = pair()
    renamed = change_header(ours, side="llamacpp")
    refused(judge(ours, renamed, FIVE), "Hugging Face and llama.cpp both ran transformers on the same machine")
    refused(
        judge(ours, change_header(renamed, engine="llama.cpp"), FIVE),
        "are Hugging Face's to the last bit in 200 of 200",
    )


@pytest.mark.parametrize("count", [1, 40])
def test_some_rows_copied(count: int) -> None:
    ours, theirs = pair()
    copied = change_rows(theirs, lambda row: {"label_logprobs": ours.rows[row.key].label_logprobs}, count)
    refused(judge(ours, copied, FIVE), f"to the last bit in {count} of 200 images", "image_0000")


def test_two_devices_may_agree_to_the_last_bit() -> None:
    _, host = pair()
    device = change_header(host, side="device", device={"cpu": "phone"})
    assert judge(host, device, FIVE).status == "PASS"


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {}}, "which files it ran"),
        ({"weights_sha256": None}, "which trained weights"),
        ({"versions": {}}, "the versions of what ran"),
        ({"runtime": {}}, "how its engine was set up"),
        ({"prompt_token_ids": ()}, "the prompt that it was given"),
        ({"image_slots": ()}, "where in the prompt the picture stands"),
    ],
)
def test_what_a_side_does_not_say(side: int, change: dict[str, Any], said: str) -> None:
    sides = list(pair())
    sides[side] = change_header(sides[side], **change)
    refused(judge(sides[0], sides[1], FIVE), f"{sides[side].header.shown}'s results do not say {said}")
    both = [change_header(one, **change) for one in pair()]
    refused(judge(both[0], both[1], FIVE), said)


def test_an_engine_of_unknown_version() -> None:
    ours, theirs = pair()
    refused(judge(ours, change_header(theirs, versions={"numpy": "2"}), FIVE), "do not say which llama.cpp ran")
    assert judge(change_header(ours, versions={"torch": "2"}), theirs, FIVE).status == "PASS"


def test_a_prompt_of_nothing_but_pictures() -> None:
    sides = [change_header(side, prompt_token_ids=(-1, -1), image_slots=((0, 2),)) for side in pair()]
    refused(judge(sides[0], sides[1], FIVE), "Hugging Face's results do not say any text of its prompt")


def test_rows_in_another_order_than_the_header_says() -> None:
    ours, theirs = pair()
    swapped = change_header(theirs, runtime={"fed": "bgr"})
    refused(judge(ours, swapped, FIVE), "llama.cpp says that it was fed BGR, the contract has RGB, and both sides'")
    both = change_header(ours, runtime={"fed": "bgr"}), swapped
    refused(judge(*both, FIVE), "Hugging Face says that it was fed BGR")
    really = change_rows(swapped, lambda row: {"rgb_sha256": sha256_bytes(row.key.encode())})
    assert judge(ours, really, FIVE).first_bad_stage == "pixels"


@pytest.mark.parametrize("slots", [((1, 2),), ((1, 2), (4, 3)), ((0, 2), (4, 2)), ((1, 2), (4, 1 << 40))])
def test_slots_that_are_not_the_pictures_places(slots: tuple[tuple[int, int], ...]) -> None:
    sides = [change_header(side, image_slots=slots) for side in pair()]
    refused(judge(sides[0], sides[1], FIVE), "image_slots are not the picture's positions")


# ---- the rows --------------------------------------------------------------------------------------------------------


def clone(side: Results, count: int, **values: str) -> Results:
    """The first rows once more, under other keys."""
    rows = dict(side.rows)
    for number, row in enumerate(list(side.rows.values())[:count]):
        key = sha256_bytes(f"clone {number}".encode())
        rows[key] = row.model_copy(update={"key": key, "image_id": f"clone_{number}"} | values)
    return replace(side, rows=rows)


def test_rows_cloned_under_other_keys() -> None:
    ours, theirs = (clone(side, 100) for side in pair())
    refused(judge(ours, theirs, FIVE), "two rows with the rgb_sha256 of clone_0")


def test_one_image_id_twice() -> None:
    ours, theirs = (change_rows(side, lambda _: {"image_id": "same"}, 2) for side in pair())
    refused(judge(ours, theirs, FIVE), "two rows with the image_id of same")


def test_probabilities_that_sum_to_more_than_one() -> None:
    ours, theirs = pair()
    wrong = change_rows(theirs, lambda row: {"label_logprobs": dict.fromkeys(row.label_logprobs, -0.5)}, 1)
    refused(judge(ours, wrong, FIVE), "llama.cpp's label_logprobs of image_0000 are probabilities that sum to 3.03")


# ---- the ladder ------------------------------------------------------------------------------------------------------


def judged(change: Callable[[Ladder], Ladder]) -> Verdict:
    ours, theirs = pair()
    return judge(ours, theirs, FIVE, (), change(ladder_of(ours, theirs)))


def header(**values: object) -> Callable[[Ladder], Ladder]:
    return lambda ladder: replace(ladder, header=ladder.header.model_copy(update=values))


def test_a_ladder_of_something_else() -> None:
    other = sha256_bytes(b"other")
    refused(judged(header(contract_sha256=other)), "the ladder contradicts the results: it is of contract")
    refused(judged(header(dataset_sha256=other)), "it is of dataset")
    refused(judged(header(kv_type="f16/f16")), "it is of a KV cache of f16/f16, and the contract has q4_0/q4_0")


@pytest.mark.parametrize("kept", [0, 1, 199])
def test_lines_missing(kept: int) -> None:
    verdict = judged(lambda ladder: replace(ladder, rows=dict(list(ladder.rows.items())[:kept])))
    refused(verdict, f"it has no line of {200 - kept} of 200 images")


@pytest.mark.parametrize("name", WIDEST_FLOOR)
def test_a_floor_that_cannot_be(name: str) -> None:
    def widen(ladder: Ladder) -> Ladder:
        floor = ladder.header.floor.model_copy(update={name: Spread(median=100, p95=100, largest=100)})
        return replace(ladder, header=ladder.header.model_copy(update={"floor": floor}))

    refused(judged(widen), f"its noise floor of {name} is 100")


@pytest.mark.parametrize(
    "change",
    [
        {"label_equal": False},
        {"pixels_equal": False},
        {"generated_equal": False},
        {"image_id": "another"},
        {"tokens_first": 3},
        {"tiles_bytes": None},
        {"tiles_bytes_share": None},
        {"tiles_bytes": 7},
        {"tokens_first": 3, "tokens_equal": True},
        {"tiles": (1, 1)},
        {"logits_kl_labels": None},
        {"logits_kl_labels": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [1, None])
def test_lines_that_contradict_the_rows_or_themselves(change: dict[str, object], count: int | None) -> None:
    verdict = judged(lambda ladder: change_ladder(ladder, lambda _: change, count))
    word = "pictures of image_0000" if "tiles" in change else next(iter(change))
    refused(verdict, "the ladder contradicts the results:", word)


def test_rows_that_were_changed_under_a_ladder() -> None:
    ours, theirs = pair()
    ladder = ladder_of(ours, theirs)
    for change, said in (
        ({"generated_token_ids": (2,)}, "generated_equal"),
        ({"label": "metal", "text": " metal"}, "label_equal"),
        ({"rgb_sha256": "0" * 64}, "pixels_equal"),
        ({"label_logprobs": {}}, "logits_kl_labels"),
    ):
        changed = change_rows(theirs, lambda _, change=change: change, 1)  # type: ignore[misc]
        refused(judge(ours, changed, FIVE, (), ladder), said)
    near = change_rows(theirs, lambda row: {"label_logprobs": {k: v - 1e-6 for k, v in row.label_logprobs.items()}}, 1)  # type: ignore[operator]
    assert judge(ours, near, FIVE, (), ladder).status == "PASS", "an image that was run again"
