"""The gate for release: nothing but a PASS for these files, under the contract's own limits, gets through."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import TEXT
from keys import write_pair
from phones import phone, plan_of
from released import write_run
from sides import FIVE, change_header, pair, results, right, spoil, write_results

from parity.compare.ladder import read_ladder
from parity.judge.evidence import sign_evidence
from parity.judge.goldens import checks_of
from parity.judge.judge import write_verdict
from parity.judge.phone import judge_phone
from parity.judge.plan import write_plan
from parity.release.proof import require_release
from parity.results import read_results
from pipeline.contract import Contract, Gate
from pipeline.core.errors import CheckFailed, NotReleased, UserError
from pipeline.export.signing import sign_bundle

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", pair())


def test_a_pass_gets_through(run: Path) -> None:
    lines = require_release(run)
    assert lines[0] == "verdict: PASS on 200 unnamed images, judged again from the files beside it"
    assert lines[-1] == f"{run} may be released"


@pytest.mark.parametrize(("pictures", "code"), [(200, 0), (60, 3)])
def test_a_phone_that_was_judged_by_its_plan_counts(run: Path, pictures: int, code: int) -> None:
    parity = run / "parity"
    ours, host = (read_results(parity / f"{name}.results.jsonl") for name in ("hf", "llamacpp"))
    plan = plan_of((ours, host))
    write_plan(plan, parity / "plan.json")
    write_results(phone(host, plan, pictures), parity / "device.results.jsonl")
    device, walked = read_results(parity / "device.results.jsonl"), read_ladder(parity / "ladder.jsonl")
    write_verdict(
        judge_phone(ours, host, device, plan, FIVE, checks_of(FIVE, device.header), walked), parity / "verdict.json"
    )
    if code:
        with pytest.raises(NotReleased, match="INCONCLUSIVE: Undecided: the device has not answered enough") as caught:
            require_release(run)
        assert caught.value.code == code
    else:
        assert any(line.startswith("phone: PASS after ") for line in require_release(run))


@pytest.mark.parametrize(
    ("sides", "code", "said"),
    [
        (
            lambda: (results(right(200)), results(spoil(right(200), 60), "llamacpp")),
            1,
            "the verdict is FAIL: Do not ship",
        ),
        (lambda: pair(50), 3, "the verdict is INCONCLUSIVE: Undecided: 50 images are too few"),
        (
            lambda: (pair()[0], change_header(pair()[1], weights_sha256=None)),
            4,
            "the verdict is REFUSED: Nothing was judged",
        ),
    ],
)
def test_nothing_but_a_pass_does(tmp_path: Path, sides: Callable[[], Any], code: int, said: str) -> None:
    with pytest.raises(NotReleased, match=said) as caught:
        require_release(write_run(tmp_path / "run", sides()))
    assert caught.value.code == code


def test_a_pass_under_other_limits_does_not(tmp_path: Path) -> None:
    worse = results(right(200)), results(spoil(right(200), 20), "llamacpp")
    wide = write_run(tmp_path / "wide", worse, Gate(margin_points=30, class_margin_points=90))
    with pytest.raises(NotReleased, match=r"judged with gate\.margin_points 30, and the contract says 3") as caught:
        require_release(wide)
    assert caught.value.code == 4
    strict = write_run(tmp_path / "strict", pair(), Gate(margin_points=2.9))
    with pytest.raises(NotReleased, match=r"margin_points 2\.9"):
        require_release(strict)


def test_a_pass_without_a_ladder_does_not(tmp_path: Path) -> None:
    with pytest.raises(NotReleased, match="without a ladder"):
        require_release(write_run(tmp_path / "run", pair(), ladder=False))


def test_a_changed_bundle_or_none_does_not(run: Path) -> None:
    bundle = run / "bundle"
    kept = (bundle / TEXT).read_bytes()
    (bundle / TEXT).write_bytes(kept + b"x")
    with pytest.raises(UserError, match="is stale"):
        require_release(run)
    (bundle / TEXT).write_bytes(kept)
    contract = (bundle / "contract.json").read_text()
    (bundle / "contract.json").write_text(contract + "\n")
    with pytest.raises(CheckFailed, match=r"contract\.json is not the file that was exported"):
        require_release(run)
    shutil.rmtree(bundle)
    with pytest.raises(UserError, match="bundle is not a folder"):
        require_release(run)


def test_results_of_other_files_than_the_bundles_do_not(tmp_path: Path) -> None:
    """A side may name its files as it likes; what it names must be what is in the bundle."""
    folder = write_run(tmp_path / "run", pair(), model={"text": "0" * 64})
    with pytest.raises(NotReleased, match="bundle holds other GGUFs than those that were judged"):
        require_release(folder)


def test_a_verdict_by_another_contract_than_the_bundles_does_not(tmp_path: Path) -> None:
    wide = Contract(gate=Gate(margin_points=30, class_margin_points=90))
    sides = results(right(200), contract=wide), results(spoil(right(200), 20), "llamacpp", wide)
    folder = write_run(tmp_path / "run", sides, contract=wide)
    (folder / "parity" / "contract.json").write_text(wide.model_dump_json())
    with pytest.raises(NotReleased, match="bundle has another contract than the one that was judged by"):
        require_release(folder)


def test_signatures_where_a_key_is_given(run: Path, tmp_path: Path) -> None:
    private, public = write_pair(tmp_path, "key")
    with pytest.raises(CheckFailed, match=r"model\.sig is missing"):
        require_release(run, public)
    sign_bundle(run / "bundle", private)
    with pytest.raises(CheckFailed, match=r"parity\.sig is missing"):
        require_release(run, public)
    sign_evidence(run, private)
    assert len(require_release(run, public)) == 5
    page = (run / "parity" / "verdict.json").read_bytes()
    (run / "parity" / "verdict.json").write_bytes(page + b"\n")
    with pytest.raises(CheckFailed, match=r"verdict\.json"):
        require_release(run, public)


def test_the_commands(run: Path, tmp_path: Path) -> None:
    def parity(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "parity.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    released = parity("gate", run)
    assert (released.returncode, released.stderr) == (0, "")
    assert released.stdout.endswith("may be released\n")
    few = parity("gate", write_run(tmp_path / "few", pair(50)))
    assert (few.returncode, few.stdout) == (3, "")
    assert few.stderr.startswith("not released: the verdict is INCONCLUSIVE")
    none = parity("gate", tmp_path / "none")
    assert none.returncode == 2
