"""Re-open an exported GGUF pair and hold it against the model folder it came from.

Everything here has once been wrong silently somewhere: a truncated file, a tensor lost or left unquantized, another
tokenizer, the tile plan of another training, a guessed layer-norm epsilon, a lost end token.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contract import Contract
from pipeline.core.errors import CheckFailed
from pipeline.core.files import canonical_json, sha256_bytes
from pipeline.core.gguf_types import MATRIX_TYPES, MmprojType, TextType
from pipeline.core.toolchain import load_gguf
from pipeline.export.convert import KEY_ADD_BOS, KEY_CONTRACT, KEY_RECIPE
from pipeline.models.smolvlm.folder import read_geometry
from pipeline.models.smolvlm.inspect import stored_shapes


def _is_vision(name: str) -> bool:
    return "vision_model." in name or "connector." in name


class _Findings:
    def __init__(self, path: Path) -> None:
        self.path, self.problems = path, list[str]()

    def equal(self, what: str, found: Any, expected: Any) -> None:
        if found != expected:
            self.problems.append(f"{what} is {found!r}, expected {expected!r}")

    def finish(self) -> None:
        if self.problems:
            raise CheckFailed(f"{self.path} is not what was exported: " + "; ".join(self.problems))


def _open(path: Path) -> Any:
    try:
        return load_gguf().GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise CheckFailed(f"{path} cannot be read as GGUF (truncated?): {error}") from None


def _value(reader: Any, key: str) -> Any:
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def _common(
    reader: Any, findings: _Findings, name: str, contract: Contract, recipe: str, matrix_types: set[str]
) -> None:
    findings.equal("general.name", _value(reader, "general.name"), name)
    findings.equal(KEY_CONTRACT, _value(reader, KEY_CONTRACT), contract.digest)
    findings.equal(KEY_RECIPE, _value(reader, KEY_RECIPE), recipe)
    end = max(int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors)
    size = findings.path.stat().st_size
    if size < end:
        findings.problems.append(f"the file is {size} bytes and its tensors end at {end}")
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        # Vectors stay F32, as do the patch and position tables of the vision half (SmolVLMModel.tensor_force_quant).
        plain = len(tensor.shape) == 1 or tensor.name.startswith("v.patch_embd") or "position_embd" in tensor.name
        if kind not in ({"F32"} if plain else matrix_types):
            findings.problems.append(f"tensor {tensor.name} is {kind}")


def tokenizer_digest(tokens: list[str]) -> str:
    """SHA-256 of a vocabulary's tokens in the order of their ids."""
    return sha256_bytes(canonical_json(tokens))


def check_text(path: Path, model: Path, name: str, contract: Contract, recipe: str, text_type: TextType) -> None:
    """Check the language half. Raises CheckFailed that lists every difference."""
    reader, findings = _open(path), _Findings(path)
    _common(reader, findings, name, contract, recipe, MATRIX_TYPES[text_type])
    config = json.loads((model / "config.json").read_text())
    text = [name for name in stored_shapes(model) if not _is_vision(name)]
    if config.get("tie_word_embeddings") or config["text_config"].get("tie_word_embeddings"):
        text = [name for name in text if name != "lm_head.weight"]
    findings.equal("the number of tensors", len(reader.tensors), len(text))
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    by_id = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    by_id |= {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    tokens = _value(reader, "tokenizer.ggml.tokens") or []
    expected = [by_id.get(index, f"[PAD{index}]") for index in range(config["text_config"]["vocab_size"])]
    findings.equal("the tokenizer's hash", tokenizer_digest(tokens), tokenizer_digest(expected))
    end = json.loads((model / "tokenizer_config.json").read_text())["eos_token"]
    end = end["content"] if isinstance(end, dict) else end
    found = _value(reader, "tokenizer.ggml.eos_token_id")
    findings.equal("the end token", tokens[found] if found is not None and found < len(tokens) else None, end)
    findings.equal(KEY_ADD_BOS, bool(_value(reader, KEY_ADD_BOS)), contract.add_bos)
    findings.finish()


def check_mmproj(path: Path, model: Path, name: str, contract: Contract, recipe: str, mmproj_type: MmprojType) -> None:
    """Check the vision half. Raises CheckFailed that lists every difference."""
    reader, findings = _open(path), _Findings(path)
    _common(reader, findings, name, contract, recipe, {mmproj_type})
    vision = json.loads((model / "config.json").read_text())["vision_config"]
    geometry = read_geometry(model)
    expected = {
        "clip.vision.preproc_image_size": geometry.tile_size
        * (contract.tiling.grid if contract.tiling.plan == "grid" else 1),
        "clip.vision.image_size": geometry.tile_size,
        "clip.vision.patch_size": geometry.patch_size,
        "clip.vision.projector.scale_factor": geometry.scale_factor,
        "clip.vision.attention.layer_norm_epsilon": float(np.float32(vision["layer_norm_eps"])),
        "clip.vision.embedding_length": vision["hidden_size"],
        "clip.vision.block_count": vision["num_hidden_layers"],
        "clip.vision.image_mean": [float(np.float32(value)) for value in geometry.image_mean],
        "clip.vision.image_std": [float(np.float32(value)) for value in geometry.image_std],
    }
    for key, value in expected.items():
        findings.equal(key, _value(reader, key), value)
    findings.equal("the number of tensors", len(reader.tensors), sum(map(_is_vision, stored_shapes(model))))
    findings.finish()
