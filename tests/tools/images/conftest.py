"""What the tests of tools/images share; none of them needs an engine."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what the pins are about: docker/, locks/ and pyproject.toml, with nothing gathered for a build."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "locks", folder / "locks")
    shutil.copytree(ROOT / "docker", folder / "docker", ignore=shutil.ignore_patterns("inputs"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("ca", "build", "wheels"):
        (folder / "docker" / "inputs" / name).mkdir(parents=True)
        (folder / "docker" / "inputs" / name / ".gitkeep").touch()
    return folder
