"""The reference side: the merged Hugging Face model."""

from pathlib import Path
from typing import Literal

import torch

from parity.engines import OpenSide
from parity.engines.header import encoder_of, header_of
from pipeline.contract import Contract
from pipeline.core.files import sha256_file
from pipeline.core.provenance import weights_digest
from pipeline.models.smolvlm.encoding import Encoder
from pipeline.models.smolvlm.folder import load_model, load_tokenizer
from pipeline.models.smolvlm.inference import HfPredictor

Dtype = Literal["float32", "bfloat16"]


def hf_predictor(folder: Path, encoder: Encoder, device: str = "cpu", dtype: Dtype = "float32") -> HfPredictor:
    """Load a merged model folder on a torch device. float32 is the reference; bfloat16 shows what rounding does."""
    model = load_model(folder).to(device=device, dtype=getattr(torch, dtype))
    return HfPredictor(model, load_tokenizer(folder), encoder)


def open_hf(
    merged: Path, contract: Contract, dataset_sha256: str, dtype: Dtype = "float32", threads: int | None = None
) -> OpenSide:
    """The Hugging Face side of a merged model folder, on a GPU where there is one. ``threads``: torch's own."""
    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = hf_predictor(merged, encoder_of(merged, contract), device, dtype)
    runtime = {"dtype": dtype, "device": device, "n_threads": torch.get_num_threads()}
    header = header_of(
        "hf", open_hf, contract, dataset_sha256, predictor,
        model={path.name: sha256_file(path) for path in sorted(merged.glob("*.safetensors"))},
        weights_sha256=weights_digest(merged),
        runtime=runtime | {"fed": contract.image.channel_order},
    )  # fmt: skip
    return OpenSide(predictor, header)
