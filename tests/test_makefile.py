"""What is given to make arrives as it was given, in every job that takes it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.recipe import load_recipe

ROOT = Path(__file__).parents[1]
TELL = f"""#!{sys.executable}
import json, os, sys
json.dump(sys.argv[1:], open(os.environ["TOLD"], "w"))
"""


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A folder of programs that write down what they are given."""
    for name in ("parity", "pipeline"):
        (tmp_path / name).write_text(TELL)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def make(told: Path, *words: str) -> list[str]:
    """The arguments that the program gets; PYTHON=true leaves out the set-up."""
    environment = os.environ | {"TOLD": str(told / "arguments")}
    command = ["make", "-s", "PYTHON=true", f"BIN={told}", *words]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    found: list[str] = json.loads((told / "arguments").read_text())
    return found


@pytest.mark.parametrize("job", ["parity", "parity-swap", "parity-sweep", "parity-selftest", "parity-ship"])
@pytest.mark.parametrize("photos", ["my photos", 'it\'s "here" #1: $HOME `id` $(id)', ""])
def test_settings_and_photos_reach_every_job(told: Path, job: str, photos: str) -> None:
    assignments = "contract.labels=[glass, paper, tin can] train.epochs=2 name=quick"
    given = [f"SET={assignments}", "RECIPE=configs/photos.yaml"]
    if photos:
        given.append(f"PHOTOS={photos.replace('$', '$$')}")
    command, recipe, *options = make(told, job, *given)
    assert (command, recipe) == (job.removeprefix("parity-").replace("parity", "run"), "configs/photos.yaml")
    assert options[::2] == ["--set"] * (len(options) // 2)
    loaded = load_recipe(ROOT / recipe, tuple(options[1::2]))
    assert loaded.contract.labels == ("glass", "paper", "tin can")
    assert (loaded.train.epochs, loaded.name) == (2, "quick")
    assert loaded.dataset.path == (photos or "photos")


def test_without_either_there_are_no_options(told: Path) -> None:
    assert make(told, "parity") == ["run", "configs/tiny.yaml"]


ODD = 'it\'s "my" $HOME `id`'


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("sign", "BUNDLE", "KEY"), ["sign", ODD, "--key", ODD]),
        (("sign", "RUN", "KEY"), ["sign", ODD, "--key", ODD]),
        (("verify", "BUNDLE", "PUBLIC_KEY"), ["verify", ODD, "--public-key", ODD]),
    ],
)
def test_bundles_and_keys_arrive_as_they_are_given(told: Path, words: tuple[str, ...], expected: list[str]) -> None:
    job, *names = words
    assert make(told, job, *(f"{name}={ODD.replace('$', '$$')}" for name in names)) == expected


def test_families_run_over_the_llama_cpp_given(told: Path) -> None:
    assert make(told, "families", "FAMILIES=gemma3 pixtral") == ["families", "gemma3", "pixtral"]
    # The set-up that builds it is given the command to run.
    program = told / "python"
    program.write_text(TELL)
    program.chmod(0o755)
    given = ["families", f"LLAMA_CPP={ODD.replace('$', '$$')}", f"PYTHON={program}"]
    script, *options = make(told, *given)
    assert script == "tools/setup/bootstrap.py"
    assert options == ["--quiet", "--llama-cpp", ODD, "--run", f"{told}/parity", "families"]


def test_help_lists_every_job_in_groups_within_80_columns() -> None:
    # A make that runs the tests would tell this one to name its folder.
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, env=own).stdout
    lines = shown.splitlines()
    assert [line for line in lines if len(line) > 80 or line != line.rstrip()] == []
    groups = [line for line in lines if line and not line.startswith(" ")]
    assert groups == ["make JOB [VARIABLE=value ...]", "Start", "Parity", "Diagnose", "Containers", "Develop"]
    listed = [line.split()[0] for line in lines if line[:2] == "  " and line[2:3] != " "]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    needed_by_others = {"environment", "given-bundle", "given-key", "given-app"}
    assert set(listed) == set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)) - needed_by_others
    # What is to be typed stands below its job, further in.
    below = lines[next(number for number, line in enumerate(lines) if line.startswith("  parity ")) + 1]
    assert below.split()[:2] == ["RECIPE=configs/photos.yaml", "PHOTOS=folder"]
    assert below.startswith(" " * 22)
