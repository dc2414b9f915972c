"""The main job from a model and a bundle that are there: what it loads, locks, divides and takes from other runs."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from models import bundle_recipe
from rich.console import Console
from sides import reseal
from typer.testing import CliRunner

import parity.engines.hf
import parity.engines.llamacpp
import parity.report.files
import parity.run
from parity import cli
from parity.judge.verdict import Verdict
from parity.results import read_results
from parity.run import Division, open_run, run
from parity.studies.ship import parse_pair, swept_pair
from parity.studies.sweep.table import Sweep
from pipeline.core.errors import UserError
from pipeline.core.files import lock, sha256_bytes
from pipeline.core.progress import Reporter
from pipeline.core.provenance import weights_digest
from pipeline.dataset.embedded import make_embedded
from pipeline.export.bundle import text_name
from pipeline.recipe import Recipe
from pipeline.workflow.build import Build

IMAGES = 10


@pytest.fixture
def build(tiny: Path, bundle: Path, tmp_path: Path) -> Iterator[Build]:
    """A run whose dataset, model and bundle are there, in a folder that it has locked."""
    recipe = bundle_recipe()
    root = tmp_path / "runs" / recipe.name
    root.mkdir(parents=True)
    (root / "merged").symlink_to(tiny)
    (root / "bundle").symlink_to(bundle)
    make_embedded(root / "dataset", recipe.contract, 2, test_fraction=1.0)
    with lock(root) as held:
        yield opened(recipe, root, held)


def opened(recipe: Recipe, root: Path, held: Any = None, reporter: Reporter | None = None) -> Build:
    quiet = Reporter(Console(stderr=True), quiet=True)
    build = Build(recipe, root, reporter or quiet, threads=1, held=held)
    build.done.update({f"ensure_{stage}": f"{stage} made" for stage in ("dataset", "base", "train", "merge", "export")})
    return build


def test_each_model_is_loaded_once(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Counter[str]()
    load, init = parity.engines.hf.hf_predictor, parity.engines.llamacpp.LlamaCppPredictor.__init__

    def hf(folder: Any, encoder: Any, device: str, dtype: Any) -> Any:
        loaded[dtype] += 1
        return load(folder, encoder, device, dtype)

    def llama(self: Any, *arguments: Any, **options: Any) -> None:
        loaded["llama.cpp"] += 1
        init(self, *arguments, **options)

    monkeypatch.setattr(parity.engines.hf, "hf_predictor", hf)
    monkeypatch.setattr(parity.engines.llamacpp.LlamaCppPredictor, "__init__", llama)
    verdict = run(build)
    assert verdict is not None
    assert (verdict.n, verdict.split) == (IMAGES, "test")
    assert loaded == {"float32": 1, "bfloat16": 1, "llama.cpp": 1}
    assert len(list((build.root / "parity" / "worst").glob("*.npz"))) == 5
    loaded.clear()
    assert run(opened(build.recipe, build.root)) == verdict
    assert not loaded  # nothing is out of date


@pytest.mark.parametrize("division", [None, pytest.param(Division(shards=2), marks=pytest.mark.slow)])
def test_the_folder_is_locked_until_the_verdict_is_written(
    build: Build, division: Division | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if division:
        for shard in (1, 2):
            run(opened(build.recipe, build.root), division=Division(shards=2, shard=shard))
    seen = []
    write = parity.report.files.write_reports

    def reports(*arguments: Any) -> None:
        with pytest.raises(UserError, match="in use by another run"):
            lock(build.root)
        assert (build.root / "parity" / "worst").is_dir()
        seen.append(True)
        write(*arguments)

    monkeypatch.setattr(parity.report.files, "write_reports", reports)
    assert run(build, division=division)
    assert seen == [True]


def test_shards_of_another_bundle_or_feed_give_no_verdict(build: Build, bundle: Path) -> None:
    for shard in (1, 2):
        run(opened(build.recipe, build.root), division=Division(shards=2, shard=shard))
    shutil.copytree(build.root / "parity", build.root / "parity-bgr")
    with pytest.raises(UserError, match=r"runtime\.fed is 'rgb' there and 'bgr' here; delete the folder"):
        run(opened(build.recipe, build.root), fed_order="bgr", division=Division(shards=2))
    (build.root / "bundle").unlink()
    shutil.copytree(bundle, build.root / "bundle")
    with open(build.root / "bundle" / text_name(build.recipe), "ab") as file:
        file.write(b"another")
    with pytest.raises(UserError, match=r"llamacpp.results.jsonl is of another run than this one: model\.model is '"):
        run(opened(build.recipe, build.root), division=Division(shards=2))
    assert not (build.root / "parity" / "verdict.json").exists()


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change every row, and the closing line with it."""
    lines = path.read_bytes().splitlines(keepends=True)
    for number in range(1, len(lines) - 1):
        row = json.loads(lines[number])
        change(row)
        lines[number] = json.dumps(row, separators=(",", ":")).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    reseal(path)


