"""The whole way through the real command line, and each fault that the verdict exists to catch."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from PIL import Image
from session import Once
from sides import cut

import pipeline.letterbox as letterbox_module
from parity.compare.ladder import read_ladder
from parity.compare.runner import answer_all
from parity.compare.samples import Sample, load_samples
from parity.engines import OpenSide
from parity.engines.llamacpp import LlamaCppPredictor
from parity.judge.goldens import letterbox_gate
from parity.judge.judge import judge
from parity.judge.verdict import Verdict
from parity.report.attached import Attached
from parity.report.reproduction import reproduction
from parity.report.rows import pair_up
from parity.results import Header, read_results
from pipeline.contract import Contract, ImageContract
from pipeline.core.errors import UserError
from pipeline.core.pinned import llama_tool
from pipeline.core.progress import Reporter
from pipeline.core.provenance import folder_hashes
from pipeline.export.verify import read_gguf, verify_bundle
from pipeline.letterbox import letterbox
from pipeline.models.smolvlm.embedded import build_tokenizer
from pipeline.models.smolvlm.encoding import Encoder, make_encoder
from pipeline.models.smolvlm.folder import load_tokenizer, read_geometry

ROOT = Path(__file__).parent.parent
RECIPE = """
name: small
dataset: {n_per_class: 60, val_fraction: 0.2, test_fraction: 0.2}
base: {model: "embedded:tiny"}
train: {epochs: 5, learning_rate: 2.0e-3, batch_size: 8, gradient_accumulation: 1, gradient_checkpointing: false,
        vision: full, connector: full}
