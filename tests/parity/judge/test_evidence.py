"""A run's evidence is signed as a whole, and the signature turns red for whatever was changed, added or taken away."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from keys import write_pair

from parity.judge.evidence import sign_evidence, verify_evidence
from pipeline.core.errors import CheckFailed, UserError
from pipeline.core.files import sha256_file

NAMES = ["baseline.json", "hf.results.jsonl", "ladder.jsonl", "llamacpp.results.jsonl", "plan.json", "verdict.json"]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_pair(tmp_path, "key")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder; a signature is over bytes, whatever they mean."""
    folder = tmp_path / "run" / "parity"
    (folder / "worst").mkdir(parents=True)
    for name in (*NAMES, "report.html", "noise.json", "worst/image.npz"):
        (folder / name).write_text(name)
    return folder.parent


@pytest.fixture
def signed(run: Path, keys: tuple[Path, Path]) -> Path:
    assert sign_evidence(run, keys[0]) == run / "parity" / "parity.sig"
    return run


def refused(run: Path, public_key: Path) -> str:
    with pytest.raises(CheckFailed) as error:
        verify_evidence(run, public_key)
    message = str(error.value)
    assert "\n" not in message
    assert str(run / "parity" / "parity.sig") in message
    return message


def test_the_evidence_is_signed_and_nothing_else_changed(run: Path, keys: tuple[Path, Path]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    sign_evidence(run, keys[0])
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    signature = run / "parity" / "parity.sig"
    statement = json.loads(base64.b64decode(json.loads(after.pop(signature))["dsseEnvelope"]["payload"]))
    assert after == before
    named = {item["name"]: item["digest"] for item in statement["predicate"]["resources"]}
    assert named == {name: sha256_file(run / "parity" / name) for name in NAMES}


def test_a_run_or_its_parity_folder_may_be_given(signed: Path, keys: tuple[Path, Path]) -> None:
    line = f"parity.sig: {', '.join(NAMES)} are signed by the owner of {keys[1]}"
    assert verify_evidence(signed, keys[1]) == verify_evidence(signed / "parity", keys[1]) == line


def test_what_is_no_evidence_may_change(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / "parity" / "report.html").write_text("made again")
    (signed / "parity" / "summary.md").write_text("new")
    shutil.rmtree(signed / "parity" / "worst")
    verify_evidence(signed, keys[1])


@pytest.mark.parametrize("name", NAMES)
def test_changed_evidence_is_named(signed: Path, keys: tuple[Path, Path], name: str) -> None:
    with open(signed / "parity" / name, "a", encoding="utf-8") as file:
        file.write(" ")
    assert refused(signed, keys[1]).endswith(f"does not vouch for these results: not as they were signed are {name}")


@pytest.mark.parametrize("name", NAMES)
def test_evidence_that_was_taken_away_is_named(signed: Path, keys: tuple[Path, Path], name: str) -> None:
    (signed / "parity" / name).unlink()
    assert refused(signed, keys[1]).endswith(f"not as they were signed are {name}")


@pytest.mark.parametrize("name", ["ladder.jsonl", "baseline.json", "phone.results.jsonl"])
def test_evidence_that_was_added_is_named(run: Path, keys: tuple[Path, Path], name: str) -> None:
    (run / "parity" / name).unlink(missing_ok=True)
    sign_evidence(run, keys[0])
    (run / "parity" / name).write_text("new")
    assert refused(run, keys[1]).endswith(f"not as they were signed are {name}")


def test_two_files_that_change_places_are_named(signed: Path, keys: tuple[Path, Path]) -> None:
    parity = signed / "parity"
    (parity / "hf.results.jsonl").rename(parity / "x")
    (parity / "llamacpp.results.jsonl").rename(parity / "hf.results.jsonl")
    (parity / "x").rename(parity / "llamacpp.results.jsonl")
    assert refused(signed, keys[1]).endswith("not as they were signed are hf.results.jsonl, llamacpp.results.jsonl")


def test_another_key_or_none_is_refused(run: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    assert "is missing: nobody has signed these results" in refused(run, keys[1])
    sign_evidence(run, write_pair(tmp_path, "other")[0])
    assert "made with another key" in refused(run, keys[1])
    (run / "parity" / "parity.sig").write_text("{}")
    assert "changed or damaged" in refused(run, keys[1])


def test_the_signature_of_another_run_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    other = signed.parent / "other"
    shutil.copytree(signed, other)
    (other / "parity" / "verdict.json").write_text("another")
    sign_evidence(other, keys[0])
    shutil.copy(other / "parity" / "parity.sig", signed / "parity" / "parity.sig")
    assert refused(signed, keys[1]).endswith("not as they were signed are verdict.json")


@pytest.mark.parametrize("lost", ["verdict.json", "hf.results.jsonl"])
def test_what_is_not_a_run_is_not_signed(run: Path, keys: tuple[Path, Path], lost: str) -> None:
    (run / "parity" / lost).unlink()
    with pytest.raises(UserError, match=r"has no verdict\.json with the results of two sides: run `parity run` first"):
        sign_evidence(run, keys[0])
    assert not (run / "parity" / "parity.sig").exists()
    with pytest.raises(UserError, match=r"has no verdict\.json"):
        sign_evidence(run / "nowhere", keys[0])


def test_evidence_that_is_not_a_file_is_refused(run: Path, keys: tuple[Path, Path]) -> None:
    (run / "parity" / "ladder.jsonl").unlink()
    (run / "parity" / "ladder.jsonl").mkdir()
    with pytest.raises(UserError, match=r"ladder\.jsonl is not a file"):
        sign_evidence(run, keys[0])


def test_what_is_not_a_key_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="is not the private half of an elliptic-curve key"):
        sign_evidence(signed, keys[1])
    with pytest.raises(UserError, match="is not the public half of an elliptic-curve key"):
        verify_evidence(signed, keys[0])


def test_the_standards_own_tool_agrees(signed: Path, keys: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", signed / "parity", "--ignore_unsigned_files"]
    command += ["--signature", signed / "parity" / "parity.sig", "--public_key", keys[1]]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    (signed / "parity" / "verdict.json").write_text("another")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
