"""Export: what a bundle holds, that its check turns red for what was once silently wrong, and every type of file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import (
    NAME,
    RECIPE,
    Pair,
    bundle_recipe,
    canvases,
    encoder_for,
    export_pair,
    llama,
    opened,
    rewrite,
    runtime,
)
from places import small_disk

from pipeline.contract import Contract, Tiling
from pipeline.core.commandline import disk_full
from pipeline.core.errors import CheckFailed
from pipeline.core.files import sha256_file
from pipeline.core.gguf_types import MmprojType, TextType
from pipeline.core.provenance import folder_hashes
from pipeline.export import convert
from pipeline.export.bundle import mmproj_name, text_name, write_bundle
from pipeline.export.check import check_mmproj, check_text
from pipeline.export.convert import KEY_CONTRACT, KEY_RECIPE, _quantize, convert_text
from pipeline.models.prediction import Prediction
from pipeline.models.smolvlm.folder import load_model, load_tokenizer, read_geometry, write_model_folder
from pipeline.models.smolvlm.inference import HfPredictor
from pipeline.recipe import Recipe

CONTRACT = Contract()
EXACT = Contract(max_new_tokens=2, runtime=runtime("f32", flash_attn=False, n_threads=1))

# Largest difference of a label's log-probability from the F32 pair's, over 4 pictures: (allowed, measured). No row of
# this model's matrices is a multiple of 256, so its K-quants are all of the types that llama.cpp falls back to.
TYPES: dict[TextType, tuple[float, float]] = {
    "F32": (0.0, 0.0),
    "F16": (0.01, 0.0026),
    "Q8_0": (0.25, 0.075),
    "Q6_K": (0.25, 0.075),
    "Q5_K_M": (1.6, 0.54),
    "Q4_K_M": (1.6, 0.31),
    "Q4_0": (2.5, 0.81),
}


@pytest.fixture(scope="module")
def half_pair(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The GGUF pair of ``tiny`` in F16."""
    return export_pair(tiny, tmp_path_factory.mktemp("half"), "F16", "F16")


def metadata(path: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in opened(path).fields.items()}


def text_check(path: Path, model: Path, text_type: TextType = "Q8_0", contract: Contract = CONTRACT) -> None:
    check_text(path, model, NAME, contract, RECIPE, text_type)


def mmproj_check(path: Path, model: Path, mmproj_type: MmprojType = "Q8_0", contract: Contract = CONTRACT) -> None:
    check_mmproj(path, model, NAME, contract, RECIPE, mmproj_type)


def test_a_bundle_holds_the_pair_the_contract_and_the_manifest(bundle: Path) -> None:
    assert {path.name for path in bundle.iterdir()} == {
        "Tiny-Element-Q8_0.gguf",
        "mmproj-Tiny-Element-Q8_0.gguf",
        "contract.json",
        "manifest.json",
    }
    assert json.loads((bundle / "contract.json").read_text()) == CONTRACT.model_dump(mode="json")


def test_files_are_named_as_the_documents_name_them() -> None:
    recipe = Recipe(name="x")
    assert text_name(recipe) == "SmolVLM2-500M-Element-Q8_0.gguf"
    assert mmproj_name(recipe) == "mmproj-SmolVLM2-500M-Element-Q8_0.gguf"
    mixed = bundle_recipe(text_type="Q4_K_M", mmproj_type="F16")
    assert (text_name(mixed), mmproj_name(mixed)) == ("Tiny-Element-Q4_K_M.gguf", "mmproj-Tiny-Element-F16.gguf")


