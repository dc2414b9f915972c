"""Tiny families with towers of their own: InternVL3, Pixtral (under LLaVA) and Mistral 3."""

from pathlib import Path
from typing import Any

from parity.studies.families.seeded import Vocabulary, build, chat_template, write_family

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32768,
}
MISTRAL_VOCABULARY = Vocabulary(
    ("<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
    {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
)
MISTRAL_TEMPLATE = chat_template("'[INST]' if role == 'user' else ''", "[/INST]", "", "[IMG]", begin="bos_token")


def make_internvl3(folder: Path) -> None:
    """InternVL3, the form that transformers reads itself: tiles of 224 pixels as 64 tokens, and an overview.

    The tensors have the names that the converter knows (those of Intern-S1, ``model.vision_tower.``), where
    transformers 5.23 saves ``vision_tower.``; and the parts of config.json name the converter's classes.
    """
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    roles = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    vocabulary = Vocabulary(
        tuple(roles.values()),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra_special_tokens": roles},
    )
    config = InternVLConfig(
        text_config={
            "model_type": "qwen2",
            **TEXT,
            "vocab_size": vocabulary.size,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "attention_bias": True,
            "image_size": [224, 224],
            "patch_size": [14, 14],
        },
        image_token_id=vocabulary.id("<IMG_CONTEXT>"),
        image_seq_length=64,
        tie_word_embeddings=True,
    )
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "processor_class": "InternVLProcessor",
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 12,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "size": {"height": 224, "width": 224},
        },
        "processor_config.json": {"image_seq_length": 64, "processor_class": "InternVLProcessor"},
    }
    template = chat_template(
        r"'<|im_start|>' + role + '\n'", "<|im_end|>\n", "<|im_start|>assistant\n", "<IMG_CONTEXT>\n"
    )
    write_family(
        folder,
        build(InternVLForConditionalGeneration, config),
        8,
        vocabulary,
        template,
        files,
        rename=_as_intern_s1,
        config={
            "text_config": {"architectures": ["Qwen2ForCausalLM"]},
            "vision_config": {"architectures": ["InternVisionModel"]},
        },
    )


def _as_intern_s1(name: str) -> str:
    """A tensor's name under ``model.``, as transformers has it in memory."""
    return "model." + name.replace("language_model.model.", "language_model.")


def make_pixtral(folder: Path) -> None:
    """Pixtral: rows of patches of 16 pixels, each row ended by a token, under LLaVA's class."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        **_mistral(head_dim=32),
        vision_config=_tower(16, 1024),
        image_seq_length=1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    _write_mistral(folder, build(LlavaForConditionalGeneration, config), 9, 16, 1024, 1)


def make_mistral3(folder: Path) -> None:
    """Mistral 3: as Pixtral, with patches of 14 pixels, four of which are merged into a token."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    config = Mistral3Config(**_mistral(head_dim=32), vision_config=_tower(14, 1540), spatial_merge_size=2)
    _write_mistral(folder, build(Mistral3ForConditionalGeneration, config), 10, 14, 1540, 2)


def _mistral(head_dim: int) -> dict[str, Any]:
    """What the two configurations share."""
    ids = {
        "bos_token_id": MISTRAL_VOCABULARY.id("<s>"),
        "eos_token_id": MISTRAL_VOCABULARY.id("</s>"),
        "pad_token_id": MISTRAL_VOCABULARY.id("<pad>"),
    }
    return {
        "text_config": {
            "model_type": "mistral",
            **TEXT,
            "vocab_size": MISTRAL_VOCABULARY.size,
            "head_dim": head_dim,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e9},
            "sliding_window": None,
            "tie_word_embeddings": True,
            **ids,
        },
        "image_token_index": MISTRAL_VOCABULARY.id("[IMG]"),
        "tie_word_embeddings": True,
    }


def _tower(patch: int, most: int) -> dict[str, Any]:
    """Pixtral's vision half, for pictures of up to ``most`` pixels a side."""
    return {
        "model_type": "pixtral",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": most,
        "patch_size": patch,
        "rope_parameters": {"rope_type": "axial", "rope_theta": 1e4},
    }


def _write_mistral(folder: Path, model: Any, seed: int, patch: int, most: int, merge: int) -> None:
    """Write a model with Pixtral's processor."""
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "PixtralImageProcessor",
            "processor_class": "PixtralProcessor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "patch_size": {"height": patch, "width": patch},
            "size": {"longest_edge": most},
        },
        "processor_config.json": {
            "processor_class": "PixtralProcessor",
            "patch_size": patch,
            "spatial_merge_size": merge,
            "image_token": "[IMG]",
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
        },
    }
    write_family(folder, model, seed, MISTRAL_VOCABULARY, MISTRAL_TEMPLATE, files)
