"""Model folders on disk: read what a SmolVLM says of itself, load it, and write it so that stock conversion accepts it.

Works on ``Idefics3ForConditionalGeneration`` and ``SmolVLMForConditionalGeneration`` (SmolVLM and SmolVLM2, 256M to
2.2B). No processor class is needed to read a folder: SmolVLM's wants a video processor, which wants torchvision.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.contract import Tiling
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.models.smolvlm.inspect import (
    check_model,
    first_line,
    read_config,
    read_object,
    whole_number,
)

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


def image_processor_settings(folder: Path) -> dict[str, Any]:
    """The image processor's settings; ``processor_config.json`` wins over ``preprocessor_config.json``.

    The same precedence as llama.cpp's converter (``MmprojModel.__init__`` in ``conversion/base.py``).
    """
    settings: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            data = read_object(folder / name)
            inner = data.get("image_processor", data)
            if not isinstance(inner, dict):
                raise UserError(f"model file {folder / name}: image_processor is not an object: fetch the model again")
            settings |= inner
    return settings


def read_geometry(folder: Path) -> VisionGeometry:
    """What the encoding needs to know of a model folder. Raises UserError for a folder that is not a SmolVLM's."""
    path = folder / "config.json"
    config = read_object(path)
    if config.get("model_type") not in SUPPORTED:
        raise UserError(
            f"{path} has model_type {config.get('model_type')!r}; supported are {', '.join(SUPPORTED)}"
            " (SmolVLM and SmolVLM2)"
        )
    config = read_config(folder)
    vision, settings = config["vision_config"], image_processor_settings(folder)
    tile = vision.get("image_size") or _edge(settings.get("max_image_size"))
    patch, scale = vision.get("patch_size"), config.get("scale_factor", 2)
    if not tile or not patch or "image_token_id" not in config:
        raise UserError(f"{path} lacks vision_config.image_size, vision_config.patch_size or image_token_id")
    whole_number(tile, 2**13, "the side of a tile", path)
    whole_number(patch, tile, "vision_config.patch_size", path)
    whole_number(scale, tile // patch, "scale_factor", path)
    if tile // patch % scale:
        raise UserError(f"{path}: {tile // patch} patches a side cannot be grouped by scale_factor {scale}")
    return VisionGeometry(
        tile_size=tile,
        patch_size=patch,
        scale_factor=scale,
        image_mean=_three(settings, "image_mean", folder),
        image_std=_three(settings, "image_std", folder),
        image_token_id=whole_number(config["image_token_id"], 2**22, "image_token_id", path, least=0),
    )


def _edge(size: Any) -> Any:
    return size.get("longest_edge") if isinstance(size, dict) else None


def _three(settings: dict[str, Any], key: str, folder: Path) -> tuple[float, float, float]:
    """A mean or a deviation for each channel."""
    values = settings.get(key, (0.5, 0.5, 0.5))
    good = isinstance(values, list | tuple) and len(values) == 3
    if not good or not all(isinstance(value, int | float) and 0 <= value < 1e6 for value in values):
        raise UserError(f"{folder}: the image processor's {key} is not three numbers: fetch the model again")
    if key == "image_std" and not all(values):
        raise UserError(f"{folder}: the image processor's {key} has a zero, by which pixels would be divided")
    return tuple(values)


def load_tokenizer(folder: Path) -> Any:
    """The folder's fast tokenizer. Raises UserError where there is none that can be used with its model."""
    from transformers import AutoTokenizer

    try:
        rules = read_object(folder / "tokenizer.json").get("model")
    except UserError as error:
        raise UserError(f"{folder} has no usable tokenizer: {error}") from None
    prefix = rules.get("continuing_subword_prefix") if isinstance(rules, dict) else None
    if prefix:  # no SmolVLM has one, and the package ends the process over one that its merges do not have
        raise UserError(f"{folder} has no usable tokenizer: continuing_subword_prefix is {str(prefix)[:40]!r}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.encode("a", add_special_tokens=False)
        ids = tokenizer.get_vocab().values()
        special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    except BaseException as error:  # the package's own panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{folder} has no usable tokenizer: {first_line(error)}") from None
    if lacking := [name for name, index in special.items() if not isinstance(index, int)]:
        raise UserError(f"{folder} has no usable tokenizer: it has no {lacking[0]} token")
    room = read_config(folder)["text_config"].get("vocab_size")
    if room is not None and max(ids, default=0) >= room:
        raise UserError(f"{folder} has no usable tokenizer: its ids go to {max(ids)}, and the model has {room} words")
    return tokenizer


def load_model(folder: Path, dtype: str = "float32") -> Any:
    """The folder's model in evaluation mode, on the CPU, in a torch dtype given by name.

    Raises UserError, before it asks for memory, where files are missing or damaged, config.json describes another model
    than they hold, weights are missing (transformers would make them up), or the machine is too small.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    kind: Any = getattr(torch, dtype)
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} has no usable model: it has no *.safetensors")
    check_model(folder, kind.itemsize)
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=kind, output_loading_info=True)
    except Exception as error:  # what check_model knows nothing of, such as a broken generation_config.json
        raise UserError(f"{folder} has no usable model: {first_line(error)}") from None
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
    config = read_object(folder / "config.json")
    config["text_config"] = _explicit(model.config.text_config) | {"architectures": ["VLlama3ForCausalLM"]}
    config["vision_config"] = _explicit(model.config.vision_config)
    write_json(folder / "config.json", config)


def _explicit(config: Any) -> dict[str, Any]:
    """A sub-configuration with its own defaults written out, without the ones that every configuration has."""
    from transformers import PreTrainedConfig

    common = PreTrainedConfig().to_dict()
    values: dict[str, Any] = config.to_dict()
    return {key: value for key, value in values.items() if key not in common or value != common[key]}
