"""The reference side: the merged Hugging Face model in float32."""

from pathlib import Path

from pipeline.encoding import Encoder
from pipeline.inference import HfPredictor
from pipeline.model.folder import load_model, load_tokenizer


def hf_predictor(folder: Path, encoder: Encoder, device: str = "cpu") -> HfPredictor:
    """Load a merged model folder in float32 on a torch device."""
    return HfPredictor(load_model(folder).to(device), load_tokenizer(folder), encoder)
