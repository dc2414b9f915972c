"""The model to start from, as a folder: made (``embedded:...``), already there, or fetched from the hub."""

import os
from pathlib import Path

from pipeline.contract import Tiling
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_folder
from pipeline.models.smolvlm.embedded import SHAPES, build_model, build_tokenizer
from pipeline.models.smolvlm.folder import VisionGeometry, read_geometry, write_model_folder
from pipeline.models.smolvlm.inspect import stored_shapes
from pipeline.recipe import BaseSettings


def base_folder(settings: BaseSettings, made: Path) -> Path:
    """Where the base model is or will be; ``made`` is the run's own place for an embedded one.

    Raises UserError where a name is neither an embedded model, a folder, nor a hub id that can be had.
    """
    if settings.model.startswith("embedded:"):
        if settings.model not in SHAPES:
            raise UserError(f"base.model {settings.model!r} is not one of {', '.join(SHAPES)}")
        return made
    if os.path.isdir(settings.model):
        return Path(settings.model)
    if settings.model.startswith((".", "/", "~")) or settings.model.count("/") != 1:
        raise UserError(f"base.model {settings.model!r} is neither a folder nor a hub id like owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.txt"]
        return Path(snapshot_download(settings.model, revision=settings.revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"base.model {settings.model!r} cannot be fetched from the hub ({reason}): check the name and the network"
            " (in a container: NETWORK=bridge), or download it elsewhere and give its folder"
        ) from None


def make_base(settings: BaseSettings, folder: Path, seed: int) -> str:
    """Write an embedded model into ``folder``, or check that a given one can be used; returns a few words on it."""
    if settings.model in SHAPES:
        shape = SHAPES[settings.model]
        model, tokenizer = build_model(settings.model, seed), build_tokenizer()
        geometry = VisionGeometry(
            tile_size=shape["tile"]["image_size"],
            patch_size=shape["tile"]["patch_size"],
            scale_factor=shape["scale_factor"],
            image_mean=(0.5, 0.5, 0.5),
            image_std=(0.5, 0.5, 0.5),
            image_token_id=model.config.image_token_id,
        )
        with atomic_folder(folder) as out:
            write_model_folder(out, model, tokenizer, Tiling(), geometry)
        return f"{settings.model}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, seed {seed}"
    geometry = read_geometry(folder)
    stored_shapes(folder)
    return f"{settings.model}, tiles of {geometry.tile_size} px and {geometry.tokens_per_tile} tokens"
