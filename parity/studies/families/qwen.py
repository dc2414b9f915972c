"""Tiny Qwen2.5-VL and Qwen3-VL: patches of any grid, M-RoPE, windows (2.5), deepstack (3)."""

from pathlib import Path
from typing import Any

from parity.studies.families.seeded import Vocabulary, build, chat_template, write_family

VOCABULARY = Vocabulary(
    ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    multiple=64,
)
IDS: dict[str, Any] = {
    "image_token_id": VOCABULARY.id("<|image_pad|>"),
    "video_token_id": VOCABULARY.id("<|video_pad|>"),
    "vision_start_token_id": VOCABULARY.id("<|vision_start|>"),
    "vision_end_token_id": VOCABULARY.id("<|vision_end|>"),
}
END_IDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
"""<|endoftext|> and <|im_end|> of SmolLM2."""
TEMPLATE = chat_template(
    r"'<|im_start|>' + role + '\n'",
    "<|im_end|>\n",
    "<|im_start|>assistant\n",
    "<|vision_start|><|image_pad|><|vision_end|>",
)
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY.size,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    **END_IDS,
}
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "depth": 4,
    "num_heads": 2,
    "out_hidden_size": 64,
}


def processor_files(processor: str, patch: int, least: int, most: int, mean: float, std: float) -> dict[str, Any]:
    """Processor files of a Qwen: pictures of ``least`` to ``most`` pixels, channels of one mean and deviation."""
    return {
        "preprocessor_config.json": {
            "size": {"shortest_edge": least, "longest_edge": most},
            "patch_size": patch,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [mean] * 3,
            "image_std": [std] * 3,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": processor,
        }
    }


def make_qwen2_5_vl(folder: Path) -> None:
    """Qwen2.5-VL: two layers of windows to one that sees all, in the vision half."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "num_hidden_layers": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        },
        vision_config={**VISION, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1, 3]},
        tie_word_embeddings=True,
        **IDS,
    )
    files = processor_files("Qwen2_5_VLProcessor", 14, 56 * 56, 28 * 28 * 1280, 0, 1)
    # CLIP's, a channel each.
    files["preprocessor_config.json"] |= {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    write_family(folder, build(Qwen2_5_VLForConditionalGeneration, config), 1, VOCABULARY, TEMPLATE, files)


def make_qwen3_vl(folder: Path) -> None:
    """Qwen3-VL: the embeddings of three vision layers go into the first three text layers."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(
        text_config={
            **TEXT,
            "head_dim": 32,
            "num_hidden_layers": 4,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            **VISION,
            "patch_size": 16,
            "num_position_embeddings": 48 * 48,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        tie_word_embeddings=True,
        **IDS,
    )
    files = processor_files("Qwen3VLProcessor", 16, 256 * 256, 1024 * 1024, 0.5, 0.5)
    write_family(folder, build(Qwen3VLForConditionalGeneration, config), 2, VOCABULARY, TEMPLATE, files)
