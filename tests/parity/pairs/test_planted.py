"""Faults planted into pairs of two families, each caught at its stage, and its cause named.

Gemma 3 as it is converted parts already at the template (two line breaks), so each of its faults shows beside that one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anypair import EXACT, Tiny, damaged, open_reference, reworded, swapped, tiny_pair
from models import rewrite
from session import Once
from trying import trying

from parity.engines.auto import AutoSide
from parity.judge.gates.limits import parted_at
from pipeline.models.auto import load_model, load_processor

pytestmark = pytest.mark.slow

SIZES = {"gemma3": (224, 224), "qwen3-vl": (256, 256)}
"""A picture that neither side changes the shape of."""
STOCK: dict[str, list[str]] = {"gemma3": ["template"], "qwen3-vl": []}
"""What parts the pair as it was converted."""
CHANNELS = {"gemma3": [0.4] * 3, "qwen3-vl": [0.48145466, 0.4578275, 0.40821073]}
"""Another mean: of another family."""


def stale(pair: Tiny, folder: Path) -> Tiny:
    """A vision half from before the last steps of training: each matrix a little off."""
    generator = np.random.default_rng(0)

    def older(name: str) -> Callable[[Callable[[str], Any]], Any]:
        def make(read: Callable[[str], Any]) -> Any:
            now = read(name)
            return now + 0.1 * now.std() * generator.standard_normal(now.shape).astype(np.float32)

        return make

    names = [f"v.blk.{layer}.ffn_{side}.weight" for layer in range(3) for side in ("up", "down")]
    return replace(pair, mmproj=damaged(pair.mmproj, folder / "m.gguf", tensors={name: older(name) for name in names}))


def vision(**change: Any) -> Callable[[Tiny, Path], Tiny]:
    return lambda pair, folder: replace(pair, mmproj=damaged(pair.mmproj, folder / "m.gguf", **change))


def text(**change: Any) -> Callable[[Tiny, Path], Tiny]:
    return lambda pair, folder: replace(pair, text=damaged(pair.text, folder / "t.gguf", **change))


def template(old: str, new: str) -> Callable[[Tiny, Path], Tiny]:
    return lambda pair, folder: replace(pair, text=reworded(pair.text, folder / "t.gguf", old, new))


def keyed(key: str, value: Any) -> Callable[[Tiny, Path], Tiny]:
    """With a key that the language half lacks."""
    return lambda pair, folder: replace(pair, text=rewrite(pair.text, folder / "t.gguf", {key: value}))


def same(pair: Tiny, folder: Path) -> Tiny:
    return pair


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a pair."""

    plant: Callable[[Tiny, Path], Tiny]
    rung: str
    cause: str
    adapter: bool = False
    """The model was trained further, and the pair made without that."""
    runtime: dict[str, Any] | None = None


def faults(name: str) -> dict[str, Fault]:
    """Those of a family."""
    prefix = {"gemma3": "gemma3", "qwen3-vl": "qwen3vl"}[name]
    queries = ("v.blk.0.attn_out.weight", "v.blk.1.attn_out.weight")
    found = {
        "another mean": Fault(vision(keys={"clip.vision.image_mean": CHANNELS[name]}), "S2", "pixels"),
        "swapped vision tensors": Fault(vision(tensors=swapped(*queries)), "S4", "vision"),
        "swapped language tensors": Fault(
            text(tensors=swapped("blk.1.ffn_up.weight", "blk.1.ffn_gate.weight")), "S5", "language"
        ),
        "a dropped adapter": Fault(same, "S5", "language", adapter=True),
        "a stale mmproj": Fault(stale, "S4", "vision"),
        "an epsilon of the vision half": Fault(
            vision(keys={"clip.vision.attention.layer_norm_epsilon": 0.05}), "S4", "vision"
        ),
        "an epsilon of the language half": Fault(
            text(keys={f"{prefix}.attention.layer_norm_rms_epsilon": 0.05}), "S5", "language"
        ),
    }
    if name == "gemma3":
        found["no beginning of sequence"] = Fault(template("{{- bos_token }}", "{{- ''        }}"), "S3", "template")
        found["no line break"] = Fault(template(r"else role) + '\n'", "else role) + ''"), "S3", "template")
    else:
        found["a beginning of sequence too much"] = Fault(keyed("tokenizer.ggml.add_bos_token", True), "S3", "template")
        found["no line break"] = Fault(template(r"role + '\n'", "role + ''"), "S3", "template")
        found["wrong image_min_tokens"] = Fault(same, "S2", "limits", runtime={"image_min_tokens": 100})
        found["wrong image_max_tokens"] = Fault(same, "S2", "limits", runtime={"image_max_tokens": 49})
    return found


CASES = [(name, fault) for name in SIZES for fault in faults(name)]


@pytest.fixture(scope="module")
def adapted(once: Once) -> Callable[[str], AutoSide]:
    """Opens a family's model with an adapter of its language half merged."""

    def make(name: str, folder: Path) -> None:
        from peft import LoraConfig, get_peft_model

        base = load_model(str(tiny_pair(once, name).folder))
        model = get_peft_model(base, LoraConfig(r=4, target_modules=r".*language_model.*(q_proj|v_proj)"))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder)

    def open_adapted(name: str) -> AutoSide:
        folder = str(tiny_pair(once, name).folder)
        adapter = once(f"{name}-adapter", lambda out: make(name, out))
        return AutoSide(load_processor(folder), load_model(folder, adapter=adapter))

    return open_adapted


@pytest.mark.parametrize("name", SIZES)
def test_the_pair_as_it_was_converted(once: Once, tmp_path: Path, name: str) -> None:
    with trying(tiny_pair(once, name), tmp_path, [SIZES[name]]) as stock:
        rung = parted_at(stock.measured(), stock.limits)
        assert rung == ("S3" if STOCK[name] else None)
        if rung:
            assert [found.kind for found in stock.conformed().found] == STOCK[name]


@pytest.mark.parametrize(("name", "fault"), CASES)
def test_caught_at_its_stage_and_named(
    once: Once, adapted: Callable[[str], AutoSide], tmp_path: Path, name: str, fault: str
) -> None:
    planted, pair = faults(name)[fault], tiny_pair(once, name)
    reference = adapted(name) if planted.adapter else open_reference(pair)
    runtime = EXACT.model_copy(update=planted.runtime or {})
    made = planted.plant(pair, tmp_path)
    with trying(made, tmp_path, [SIZES[name]], reference, runtime=runtime) as broken:
        measured = broken.measured()
        rung = parted_at(measured, broken.limits)
        # With the template's own fault put aside, each fault stands at its own stage.
        told = {"tokens_equal": True, "tokens_first": None, "positions_equal": True}
        alone = parted_at(measured.model_copy(update=told), broken.limits) if STOCK[name] else rung
        found = [one.kind for one in broken.conformed().found]
    if planted.rung == "S3":
        assert rung == "S3"
        assert found == ["template"]
    else:
        assert rung == min(planted.rung, "S3" if STOCK[name] else "S9")
        assert alone == planted.rung
        assert found == [*STOCK[name], planted.cause]
