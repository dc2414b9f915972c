"""A phone by its plan: what the plan binds, what passes, what fails, what is refused; and the commands."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from phones import SEED, both, filed, judged, phone, plan_of, right_places
from sides import FIVE, FORTY, change_header, change_rows, cut, gate, results, right, spoil, write_results
from typer.testing import CliRunner

from parity.cli import app
from parity.judge.phone import draw_plan, judge_phone
from parity.judge.plan import Plan, Wishes, check_plan, make_plan, plan_bytes, plan_digest, read_plan, write_plan
from parity.judge.verdict import Verdict
from parity.report.screen import render_text
from parity.results import Results, ResultsWriter, read_results
from pipeline.contract import Contract, Gate
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes

ROOT = Path(__file__).parents[3]
ORDER = ("PASS", "INCONCLUSIVE", "FAIL", "REFUSED")


@pytest.fixture(scope="module")
def sides() -> tuple[Results, Results]:
    return both()


@pytest.fixture(scope="module")
def plan(sides: tuple[Results, Results]) -> Plan:
    return plan_of(sides)


# The plan.


def test_the_same_seed_gives_the_same_plan(sides: tuple[Results, Results], plan: Plan) -> None:
    again = plan_of(sides)
    assert again == plan
    assert plan_bytes(again) == plan_bytes(plan)
    ours, theirs = sides
    shuffled = list(theirs.rows.items())
    random.Random(1).shuffle(shuffled)
    assert plan_of((ours, replace(theirs, rows=dict(shuffled)))) == plan
    assert not plan.seed_drawn


def test_a_drawn_seed_gives_another_order(sides: tuple[Results, Results], plan: Plan) -> None:
    one, other = (plan_of(sides, seed=None) for _ in range(2))
    assert one.seed_drawn
    assert len({one.seed, other.seed, SEED}) == 3
    assert len({one.order, other.order, plan.order}) == 3
    # The same pictures but for the block's.
    assert len(set(one.order) ^ set(other.order)) <= 2 * plan.wishes.block


def test_the_order_is_random(sides: tuple[Results, Results]) -> None:
    """Each picture that the host gets right comes first in the random order equally often."""
    ours, host = sides
    small = [replace(side, rows=dict(list(side.rows.items())[-200:])) for side in (ours, host)]
    wishes, places = Wishes(margin_points=3.0, class_checks=0), list(small[1].rows)
    firsts = Counter[int]()
    for number in range(200):
        made = make_plan(small[0], small[1], wishes, sha256_bytes(f"{number}".encode()), True)
        firsts[places.index(made.order[0]) // 40] += 1
    assert all(20 <= count <= 60 for count in firsts.values())  # 40 expected, standard deviation 6
    assert len(firsts) == 5


def test_what_the_plan_holds(sides: tuple[Results, Results], plan: Plan) -> None:
    _, host = sides
    assert plan.pictures == 600
    assert plan.difference == pytest.approx(-2 / 600)
    assert plan.share == pytest.approx(568 / 600)
    assert (plan.host.results_sha256, plan.model) == (host.sha256, host.header.model)
    assert {label: len(keys) for label, keys in plan.class_checks.items()} == dict.fromkeys(FIVE.labels, 5)
    assert all(host.rows[key].truth == label and host.rows[key].correct for label, keys in plan.class_checks.items()
               for key in keys)  # fmt: skip
    assert plan.order[:25] == tuple(key for keys in plan.class_checks.values() for key in keys)
    assert len(set(plan.order)) == len(plan.order)
    wrong = [place for place, key in enumerate(plan.order) if not host.rows[key].correct]
    assert len(wrong) <= 8  # about 5 % of the block
    assert max(wrong, default=0) < 25 + plan.wishes.block
    assert set(plan.order) >= {key for key, row in host.rows.items() if row.correct}
    for row in plan.rows:  # after so many pictures the phone has answered so many that the host gets right
        assert sum(host.rows[key].correct for key in plan.order[: row.pictures]) >= row.right
    assert plan.rows[0].pictures < 160
    assert [row.losses for row in plan.rows] == list(range(len(plan.rows)))


def test_a_census_takes_the_smallest_margins(sides: tuple[Results, Results]) -> None:
    ours, host = sides
    close = set(list(host.rows)[100:110])

    def nearer(side: Results) -> Results:
        rows = {key: row.model_copy(update={"label_logprobs": row.label_logprobs | {row.truth: -2.3}})
                if key in close else row for key, row in side.rows.items()}  # fmt: skip
        return replace(side, rows=rows)

    made = plan_of((ours, nearer(host)), census=10)
    assert set(made.census) == close
    assert made.order[:10] == made.census
    assert made.share == pytest.approx(558 / 600)
    mute = change_rows(host, lambda _: {"label_logprobs": {}})
    with pytest.raises(UserError, match=r"no log-probabilities of the labels for image_0000, .*without --census"):
        plan_of((ours, mute), census=10)
    with pytest.raises(UserError, match="a census of 600 of 600 pictures leaves nothing to draw from"):
        plan_of(sides, census=600)


def test_a_budget_ends_the_order(sides: tuple[Results, Results], plan: Plan) -> None:
    made = plan_of(sides, budget=plan.rows[1].pictures)
    assert made.order == plan.order[: plan.rows[1].pictures]
    assert made.rows == plan.rows[:2]
    with pytest.raises(UserError, match="no plan would do: 600 pictures, 100 of them on the phone, cannot show"):
        plan_of(sides, budget=100)
    with pytest.raises(UserError, match="no plan would do: 130 pictures, all of them on the phone"):
        plan_of(both(130, 5, 0))


def test_there_is_no_plan_where_the_host_does_not_pass() -> None:
    for sides, status in ((both(600, 30, 30), "FAIL"), (both(600, 30, 14), "INCONCLUSIVE"), (both(100, 5, 0), "INCON")):
        with pytest.raises(UserError, match=rf"no plan: llama\.cpp itself is {status}"):
            plan_of(sides)
    ours, host = both()
    with pytest.raises(UserError, match=r"no plan: llama\.cpp itself is REFUSED"):
        plan_of((ours, filed(change_header(host, dataset_sha256="0" * 64))))
    assert plan_of(both(600, 30, 14), margin_points=5.0).rows


def test_a_build_has_one_plan(sides: tuple[Results, Results], plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    with pytest.raises(UserError, match=r"is there already: a build has one plan, and planning again .* is peeking"):
        write_plan(plan_of(sides, seed=None), path)
    wishes = Wishes(margin_points=3.0)
    with pytest.raises(UserError, match=r"plan\.json is a plan of this build: .* is peeking"):
        draw_plan(*sides, FIVE, wishes, [tmp_path])
    (tmp_path / "other.json").write_text("{}")
    assert draw_plan(*both(601), FIVE, wishes, [tmp_path]).pictures == 601


def test_what_is_not_a_plan(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_plan(path)
    for text in ("{", "[]", '{"schema_version": 2}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"plan\.json is not a plan"):
            read_plan(path)
    path.write_bytes(plan_bytes(plan).replace(b"  ", b" "))
    with pytest.raises(UserError, match="was changed after it was written"):
        read_plan(path)
    path.write_bytes(plan_bytes(plan))
    assert read_plan(path) == plan
    assert plan_digest(plan) == sha256_bytes(path.read_bytes())


@pytest.mark.parametrize("seed", ["", "5eed", "X" * 64, "A" * 64])
def test_a_seed_is_64_hex_digits(sides: tuple[Results, Results], seed: str) -> None:
    with pytest.raises(UserError, match="a seed is 64 hex digits"):
        plan_of(sides, seed=seed)


# The verdict.


def test_a_phone_that_answers_as_the_host_passes_at_row_0(sides: tuple[Results, Results], plan: Plan) -> None:
    first = plan.rows[0].pictures
    verdict = judged(sides, phone(sides[1], plan, first), plan)
    assert (verdict.status, verdict.exit_code) == ("PASS", 0)
    assert verdict.headline == (
        "llama.cpp and device are as good as Hugging Face on photos like these, within the margin"
    )
    audit = verdict.audit
    assert audit is not None
    assert (audit.stop, audit.counted, audit.uncounted, audit.lost) == ("PASS", first, 0, ())
    assert audit.claim.startswith("on photos like these, device is less than 3 points worse than Hugging Face")
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
    assert any(f"20 of device's {first + 20} rows are not counted" in note for note in verdict.notes)


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
    assert verdict.headline == "device parts from the host at: audit"


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
    assert " cannot be judged by this plan: " in verdict.headline
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
    refused(sides, phone(host, plan, side="llamacpp"), plan, "both files hold answers of llamacpp")
    other = change_rows(phone(host, plan), lambda row: {"truth": "water" if row.truth != "water" else "fire"}, 1)
    refused(sides, other, plan, "in llamacpp's results and")


def test_a_plan_of_other_results_is_refused(sides: tuple[Results, Results], plan: Plan) -> None:
    ours, host = sides
    device = phone(host, plan)
    other = replace(host, sha256="1" * 64)
    refused((ours, other), device, plan, "it was made for other results of llamacpp than these")
    refused((replace(ours, sha256=None), host), device, plan, "it was made for other results of hf than these")
    refused((ours, filed(change_header(host, versions={"llama-cpp-python": "0.3.36", "x": "1"}))), device, plan,
            "other results of llamacpp")  # fmt: skip


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

    def fails(changed: Results, stage: str, cause: str) -> None:
        verdict = judged(sides, changed, plan)
        assert (verdict.status, verdict.first_bad_stage) == ("FAIL", stage)
        assert verdict.headline == f"device parts from the host at: {stage}"
        assert cause in verdict.cause

    fails(change_rows(device, lambda _: {"rgb_sha256": "0" * 64}), "device pixels", "swapped channel order")
    fails(change_header(device, prompt_token_ids=(7, -1, -1, 8), image_slots=((1, 2),)), "device tokens", "tile plan")
    fails(change_rows(device, lambda row: {"text": " no idea"}), "device answers", "rule for reading an answer")
    runtime = device.header.runtime | {"n_ctx": 17}
    fails(change_header(device, runtime=runtime), "device runtime", "other settings than the app has")
    flat = dict.fromkeys(FIVE.labels, -1.61)
    fails(change_rows(device, lambda _: {"label_logprobs": flat}), "device logits", "not sure of the same labels")
    mute = judged(sides, change_rows(device, lambda _: {"label_logprobs": {}}), plan)
    assert (mute.status, gate(mute, "device logits").status) == ("PASS", "not measured")


def test_the_host_comes_first(sides: tuple[Results, Results], plan: Plan) -> None:
    """What fails of the host fails, whatever the phone does; here a recall floor."""
    device = phone(sides[1], plan)
    verdict = judge_phone(*sides, device, plan, FIVE, gate=Gate(recall_floors={"fire": 0.999}))
    assert (verdict.status, verdict.first_bad_stage) == ("FAIL", "classes")
    assert verdict.headline == "the sides part at: classes (" + ") (".join(verdict.overrides) + ")"
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


# The commands.


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "parity.cli", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "100"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


def error_of(*arguments: object) -> str:
    """What bad input is told."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert isinstance(done.exception, UserError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


