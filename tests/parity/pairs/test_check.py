"""``parity check`` from its command line to its files: any pair, anybody's pictures, a verdict and its causes."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants
import pytest
from anypair import SETTINGS, Tiny, damaged, picture, reworded, tiny_pair, trained_further, write_photos
from models import Pair, encoder_for
from PIL import Image
from session import Once
from sides import cut
from trying import broken_language
from typer.testing import CliRunner, Result

import parity
from parity.cli import app
from parity.compare.ladder import read_ladder
from parity.compare.measure import measure
from parity.compare.photos import load_photos
from parity.compare.runner import observe
from parity.engines.hf import hf_predictor
from parity.engines.llamacpp import LlamaCppPredictor
from parity.judge.causes import CAUSES, read_causes
from parity.judge.verdict import Verdict
from parity.results import read_results
from parity.terms import MARKER
from pipeline.contract import load_contract
from pipeline.core.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS, EXIT_USAGE, UserError
from pipeline.core.files import write_json

CLEAN = [(112, 84), (84, 84), (140, 112), (112, 140)]
"""Pictures that need no change of shape for Qwen2.5-VL."""
FLAGS = ["--cache-type-k", "f32", "--cache-type-v", "f32", "-fa", "off", "-t", "1", "-n", "4"]
FILES = {
    "terms.json", "noise.json", "hf.results.jsonl", "llamacpp.results.jsonl", "ladder.jsonl", "causes.json",
    "verdict.json", "verdict.txt", "report.html", "junit.xml", "summary.md", "ggufs.json",
}  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """A check that was run, and how."""

    folder: Path
    photos: Path
    result: Result


def run(pair: Tiny, photos: Path, out: Path, *options: str) -> Result:
    arguments = [pair.folder, pair.text, pair.mmproj, photos, "--out", out, *FLAGS, *options]
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def verdict_in(folder: Path) -> Verdict:
    return Verdict.model_validate_json((folder / "verdict.json").read_text())


@pytest.fixture(scope="module")
def qwen(once: Once) -> Tiny:
    return tiny_pair(once, "qwen2.5-vl")


@pytest.fixture(scope="module")
def clean(qwen: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    place = tmp_path_factory.mktemp("clean")
    photos = write_photos(place / "photos", CLEAN)
    return Ran(place / "out", photos, run(qwen, photos, place / "out"))


@pytest.fixture
def copied(clean: Ran, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean.folder, tmp_path / "copy"))


def test_a_clean_pair_is_red_nowhere(clean: Ran) -> None:
    """Four pictures are too few to show that 95 % of the tokens agree."""
    assert clean.result.exit_code == EXIT_INCONCLUSIVE, clean.result.output
    verdict = verdict_in(clean.folder)
    assert verdict.status == "INCONCLUSIVE"
    assert verdict.first_bad_stage == "agreement"
    states = {gate.stage: gate.status for gate in verdict.gates}
    assert states.pop("agreement") == "undecided"
    assert set(states.values()) == {"green"}
    assert "INCONCLUSIVE" in clean.result.output
    assert {path.name for path in clean.folder.iterdir() if path.is_file() and path.name[0] != "."} >= FILES
    causes = read_causes(clean.folder / CAUSES)
    assert causes
    assert (causes.differ, causes.found) == (0, ())
    assert verdict.n == len(CLEAN)


def test_a_second_run_does_nothing(qwen: Tiny, clean: Ran) -> None:
    before = {path: path.read_bytes() for path in clean.folder.glob("*.jsonl")}
    again = run(qwen, clean.photos, clean.folder)
    assert again.exit_code == clean.result.exit_code
    assert again.output.count("unchanged: ") == 2
    assert {path: path.read_bytes() for path in clean.folder.glob("*.jsonl")} == before


def test_judge_and_report_say_the_same(clean: Ran, tmp_path: Path) -> None:
    sides = [str(clean.folder / f"{side}.results.jsonl") for side in ("hf", "llamacpp")]
    judged = CliRunner().invoke(app, ["judge", *sides, "--out", str(tmp_path / "verdict.json")])
    assert judged.exit_code == clean.result.exit_code, judged.output
    again, own = verdict_in(tmp_path), verdict_in(clean.folder)
    assert again.model_copy(update={"causes": own.causes}) == own
    reported = CliRunner().invoke(app, ["report", str(clean.folder), "--out", str(tmp_path / "page.html")])
    assert reported.exit_code == 0, reported.output
    assert "INCONCLUSIVE" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("name", ["llamacpp.results.jsonl", "ladder.jsonl", "causes.json"])
def test_an_edited_file_is_made_again(qwen: Tiny, clean: Ran, copied: Path, name: str) -> None:
    path = copied / name
    own = path.read_bytes()
    path.write_bytes(own.replace(b'"tried":', b'"tried": ') if name == "causes.json" else own.replace(b"0", b"1", 1))
    assert path.read_bytes() != own
    again = run(qwen, clean.photos, copied)
    assert again.exit_code == clean.result.exit_code
    assert f"{name} changed since it was made: made again" in " ".join(again.output.split())
    rows = read_results(copied / "llamacpp.results.jsonl").rows
    assert [row.text for row in rows.values()] == [
        row.text for row in read_results(clean.folder / "llamacpp.results.jsonl").rows.values()
    ]


@pytest.mark.slow
def test_other_limits_judge_again_without_a_model(qwen: Tiny, clean: Ran, copied: Path) -> None:
    """Terms are part of what was asked: other limits are another check, and the judge takes either."""
    sides = [str(copied / f"{side}.results.jsonl") for side in ("hf", "llamacpp")]
    judged = CliRunner().invoke(app, ["judge", *sides, "--noise-factor", "0.0001"])
    assert "judged with gate.noise_factor 0.0001" in " ".join(judged.output.split())


PADDED = [(160, 120), (150, 100), (126, 84), (60, 60)]


@pytest.fixture(scope="module")
def padded(qwen: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    place = tmp_path_factory.mktemp("padded")
    photos = write_photos(place / "photos", PADDED)
    return Ran(place / "out", photos, run(qwen, photos, place / "out", "--layers"))


def test_the_verdict_names_the_causes(padded: Ran) -> None:
    assert padded.result.exit_code == EXIT_FAIL, padded.result.output
    verdict = verdict_in(padded.folder)
    assert verdict.first_bad_stage == "tiles"
    assert (
        verdict.headline
        == "Do not ship: llama.cpp resizes or cuts the pictures differently (0 of 4 images answered alike)"
    )
    assert verdict.causes
    assert [(cause.kind, cause.pictures) for cause in verdict.causes.found] == [
        ("padding", 2), ("resize", 1), ("limits", 1),
    ]  # fmt: skip
    assert verdict.cause.startswith("150x100: Hugging Face stretches it to") or verdict.cause.startswith("160x120: ")
    page = (padded.folder / "report.html").read_text()
    assert "Give llama.cpp --image-min-tokens 4" in page
    assert "Causes" in page
    assert "FAIL" in padded.result.output


def test_the_python_call_returns_the_verdict(qwen: Tiny, clean: Ran, copied: Path) -> None:
    verdict = parity.check(
        qwen.folder, qwen.text, qwen.mmproj, clean.photos, out=copied, max_new_tokens=4, quiet=True, **SETTINGS
    )
    own = verdict_in(copied)
    assert verdict == own
    assert verdict.exit_code == EXIT_INCONCLUSIVE


def test_labels(qwen: Tiny, tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        write_photos(tmp_path / "photos" / label, [(84, 84), (112, 84)] if label == "cat" else [(84, 112)])
    done = run(qwen, tmp_path / "photos", tmp_path / "out", "--labels", "cat,dog")
    verdict = verdict_in(tmp_path / "out")
    assert verdict.labels == ("cat", "dog")
    assert {"answers", "accuracy", "classes"} < {gate.stage for gate in verdict.gates}
    assert not {"agreement", "score"} & {gate.stage for gate in verdict.gates}
    terms = json.loads((tmp_path / "out" / "terms.json").read_text())
    assert terms["prompt"] == "Classify this image as one of: cat, dog. Answer with one word."
    # A model of random weights never says a label.
    assert verdict.reference.unanswered == verdict.candidate.unanswered == 3
    assert done.exit_code == verdict.exit_code != EXIT_PASS
    assert verdict.first_bad_stage in ("answers", "accuracy", "classes")


def test_expected_answers_are_scored(qwen: Tiny, clean: Ran, tmp_path: Path) -> None:
    said = {row.image_id: row.text for row in read_results(clean.folder / "hf.results.jsonl").rows.values()}
    names = sorted(said)
    rows = [{"file_name": name, "question": "Describe this image.", "expected": said[name]} for name in names[:2]]
    rows += [{"file_name": name, "question": "Describe this image.", "expected": "no such words"} for name in names[2:]]
    shutil.copytree(clean.photos, tmp_path / "photos")
    write_json(tmp_path / "photos" / "labels.json", rows)
    run(qwen, tmp_path / "photos", tmp_path / "out", "--answers", "expected", "--prompt", "{question}")
    verdict = verdict_in(tmp_path / "out")
    score = next(gate for gate in verdict.gates if gate.stage == "score")
    assert score.detail.startswith("exact_match 50.00 and 50.00 of 100 over 4 pictures: +0.00 points")
    assert score.status == "undecided"  # four pictures
    assert [row.score for row in read_results(tmp_path / "out" / "hf.results.jsonl").rows.values()] == [1, 1, 0, 0]


def test_a_raw_prompt_is_sent_as_it_is(once: Once, tiny: Path, exact_pair: Pair, tmp_path: Path) -> None:
    """A model without a chat template has no other way."""
    photos = write_photos(tmp_path / "photos", [(256, 256)] * 2)
    pair = Tiny(tiny, exact_pair.text, exact_pair.mmproj)
    assert "has no chat template: give the whole prompt with --raw" in refused(pair, photos, tmp_path / "out")
    prompt = f"<|im_start|>User:{MARKER}What is this?<end_of_utterance>\nAssistant:"
    run(pair, photos, tmp_path / "out", "--raw", "--prompt", prompt)
    verdict = verdict_in(tmp_path / "out")
    assert verdict.candidate_header.runtime["prompt"] == prompt
    assert str(verdict.reference_header.runtime["prompt"]).startswith("<|im_start|>User:<image>What is")
    said = refused(pair, photos, tmp_path / "out", "--raw", "--prompt", "no marker")
    assert f"a raw prompt has {MARKER} once" in said


def one_sentence(done: Result) -> str:
    """What is said of a mistake; the program's entry point prints it, without a traceback, and ends with code 2."""
    assert isinstance(done.exception, UserError), (done.exception, done.output)
    assert "\n" not in str(done.exception)
    return str(done.exception)


