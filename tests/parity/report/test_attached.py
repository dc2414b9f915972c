"""What lies beside the results: GGUF metadata, tensors to download, and a command that shows the difference."""

import base64
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reported import HOSTILE, failing, passing, save
from sides import FIVE, change_header, results, right, spoil
from typer.testing import CliRunner

from parity.cli import app
from parity.judge.judge import judge
from parity.judge.verdict import Verdict
from parity.report.attached import Attached, GgufFacts, find_attached, write_ggufs
from parity.report.page import render_page
from parity.report.reproduction import Reproduction, reproduction
from parity.report.rows import pair_up
from parity.results import Results
from pipeline.contract import Contract
from pipeline.core.toolchain import load_gguf

FILES = "Five-Q8_0.gguf + mmproj-Five-Q8_0.gguf"


def write_gguf(path: Path, architecture: str) -> Path:
    writer = load_gguf().GGUFWriter(path, architecture)
    if architecture == "clip":
        writer.add_array("clip.vision.image_mean", [0.5, 0.25, 0.125])
        writer.add_bool("clip.has_vision_encoder", True)
        writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    else:
        writer.add_token_list(["a"] * 40)
        writer.add_chat_template("x" * 300)
        writer.add_uint32("llama.block_count", 4)
    writer.add_tensor("one", np.zeros((2, 32), np.float32))
    writer.add_tensor("two", np.zeros((2, 32), np.float16))
    writer.add_tensor("three", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_metadata_are_those_of_the_files(tmp_path: Path) -> None:
    halves = [write_gguf(tmp_path / f"{name}.gguf", name) for name in ("llama", "clip")]
    write_ggufs(halves, tmp_path)
    text, vision = find_attached(tmp_path, Contract(), tmp_path / "report.html").ggufs
    assert (text.file, text.tensors) == ("llama.gguf", "2 F32, 1 F16")
    assert text.keys == {
        "general.architecture": "llama",
        "llama.block_count": "4",
        "tokenizer.chat_template": "x" * 200 + "… (300 characters)",
    }
    assert vision.keys == {
        "general.architecture": "clip",
        "clip.vision.image_mean": "[0.5, 0.25, 0.125]",
        "clip.has_vision_encoder": "true",
        "clip.vision.attention.layer_norm_epsilon": "9.99999997e-07",
    }


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"halves": [{}]}', b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_left_out(content: bytes | None, tmp_path: Path) -> None:
    if content is None:
        (tmp_path / "ggufs.json").mkdir()
    else:
        (tmp_path / "ggufs.json").write_bytes(content)
    assert find_attached(tmp_path, Contract(), tmp_path / "page.html").ggufs == ()


def test_the_page_has_them(tmp_path: Path) -> None:
    made = failing()
    run = save(made, tmp_path / "a run")
    write_ggufs([write_gguf(tmp_path / f"{name}.gguf", name) for name in ("llama", "clip")], run / "parity")
    key, other = list(made.pictures)[:2]
    worst = run / "parity" / "worst"
    worst.mkdir()
    for name in (key[:16], "0" * 16):  # the second is of no image of this run
        (worst / f"{name}.npz").write_bytes(b"x" * 2_340_000)
    page = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(run)], catch_exceptions=False).exit_code == 0
    assert CliRunner().invoke(app, ["report", str(run), "--out", str(page)], catch_exceptions=False).exit_code == 0
    inside, outside = (path.read_text(encoding="utf-8") for path in (run / "parity" / "report.html", page))
    assert f'<a href="worst/{key[:16]}.npz" download>' in inside
    assert f'<a href="a%20run/parity/worst/{key[:16]}.npz" download>' in outside
    for html in (inside, outside):
        assert "2.3 MB" in html
        assert html.count(" download>") == 1
        assert f"{other[:16]}.npz" not in html
        assert "clip.vision.image_mean" in html
        assert "[0.5, 0.25, 0.125]" in html
    assert 'id="attached"' not in render_page(made.verdict, made.reference, made.candidate, None, made.image_of)


def test_what_a_gguf_says_is_no_html() -> None:
    clean = passing()
    hostile = GgufFacts(file="<b>.gguf", tensors="1 <b>", keys={"<script>": "<img src=x onerror=hacked=9>"})
    page = render_page(
        clean.verdict, clean.reference, clean.candidate, None, clean.image_of, attached=Attached(FIVE, (hostile,))
    )
    assert "&lt;img src=x onerror=hacked=9&gt;" in page
    assert "<img src=x" not in page
    assert "<b>.gguf" not in page


