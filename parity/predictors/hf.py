"""The reference side: the merged Hugging Face model."""

from pathlib import Path
from typing import Literal

from pipeline.encoding import Encoder
from pipeline.inference import HfPredictor
from pipeline.model.folder import load_model, load_tokenizer


def hf_predictor(
    folder: Path, encoder: Encoder, device: str = "cpu", dtype: Literal["float32", "bfloat16"] = "float32"
) -> HfPredictor:
    """Load a merged model folder on a torch device. float32 is the reference; bfloat16 shows what rounding does."""
    import torch

    model = load_model(folder).to(device=device, dtype=getattr(torch, dtype))
    return HfPredictor(model, load_tokenizer(folder), encoder)
