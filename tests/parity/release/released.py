"""Runs that a release rests on, made as a run makes them."""

from pathlib import Path

from bundles import MMPROJ, TEXT, write_fake_bundle
from sides import FIVE, change_header, ladder_of, write_ladder, write_results

from parity.compare.ladder import read_ladder
from parity.judge.goldens import letterbox_gate
from parity.judge.judge import judge, write_verdict
from parity.results import Results, read_results
from pipeline.contract import Contract, Gate
from pipeline.core.files import sha256_file


def write_run(
    folder: Path,
    sides: tuple[Results, Results],
    gate: Gate | None = None,
    ladder: bool = True,
    model: dict[str, str] | None = None,
    contract: Contract = FIVE,
) -> Path:
    """A run's folder, all of it made as a run makes it."""
    bundle = write_fake_bundle(folder / "bundle")
    model = model or {"model": sha256_file(bundle / TEXT), "mmproj": sha256_file(bundle / MMPROJ)}
    ours, theirs = sides[0], change_header(sides[1], model=model)
    parity = folder / "parity"
    parity.mkdir()
    for side in (ours, theirs):
        write_results(side, parity / f"{side.header.side}.results.jsonl")
    if ladder:
        write_ladder(ladder_of(ours, theirs), parity / "ladder.jsonl")
    read = [read_results(parity / f"{side.header.side}.results.jsonl") for side in (ours, theirs)]
    walked = read_ladder(parity / "ladder.jsonl") if ladder else None
    write_verdict(judge(*read, contract, [letterbox_gate()], walked, gate), parity / "verdict.json")
    return folder