def test_the_manifest_vouches_for_all_that_went_in_and_out(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    others = [path for path in bundle.iterdir() if path.name != "manifest.json"]
    assert manifest["outputs"] == {path.name: sha256_file(path) for path in others}
    assert manifest["inputs"] == {"merged": "0" * 64}
    assert manifest["contract_sha256"] == CONTRACT.digest
    assert Recipe.model_validate(manifest["recipe"]) == bundle_recipe()
    assert manifest["recipe"]["seed"] == 0
    assert manifest["threads"] == 2
    assert {"torch", "transformers", "llama-cpp-python"} <= manifest["versions"].keys()
    assert {"cpu", "cores", "system"} <= manifest["machine"].keys()


def test_the_files_say_what_they_are(phone_pair: Pair) -> None:
    for path in (phone_pair.text, phone_pair.mmproj):
        keys = metadata(path)
        assert keys["general.name"] == "Tiny-Element"
        assert keys[KEY_CONTRACT] == CONTRACT.digest
        assert keys[KEY_RECIPE] == "tiny"
    assert metadata(phone_pair.text)["tokenizer.ggml.pre"] == "smollm"
    assert metadata(phone_pair.text)["tokenizer.ggml.add_bos_token"] is False
    assert metadata(phone_pair.mmproj)["clip.projector_type"] == "idefics3"
    assert phone_pair.text.stat().st_mode & 0o777 == 0o644


@pytest.mark.slow
def test_the_same_weights_give_the_same_bytes_wherever_they_lie(
    tiny: Path, bundle: Path, phone_pair: Pair, tmp_path: Path
) -> None:
    moved = shutil.copytree(tiny, tmp_path / "another name")
    write_bundle(moved, tmp_path / "again", bundle_recipe(), {}, threads=1)
    for path in (phone_pair.text, phone_pair.mmproj):
        assert sha256_file(tmp_path / "again" / path.name) == sha256_file(path)


def test_a_failed_export_leaves_the_old_bundle(bundle: Path, tiny: Path, tmp_path: Path) -> None:
    out = shutil.copytree(bundle, tmp_path / "runs" / "bundle")
    before = folder_hashes(out)
    broken = shutil.copytree(tiny, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckFailed, match=r"llama\.cpp's converter refused the (text|vision) half of .*broken: "):
        write_bundle(broken, out, bundle_recipe(), {}, threads=2)
    assert folder_hashes(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


# The F16 file takes 15.9 MB, the quantized one 8.6. What does not fit: anything of the converter's; the quantizer's
# file; the copy with this project's keys.
@pytest.mark.parametrize(
    ("size", "text_type"), [pytest.param("1m", "F16", marks=pytest.mark.slow), ("20m", "Q8_0"), ("20m", "F16")]
)
def test_a_full_disk_is_no_refusal(
    tiny: Path, half_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, text_type: TextType
) -> None:
    if size != "1m":  # the converter's own file, without its 5 seconds
        monkeypatch.setattr(convert, "_run_converter", lambda _, out, *__, **___: shutil.copyfile(half_pair.text, out))
    with small_disk(tmp_path / "disk", size) as disk:
        with pytest.raises(OSError, match="No space left on device") as error:
            convert_text(tiny, disk / "model.gguf", text_type, NAME, {}, threads=1)
        assert disk_full(error.value)
        assert list(disk.iterdir()) == []


def test_a_converter_that_ran_out_of_space_is_believed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the time it is asked, the other half may have failed too and given its space back."""
    monkeypatch.setattr(convert, "source_tree", lambda: tmp_path)
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("raise OSError(28, 'No space left on device')")
    with pytest.raises(OSError, match="No space left on device"):
        convert_text(tiny, tmp_path / "model.gguf", "F16", NAME, {}, threads=1)
    script.write_text("raise OSError(5, 'Input/output error')")
    with pytest.raises(CheckFailed, match="converter refused the text half"):
        convert_text(tiny, tmp_path / "model.gguf", "F16", NAME, {}, threads=1)


@pytest.fixture(scope="module")
def exact_answers(tiny: Path, exact_pair: Pair) -> list[Prediction]:
    """What the F32 pair says to 4 pictures."""
    return answers(tiny, exact_pair)


def answers(model: Path, pair: Pair) -> list[Prediction]:
    with llama(model, pair, EXACT) as side:
        return list(side.predict(canvases(4)))


def difference(ours: list[Prediction], theirs: list[Prediction]) -> float:
    pairs = [(a.label_logprobs, b.label_logprobs) for a, b in zip(ours, theirs, strict=True)]
    return max(abs(a[label] - b[label]) for a, b in pairs for label in a)


@pytest.mark.parametrize("text_type", TYPES)
def test_every_type_of_the_language_half(
    tiny: Path,
    exact_pair: Pair,
    half_pair: Pair,
    exact_answers: list[Prediction],
    tmp_path: Path,
    text_type: TextType,
) -> None:
    path = {"F32": exact_pair.text, "F16": half_pair.text}.get(text_type, tmp_path / f"{text_type}.gguf")
    if not path.exists():
        _quantize(half_pair.text, path, text_type, threads=1)
    text_check(path, tiny, text_type)
    assert difference(exact_answers, answers(tiny, Pair(path, exact_pair.mmproj))) <= TYPES[text_type][0]


@pytest.mark.parametrize(("mmproj_type", "allowed"), [("F32", 0.0), ("F16", 0.01), ("Q8_0", 0.25)])
def test_every_type_of_the_vision_half(
    tiny: Path,
    exact_pair: Pair,
    half_pair: Pair,
    phone_pair: Pair,
    exact_answers: list[Prediction],
    mmproj_type: MmprojType,
    allowed: float,
) -> None:
    path = {"F32": exact_pair, "F16": half_pair, "Q8_0": phone_pair}[mmproj_type].mmproj
    mmproj_check(path, tiny, mmproj_type)
    # Measured: 0, 0.0025 and 0.079.
    assert difference(exact_answers, answers(tiny, Pair(exact_pair.text, path))) <= allowed


def test_a_file_of_another_type_is_not_taken_for_the_one_wanted(tiny: Path, exact_pair: Pair, phone_pair: Pair) -> None:
    with pytest.raises(CheckFailed, match=r"tensor token_embd\.weight is F32"):
        text_check(exact_pair.text, tiny, "Q8_0")
    with pytest.raises(CheckFailed, match=r"tensor mm\.model\.fc\.weight is Q8_0"):
        mmproj_check(phone_pair.mmproj, tiny, "F16")


def _swap_two(tokens: list[str]) -> list[str]:
    return [*tokens[:1000], tokens[1001], tokens[1000], *tokens[1002:]]


def problems(check: Callable[[Path, Path], None], path: Path, model: Path) -> list[str]:
    """What a check finds wrong with a file."""
    with pytest.raises(CheckFailed) as error:
        check(path, model)
    head = f"{path} is not what was exported: "
    assert str(error.value).startswith(head)
    return str(error.value).removeprefix(head).split("; ")


def test_every_fault_of_a_language_half_is_found(tiny: Path, phone_pair: Pair, tmp_path: Path) -> None:
    keys = {
        "general.name": "Model",
        KEY_CONTRACT: "0" * 64,
        KEY_RECIPE: "other",
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
    }
    bad = rewrite(
        phone_pair.text,
        tmp_path / "bad.gguf",
        keys,
        drop="blk.2.ffn_up.weight",
        change={"tokenizer.ggml.tokens": _swap_two},
        as_f16="blk.1.attn_q.weight",
    )
    found = problems(text_check, bad, tiny)
    digests = found.pop(5)
    assert found == [
        "general.name is 'Model', expected 'Tiny-Element'",
        f"{KEY_CONTRACT} is '{'0' * 64}', expected '{CONTRACT.digest}'",
        f"{KEY_RECIPE} is 'other', expected 'tiny'",
        "tensor blk.1.attn_q.weight is F16",
        "the number of tensors is 37, expected 38",
        "the end token is '<|im_end|>', expected '<end_of_utterance>'",
        "tokenizer.ggml.add_bos_token is True, expected False",
    ]
    assert digests.startswith("the tokenizer's hash is ")


def _swap_two(tokens: list[str]) -> list[str]:
    return [*tokens[:1000], tokens[1001], tokens[1000], *tokens[1002:]]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"keys": {"general.name": "Model"}}, "general.name is 'Model', expected 'Tiny-Element'"),
        ({"keys": {KEY_CONTRACT: "0" * 64}}, f"{KEY_CONTRACT} is '{'0' * 64}', expected '{CONTRACT.digest}'"),
        ({"drop": "v.blk.1.ln1.bias"}, "the number of tensors is 37, expected 38"),
        ({"keys": {"clip.vision.preproc_image_size": 2048}}, "clip.vision.preproc_image_size is 2048, expected 256"),
        ({"keys": {"clip.vision.attention.layer_norm_epsilon": 1e-5}}, "clip.vision.attention.layer_norm_epsilon is"),
        ({"keys": {"clip.vision.image_mean": [0.48, 0.45, 0.41]}}, "clip.vision.image_mean is [0.4"),
        ({"keys": {"clip.vision.projector.scale_factor": 2}}, "clip.vision.projector.scale_factor is 2, expected 4"),
        ({"as_f16": "mm.model.fc.weight"}, "tensor mm.model.fc.weight is F16"),
    ],
    ids=["name", "contract", "tensor", "tile plan", "epsilon", "mean", "scale", "type"],
)
def test_a_faulty_vision_half_is_found(
    tiny: Path, phone_pair: Pair, tmp_path: Path, fault: dict[str, Any], words: str
) -> None:
    (found,) = problems(mmproj_check, rewrite(phone_pair.mmproj, tmp_path / "bad.gguf", **fault), tiny)
    assert found.startswith(words)


@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.5, 0.999])
@pytest.mark.parametrize("half", ["text", "mmproj"])
def test_a_truncated_file_is_found(tiny: Path, phone_pair: Pair, tmp_path: Path, half: str, kept: float) -> None:
    whole = getattr(phone_pair, half).read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(CheckFailed, match=r"truncated|its tensors end at") as error:
        (text_check if half == "text" else mmproj_check)(path, tiny)
    assert str(path) in str(error.value)


def test_a_rewritten_file_without_a_fault_passes(tiny: Path, phone_pair: Pair, tmp_path: Path) -> None:
    text_check(rewrite(phone_pair.text, tmp_path / "text.gguf"), tiny)
    mmproj_check(rewrite(phone_pair.mmproj, tmp_path / "mmproj.gguf"), tiny)


def test_another_tile_plan_wants_another_vision_half(tiny: Path, phone_pair: Pair, tmp_path: Path) -> None:
    contract = Contract(tiling=Tiling(grid=2))
    keys = {KEY_CONTRACT: contract.digest}
    bad = rewrite(phone_pair.mmproj, tmp_path / "bad.gguf", keys)
    with pytest.raises(CheckFailed, match="preproc_image_size is 256, expected 512"):
        mmproj_check(bad, tiny, contract=contract)
    good = rewrite(phone_pair.mmproj, tmp_path / "good.gguf", keys | {"clip.vision.preproc_image_size": 512})
    mmproj_check(good, tiny, contract=contract)


@pytest.mark.slow
def test_an_output_layer_of_its_own_is_exported(tiny: Path, exact_pair: Pair, tmp_path: Path) -> None:
    # SmolVLM's models on the hub are like this; the embedded ones tie the output to the token table.
    model, tokenizer = load_model(tiny), load_tokenizer(tiny)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0).clone())
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    untied = tmp_path / "untied"
    untied.mkdir()
    write_model_folder(untied, model, tokenizer, Tiling(), read_geometry(tiny))
    path = tmp_path / "untied.gguf"
    convert_text(untied, path, "F32", NAME, {KEY_CONTRACT: CONTRACT.digest, KEY_RECIPE: RECIPE}, threads=1)
    text_check(path, untied, "F32")
    encoder = encoder_for(untied, EXACT)
    ours = next(HfPredictor(load_model(untied), tokenizer, encoder).predict(canvases(1)))
    with llama(untied, Pair(path, exact_pair.mmproj), EXACT) as side:
        theirs = next(side.predict(canvases(1)))
    assert ours.generated_ids == theirs.generated_ids
    assert ours.label_logprobs == pytest.approx(theirs.label_logprobs, abs=0.01)
