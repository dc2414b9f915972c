"""Checkpoints, model folders, safetensors and adapters that are not whole: a sentence, before memory is asked for."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from headers import safetensors_cases
from malformed import DEPTHS, VALUES, byte_cases, inside, json_cases, of_bytes, paths_of, place_cases, some, with_raw
from session import Once
from test_malformed_texts import edited, explore
from trial import Case, Lost, Trials

from pipeline.contract import Tiling
from pipeline.models.smolvlm.folder import VisionGeometry, load_model, load_tokenizer, read_geometry
from pipeline.training.checkpoints import MARKER, last_complete, mark_complete

TORCH: dict[str, Any] = {"seconds": 60, "memory": 2 << 30, "fresh": True}
"""The model below takes 40 MB; a reader that asks for 2 GB more has believed what a file says."""

GEOMETRY = VisionGeometry(64, 16, 2, (0.5,) * 3, (0.5,) * 3, 49190)


def write_small(folder: Path) -> None:
    """`base`, a SmolVLM of a million parameters with the real tokenizer, and `adapter`, trained by nobody."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    from pipeline.models.smolvlm.embedded import build_tokenizer
    from pipeline.models.smolvlm.folder import write_model_folder

    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Idefics3Config(
        text_config={"model_type": "llama", "vocab_size": 49280, "num_key_value_heads": 1, "pad_token_id": 2, **text},
        vision_config={**text, "image_size": 64, "patch_size": 16},
        scale_factor=2,
        image_token_id=GEOMETRY.image_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(config).eval()
    for name in ("base", "adapter"):
        (folder / name).mkdir()
    write_model_folder(folder / "base", model, build_tokenizer(), Tiling(), GEOMETRY)
    lora = LoraConfig(r=2, target_modules=r".*text_model.*(q_proj|v_proj)", init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder / "adapter")


@pytest.fixture
def small(once: Once, tmp_path: Path) -> Path:
    """A copy of the small model's folders."""
    return Path(shutil.copytree(once("attacked-model", write_small), tmp_path / "model"))


# --- what is read with the standard library --------------------------------------------------------------------------


def measured(folder: Path, _: Path) -> None:
    geometry = read_geometry(folder)
    assert geometry.tokens_per_tile > 0
    assert len(geometry.image_mean) == len(geometry.image_std) == 3
    assert all(isinstance(value, (int, float)) for value in (*geometry.image_mean, *geometry.image_std))
    assert isinstance(geometry.image_token_id, int)


@DEPTHS
@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "preprocessor_config.json"])
def test_a_model_s_geometry_is_read_or_refused(name: str, depth: str, small: Path, trials: Trials) -> None:
    folder = small / "base"
    target = folder / name
    if name == "preprocessor_config.json":  # as a processor of another version writes it
        data = json.loads((folder / "processor_config.json").read_text())
        target.write_text(json.dumps(data.get("image_processor", data)))
        (folder / "processor_config.json").unlink()
    data = target.read_bytes()
    room = trials.room(partial(measured, folder))
    room.must_read(target)
    there = [case for case in place_cases() if case.name != "nothing there" or name == "config.json"]
    trials.run("model", room, target, some(json_cases(data) + byte_cases(data), depth) + there)


@DEPTHS
def test_hypothesis_finds_no_config_that_is_a_traceback(depth: str, small: Path, trials: Trials) -> None:
    target = small / "base" / "config.json"
    room = trials.room(partial(measured, small / "base"))
    strategy = edited(json.loads(target.read_text()))
    explore(trials, "model", room, target, strategy, 40 if depth == "quick" else 1500)


# --- checkpoints -----------------------------------------------------------------------------------------------------

STEPS = (10, 20)


def write_checkpoints(root: Path) -> Path:
    """Two whole checkpoints."""
    for step in STEPS:
        folder = root / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(bytes([step]) * 1000)
        state = {"global_step": step, "best_global_step": STEPS[0], "epoch": 1.0, "log_history": []}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        mark_complete(folder)
    return root


