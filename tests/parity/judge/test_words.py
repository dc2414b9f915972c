"""The headline of each outcome, what follows from what, and the judge as a function."""

from pathlib import Path

import pytest
from sides import (
    FIVE,
    assert_stops,
    change_header,
    change_ladder,
    change_rows,
    gate,
    ladder_of,
    pair,
    results,
    right,
    spoil,
    write_results,
)
from typer.testing import CliRunner

from parity import judge as judge_files
from parity import read_results
from parity.cli import app
from parity.judge.bundle import bundle_gate
from parity.judge.goldens import checks_of
from parity.judge.judge import judge, write_verdict
from parity.judge.verdict import GateResult
from parity.judge.words import follow
from parity.report.brief import what_ran
from parity.report.saved import read_saved
from parity.report.screen import render_text
from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.core.pinned import LLAMA_CPP_COMMIT

ROOT = Path(__file__).parent.parent.parent.parent


def test_headlines_are_sentences_for_whoever_ships() -> None:
    ours, theirs = pair()
    assert judge(ours, theirs, FIVE).headline == (
        "OK to ship: llama.cpp is at most 1.9 points worse (3 allowed), 200 images"
    )
    worse = results(spoil(right(200), 20), "llamacpp")
    assert judge(ours, worse, FIVE).headline == (
        "Do not ship: llama.cpp's accuracy differs by more than 3 points (accuracy 100.0 to 90.0 %)"
    )
    assert judge(*pair(50), FIVE).headline.startswith("Undecided: 50 images are too few to rule out that llama.cpp")
    assert judge(ours, theirs, Contract(max_new_tokens=9)).headline.startswith("Nothing was judged: Hugging Face ran")


def test_an_engine_set_up_otherwise_changes_no_input() -> None:
    """Behind a red runtime the logits follow; pixels that differ as well are a fault of their own."""
    ours, theirs = pair()
    theirs = change_header(theirs, runtime=theirs.header.runtime | {"n_ctx": 17})
    theirs = change_rows(theirs, lambda row: {"rgb_sha256": "0" * 64})
    theirs = change_rows(theirs, lambda row: {"label": "metal", "text": " metal"})
    verdict = judge(ours, theirs, FIVE)
    assert verdict.first_bad_stage == "runtime"
    assert gate(verdict, "pixels").fix
    assert gate(verdict, "accuracy").cause == "follows from S1 pixels"


def test_what_is_green_is_left_as_it_is() -> None:
    walked = judge(*pair(), FIVE).gates
    assert follow(walked) == list(walked)


def test_the_screen_fits_a_terminal_of_24_lines() -> None:
    ours, theirs = pair()
    ladder = change_ladder(ladder_of(ours, theirs), lambda row: {})
    text = render_text(judge(ours, theirs, FIVE, checks_of(FIVE), ladder), 80, verbose=False)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 21  # and two of what to do next, and the prompt
    assert lines[-1].startswith("╰")
    assert any(line.startswith("╭─ PASS ─") for line in lines)
    assert "  ✓ S4 embeddings  60 % of the limit" in text
    assert "  ✓ S1 pixels      0 of 200 differ" in text


def test_the_commit_named_is_the_one_that_is_built() -> None:
    pins = (ROOT / "docker" / "versions.env").read_text().splitlines()
    stated = dict(line.split("=", 1) for line in pins if line.startswith("LLAMA_"))
    version = stated["LLAMA_ARCHIVE"].removeprefix("llama_cpp_python-").removesuffix(".tar.gz")
    assert {version: stated["LLAMA_CPP_COMMIT"]} == LLAMA_CPP_COMMIT


def test_images_that_are_needed_are_told_as_photos_too() -> None:
    """One photo in five is a validation image."""
    ours, theirs = (change_header(side, photos=250, split="validation") for side in pair(50))
    verdict = judge(ours, theirs, FIVE)
    assert verdict.difference.needed == 125
    text = " ".join(render_text(verdict, verbose=False).replace("│", " ").split())
    assert "bad builds through (625 labelled photos, split as these 250 are)" in text


def test_what_ran_is_named() -> None:
    ours, theirs = pair()
    runtime = {"files": "a.gguf + mmproj-a.gguf", "text_types": "Q8_0", "mmproj_types": "F16"}
    theirs = change_header(theirs, runtime=theirs.header.runtime | runtime)
    assert what_ran(judge(ours, theirs, FIVE)) == (
        "elements", "a.gguf + mmproj-a.gguf (Q8_0, vision F16)", "llama.cpp 0c1e570 on CPU", "some",
    )  # fmt: skip
    of_a_recipe = change_header(theirs, runtime=theirs.header.runtime | {"recipe": "mine"})
    assert what_ran(judge(ours, of_a_recipe, FIVE))[0] == "mine"
    named = change_header(theirs, versions={"llama_commit": "0c1e57098bba"})
    assert what_ran(judge(ours, named, FIVE))[2] == "llama.cpp 0c1e570 on CPU"
    for labels, name, called in (
        (("cat", "dog"), "elements", "cat, dog"),
        (("cat", "dog", "emu", "fox"), "elements", "cat, dog, emu and 1 more"),
        (("cat", "dog"), "animals", "animals"),
    ):
        own = Contract(name=name, labels=labels)
        ours, theirs = (results(right(50, own), side, own) for side in ("hf", "llamacpp"))
        assert what_ran(judge(ours, theirs, own))[0] == called


