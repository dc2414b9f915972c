"""What ``docs/`` names exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from phones import phone
from sides import results, right, spoil, write_results

from parity.judge import evidence
from parity.judge.goldens import letterbox_gate
from parity.judge.judge import judge, write_verdict
from parity.judge.plan import read_plan
from parity.results import read_results
from pipeline.contract import Contract
from pipeline.core.files import write_json
from pipeline.export import verify

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_file_and_make_target_in_it_exists(path: Path) -> None:
    named = re.findall(r"`([^`]+)`", path.read_text(encoding="utf-8"))
    files = [name for name in named if re.fullmatch(r"[\w./-]+/[\w.-]+\.(py|md|json)", name)]
    assert [name for name in files if not (ROOT / name).is_file()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [name.split()[1] for name in named if name.startswith("make ")]
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 120


def test_the_threat_model_names_the_signatures_as_they_are() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    assert {f"`{verify.SIGNATURE}`", f"`{evidence.SIGNATURE}`"} <= set(re.findall(r"`[^`]+`", text))


def test_the_commands_for_fewer_pictures_run(tmp_path: Path) -> None:
    """One after another, beside the files that a run leaves; after the first the phone answers."""
    text = (ROOT / "docs" / "fewer-pictures.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    folder = tmp_path / "runs" / "tiny" / "parity"
    folder.mkdir(parents=True)
    paths = [folder / f"{name}.results.jsonl" for name in ("hf", "llamacpp", "device")]
    for path, side in zip(paths, (results(spoil(right(300), 20)), results(spoil(right(300), 20), "llamacpp")),
                          strict=False):  # fmt: skip
        write_results(side, path)
    write_json(folder / "contract.json", Contract().model_dump(mode="json"))
    ours, host = map(read_results, paths[:2])
    write_verdict(judge(ours, host, Contract(), [letterbox_gate()]), folder / "verdict.json")
    said = []
    for block in blocks:
        command = block.replace(".venv/bin/parity", f"{sys.executable} -m parity.cli")
        done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
        if not paths[2].exists():
            write_results(phone(host, read_plan(folder / "plan.json"), 160), paths[2])
    assert "pictures without a loss" in said[0]
    assert "photos like these" in said[1]
    assert "report.html: PASS, 300 images" in said[2]
    assert "Losses against the PASS line" in (folder / "report.html").read_text(encoding="utf-8")
