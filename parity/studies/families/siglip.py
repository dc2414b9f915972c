"""Tiny families with a SigLIP tower and pictures of one size: SmolVLM (Idefics3) and Gemma 3."""

from pathlib import Path
from typing import Any

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
