"""The how-to of `parity check` and its notebook run as they stand, with a tiny model in place of the reader's own."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from session import Once

from parity.studies.families.models import convert_family, make_family

DOCS = Path(__file__).parent.parent.parent.parent / "docs"
INCONCLUSIVE = 3
"""Two pictures cannot show anything."""


@pytest.fixture(scope="module")
def place(once: Once) -> Path:
    """A folder with what the how-to names: my-model, its GGUFs, photos."""

    def make(folder: Path) -> None:
        model = folder / "my-model"
        make_family("qwen3-vl", model)
        text, mmproj = convert_family(model, folder, "Q8_0", "Q8_0")
        text.rename(folder / "my-model-Q8_0.gguf")
        mmproj.rename(folder / "mmproj-my-model-Q8_0.gguf")
        for number, name in enumerate(("cat/a.png", "dog/b.png")):
            (folder / "photos" / name).parent.mkdir(parents=True)
            coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse.repeat(32, axis=0).repeat(32, axis=1)).save(folder / "photos" / name)

    return once("the how-to of check", make)


def test_the_first_command_gives_a_verdict(place: Path, tmp_path: Path) -> None:
    text = (DOCS / "check.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    words = command.replace(".venv/bin/parity", f"{sys.executable} -m parity.cli").strip()
    words = re.sub(r"(?<= )(my-model\S*|mmproj-\S+|photos)", lambda found: shlex.quote(str(place / found[0])), words)
    done = subprocess.run(
        ["bash", "-ec", f"{words} -n 2"], capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == INCONCLUSIVE, done.stderr[-2000:]
    assert "report  runs/check-my-model/report.html" in done.stdout
    assert (tmp_path / "runs" / "check-my-model" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_notebook_runs(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((DOCS / "check.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    names: dict[str, object] = {}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        exec(compile(cell, "check.ipynb", "exec"), names)
    verdict = names["verdict"]
    assert verdict.status == "INCONCLUSIVE"  # type: ignore[attr-defined]
    assert not any(cell.get("outputs") for cell in notebook["cells"])


def test_the_python_in_it_is_the_interface() -> None:
    """The same call as the notebook's, which is run: here only that it is one of the function's."""
    import inspect

    from parity.pairs.check import check_job

    text = (DOCS / "check.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    named = set(re.findall(r"(\w+)=", block))
    assert named <= inspect.signature(check_job).parameters.keys()


def test_every_option_named_in_it_exists() -> None:
    text = (DOCS / "check.md").read_text(encoding="utf-8")
    help_text = subprocess.run(
        [sys.executable, "-m", "parity.cli", "check", "--help"], capture_output=True, text=True, check=True
    ).stdout
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--backend"}  # of the set-up
    assert options
    assert sorted(option for option in options if option not in help_text) == []
