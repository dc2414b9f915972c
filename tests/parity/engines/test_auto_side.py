"""Any model under Hugging Face: what transformers itself would answer, and what its language half is given."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from anypair import picture
from models import canvases, encoder_for
from PIL import Image
from session import Once

from parity.engines.auto import AutoSide, layer_outputs
from parity.engines.chat import picture_text, render_hf
from parity.studies.families.models import make_family
from pipeline.contract import Contract, Tiling
from pipeline.core.errors import UserError
from pipeline.models.auto import load_model, load_processor
from pipeline.models.prediction import log_softmax
from pipeline.models.smolvlm.folder import load_tokenizer
from pipeline.models.smolvlm.inference import HfPredictor

RGB = picture(112, 84)
QUESTION = "What is this?"
STEPS = 4

FAMILIES = ["qwen2.5-vl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3", "qwen3-vl"))]

SAME = 1e-4
"""Largest difference of two log-probabilities of one token, computed at once or step by step with a cache. Measured
with the families here: 3.3e-5 at most."""


def opened(folder: Path) -> AutoSide:
    return AutoSide(load_processor(str(folder)), load_model(str(folder)))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(
    scope="module",
    params=FAMILIES,
)
def folder(request: pytest.FixtureRequest, once: Once) -> Path:
    name = request.param
    return once(name, lambda folder: make_family(name, folder))


@pytest.fixture(scope="module")
def side(folder: Path) -> AutoSide:
    return opened(folder)


@pytest.fixture(scope="module")
def prompt(folder: Path) -> str:
    return render_hf(load_processor(str(folder)), QUESTION)[0]


@torch.inference_mode()
def forward(side: AutoSide, prompt: str, chosen: Any) -> npt.NDArray[np.float64]:
    """The model's log-probabilities behind the prompt and each of ``chosen``, in one pass, without ``generate``."""
    processor: Any = load_processor(side.model.name_or_path)
    inputs = processor(text=[prompt], images=[Image.fromarray(RGB)], return_tensors="pt", add_special_tokens=False)
    count = len(chosen)
    behind = torch.tensor([list(chosen)], dtype=inputs["input_ids"].dtype)
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            more = behind if name == "input_ids" else torch.full((1, count), int(name == "attention_mask"))
            inputs[name] = torch.cat([inputs[name], more.to(inputs[name].dtype)], dim=1)
    logits = side.model(**inputs).logits[0, -count - 1 :]
    return log_softmax(logits.float().numpy())


