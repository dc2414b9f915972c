"""A SmolVLM under an app's contract: the contract's own engines, which lay tiles and prompt out as the app does.

SmolVLM's processor cannot be told the app's tile plan, so the generic engines would compare two plans.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from parity.compare.ladder import Compared, Measured, NoiseFloor
from parity.compare.measure import measure
from parity.compare.photos import Photo
from parity.compare.runner import keep, kept_by, measure_floor, observe
from parity.engines import OpenSide
from parity.engines.sides import Sides
from parity.results import Header, Row
from parity.terms import CheckTerms
from pipeline.contract import Contract
from pipeline.core.progress import Reporter
from pipeline.models.smolvlm.folder import SUPPORTED
from pipeline.models.smolvlm.inspect import read_object


def applies(model: str, contract: Contract | None) -> bool:
    """Whether a model is a SmolVLM's folder, and a contract says how the app feeds it."""
    path = Path(model) / "config.json"
    return contract is not None and path.is_file() and read_object(path).get("model_type") in SUPPORTED


def header_under(side: OpenSide, terms: CheckTerms, photos: Sequence[Photo], runner: Any) -> Header:
    """A contract side's header as a check states it: what was asked, and the runtime, by the check's terms."""
    header = kept_by(side.header, photos, runner)
    runtime = dict(header.runtime)
    if header.side == "llamacpp":
        threads = runtime.pop("n_threads")
        runtime = {key: value for key, value in runtime.items() if key in ("fed", "text_types", "mmproj_types")}
        runtime |= terms.runtime.model_dump(mode="json", exclude={"threads"}) | {"n_threads": threads}
    return header.model_copy(update={"contract_sha256": terms.digest, "runtime": runtime})


def floor_under(sides: Sides, photos: Sequence[Photo], contract: Contract, reporter: Reporter) -> NoiseFloor:
    """What bfloat16 alone changes."""
    from parity.engines.hf import open_hf

    rounded = open_hf(sides.merged, contract, sides.dataset_sha256, "bfloat16")
    return measure_floor(sides.reference().predictor, rounded.predictor, photos, contract, reporter)


def walk_under(
    sides: Sides,
    photos: Sequence[Photo],
    terms: CheckTerms,
    about: Compared,
    folder: Path,
    reporter: Reporter,
    runner: Any,
) -> None:
    """Run both contract sides over the pictures; see :func:`parity.compare.runner.keep`."""
    reference, candidate = sides.reference(), sides.candidate()

    def step(batch: list[Photo]) -> Iterator[tuple[Photo, Row, Row, Measured]]:
        a_rows = observe(reference.predictor, batch, sides.contract)
        b_rows = observe(candidate.predictor, batch, sides.contract)
        for photo, a, b in zip(batch, a_rows, b_rows, strict=True):
            yield photo, a[0], b[0], measure(a, b, None)  # a canvas is made, not decoded

    headers = tuple(header_under(side, terms, photos, runner) for side in (reference, candidate))
    keep((headers[0], headers[1]), photos, about, folder, reporter, step, reference.predictor.batch_size)
