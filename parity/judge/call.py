"""Judging from Python: results read, or the paths of their files."""

from pathlib import Path

from parity.compare.ladder import Ladder
from parity.judge.beside import find_contract, find_ladder
from parity.judge.goldens import checks_of
from parity.judge.judge import judge
from parity.judge.verdict import Verdict
from parity.results import Results, read_results
from parity.terms import Terms, load_terms
from pipeline.contract import Gate, load_contract
from pipeline.core.settings import validate


def judge_files(
    reference: str | Path | Results,
    candidate: str | Path | Results,
    contract: str | Path | Terms | None = None,
    *,
    margin: float | None = None,
) -> Verdict:
    """Judge one side's results by another's, as ``parity judge`` does.

    ``reference``, ``candidate``: what :func:`parity.read_results` returns, or the files. ``contract``: a file, or what
    is read from one; by default the one beside the reference's file, else the phone's. ``margin``: percentage points
    in place of the contract's. The ladder beside the reference's file is used where it is of these two.

    Raises UserError: a file that cannot be read, images that one side lacks, labels that the contract does not have.
    """
    ours, theirs = (one if isinstance(one, Results) else read_results(Path(one)) for one in (reference, candidate))
    terms, ladder = _beside(reference, ours, theirs, contract)
    limits = {} if margin is None else {"margin_points": margin}
    gate = validate(Gate, terms.gate.model_dump() | limits, "the limits given")
    return judge(ours, theirs, terms, checks_of(terms, theirs.header), ladder, gate)


def _beside(
    reference: str | Path | Results, ours: Results, theirs: Results, contract: str | Path | Terms | None
) -> tuple[Terms, Ladder | None]:
    path = None if isinstance(reference, Results) else Path(reference)
    if contract is None:
        terms = load_contract() if path is None else find_contract(None, path, ours)
    else:
        terms = load_terms(Path(contract)) if isinstance(contract, (str, Path)) else contract
    return terms, None if path is None else find_ladder(None, path, ours, [theirs])
