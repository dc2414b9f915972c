"""Another llama.cpp in the pinned one's place: Python finds its bindings first, and its converter comes along."""

import json
import os
import subprocess
import sys
from pathlib import Path

from pipeline.core.provenance import versions
from pipeline.core.toolchain import ROOT, other_folder, other_llama_cpp, source_tree

SHOW = """
import json
from pipeline.core.provenance import versions
from pipeline.core.toolchain import source_tree
print(json.dumps([str(source_tree()), versions()]))
"""


def test_the_pinned_one_is_no_other() -> None:
    assert other_folder() is None
    assert other_llama_cpp() == ""
    assert source_tree().is_relative_to(ROOT / ".cache")
    assert "llama.cpp" not in versions()


def test_another_one_is_recorded_and_converts(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").touch()
    (tmp_path / "source.json").write_text(json.dumps({"tree": "ab" * 32, "commit": "b9000-dirty"}))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    tree, found = json.loads(done.stdout)
    assert tree == str(tmp_path / "llama.cpp")
    assert found["llama.cpp"] == f"b9000-dirty sha256:{'ab' * 32}"
