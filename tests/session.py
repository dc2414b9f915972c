"""A test session in several processes: what they begin with, and what they share."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

BEGIN_WITH = (
    "tests/test_main_job.py::test_the_verdict_is_written_and_true",  # makes the run that the others of its file share
    "tests/pipeline/training/test_train.py",
    "tests/parity/engines/test_engines.py",
    "tests/pipeline/export/test_export.py",
    "tests/test_main_job.py",
)
"""What takes longest: were it last, one worker would be busy with it and the others idle."""

Once = Callable[[str, Callable[[Path], object]], Path]
"""``once(name, make)`` is the folder ``name``, filled by ``make``. Nobody changes it afterwards."""


def make_once(shared: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name`` in ``shared``: ``make`` fills it for the process that asks first, while the others wait.

    Where ``make`` raises, nothing counts as made, and the next to ask tries again.
    """
    folder, whole = shared / name, shared / f"{name}.whole"
    shared.mkdir(exist_ok=True)
    with open(shared / f"{name}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder
