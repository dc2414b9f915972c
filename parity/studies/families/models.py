"""The families, by name: a tiny model of each, and its GGUF pair by the pinned converter."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.studies.families.grids import make_glm4v, make_qwen2_5_vl, make_qwen3_5, make_qwen3_vl
from parity.studies.families.others import make_internvl3, make_mistral3, make_pixtral
from parity.studies.families.siglip import make_gemma3, make_lfm2_vl, make_minicpm_v, make_smolvlm
from pipeline.core.errors import CheckFailed, UserError
from pipeline.core.gguf_types import MmprojType, TextType
from pipeline.export.convert import convert_mmproj, convert_text


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


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("smolvlm", "idefics3", make_smolvlm),
        Family(
            "qwen2.5-vl",
            "qwen2_5_vl",
            make_qwen2_5_vl,
            "libmtmd pads a picture where transformers stretches it, and has limits of its own for its size",
        ),
        Family("qwen3-vl", "qwen3_vl", make_qwen3_vl, "as Qwen2.5-VL, and rounds halves of a patch up"),
        Family(
            "gemma3",
            "gemma3",
            make_gemma3,
            "transformers' processor puts two line breaks on either side of a picture, which libmtmd does not",
        ),
        Family("qwen3.5", "qwen3_5", make_qwen3_5),
        Family("glm-4v", "glm4v", make_glm4v),
        Family("lfm2-vl", "lfm2_vl", make_lfm2_vl),
        Family("minicpm-v", "minicpmv4_6", make_minicpm_v),
        Family("internvl3", "internvl", make_internvl3),
        Family("pixtral", "llava", make_pixtral),
        Family("mistral3", "mistral3", make_mistral3),
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
    folder: Path, out: Path, text_type: TextType = "F32", mmproj_type: MmprojType = "F32"
) -> tuple[Path, Path]:
    """The text half and the vision half of a model folder as GGUF files in ``out``, by the pinned converter.

    Raises UserError with the converter's last words where it refuses the model.
    """
    name, nothing = folder.name, dict[str, Any]()
    text, mmproj = out / f"{name}-{text_type}.gguf", out / f"mmproj-{name}-{mmproj_type}.gguf"
    try:
        convert_text(folder, text, text_type, name, nothing, threads=1)
        convert_mmproj(folder, mmproj, mmproj_type, name, nothing)
    except CheckFailed as error:
        raise UserError(f"{error}: convert the model by hand, or give its GGUF files") from None
    return text, mmproj
