"""The sweep: real pairs in processes of their own, killed, damaged and resumed; the fronts; what it says."""

import io
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import psutil
import pytest
from models import NAME, RECIPE, Pair, bundle_recipe, canvases, encoder_for
from PIL import Image
from rich.console import Console
from sides import cut
from typer.testing import CliRunner

import parity.studies.sweep.job as job_module
from parity import cli
from parity.compare.ladder import Compared, NoiseFloor, Spread, read_ladder
from parity.compare.runner import CANDIDATE, LADDER, REFERENCE, walk
from parity.compare.samples import Sample, load_samples
from parity.engines import OpenSide, hf
from parity.engines.hf import open_hf
from parity.engines.pair import open_llamacpp
from parity.judge.verdict import Status
from parity.results import Header, read_results
from parity.run import Run
from parity.studies.ship import ship_commands
from parity.studies.sweep.job import Job, parse_types
from parity.studies.sweep.picture import MARKERS, draw
from parity.studies.sweep.recording import LOG_PROBS, Recorded, record
from parity.studies.sweep.table import (
    Cost,
    PairFailed,
    PairScore,
    Sweep,
    fronts,
    markdown,
    pair_name,
    pareto,
    print_sweep,
    smallest_passing,
)
from parity.studies.sweep.worker import PairJob
from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes, write_json
from pipeline.core.gguf_types import TextType
from pipeline.core.progress import Advance, Reporter
from pipeline.dataset.records import Record
from pipeline.export import half
from pipeline.export.convert import convert_mmproj
from pipeline.export.half import Exporter
from pipeline.models.prediction import Prediction, Taps
from pipeline.workflow.build import Build

QUIET = Reporter(Console(), quiet=True)
IMAGES = 33
"""Two batches of the ladder and an image."""
CONTRACT = Contract(max_new_tokens=4)  # untrained, the model goes on to the end
FLAT = Spread(median=1e-3, p95=2e-3, largest=3e-3)
FLOOR = NoiseFloor(
    samples=IMAGES, embeddings_error=FLAT, logits_kl=FLAT, logits_kl_labels=FLAT, logits_max=FLAT,
    generated_differ=0, labels_differ=0,
)  # fmt: skip


class Loud(Reporter):
    """Keeps what is said, and calls ``at`` with the images done."""

    def __init__(self, at: Any = None) -> None:
        super().__init__(Console(), quiet=True)
        self.lines: list[str] = []
        self.seen: list[tuple[int, int, str]] = []
        self._at = at

    def say(self, stage: str, text: str) -> None:
        self.lines.append(f"{stage} {text}")

    @contextmanager
    def progress(self, stage: str, unit: str) -> Iterator[Advance]:
        def advance(done: int, total: int, note: str) -> None:
            if stage == "sweep":
                self.seen.append((done, total, note))
                if self._at:
                    self._at(done)

        yield advance


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 validation images and one to train on, in the plain format."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "images").mkdir()
    records = []
    for index, canvas in enumerate(canvases(IMAGES + 1)):
        Image.fromarray(canvas).save(folder / "images" / f"{index}.png", compress_level=1)
        label = CONTRACT.labels[index % len(CONTRACT.labels)]
        records.append({"image_id": f"image {index}", "image_path": f"images/{index}.png", "element": label})
    write_json(folder / "train.json", records[-1:])
    write_json(folder / "val.json", records[:-1])
    return folder


