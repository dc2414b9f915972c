"""Where two runs part is named and measured; what must be equal and is not is a failure."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tools.images.repro import compare_runs, verdict, weight_difference


def write_run(folder: Path) -> Path:
    """A run's folder with one file for each stage."""
    weights = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    for stage in ("dataset", "base", "lora_adapter", "merged", "bundle"):
        (folder / stage).mkdir(parents=True)
    (folder / "dataset" / "train.json").write_text("[]")
    for stage in ("base", "lora_adapter", "merged"):
        save_file({"a": weights, "b": weights[:3]}, folder / stage / "model.safetensors")
    (folder / "bundle" / "x.gguf").write_bytes(b"GGUF")
    (folder / "bundle" / "manifest.json").write_text(f'{{"where": "{folder}"}}')
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    first = write_run(tmp_path / "first")
    shutil.copytree(first, tmp_path / "second")
    return first, tmp_path / "second"


def test_equal_runs_are_the_same_whatever_the_manifest_says_of_the_place(pair):
    (pair[1] / "bundle" / "manifest.json").write_text("{}")
    (pair[1] / "lora_adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    assert compare_runs(*pair) == {"same": True}


@pytest.mark.parametrize("stage", ["dataset", "base", "lora_adapter", "merged", "bundle"])
def test_the_first_stage_that_differs_is_named_with_its_files(pair, stage):
    changed = next(path for path in sorted((pair[1] / stage).iterdir()) if path.name != "manifest.json")
    changed.write_bytes(changed.read_bytes()[:-4] + b"\0\0\0\1")
    (pair[1] / "bundle" / "x.gguf").write_bytes(b"GGUX")
    result = compare_runs(*pair)
    assert (result["same"], result["first_difference"]) == (False, stage)
    assert result["files"] == [changed.name]


def test_a_file_that_only_one_run_has_is_a_difference(pair):
    (pair[1] / "lora_adapter" / "extra.json").write_text("{}")
    assert compare_runs(*pair)["first_difference"] == "lora_adapter"


def test_the_distance_of_weights_is_what_numpy_says(tmp_path):
    rng = np.random.default_rng(1)
    a = {"same": rng.normal(size=7).astype(np.float32), "moved": rng.normal(size=(5, 6)).astype(np.float32)}
    b = {"same": a["same"], "moved": a["moved"] + rng.normal(scale=1e-3, size=(5, 6)).astype(np.float32)}
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    result = weight_difference(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    error = (a["moved"].astype(np.float64) - b["moved"].astype(np.float64)).ravel()
    every = np.concatenate([a["same"], a["moved"].ravel()]).astype(np.float64)
    assert (result["tensors"], result["tensors_that_differ"]) == (2, 1)
    assert result["relative_rms"] == pytest.approx(np.sqrt((error**2).sum() / (every**2).sum()), rel=1e-12)
    assert result["largest"] == np.abs(error).max()


def stages(**differing: list[str]) -> dict:
    return {name: {"differences": differing.get(name, [])} for name in ("base", "python")}


def test_what_must_be_equal_and_is_not_fails():
    same = {"images": {"same": True, "stages": stages()}, "training": {"containers": {"same": True}}}
    assert verdict(same) == []
    changed = {"same": False, "stages": stages(python=["opt/x: content"])}
    assert verdict({**same, "images": changed}) == ["the second build differs from the first in python"]
    parted = {"containers": {"same": False, "first_difference": "merged"}}
    assert verdict({**same, "training": parted}) == ["two trainings in containers part at merged"]


def test_a_host_that_differs_is_no_failure():
    host = {"containers": {"same": True}, "host": {"same": False, "first_difference": "merged"}}
    assert verdict({"training": host}) == []