# ---- the command -----------------------------------------------------------------------------------------------------


def judged(contract: Contract, candidate: Results | None = None, **runtime: object) -> tuple[Verdict, Results, Results]:
    answers = right(200, contract)
    ran = {"fed": "rgb", "files": FILES} | runtime
    reference = results(answers, "hf", contract, runtime=ran)
    candidate = candidate or results(spoil(answers, 60, contract, 10), "llamacpp", contract, runtime=ran)
    return judge(reference, candidate, contract), reference, candidate


def again(contract: Contract, attached: Attached | None = None, **runtime: object) -> Reproduction | None:
    verdict, *sides = judged(contract, **runtime)
    assert verdict.status == "FAIL"
    return reproduction(verdict, pair_up(verdict, *sides, None), attached or Attached(contract))


def words_of(found: Reproduction | None) -> list[str]:
    assert found
    return shlex.split(found.command)


def value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_the_command_does_what_the_app_does() -> None:
    found = again(FIVE)
    words = words_of(found)
    assert found
    assert (found.expected, found.seen) != ("", "")
    assert found.expected != found.seen
    assert words[:6] == ["llama-mtmd-cli", "-m", "Five-Q8_0.gguf", "--mmproj", "mmproj-Five-Q8_0.gguf", "--image"]
    assert words[6] == f"{found.image_id}.png"
    runtime = FIVE.runtime
    assert value(words, "--ctx-size") == str(runtime.n_ctx)
    assert value(words, "--batch-size") == str(runtime.n_batch)
    assert value(words, "--cache-type-k") == runtime.type_k
    assert value(words, "--cache-type-v") == runtime.type_v
    assert value(words, "--flash-attn") == "on"
    assert value(words, "-n") == str(FIVE.max_new_tokens)
    assert value(words, "-p").replace(r"\n", "\n") == FIVE.prompt
    assert "--override-kv" not in words


def test_a_prompt_with_a_marker_and_a_backslash_of_its_own() -> None:
    own = FIVE.model_copy(update={"prompt_template": r"<img>C:\new" + "\n{labels}:", "media_marker": "<img>"})
    assert value(words_of(again(own)), "-p") == r"<__media__>C:\\new\nwater, land, fire, wood, metal:"


def test_a_first_token_that_the_file_adds_and_the_app_does_not() -> None:
    adds = (GgufFacts(file="a", tensors="", keys={"tokenizer.ggml.add_bos_token": "true"}),)
    words = words_of(again(FIVE, Attached(FIVE, adds)))
    assert value(words, "--override-kv") == "tokenizer.ggml.add_bos_token=bool:false"
    own = FIVE.model_copy(update={"add_bos": True})
    assert "--override-kv" not in words_of(again(own, Attached(own, adds)))


def test_without_a_difference_that_llama_cpp_shows_there_is_no_command() -> None:
    bgr = FIVE.model_copy(update={"image": FIVE.image.model_copy(update={"channel_order": "bgr"})})
    assert again(bgr, fed="bgr") is None  # a file is decoded to R, G, B
    overview = FIVE.model_copy(update={"tiling": FIVE.tiling.model_copy(update={"plan": "overview"})})
    assert again(overview) is None
    assert again(FIVE, files="") is None  # a phone's results need not say
    verdict, reference, candidate = judged(FIVE)
    pairs = pair_up(verdict, reference, candidate, None)
    assert reproduction(verdict.model_copy(update={"status": "PASS"}), pairs, Attached(FIVE)) is None
    assert reproduction(verdict.model_copy(update={"first_bad_stage": "pixels"}), pairs, Attached(FIVE)) is None
    same = [replace(pair, candidate=pair.reference) for pair in pairs]
    assert reproduction(verdict, same, Attached(FIVE)) is None


def test_the_page_offers_the_picture() -> None:
    made = failing()
    sides = [change_header(side, runtime={"fed": "rgb", "files": FILES}) for side in (made.reference, made.candidate)]
    changes = {"candidate_header": sides[1].header, "first_bad_stage": "embeddings"}
    verdict = made.verdict.model_copy(update=changes)
    page = render_page(verdict, *sides, made.ladder, made.image_of, attached=Attached(HOSTILE))
    found = reproduction(verdict, pair_up(verdict, *sides, made.ladder), Attached(HOSTILE))
    assert found
    link = re.search(r'<a href="data:image/png;base64,([^"]+)" download="([^"]+)">', page)
    assert link
    assert base64.b64decode(link[1]) == made.pictures[found.key]
    assert link[2] == f"{found.image_id}.png"
