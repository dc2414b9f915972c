"""Sign what a verdict rests on, and check that signature: who stands behind a run's results, ladder and verdict.

The verdict says what was found; the signature says whose finding it is, and that nobody has changed a row since. It is
made with the key that signs bundles (:mod:`pipeline.export.signing`).
"""

from os.path import lexists
from pathlib import Path

from parity.judge.baseline import BASELINE
from parity.judge.causes import CAUSES
from parity.judge.plan import PLAN
from pipeline.core.errors import UserError
from pipeline.export.signing import sign_files, verify_files

SIGNATURE = "parity.sig"
RESULTS = "*.results.jsonl"
VERDICT = "verdict.json"
OTHERS = (BASELINE, CAUSES, "ladder.jsonl", PLAN, "terms.json", VERDICT)
"""Signed beside the results, where they are there."""


def sign_evidence(folder: Path, private_key: Path) -> Path:
    """Sign the results, the ladder, the baseline, the plan and the verdict of a run; returns the signature's path.

    ``folder``: a run's, or the parity folder in it. Nothing is changed there but ``parity.sig``, and the files are
    signed as they are: whether the verdict follows from them is for the gate to find out. Raises UserError: no verdict
    or not two sides' results, and as :func:`pipeline.export.signing.sign_files` does.
    """
    folder = _parity_folder(folder)
    names = _evidence(folder)
    if VERDICT not in names or len(set(names) - set(OTHERS)) < 2:
        raise UserError(f"{folder} has no {VERDICT} with the results of two sides: run `parity run` first")
    sign_files(folder, SIGNATURE, private_key, names)
    return folder / SIGNATURE


def verify_evidence(folder: Path, public_key: Path) -> str:
    """Check that ``parity.sig`` is the key owner's signature of all evidence; returns a line that names it.

    ``folder``: as for :func:`sign_evidence`. Raises CheckFailed: no signature, another key's,
    a changed one; evidence that was changed, added or taken away since, which is named. Raises UserError: a key that
    cannot be read or used, ``model-signing`` not installed.
    """
    folder = _parity_folder(folder)
    names = _evidence(folder)
    verify_files(folder, SIGNATURE, public_key, "these results", names)
    return f"{SIGNATURE}: {', '.join(names)} are signed by the owner of {public_key}"


def _parity_folder(folder: Path) -> Path:
    return folder if (folder / VERDICT).exists() or (folder / SIGNATURE).exists() else folder / "parity"


def _evidence(folder: Path) -> list[str]:
    """The names of the files that a verdict rests on, and its own; UserError where one is not a file."""
    found = [path.name for path in folder.glob(RESULTS)] + [name for name in OTHERS if lexists(folder / name)]
    for name in found:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is not a file: run `parity run` again")
    return sorted(found)
