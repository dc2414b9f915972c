"""Opens the two sides: their predictors, and the headers that say what ran."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from parity.results import Header
from pipeline.contract import Contract
from pipeline.files import sha256_file
from pipeline.provenance import code_digest, digest, machine, versions, weights_digest

SideName = Literal["hf", "llamacpp"]
_SHARED = (
    "pipeline/contract.py",
    "pipeline/encoding.py",
    "pipeline/prediction.py",
    "pipeline/dataset/records.py",
    "parity/lockstep.py",
    "parity/measure.py",
    "parity/results.py",
    "parity/samples.py",
    "parity/sides.py",
    "parity/stages.py",
)
# Rows that other code made are no part of a run: the digest of these files stands in the results' header, too.
CODE: dict[SideName, tuple[str, ...]] = {
    "hf": (*_SHARED, "pipeline/inference.py", "parity/predictors/hf.py"),
    "llamacpp": (*_SHARED, "parity/predictors/llamacpp.py", "parity/predictors/libmtmd.py"),
}
# enum ggml_type in ggml.h, of what an export may hold
_TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 30: "BF16",
}  # fmt: skip


@dataclass(frozen=True)
class OpenSide:
    """A side that is ready to answer."""

    predictor: Any
    header: Header


def _header(side: SideName, contract: Contract, dataset_sha256: str, predictor: Any, **about: Any) -> Header:
    return Header(
        side=side,
        contract_sha256=contract.digest,
        dataset_sha256=dataset_sha256,
        versions=versions() | {"code": code_digest(*CODE[side])},
        device=machine(),
        prompt_token_ids=tuple(predictor.prompt_ids),
        image_slots=tuple(predictor.image_slots),
        **about,
    )


def _encoder(merged: Path, contract: Contract) -> Any:
    from pipeline.encoding import make_encoder
    from pipeline.model.folder import load_tokenizer, read_geometry

    return make_encoder(contract, load_tokenizer(merged), read_geometry(merged))


def open_hf(
    merged: Path, contract: Contract, dataset_sha256: str, dtype: Literal["float32", "bfloat16"] = "float32"
) -> OpenSide:
    """The Hugging Face side of a merged model folder, on a GPU where there is one."""
    import torch

    from parity.predictors.hf import hf_predictor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = hf_predictor(merged, _encoder(merged, contract), device, dtype)
    runtime = {"dtype": dtype, "device": device, "n_threads": torch.get_num_threads()}
    header = _header(
        "hf", contract, dataset_sha256, predictor,
        model={path.name: sha256_file(path) for path in sorted(merged.glob("*.safetensors"))},
        weights_sha256=weights_digest(merged),
        runtime=runtime | {"fed": contract.image.channel_order},
    )  # fmt: skip
    return OpenSide(predictor, header)


@contextmanager
def open_llamacpp(
    merged: Path,
    model: Path,
    mmproj: Path,
    contract: Contract,
    dataset_sha256: str,
    fed_order: Literal["rgb", "bgr"] | None = None,
    tapped: bool = True,
    sequences: int | None = None,
) -> Iterator[OpenSide]:
    """llama.cpp's side of a GGUF pair; ``merged`` gives the tokenizer that the answers' ids are taken from.

    ``fed_order`` overrides the contract's channel order in what is handed to the model, and only there.
    """
    from parity.predictors.llamacpp import LlamaCppPredictor

    order = fed_order or contract.image.channel_order
    fed = contract.model_copy(update={"image": contract.image.model_copy(update={"channel_order": order})})
    with LlamaCppPredictor(model, mmproj, _encoder(merged, fed), sequences=sequences, tapped=tapped) as predictor:
        header = _header(
            "llamacpp", contract, dataset_sha256, predictor,
            model={"model": sha256_file(model), "mmproj": sha256_file(mmproj)},
            weights_sha256=_weights(model, mmproj),
            runtime=contract.runtime.model_dump(mode="json")
            | {"n_threads": predictor.n_threads, "fed": order}
            | {"text_types": tensor_types(model), "mmproj_types": tensor_types(mmproj)},
        )  # fmt: skip
        yield OpenSide(predictor, header)


def tensor_types(path: Path) -> str:
    """The types of a half's matrices, as they are and not as a key states them: ``Q8_0``, ``Q5_0+Q8_0``."""
    from pipeline.verify import gguf_matrices

    # The patch and position tables of the vision half stay as they are in every export (pipeline/export/check.py).
    kept = ("v.patch_embd", "v.position_embd")
    kinds = {kind for name, kind in gguf_matrices(path).items() if not name.startswith(kept)}
    return "+".join(sorted(_TYPE_NAMES.get(kind, f"type {kind}") for kind in kinds))


def _weights(model: Path, mmproj: Path) -> str | None:
    """The weights that a pair says it was made from; two halves of different weights give what equals neither."""
    from pipeline.export.convert import KEY_WEIGHTS
    from pipeline.verify import gguf_string

    found = [gguf_string(path, KEY_WEIGHTS) for path in (model, mmproj)]
    return found[0] if found[0] == found[1] else digest(found)
