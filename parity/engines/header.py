"""What every engine does alike when it opens: a model's encoder under a contract, and the header of what runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from parity.engines import SideName
from parity.results import Header
from pipeline.contract import Contract
from pipeline.core.closure import code_digest
from pipeline.core.provenance import machine, versions
from pipeline.models.smolvlm.encoding import Encoder, make_encoder
from pipeline.models.smolvlm.folder import load_tokenizer, read_geometry


def encoder_of(merged: Path, contract: Contract) -> Encoder:
    """The encoder of a merged model's folder."""
    return make_encoder(contract, load_tokenizer(merged), read_geometry(merged))


def header_of(
    side: SideName,
    engine: str,
    opener: Callable[..., Any],
    contract: Contract,
    dataset_sha256: str,
    predictor: Any,
    backends: dict[str, str] | None = None,
    **about: Any,
) -> Header:
    """The header of a side that ``opener`` opened. ``engine``: what computes; ``backends``: with what, beside the
    machine; ``about`` fills in what only that side knows."""
    return Header(
        side=side,
        engine=engine,
        contract_sha256=contract.digest,
        dataset_sha256=dataset_sha256,
        versions=versions() | {"code": code_digest(opener)},
        device=machine() | (backends or {}),
        prompt_token_ids=tuple(predictor.prompt_ids),
        image_slots=tuple(predictor.image_slots),
        **about,
    )
