"""The self-test plants what it says, sees what the gates see, and fails where a fault is not caught."""

import json
import random
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import Pair, canvases
from PIL import Image
from rich.console import Console
from sides import FIVE, change_rows, ladder_of, results, right, spoil

from parity import cli
from parity.compare.ladder import Compared, read_ladder
from parity.compare.runner import LADDER, measure_floor, walk
from parity.compare.samples import Sample
from parity.engines.hf import open_hf
from parity.engines.pair import open_llamacpp
from parity.results import read_results
from parity.studies.selftest import plant as selftest
from parity.studies.selftest.bench import Bench, Evidence
from parity.studies.selftest.faults import BAD_INPUT, CONTROLS, FAULTS, NOWHERE, Fault
from parity.studies.selftest.forge import Gguf
from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.core.progress import Reporter
from pipeline.core.toolchain import load_gguf
from pipeline.dataset.records import Record

ROOT = Path(__file__).parents[3]
QUIET = Reporter(Console(), quiet=True)
DATASET = sha256_bytes(b"dataset")
NAMED = {fault.name: fault for fault in (*FAULTS, *CONTROLS)}


@pytest.fixture(scope="module")
def bench(tiny: Path, phone_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A run of the untrained model over 12 canvases. It knows no labels, so both sides' rows are given the right ones:
    what is left of the gates is then as in a run that passes."""
    folder, contract = tmp_path_factory.mktemp("selftest"), Contract()
    samples = []
    for number, canvas in enumerate(canvases(12)):
        Image.fromarray(canvas).save(folder / f"{number}.png")
        truth = contract.labels[number % len(contract.labels)]
        key = sha256_bytes(canvas.tobytes())
        record = Record(image_id=f"{number:02}", image_path=f"{number}.png", element=truth, rgb_sha256=key)
        samples.append(Sample(folder, record))
    exact = open_hf(tiny, contract, DATASET)
    floor = measure_floor(
        exact.predictor, open_hf(tiny, contract, DATASET, "bfloat16").predictor, samples, contract, QUIET
    )
    about = Compared(
        contract_sha256=contract.digest, dataset_sha256=DATASET,
        text_type="Q8_0", mmproj_type="Q8_0", kv_type="q4_0/q4_0", floor=floor,
    )  # fmt: skip
    with open_llamacpp(tiny, phone_pair.text, phone_pair.mmproj, contract, DATASET) as candidate:
        walk(exact, candidate, samples, contract, about, folder, QUIET)
    sides = [
        change_rows(
            read_results(folder / f"{side}.results.jsonl"), lambda row: {"text": f" {row.truth}", "label": row.truth}
        )
        for side in ("hf", "llamacpp")
    ]
    saved = Evidence(sides[0], sides[1], read_ladder(folder / LADDER), contract).with_candidate(sides[1].rows)
    scratch = tmp_path_factory.mktemp("scratch")
    return Bench(contract, tiny, tiny, phone_pair.text, phone_pair.mmproj, saved, samples, scratch)


def clean(n: int) -> Evidence:
    """A made run that passes."""
    about = {"weights_sha256": DATASET, "versions": {"llama-cpp-python": "0.3.36"}}
    ours, theirs = results(right(n), **about), results(right(n), "llamacpp", **about)
    return Evidence(ours, theirs, ladder_of(ours, theirs), FIVE)


@pytest.mark.parametrize(
    "name",
    [
        "other weights stated", "other context window, stated", "JPEG in the PNG's place", "half-pixel offset",
        "float64 geometry", "EXIF transposed", "BGR", "shuffled rows", "other mean", "other tile plan",
        "missing overview", "extra newline", "marker as text", "BOS added", "other vocabulary", "a merge missing",
        "vision layers swapped", "vision rows reordered", "language layers swapped", "labels by number",
        "mislabelled row", "truncated GGUF",
    ],
)  # fmt: skip
def test_caught_at_its_stage(bench: Bench, name: str) -> None:
    finding = selftest.try_fault(NAMED[name], bench)
    assert (finding.found, finding.caught) == (NAMED[name].stage, True), finding.detail


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_nothing_planted_is_nothing_found(bench: Bench, control: Fault) -> None:
    verdict = control.plant(bench).judged()
    red = [gate.stage for gate in verdict.gates if gate.red]
    assert [stage for stage in red if stage not in ("accuracy", "classes")] == []  # the model knows no labels


@pytest.mark.parametrize(
    "name",
    ["other contract stated", "other dataset stated", "other llama.cpp stated", "letterbox not Android's",
     "shuffled rows", "shuffled answers", "a label is never answered", "a rare label is never answered",
     "worse than the last release"],
)  # fmt: skip
def test_faults_of_rows_alone(bench: Bench, name: str) -> None:
    made = replace(bench, saved=clean(400))
    finding = selftest.try_fault(NAMED[name], made)
    assert (finding.found, finding.caught) == (NAMED[name].stage, True), finding.detail


def test_what_is_not_caught_says_where_it_was_seen(bench: Bench) -> None:
    missed = selftest.try_fault(Fault("n", "r", "logits", NAMED["BGR"].plant), bench)
    assert (missed.caught, missed.found, missed.status) == (False, "pixels", "FAIL")
    assert missed.value is not None
    wrong_sentence = replace(NAMED["truncated GGUF"], sentence="no such words")
    assert not selftest.try_fault(wrong_sentence, bench).caught
    assert not selftest.try_fault(replace(NAMED["truncated GGUF"], stage="logits"), bench).caught


@dataclass(frozen=True)
class Opened:
    """What the command asks of a build."""

    root: Path
    reporter: Reporter = QUIET

    @property
    def recipe(self) -> Any:
        return type("Recipe", (), {"name": "made"})


@pytest.mark.parametrize(("stage", "code"), [("provenance", 0), ("runtime", 1)])
def test_exit_code_and_files(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    code: int,
) -> None:
    made = replace(bench, saved=clean(200))
    monkeypatch.setattr(selftest, "open_bench", lambda *_: made)
    monkeypatch.setattr(selftest, "CONTROLS", ())
    monkeypatch.setattr(selftest, "FAULTS", (replace(NAMED["other weights stated"], stage=stage),))
    monkeypatch.setattr(cli, "open_build", lambda *_: Opened(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        cli.selftest(Path("made.yaml"))
    assert stopped.value.code == code
    data = json.loads((tmp_path / "selftest" / "selftest.json").read_text(encoding="utf-8"))
    assert data["passed"] == (code == 0)
    assert data["findings"][0]["found"] == "provenance"
    assert data["resamplings"] == {"PASS": 50}
    assert _table((tmp_path / "selftest" / "selftest.md").read_text(encoding="utf-8"))[0][0] == "other weights stated"
    said = capsys.readouterr().out
    assert ("1 of 1" if code == 0 else "0 of 1") in said


def test_a_fault_that_does_nothing_fails_the_self_test(bench: Bench) -> None:
    made = replace(bench, saved=clean(200))
    nothing = Fault("nothing", "no fault at all", "logits", lambda bench: bench.saved)
    finding = selftest.try_fault(nothing, made)
    assert (finding.found, finding.status, finding.caught) == (NOWHERE, "PASS", False)


def test_resamplings_of_a_clean_pair_pass_and_of_a_broken_one_fail() -> None:
    ours, theirs = results(spoil(right(200), 10)), results(spoil(right(200), 11), "llamacpp")
    sound = Evidence(ours, theirs, ladder_of(ours, theirs), FIVE)
    counts = selftest.resample(sound)
    assert sum(counts.values()) == 50
    assert not {"FAIL", "REFUSED"} & counts.keys()
    drawn = selftest.resampled(sound, random.Random(0))
    assert len(drawn.reference.rows) == 200
    names = [row.image_id.partition(" ")[0] for row in drawn.reference.rows.values()]
    assert 110 < len(set(names)) < 140  # 200 draws of 200 leave 1/e of them out: 126 expected
    bad = results(spoil(right(200), 40), "llamacpp")
    assert selftest.resample(replace(sound, candidate=bad, ladder=ladder_of(ours, bad))) == {"FAIL": 50}


def test_forging_changes_nothing_else(bench: Bench, tmp_path: Path) -> None:
    source = Gguf(bench.mmproj)
    path = source.forged(tmp_path / "m.gguf", lambda draft: draft.set("clip.vision.image_mean", 0.1, 0.2, 0.3))
    reader = load_gguf().GGUFReader(path)  # type: ignore[attr-defined]
    assert reader.fields["clip.vision.image_mean"].contents() == pytest.approx([0.1, 0.2, 0.3])
    before, after = (np.frombuffer(file.read_bytes(), np.uint8) for file in (bench.mmproj, path))
    assert 0 < int((before != after).sum()) <= 12
    path = source.forged(tmp_path / "s.gguf", lambda draft: draft.swap("v.blk.0.", "v.blk.1."))
    old, new = ({t.name: t.data for t in load_gguf().GGUFReader(file).tensors} for file in (bench.mmproj, path))  # type: ignore[attr-defined]
    for name, data in new.items():
        number = re.match(r"v\.blk\.(\d)\.", name)
        other = name.replace(f".{number[1]}.", f".{1 - int(number[1])}.", 1) if number else name
        np.testing.assert_array_equal(data, old[other])


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(UserError, match="no fault 'gamma'"):
        selftest.chosen(["BGR", "gamma"])
    assert [fault.name for fault in selftest.chosen(["BGR"])] == ["BGR"]


def test_names_and_stages_are_sound() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) >= 40
    assert {fault.stage for fault in FAULTS} == {
        "provenance", "runtime", "letterbox", "decoded", "pixels", "tiles", "tokens", "embeddings", "logits",
        "generation", "answers", "accuracy", "classes", "baseline", BAD_INPUT,
    }  # fmt: skip


def _table(text: str) -> list[list[str]]:
    """The cells of the first markdown table, without its head."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_documentation_has_every_fault() -> None:
    page = (ROOT / "docs" / "correctness.md").read_text(encoding="utf-8")
    part = re.search(r"^#+ [^\n]*\bfaults\b[^\n]*\n(.*?)(?=^#+ |\Z)", page, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    assert part, "the page has no heading with the word faults"
    assert [tuple(row[:3]) for row in _table(part[1])] == [(one.name, one.reality, one.stage) for one in FAULTS]
