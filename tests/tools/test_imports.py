"""The floors hold, and an import that goes up is found; the graph is counted as it is drawn."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.imports import PACKAGES, arrows, circles, counted, floors

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(project: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo"]
    environment = os.environ | {"PYTHONPATH": str(project), "COLUMNS": "200"}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("parity/results.py", "from parity.judge import judge", "parity.results is not allowed to import parity.judge"),
        ("parity/compare/measure.py", "import parity.run", "parity.compare is not allowed to import parity.run"),
        (
            "pipeline/contract.py",
            "def late():\n    from pipeline.models import prediction",
            "pipeline.contract is not allowed to import pipeline.models",
        ),
        ("pipeline/core/files.py", "import tools.setup.native", "pipeline is not allowed to import tools"),
        ("pipeline/evaluation.py", "import parity.results", "pipeline is not allowed to import parity"),
        ("tools/imports.py", "import pipeline.contract", "tools is not allowed to import pipeline.contract"),
        ("parity/judge/gates/common.py", "import parity.judge.judge", "No cycles are allowed in parity.judge"),
    ],
)
def test_an_import_that_goes_up_is_found(project: Path, file: str, line: str, said: str) -> None:
    path = project / file
    path.write_text(path.read_text() + f"\n\n{line}\n")
    done = lint(project)
    assert done.returncode == 1
    assert said in " ".join(done.stdout.split())


def test_the_floors_hold(project: Path) -> None:
    done = lint(project)
    assert done.returncode == 0, done.stdout


def test_the_graph_is_counted(tmp_path: Path) -> None:
    package = tmp_path / "house"
    files = {
        "__init__.py": "",
        "top.py": "from house.middle import deep\nfrom house import bottom\n",
        "middle/__init__.py": "",
        "middle/deep.py": "def work():\n    import house.bottom.cellar\n",
        "bottom/__init__.py": "",
        "bottom/cellar.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.top\n",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    graph = arrows(package)
    assert graph == {"top": {"middle", "bottom"}, "middle": {"bottom"}, "bottom": set()}
    assert floors(graph) == 3
    assert circles(graph) == []
    assert counted(package) == "house/      3 rooms,   3 arrows, 3 floors, 0 circles"
    (package / "bottom" / "cellar.py").write_text("import house.top\n")
    assert circles(arrows(package)) == [{"top", "middle", "bottom"}]
    assert counted(package).endswith("no floors, 1 circles (bottom, middle, top)")