def resumed(root: Path, _: Path) -> None:
    """The older checkpoint is whole, so there is one to resume from, whatever has become of the newer one."""
    found = last_complete(root)
    if found is None or not found.is_dir():
        raise Lost(f"no checkpoint is left to resume from: {found}")
    if not (root / f"checkpoint-{STEPS[0]}" / MARKER).exists():
        raise Lost("the older checkpoint is gone")


@DEPTHS
@pytest.mark.parametrize("name", [MARKER, "adapter_model.safetensors", "trainer_state.json", "."])
def test_a_training_resumes_from_what_is_whole(name: str, depth: str, tmp_path: Path, trials: Trials) -> None:
    whole = write_checkpoints(tmp_path / "whole")
    target = whole / f"checkpoint-{STEPS[1]}" / name
    data = target.read_bytes() if name != "." else b""
    cases = place_cases()
    if name != ".":
        cases = some((json_cases(data) if name.endswith("json") else []) + byte_cases(data, 40, 40), depth) + cases

    def attempt(path: Path) -> None:
        resumed(path, path)

    room = trials.room(attempt)
    room.must_read(whole)
    for case in cases:
        root = tmp_path / "tried"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        newer = root / f"checkpoint-{STEPS[1]}"
        place = newer / name
        if name == ".":
            shutil.rmtree(newer)
            place = newer
        else:
            place.unlink()
        case.put(place)
        trials.note("checkpoint", f"{name}: {case.name}", room.attempt(root), place)


@pytest.mark.parametrize(
    "name", ["checkpoint-", "checkpoint-x", "checkpoint--1", "checkpoint-1e9", "checkpoint-²", "checkpoint-30"]
)
def test_what_is_called_a_checkpoint_and_is_none_ends_nothing(name: str, tmp_path: Path, trials: Trials) -> None:
    for case in place_cases():
        if case.name == "nothing there":
            continue
        root = write_checkpoints(tmp_path / f"{case.name}".replace("/", "_"))
        if case.name != "a socket":
            case.put(root / name)
        trials.note(
            "checkpoint", f"{case.name} called {name}", trials.room(lambda path: resumed(path, path)).attempt(root)
        )


def test_a_marker_that_lists_files_outside_removes_nothing_there(tmp_path: Path, trials: Trials) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    for listed in (
        {"../../outside/file": "0" * 64},
        {str(outside / "file"): "0" * 64},
        {"/dev/zero": "0" * 64},
        {"": ""},
    ):
        root = write_checkpoints(tmp_path / f"{len(list(tmp_path.iterdir()))}")
        (root / f"checkpoint-{STEPS[1]}" / MARKER).write_text(json.dumps(listed))
        trials.note("checkpoint", f"a marker of {listed}", trials.room(lambda path: resumed(path, path)).attempt(root))
        assert (outside / "file").read_text() == "x"


# --- what torch reads ------------------------------------------------------------------------------------------------