@pytest.fixture(scope="module")
def swept(
    tiny: Path, dataset: Path, phone_pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Job, Sweep]]:
    """Two pairs swept: Q8_0's files are those of the session's bundle, the vision half in F16 is converted."""

    def copy_text(model: Path, out: Path, text_type: TextType, *_: Any) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(phone_pair.text, out)

    def vision(model: Path, out: Path, mmproj_type: Any, *others: Any) -> None:
        if mmproj_type == "Q8_0":
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(phone_pair.mmproj, out)
        else:
            convert_mmproj(model, out, mmproj_type, *others)

    patch = pytest.MonkeyPatch()
    # The bundle's files state another contract, which is the checks' alone to see.
    patch.setattr(half, "check_text", lambda *_: None)
    patch.setattr(half, "check_mmproj", lambda *_: None)
    patch.setattr(half, "convert_text", copy_text)
    patch.setattr(half, "convert_mmproj", vision)
    exporter = Exporter(tiny, NAME, CONTRACT, RECIPE, threads=2)
    job = Job(exporter, dataset, floor=FLOOR, folder=tmp_path_factory.mktemp("sweep"), reporter=Loud())
    yield job, job.run(("Q8_0",), ("Q8_0", "F16"))
    patch.undo()


@pytest.mark.slow
def test_a_sweep_measures_every_pair_on_every_image(swept: tuple[Job, Sweep]) -> None:
    job, found = swept
    assert [pair.name for pair in found.pairs] == ["Q8_0 + Q8_0", "Q8_0 + F16"]
    assert not found.failed
    for pair in found.pairs:
        folder = job.folder / "pairs" / pair.name.replace(" + ", "-")
        rows, ladder = read_results(folder / CANDIDATE).rows, read_ladder(folder / LADDER)
        assert len(rows) == len(ladder.rows) == found.n == IMAGES
        assert (ladder.header.text_type, ladder.header.mmproj_type) == (pair.text_type, pair.mmproj_type)
        assert pair.kl_median == np.median([row.logits_kl for row in ladder.rows.values()])
        assert pair.total_ms == median(sum(row.ms.values()) for row in rows.values())
        assert pair.cost.answered == IMAGES
        # the files are mapped or copied whole, and are not all that the process has
        assert pair.cost.pair_bytes
        assert pair.size < pair.cost.pair_bytes < pair.cost.process_bytes
        # what was recorded is played back to the byte
        assert (folder / REFERENCE).read_bytes() == (job.folder / "reference" / REFERENCE).read_bytes()
    small, large = found.pairs
    assert small.text_bytes == large.text_bytes == (job.folder / "gguf" / f"{NAME}-Q8_0.gguf").stat().st_size
    assert small.mmproj_bytes < large.mmproj_bytes == (job.folder / "gguf" / f"mmproj-{NAME}-F16.gguf").stat().st_size
    assert Sweep.model_validate_json((job.folder / "sweep.json").read_bytes()) == found
    assert "Q8_0 + F16" in (job.folder / "sweep.md").read_text()


@pytest.mark.slow
def test_progress_tells_the_pair_and_counts_over_all_pairs(swept: tuple[Job, Sweep]) -> None:
    reporter = swept[0].reporter
    assert isinstance(reporter, Loud)
    assert [done for done, _, _ in reporter.seen] == [0, 16, 32, 33, 33, 49, 65, 66]
    assert {total for _, total, _ in reporter.seen} == {2 * IMAGES}
    assert reporter.seen[-1][2] == "pair 2 of 2: Q8_0 + F16"


@pytest.mark.slow
def test_the_recording_gives_what_the_live_reference_gives(swept: tuple[Job, Sweep], tmp_path: Path) -> None:
    job, _ = swept
    samples, sha256 = load_samples(job.dataset, CONTRACT)
    recorded = read_ladder(job.folder / "pairs" / "Q8_0-F16" / LADDER)
    gguf = job.folder / "gguf"
    with open_llamacpp(
        job.merged, gguf / f"{NAME}-Q8_0.gguf", gguf / f"mmproj-{NAME}-F16.gguf", CONTRACT, sha256
    ) as candidate:
        live = open_hf(job.merged, CONTRACT, sha256)
        about = Compared.model_validate(recorded.header.model_dump(include=set(Compared.model_fields)))
        walk(live, candidate, samples[:16], CONTRACT, about, tmp_path, QUIET)
    numbers = ("logits_kl", "logits_max")
    apart = dict.fromkeys(numbers, 0.0)
    for key, row in read_ladder(tmp_path / LADDER).rows.items():
        ours, theirs = row.model_dump(), recorded.rows[key].model_dump()
        for name in numbers:
            apart[name] = max(apart[name], abs(ours.pop(name) - theirs.pop(name)))
        assert ours == theirs
    # The recording is float32, the live side float64: measured 9.3e-8 nats and 5.1e-7 at the most.
    assert apart["logits_kl"] < 3e-7
    assert apart["logits_max"] < 1.5e-6


