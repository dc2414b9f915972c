"""What a result depends on is read from the imports: nothing left out, nothing that has no part in it."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from parity.engines.hf import open_hf
from parity.engines.pair import open_llamacpp
from parity.studies.sweep.job import _answer
from pipeline.core.closure import ROOT, closure, code_digest
from pipeline.workflow.work import export_bundle, make_dataset, merge_adapter, train_adapter

PROJECT = {
    "one/__init__.py": "",
    "one/deep.py": "VALUE = 1\n",
    "one/middle.py": "from one import deep\n",
    "one/lazy.py": "",
    "one/typed.py": "",
    "one/other.py": "",
    "one/started.py": "",
    "one/top.py": """
from typing import TYPE_CHECKING
from one.middle import deep
from one import other
if TYPE_CHECKING:
    from one.typed import Thing

LIMIT = 3

def helper():
    return LIMIT

def neighbour():
    return other

def work(thing: "Thing"):
    import one.lazy
    run([python, "-m", "one.started"])
    return helper() + deep.VALUE

class Job:
    def run(self):
        def inner():
            return other
        return inner
""",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of a few modules in the place of this one."""
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def found_in(project: Path, what: str) -> dict[str, str]:
    """The closure of ``one.top.<what>``, by a process of its own."""
    program = (
        "import json, sys; from pathlib import Path; import pipeline.core.closure as c; c.ROOT = Path(sys.argv[1])\n"
        "sys.path.insert(0, sys.argv[1]); import one.top\n"
        f"print(json.dumps(c.closure({what})))"
    )
    command = [sys.executable, "-c", program, str(project)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, str] = eval(done.stdout)
    return found


def test_a_function_is_followed_name_by_name_and_its_imports_whole(project: Path) -> None:
    assert found_in(project, "one.top.work").keys() == {
        "one/__init__.py",
        "one/middle.py",
        "one/deep.py",  # by way of middle
        "one/lazy.py",  # imported in the function
        "one/started.py",  # python -m
        "one/top.py::work",
        "one/top.py::helper",
        "one/top.py::LIMIT",
    }


def test_a_method_stands_for_its_class_and_a_nested_function_for_the_one_around_it(project: Path) -> None:
    assert "one/other.py" in found_in(project, "one.top.Job().run")
    assert found_in(project, "one.top.Job().run()") == found_in(project, "one.top.Job().run")


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("one/deep.py", "1", "2", True),
        ("one/top.py", "LIMIT = 3", "LIMIT = 4", True),
        ("one/lazy.py", "", "x = 1", True),
        ("one/typed.py", "", "x = 1", False),
        ("one/other.py", "", "x = 1", False),
        ("one/top.py", "return other\n\ndef work", "return 5\n\ndef work", False),
    ],
)
def test_an_edit_changes_the_closure_if_it_is_in_it(
    project: Path, file: str, old: str, new: str, changes: bool
) -> None:
    before = found_in(project, "one.top.work")
    path = project / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1) if old else new)
    assert (found_in(project, "one.top.work") != before) is changes


def test_what_is_of_no_module_of_the_project_is_refused() -> None:
    with pytest.raises(ValueError, match="not defined at the top of a module of this project"):
        closure(shutil.copy)


def test_a_partial_stands_for_what_it_calls() -> None:
    assert code_digest(partial(partial(make_dataset), 1)) == code_digest(make_dataset)


def files(*functions: object) -> set[str]:
    return {place.partition("::")[0] for function in functions for place in closure(function)}  # type: ignore[arg-type]


def test_the_stages_of_a_build_depend_on_what_they_run_and_on_nothing_else() -> None:
    dataset, train, merge, export = map(files, (make_dataset, train_adapter, merge_adapter, export_bundle))
    assert {"pipeline/letterbox.py", "pipeline/dataset/noise.py", "pipeline/contract.py"} <= dataset
    assert {
        "pipeline/training/checkpoints.py",
        "pipeline/models/smolvlm/inference.py",
        "pipeline/models/prediction.py",
    } <= train
    assert {"pipeline/core/toolchain.py", "pipeline/export/check.py", "pipeline/export/verify.py"} & export
    assert not any(name.startswith(("pipeline/training", "pipeline/export/convert")) for name in dataset)
    assert "pipeline/letterbox.py" not in merge | export
    assert not any(name.startswith("parity/") for name in dataset | train | merge | export)


def test_each_side_depends_on_its_own_engine() -> None:
    hf, llama = files(open_hf), files(open_llamacpp)
    assert "parity/engines/llamacpp.py" not in hf
    assert {"parity/engines/llamacpp.py", "parity/engines/libmtmd.py", "pipeline/core/toolchain.py"} <= llama
    assert "pipeline/models/smolvlm/encoding.py" in hf & llama


def test_a_process_that_a_sweep_starts_is_part_of_its_work() -> None:
    assert {"parity/studies/sweep/worker.py", "parity/engines/llamacpp.py", "parity/compare/measure.py"} <= files(
        _answer
    )


def test_an_edit_deep_in_a_stage_runs_it_again_and_one_outside_does_not(tmp_path: Path) -> None:
    """The real command line, on a copy of the project."""
    for name in ("pipeline", "parity", "android_fixtures", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))

    def dataset() -> str:
        command = [
            sys.executable,
            "-m",
            "pipeline.cli",
            "dataset",
            "configs/tiny.yaml",
            "--set",
            "dataset.n_per_class=4",
        ]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path), "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stderr

    def edit(name: str) -> None:
        path = tmp_path / name
        path.write_text(path.read_text() + "\nEDITED = True\n")

    assert "unchanged" not in dataset()
    assert "unchanged" in dataset()
    edit("pipeline/training/train.py")
    assert "unchanged" in dataset()
    edit("pipeline/core/errors.py")  # by way of the records, the contract and the files
    assert "unchanged" not in dataset()
    assert "unchanged" in dataset()
