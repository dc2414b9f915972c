"""Any family's processor and model: pictures go through Pillow, and what cannot be used is told in one sentence."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from session import Once
from transformers import processing_utils

from parity.studies.families.models import make_family
from pipeline.core.errors import UserError
from pipeline.models.auto import attention_of, image_backend, load_model, load_processor

MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]


@pytest.fixture(scope="module")
def qwen(once: Once) -> Path:
    """The tiny Qwen2.5-VL, whose processor insists on a video processor."""
    return once("qwen2.5-vl", lambda folder: make_family("qwen2.5-vl", folder))


@pytest.fixture
def copy(qwen: Path, tmp_path: Path) -> Path:
    """The same folder, its files linked: one is changed by writing it anew."""
    for file in qwen.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def rewritten(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file of a copy."""
    content = json.loads(file.read_text())
    change(content)
    file.unlink()
    file.write_text(json.dumps(content))


def inputs(processor: Any, side: int = 64) -> Any:
    """A noise picture and a question."""
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    prompt = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    return processor(images=[picture], text=[prompt], return_tensors="pt")


def test_a_processor_prepares_pictures_with_pillow_and_no_video(qwen: Path) -> None:
    processor = load_processor(str(qwen))
    assert image_backend(processor) == "pil"
    assert processor.video_processor is None
    assert processor.tokenizer.backend == "tokenizers"
    made = inputs(processor)
    assert made["image_grid_thw"].tolist() == [[1, 4, 4]]
    image_id = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (made["input_ids"] == image_id).sum() == 4


def test_what_is_changed_in_transformers_is_put_back(qwen: Path) -> None:
    tables = (
        processing_utils._LazyAutoProcessorMapping._MAPPING_NAMES,
        processing_utils.MODALITY_TO_BASE_CLASS_MAPPING,
    )
    package = transformers.models.pixtral
    before = [dict(table) for table in tables]
    load_processor(str(qwen))
    with pytest.raises(UserError):
        load_processor(str(qwen.parent))
    assert [dict(table) for table in tables] == before
    assert "PixtralProcessor" not in vars(package)
    assert f"{package.__name__}.image_processing_pixtral" not in sys.modules


def test_a_model_comes_in_evaluation_mode_in_the_dtype_asked_for(qwen: Path) -> None:
    model = load_model(str(qwen), "bfloat16", attention="eager")
    assert not model.training
    assert model.dtype == torch.bfloat16
    assert attention_of(model) == "eager"
    assert attention_of(load_model(str(qwen))) == "sdpa"


def test_an_adapter_is_merged(qwen: Path, tmp_path: Path) -> None:
    made = adapter(qwen, tmp_path)
    plain, merged = load_model(str(qwen)), load_model(str(qwen), adapter=made)
    given = inputs(load_processor(str(qwen)))
    with torch.inference_mode():
        difference = (plain(**given).logits - merged(**given).logits).abs().max().item()
    assert difference > 0.1
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in plain.named_parameters()}


def adapter(base: Path, folder: Path) -> Path:
    """A LoRA adapter whose weights are not zero."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(load_model(str(base)), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder / "adapter")
    return folder / "adapter"


def test_an_adapter_that_does_not_fit_is_told(qwen: Path, tmp_path: Path) -> None:
    made = adapter(qwen, tmp_path)
    file = made / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    save_file({key: value for key, value in weights.items() if key != name}, file)
    with pytest.raises(UserError, match="does not fit the model: 1 of its weights"):
        load_model(str(qwen), adapter=made)
    save_file({key.replace("layers.0", "layers.9"): value for key, value in weights.items()}, file)
    with pytest.raises(UserError, match="does not fit the model"):
        load_model(str(qwen), adapter=made)
    file.unlink()
    with pytest.raises(UserError, match="holds no adapter"):
        load_model(str(qwen), adapter=made)
    with pytest.raises(UserError, match=r"adapter_config\.json cannot be read"):
        load_model(str(qwen), adapter=tmp_path)


def test_a_folder_that_is_no_model_is_told(tmp_path: Path) -> None:
    for load in (load_processor, load_model):
        with pytest.raises(UserError, match=r"no model folder: it has no config\.json"):
            load(str(tmp_path))
        with pytest.raises(UserError, match="does not exist"):
            load(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="names no model_type"):
        load_model(str(tmp_path))


def test_an_id_of_the_hub_without_a_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # without it, the hub is asked for 20 s
    for load in (load_processor, load_model):
        with pytest.raises(UserError, match="no-one/no-model is no folder here, and cannot be had from the hub"):
            load("no-one/no-model")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llama"}, "reads text only"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "vit"}, "does not answer in text"),
        ({"model_type": "not-a-family"}, "does not know"),
    ],
)
def test_a_model_of_another_kind_is_told(tmp_path: Path, config: dict[str, str], words: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    for load in (load_processor, load_model):
        with pytest.raises(UserError, match=words):
            load(str(tmp_path))


def test_a_folder_without_its_image_processor_is_told(copy: Path) -> None:
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="has no usable processor"):
        load_processor(str(copy))


def test_missing_weights_are_told(copy: Path) -> None:
    file = copy / "model.safetensors"
    weights = load_file(file)
    weights.pop(next(name for name in weights if name.endswith("q_proj.weight")))
    file.unlink()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, such as .*q_proj\.weight"):
        load_model(str(copy))


def test_weights_of_another_shape_are_told(copy: Path) -> None:
    rewritten(copy / "config.json", lambda config: config["vision_config"].update(intermediate_size=64))
    with pytest.raises(UserError, match="has no usable model"):
        load_model(str(copy))


def test_a_dtype_and_a_device_that_do_not_exist_are_told(qwen: Path) -> None:
    for wrong in ("float33", "int8", "nn"):
        with pytest.raises(UserError, match="none of torch's"):
            load_model(str(qwen), wrong)
    with pytest.raises(UserError, match="cannot be put on 'cuda:99'"):
        load_model(str(qwen), device="cuda:99")