def test_a_bundle_is_held_against_by_its_hashes(tmp_path: Path) -> None:
    for name in ("a.gguf", "mmproj-a.gguf"):
        (tmp_path / name).write_text(name)
    ours, theirs = pair()
    ran = {"model": sha256_bytes(b"a.gguf"), "mmproj": sha256_bytes(b"mmproj-a.gguf")}
    theirs = change_header(theirs, model=ran)
    green = bundle_gate(theirs.header, tmp_path)
    assert (green.status, green.detail) == ("green", "llama.cpp ran a.gguf and mmproj-a.gguf, by their SHA-256")
    (tmp_path / "mmproj-a.gguf").write_text("another")
    verdict = judge(ours, theirs, FIVE, [bundle_gate(theirs.header, tmp_path)])
    assert_stops(verdict, "REFUSED", 4, "bundle", "llama.cpp did not run mmproj-a.gguf of")
    (tmp_path / "mmproj-a.gguf").unlink()
    with pytest.raises(UserError, match="does not hold a text half and an mmproj"):
        bundle_gate(theirs.header, tmp_path)
    with pytest.raises(UserError, match="is no folder: give the bundle"):
        bundle_gate(theirs.header, tmp_path / "none")


def test_each_of_several_runs_is_held_against_the_bundle(tmp_path: Path) -> None:
    """The worst is judged, and the page is of it; another build that answers better is no way around it."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name in ("a.gguf", "mmproj-a.gguf"):
        (bundle / name).write_text(name)
    ran = {"model": sha256_bytes(b"a.gguf"), "mmproj": sha256_bytes(b"mmproj-a.gguf")}
    ours, theirs = pair()
    worse = results(spoil(right(200), 30), "llamacpp")
    sides = {
        "hf": ours,
        "other": theirs,
        "own": change_header(theirs, model=ran),
        "worse": change_header(worse, model=ran),
    }
    paths = {name: tmp_path / f"{name}.jsonl" for name in sides}
    for name, side in sides.items():
        write_results(side, paths[name])

    def judged(*names: str) -> int:
        words = ["judge", *(str(paths[name]) for name in ("hf", *names)), "--bundle", str(bundle)]
        done = CliRunner().invoke(app, [*words, "--report", str(tmp_path / "page.html")])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code

    assert judged("own", "own") == 0
    assert judged("other", "own") == 4
    assert judged("own", "other") == 4
    assert judged("worse", "own") == 1
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "accuracy 100.0 to 85.0 %" in page
    assert '<h2 id="h-flips">Flips <span class="muted">30</span></h2>' in page


def test_a_bundle_that_was_held_against_is_held_against_again(tmp_path: Path) -> None:
    """A green check that somebody wrote into the verdict is not believed."""
    folder, bundle = tmp_path / "run" / "parity", tmp_path / "run" / "bundle"
    folder.mkdir(parents=True)
    bundle.mkdir()
    for name in ("a.gguf", "mmproj-a.gguf"):
        (bundle / name).write_text(name)
    sides = pair()
    for side in sides:
        write_results(side, folder / f"{side.header.side}.results.jsonl")
    ours, theirs = (read_results(folder / f"{name}.results.jsonl") for name in ("hf", "llamacpp"))
    tried = [*checks_of(FIVE, theirs.header), bundle_gate(theirs.header, bundle)]
    refused = judge(ours, theirs, FIVE, tried)
    assert refused.status == "REFUSED"
    write_verdict(refused, folder / "verdict.json")
    assert read_saved(folder).verdict.status == "REFUSED"
    forged = GateResult(stage="bundle", status="green", detail="llama.cpp ran a.gguf and mmproj-a.gguf")
    write_verdict(judge(ours, theirs, FIVE, [*tried[:-1], forged]), folder / "verdict.json")
    with pytest.raises(UserError, match="is stale: it says PASS, and the files beside it give REFUSED"):
        read_saved(folder)


def test_a_phones_letterbox_is_not_tried_here() -> None:
    _, theirs = pair()
    (here,) = checks_of(FIVE, theirs.header)
    (phone,) = checks_of(FIVE, change_header(theirs, side="device").header)
    assert here.status == "green"
    assert (phone.status, phone.detail) == ("not measured", f"on device; on this machine {here.detail}")


def test_the_package_is_a_function(tmp_path: Path) -> None:
    ours, theirs = pair()
    paths = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for side, path in zip((ours, theirs), paths, strict=True):
        write_results(side, path)
    verdict = judge_files(*paths)
    assert verdict.status == "PASS"
    assert judge_files(*map(read_results, paths)) == verdict
    assert judge_files(*paths, margin=1.0).status == "INCONCLUSIVE"
    html = verdict._repr_html_()
    assert "OK to ship" in html
    assert "<script" not in html
    hostile = verdict.model_copy(update={"headline": "<img src=x onerror=hacked()>"})
    assert "<img" not in hostile._repr_html_()