@pytest.mark.slow
def test_rows_that_were_edited_are_answered_again(build: Build) -> None:
    screen = StringIO()
    reporter = Reporter(Console(file=screen, width=200))
    first = run(build)
    assert first
    parity = build.root / "parity"
    rows = {side: (parity / f"{side}.results.jsonl").read_bytes() for side in ("hf", "llamacpp")}
    theirs = {row.key: row.label for row in read_results(parity / "hf.results.jsonl").rows.values()}

    def as_truth(row: dict[str, Any]) -> None:
        row["truth"] = theirs[row["key"]] or "fire"

    def as_hf(row: dict[str, Any]) -> None:
        row["label"], row["text"] = theirs[row["key"]], f" {theirs[row['key']]}"

    def elsewhere(row: dict[str, Any]) -> None:
        row["key"] = row["rgb_sha256"] = sha256_bytes(row["key"].encode())

    for side, change in (("hf", as_truth), ("llamacpp", as_hf), ("hf", elsewhere)):
        edit(parity / f"{side}.results.jsonl", change)
        again = run(opened(build.recipe, build.root, reporter=reporter))
        assert again
        assert again.gates == first.gates
        assert f"{side}.results.jsonl" in screen.getvalue()
        screen.seek(0)
        screen.truncate()
        kept = (parity / f"{side}.results.jsonl").read_bytes()
        assert [json.loads(line) | {"ms": 0} for line in kept.splitlines()[:-1]] == [
            json.loads(line) | {"ms": 0} for line in rows[side].splitlines()[:-1]
        ]


def test_a_shard_gives_the_folder_free_for_the_others(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: Any) -> None:
        lock(build.root).close()

    monkeypatch.setattr(parity.run, "_do_shard", work)
    assert run(build, division=Division(shards=2, shard=1)) is None


def test_a_worker_with_one_core_runs_one_thread(build: Build, tmp_path: Path) -> None:
    """The contract's own rule would take two at least."""
    with open_run(build) as job:
        job._divided(threads=1)(job.samples[:2], tmp_path / "shard")
    for side in ("hf", "llamacpp"):
        header = read_results(tmp_path / "shard" / f"{side}.results.jsonl").header
        assert header.runtime["n_threads"] == 1, side
        assert header.split == "test"


