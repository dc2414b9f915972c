"""Two results files compared: what changed is named, whatever the files are of."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from sides import FIVE, change_header, change_rows, pair, results, right, spoil, write_results

from parity.judge.statistics import mcnemar_exact, tango
from parity.results import Results
from parity.studies.diff import Comparison, compare, print_comparison
from pipeline.contract import Contract
from pipeline.core.errors import UserError

ROOT = Path(__file__).parents[3]


def shown(found: Comparison, width: int = 88) -> str:
    file = io.StringIO()
    print_comparison(found, Console(file=file, width=width))
    assert max(len(line) for line in file.getvalue().splitlines()) <= width
    return " ".join(file.getvalue().split())


def test_the_same_answers() -> None:
    ours, theirs = pair()
    found = compare(ours, theirs)
    assert (found.same_answers, found.exit_code, found.n, found.agreement) == (True, 0, 200, 1)
    assert next((one.name, one.a, one.b) for one in found.settings) == ("side", "hf", "llamacpp")
    assert "200 of 200 answers are equal" in shown(found)


def test_what_was_gained_and_lost() -> None:
    last = results(spoil(right(100), 5))
    this = results(spoil(right(100), 8, start=3))  # 3 gained, 6 lost, 2 stay wrong
    found = compare(last, this)
    assert (found.gained, found.lost, found.exit_code) == (3, 6, 1)
    assert (found.a_correct, found.b_correct) == (95, 92)
    assert found.points == pytest.approx(-3)
    assert (found.low, found.high) == tuple(100 * end for end in tango(3, 6, 100))
    assert found.mcnemar_p == mcnemar_exact(3, 6)
    assert len(found.changes) == 9
    first = found.changes[0]
    assert (first.image_id, first.truth, first.a, first.b) == ("image_0000", "water", "land", "water")
    text = shown(found)
    assert "B gained 3 images and lost 6" in text
    assert "image_0000 water land water" in text


def test_settings_that_differ_are_named_one_by_one() -> None:
    ours, theirs = pair(10)
    ours = change_header(
        ours, versions={"torch": "2.12", "numpy": "2"}, runtime={"n_ctx": 1024}, weights_sha256="1" * 64
    )
    theirs = change_header(theirs, versions={"torch": "2.13", "numpy": "2"}, runtime={"type_k": "f16"})
    theirs = change_header(theirs, weights_sha256=None, device=ours.header.device)
    theirs = change_header(theirs, model=ours.header.model)
    settings = {one.name: (one.a, one.b) for one in compare(ours, theirs).settings}
    assert settings == {
        "side": ("hf", "llamacpp"),
        "weights_sha256": ("1" * 64, None),
        "versions.torch": ("2.12", "2.13"),
        "runtime.n_ctx": ("1024", None),
        "runtime.type_k": (None, "f16"),
    }
    assert "versions.torch 2.12 2.13" in shown(compare(ours, theirs))


def test_images_that_one_file_lacks_are_counted_and_left_out() -> None:
    ours, theirs = results(right(30)), results(spoil(right(20), 1))
    few = replace(ours, rows=dict(list(ours.rows.items())[5:]))
    found = compare(few, theirs)
    assert (found.n, found.only_a.count, found.only_b.count) == (15, 10, 5)
    assert found.only_b.examples == tuple(f"image_{number:04d}" for number in range(5))
    assert found.same_answers, "the spoilt image is one that the first lacks"
    assert "only in B 5 images: image_0000, image_0001, image_0002, ..." in shown(found)
    with pytest.raises(UserError, match=r"last \(5 images\) and this \(25 images\) have no image in common"):
        compare(replace(ours, rows=dict(list(ours.rows.items())[:5])), few, ("last", "this"))


def test_other_contracts_truths_tokens_and_pixels_are_no_obstacle() -> None:
    ours, theirs = pair(10)
    theirs = change_header(theirs, contract_sha256=Contract(max_new_tokens=9).digest)
    theirs = change_rows(theirs, lambda _: {"truth": "metal", "generated_token_ids": (2,), "rgb_sha256": "0" * 64}, 1)
    found = compare(ours, theirs)
    assert (found.other_truth.count, found.other_text.count, found.other_pixels.count) == (1, 1, 1)
    assert (found.a_correct, found.b_correct, found.same_answers) == (9, 9, True)
    assert "contract_sha256" in {one.name for one in found.settings}
    assert compare(ours, change_rows(theirs, lambda _: {"label_logprobs": {}})).label_logprobs is None


def write(side: Results, path: Path) -> Path:
    write_results(side, path)
    return path


def test_the_command(tmp_path: Path) -> None:
    last = write(results(right(20)), tmp_path / "last.jsonl")
    this = write(results(spoil(right(20), 1)), tmp_path / "this.jsonl")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "parity.cli", "diff", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert run(last, last).returncode == 0
    result = run(last, this, "--out", tmp_path / "diff.json")
    assert result.returncode == 1, result.stderr
    assert "95.00%: 19 of 20" in result.stdout
    written = Comparison.model_validate_json((tmp_path / "diff.json").read_text())
    assert written.lost == 1
    assert json.loads((tmp_path / "diff.json").read_text())["changes"][0]["b"] == FIVE.labels[1]
    missing = run(last, tmp_path / "none.jsonl")
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr
