"""What a processor of Hugging Face's hands its vision encoder, as pictures: four layouts cover all families known."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from parity.engines.trace import Pixels

Tile = npt.NDArray[np.float32]


def pixels_of(inputs: Mapping[str, Any], image_processor: Any) -> Pixels | None:
    """The pictures in a processor's output of one image; None where their layout is unknown."""
    values = inputs.get("pixel_values")
    if values is None:
        return None
    try:
        if "image_grid_thw" in inputs:
            tiles = list(_qwen(_array(values), _array(inputs["image_grid_thw"]), image_processor))
        elif "spatial_shapes" in inputs:
            tiles = list(_siglip(_array(values), _array(inputs["spatial_shapes"])))
        elif "target_sizes" in inputs:
            tiles = list(_strips(_array(values), _array(inputs["target_sizes"])))
        else:
            tiles = list(_plain(values, inputs))
    except (ValueError, IndexError, TypeError, AttributeError):  # arrays of other shapes than the layout has
        return None
    if not tiles or any(tile.ndim != 3 or tile.shape[0] != 3 for tile in tiles):
        return None
    return Pixels(tiles, *normalization(image_processor))


def normalization(image_processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of each channel that a processor normalizes with."""
    if not getattr(image_processor, "do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return tuple(image_processor.image_mean), tuple(image_processor.image_std)


def token_limits(image_processor: Any) -> tuple[int, int] | None:
    """The fewest and the most tokens that a processor gives a picture; None where it does not say so."""
    low, high = (getattr(image_processor, f"{end}_image_tokens", None) for end in ("min", "max"))
    if low and high:  # LFM2-VL
        return int(low), int(high)
    side, merge = (getattr(image_processor, name, None) for name in ("patch_size", "merge_size"))
    size = getattr(image_processor, "size", None) or {}
    low = getattr(image_processor, "min_pixels", None) or size.get("shortest_edge")
    high = getattr(image_processor, "max_pixels", None) or size.get("longest_edge")
    if not (isinstance(side, int) and merge and low and high and low > side * side):
        return None
    area = (side * merge) ** 2  # Qwen's and GLM's: pixels in all
    return max(int(low) // area, 1), int(high) // area


def _array(value: Any) -> npt.NDArray[Any]:
    return np.asarray(value.float().cpu() if hasattr(value, "cpu") else value)


def _plain(values: Any, inputs: Mapping[str, Any]) -> Iterator[Tile]:
    """[n, 3, h, w] or [1, n, 3, h, w], padded where ``pixel_attention_mask`` or ``image_sizes`` say so."""
    if isinstance(values, list):
        values = np.concatenate([_array(value).reshape(-1, *value.shape[-3:]) for value in values])
    tiles = _array(values).astype(np.float32)
    tiles = tiles.reshape(-1, *tiles.shape[-3:])
    mask = inputs.get("pixel_attention_mask")
    masks = None if mask is None else _array(mask).reshape(-1, *tiles.shape[-2:]).astype(bool)
    sizes = inputs.get("image_sizes")
    for number, tile in enumerate(tiles):
        if masks is not None:
            if not masks[number].any():
                continue  # a tile that only fills the batch up
            tile = tile[:, : int(masks[number].any(1).sum()), : int(masks[number].any(0).sum())]
        elif sizes is not None and len(_array(sizes)) == len(tiles):
            height, width = (int(side) for side in _array(sizes)[number])
            tile = tile[:, :height, :width]
        yield tile


def _qwen(patches: npt.NDArray[Any], grids: npt.NDArray[Any], processor: Any) -> Iterator[Tile]:
    """[patches, 3 * frames * p * p], patches in blocks of merge x merge (Qwen2VLImageProcessor's ``_preprocess``)."""
    merge, frames, side = processor.merge_size, processor.temporal_patch_size, processor.patch_size
    begin = 0
    for t, h, w in grids.astype(int):
        count = t * h * w
        part = patches[begin : begin + count].reshape(t, h // merge, w // merge, merge, merge, 3, frames, side, side)
        begin += count
        # A still picture is repeated to fill the frames: the first is all of it.
        picture = part[0, :, :, :, :, :, 0].transpose(4, 0, 2, 5, 1, 3, 6)
        yield np.ascontiguousarray(picture.reshape(3, h * side, w * side), np.float32)


def _siglip(patches: npt.NDArray[Any], shapes: npt.NDArray[Any]) -> Iterator[Tile]:
    """[tiles, longest, p * p * 3]: patches row by row, then padding (Siglip2's ``convert_image_to_patches``)."""
    side = round((patches.shape[-1] / 3) ** 0.5)
    for tile, (h, w) in zip(patches, shapes.astype(int), strict=True):
        picture = tile[: h * w].reshape(h, w, side, side, 3).transpose(4, 0, 2, 1, 3)
        yield np.ascontiguousarray(picture.reshape(3, h * side, w * side), np.float32)


def _strips(values: npt.NDArray[Any], sizes: npt.NDArray[Any]) -> Iterator[Tile]:
    """[1, 3, p, patches * p]: the patches of all tiles side by side (MiniCPM-V's ``reshape_by_patch``)."""
    strip, begin = values.reshape(3, *values.shape[-2:]), 0
    side = strip.shape[1]
    for h, w in sizes.reshape(-1, 2).astype(int):
        end = begin + h * w * side
        picture = strip[:, :, begin:end].reshape(3, side, h, w, side).transpose(0, 2, 1, 3, 4)
        begin = end
        yield np.ascontiguousarray(picture.reshape(3, h * side, w * side), np.float32)
