"""The action for an app team's workflow: its steps' own commands, run in order as GitHub's runner runs them."""

import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from building import PACKAGE, Builder, missing
from bundles import MMPROJ, TEXT
from released import write_run
from sides import pair
from zips import EVIL

ROOT = Path(__file__).resolve().parents[3]
ACTION = ROOT / ".github" / "actions" / "parity-gate" / "action.yml"
WORKFLOW = ROOT / "docs" / "release-workflow.yml"


def steps() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(ACTION.read_text(encoding="utf-8"))["runs"]["steps"]
    return found


def run_step(step: dict[str, Any], inputs: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A step as the runner runs it (``bash --noprofile --norc -eo pipefail``)."""
    known = {"github.action_path": str(ACTION.parent)} | {f"inputs.{name}": value for name, value in inputs.items()}

    def value(text: str) -> str:
        return re.sub(r"\$\{\{ ([\w.-]+) }}", lambda found: known[found[1]], text)

    environment = {name: value(text) for name, text in step.get("env", {}).items()}
    own = {"RUNNER_TEMP": str(folder / "temp"), "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=folder, env=os.environ | own | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def given(run: Path, app: Path, **others: str) -> dict[str, str]:
    declared = yaml.safe_load(ACTION.read_text(encoding="utf-8"))["inputs"]
    defaults = {name: one.get("default", "") for name, one in declared.items()}
    return defaults | {"run": str(run), "app": f"{app}\n"} | others


@pytest.mark.slow
def test_the_steps_gate_an_app_and_the_release_waits_for_them(tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)
    run = write_run(tmp_path / "run", pair())
    builder = Builder(tmp_path)
    files = {f"assets/{name}": (run / "bundle" / name).read_bytes() for name in (TEXT, MMPROJ, "contract.json")}
    right, wrong = builder.apk("right", files), builder.apk("wrong", files | {"assets/old.gguf": EVIL})
    prepare, gate = steps()
    (tmp_path / "temp").mkdir()
    done = run_step(prepare, given(run, right), tmp_path)
    assert done.returncode == 0, done.stderr
    pinned = {"package": PACKAGE, "certificate": builder.certificate()}
    done = run_step(gate, given(run, right, **pinned), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RELEASED: the app holds what was judged" in (tmp_path / "summary.md").read_text()
    for inputs, code, said in (
        (given(run, wrong, **pinned), 1, "NOT RELEASED: other models"),
        (given(run, right, package="org.example.other"), 1, "NOT RELEASED: manifest"),
        (given(run, tmp_path / "no app.apk"), 2, "no app.apk cannot be read"),
        (given(tmp_path / "no run", right), 2, "cannot be read"),
    ):
        (tmp_path / "summary.md").unlink()
        done = run_step(gate, inputs, tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        assert said in done.stdout
        assert said in (tmp_path / "summary.md").read_text()
    assert not (tmp_path / "parity-gate" / "gate.json").exists(), "the last one had no run"
    done = run_step(gate, given(run, right) | {"app": "\n"}, tmp_path)  # an output of a step that was empty
    assert (done.returncode, done.stdout) == (2, "")
    assert "no app is given" in done.stderr


def test_nothing_is_released_without_the_gate() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    jobs = workflow["jobs"]
    assert "gate" in jobs["release"]["needs"]
    assert "if" not in jobs["release"]
    assert workflow["permissions"] == {"contents": "read"}
    assert [name for name, job in jobs.items() if job.get("permissions")] == ["release"]
    gate = next(step for step in jobs["gate"]["steps"] if "parity-gate@" in step.get("uses", ""))
    declared = yaml.safe_load(ACTION.read_text(encoding="utf-8"))["inputs"]
    assert gate["with"].keys() <= declared.keys()
    assert {name for name, one in declared.items() if one.get("required")} <= gate["with"].keys()
    assert "continue-on-error" not in WORKFLOW.read_text(encoding="utf-8")


def test_actions_are_pinned_by_commit() -> None:
    used = re.findall(r"uses: (\S+)", WORKFLOW.read_text(encoding="utf-8") + ACTION.read_text(encoding="utf-8"))
    assert len(used) > 4
    assert [one for one in used if not re.fullmatch(r"[\w./-]+@([0-9a-f]{40}|COMMIT)", one)] == []


def test_the_gate_needs_no_more_than_its_lock(tmp_path: Path) -> None:
    """What is imported on the way, by the packages it is of."""
    if why := missing():
        pytest.skip(why)
    run = write_run(tmp_path / "run", pair())
    app = Builder(tmp_path).apk("app", {"assets/contract.json": (run / "bundle" / "contract.json").read_bytes()})
    code = (
        "import sys\nfrom parity.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('loaded', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    words = ["gate", str(run), "--app", str(app), "--out", str(tmp_path / "gate.json")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "NOT RELEASED" in done.stdout
    of = packages_distributions()
    loaded = {name.lower() for module in done.stdout.splitlines()[-1].split()[1:] for name in of.get(module, [])}
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "locks" / "gate.txt").read_text(), re.MULTILINE))
    ours = {"android-vlm-parity", "setuptools", "distutils-precedence"}  # the second by Python's own start-up
    assert {name.replace("_", "-") for name in loaded} - locked - ours == set()