export: {name: Small}
contract: {max_new_tokens: 4, gate: {margin_points: 10.0}}
"""
BIN = Path(sys.executable).parent


def command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run an installed command as a user would, without a terminal."""
    program, *rest = map(str, arguments)
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    return subprocess.run([BIN / program, *rest], capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def lines_of(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Stage -> the last line that was said of it."""
    return {re.sub(r"^\[\d+/\d+\] ", "", line).split()[0]: line for line in result.stderr.splitlines()}


@pytest.fixture(scope="session")
def run(once: Once) -> Path:
    """The folder of a run that passed. It is never changed: the tests are spread over processes."""

    def main_job(folder: Path) -> None:
        (folder / "small.yaml").write_text(RECIPE)
        result = command("parity", "run", "small.yaml", cwd=folder)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "PASS" in result.stdout

    return once("main_job", main_job) / "runs" / "small"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the recipe."""
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def copied(run: Path, place: Path) -> Path:
    """A copy of the run, in a place of its own."""
    return shutil.copytree(run, place / "runs" / "small")


def test_the_verdict_is_written_and_true(run: Path) -> None:
    verdict = json.loads((run / "parity" / "verdict.json").read_text())
    hf, llamacpp = (read_results(run / "parity" / f"{side}.results.jsonl") for side in ("hf", "llamacpp"))
    assert verdict["status"] == "PASS"
    assert verdict["first_bad_stage"] is None
    assert verdict["n"] == len(hf.rows) == len(llamacpp.rows) > 40
    assert hf.rows.keys() == llamacpp.rows.keys()
    accuracy = sum(row.label == row.truth for row in hf.rows.values()) / len(hf.rows)
    assert verdict["reference"]["accuracy"] == accuracy
    assert accuracy > 0.5, "a model that has learnt nothing would make every test below pass for the wrong reason"
    assert verdict["agreement"] > 0.9


def test_everything_that_was_promised_is_there(run: Path) -> None:
    for name in (
        "lora_adapter/adapter_model.safetensors",
        "merged/model.safetensors",
        "logs/log.jsonl",
        "bundle/Small-Q8_0.gguf",
        "bundle/mmproj-Small-Q8_0.gguf",
        "bundle/contract.json",
        "bundle/manifest.json",
        "evaluation/validation_results.json",
        "evaluation/confusion_matrix.png",
        "dataset/train.json",
        "dataset/val.json",
        "dataset/test.json",
        "dataset/metadata.json",
        *(
            f"parity/{name}"
            for name in (
                "hf.results.jsonl",
                "llamacpp.results.jsonl",
                "ladder.jsonl",
                "noise.json",
                "verdict.json",
                "verdict.txt",
                "report.html",
                "junit.xml",
                "summary.md",
                "ggufs.json",
                "model.cdx.json",
            )
        ),
    ):
        assert (run / name).is_file(), name


def test_the_images_farthest_apart_are_kept_whole(run: Path) -> None:
    ladder = read_ladder(run / "parity" / "ladder.jsonl").rows
    kept = sorted((run / "parity" / "worst").glob("*.npz"))
    assert len(kept) == 5
    rows = {key[:16]: row for key, row in ladder.items()}
    least = min(rows[path.stem].logits_kl for path in kept if rows[path.stem].label_equal)
    others = [row.logits_kl for name, row in rows.items() if name not in {path.stem for path in kept}]
    assert least >= max(others)
    for path in kept:
        with np.load(path) as arrays:
            ours, theirs = (arrays[f"{side}_embeddings"] for side in ("reference", "candidate"))
            error = np.linalg.norm(theirs - ours) / np.linalg.norm(ours)
            assert error == pytest.approx(rows[path.stem].embeddings_error, rel=1e-6)
            assert np.array_equal(arrays["reference_tiles_u8"][-1].transpose(1, 2, 0), arrays["canvas"])
            assert np.array_equal(arrays["reference_prompt_ids"], arrays["candidate_prompt_ids"])


def test_a_second_run_does_nothing_and_says_the_same(place: Path, copied: Path) -> None:
    made = [
        copied / "merged" / "model.safetensors",
        copied / "bundle" / "Small-Q8_0.gguf",
        copied / "parity" / "hf.results.jsonl",
    ]
    before = [path.stat().st_mtime_ns for path in made]
    bill = (copied / "parity" / "model.cdx.json").read_bytes()
    result = command("parity", "run", "small.yaml", cwd=place)
    assert result.returncode == 0
    assert (copied / "parity" / "model.cdx.json").read_bytes() == bill
    stages = ["dataset", "base", "train", "merge", "export", "floor", "ladder"]
    lines = lines_of(result)
    assert all("unchanged" in lines[stage] for stage in stages), result.stderr
    counted = [line.split()[:2] for line in result.stderr.splitlines() if line.startswith("[")]
    assert counted == [[f"[{number}/9]", stage] for number, stage in enumerate([*stages, "judge", "report"], 1)]
    assert [path.stat().st_mtime_ns for path in made] == before


def test_a_changed_setting_runs_only_what_depends_on_it(place: Path, run: Path) -> None:
    shutil.copytree(run, place / "f16" / "small")
    options = ("--runs", "f16", "--set", "export.text_type=F16")
    result = command("parity", "run", "small.yaml", *options, cwd=place)
    assert result.returncode == 0, result.stderr
    lines = lines_of(result)
    assert all("unchanged" in lines[stage] for stage in ("dataset", "base", "train", "merge", "floor"))
    assert all("unchanged" not in lines[stage] for stage in ("export", "ladder"))


def test_a_damaged_artefact_is_made_again(place: Path, copied: Path) -> None:
    model = copied / "bundle" / "Small-Q8_0.gguf"
    whole = model.read_bytes()
    model.write_bytes(whole[:-100])
    result = command("parity", "run", "small.yaml", cwd=place)
    assert result.returncode == 0, result.stderr
    assert model.read_bytes() == whole, "the same recipe gives the same bytes on one machine"


@pytest.mark.parametrize(
    "torn", [*(pytest.param(f"{side}.results", marks=pytest.mark.slow) for side in ("hf", "llamacpp")), "ladder"]
)
def test_an_interrupted_run_goes_on_where_it_stopped(place: Path, copied: Path, torn: str) -> None:
    paths = [copied / "parity" / f"{name}.jsonl" for name in ("hf.results", "llamacpp.results", "ladder")]
    kept = {}
    for path in paths:
        lines = path.read_bytes().splitlines(keepends=True)
        count = 11 if torn in path.name else 12
        kept[path] = lines[:count]
        cut(path, count - 1, 40 if torn in path.name else 0)  # killed in a line
    whole = len(lines)
    (copied / "stages" / "ladder.json").unlink()
    result = command("parity", "run", "small.yaml", cwd=place)
    assert result.returncode == 0, result.stderr
    for path in paths:
        again = path.read_bytes().splitlines(keepends=True)
        assert again[: len(kept[path])] == kept[path], "finished rows, their timings too, are kept"
        assert len(again) == whole


def test_one_model_at_a_time_gives_the_same_answers(place: Path, copied: Path, run: Path) -> None:
    shutil.rmtree(copied / "parity")
    result = command("parity", "run", "small.yaml", "--no-ladder", cwd=place)
    assert result.returncode == 0, result.stderr
    for name in ("hf.results.jsonl", "llamacpp.results.jsonl"):
        ours, theirs = (read_results(folder / "parity" / name) for folder in (copied, run))
        assert ours.header == theirs.header
        assert [row.model_copy(update={"ms": {}}) for row in ours.rows.values()] == [
            row.model_copy(update={"ms": {}}) for row in theirs.rows.values()
        ]
    gates = {
        gate["stage"]: gate["status"] for gate in json.loads((copied / "parity" / "verdict.json").read_text())["gates"]
    }
    assert (gates["embeddings"], gates["logits"]) == ("not measured", "green")


@pytest.mark.slow
def test_a_divided_run_is_the_whole_run(place: Path, copied: Path, run: Path) -> None:
    shutil.rmtree(copied / "parity")
    divided = ("parity", "run", "small.yaml", "--shards", "2")
    with ThreadPoolExecutor() as both:  # as a scheduler starts them
        done = list(both.map(lambda shard: command(*divided, "--shard", shard, cwd=place), ("2", "1")))
    for result in (*done, command(*divided, cwd=place)):
        assert result.returncode == 0, result.stderr
    assert (copied / "parity" / "ladder.jsonl").read_bytes() == (run / "parity" / "ladder.jsonl").read_bytes()
    for name in ("hf.results.jsonl", "llamacpp.results.jsonl"):
        ours, theirs = (read_results(folder / "parity" / name) for folder in (copied, run))
        assert list(ours.rows) == list(theirs.rows)
    ours, theirs = (json.loads((folder / "parity" / "verdict.json").read_text()) for folder in (copied, run))
    assert (ours["status"], ours["gates"]) == (theirs["status"], theirs["gates"])


def test_the_bill_of_materials_says_what_was_measured(run: Path) -> None:
    text = (run / "parity" / "model.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    model = json.loads(text)["metadata"]["component"]
    verdict = json.loads((run / "parity" / "verdict.json").read_text())
    manifest = json.loads((run / "bundle" / "manifest.json").read_text())
    files = {part["name"]: part["hashes"][0]["content"] for part in model["components"]}
    assert files == {name: sha256 for name, sha256 in manifest["outputs"].items() if name.endswith(".gguf")}
    metrics = {
        (item["type"], item["slice"]): item for item in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    }
    for side in ("reference", "candidate"):
        found = metrics["accuracy", verdict[side]["side"]]
        assert float(found["value"]) == pytest.approx(verdict[side]["accuracy"], abs=1e-4)
        interval = [float(found["confidenceInterval"][end]) for end in ("lowerBound", "upperBound")]
        assert interval == pytest.approx([verdict[side]["accuracy_low"], verdict[side]["accuracy_high"]], abs=1e-4)
        for score in verdict[side]["per_class"]:
            recall = metrics["recall", f"{verdict[side]['side']}, {score['label']}"]
            assert float(recall["value"]) == pytest.approx(score["recall"], abs=1e-4)
    gap = metrics["accuracy difference", "llamacpp minus hf"]
    assert float(gap["value"]) == pytest.approx(verdict["difference"]["points"] / 100, abs=1e-4)
    stated = {item["name"]: item["value"] for item in model["properties"]}
    assert (stated["parity:verdict"], stated["parity:fed"]) == ("PASS", "rgb")
    assert stated["parity:test_images"] == str(verdict["n"])
    assert model["modelCard"]["modelParameters"]["architectureFamily"] == "idefics3"


@pytest.mark.slow
def test_a_signature_and_an_image_are_no_reason_to_make_a_bundle_again(
    place: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copied / "bundle"
    export = ("pipeline", "export", "small.yaml")
    (bundle / "model.sig").write_text("signed")
    image = {"content_digest": "2" * 64, "id": "sha256:3", "name": "parity-train"}
    monkeypatch.setenv("PARITY_IMAGE", json.dumps(image))
    result = command(*export, cwd=place)
    assert result.returncode == 0, result.stderr
    assert "unchanged" in result.stderr.splitlines()[-1]
    assert (bundle / "model.sig").read_text() == "signed"
    assert json.loads((bundle / "manifest.json").read_text())["image"] is None, "it was made outside a container"
    (bundle / "contract.json").unlink()
    result = command(*export, cwd=place)
    assert result.returncode == 0, result.stderr
    assert not (bundle / "model.sig").exists(), "what was signed is gone"
    assert json.loads((bundle / "manifest.json").read_text())["image"] == image
    verify_bundle(bundle)


@pytest.mark.parametrize("stated", ["{", "[]", '{"id": "x"}', '{"content_digest": 1, "id": "x", "name": "y"}'])
def test_an_image_that_is_not_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: str) -> None:
    monkeypatch.setenv("PARITY_IMAGE", stated)
    result = command("parity", "run", ROOT / "configs" / "tiny.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: the environment variable PARITY_IMAGE is ")
    assert not (tmp_path / "runs").exists()


def write_hub_like(folder: Path) -> None:
    """A small SmolVLM2 in the form in which the hub keeps one: its own classes, an output layer apart from the token
    table, the stock 4x4 plan, keys left out that the converter would guess."""
    import torch
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    text = {"model_type": "llama", "vocab_size": 49280, "hidden_size": 128, "intermediate_size": 256}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 100000.0}
    vision = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3}
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            text_config=text | {"pad_token_id": 2, "tie_word_embeddings": False},
            vision_config=vision | {"image_size": 256, "patch_size": 16},
            scale_factor=4,
            image_token_id=49190,
            tie_word_embeddings=False,
        )
    )
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["vision_config"]["layer_norm_eps"]
    (folder / "config.json").write_text(json.dumps(config))
    image_processor = {"image_processor_type": "SmolVLMImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    image_processor |= {"size": {"longest_edge": 1024}, "max_image_size": {"longest_edge": 256}}
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor))
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "SmolVLMProcessor", "image_seq_len": 16})
    )


