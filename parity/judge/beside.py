"""What lies beside saved results: the contract that they ran under, and their ladder."""

from collections.abc import Sequence
from pathlib import Path

from parity.compare.ladder import Ladder, header_digest, read_ladder
from parity.results import Results
from pipeline.contract import Contract, load_contract
from pipeline.core.errors import UserError


def belongs(ladder: Ladder, reference: Results, candidate: Results) -> bool:
    """Whether a ladder was measured between just these two runs."""
    ours, theirs = (header_digest(side.header) for side in (reference, candidate))
    return (ladder.header.reference_sha256, ladder.header.candidate_sha256) == (ours, theirs)


def find_contract(given: Path | None, results_path: Path, results: Results) -> Contract:
    """The contract file given, or the one that the results ran under: ``contract.json`` beside them, that of the bundle
    of their run (``../bundle``), or the phone's.

    Where none of these is it, the phone's is returned, and the gate ``provenance`` refuses the results. Raises
    UserError as load_contract does for a file that was given.
    """
    if given:
        return load_contract(given)
    folder = results_path.parent
    for path in (folder / "contract.json", folder.parent / "bundle" / "contract.json"):
        try:
            found = load_contract(path)
        except UserError:  # not there, or a file of something else
            continue
        if found.digest == results.header.contract_sha256:
            return found
    return load_contract()


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
