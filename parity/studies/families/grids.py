"""Tiny families whose pictures are patches of any grid, with M-RoPE: Qwen2.5-VL, Qwen3-VL, Qwen3.5 and GLM-4V."""

from pathlib import Path
from typing import Any, cast

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


CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}

HYBRID = {
    "vocab_size": VOCABULARY.size,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "max_position_embeddings": 32768,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "mrope_section": [3, 3, 2],
        "mrope_interleaved": True,
    },
    "tie_word_embeddings": True,
    **END_IDS,
}
"""Qwen3.5's language half, which MiniCPM-V 4.6 has, too: three layers of linear attention to one of attention."""


def processor_files(
    kind: str, processor: str, patch: int, least: int, most: int, channels: dict[str, list[float]]
) -> dict[str, Any]:
    """Processor files: pictures of ``least`` to ``most`` pixels, ``channels`` their means and deviations."""
    return {
        "preprocessor_config.json": {
            "size": {"shortest_edge": least, "longest_edge": most},
            "patch_size": patch,
            "temporal_patch_size": 2,
            "merge_size": 2,
            **channels,
            "image_processor_type": kind,
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
    files = processor_files("Qwen2VLImageProcessor", "Qwen2_5_VLProcessor", 14, 56 * 56, 28 * 28 * 1280, CLIP)
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
    files = processor_files("Qwen2VLImageProcessorFast", "Qwen3VLProcessor", 16, 256 * 256, 1024 * 1024, HALVES)
    write_family(folder, build(Qwen3VLForConditionalGeneration, config), 2, VOCABULARY, TEMPLATE, files)


def make_qwen3_5(folder: Path) -> None:
    """Qwen3.5: a language half with linear attention, without the head that predicts a further token."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    config = Qwen3_5Config(
        text_config=HYBRID,
        vision_config={**VISION, "depth": 3, "patch_size": 16, "num_position_embeddings": 48 * 48},
        tie_word_embeddings=True,
        **IDS,
    )
    files = processor_files("Qwen2VLImageProcessorFast", "Qwen3VLProcessor", 16, 256 * 256, 1024 * 1024, HALVES)
    model = build(Qwen3_5ForConditionalGeneration, config)
    write_family(folder, model, 4, VOCABULARY, TEMPLATE, files)


def make_glm4v(folder: Path) -> None:
    """GLM-4V: norms behind each language layer, learnt positions in the vision half beside rotary ones."""
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    markers = {kind: (f"<|begin_of_{kind}|>", f"<|end_of_{kind}|>") for kind in ("image", "video")}
    vocabulary = Vocabulary(
        (
            *("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
            *(*markers["image"], *markers["video"], "<|image|>", "<|video|>"),
        ),
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    )
    ids = {f"{kind}_token_id": vocabulary.id(f"<|{kind}|>") for kind in markers}
    ids |= {f"{kind}_start_token_id": vocabulary.id(begin) for kind, (begin, _) in markers.items()}
    ids |= {f"{kind}_end_token_id": vocabulary.id(end) for kind, (_, end) in markers.items()}
    config = Glm4vConfig(
        text_config={
            **TEXT,
            "vocab_size": vocabulary.size,
            "num_hidden_layers": 3,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 3, 3],
            },
            "bos_token_id": 0,
            "eos_token_id": [0, vocabulary.id("<|user|>")],
            "pad_token_id": 0,
        },
        vision_config={**VISION, "depth": 3, "image_size": 336, "patch_size": 14},
        tie_word_embeddings=True,
        **cast(dict[str, Any], ids),
    )
    template = chat_template(
        r"'<|' + role + '|>\n'", "", "<|assistant|>\n", "<|begin_of_image|><|image|><|end_of_image|>", "'[gMASK]<sop>'"
    )
    write_family(
        folder,
        build(Glm4vForConditionalGeneration, config),
        5,
        vocabulary,
        template,
        processor_files("Glm4vImageProcessor", "Glm4vProcessor", 14, 112 * 112, 28 * 28 * 6144, CLIP),
        after_layers=("post_self_attn_layernorm", "post_mlp_layernorm"),
    )