def test_ray_options_reach_ray(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("parity.compare.cluster.run_on_ray", lambda *arguments: given.extend(arguments))
    monkeypatch.setattr(parity.run, "_keep_worst", lambda *_: None)
    monkeypatch.setattr(parity.run.Run, "judge", lambda *_: None)
    run(build, division=Division(workers=3, shards=6, address="auto", cpus=2, gpus=0.5))
    work, samples, folder, _, workers, expected, *rest = given
    assert (len(samples), folder, workers, rest) == (IMAGES, build.root / "parity", 3, [6, "auto", 2, 0.5])
    assert expected.candidate["runtime"]["fed"] == "rgb"
    assert work.args[-1] == 2  # threads of each side


def test_the_noise_floor_of_the_same_model_is_taken_from_another_run(build: Build) -> None:
    with open_run(build) as job:
        floor = job.ensure_floor()
    root = build.root.parent / "other"
    root.mkdir()
    for name in ("merged", "bundle", "dataset"):
        (root / name).symlink_to((build.root / name).resolve())
    changes = {"name": "other", "export": build.recipe.export.model_copy(update={"text_type": "Q4_0"})}
    with open_run(opened(build.recipe.model_copy(update=changes), root)) as job:
        assert job.ensure_floor() == floor
        assert not job.sides._opened  # no model was loaded


# ---- what a sweep says to ship ---------------------------------------------------------------------------------------


def swept(build: Build, **changes: Any) -> None:
    pair = {
        "text_type": "Q4_0", "mmproj_type": "Q8_0", "text_bytes": 5, "mmproj_bytes": 5, "text_tensors": {"Q4_0": 9},
        "encode_ms": 1.0, "prefill_ms": 1.0, "generate_ms": 1.0, "total_ms": 3.0, "images_per_second": 300.0,
        "cost": {"process_bytes": 1, "pair_bytes": 1, "other_cores": 0.0, "load_average": 0.0, "answered": 10},
        "accuracy": 0.9, "points": 0.0, "low": -1.0, "high": 1.0, "kl_median": 1e-5, "agreement": 1.0,
        "status": "PASS", "first_bad_stage": None, "headline": "fine",
    }  # fmt: skip
    values = {
        "recipe": build.recipe.name, "weights_sha256": weights_digest(build.merged_folder),
        "contract_sha256": build.recipe.contract.digest, "dataset_sha256": "0" * 64, "split": "test", "n": 10,
        "images": 10, "reference_accuracy": 0.9, "margin_points": 3.0, "machine": {}, "pairs": [pair], "failed": [],
        "front_kl": [], "front_time": [], "smallest": "Q4_0 + Q8_0",
    } | changes  # fmt: skip
    path = build.root / "sweep" / "sweep.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(Sweep.model_validate_json(json.dumps(values)).model_dump_json())


def test_the_winner_of_a_sweep_is_what_is_shipped(build: Build) -> None:
    swept(build)
    assert swept_pair(build) == ("Q4_0", "Q8_0")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights_sha256": "0" * 64}, "of other trained weights than the recipe has now: run `parity sweep` again"),
        ({"contract_sha256": "0" * 64}, "of other contract than the recipe has now: run `parity sweep` again"),
        ({"smallest": None}, "has nothing to ship: none of the 1 pairs passes"),
    ],
)
def test_a_sweep_that_says_nothing_of_this_model_ships_nothing(
    build: Build, changes: dict[str, Any], words: str
) -> None:
    swept(build, **changes)
    with pytest.raises(UserError, match=words) as error:
        swept_pair(build)
    assert "\n" not in str(error.value)


def test_a_sweep_of_another_layout_is_refused(build: Build) -> None:
    swept(build)
    path = build.root / "sweep" / "sweep.json"
    path.write_text(path.read_text().replace('"schema_version":3', '"schema_version":2'))
    with pytest.raises(UserError, match="is not a sweep of this version: run `parity sweep` again"):
        swept_pair(build)


def test_without_a_sweep_it_says_what_to_run(build: Build) -> None:
    with pytest.raises(UserError, match="run `parity sweep` first, or name the types with --pair"):
        swept_pair(build)


@pytest.mark.parametrize("text", ["Q4_0", "Q4_0+Q4_0", "Q9+Q8_0", "+", "Q8_0+"])
def test_a_pair_that_is_none_is_named(text: str) -> None:
    with pytest.raises(UserError, match="is not two types as in Q4_0"):
        parse_pair(text)


def test_a_pair_is_named_in_any_case() -> None:
    assert parse_pair("q4_k_m + f16") == ("Q4_K_M", "F16")


def test_the_command_ships_a_run_of_its_own(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """``parity ship`` opens the recipe again with the pair's types, and ends with its verdict."""
    swept(build)
    asked: list[Any] = []

    def open_build(recipe: Path, assignments: list[str] | None, runs: Path, quiet: bool) -> Build:
        asked.append(assignments)
        return build

    monkeypatch.setattr(cli, "open_build", open_build)
    verdicts: list[Verdict] = []
    done = run(build)
    assert done
    monkeypatch.setattr("parity.run.run", lambda variant: verdicts.append(done) or done)
    result = CliRunner().invoke(cli.app, ["ship", "configs/tiny.yaml", "--set", "seed=1"])
    assert asked == [
        ["seed=1"],
        ["seed=1", f"name={build.recipe.name}-Q4_0-Q8_0", "export.text_type=Q4_0", "export.mmproj_type=Q8_0"],
    ]
    assert result.exit_code == done.exit_code
    assert len(verdicts) == 1