def refused(pair: Tiny, photos: Path, out: Path, *options: str) -> str:
    return one_sentence(run(pair, photos, out, *options))


def test_halves_of_two_models(qwen: Tiny, exact_pair: Pair, clean: Ran, tmp_path: Path) -> None:
    mixed = Tiny(qwen.folder, qwen.text, exact_pair.mmproj)
    said = refused(mixed, clean.photos, tmp_path / "out")
    assert f"{exact_pair.mmproj} is of another model: v.blk.0." in said
    mixed = Tiny(qwen.folder, exact_pair.text, qwen.mmproj)
    assert f"{exact_pair.text} is of another model: blk.0." in refused(mixed, clean.photos, tmp_path / "out")


def test_a_pair_of_another_family_than_the_model(
    qwen: Tiny, tiny: Path, exact_pair: Pair, clean: Ran, tmp_path: Path
) -> None:
    said = refused(Tiny(tiny, qwen.text, qwen.mmproj), clean.photos, tmp_path / "out")
    assert f"{qwen.text} is of another model: blk.0.ffn_down.weight is " in said
    said = refused(Tiny(qwen.folder, exact_pair.text, exact_pair.mmproj), clean.photos, tmp_path / "out")
    assert f"{exact_pair.text} is of another model: blk.0." in said


