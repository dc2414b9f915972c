"""A picture that a processor need not resize is handed to the encoder as it is: undone, its bytes are the picture's."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from session import Once

from parity.engines.pixels import pixels_of, token_limits
from parity.studies.families.models import make_family
from pipeline.models.auto import load_processor


def picture(width: int, height: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def processed(processor: Any, rgb: npt.NDArray[np.uint8]) -> Any:
    from parity.engines.chat import picture_text

    return processor(text=[picture_text(processor) + "?"], images=[Image.fromarray(rgb)], return_tensors="pt")


@pytest.mark.parametrize(
    ("name", "size"),
    [("qwen2.5-vl", (252, 308)), ("qwen3-vl", (256, 320)), ("gemma3", (224, 224)), ("minicpm-v", (448, 448))],
)
def test_the_tiles_are_the_picture(once: Once, name: str, size: tuple[int, int]) -> None:
    processor = load_processor(str(once(name, lambda folder: make_family(name, folder))))
    rgb = picture(*size)
    found = pixels_of(processed(processor, rgb), processor.image_processor)
    assert found is not None
    assert np.array_equal(found.levels[0].transpose(1, 2, 0), rgb)


def test_a_smolvlm_picture_is_cut_into_tiles_with_the_whole_behind(once: Once) -> None:
    processor = load_processor(str(once("smolvlm", lambda folder: make_family("smolvlm", folder))))
    rgb = picture(1024, 768)
    found = pixels_of(processed(processor, rgb), processor.image_processor)
    assert found is not None
    *tiles, whole = [tile.transpose(1, 2, 0) for tile in found.levels]
    assert len(tiles) == 12
    assert whole.shape == (256, 256, 3)
    rows = [np.concatenate(tiles[row * 4 : row * 4 + 4], axis=1) for row in range(3)]
    assert np.array_equal(np.concatenate(rows), rgb)


def test_siglips_patches_are_put_together() -> None:
    """Held against the function that cuts them, as LFM2-VL's processor calls it."""
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    rgb = picture(96, 64)
    values = (rgb.transpose(2, 0, 1).astype(np.float32) / 255 - 0.5) / 0.5
    patches = np.asarray(convert_image_to_patches(values, 16))
    if patches.shape[-1] != 16 * 16 * 3:
        patches = patches.reshape(len(patches), -1)
    padded = np.concatenate([patches, np.zeros((8, patches.shape[1]), np.float32)])
    inputs = {"pixel_values": torch.from_numpy(padded)[None], "spatial_shapes": torch.tensor([[4, 6]])}

    class Processor:
        image_mean = image_std = (0.5, 0.5, 0.5)

    found = pixels_of(inputs, Processor())
    assert found is not None
    assert np.array_equal(found.levels[0].transpose(1, 2, 0), rgb)


def test_an_unknown_layout_is_none_and_not_equal() -> None:
    class Processor:
        image_mean = image_std = (0.5, 0.5, 0.5)

    assert pixels_of({"pixel_values": torch.zeros(7, 11)}, Processor()) is None
    assert pixels_of({}, Processor()) is None
    grid = torch.tensor([[1, 4, 4]])
    assert pixels_of({"pixel_values": torch.zeros(9, 5), "image_grid_thw": grid}, Processor()) is None


def test_the_tokens_that_a_processor_allows(once: Once) -> None:
    folder: Path = once("qwen3-vl", lambda folder: make_family("qwen3-vl", folder))
    processor = load_processor(str(folder))
    limits = token_limits(processor.image_processor)
    assert limits is not None
    low, high = limits
    few = processed(processor, picture(40, 40))
    assert int(few["image_grid_thw"].prod()) // 4 >= low  # 40 x 40 would be one token
    assert low < high


def test_a_processor_without_such_limits(once: Once) -> None:
    processor = load_processor(str(once("gemma3", lambda folder: make_family("gemma3", folder))))
    assert token_limits(processor.image_processor) is None
