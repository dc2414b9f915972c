"""Model folders on disk: read what a SmolVLM says of itself, load it, and write it so that stock conversion accepts it.

Works on ``Idefics3ForConditionalGeneration`` and ``SmolVLMForConditionalGeneration`` (SmolVLM and SmolVLM2, 256M to
2.2B). No processor class is needed to read a folder: SmolVLM's wants a video processor, which wants torchvision.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.contract import Tiling
from pipeline.core.errors import UserError
from pipeline.core.files import write_json

SUPPORTED = ("idefics3", "smolvlm")


@dataclass(frozen=True)
class VisionGeometry:
    """How the vision half of a model sees one tile."""

    tile_size: int
    """Side of a tile, pixels."""
    patch_size: int
    scale_factor: int
    """Pixel-shuffle factor: this many patches a side become one token."""
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    image_token_id: int

    @property
    def tokens_per_tile(self) -> int:
        """Image tokens that one tile becomes."""
        return (self.tile_size // self.patch_size) ** 2 // self.scale_factor**2


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"model file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"model file {path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"model file {path} holds no JSON object")
    return value


def image_processor_settings(folder: Path) -> dict[str, Any]:
    """The image processor's settings; ``processor_config.json`` wins over ``preprocessor_config.json``.

    The same precedence as llama.cpp's converter (``MmprojModel.__init__`` in ``conversion/base.py``).
    """
    settings: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            data = _read_json(folder / name)
            settings |= data.get("image_processor", data)
    return settings


def read_geometry(folder: Path) -> VisionGeometry:
    """What the encoding needs to know of a model folder. Raises UserError for a folder that is not a SmolVLM's."""
    config = _read_json(folder / "config.json")
    if config.get("model_type") not in SUPPORTED:
        raise UserError(
            f"{folder}/config.json has model_type {config.get('model_type')!r}; supported are {', '.join(SUPPORTED)}"
            " (SmolVLM and SmolVLM2)"
        )
    vision = config.get("vision_config", {})
    settings = image_processor_settings(folder)
    tile = vision.get("image_size") or settings.get("max_image_size", {}).get("longest_edge")
    patch, scale = vision.get("patch_size"), config.get("scale_factor", 2)
    if not tile or not patch or "image_token_id" not in config:
        raise UserError(
            f"{folder}/config.json lacks vision_config.image_size, vision_config.patch_size or image_token_id"
        )
    if tile // patch % scale:
        raise UserError(
            f"{folder}/config.json: {tile // patch} patches a side cannot be grouped by scale_factor {scale}"
        )
    return VisionGeometry(
        tile_size=tile,
        patch_size=patch,
        scale_factor=scale,
        image_mean=tuple(settings.get("image_mean", (0.5, 0.5, 0.5))),
        image_std=tuple(settings.get("image_std", (0.5, 0.5, 0.5))),
        image_token_id=config["image_token_id"],
    )


def load_tokenizer(folder: Path) -> Any:
    """The folder's fast tokenizer."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} has no usable tokenizer: {str(error).splitlines()[0]}") from None


def load_model(folder: Path, dtype: str = "float32") -> Any:
    """The folder's model in evaluation mode, on the CPU, in a torch dtype given by name.

    Raises UserError where files are missing or damaged, or weights are missing (transformers would make them up).
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, dtype), output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} has no usable model: {str(error).splitlines()[0]}") from None
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{folder} has no usable model: {len(missing)} weights are missing, such as {missing[0]}")
    return model.eval()


def write_model_folder(folder: Path, model: Any, tokenizer: Any, tiling: Tiling, geometry: VisionGeometry) -> None:
    """Write model, tokenizer and processor into an existing folder, in the form that llama.cpp's converter reads.

    Three things that plain ``save_pretrained`` leaves out and the converter silently guesses or refuses without are
    written: ``text_config.architectures`` (refused), ``layer_norm_eps`` (guessed as 1e-5, HF's default is 1e-6) and
    the tile plan as the image processor's ``size.longest_edge`` (libmtmd cuts the tiles by it).
    """
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    model.save_pretrained(folder, safe_serialization=True)
    edge = geometry.tile_size * (tiling.grid if tiling.plan == "grid" else 1)
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": edge},
        max_image_size={"longest_edge": geometry.tile_size},
        image_mean=list(geometry.image_mean),
        image_std=list(geometry.image_std),
        do_image_splitting=tiling.plan == "grid",
    )
    Idefics3Processor(image_processor, tokenizer, image_seq_len=geometry.tokens_per_tile).save_pretrained(folder)
    config = _read_json(folder / "config.json")
    config["text_config"] = _explicit(model.config.text_config) | {"architectures": ["VLlama3ForCausalLM"]}
    config["vision_config"] = _explicit(model.config.vision_config)
    write_json(folder / "config.json", config)


def _explicit(config: Any) -> dict[str, Any]:
    """A sub-configuration with its own defaults written out, without the ones that every configuration has."""
    from transformers import PreTrainedConfig

    common = PreTrainedConfig().to_dict()
    values: dict[str, Any] = config.to_dict()
    return {key: value for key, value in values.items() if key not in common or value != common[key]}