def test_the_answer_is_transformers_own(folder: Path, side: AutoSide, prompt: str) -> None:
    processor: Any = load_processor(str(folder))
    inputs = processor(text=[prompt], images=[Image.fromarray(RGB)], return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        output = load_model(str(folder)).generate(
            **inputs, do_sample=False, max_new_tokens=STEPS, repetition_penalty=1.0
        )
    wanted = output[0, inputs["input_ids"].shape[1] :].tolist()
    answer, trace = side.answer(RGB, prompt, STEPS)
    assert side.chosen == wanted
    assert list(answer.ids) == [token for token in wanted if token not in side.end_ids]
    assert answer.text == processor.decode(wanted, skip_special_tokens=True)
    assert trace.log_probs.shape == (len(wanted), side.model.get_output_embeddings().weight.shape[0])
    assert trace.log_probs.argmax(axis=1).tolist() == wanted


def test_following_leaves_the_logits_as_they_are(side: AutoSide, prompt: str) -> None:
    forced = (100, 7, 2000, 345)
    answer, trace = side.answer(RGB, prompt, STEPS, follow=forced)
    assert answer.ids == forced
    assert answer.stop_reason == "length"
    wanted = forward(side, prompt, forced)[: len(forced)]
    assert np.abs(trace.log_probs - wanted).max() < SAME
    free, own = side.answer(RGB, prompt, STEPS)
    _, again = side.answer(RGB, prompt, STEPS, follow=side.chosen)
    assert np.array_equal(again.log_probs, own.log_probs)
    assert np.isfinite(own.log_probs).all()
    assert free.ids != forced


def test_an_answer_that_ends_is_without_its_end(side: AutoSide, prompt: str) -> None:
    end = min(side.end_ids)
    answer, trace = side.answer(RGB, prompt, STEPS, follow=[100, end])
    assert (answer.ids, answer.stop_reason) == ((100,), "end")
    assert len(trace.log_probs) == 2


def test_a_models_own_generation_settings_give_way(folder: Path, tmp_path: Path, prompt: str, side: AutoSide) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    settings = tmp_path / "generation_config.json"
    content = settings.read_text().rstrip().removesuffix("}")
    settings.unlink()
    settings.write_text(content + ', "repetition_penalty": 9.0, "do_sample": true, "temperature": 5.0}')
    answer, trace = opened(tmp_path).answer(RGB, prompt, STEPS)
    wanted, own = side.answer(RGB, prompt, STEPS)
    assert answer.ids == wanted.ids
    assert np.array_equal(trace.log_probs, own.log_probs)


def test_the_picture_stands_where_its_embeddings_do(folder: Path, side: AutoSide, prompt: str) -> None:
    processor: Any = load_processor(str(folder))
    inputs = processor(text=[prompt], images=[Image.fromarray(RGB)], return_tensors="pt", add_special_tokens=False)
    ids = inputs["input_ids"][0].tolist()
    _, trace = side.answer(RGB, prompt, 1)
    assert [token for token in trace.ids if token != -1] == [
        token for token in ids if token != side.model.config.image_token_id
    ]
    assert len(trace.ids) == len(ids) == len(trace.inputs) == trace.positions.shape[1]
    # The text's rows are the token table's; another picture changes none of them, and all of the picture's.
    _, other = side.answer(picture(112, 84, seed=9), prompt, 1)
    text = np.array(trace.ids) != -1
    assert np.array_equal(trace.inputs[text], other.inputs[text])
    assert (np.abs(trace.inputs[~text] - other.inputs[~text]).max(axis=1) > 0).all()


def test_looking_at_layers_changes_no_logit(side: AutoSide, prompt: str) -> None:
    _, before = side.answer(RGB, prompt, STEPS)
    with layer_outputs(side.model) as (vision, language):
        _, during = side.answer(RGB, prompt, STEPS)
    count = len(language[0])
    side.answer(RGB, prompt, STEPS)
    assert np.array_equal(before.log_probs, during.log_probs)
    assert len(language[0]) == count  # nothing is kept behind the block
    assert min(len(vision), len(language)) >= 3
    assert all(len(layer) == 1 for layer in vision)


def test_a_picture_that_the_processor_refuses_is_named(once: Once) -> None:
    """Qwen2.5-VL's takes no picture more than 200 times as wide as high."""
    side = opened(once("qwen2.5-vl", lambda folder: make_family("qwen2.5-vl", folder)))
    with pytest.raises(UserError, match="the processor cannot prepare a picture of 1000x4: ValueError"):
        side.encode(np.zeros((4, 1000, 3), np.uint8), "<|image_pad|>")


def test_the_contracts_path_gives_the_same(tiny: Path, tmp_path: Path) -> None:
    """Where the processor's own plan of tiles is the contract's, both ways to ask SmolVLM are one."""
    from pipeline.models.smolvlm.embedded import build_tokenizer
    from pipeline.models.smolvlm.folder import load_model as load_smolvlm
    from pipeline.models.smolvlm.folder import read_geometry, write_model_folder

    plan = Tiling(plan="grid", grid=2)
    write_model_folder(tmp_path, load_smolvlm(tiny), build_tokenizer(), plan, read_geometry(tiny))
    contract = Contract(labels=("fire", "light rain"), max_new_tokens=STEPS, tiling=plan)
    own = HfPredictor(load_smolvlm(tmp_path), load_tokenizer(tmp_path), encoder_for(tmp_path, contract))
    side = opened(tmp_path)
    prompt = contract.prompt.replace(contract.media_marker, picture_text(load_processor(str(tmp_path))))
    pictures = canvases(4)
    for canvas, (prediction, taps) in zip(pictures, own.observe(pictures), strict=True):
        answer, trace = side.answer(canvas, prompt, STEPS)
        assert trace.ids == taps.prompt_ids
        assert answer.ids == prediction.generated_ids
        assert answer.text == prediction.text
        assert trace.pixels
        assert np.array_equal(np.stack(list(trace.pixels.tiles)), np.stack(list(taps.tiles)))
        embeddings = trace.inputs[np.array(trace.ids) == -1]
        assert np.array_equal(embeddings, taps.embeddings.reshape(embeddings.shape))
        assert np.abs(trace.log_probs[0] - taps.log_probs).max() < SAME
