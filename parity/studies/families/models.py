"""The families, by name: a tiny model of each, and its GGUF pair by the pinned converter."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity.studies.families.grids import make_glm4v, make_qwen2_5_vl, make_qwen3_5, make_qwen3_vl
from parity.studies.families.others import make_internvl3, make_mistral3, make_pixtral
from parity.studies.families.siglip import make_gemma3, make_lfm2_vl, make_minicpm_v, make_smolvlm
from pipeline.core.errors import CheckFailed, UserError
from pipeline.core.files import write_json
from pipeline.core.gguf_types import MmprojType, TextType
from pipeline.core.toolchain import load_gguf
from pipeline.export.convert import atomic_file, convert_mmproj, convert_text, copy_gguf
from pipeline.models.smolvlm.inspect import read_object


@dataclass(frozen=True)
class Family:
    """A family of vision-language models."""

    name: str
    model_type: str
    """``model_type`` of its config.json."""
    make: Callable[[Path], None]
    """Writes its tiny model into a folder."""
    note: str = ""
    """Known limits of transformers, the converter or llama.cpp with it, in words."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Width and height of pictures beside the suite's, for a fault that others hide."""


FURTHER_TOKENS = ("qwen3_5", "minicpmv4_6")
"""Families for which the converter wants a head that predicts further tokens, or the flag that it is to be left out."""
KEY_CUT = "tokenizer.ggml.pre"
"""llama.cpp's key for how a text is cut into words before it becomes tokens."""
LINE_BREAK = "v.token_embd.img_break"

_STRETCH = "libmtmd pads a picture where transformers stretches it"
_LIMITS = "and has limits of its own for a picture's size"
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("smolvlm", "idefics3", make_smolvlm),
        Family("qwen2.5-vl", "qwen2_5_vl", make_qwen2_5_vl, f"{_STRETCH}, {_LIMITS}"),
        Family("qwen3-vl", "qwen3_vl", make_qwen3_vl, f"{_STRETCH}, rounds halves of a patch up, {_LIMITS}"),
        Family(
            "qwen3.5",
            "qwen3_5",
            make_qwen3_5,
            "the tiny model's text half is converted as SmolLM2's, because the converter does not know SmolLM2's"
            " vocabulary cut into words as transformers does for any Qwen3.5",
        ),
        Family("glm-4v", "glm4v", make_glm4v, _STRETCH),
        Family(
            "gemma3",
            "gemma3",
            make_gemma3,
            f"{_STRETCH}; transformers' processor puts two line breaks on either side of a picture, libmtmd none;"
            " transformers saves a new model under names that the converter refuses, so the hub's are written",
        ),
        Family(
            "lfm2-vl",
            "lfm2_vl",
            make_lfm2_vl,
            "transformers prepares its pictures with torchvision alone, and saves a new model under names that the"
            " converter refuses, so the hub's are written",
        ),
        Family(
            "minicpm-v",
            "minicpmv4_6",
            make_minicpm_v,
            "transformers' processor numbers the pictures unless use_image_id=False is given, libmtmd never does",
        ),
        Family(
            "internvl3",
            "internvl",
            make_internvl3,
            "libmtmd cuts pictures into other tiles than transformers, and adds the vision half's table of positions"
            " one row off; of the names that transformers saves the converter makes a vision half without a tensor, so"
            " those of Intern-S1 are written",
            sizes=((224, 224),),  # one tile: whatever grid
        ),
        Family(
            "pixtral",
            "llava",
            make_pixtral,
            f"the pinned converter loses the tensor {LINE_BREAK}, without which llama.cpp does not load the vision half"
            " (it is added again); libmtmd takes at most 1,024 tokens a picture",
        ),
        Family(
            "mistral3",
            "mistral3",
            make_mistral3,
            "as Pixtral; transformers rounds a picture's size up to whole tokens, libmtmd to the nearest",
        ),
    )
}


