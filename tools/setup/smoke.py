"""`make smoke`: the tests that need no model, on every Python of the locks but the one that runs this.

Each gets an environment of its own, from the same lock and gone at the end, without what is large or compiled: these
tests show that the rest of the project and its packages work there. Standard library only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.core.errors import EXIT_FAIL, EXIT_USAGE, UserError
from pipeline.core.pinned import PYTHON_PACKAGE, read_lock
from tools.setup.bootstrap import requirements
from tools.setup.machine import PYTHONS, find_python

ROOT = Path(__file__).resolve().parent.parent.parent
LEFT_OUT = {PYTHON_PACKAGE, "torch", "transformers", "ray", "playwright", "cmake", "mypy", "ruff", "uv"}
"""What no test below imports and what takes long to fetch, to unpack or to compile."""
TESTS = (
    "tests/pipeline/test_contract.py",
    "tests/pipeline/test_letterbox.py",
    "tests/pipeline/test_letterbox_files.py",
    "tests/pipeline/test_recipe.py",
    "tests/pipeline/core/test_files.py",
    "tests/pipeline/core/test_progress.py",
    "tests/pipeline/dataset",
    "tests/pipeline/models/test_prediction.py",
    "tests/pipeline/workflow/test_stage.py",
    "tests/parity/judge",
    "tests/parity/compare",
    "tests/parity/report/test_report_files.py",
    "tests/parity/report/test_screen.py",
    "tests/parity/studies/test_diff.py",
    "tests/parity/test_results.py",
    "tests/test_locks.py",
    "tests/tools/setup",
)


def quietly(*command: str) -> None:
    """Run ``command``. Raises UserError with its last line where it fails."""
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if answer.returncode:
        last = (answer.stdout.strip() or "no output").splitlines()[-1]
        raise UserError(f"`{' '.join(command[:4])} ...` failed: {last}")


def smoke(python: str) -> bool:
    """Whether the tests pass under ``python``. Raises UserError where its environment cannot be made."""
    with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
        quietly(python, "-m", "venv", folder)
        own = str(Path(folder) / "bin" / "python")
        pins = [pin for name, pin in read_lock(ROOT / "locks" / "cpu.txt").items() if name not in LEFT_OUT]
        install = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-compile"]
        with requirements(pins) as file:
            quietly(own, "-m", "pip", "install", *install, "-r", str(file))
        quietly(own, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-e", str(ROOT))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        options = "-q -p no:cacheprovider -n auto --dist loadfile"
        command = [own, "-m", "pytest", *options.split(), "-m", "not slow", *TESTS]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def main() -> int:
    """Exit code 0: every Python that is here passes (which were not, it says); 1: one fails; 2: no environment."""
    failed = False
    for version in PYTHONS:
        name = f"Python {version[0]}.{version[1]}"
        if version == sys.version_info[:2]:
            print(f"{name}: not tried here, `make test` runs on it", flush=True)
            continue
        python = find_python((version,))
        if python is None:
            print(f"{name}: skipped, no python{version[0]}.{version[1]} that starts is on the PATH", flush=True)
            continue
        start = time.monotonic()
        try:
            passed = smoke(python)
        except UserError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return EXIT_USAGE
        failed |= not passed
        print(f"{name}: {'passed' if passed else 'FAILED'}, {time.monotonic() - start:.0f} s", flush=True)
    return EXIT_FAIL if failed else 0


if __name__ == "__main__":
    sys.exit(main())
