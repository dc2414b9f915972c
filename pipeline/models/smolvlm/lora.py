"""LoRA on chosen parts of a SmolVLM: attach, merge, and the proof that the merge kept what was learnt.

A model has four parts, each frozen, adapted (``lora``) or trained whole (``full``, PEFT's ``modules_to_save``):
text (the language layers), vision (the encoder's layers), connector, embeddings (the token table, tied to the output).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.contract import Tiling
from pipeline.core.errors import CheckFailed, UserError
from pipeline.models.smolvlm.folder import VisionGeometry, load_model, load_tokenizer, write_model_folder
from pipeline.models.smolvlm.inspect import check_adapter, described, first_line
from pipeline.recipe import TrainSettings

# Where a part's linear layers and its whole module live in Idefics3 and SmolVLM models.
_LAYERS = {
    "text": r"model\.text_model\.layers\.\d+\.\w+",
    "vision": r"model\.vision_model\.encoder\.layers\.\d+\.\w+",
    "connector": r"model\.connector\.\w+",
}
_WHOLE = {
    "text": r"model\.text_model\.(layers\.\d+|norm)",  # one by one: PEFT cannot wrap the list of layers
    "vision": r"model\.vision_model",
    "connector": r"model\.connector",
    "embeddings": r"model\.text_model\.embed_tokens",
}

# An adapter file's names for the one adapter of token table and output layer, transposed in the second.
_TABLE, _OUTPUT = "base_model.model.model.text_model.embed_tokens.lora_embedding_", "base_model.model.lm_head.lora_"
_TIED = ((f"{_TABLE}A", f"{_OUTPUT}B.weight"), (f"{_TABLE}B", f"{_OUTPUT}A.weight"))

# Largest difference of two logits between adapter-on-base and merged, both float32, as a share of the logits' standard
# deviation. See MERGE_NOISE in tests/pipeline/models/smolvlm/test_lora.py for the measurement behind it.
MERGE_TOLERANCE = 1e-3


def attach(model: Any, settings: TrainSettings) -> Any:
    """Wrap ``model`` in a PEFT model that trains the parts as ``settings`` say.

    Raises UserError where a part is set to ``lora`` and none of ``lora.targets`` names a layer in it.
    """
    from peft import LoraConfig, get_peft_model

    parts = {name: getattr(settings, name) for name in _WHOLE}
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    every = [name for name, _ in model.named_modules()]
    leaves = "|".join(re.escape(target) for target in settings.lora.targets)
    targets: list[str] = []
    whole: list[str] = []
    for part, state in parts.items():
        if state == "full":
            whole += [name for name in every if re.fullmatch(_WHOLE[part], name)]
        elif state == "lora" and part == "embeddings":
            targets += [name for name in every if re.fullmatch(_WHOLE[part], name)]
        elif state == "lora":
            found = [name for name in linear if re.fullmatch(rf"{_LAYERS[part]}\.({leaves})", name)]
            if not found:
                raise UserError(f"train.{part} is 'lora', and train.lora.targets names no layer of that part")
            targets += found
    config = LoraConfig(
        r=settings.lora.r,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules=targets,
        modules_to_save=whole or None,
        # Table and output are one tensor: adapting one of them alone would come apart when merged.
        ensure_weight_tying=parts["embeddings"] != "frozen",
    )
    return get_peft_model(model, config)


@dataclass(frozen=True)
class MergeReport:
    """Differences of logits, each as a share of the merged logits' standard deviation."""

    merged_vs_adapter: float
    merged_vs_base: float


@torch.inference_mode()
def _logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    logits: torch.Tensor = model(**inputs).logits
    return logits.float()


def merge(base: Path, adapter: Path, out: Path, tiling: Tiling, geometry: VisionGeometry) -> MergeReport:
    """Merge ``adapter`` into ``base`` (float32) and write the model folder ``out``, which must exist.

    The folder is read back and tested on a made-up picture and text before it is believed: its logits must equal
    adapter-on-base within :data:`MERGE_TOLERANCE` and differ from the base's. Raises CheckFailed otherwise; an adapter
    that is silently dropped is the best known way to ship an untrained model. Raises UserError for a base or an adapter
    that is damaged, or that do not fit each other.
    """
    from peft import PeftModel

    check_adapter(described(base), adapter)
    _check_tied(adapter)
    tokenizer = load_tokenizer(base)
    inputs = _probe(tokenizer, geometry)
    before = _logits(load_model(base), inputs)
    plain = load_model(base)
    try:
        adapted = PeftModel.from_pretrained(plain, adapter).eval()
        with_adapter = _logits(adapted, inputs)
        made = unload(adapted)
    except Exception as error:  # whatever else is wrong with adapter_config.json
        raise UserError(f"{adapter} cannot be put on {base}: {first_line(error)}: train again") from None
    write_model_folder(out, made, tokenizer, tiling, geometry)
    merged = _logits(load_model(out), inputs)
    return check_merge(before, with_adapter, merged)


def _check_tied(adapter: Path) -> None:
    """Raise CheckFailed where the adapters of token table and output layer came apart: loading would keep only one."""
    from safetensors.torch import load_file

    weights = load_file(adapter / "adapter_model.safetensors")
    for table, output in _TIED:
        if table in weights and output in weights and not torch.equal(weights[table], weights[output].T):
            raise CheckFailed(
                f"{adapter} holds two different adapters for the token table and the output layer, which are one"
                " tensor: train again with train.embeddings 'frozen' or 'full'"
            )


def unload(adapted: Any) -> Any:
    """The plain model of a PEFT model, adapters merged into its weights.

    Where the token table is adapted, table and output layer each carry the tied adapter; PEFT would add it twice to
    the one tensor they share. They are parted for the merge and tied again.
    """
    output = adapted.get_output_embeddings()
    tied = adapted.config.tie_word_embeddings
    if hasattr(output, "base_layer"):
        output.base_layer.weight = torch.nn.Parameter(output.base_layer.weight.detach().clone())
    merged = adapted.merge_and_unload()
    merged.config.tie_word_embeddings = tied  # PEFT takes an adapted table for untied
    merged.tie_weights()
    return merged


def _probe(tokenizer: Any, geometry: VisionGeometry) -> dict[str, torch.Tensor]:
    """A seeded noise picture and a few words, in the shape of a model's inputs."""
    side = geometry.tile_size
    noise = torch.rand(1, 1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    words = tokenizer.encode("Classify this image.", add_special_tokens=False)
    ids = [*words, *[geometry.image_token_id] * geometry.tokens_per_tile, *words]
    return {"input_ids": torch.tensor([ids]), "pixel_values": noise}


def check_merge(before: torch.Tensor, with_adapter: torch.Tensor, merged: torch.Tensor) -> MergeReport:
    """Judge three sets of logits (base, adapter-on-base, merged), all of one shape. Raises CheckFailed."""
    scale = merged.std().item()
    report = MergeReport(
        merged_vs_adapter=(merged - with_adapter).abs().max().item() / scale,
        merged_vs_base=(merged - before).abs().max().item() / scale,
    )
    if not report.merged_vs_adapter <= MERGE_TOLERANCE:
        raise CheckFailed(
            f"the merged model is not the trained one: its logits are off from adapter-on-base by"
            f" {report.merged_vs_adapter:.2g} standard deviations (allowed {MERGE_TOLERANCE:g})"
        )
    if not report.merged_vs_base > 10 * MERGE_TOLERANCE:
        raise CheckFailed(
            f"the merged model answers like the base model (logits differ by {report.merged_vs_base:.2g} standard"
            " deviations): the adapter was dropped or has learnt nothing"
        )
    return report
