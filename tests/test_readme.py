"""The README is true: its commands, files and settings exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.core.settings import validate
from pipeline.recipe import Recipe, load_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
SHELL = "\n".join(text for kind, text in BLOCKS if kind == "sh").replace("\\\n", " ")


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make ([\w-]+)", SHELL, re.MULTILINE)) | set(re.findall(r"`make ([\w-]+)", README))
    assert {"parity", "test", "help", "bench", "setup"} <= targets
    missing = [target for target in sorted(targets) if not re.search(rf"^{target}:", makefile, re.MULTILINE)]
    assert missing == []


def test_every_sub_command_exists() -> None:
    named = set(re.findall(r"\.venv/bin/(pipeline|parity) ([a-z]\w*)", SHELL))
    listed = [(program, name) for program, names in re.findall(r"bin/(pipeline|parity) --help\s+# (.*)", SHELL)
              for name in names.split(", ")]  # fmt: skip
    assert {("parity", "judge"), ("pipeline", "letterbox")} <= named | set(listed)
    for program, name in sorted(named | set(listed)):
        command = [Path(sys.executable).parent / program, name, "--help"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0, (program, name)


def test_every_linked_and_mapped_file_exists() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    tree = next(text for kind, text in BLOCKS if not kind and text.startswith("Makefile "))
    folder, mapped = "", []
    for line in tree.splitlines():
        indent, names = re.match(r"( *)((?:[\w./]+ )*[\w./]+)  ", line + "  ").groups()  # type: ignore[union-attr]
        if not indent:
            folder = names if names.endswith("/") else ""
        mapped += [(folder if indent else "") + name for name in names.split()]
    missing = [name for name in [*links, *mapped] if not (ROOT / name).exists()]
    assert len(mapped) > 25
    assert missing == []


def test_the_recipe_in_it_is_valid() -> None:
    recipe = validate(Recipe, yaml.safe_load(next(text for kind, text in BLOCKS if kind == "yaml")), "README")
    assert recipe.contract.labels == ("glass", "paper", "tin can")


def test_assignments_in_it_are_valid() -> None:
    groups = re.findall(r"make parity SET=\"([^\"]+)\"", SHELL)
    assert len(groups) == 3
    for group in groups:
        load_recipe(ROOT / "configs" / "tiny.yaml", (group,))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_begins_with_the_command_that_runs_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[:2]
    assert any(f"RECIPE=configs/{path.name}" in line for line in first)
    assert load_recipe(path).name == path.stem
