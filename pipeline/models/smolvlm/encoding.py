"""Image + prompt (+ label) -> tensors, laid out token by token and tile by tile as libmtmd lays them out.

Parity is equality of token ids, not of prompt strings: the marker ``<__media__>`` is libmtmd's and is replaced before
tokenizing, and libmtmd tokenizes the text before and after the picture apart. Layout and tile cutting follow
``mtmd.cpp`` (``PROJECTOR_TYPE_IDEFICS3`` and ``mtmd_tokenizer::add_media``) and ``mtmd-image.cpp``
(``mtmd_image_preprocessor_idefics3``) of the pinned llama.cpp; the tests compare with ``mtmd_tokenize`` itself.

Invariant: every picture of a contract has the same number of tiles and the same prompt ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.contract import Contract, Tiling
from pipeline.core.errors import UserError
from pipeline.models.smolvlm.folder import VisionGeometry

IGNORE = -100
"""Label of a position that has no part in the loss."""

# The texts at which llama.cpp ends an answer, whatever the model's own end token ("special_eog_ids" in
# llama_vocab::impl::load); the bars in one of them are fullwidth in the original.
END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",  # noqa: RUF001
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>",
    "<reponame>", "<|file_sep|>",
)  # fmt: skip


@dataclass(frozen=True)
class Encoder:
    """Turns samples into a model's inputs under one contract. Build it with :func:`make_encoder`."""

    contract: Contract
    geometry: VisionGeometry
    prompt_ids: tuple[int, ...]
    """Ids of the whole prompt; every position of a picture holds ``geometry.image_token_id``."""
    answer_ids: dict[str, tuple[int, ...]]
    """Label -> ids of its answer text, without the end token."""
    end_id: int
    """The end token that training teaches."""
    stop_ids: frozenset[int]
    """Ids at which llama.cpp ends an answer."""
    normalized: npt.NDArray[np.float32]
    """[3, 256]: the encoder's float for each channel and byte."""

    @property
    def image_slots(self) -> list[tuple[int, int]]:
        """(start, length) of each picture's run of positions in :attr:`prompt_ids`."""
        return image_slots(self.prompt_ids, self.geometry.image_token_id)

    def tiles_u8(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Canvas [size, size, 3] -> the pictures the vision encoder is given, [n, tile, tile, 3], overview last."""
        return cut_tiles(rgb, self.contract.tiling, self.geometry.tile_size)

    def pixel_values(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Canvas [size, size, 3] -> normalized tiles, float32 [n, 3, tile, tile]."""
        tiles = self.tiles_u8(rgb).transpose(0, 3, 1, 2)
        return np.stack([self.normalized[channel][tiles[:, channel]] for channel in range(3)], axis=1)

    def training_ids(self, label: str) -> tuple[list[int], list[int]]:
        """(input_ids, labels) of prompt + answer + end token; the prompt's labels are :data:`IGNORE`."""
        answer = [*self.answer_ids[label], self.end_id]
        return [*self.prompt_ids, *answer], [IGNORE] * len(self.prompt_ids) + answer


def fed_bytes(rgb: npt.NDArray[np.uint8], contract: Contract) -> npt.NDArray[np.uint8]:
    """The bytes handed to the model: the canvas, channels in the contract's order. [size, size, 3], contiguous."""
    return np.ascontiguousarray(rgb if contract.image.channel_order == "rgb" else rgb[..., ::-1])


def image_slots(ids: Sequence[int], image_token_id: int) -> list[tuple[int, int]]:
    """(start, length) of each run of ``image_token_id`` in ``ids``."""
    slots: list[tuple[int, int]] = []
    for position, token in enumerate(ids):
        if token == image_token_id:
            if slots and sum(slots[-1]) == position:
                slots[-1] = (slots[-1][0], slots[-1][1] + 1)
            else:
                slots.append((position, 1))
    return slots


def cut_tiles(rgb: npt.NDArray[np.uint8], tiling: Tiling, tile: int) -> npt.NDArray[np.uint8]:
    """Canvas -> tiles row by row, then the overview: uint8 [n, tile, tile, 3].

    The overview is scaled from the enlarged picture, not from the canvas, as both HF and libmtmd do. Pillow's LANCZOS
    is HF's own and the one that libmtmd copies to the bit.
    """

    def scaled(image: Image.Image, side: int) -> Image.Image:
        return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.LANCZOS)

    grid = tiling.grid if tiling.plan == "grid" else 1
    refined = scaled(Image.fromarray(rgb), grid * tile)
    overview = np.asarray(scaled(refined, tile))
    if tiling.plan == "overview":
        return overview[None]
    cells = np.asarray(refined).reshape(grid, tile, grid, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
    return np.concatenate([cells, overview[None]])


def _picture_ids(tiling: Tiling, tokens_per_tile: int, token_id: dict[str, int]) -> list[int]:
    picture = [token_id["<image>"]] * tokens_per_tile
    fake, overview = token_id["<fake_token_around_image>"], token_id["<global-img>"]
    if tiling.plan == "overview":
        return [fake, overview, *picture, fake]
    ids: list[int] = []
    for row in range(1, tiling.grid + 1):
        for column in range(1, tiling.grid + 1):
            ids += [fake, token_id[f"<row_{row}_col_{column}>"], *picture]
        ids.append(token_id["\n"] if row < tiling.grid else token_id["\n\n"])
    return [*ids, fake, overview, *picture, fake]


def _marker_ids(tokenizer: Any, vocabulary: dict[str, int], tiling: Tiling) -> dict[str, int]:
    names = ["<image>", "<fake_token_around_image>", "<global-img>"]
    names += [f"<row_{r}_col_{c}>" for r in range(1, tiling.grid + 1) for c in range(1, tiling.grid + 1)]
    missing = [name for name in names if name not in vocabulary]
    if missing:
        raise UserError(f"the tokenizer lacks the picture token {missing[0]}: this is not a SmolVLM tokenizer")
    ids = {name: int(vocabulary[name]) for name in names}
    for text in ("\n", "\n\n"):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if len(tokens) != 1:
            raise UserError(f"the tokenizer has no single token for {text!r}, which libmtmd puts between tiles")
        ids[text] = tokens[0]
    return ids


def _answers(contract: Contract, tokenizer: Any) -> dict[str, tuple[int, ...]]:
    answers: dict[str, tuple[int, ...]] = {}
    for label in contract.labels:
        ids = tuple(tokenizer.encode(contract.answer_text(label), add_special_tokens=False))
        read = contract.parse_answer(tokenizer.decode(ids, skip_special_tokens=True))
        if read != label:
            raise UserError(f"label {label!r} is read back as {read!r} after tokenizing: use plain words as labels")
        if len(ids) >= contract.max_new_tokens:
            raise UserError(
                f"label {label!r} is {len(ids)} tokens and the end token, more than max_new_tokens"
                f" {contract.max_new_tokens}"
            )
        answers[label] = ids
    return answers


def make_encoder(contract: Contract, tokenizer: Any, geometry: VisionGeometry) -> Encoder:
    """Build the encoder of a contract for a model.

    Raises UserError where the prompt holds the model's own picture token, a label does not survive tokenizing, or
    image + prompt + answer tokens do not fit the contract's context window.
    """
    vocabulary = tokenizer.get_vocab()
    token_id = _marker_ids(tokenizer, vocabulary, contract.tiling)
    if token_id["<image>"] != geometry.image_token_id:
        raise UserError(
            f"the tokenizer's <image> is {token_id['<image>']}, and the model's image_token_id is"
            f" {geometry.image_token_id}: they are not of one model"
        )
    before, after = contract.prompt_parts
    if "<image>" in before + after:
        raise UserError(
            "prompt_template contains <image>, which HF would take for a picture and llama.cpp for text:"
            f" write {contract.media_marker} where the picture goes"
        )
    picture = _picture_ids(contract.tiling, geometry.tokens_per_tile, token_id)
    prompt = [
        *([tokenizer.bos_token_id] if contract.add_bos else []),
        *tokenizer.encode(before, add_special_tokens=False),
        *picture,
        *tokenizer.encode(after, add_special_tokens=False),
    ]
    n_image = geometry.tokens_per_tile * contract.tiling.n_tiles
    contract.check_budget(n_image, len(prompt) - n_image)
    levels = np.arange(256, dtype=np.float64)
    # HF's two steps, each rounded to float32: image * (1 / 255), then (image - mean) / std.
    rescaled = (levels * (1 / 255)).astype(np.float32)
    normalized = [
        (rescaled - np.float32(mean)) / np.float32(std)
        for mean, std in zip(geometry.image_mean, geometry.image_std, strict=True)
    ]
    return Encoder(
        contract=contract,
        geometry=geometry,
        prompt_ids=tuple(prompt),
        answer_ids=_answers(contract, tokenizer),
        end_id=int(tokenizer.eos_token_id),
        stop_ids=frozenset({int(tokenizer.eos_token_id), *(vocabulary[t] for t in END_TEXTS if t in vocabulary)}),
        normalized=np.stack(normalized),
    )