def test_the_commands(tmp_path: Path) -> None:
    hf, host, device = (tmp_path / f"{name}.results.jsonl" for name in ("hf", "llamacpp", "device"))
    write_results(results(spoil(right(600), 30)), hf)
    write_results(results(spoil(right(600), 31), "llamacpp"), host)
    made = run("plan", hf, host)
    assert made.returncode == 0, made.stderr
    plan = read_plan(tmp_path / "plan.json")
    assert plan.seed_drawn
    assert plan.wishes == Wishes(margin_points=3.0)  # the defaults of the command are those of the model
    rows = [row.pictures for row in plan.rows]
    said = " ".join(made.stdout.split())
    assert f"PASS after {rows[0]} pictures without a loss, {rows[1]} with one, {rows[2]} with two" in said
    assert "make no other plan for this build" in said
    again = run("plan", hf, host)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "planning again after a bad start is peeking" in again.stderr
    assert "is a plan of this build" in error_of("plan", hf, host, "--out", tmp_path / "x" / "other.json")

    whole = phone(read_results(host), plan)
    write_results(whole, device)
    cut(device, rows[0] - 1, torn=20)  # as a phone leaves it that is still at work
    open_yet = run("judge", hf, host, device, "--plan", tmp_path / "plan.json")
    assert open_yet.returncode == 3, open_yet.stderr
    assert "is not finished" in error_of("judge", hf, device, host, "--plan", tmp_path / "plan.json")
    write_results(whole, device)
    cut(device, rows[0])
    verdict = tmp_path / "verdict.json"
    passed = run("judge", hf, host, device, "--plan", tmp_path / "plan.json", "--out", verdict)
    assert passed.returncode == 0, passed.stderr
    assert "photos like these" in passed.stdout
    assert json.loads(verdict.read_text())["audit"]["counted"] == rows[0]

    for arguments, words in (
        ((hf, device), "give their two results files behind REFERENCE, not 1"),
        ((hf, host, device, device), "not 3"),
        ((hf, host, device, "--margin", "2"), "the margin of"),
    ):
        assert words in error_of("judge", *arguments, "--plan", tmp_path / "plan.json")


def test_other_plans_by_the_command(tmp_path: Path) -> None:
    hf, host = tmp_path / "hf.jsonl", tmp_path / "host.jsonl"
    write_results(results(spoil(right(600), 30)), hf)
    write_results(results(spoil(right(600), 31), "llamacpp"), host)
    path = tmp_path / "p.json"
    options = ["--margin", "5", "--census", "12", "--class-checks", "2", "--budget", "300", "--block", "20"]
    made = CliRunner().invoke(app, ["plan", str(hf), str(host), "--out", str(path), *options, "--seed", SEED])
    assert made.exit_code == 0, made.output
    plan = read_plan(path)
    assert plan.wishes == Wishes(margin_points=5.0, census=12, class_checks=2, block=20, budget=300)
    assert (plan.seed, plan.seed_drawn, len(plan.census)) == (SEED, False, 12)
    assert "the 12 with the host's smallest margins" in " ".join(made.output.split())
    for options, words in (
        (["--budget", "0"], "budget: Input should be greater than or equal to 1"),
        (["--margin", "-1"], "margin_points"),
        (["--seed", "1"], "a seed is 64 hex digits"),
    ):
        assert words in error_of("plan", hf, host, "--out", tmp_path / "x" / "q.json", *options)