@pytest.mark.slow
def test_a_smolvlm2_folder_as_the_hub_has_it_goes_the_whole_way(tmp_path: Path) -> None:
    """With the default training settings: LoRA, gradient checkpointing, accumulation."""
    write_hub_like(tmp_path / "model")
    recipe = "name: hub\ndataset: {n_per_class: 6}\nbase: {model: ./model}\ntrain: {epochs: 1}\nexport: {name: Hub}\n"
    (tmp_path / "hub.yaml").write_text(recipe + "contract: {max_new_tokens: 3}\n")
    result = command("parity", "run", "hub.yaml", cwd=tmp_path)
    verdict = json.loads((tmp_path / "runs" / "hub" / "parity" / "verdict.json").read_text())
    gates = {gate["stage"]: gate["status"] for gate in verdict["gates"]}
    same = ("provenance", "letterbox", "decoded", "pixels", "tiles", "tokens", "embeddings", "logits", "answers")
    assert {gates[stage] for stage in same} == {"green"}, result.stderr
    assert gates["accuracy"] == "undecided", "a model that has learnt nothing proves nothing"
    assert result.returncode == 3
    # The model knows nothing, so its answers are not to be judged; its probabilities are. Measured 0.02 at most.
    assert verdict["label_logprobs"]["largest"] < 0.2


# ---- every fault turns the verdict red, at its own stage -------------------------------------------------------------


@pytest.fixture(scope="module")
def contract(run: Path) -> Contract:
    return Contract.model_validate_json((run / "bundle" / "contract.json").read_text())


@pytest.fixture(scope="module")
def samples(run: Path, contract: Contract) -> list[Sample]:
    return load_samples(run / "dataset", contract)[0]


Answer = Callable[..., Verdict]


@pytest.fixture
def verdict_of(run: Path, contract: Contract, tmp_path: Path) -> Answer:
    """Run a GGUF pair over samples as llama.cpp's side and judge it by the saved HF side."""
    reference = read_results(run / "parity" / "hf.results.jsonl")
    good = read_results(run / "parity" / "llamacpp.results.jsonl").header

    def answer(model: Path, mmproj: Path, encoder: Encoder, samples: list[Sample]) -> Verdict:
        with LlamaCppPredictor(model, mmproj, encoder) as predictor:
            layout = {
                "prompt_token_ids": tuple(predictor.prompt_ids),
                "image_slots": tuple(predictor.image_slots),
            }
            header = Header.model_validate(good.model_dump() | layout)
            path = tmp_path / "llamacpp.results.jsonl"
            answer_all(OpenSide(predictor, header), samples, contract, path, Reporter(None, quiet=True))  # type: ignore[arg-type]
        candidate = read_results(path)
        return judge(reference, candidate, contract, [letterbox_gate()])

    return answer


@pytest.fixture(scope="module")
def pair(run: Path) -> tuple[Path, Path]:
    return run / "bundle" / "Small-Q8_0.gguf", run / "bundle" / "mmproj-Small-Q8_0.gguf"


@pytest.fixture(scope="module")
def encoder(run: Path, contract: Contract) -> Encoder:
    return make_encoder(contract, load_tokenizer(run / "merged"), read_geometry(run / "merged"))


def test_the_sound_pair_passes(
    verdict_of: Answer, pair: tuple[Path, Path], encoder: Encoder, samples: list[Sample]
) -> None:
    assert verdict_of(*pair, encoder, samples).status == "PASS"


def test_swapped_channels_are_caught_at_the_pixels_and_the_good_run_stays(place: Path, copied: Path) -> None:
    real = folder_hashes(copied / "parity")
    result = command("parity", "run", "small.yaml", "--feed", "bgr", cwd=place)
    assert result.returncode == 1
    assert folder_hashes(copied / "parity") == real
    verdict = json.loads((copied / "parity-bgr" / "verdict.json").read_text())
    assert verdict["first_bad_stage"] == "pixels"
    assert "received B,G,R where the contract says R,G,B" in verdict["cause"]
    assert "FAIL" in result.stdout


def test_a_letterbox_that_differs_on_one_side_is_caught_at_the_pixels(
    verdict_of: Answer, pair: tuple[Path, Path], encoder: Encoder, samples: list[Sample]
) -> None:
    class Resized(Sample):
        """The sample as a side with another resize would see it."""

        @property
        def rgb(self) -> np.ndarray:
            picture = Image.fromarray(super().rgb).resize((300, 280))
            other = Contract(image=ImageContract(resample="lanczos"))
            return np.asarray(letterbox(picture, other))

    verdict = verdict_of(*pair, encoder, [Resized(sample.folder, sample.record, sample.split) for sample in samples])
    assert (verdict.status, verdict.first_bad_stage) == ("FAIL", "pixels")


def test_a_broken_letterbox_is_caught_by_androids_own_pictures(
    run: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = [read_results(run / "parity" / f"{side}.results.jsonl") for side in ("hf", "llamacpp")]
    assert judge(*sides, contract, [letterbox_gate()]).status == "PASS"
    fixed_axis = letterbox_module._fixed_axis
    monkeypatch.setattr(
        letterbox_module, "_fixed_axis", lambda scaled, source, span: fixed_axis(scaled, source, span=128)
    )
    verdict = judge(*sides, contract, [letterbox_gate()])
    assert (verdict.status, verdict.first_bad_stage) == ("FAIL", "letterbox")


@pytest.mark.slow
def test_llama_cpps_own_program_prints_what_the_report_says(
    run: Path, verdict_of: Answer, pair: tuple[Path, Path], encoder: Encoder, samples: list[Sample],
    contract: Contract, tmp_path: Path,
) -> None:  # fmt: skip
    try:
        program = llama_tool(ROOT, "llama-mtmd-cli")
    except UserError:
        pytest.skip("llama-mtmd-cli is not built; `make tools` builds it")
    model, mmproj = (Path(shutil.copy(half, tmp_path)) for half in pair)
    held = read_gguf(model)
    name = "blk.0.ffn_down.weight"
    with open(model, "r+b") as file:
        # Blocks of Q8_0: a float16 scale, then 32 bytes.
        size = int(np.prod(held.tensors[name][1])) // 32 * 34
        file.seek(held.offsets[name])
        blocks = np.frombuffer(file.read(size), np.uint8).reshape(-1, 34).copy()
        blocks[:, :2] = (blocks[:, :2].copy().view(np.float16) * np.float16(-1.6)).view(np.uint8)
        file.seek(held.offsets[name])
        file.write(blocks.tobytes())
    verdict = verdict_of(model, mmproj, encoder, samples)
    reference, candidate = (
        read_results(folder / f"{side}.results.jsonl")
        for folder, side in ((run / "parity", "hf"), (tmp_path, "llamacpp"))
    )
    found = reproduction(verdict, pair_up(verdict, reference, candidate, None), Attached(contract))
    assert found
    assert found.expected != found.seen
    sample = next(sample for sample in samples if sample.key == found.key)
    shutil.copy(sample.path, tmp_path / found.file)

    def printed() -> str:
        words = shlex.split(found.command)
        assert words[0] == program.name
        return subprocess.run([program, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert printed().strip("\n") == found.seen.strip("\n")
    shutil.copy(pair[0], tmp_path)
    assert printed().strip("\n") == found.expected.strip("\n")


def test_a_changed_canvas_stops_the_run(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "dataset", tmp_path / "dataset")
    record = json.loads((tmp_path / "dataset" / "val.json").read_text())[0]
    pixels = np.asarray(Image.open(tmp_path / "dataset" / record["image_path"])).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(tmp_path / "dataset" / record["image_path"])
    with pytest.raises(Exception, match=record["image_id"]):
        load_samples(tmp_path / "dataset", Contract())


# ---- what a person sees ----------------------------------------------------------------------------------------------


def test_saved_results_are_judged_without_a_model(place: Path, run: Path) -> None:
    sides = [run / "parity" / f"{side}.results.jsonl" for side in ("hf", "llamacpp")]
    contract = run / "bundle" / "contract.json"
    result = command("parity", "judge", *sides, "--contract", contract, "--out", "again.json", cwd=place)
    assert result.returncode == 0, result.stderr
    assert json.loads((place / "again.json").read_text()) == json.loads((run / "parity" / "verdict.json").read_text())


@pytest.mark.slow
def test_evaluate_alone_agrees_with_the_verdict(place: Path, copied: Path) -> None:
    result = command("pipeline", "evaluate", "small.yaml", cwd=place)
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((copied / "evaluation" / "validation_results.json").read_text())
    assert (
        evaluation["accuracy"] == json.loads((copied / "parity" / "verdict.json").read_text())["reference"]["accuracy"]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "missing.yaml"), ["missing.yaml", "cannot be read"]),
        (("run", "small.yaml", "--set", "train.epoch=1"), ["train.epoch", "unknown key"]),
        (("run", "small.yaml", "--set", "dataset.source=photos"), ["path"]),
        (("run", "small.yaml", "--set", "dataset={source: photos, path: nowhere}"), ["nowhere", "not a folder"]),
        (("run", "small.yaml", "--set", "base.model=./nowhere"), ["nowhere"]),
        (("run", "small.yaml", "--set", "contract.labels=[a, a]"), ["more than once"]),
        (("judge", "small.yaml", "small.yaml"), ["small.yaml", "not a results file"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(place: Path, arguments: tuple[str, ...], words: list[str]) -> None:
    result = command("parity", *arguments, "--runs", "mistakes", cwd=place) if arguments[0] == "run" else command(
        "parity", *arguments, cwd=place
    )  # fmt: skip
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words), result.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_run_says_how_to_go_on(place: Path, sent: signal.Signals) -> None:
    # Whoever starts the tests in the background of a script has SIGINT ignored, and so have all children.
    command_line = ["env", "--default-signal=INT", BIN / "parity", "run", "small.yaml"]
    with subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True, cwd=place) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(sent)
        said = process.stderr.read()
    assert first.startswith("[1/9] dataset")
    assert process.returncode == 130
    assert said.endswith("interrupted: run the same command again to go on\n")
    assert "Traceback" not in said


def test_errors_are_listed_with_pictures_that_exist(run: Path) -> None:
    evaluation = json.loads((run / "evaluation" / "validation_results.json").read_text())
    wrong = evaluation["n"] - evaluation["correct"]
    assert len(evaluation["errors"]) == wrong > 0
    assert all((run / "dataset" / error["image_path"]).is_file() for error in evaluation["errors"])


def test_two_runs_in_one_folder_are_kept_apart(place: Path) -> None:
    from pipeline.core.files import lock

    with lock(place / "runs" / "small"):
        result = command("parity", "run", "small.yaml", cwd=place)
    assert result.returncode == 2
    assert "in use by another run" in result.stderr


@pytest.mark.parametrize("program", ["pipeline", "parity"])
def test_help_needs_none_of_the_heavy_packages(program: str) -> None:
    """Seconds are for the bench; what makes ``--help`` slow is importing these."""
    code = (
        f"import sys, {program}.cli as cli\n"
        "try: cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'llama_cpp', 'numpy', 'sklearn') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.rstrip().endswith("[]"), result.stdout
