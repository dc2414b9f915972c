"""What lies beside saved results: the contract that they ran under, and their ladder."""

import os
from collections.abc import Sequence
from pathlib import Path

from parity.compare.ladder import Ladder, header_digest, read_ladder
from parity.results import Results
from parity.terms import CheckTerms, Terms, load_terms
from pipeline.contract import Contract, load_contract
from pipeline.core.errors import UserError


def belongs(ladder: Ladder, reference: Results, candidate: Results) -> bool:
    """Whether a ladder was measured between just these two runs."""
    ours, theirs = (header_digest(side.header) for side in (reference, candidate))
    return (ladder.header.reference_sha256, ladder.header.candidate_sha256) == (ours, theirs)


def find_contract(given: Path | None, results_path: Path, results: Results) -> Terms:
    """The file given, or what the results ran under: ``contract.json`` or a check's ``terms.json`` beside them, the
    contract of the bundle of their run (``../bundle``), or the phone's.

    Where none of these is it, the phone's is returned, and the gate ``provenance`` refuses the results. Raises
    UserError as load_contract does for a file that was given.
    """
    if given:
        return load_terms(given)
    folder = results_path.parent
    for path in (folder / "contract.json", folder / "terms.json", folder.parent / "bundle" / "contract.json"):
        try:
            found = load_terms(path)
        except UserError:  # not there, or a file of something else
            if path.exists() and not os.access(path, os.R_OK):
                raise  # it may be the one, and judging by another would say something else than is the matter
            continue
        if found.digest == results.header.contract_sha256:
            return found
    return load_contract()


def find_app_contract(given: Path | None, results_path: Path, results: Results) -> Contract:
    """As :func:`find_contract`. Raises UserError, too, where the results are of a check, without an app."""
    found = find_contract(given, results_path, results)
    if isinstance(found, CheckTerms):
        raise UserError(
            f"{results_path} is of `parity check`, and a phone keeps an app's contract: run `parity run` with it, and"
            " plan on its results"
        )
    return found


def find_ladder(
    given: Path | None, reference_path: Path, reference: Results, candidates: Sequence[Results]
) -> Ladder | None:
    """The ladder file given, or ``ladder.jsonl`` beside the reference's results where it is of these runs.

    Raises UserError as read_ladder does, and where a file that was given is of other runs.
    """
    path = given or reference_path.parent / "ladder.jsonl"
    if given is None and not path.exists():
        return None
    ladder = read_ladder(path)
    if any(belongs(ladder, reference, candidate) for candidate in candidates):
        return ladder
    if given:
        raise UserError(f"ladder {path} was measured between other runs than these: run `parity run` again")
    return None
