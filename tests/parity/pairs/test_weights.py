"""Whether a half holds a model's weights: by type, by family, with LoRA, and what a difference is called."""

import ctypes
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from anypair import Tiny, damaged, swapped, tiny_pair, trained_further
from safetensors.torch import load_file, save_file
from session import Once

from parity.judge.causes import Cause, Causes
from parity.pairs import weights
from parity.pairs.weights import LEAST, ROUNDING, Weights, compare_weights, explain, refuse_other_weights
from parity.studies.families.models import FAMILIES, convert_family
from pipeline.core.errors import UserError
from pipeline.core.toolchain import load_gguf
from pipeline.models.auto import load_model

TYPES = [
    *("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4", "TQ1_0"),
    *("IQ4_NL", "IQ4_XS"),
    # llama.cpp makes tables for these first, for seconds.
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "IQ3_S",
            "IQ3_XXS",
            "IQ2_S",
            "IQ2_XS",
            "IQ2_XXS",
            "IQ1_S",
            "IQ1_M",
        )
    ),
]


@pytest.fixture(scope="module")
def qwen(once: Once) -> Tiny:
    return tiny_pair(once, "qwen2.5-vl")


def quantized(rows: npt.NDArray[np.float32], kind: Any, importance: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    block, size = load_gguf().GGML_QUANT_SIZES[kind]
    made = np.empty((len(rows), rows.shape[1] // block * size), np.uint8)
    floats = ctypes.POINTER(ctypes.c_float)
    weights._ggml().ggml_quantize_chunk(
        int(kind), rows.ctypes.data_as(floats), made.ctypes.data_as(ctypes.c_void_p), 0, *rows.shape,
        importance.ctypes.data_as(floats),
    )  # fmt: skip
    return made


@pytest.mark.parametrize("name", TYPES)
def test_an_importance_matrix_stays_within_what_is_allowed(name: str) -> None:
    """exp of a normal distribution: four orders of magnitude between the least and the most of 1,024."""
    kind = getattr(load_gguf().GGMLQuantizationType, name)
    chance = np.random.default_rng(0)
    rows = np.asarray(0.02 * chance.standard_normal((8, 1024)), np.float32)
    importance = np.exp(2.3 * chance.standard_normal(1024)).astype(np.float32)
    data = quantized(rows, kind, importance).reshape(-1)
    held = weights._held("a", int(kind), data, list(range(8)), rows)
    assert 0.7 * held.rounding < held.error < 0.95 * ROUNDING * held.rounding  # measured: 0.8 to 1.39
    assert not held.differs
    foreign = np.asarray(0.02 * chance.standard_normal((8, 1024)), np.float32)
    assert weights._held("a", int(kind), data, list(range(8)), foreign).differs


def test_weights_that_went_through_bfloat16_are_the_same(qwen: Tiny, tmp_path: Path) -> None:
    shutil.copytree(qwen.folder, tmp_path / "model")
    tensors = load_file(qwen.folder / "model.safetensors")
    cast = {name: value.to(torch.bfloat16) for name, value in tensors.items()}
    save_file(cast, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    held = compare_weights(tmp_path / "model", qwen.text)
    errors = [matrix.error for matrix in held.matrices]
    assert 1e-3 < max(errors) < 0.9 * LEAST
    assert held.different == []


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def test_every_family_is_compared_and_equal(once: Once, name: str) -> None:
    """The converter's own table finds the layers of both halves; nothing that it changes the order of is compared."""
    pair = tiny_pair(once, name)
    for half in (pair.text, pair.mmproj):
        held = compare_weights(pair.folder, half)
        assert len(held.matrices) >= 8
        assert max(matrix.error for matrix in held.matrices) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_as_the_converter_rounds(qwen: Tiny, tmp_path: Path, kind: Any) -> None:
    convert_family(qwen.folder, tmp_path, kind, kind)
    for half in tmp_path.glob("*.gguf"):
        held = compare_weights(qwen.folder, half)
        assert all(matrix.error == pytest.approx(matrix.rounding, rel=0.03) for matrix in held.matrices)
        assert {matrix.kind for matrix in held.matrices} <= {kind, "F16"}  # rows that 32 does not divide


def lora(folder: Path, pair: Tiny, **settings: Any) -> Any:
    """An adapter of the language half in ``folder``; the model that it belongs to, merged."""
    from peft import LoraConfig, get_peft_model

    targets = r".*language_model.*(v_proj|down_proj)"
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, **settings)
    model = get_peft_model(load_model(str(pair.folder)), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder))
    return model.merge_and_unload()


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}], ids=["plain", "rslora"])
def test_an_adapter_that_was_merged(qwen: Tiny, tmp_path: Path, settings: dict[str, Any]) -> None:
    """PEFT merges it, and the GGUF's matrices are set to what came of it."""
    merged = lora(tmp_path / "adapter", qwen, **settings).state_dict()
    tensors = {}
    for layer in range(3):
        for theirs, ours in (("ffn_down", "mlp.down_proj"), ("attn_v", "self_attn.v_proj")):
            value = merged[f"model.language_model.layers.{layer}.{ours}.weight"].numpy()
            tensors[f"blk.{layer}.{theirs}.weight"] = lambda _, value=value: value
    text = damaged(qwen.text, tmp_path / "merged.gguf", tensors=tensors)
    held = compare_weights(qwen.folder, text, tmp_path / "adapter")
    assert len(held.matrices) == 15
    assert max(matrix.error for matrix in held.matrices) < 1e-6
    assert len(compare_weights(qwen.folder, text).different) == 6  # a few of 15: the answers tell
    dropped = compare_weights(qwen.folder, qwen.text, tmp_path / "adapter")
    assert {matrix.name for matrix in dropped.different} == set(tensors)