def test_a_pair_of_another_fine_tune(qwen: Tiny, clean: Ran, tmp_path: Path) -> None:
    """Nothing in a foreign GGUF says what it was made from; its weights do."""
    other = Tiny(qwen.folder, trained_further(qwen.text, tmp_path / "text.gguf"), qwen.mmproj)
    said = refused(other, clean.photos, tmp_path / "out")
    assert re.search(
        rf"{other.text} does not hold the weights of {qwen.folder}: 15 of 15 matrices differ, blk\.\d\.\w+\.weight by"
        r" 1\.\d\d% where F32 rounds by 0\.00%; give the model that it was converted from",
        said,
    )
    stale = Tiny(qwen.folder, qwen.text, trained_further(qwen.mmproj, tmp_path / "mmproj.gguf"))
    assert f"{stale.mmproj} does not hold the weights of" in refused(stale, clean.photos, tmp_path / "out")
    assert not (tmp_path / "out" / "verdict.json").exists()


@pytest.mark.slow
def test_two_tensors_in_each_others_place(once: Once, clean: Ran, tmp_path: Path) -> None:
    done = run(broken_language(once), clean.photos, tmp_path / "out", "--limit", "2")
    assert done.exit_code == EXIT_FAIL
    verdict = verdict_in(tmp_path / "out")
    assert verdict.first_bad_stage == "logits"
    assert verdict.headline.startswith("Do not ship: llama.cpp's language half computes different logits (")
    assert "the language half" in verdict.cause
    assert verdict.causes
    (cause,) = verdict.causes.found
    assert re.search(r"blk\.1\.ffn_\w+\.weight \(\d+\.\d%\), .* of 15 matrices compared are not", cause.detail)
    assert cause.fix == "convert text.gguf again from this model's folder"