@pytest.mark.slow
def test_a_second_run_does_nothing(swept: tuple[Job, Sweep], monkeypatch: pytest.MonkeyPatch) -> None:
    job, found = swept
    monkeypatch.delattr(job_module, "run_worker")
    monkeypatch.setattr(hf, "open_hf", None)
    monkeypatch.setattr(half, "convert_text", None)
    reporter = Loud()
    assert replace(job, reporter=reporter).run(("Q8_0",), ("Q8_0", "F16")) == found
    assert len(reporter.lines) == 6  # reference, three files, two pairs
    assert all("unchanged" in line for line in reporter.lines)


@pytest.mark.slow
def test_a_damaged_file_is_one_sentence_and_the_others_go_on(
    swept: tuple[Job, Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, before = swept
    run_worker = job_module.run_worker

    def damage(todo: PairJob, advance: Advance) -> None:
        """The file was good when it was made and checked."""
        os.truncate(todo.model, todo.model.stat().st_size // 2)
        run_worker(todo, advance)

    monkeypatch.setattr(job_module, "run_worker", damage)
    found = replace(job, reporter=Loud()).run(("Q4_0", "Q8_0"), ("Q8_0",))
    (failed,) = found.failed
    assert (failed.text_type, failed.mmproj_type) == ("Q4_0", "Q8_0")
    assert "llama.cpp cannot load" in failed.error
    assert f"{NAME}-Q4_0.gguf" in failed.error
    assert "\n" not in failed.error
    assert found.pairs == before.pairs[:1]
    assert "Q4_0 + Q8_0 was not measured: llama.cpp cannot load" in (job.folder / "sweep.md").read_text()


@pytest.mark.slow
def test_a_killed_pair_goes_on_where_it_stopped(swept: tuple[Job, Sweep], tmp_path: Path) -> None:
    job, whole = swept
    folder = shutil.copytree(job.folder, tmp_path / "sweep")
    shutil.rmtree(folder / "pairs")
    (folder / "stages" / "pair-Q8_0-Q8_0.json").unlink()  # else what is there is not what it made, and is removed
    rows = folder / "pairs" / "Q8_0-Q8_0" / CANDIDATE

    def kill(done: int) -> None:
        if done == 16:
            (worker,) = psutil.Process().children()
            worker.send_signal(signal.SIGKILL)

    killed = replace(job, folder=folder, reporter=Loud(kill)).run(("Q8_0",), ("Q8_0",))
    assert not killed.pairs
    assert "SIGKILL" in killed.failed[0].error
    assert "run the same command again" in killed.failed[0].error
    first = rows.read_bytes()
    assert first.count(b"\n") >= 1 + 16
    reporter = Loud()
    found = replace(job, folder=folder, reporter=reporter).run(("Q8_0",), ("Q8_0",))
    done = next(done for done, *_ in reporter.seen if done)
    assert 16 <= done < IMAGES
    assert found.pairs[0].cost.answered == IMAGES - done
    assert rows.read_bytes().startswith(first[: first.rfind(b"\n") + 1])
    answers = {key: (row.text, row.label_logprobs) for key, row in read_results(rows).rows.items()}
    straight = read_results(job.folder / "pairs" / "Q8_0-Q8_0" / CANDIDATE).rows
    assert answers == {key: (row.text, row.label_logprobs) for key, row in straight.items()}
    assert found.pairs[0].kl_median == whole.pairs[0].kl_median


def test_a_pair_does_not_outlive_what_started_it() -> None:
    """Ctrl-C, or the death of the sweep, ends the process's standard input."""
    code = "import threading, time; from parity.studies.sweep import worker; "
    code += "threading.Thread(target=worker._end_with_parent, daemon=True).start(); "
    code += "print('up', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        assert process.poll() is None
        assert process.stdin
        process.stdin.close()
        assert process.wait(timeout=60) == 130


class Fake:
    """A reference whose answer can be told from the picture; counts what it is asked."""

    side = "hf"
    batch_size = 16

    def __init__(self) -> None:
        self.asked = 0

    def observe(self, pictures: Any) -> Iterator[tuple[Prediction, Taps]]:
        for picture in pictures:
            self.asked += 1
            seed = int.from_bytes(sha256_bytes(picture.tobytes())[:8].encode(), "big")
            generator = np.random.default_rng(seed)
            logprobs = {"fire": -0.5, "water": float("nan")}
            yield (
                Prediction(sha256_bytes(picture.tobytes()), " fire", (5,), "end", logprobs, ((5, 1.5),), {}),
                Taps([], (0.5,) * 3, (0.5,) * 3, [1, -1], generator.random((2, 3, 4), np.float32),
                     generator.random(50).astype(np.float32).astype(np.float64)),
            )  # fmt: skip


def test_recording_goes_on_and_starts_anew_where_an_array_is_lost(tiny: Path, dataset: Path, tmp_path: Path) -> None:
    samples, sha256 = load_samples(dataset, CONTRACT)
    samples = samples[:5]
    header = Header(
        side="hf", engine="transformers",
        contract_sha256=CONTRACT.digest, dataset_sha256=sha256, model={}, versions={}, device={}, runtime={},
        prompt_token_ids=(1, -1), image_slots=((1, 1),),
    )  # fmt: skip
    encoder = encoder_for(tiny, CONTRACT)

    def run(chosen: list[Sample]) -> int:
        fake = Fake()
        record(OpenSide(fake, header), chosen, 5, CONTRACT, tmp_path, QUIET)
        return fake.asked

    assert [run(samples[3:]), run(samples), run(samples)] == [2, 3, 0]
    cut(tmp_path / REFERENCE, 4, torn=9)  # killed while it wrote the last row
    assert run(samples) == 1
    (tmp_path / LOG_PROBS).unlink()
    assert run(samples) == 5
    pictures = [sample.rgb for sample in samples]
    played, live = list(Recorded(tmp_path, encoder).observe(pictures)), list(Fake().observe(pictures))
    for (prediction, taps), (wanted, stages) in zip(played, live, strict=True):
        assert np.array_equal(taps.embeddings, stages.embeddings)
        assert np.array_equal(taps.log_probs, stages.log_probs)
        assert prediction.text == wanted.text
        assert prediction.label_logprobs["fire"] == -0.5
        assert np.isnan(prediction.label_logprobs["water"])
    with pytest.raises(UserError, match=r"has no image [0-9a-f]{64}: delete the folder"):
        list(Recorded(tmp_path, encoder).observe([np.zeros((256, 256, 3), np.uint8)]))


def test_front_equals_brute_force() -> None:
    generator = random.Random(3)
    for _ in range(500):
        top = generator.choice([2, 4, 1000])  # few values: many ties
        points = [(generator.randint(0, top), generator.random() if top == 1000 else generator.randint(0, top))
                  for _ in range(generator.randint(0, 14))]  # fmt: skip
        brute = {
            index
            for index, (x, y) in enumerate(points)
            if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
        }
        front = pareto(points)
        assert set(front) == brute
        assert len(front) == len(brute)
        assert all(points[a] <= points[b] for a, b in pairwise(front))


def score(text: str, mmproj: str, megabytes: float, kl: float | None, ms: float, status: Status = "PASS") -> PairScore:
    return PairScore(
        text_type=text, mmproj_type=mmproj, text_bytes=int(megabytes * 1e6) - 1_000_000, mmproj_bytes=1_000_000,
        text_tensors={"F32": 9, text.removesuffix("_M"): 29},
        encode_ms=ms / 2, prefill_ms=ms / 4, generate_ms=ms / 4, total_ms=ms, images_per_second=1000 / ms,
        cost=Cost(process_bytes=600_000_000, pair_bytes=45_000_000, other_cores=0.0, load_average=1.0, answered=281),
        accuracy=0.918, points=0.36, low=-10.07, high=11.9, kl_median=kl, agreement=0.993, status=status,
        first_bad_stage=None if status == "PASS" else "accuracy", headline="not yet",
    )  # fmt: skip


def sweep_of(*pairs: PairScore, failed: tuple[PairFailed, ...] = ()) -> Sweep:
    front_kl, front_time = fronts(pairs)
    return Sweep(
        recipe="tiny", weights_sha256="2" * 64, contract_sha256="0" * 64, dataset_sha256="1" * 64, split="test", n=281,
        images=281,
        reference_accuracy=0.914, margin_points=3.0, machine={"cores": "2"}, pairs=pairs, failed=failed,
        front_kl=front_kl, front_time=front_time, smallest=smallest_passing(pairs),
    )  # fmt: skip


FIVE = (
    score("Q8_0", "F16", 11.6, 4e-5, 5.0),
    score("Q5_K_M", "Q8_0", 7.1, 9e-5, 6.0),
    score("Q4_0", "Q8_0", 6.2, 3e-4, 5.5, "FAIL"),
    score("Q4_K_M", "Q8_0", 6.5, 2e-4, 7.0, "INCONCLUSIVE"),
    score("Q6_K", "F16", 9.0, None, 7.0, "FAIL"),
)


def test_names_the_smallest_that_passes() -> None:
    found = sweep_of(*FIVE)
    assert found.sentence.startswith("smallest that passes: Q5_K_M + Q8_0, 7.1 MB, accuracy 91.8%")
    assert found.exit_code == 0
    assert found.front_kl == ("Q4_0 + Q8_0", "Q4_K_M + Q8_0", "Q5_K_M + Q8_0", "Q8_0 + F16")
    assert found.front_time == ("Q4_0 + Q8_0", "Q8_0 + F16")
    alike = (score("Q6_K", "F16", 7.1, 1e-5, 9.0), *FIVE)
    assert smallest_passing(alike) == "Q6_K + F16"


def test_says_that_none_passes() -> None:
    undecided, failing = sweep_of(*FIVE[2:]), sweep_of(FIVE[2], FIVE[4])
    assert undecided.sentence == "none of the 3 pairs passes; 1 is INCONCLUSIVE (Q4_K_M + Q8_0: not yet)"
    more = FIVE[3].model_copy(update={"needed": 1250})
    larger = score("Q5_K_M", "F16", 9.9, 1e-5, 9.0, "INCONCLUSIVE")
    found = sweep_of(larger, more, FIVE[2])
    assert found.sentence == (
        "none of the 3 pairs passes; 2 are INCONCLUSIVE (Q4_K_M + Q8_0: 1,250 images or more would tell, and there"
        " are 281)"
    )
    assert "INCONCLUSIVE\n" in printed(found)
    assert re.search(r"^ +needs 1,250$", printed(found), re.MULTILINE)
    assert "| INCONCLUSIVE needs 1,250 |" in markdown(found)
    # Enough images, and another reason: the verdict's own words.
    enough = sweep_of(FIVE[3].model_copy(update={"needed": 100}))
    assert enough.sentence.endswith("(Q4_K_M + Q8_0: not yet)")
    assert failing.sentence == "none of the 2 pairs passes"
    assert (undecided.exit_code, failing.exit_code, sweep_of().exit_code) == (3, 1, 1)
    assert undecided.smallest is None


def printed(found: Sweep, width: int = 80, ship: tuple[str, ...] = ()) -> str:
    out = io.StringIO()
    print_sweep(found, Console(file=out, width=width), ship)
    return out.getvalue()


def test_the_table_fits_80_columns_and_says_all() -> None:
    failed = PairFailed(text_type="Q4_K_M", mmproj_type="F16", error="llama.cpp cannot load it")
    wide = (*FIVE, score("Q5_K_M", "F16", 436.8 + 199, 0.00012, 37500.4, "INCONCLUSIVE"))
    found = sweep_of(*wide, failed=(failed,))
    table = [line for line in printed(found).splitlines() if " + " in line and ":" not in line]
    assert len(table) == 2 * len(wide)
    assert all(len(line) <= 80 and "…" not in line for line in table)
    for text in (printed(found), markdown(found)):
        for pair in wide:
            assert pair.name in text
        assert "INCONCLUSIVE" in text
        assert "Q4_K_M + F16 was not measured: llama.cpp cannot load it" in text
        assert " ".join(found.sentence.split()) in " ".join(text.split())
    rows = [line for line in markdown(found).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {rows[0].count("|")}
    assert len(rows) == 2 + len(wide)


def test_a_busy_machine_and_a_part_of_the_images_are_said() -> None:
    cost = FIVE[0].cost.model_copy(update={"other_cores": 1.3, "load_average": 5.25})
    found = sweep_of(FIVE[0].model_copy(update={"cost": cost}), FIVE[1]).model_copy(update={"n": 40})
    notes = " ".join(found.notes)
    assert "40 of 281 test images" in notes
    assert "beside 1 of 2 pairs other programs kept 1.3 to 1.3 of 2 cores at work (load average up to 5.2)" in notes
    assert not sweep_of(*FIVE).notes
    other = FIVE[1].model_copy(update={"text_tensors": {"F32": 9, "Q5_1": 24, "Q8_0": 5}})
    (note,) = sweep_of(other, FIVE[0]).notes
    assert note.startswith("Q5_K_M is a name alone: 256 does not divide the rows of this model")
    assert note.endswith("tensors of 9 F32, 24 Q5_1, 5 Q8_0")
    shown = printed(sweep_of(other, FIVE[0]))
    row = shown.splitlines().index(next(line for line in shown.splitlines() if line.startswith("Q5_K_M + Q8_0")))
    assert shown.splitlines()[row + 1].split() == ["(is", "Q5_1,", "Q8_0)"]
    assert "| Q5_K_M + Q8_0 (is Q5_1, Q8_0) |" in markdown(sweep_of(other, FIVE[0]))


@pytest.mark.parametrize("width", [80, 100])
def test_the_answer_comes_first_with_what_to_type(width: int) -> None:
    ship = tuple(ship_commands(Path("configs/tiny.yaml"), ["train.epochs=1", "contract.labels=[a, b]"], None))
    text = printed(sweep_of(*FIVE), width, ship)
    lines = text.splitlines()
    assert lines[0].startswith("smallest that passes: Q5_K_M + Q8_0, 7.1 MB")
    assert f"ship it:  {ship[0]}\n        or  {ship[1]}\n\npair " in text
    assert [line for line in lines if line != line.rstrip()] == []
    assert [line for line in lines if len(line) > width and "ship" not in line] == []
    assert "…" not in text
    # Nothing is broken inside a number or a name.
    words = " ".join(text.split())
    for whole in ("91.8%", "(+0.36", "11.6", "+0.4 (-10.1, +11.9)", "95 % interval", "best in speed"):
        assert whole in words
    assert "ship it" not in printed(sweep_of(*FIVE[2:]), width, ship)


def test_the_commands_that_ship_are_the_ones_to_type() -> None:
    made, typed = ship_commands(Path("configs/tiny.yaml"), ["train.epochs=1", "name=a$b"], None)
    assert shlex.split(made) == ["make", "parity-ship", "RECIPE=configs/tiny.yaml", "SET=train.epochs=1 name=a$$b"]
    program, command, *words = shlex.split(typed)
    assert (program, command) == ("parity", "ship")
    assert words == ["configs/tiny.yaml", "--set", "train.epochs=1", "--set", "name=a$b"]
    assert ship_commands(Path("my recipe.yaml"), [], Path("elsewhere")) == [
        "parity ship 'my recipe.yaml' --runs elsewhere"
    ]


def test_the_picture_names_every_pair_in_grey() -> None:
    found = sweep_of(*FIVE)
    image = Image.open(io.BytesIO(draw(found, "png")))
    assert image.width >= 1200
    colours = np.asarray(image.convert("RGB")).astype(int)
    assert np.ptp(colours, axis=-1).max() == 0  # black and white say all
    svg = draw(found, "svg").decode()
    for pair in FIVE:
        assert svg.count(f"<!-- {pair.name} -->") == (1 if pair.kl_median is None else 2)
    for word in ("PASS", "FAIL", "INCONCLUSIVE", "front"):
        assert f"<!-- {word} -->" in svg
    # three verdicts in two panels, each once more in the legend
    assert len(set(re.findall(r'id="PathCollection_\d+"', svg))) == 9
    assert len({marker for marker, _ in MARKERS.values()}) == len(get_args(Status))
    assert draw(found, "svg").decode() == svg
    assert draw(sweep_of(), "svg")


def test_types_are_checked() -> None:
    assert parse_types("Q8_0, Q4_0,Q8_0", TextType, "--text") == ("Q8_0", "Q4_0")
    assert parse_types("q8_0,q5_k_m, Q8_0,f16", TextType, "--text") == ("Q8_0", "Q5_K_M", "F16")
    with pytest.raises(UserError, match="--text 'Q8_0,Q3_K': 'Q3_K' is none of F32, F16, Q8_0"):
        parse_types("Q8_0,Q3_K", TextType, "--text")
    result = CliRunner().invoke(cli.app, ["sweep", "configs/tiny.yaml", "--mmproj", "Q6_K"])
    assert isinstance(result.exception, UserError)
    assert "--mmproj 'Q6_K'" in str(result.exception)


def test_samples_are_taken_evenly() -> None:
    record = Record(image_id="a", image_path="a.png", element="fire")
    samples = [Sample(Path(str(index)), record) for index in range(10)]
    assert [int(str(one.folder)) for one in job_module._choose(samples, 4)] == [0, 2, 5, 7]
    assert job_module._choose(samples, None) == job_module._choose(samples, 99) == samples
    with pytest.raises(UserError, match="--samples 0"):
        job_module._choose(samples, 0)


@pytest.mark.slow
def test_a_job_survives_its_file(swept: tuple[Job, Sweep]) -> None:
    data = (swept[0].folder / "pairs" / "Q8_0-F16" / "job.json").read_text()
    job = PairJob.model_validate_json(data)
    assert len(job.records) == IMAGES
    assert job.model_dump_json() == data
    assert pair_name(job.about.text_type, job.about.mmproj_type) == "Q8_0 + F16"


@pytest.mark.slow
def test_the_command_sweeps_a_run(swept: tuple[Job, Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, found = swept
    recipe = bundle_recipe().model_copy(update={"contract": CONTRACT})
    build = Build(recipe, tmp_path, QUIET, threads=2)
    build.done.update(ensure_merge="made", ensure_dataset="made")  # as if both stages had run
    (tmp_path / "merged").symlink_to(job.merged)
    (tmp_path / "dataset").symlink_to(job.dataset)
    shutil.copytree(job.folder, tmp_path / "sweep")
    monkeypatch.setattr(cli, "open_build", lambda *_: build)
    monkeypatch.setattr(Run, "ensure_floor", lambda _: FLOOR)
    monkeypatch.delattr(job_module, "run_worker")  # nothing is out of date
    result = CliRunner().invoke(cli.app, ["sweep", "configs/tiny.yaml", "--text", "Q8_0", "--mmproj", "Q8_0,F16"])
    assert result.exit_code == found.exit_code
    assert "Q8_0 + F16" in result.output
    assert " ".join(result.output.split()).startswith(found.sentence)
    assert Sweep.model_validate_json((tmp_path / "sweep" / "sweep.json").read_bytes()) == found
