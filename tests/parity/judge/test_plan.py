"""The plan of a phone's pictures: what it holds and binds, where there is none; and the commands."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from phones import SEED, both, filed, phone, plan_of
from sides import FIVE, change_header, change_rows, cut, results, right, spoil, write_results
from typer.testing import CliRunner

from parity.cli import app
from parity.judge.phone import draw_plan
from parity.judge.plan import Plan, Wishes, make_plan, plan_bytes, plan_digest, read_plan, write_plan
from parity.results import Results, read_results
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def sides() -> tuple[Results, Results]:
    return both()


@pytest.fixture(scope="module")
def plan(sides: tuple[Results, Results]) -> Plan:
    return plan_of(sides)


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
        (["--budget", "0"], "budget: must be at least 1, not 0"),
        (["--margin", "-1"], "margin_points"),
        (["--seed", "1"], "a seed is 64 hex digits"),
    ):
        assert words in error_of("plan", hf, host, "--out", tmp_path / "x" / "q.json", *options)