def test_files_given_in_another_order(qwen: Tiny, clean: Ran, tmp_path: Path) -> None:
    turned = Tiny(qwen.folder, qwen.mmproj, qwen.text)
    assert "llama.cpp cannot load" in refused(turned, clean.photos, tmp_path / "out")
    done = CliRunner().invoke(app, ["check", str(qwen.folder), str(qwen.text), str(clean.photos)])
    assert done.exit_code == EXIT_USAGE
    assert "behind MODEL come TEXT, MMPROJ, PHOTOS" in " ".join(done.output.split())
    missing = Tiny(qwen.folder, tmp_path / "none.gguf", qwen.mmproj)
    assert "none.gguf is not a file: give the two GGUFs" in refused(missing, clean.photos, tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "words"),
    [({"model_type": "llama"}, "reads text only"), ({"model_type": "t5"}, "is an encoder-decoder")],
)
def test_a_model_of_another_kind(qwen: Tiny, clean: Ran, tmp_path: Path, config: dict[str, str], words: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((qwen.folder / "model.safetensors").read_bytes())
    write_json(folder / "config.json", config)
    said = refused(Tiny(folder, qwen.text, qwen.mmproj), clean.photos, tmp_path / "out")
    assert words in said


def test_an_id_of_the_hub_without_a_network(
    qwen: Tiny, clean: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = refused(Tiny(Path("no-one/no-model"), qwen.text, qwen.mmproj), clean.photos, tmp_path / "out")
    assert "no-one/no-model is no folder here, and cannot be had from the hub" in said


def test_a_gguf_that_llama_cpp_dies_of(qwen: Tiny, clean: Ran, tmp_path: Path) -> None:
    deadly = damaged(qwen.mmproj, tmp_path / "mmproj.gguf", keys={"clip.vision.attention.head_count": 0})
    said = refused(Tiny(qwen.folder, qwen.text, deadly), clean.photos, tmp_path / "out")
    assert f"llama.cpp cannot run {qwen.text} with {deadly}: it dies by SIG" in said


def test_a_template_that_raises(qwen: Tiny, clean: Ran, tmp_path: Path) -> None:
    template = (qwen.folder / "chat_template.jinja").read_text()
    text = reworded(qwen.text, tmp_path / "t.gguf", template, "{{ raise_exception('pictures come first') }}")
    said = refused(Tiny(qwen.folder, text, qwen.mmproj), clean.photos, tmp_path / "out")
    assert "the chat template of t.gguf fails in llama.cpp: " in said
    assert "pictures come first" in said


def test_a_template_that_loses_the_question(qwen: Tiny, clean: Ran, tmp_path: Path) -> None:
    template = (qwen.folder / "chat_template.jinja").read_text()
    text = reworded(qwen.text, tmp_path / "t.gguf", template, "Hello.{% for message in messages %}{% endfor %}")
    said = refused(Tiny(qwen.folder, text, qwen.mmproj), clean.photos, tmp_path / "out")
    assert "the chat template of t.gguf writes the question 0 times: give the whole prompt with --raw" in said


def test_a_prompt_without_room_in_the_context(qwen: Tiny, clean: Ran, tmp_path: Path) -> None:
    said = refused(qwen, clean.photos, tmp_path / "out", "--ctx-size", "16")
    assert "the longest prompt and its answer are " in said
    assert "and the context has 16: give --ctx-size" in said


def test_a_photo_that_only_one_side_decodes(qwen: Tiny, tmp_path: Path) -> None:
    """Pillow reads WebP, libmtmd (stb_image) does not, and so does no app that hands it the file."""
    photos = write_photos(tmp_path / "photos", [(84, 84), (112, 84)])
    Image.open(photos / "0-84x84.png").save(photos / "a.webp", lossless=True)
    (photos / "0-84x84.png").unlink()
    assert "libmtmd cannot decode" in refused(qwen, photos, tmp_path / "out")


def test_a_photo_too_wide_for_a_processor(qwen: Tiny, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", [(1000, 4), (84, 84)])
    said = refused(qwen, photos, tmp_path / "out")
    assert "picture of 1000x4" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metric", "bleu"], "--metric scores the answers of a column: name it with --answers"),
        (["--labels", "cat,dog", "--answers", "a"], "answers are labels or are scored by a metric, not both"),
        (["--image-min-tokens", "9", "--image-max-tokens", "4"], "image_min_tokens 9 is more than image_max_tokens 4"),
        (["-ctk", "q3"], "type_k"),
        (["-ctv", "q8_0"], "type_v q8_0 needs flash attention"),
        (["--agreement", "1.5"], "open_gate.agreement"),
        (["--labels", "cat,dog"], "lies in no folder named after a label (cat, dog)"),
        (["--answers", "a"], "--answers takes a column, and the folder has no table"),
        (["--shard", "1"], "one shard is one of --shards N"),
        (["--adapter", "none"], "cannot be read"),
    ],
)
def test_options_that_make_no_sense(qwen: Tiny, clean: Ran, tmp_path: Path, options: list[str], words: str) -> None:
    done = run(qwen, clean.photos, tmp_path / "out", *options)
    assert isinstance(done.exception, UserError)
    assert words in str(done.exception)


# ---- killed, and under a contract ------------------------------------------------------------------------------------


def test_a_killed_run_goes_on(qwen: Tiny, clean: Ran, copied: Path) -> None:
    """As a kill leaves it: no record of the stage, and files that end after two pictures."""
    for record in (copied / "stages").iterdir():
        record.unlink()
    for name in ("verdict.json", "causes.json"):
        (copied / name).unlink()
    times = {}
    for name in ("hf.results.jsonl", "llamacpp.results.jsonl", "ladder.jsonl"):
        cut(copied / name, 2, torn=20)
        times[name] = (copied / name).read_bytes()
    again = run(qwen, clean.photos, copied)
    assert again.exit_code == clean.result.exit_code, again.output
    assert "answered again" not in again.output
    # The two pictures that were done stand as they were, with the milliseconds that they took.
    for name, before in times.items():
        kept = before.splitlines()[1:3]
        assert kept == (copied / name).read_bytes().splitlines()[1:3]
        assert kept == (clean.folder / name).read_bytes().splitlines()[1:3]
    assert verdict_in(copied).gates == verdict_in(clean.folder).gates


@pytest.mark.slow
def test_rows_that_were_changed_in_between_are_answered_again(qwen: Tiny, clean: Ran, copied: Path) -> None:
    (copied / "stages" / "ladder.json").unlink()
    cut(copied / "llamacpp.results.jsonl", 2)
    path = copied / "llamacpp.results.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"text":"', b'"text":"x', 1))
    again = run(qwen, clean.photos, copied)
    assert "llamacpp.results.jsonl is answered again" in " ".join(again.output.split())
    assert verdict_in(copied).gates == verdict_in(clean.folder).gates


@pytest.mark.slow
def test_under_a_contract_it_is_what_a_run_finds(tiny: Path, phone_pair: Pair, bundle: Path, tmp_path: Path) -> None:
    """A SmolVLM under an app's contract: the same canvases, answers and distances as `parity run` makes of them."""
    contract = load_contract(bundle / "contract.json")
    for label in contract.labels[:3]:
        write_photos(tmp_path / "photos" / label, [(300, 200)] if label == contract.labels[0] else [(200, 300)])
    for place, label in enumerate(contract.labels[1:3]):  # copies would be left out
        Image.fromarray(picture(120, 90 + place, seed=place + 5)).save(tmp_path / "photos" / label / "0-200x300.png")
    out, pair = tmp_path / "out", Tiny(tiny, phone_pair.text, phone_pair.mmproj)
    arguments = [pair.folder, pair.text, pair.mmproj, tmp_path / "photos", "--contract", bundle / "contract.json"]
    done = CliRunner().invoke(app, ["check", *map(str, arguments), "--out", str(out), "-t", "1"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    verdict = verdict_in(out)
    assert verdict.labels == contract.labels
    assert {gate.stage for gate in verdict.gates} >= {"letterbox", "generation", "answers", "accuracy"}
    ours, theirs = (read_results(out / f"{side}.results.jsonl").rows for side in ("hf", "llamacpp"))
    ladder = read_ladder(out / "ladder.jsonl").rows
    photos, _ = load_photos(tmp_path / "photos", contract.prompt, contract.labels, image=contract.image)
    assert len(ours) == len(theirs) == len(ladder) == len(photos) == 3
    encoder = encoder_for(tiny, contract)
    reference = observe(hf_predictor(tiny, encoder), photos, contract)
    with LlamaCppPredictor(pair.text, pair.mmproj, encoder, threads=1, tapped=True) as side:
        candidate = observe(side, photos, contract)
    for (a, taps), (b, others) in zip(reference, candidate, strict=True):
        for wanted, found in ((a, ours[a.key]), (b, theirs[a.key])):
            assert found == wanted.model_copy(update={"ms": found.ms})
        assert ladder[a.key] == measure((a, taps), (b, others), None)


def test_a_contract_brings_its_own_prompt(
    tiny: Path, phone_pair: Pair, bundle: Path, clean: Ran, tmp_path: Path
) -> None:
    pair = Tiny(tiny, phone_pair.text, phone_pair.mmproj)
    contract = ["--contract", str(bundle / "contract.json")]
    said = refused(pair, clean.photos, tmp_path / "out", *contract, "--prompt", "What?")
    assert "--contract has the prompt and the labels already" in said
    said = refused(pair, clean.photos, tmp_path / "out", *contract)
    assert "contract.json says max_new_tokens, type_k, type_v, flash_attn already" in said
