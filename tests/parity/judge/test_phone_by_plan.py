"""A phone by its plan: what passes, what is open, what fails, what is refused."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from phones import both, filed, judged, phone, plan_of, right_places
from sides import FIVE, FORTY, change_header, change_rows, cut, gate, write_results

from parity.judge.phone import judge_phone
from parity.judge.plan import Plan, check_plan, plan_digest
from parity.judge.verdict import Verdict
from parity.report.screen import render_text
from parity.results import Results, ResultsWriter, read_results
from pipeline.contract import Contract, Gate

ORDER = ("PASS", "INCONCLUSIVE", "FAIL", "REFUSED")


@pytest.fixture(scope="module")
def sides() -> tuple[Results, Results]:
    return both()


@pytest.fixture(scope="module")
def plan(sides: tuple[Results, Results]) -> Plan:
    return plan_of(sides)


def test_a_phone_that_answers_as_the_host_passes_at_row_0(sides: tuple[Results, Results], plan: Plan) -> None:
    first = plan.rows[0].pictures
    verdict = judged(sides, phone(sides[1], plan, first), plan)
    assert (verdict.status, verdict.exit_code) == ("PASS", 0)
    assert verdict.headline == ("OK to ship: on photos like these the device is less than 3 points worse")
    audit = verdict.audit
    assert audit is not None
    assert (audit.stop, audit.counted, audit.uncounted, audit.lost) == ("PASS", first, 0, ())
    assert audit.claim.startswith("on photos like these, the device is less than 3 points worse than Hugging Face")
    assert verdict.evidence["plan"] == plan_digest(plan)
    assert [one.stage for one in verdict.gates][-8:] == [
        "device provenance", "device runtime", "device pixels", "device tokens", "device logits", "device answers",
        "audit", "device classes",
    ]  # fmt: skip
    assert verdict.n == 600
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_one_picture_fewer_is_open(sides: tuple[Results, Results], plan: Plan) -> None:
    first = plan.rows[0].pictures
    verdict = judged(sides, phone(sides[1], plan, first - 1), plan)
    assert (verdict.status, verdict.exit_code, verdict.first_bad_stage) == ("INCONCLUSIVE", 3, "audit")
    assert f"it passes after {first} pictures if it loses no more" in verdict.headline
    assert "judge again as often as you like" in verdict.fix
    assert judged(sides, phone(sides[1], plan, 0), plan).status == "INCONCLUSIVE"


@pytest.mark.parametrize("kind", ["lost", "silent"])
def test_a_loss_needs_the_next_row(sides: tuple[Results, Results], plan: Plan, kind: str) -> None:
    """Another answer, or none: a crash or a time-out is a row without a label."""
    place = right_places(sides[1], plan, 40)[0]
    first, second = plan.rows[0].pictures, plan.rows[1].pictures
    for upto, status in ((first, "INCONCLUSIVE"), (second - 1, "INCONCLUSIVE"), (second, "PASS")):
        verdict = judged(sides, phone(sides[1], plan, upto, **{kind: [place]}), plan)  # type: ignore[arg-type]
        assert verdict.status == status
        assert verdict.audit is not None
        assert [lost.picture for lost in verdict.audit.lost] == [place]
        assert (verdict.audit.lost[0].label is None) == (kind == "silent")


def test_what_lies_beyond_the_stop_is_not_counted(sides: tuple[Results, Results], plan: Plan) -> None:
    first = plan.rows[0].pictures
    verdict = judged(sides, phone(sides[1], plan, first + 20, lost=range(first + 1, first + 21)), plan)
    assert verdict.status == "PASS"
    assert any(f"20 of the device's {first + 20} rows are not counted" in note for note in verdict.notes)


def test_too_many_losses_end_it(sides: tuple[Results, Results]) -> None:
    short = plan_of(sides, budget=240)
    places = right_places(sides[1], short, 60)[: len(short.rows)]
    verdict = judged(sides, phone(sides[1], short, lost=places), short)
    assert (verdict.status, verdict.exit_code, verdict.first_bad_stage) == ("INCONCLUSIVE", 3, "audit")
    assert "no further picture can bring a PASS" in verdict.headline
    assert "another plan for this one would be peeking" in verdict.fix
    assert verdict.audit is not None
    assert (verdict.audit.stop, verdict.audit.counted) == ("FUTILE", places[-1])


def test_a_phone_that_is_far_worse_fails(sides: tuple[Results, Results]) -> None:
    made = plan_of(sides, class_checks=0)
    verdict = judged(sides, phone(sides[1], made, 30, lost=range(1, 31)), made)
    assert (verdict.status, verdict.exit_code, verdict.first_bad_stage) == ("FAIL", 1, "audit")
    assert verdict.audit is not None
    assert verdict.audit.counted <= 15
    assert verdict.audit.wealth >= 40
    assert verdict.headline == "Do not ship: the device loses too many of the pictures that the host gets right"


def test_class_checks_can_only_turn_it_red(sides: tuple[Results, Results], plan: Plan) -> None:
    """Four of five are lost by chance in 0.05 % at a loss of 10 points, three in 0.9 %: five classes share 2.5 %."""
    places = [plan.order.index(key) + 1 for key in plan.class_checks["fire"]]
    four = judged(sides, phone(sides[1], plan, lost=places[:4]), plan)
    assert gate(four, "device classes").red
    assert four.status == "FAIL"
    assert "fire: 4 of 5 lost" in gate(four, "device classes").detail
    assert gate(judged(sides, phone(sides[1], plan, lost=places[:3]), plan), "device classes").status == "green"
    few = judged(sides, phone(sides[1], plan, 20), plan)
    assert gate(few, "device classes").status == "undecided"
    assert (
        "5 of the 25 pictures that check the classes are not answered yet, wood" in gate(few, "device classes").detail
    )
    without = plan_of(sides, class_checks=0)
    assert gate(judged(sides, phone(sides[1], without), without), "device classes").status == "not measured"


def test_a_census_moves_the_line(sides: tuple[Results, Results]) -> None:
    """Each loss in the census is one for certain: the rest may lose less."""
    made = plan_of(sides, census=20, class_checks=0)
    assert judged(sides, phone(sides[1], made, made.rows[0].pictures), made).status == "PASS"
    known = right_places(sides[1], made)[:2]
    assert max(known) <= 20
    verdict = judged(sides, phone(sides[1], made, made.rows[0].pictures, lost=known), made)
    assert verdict.status == "INCONCLUSIVE"
    audit = verdict.audit
    assert audit is not None
    assert (audit.census, audit.census_lost, audit.census_won, audit.lost) == (20, 2, 0, ())
    assert audit.rows[0].pictures > made.rows[0].pictures
    assert judged(sides, phone(sides[1], made, audit.rows[0].pictures, lost=known), made).status == "PASS"
    partly = judged(sides, phone(sides[1], made, 19, lost=known), made)
    assert partly.audit is not None
    assert (partly.audit.rows, partly.audit.counted) == (made.rows, 19)
    ruined = judged(sides, phone(sides[1], made, lost=range(1, 21)), made)
    assert ruined.audit is not None
    assert (ruined.audit.stop, ruined.audit.rows) == ("FUTILE", ())
    assert "no number of pictures would do" in render_text(ruined)


def test_arrival_in_another_order_and_resuming_change_nothing(
    sides: tuple[Results, Results], plan: Plan, tmp_path: Path
) -> None:
    lost = right_places(sides[1], plan, 40)[3:4]
    device = phone(sides[1], plan, plan.rows[1].pictures, lost=lost)
    verdict = judged(sides, device, plan)
    assert verdict.status == "PASS"
    for seed in range(3):
        rows = list(device.rows.items())
        random.Random(seed).shuffle(rows)
        assert judged(sides, replace(device, rows=dict(rows)), plan) == verdict
    path = tmp_path / "device.results.jsonl"
    write_results(device, path)
    cut(path, 100, torn=50)  # killed in a row
    begun = read_results(path, unfinished=True)
    assert len(begun.rows) == 100
    assert judged(sides, begun, plan).status == "INCONCLUSIVE"
    with ResultsWriter(path, device.header, device.rows) as writer:
        for key in [key for key in device.rows if key not in writer.keys]:
            writer.append(device.rows[key])
    whole = read_results(path)
    resumed = judged(sides, whole, plan)
    assert resumed.evidence.pop("device") == whole.sha256
    assert resumed == verdict


def test_a_dropped_row_never_helps(sides: tuple[Results, Results], plan: Plan) -> None:
    """Whichever it is: what passes may become open, and what is open stays open."""
    generator = random.Random(4)
    places = right_places(sides[1], plan)
    for _ in range(15):
        lost = generator.sample(places[: plan.rows[2].pictures], generator.randint(0, 4))
        device = phone(sides[1], plan, generator.randint(100, plan.rows[3].pictures), lost=lost)
        before = judged(sides, device, plan)
        dropped = generator.choice([*device.rows, *(plan.order[place - 1] for place in lost)])
        after = judged(sides, replace(device, rows={k: r for k, r in device.rows.items() if k != dropped}), plan)
        assert after.status != "PASS" or before.status == "PASS"
        if before.status != "FAIL":
            assert ORDER.index(after.status) >= ORDER.index(before.status)


def test_a_skipped_picture_ends_what_is_counted(sides: tuple[Results, Results], plan: Plan) -> None:
    device = phone(sides[1], plan)
    rows = {key: row for key, row in device.rows.items() if key != plan.order[59]}
    verdict = judged(sides, replace(device, rows=rows), plan)
    assert (verdict.status, verdict.first_bad_stage) == ("INCONCLUSIVE", "audit")
    assert verdict.audit is not None
    assert verdict.audit.counted == 59
    assert verdict.audit.uncounted == len(rows) - 59
    skipped = sides[1].rows[plan.order[59]].image_id
    assert f"device skipped {skipped} " in verdict.headline
    assert "write its row without a label, which counts as lost" in verdict.fix


def refused(sides: tuple[Results, Results], device: Results, plan: Plan, *facts: str) -> None:
    verdict = judged(sides, device, plan)
    assert (verdict.status, verdict.exit_code, verdict.first_bad_stage) == ("REFUSED", 4, "device provenance")
    assert "Nothing was judged of " in verdict.headline
    for fact in facts:
        assert fact in gate(verdict, "device provenance").detail
    assert verdict.audit is None
    assert verdict.fix


def test_another_plan_is_refused(sides: tuple[Results, Results], plan: Plan) -> None:
    """Planning again after a bad start: the phone says which plan it began with."""
    device = phone(sides[1], plan, lost=right_places(sides[1], plan)[:9])
    refused(sides, device, plan_of(sides, seed=None), f"ran by plan {plan_digest(plan)[:12]}, the one given is")
    unsaid = replace(device, header=device.header.model_copy(update={"runtime": {"fed": "rgb"}}))
    verdict = judged(sides, unsaid, plan)
    assert verdict.status != "REFUSED"
    assert any("do not say by which plan it ran" in note for note in verdict.notes)


def test_another_build_is_refused(sides: tuple[Results, Results], plan: Plan) -> None:
    host = sides[1]
    refused(sides, phone(host, plan, model={"model": "0" * 64}), plan, "device's model is 000000000000")
    refused(sides, phone(host, plan, model={}), plan, "device's model is not stated")
    more = host.header.model | {"mmproj": "1" * 64}
    refused(sides, phone(host, plan, model=more), plan, "device's mmproj is 111111111111, and the plan is for no such")
    refused(sides, phone(host, plan, dataset_sha256="0" * 64), plan, "on dataset")
    refused(sides, phone(host, plan, contract_sha256="0" * 64), plan, "ran under contract")
    refused(sides, phone(host, plan, weights_sha256="0" * 64), plan, "were made from weights")
    refused(sides, phone(host, plan, versions={"llama-cpp-python": "0.3.1"}), plan, "llama-cpp-python 0.3.1")
    refused(sides, phone(host, plan, device=host.header.device), plan, "both ran llama.cpp on the same machine")
    refused(sides, phone(host, plan, side="llamacpp"), plan, "both files hold answers of llama.cpp")
    other = change_rows(phone(host, plan), lambda row: {"truth": "water" if row.truth != "water" else "fire"}, 1)
    refused(sides, other, plan, "in llama.cpp's results and")


def test_a_plan_of_other_results_is_refused(sides: tuple[Results, Results], plan: Plan) -> None:
    ours, host = sides
    device = phone(host, plan)
    other = replace(host, sha256="1" * 64)
    refused((ours, other), device, plan, "it was made for other results of llama.cpp than these")
    refused(
        (replace(ours, sha256=None), host), device, plan, "it was made for other results of Hugging Face than these"
    )
    refused((ours, filed(change_header(host, versions={"llama-cpp-python": "0.3.36", "x": "1"}))), device, plan,
            "other results of llama.cpp")  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("order", lambda plan: plan.order[5:]),
        ("order", lambda plan: plan.order[::-1]),
        ("rows", lambda plan: (plan.rows[0].model_copy(update={"right": 20, "pictures": 20}), *plan.rows[1:])),
        ("class_checks", lambda plan: {}),
        ("census", lambda plan: plan.order[:3]),
        ("alpha", lambda plan: 0.2),
        ("difference", lambda plan: 0.02),
        ("width", lambda plan: 0.0),
        ("share", lambda plan: 0.5),
        ("pictures", lambda plan: 700),
        ("model", lambda plan: {"model": "2" * 64}),
    ],
)
def test_a_changed_plan_is_refused(sides: tuple[Results, Results], plan: Plan, field: str, value: object) -> None:
    changed = plan.model_copy(update={field: value(plan)})  # type: ignore[operator]
    wrong = check_plan(changed, *sides)
    assert wrong == f"its {field} is not what follows from its seed and the results"
    refused(sides, phone(sides[1], changed), changed, f"its {field} is not what follows")


def test_a_changed_wish_makes_no_plan(sides: tuple[Results, Results], plan: Plan) -> None:
    changed = plan.model_copy(update={"wishes": plan.wishes.model_copy(update={"margin_points": 0.1})})
    refused(sides, phone(sides[1], plan), changed, "with what it holds there is none (no plan would do")


def test_the_gates_of_whole_results_hold_for_a_phone_too(sides: tuple[Results, Results], plan: Plan) -> None:
    host = sides[1]
    device = phone(host, plan, plan.rows[0].pictures)

    def fails(changed: Results, stage: str, wrong: str, cause: str) -> None:
        verdict = judged(sides, changed, plan)
        assert (verdict.status, verdict.first_bad_stage) == ("FAIL", stage)
        assert verdict.headline == f"Do not ship: {wrong}"
        assert cause in verdict.cause

    fails(
        change_rows(device, lambda _: {"rgb_sha256": "0" * 64}),
        "device pixels",
        "the device gets different pixels",
        "swapped channel order",
    )
    fails(
        change_header(device, prompt_token_ids=(7, -1, -1, 8), image_slots=((1, 2),)),
        "device tokens",
        "the device gets a different prompt",
        "tile plan",
    )
    fails(
        change_rows(device, lambda row: {"text": " no idea"}),
        "device answers",
        "labels are read by different rules",
        "rule for reading an answer",
    )
    runtime = device.header.runtime | {"n_ctx": 17}
    fails(
        change_header(device, runtime=runtime),
        "device runtime",
        "the device does not run as the contract says",
        "other settings than the app has",
    )
    flat = dict.fromkeys(FIVE.labels, -1.61)
    fails(
        change_rows(device, lambda _: {"label_logprobs": flat}),
        "device logits",
        "the device's language half computes different logits",
        "not sure of the same labels",
    )
    mute = judged(sides, change_rows(device, lambda _: {"label_logprobs": {}}), plan)
    assert (mute.status, gate(mute, "device logits").status) == ("PASS", "not measured")


def test_the_host_comes_first(sides: tuple[Results, Results], plan: Plan) -> None:
    """What fails of the host fails, whatever the phone does; here a recall floor."""
    device = phone(sides[1], plan)
    verdict = judge_phone(*sides, device, plan, FIVE, gate=Gate(recall_floors={"fire": 0.999}))
    assert (verdict.status, verdict.first_bad_stage) == ("FAIL", "classes")
    told = "Do not ship: llama.cpp is worse at some classes (accuracy 95.0 to 94.7 %)"
    assert verdict.headline == f"{told} (" + ") (".join(verdict.overrides) + ")"
    other = Contract(gate=Gate(recall_floors={"fire": 0.5}))
    assert judge_phone(*sides, device, plan, other).status == "REFUSED"


def test_another_margin_than_the_contracts_is_said(sides: tuple[Results, Results]) -> None:
    made = plan_of(sides, margin_points=5.0)
    verdict = judged(sides, phone(sides[1], made), made)
    assert verdict.status == "PASS"
    assert verdict.overrides == ("judged with gate.margin_points 5, and the contract says 3",)
    assert verdict.overrides[0] in verdict.headline
    assert "less than 5 points worse" in (verdict.audit.claim if verdict.audit else "")


def test_many_classes(tmp_path: Path) -> None:
    sides = both(1000, 30, 2, FORTY)
    made = plan_of(sides, FORTY, class_checks=2)
    assert sum(map(len, made.class_checks.values())) == 80
    verdict = judged(sides, phone(sides[1], made, made.rows[0].pictures, contract=FORTY), made, FORTY)
    assert verdict.status == "PASS"