def make_family(name: str, folder: Path) -> None:
    """Write the tiny model of a family into ``folder``: the same bytes each time.

    The folder is as on the hub: config.json, generation_config.json, float32 weights, SmolLM2's tokenizer with the
    family's special tokens, the processor's settings and a chat template. Raises UserError for an unknown name.
    """
    if name not in FAMILIES:
        raise UserError(f"there is no family {name!r}: give one of {', '.join(FAMILIES)}")
    FAMILIES[name].make(folder)


def convert_family(
    folder: Path, out: Path, text_type: TextType = "F32", mmproj_type: MmprojType = "F32", mend: bool = True
) -> tuple[Path, Path]:
    """The text half and the vision half of a model folder as GGUF files in ``out``, by llama.cpp's converter.

    Heads that predict further tokens are left out: nothing of them is compared. ``mend``: see :func:`lost_tensor`.
    Raises UserError with the converter's last words where it refuses the model, and where it writes a
    vision half without a tensor and says nothing.
    """
    name, nothing = folder.name, dict[str, Any]()
    text, mmproj = out / f"{name}-{text_type}.gguf", out / f"mmproj-{name}-{mmproj_type}.gguf"
    config = read_object(folder / "config.json")
    kind = config.get("model_type")
    flags = ["--no-nextn"] if kind in FURTHER_TOKENS else []
    try:
        if kind == "qwen3_5":
            with _as_smollm2(folder, config) as known:
                convert_text(known, text, text_type, name, {KEY_CUT: "qwen35"}, threads=1, flags=flags)
        else:
            convert_text(folder, text, text_type, name, nothing, threads=1, flags=flags)
        convert_mmproj(folder, mmproj, mmproj_type, name, nothing)
    except CheckFailed as error:
        raise UserError(f"{error}: convert the model by hand, or give its GGUF files") from None
    if not load_gguf().GGUFReader(mmproj).tensors:
        raise UserError(
            f"llama.cpp's converter wrote a vision half without a tensor for {folder}, whose tensors have names that it"
            " passes over: give the checkpoint as it stands on the hub, or its GGUF files"
        )
    if mend and lost_tensor(folder, mmproj):
        add_line_break(folder, mmproj)
    return text, mmproj


def lost_tensor(folder: Path, mmproj: Path) -> str:
    """The tensor that the converter lost of a model folder's vision half and llama.cpp insists upon; empty where none.

    That is the embedding of Pixtral's line break (llama.cpp's issues 24235 and 22901).
    """
    if read_object(folder / "config.json").get("vision_config", {}).get("model_type") != "pixtral":
        return ""
    there = {tensor.name for tensor in load_gguf().GGUFReader(mmproj).tensors}
    return "" if LINE_BREAK in there else LINE_BREAK


@contextmanager
def _as_smollm2(folder: Path, config: dict[str, Any]) -> Iterator[Path]:
    """A view of the tiny Qwen3.5 whose text transformers cuts as SmolLM2 does.

    transformers cuts text as Qwen3.5 does wherever config.json says ``qwen3_5``, whatever tokenizer.json says. The
    converter knows a vocabulary by the ids of one text, and knows none for SmolLM2's vocabulary cut that way. So it
    sees SmolLM2's own cut, and the file is then told Qwen3.5's.
    """
    with tempfile.TemporaryDirectory() as place:
        for file in folder.iterdir():
            (Path(place) / file.name).symlink_to(file.resolve())
        (Path(place) / "config.json").unlink()
        write_json(Path(place) / "config.json", config | {"model_type": "unknown-to-transformers"})
        yield Path(place)


def add_line_break(folder: Path, mmproj: Path) -> None:
    """Put the row ``[IMG_BREAK]`` of the token table into a vision half, as the converter's llava.py means to."""
    from safetensors import safe_open

    added = read_object(folder / "tokenizer.json")["added_tokens"]
    row = next(token["id"] for token in added if token["content"] == "[IMG_BREAK]")
    with safe_open(folder / "model.safetensors", framework="np") as weights:
        table = weights.get_slice("language_model.model.embed_tokens.weight")[row : row + 1]
    with atomic_file(mmproj) as scratch:
        copy_gguf(mmproj, scratch, {}, {LINE_BREAK: table[0].astype(np.float32)})