def test_an_adapter_whose_change_is_not_known_is_left_out(qwen: Tiny, tmp_path: Path) -> None:
    lora(tmp_path / "adapter", qwen, use_dora=True)
    held = compare_weights(qwen.folder, qwen.text, tmp_path / "adapter")
    assert {matrix.name.split(".")[2] for matrix in held.matrices} == {"attn_output", "ffn_up", "ffn_gate"}
    assert held.different == []


def test_most_matrices_of_an_adapter_missing_is_refused(qwen: Tiny, tmp_path: Path) -> None:
    lora(tmp_path / "adapter", qwen)
    further = trained_further(qwen.text, tmp_path / "text.gguf")
    with pytest.raises(UserError, match=r"the weights of \S+ with \S+adapter: .*; merge the adapter into"):
        refuse_other_weights(qwen.folder, [further], tmp_path / "adapter")


def test_a_model_of_bin_files_alone_is_not_compared(qwen: Tiny, tmp_path: Path) -> None:
    assert refuse_other_weights(tmp_path, [qwen.text]) == [Weights(qwen.text, ())]


def test_a_half_that_differs_is_explained_by_its_weights(qwen: Tiny, tmp_path: Path) -> None:
    said = Cause(kind="language", detail="the language half", fix="convert again", pictures=1, image_ids=("a",))
    other = said.model_copy(update={"kind": "padding"})
    causes = Causes(tried=1, differ=1, found=(said, other))
    change = swapped("blk.0.ffn_up.weight", "blk.0.ffn_gate.weight")
    halves = [qwen.text, damaged(qwen.text, tmp_path / "text.gguf", tensors=change)]
    whole, broken = (compare_weights(qwen.folder, half) for half in halves)
    found = explain(causes, broken, whole).found
    assert "blk.0.ffn_up.weight (1" in found[0].detail or "blk.0.ffn_gate.weight (1" in found[0].detail
    assert found[0].detail.endswith("of 15 matrices compared are not Hugging Face's")
    assert found[1] == other
    found = explain(causes, whole, broken).found
    assert found[0].detail == "the language half; all 15 matrices compared are Hugging Face's"
    assert found[0].fix.startswith(f"compare the keys of {qwen.text.name} (epsilon, scale, RoPE) with config.json")
    nothing = Weights(qwen.text, ())
    assert explain(causes, nothing, nothing) == causes
