"""Tiny families with a SigLIP tower: SmolVLM (Idefics3), Gemma 3, LFM2-VL and MiniCPM-V 4.6."""

from pathlib import Path
from typing import Any

from parity.studies.families.grids import HYBRID
from parity.studies.families.seeded import Vocabulary, build, chat_template, write_family

GEMMA_VOCABULARY = Vocabulary(
    (
        *("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    ),
    {
        **{f"{role}_token": f"<{role}>" for role in ("pad", "eos", "bos")},
        "extra_special_tokens": {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    },
)


def make_smolvlm(folder: Path) -> None:
    """SmolVLM: the project's own ``embedded:tiny`` with louder language layers, pictures cut into tiles of 256."""
    import torch

    from pipeline.contract import Tiling
    from pipeline.models.smolvlm.embedded import build_model, build_tokenizer
    from pipeline.models.smolvlm.folder import VisionGeometry, write_model_folder

    folder.mkdir(parents=True, exist_ok=True)
    model = build_model("embedded:tiny", 0)
    with torch.no_grad():
        for parameter in model.model.text_model.layers.parameters():
            if parameter.ndim == 2:
                parameter *= 3
    tokenizer = build_tokenizer()
    # As SmolVLM's own: a space stands behind the role only where no picture follows.
    tokenizer.chat_template = chat_template(
        "role | capitalize + (':' if message['content'][0]['type'] == 'image' else ': ')",
        "<end_of_utterance>\n",
        "Assistant:",
        "<image>",
        begin="'<|im_start|>'",
    )
    geometry = VisionGeometry(256, 16, 4, (0.5,) * 3, (0.5,) * 3, 49190)
    write_model_folder(folder, model, tokenizer, Tiling(plan="grid", grid=4), geometry)


def make_gemma3(folder: Path) -> None:
    """Gemma 3: five layers with a sliding window to one without, pictures of 224 pixels as 16 tokens.

    A picture's tokens see one another both ways. transformers 5.23 saves a new model's tower without the
    ``vision_model.`` that every checkpoint on the hub has, and the converter refuses it; here it has the hub's names.
    """
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vocabulary = GEMMA_VOCABULARY
    ids: dict[str, Any] = {f"{role}_token_id": vocabulary.id(f"<{role}>") for role in ("pad", "eos", "bos")}
    config = Gemma3Config(
        text_config={
            "vocab_size": vocabulary.size,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 6,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 512,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            **ids,
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 224,
            "patch_size": 14,
            "vision_use_head": False,
        },
        mm_tokens_per_image=16,
        boi_token_index=vocabulary.id("<start_of_image>"),
        eoi_token_index=vocabulary.id("<end_of_image>"),
        image_token_index=vocabulary.id("<image_soft_token>"),
        **ids,
    )
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "Gemma3ImageProcessor",
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "image_seq_length": 16,
            "resample": 2,
            "size": {"height": 224, "width": 224},
            "processor_class": "Gemma3Processor",
        },
        "processor_config.json": {"image_seq_length": 16, "processor_class": "Gemma3Processor"},
    }
    template = chat_template(
        r"'<start_of_turn>' + ('model' if role == 'assistant' else role) + '\n'",
        "<end_of_turn>\n",
        "<start_of_turn>model\n",
        "<start_of_image>",
        begin="bos_token",
    )
    write_family(
        folder,
        build(Gemma3ForConditionalGeneration, config),
        3,
        vocabulary,
        template,
        files,
        rename=lambda name: name.replace("vision_tower.", "vision_tower.vision_model."),
        after_layers=("post_attention_layernorm", "post_feedforward_layernorm"),
    )


def make_lfm2_vl(folder: Path) -> None:
    """LFM2-VL: short convolutions between the layers of attention, pictures of any grid or in tiles of 512."""
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

    vocabulary = Vocabulary(
        (
            *("<|startoftext|>", "<|pad|>", "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
            *(f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11)),
        ),
        {
            "bos_token": "<|startoftext|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|pad|>",
            "extra_special_tokens": {
                "image_token": "<image>",
                "image_start_token": "<|image_start|>",
                "image_end_token": "<|image_end|>",
                "image_thumbnail_token": "<|img_thumbnail|>",
            },
        },
    )
    config = Lfm2VlConfig(
        text_config={
            "model_type": "lfm2",
            "vocab_size": vocabulary.size,
            "hidden_size": 64,
            "intermediate_size": 288,  # block_auto_adjust_ff_dim makes it 192
            "block_multiple_of": 64,
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 32768,
            "bos_token_id": vocabulary.id("<|startoftext|>"),
            "eos_token_id": 2,
            "pad_token_id": vocabulary.id("<|pad|>"),
        },
        vision_config={
            "model_type": "siglip2_vision_model",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "patch_size": 16,
            "num_patches": 256,
            "vision_use_head": False,
        },
        image_token_id=vocabulary.id("<image>"),
        projector_hidden_size=128,
        tie_word_embeddings=True,
    )
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "Lfm2VlImageProcessorFast",
            "processor_class": "Lfm2VlProcessor",
            "do_image_splitting": True,
            "downsample_factor": 2,
            "encoder_patch_size": 16,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "max_image_tokens": 256,
            "min_image_tokens": 64,
            "max_tiles": 10,
            "min_tiles": 2,
            "tile_size": 512,
            "use_thumbnail": True,
        }
    }
    template = chat_template(
        r"'<|im_start|>' + role + '\n'", "<|im_end|>\n", "<|im_start|>assistant\n", "<image>", begin="bos_token"
    )
    write_family(
        folder,
        build(Lfm2VlForConditionalGeneration, config),
        6,
        vocabulary,
        template,
        files,
        rename=lambda name: name.replace("vision_tower.", "vision_tower.vision_model."),
        config={"text_config": {"architectures": ["Lfm2ForCausalLM"]}},
    )


def make_minicpm_v(folder: Path) -> None:
    """MiniCPM-V 4.6: slices of about 448 pixels and an overview, merged in windows on the way; Qwen3.5's language."""
    from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration

    roles = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    vocabulary = Vocabulary(
        tuple(roles.values()),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra_special_tokens": roles},
    )
    config = MiniCPMV4_6Config(
        text_config={**HYBRID, "model_type": "qwen3_5_text", "vocab_size": vocabulary.size},
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 980,
            "patch_size": 14,
        },
        insert_layer_id=1,
        image_token_id=vocabulary.id("<|image_pad|>"),
        video_token_id=vocabulary.id("<|video_pad|>"),
        tie_word_embeddings=True,
    )
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "MiniCPMV4_6ImageProcessor",
            "processor_class": "MiniCPMV4_6Processor",
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "max_slice_nums": 9,
            "scale_resolution": 448,
            "patch_size": 14,
            "slice_mode": True,
            "downsample_mode": "16x",
            "use_image_id": True,
        }
    }
    template = chat_template(
        r"'<|im_start|>' + role + '\n'", "<|im_end|>\n", "<|im_start|>assistant\n", "<|image_pad|>"
    )
    write_family(folder, build(MiniCPMV4_6ForConditionalGeneration, config), 7, vocabulary, template, files)
