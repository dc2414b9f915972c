"""The README is short, and its exit codes are those of the programs; every recipe says how it is run."""

import re
from pathlib import Path

import pytest
from documents import ROOT, text_of

from pipeline.core import errors
from pipeline.recipe import load_recipe

README = text_of(ROOT / "README.md")


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_it_has_every_exit_code() -> None:
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert told == {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_begins_with_the_command_that_runs_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[:2]
    assert any(f"RECIPE=configs/{path.name}" in line for line in first)
    assert load_recipe(path).name == path.stem
