"""Whether the files that a side ran are those of a bundle, by their hashes: a phone may have another build's."""

from pathlib import Path

from parity.judge.verdict import GateResult
from parity.results import Header
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_file

HALVES = {"model", "mmproj"}
"""What llama.cpp's side calls the two files of a bundle."""


def halves_in(bundle: Path) -> dict[str, tuple[str, str]]:
    """Half -> (file name, SHA-256) of the GGUFs in a folder. Raises UserError where it is none."""
    if not bundle.is_dir():
        raise UserError(f"{bundle} is no folder: give the bundle, such as runs/tiny/bundle")
    found = {}
    for path in sorted(bundle.glob("*.gguf")):
        found["mmproj" if path.name.startswith("mmproj-") else "model"] = (path.name, sha256_file(path))
    return found


def bundle_gate(header: Header, bundle: Path) -> GateResult:
    """The side ran just the two GGUFs of the bundle; where not, nothing is judged. Raises UserError."""
    there = halves_in(bundle)
    if there.keys() != HALVES:
        raise UserError(
            f"{bundle} does not hold a text half and an mmproj: give a bundle as `pipeline export` writes it"
        )
    wrong = [name for half, (name, digest) in sorted(there.items()) if header.model.get(half) != digest]
    if not wrong:
        names = " and ".join(name for name, _ in there.values())
        return GateResult(stage="bundle", status="green", detail=f"{header.shown} ran {names}, by their SHA-256")
    return GateResult(
        stage="bundle",
        status="red",
        detail=f"{header.shown} did not run {' nor '.join(wrong)} of the bundle, by its SHA-256",
        cause=f"{header.shown} has another build's files",
        fix="put the bundle's files on the device, and run again",
    )
