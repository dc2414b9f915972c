"""Whether a run may be released: the gate that an app's build calls before it packs a bundle.

Nothing that the run's files say is believed: the bundle's files are hashed, the results are judged again. What someone
with write access to all of them can still do, and how a signature prevents it, is in ``docs/threat-model.md``.
"""

from pathlib import Path

from parity.judge.bundle import HALVES
from parity.judge.judge import EXIT_CODES
from parity.report.saved import Saved, read_saved
from parity.report.staircase import stop_words
from pipeline.contract import load_contract
from pipeline.core.errors import NotReleased
from pipeline.export.verify import CONTRACT, verify_bundle


def require_release(folder: Path, public_key: Path | None = None) -> list[str]:
    """What was checked of a run's folder, a line each, and that it may be released. Raises as :func:`prove` does."""
    return [*prove(folder, public_key)[1], f"{folder} may be released"]


def prove(folder: Path, public_key: Path | None = None) -> tuple[Saved, list[str]]:
    """A run's files, and what was checked of them, a line each. ``public_key``: of the owner who must have signed it.

    Raises NotReleased: a verdict that is not PASS, was given under other limits than the contract's, or is of another
    bundle. Raises UserError: no run, a stale verdict. Raises CheckFailed: a damaged bundle; a signature that is
    missing, or not of these files.
    """
    saved = read_saved(folder)
    verdict = saved.verdict
    if verdict.status != "PASS":
        raise NotReleased(f"the verdict is {verdict.status}: {verdict.headline}", EXIT_CODES[verdict.status])
    if verdict.overrides:
        raise NotReleased(f"the verdict does not hold under the contract's limits: {verdict.overrides[0]}")
    if saved.ladder is None:
        raise NotReleased("the verdict was given without a ladder: run `parity run` without --no-ladder")
    bundle = saved.folder.parent / "bundle"
    checked = verify_bundle(bundle)
    if verdict.candidate_header.model.keys() != HALVES:  # read_saved compares the files of a side that names both
        raise NotReleased(f"{bundle} holds other GGUFs than those that were judged: run `parity run` again")
    if load_contract(bundle / CONTRACT).digest != saved.contract.digest:
        raise NotReleased(f"{bundle} has another contract than the one that was judged by: run `parity run` again")
    lines = [
        f"verdict: PASS on {verdict.n} {verdict.split or 'unnamed'} images, judged again from the files beside it",
        f"bundle: {len(checked)} checks passed, and its GGUFs are those that were judged",
    ]
    if verdict.audit:
        lines.append(f"phone: {stop_words(verdict.audit)}: {verdict.audit.claim}")
    if public_key:
        from parity.judge.evidence import verify_evidence
        from pipeline.export.signing import verify_signature

        lines += [verify_signature(bundle, public_key), verify_evidence(saved.folder, public_key)]
    return saved, lines
