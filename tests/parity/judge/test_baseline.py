"""A committed baseline: small, the same bytes each time, and a candidate that got worse is red."""

import subprocess
import sys
from pathlib import Path

import pytest
from sides import (
    FIVE,
    assert_red,
    change_header,
    change_ladder,
    gate,
    ladder_of,
    pair,
    results,
    right,
    spoil,
    write_results,
)

from parity.judge.baseline import Baseline, make_baseline, read_baseline, write_baseline
from parity.judge.judge import judge
from parity.results import Results, read_results
from pipeline.contract import Contract, Gate
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes

ROOT = Path(__file__).parents[3]


def good_baseline() -> Baseline:
    ours, theirs = results(right(400)), results(spoil(right(400), 4), "llamacpp")
    return make_baseline(judge(ours, theirs, FIVE, (), ladder_of(ours, theirs)), theirs)


def test_it_is_written_and_read_to_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        write_baseline(good_baseline(), tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    read = read_baseline(tmp_path / "a.json")
    assert read == good_baseline()
    assert (read.n, read.accuracy, read.status, sum(read.correct.values())) == (400, 0.99, "PASS", 396)
    assert read.measured["embeddings"].value == pytest.approx(0.009, rel=0.05)
    assert (tmp_path / "a.json").stat().st_size < 400 * 40


def test_as_good_as_the_baseline() -> None:
    ours, theirs = results(right(400)), results(spoil(right(400), 5), "llamacpp")
    verdict = judge(ours, theirs, FIVE, (), ladder_of(ours, theirs), baseline=good_baseline())
    assert verdict.status == "PASS"
    assert verdict.gates[-1].stage == "baseline"
    assert "0 gained, 1 lost" in verdict.gates[-1].detail
    assert gate(judge(ours, theirs, FIVE), "classes").stage == judge(ours, theirs, FIVE).gates[-1].stage


def test_worse_than_the_baseline_though_within_the_margin() -> None:
    ours, theirs = results(spoil(right(400), 8)), results(spoil(right(400), 12), "llamacpp")
    assert judge(ours, theirs, FIVE).status == "PASS"
    verdict = judge(ours, theirs, FIVE, baseline=good_baseline())
    assert_red(verdict, "baseline", "0 gained, 8 lost", "image_0004")


def test_further_off_than_the_baseline_though_within_the_limits() -> None:
    ours, theirs = results(right(400)), results(spoil(right(400), 4), "llamacpp")
    for key in ("embeddings_error", "logits_kl"):
        twice = change_ladder(ladder_of(ours, theirs), lambda row, key=key: {key: 1.6 * getattr(row, key)})
        assert judge(ours, theirs, FIVE, (), twice).status == "PASS"
        verdict = judge(ours, theirs, FIVE, (), twice, baseline=good_baseline())
        assert_red(verdict, "baseline", "0 gained, 0 lost")
        assert key.split("_")[0] in verdict.cause
        loose = Gate(baseline_factor=3.0)
        assert judge(ours, theirs, FIVE, (), twice, loose, good_baseline()).status == "PASS"


def test_numbers_of_another_kind_are_not_compared() -> None:
    """Without a ladder the KL is over the labels, which is another number."""
    ours, theirs = results(right(400)), results(spoil(right(400), 4), "llamacpp")
    detail = gate(judge(ours, theirs, FIVE, baseline=good_baseline()), "baseline").detail
    assert "logits" not in detail


def test_other_images() -> None:
    past = good_baseline()
    few = results(right(200)), results(spoil(right(200), 1), "llamacpp")
    assert "on the 200 images" in gate(judge(*few, FIVE, baseline=past), "baseline").detail
    strange = past.model_copy(update={"correct": {sha256_bytes(key.encode())[:16]: True for key in past.correct}})
    verdict = judge(*few, FIVE, baseline=strange)
    assert gate(verdict, "baseline").status == "not measured"
    assert verdict.status == "PASS"
    assert any("baseline says nothing" in note for note in verdict.notes)


def test_a_refused_pair_makes_no_baseline() -> None:
    ours, theirs = pair()
    with pytest.raises(UserError, match="no baseline can be made"):
        make_baseline(judge(ours, theirs, Contract(max_new_tokens=3)), theirs)


def test_what_is_not_a_baseline(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_baseline(tmp_path / "none.json")
    for text in ("{", "[]", '{"schema_version": 2}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match=r"bad\.json is not a baseline"):
            read_baseline(tmp_path / "bad.json")


def write(side: Results, path: Path) -> Path:
    write_results(side, path)
    return path


def test_the_commands(tmp_path: Path) -> None:
    ours = write(results(right(400)), tmp_path / "hf.jsonl")
    then = write(results(spoil(right(400), 1), "llamacpp"), tmp_path / "then.jsonl")
    now = write(results(spoil(right(400), 8), "llamacpp"), tmp_path / "now.jsonl")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "parity.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    kept = tmp_path / "baselines" / "x.json"
    made = run("baseline", ours, then, "--out", kept)
    assert made.returncode == 0, made.stderr
    assert "99.75% right of 400 images, PASS" in made.stdout
    assert run("judge", ours, then, "--baseline", kept).returncode == 0
    worse = run("judge", ours, now, "--baseline", kept)
    assert worse.returncode == 1
    assert "llama.cpp is worse than its baseline" in worse.stdout
    several = run("judge", ours, then, now, "--margin", "1", "--out", tmp_path / "verdict.json")
    assert several.returncode == 1
    assert "the worst of 2 runs" in several.stdout
    assert run("judge", ours, then, "--margin", "0.5").returncode == 3
    refused = write(change_header(read_results(then), dataset_sha256="0" * 64), tmp_path / "refused.jsonl")
    assert run("judge", ours, refused).returncode == 4
    wrong = run("judge", ours, then, "--margin", "0")
    assert wrong.returncode == 2
    assert "margin_points" in wrong.stderr