def warm() -> None:
    """What the first call of a process takes, out of the memory that is counted."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


def loaded(folder: Path, _: Path) -> None:
    warm()
    load_model(folder)


def tokenized(folder: Path, _: Path) -> None:
    warm()
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("Classify this image.", add_special_tokens=False)


def merged(folder: Path, out: Path, _: Path) -> None:
    from pipeline.models.smolvlm.lora import merge

    warm()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    merge(folder / "base", folder / "adapter", out, Tiling(), GEOMETRY)


HUGE = {"a million": "1000000", "a thousand million": "1000000000", "2**40": str(2**40)}


def config_cases(data: bytes) -> list[Case]:
    """Values that build nothing, or too much."""
    value = json.loads(data)
    names = [
        "null",
        "an empty list",
        "an empty object",
        "true",
        "-1",
        "0",
        "1.5",
        "1e999",
        "NaN",
        "a text",
        "an empty text",
    ]
    raws = {name: VALUES[name] for name in [*names, "5,000 digits", "900 nested lists"]} | HUGE
    found = []
    for path in paths_of(value):
        if path:
            for name, raw in raws.items():
                found.append(of_bytes(f"{'.'.join(map(str, path))}: {name}", with_raw, value, path, raw))
            if isinstance(path[-1], str):
                gone = json.loads(data)
                del inside(gone, path[:-1])[path[-1]]
                found.append(of_bytes(f"{'.'.join(map(str, path))}: removed", bytes, json.dumps(gone).encode()))
    return found


TORCH_DEPTHS = pytest.mark.parametrize(
    ("name", "depth"),
    [
        pytest.param("model.safetensors", "quick"),
        *(
            pytest.param(name, "all", marks=pytest.mark.attack)
            for name in ("config.json", "model.safetensors", "generation_config.json")
        ),
    ],
)
"""A process that imports torch takes 5 s to begin: `make test` begins two."""


@TORCH_DEPTHS
def test_a_model_is_loaded_or_refused(name: str, depth: str, small: Path, trials: Trials) -> None:
    folder = small / "base"
    target = folder / name
    data = target.read_bytes()
    room = trials.room(partial(loaded, folder), **TORCH)
    room.must_read(target)
    if name == "config.json":
        cases = config_cases(data) + byte_cases(data, 10, 10)
    elif name == "model.safetensors":
        cases = safetensors_cases(data, 1) + byte_cases(data, 10, 10)
    else:
        cases = some(json_cases(data), "quick", 40) + byte_cases(data, 5, 5)
    known = [case for case in cases if case.name in ("text_config: null", "text_config.hidden_size: a million")]
    chosen = known + some(cases, "quick", 4 if depth == "quick" else 400)
    trials.run("model" if name.endswith("json") else "safetensors", room, target, chosen + there(depth))


def there(depth: str) -> list[Case]:
    """What is no file, less what a reader may do without."""
    return [] if depth == "quick" else [case for case in place_cases() if case.name != "nothing there"]


@pytest.mark.attack
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_is_loaded_or_refused(name: str, small: Path, trials: Trials) -> None:
    folder = small / "base"
    target = folder / name
    data = target.read_bytes()
    room = trials.room(partial(tokenized, folder), **TORCH)
    room.must_read(target)
    document = json.loads(data)
    raws = {
        key: VALUES[key] for key in ("null", "an empty list", "an empty object", "-1", "1e999", "a text", "a zero byte")
    }
    places = [path for path in paths_of(document) if len(path) <= 2 or (len(path) <= 4 and "vocab" not in path)]
    cases = [
        of_bytes(f"{'.'.join(map(str, path)) or 'all'}: {what}", with_raw, document, path, raw)
        for path in places
        for what, raw in raws.items()
    ]
    cases += byte_cases(data, 6, 6)
    trials.run("model", room, target, some(cases, "quick", 120) + there("all"))


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        pytest.param("adapter_model.safetensors", "quick"),
        pytest.param("adapter_config.json", "all", marks=pytest.mark.attack),
        pytest.param("adapter_model.safetensors", "all", marks=pytest.mark.attack),
    ],
)
def test_an_adapter_is_merged_or_refused(name: str, depth: str, small: Path, trials: Trials) -> None:
    target = small / "adapter" / name
    data = target.read_bytes()
    room = trials.room(partial(merged, small, small / "out"), **TORCH)
    room.must_read(target)
    if name.endswith("json"):
        raws = {key: VALUES[key] for key in ("null", "an empty list", "an empty object", "-1", "0", "1e999", "a text")}
        document = json.loads(data)
        places = [path for path in paths_of(document) if path and len(path) == 1]
        cases = [
            of_bytes(f"{path[0]}: {what}", with_raw, document, path, raw)
            for path in places
            for what, raw in (raws | HUGE).items()
        ]
        cases += byte_cases(data, 4, 4)
        known = [case for case in cases if case.name in ("r: a million", "target_modules: null")]
    else:
        cases = safetensors_cases(data, 1) + byte_cases(data, 6, 6)
        known = []
    trials.run("adapter", room, target, known + some(cases, "quick", 3 if depth == "quick" else 80) + there(depth))
