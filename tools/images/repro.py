"""``make docker-repro``: is a build, and is a training, the same bytes again? ``dist/repro.json`` has the answer.

Each stage is built twice from nothing and compared by content: paths, kinds, modes, owners, links and file hashes, with
every differing path listed (clocks are left out). The recipe is then trained twice in containers and once on the host,
and the GGUFs are compared by SHA-256; where they differ, the first differing stage of the run is named and measured.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.core.errors import EXIT_FAIL, EXIT_PASS, UserError
from pipeline.core.files import sha256_file, write_json
from tools.images.build import NAME, Options, build, folder, image_name
from tools.images.digest import Tree, content_digest, differences, image_tree
from tools.images.engine import Engine
from tools.images.running import RunOptions, run_job
from tools.setup.native import Console

STAGES = ("base", "llamacpp", "llamacpp-arm64", "python", "train", "parity", "artifacts")
RUN_STAGES = ("dataset", "base", "lora_adapter", "merged", "bundle")
"""Folders of a run in the order that they are made in."""
NAMING_PLACES = ("manifest.json", "adapter_config.json")
"""They say on which machine, or from which folder, the rest was made."""
SHOWN = 20  # differing paths on the screen; all of them are in the file


def _trees(
    root: Path, engine: Engine, options: Options, console: Console, stages: Sequence[str], tag: str
) -> tuple[dict[str, Tree], float]:
    """Build ``stages`` under ``tag``; (content of each, seconds)."""
    start = time.monotonic()
    built = build(root, engine, stages, options, console, tag)
    seconds = time.monotonic() - start
    console.step(f"reading {len(built)} images of round {tag}")
    return {image.stage: image_tree([engine.client], image.name) for image in built}, seconds


def compare_images(
    root: Path, engine: Engine, options: Options, console: Console, wanted: Sequence[str], reuse: bool
) -> dict[str, Any]:
    """Build the stages ``wanted`` twice, compare. ``reuse``: what the builder's cache has is the first of the two."""
    rounds = {}
    for tag, fresh in (("repro-1", not reuse), ("repro-2", True)):
        console.step(f"round {tag}: {'every stage from nothing' if fresh else 'from the cache, where there is one'}")
        rounds[tag] = _trees(root, engine, replace(options, fresh=fresh), console, wanted, tag)
    (first, first_seconds), (second, second_seconds) = rounds.values()
    stages = {}
    for stage in wanted:
        differing = differences(first[stage], second[stage])
        stages[stage] = {
            "first": content_digest(first[stage]),
            "second": content_digest(second[stage]),
            "files": len(first[stage].entries),
            "bytes": sum(entry.size for entry in first[stage].entries.values()),
            "differences": differing,
        }
        console.step(f"{stage}: {'the same' if not differing else f'{len(differing)} paths differ'}")
        for line in differing[:SHOWN]:
            print(f"         {line}")
    engine.run("rmi", *(f"{NAME}/{stage}:{tag}" for tag in rounds for stage in wanted))
    return {
        "seconds": {"first": None if reuse else round(first_seconds), "second": round(second_seconds)},
        "first_from_cache": reuse,
        "same": all(not stage["differences"] for stage in stages.values()),
        "stages": stages,
    }


def run_files(run: Path) -> dict[str, dict[str, str]]:
    """Stage folder of a run -> relative path -> SHA-256, without the files of :data:`NAMING_PLACES`."""
    found = {}
    for stage in RUN_STAGES:
        files = sorted(path for path in (run / stage).rglob("*") if path.is_file() and path.name not in NAMING_PLACES)
        found[stage] = {path.relative_to(run / stage).as_posix(): sha256_file(path) for path in files}
    return found


def _float_tensors(path: Path) -> dict[str, array[float]]:
    """The float32 tensors of a safetensors file (8 bytes of header length, JSON header, raw little-endian values)."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, about in header.items():
        if name != "__metadata__" and about["dtype"] == "F32":
            begin, end = about["data_offsets"]
            tensors[name] = array("f", data[8 + length + begin : 8 + length + end])
    return tensors


def weight_difference(first: Path, second: Path) -> dict[str, Any]:
    """How far two safetensors files are apart: RMS of the difference over RMS of the first, and the worst value.

    Tensors that are in both, with float32 values; no numpy, so some seconds for ten million values.
    """
    a, b = _float_tensors(first), _float_tensors(second)
    square = error = worst = 0.0
    changed = 0
    for name in sorted(a.keys() & b.keys()):
        if a[name].tobytes() == b[name].tobytes():
            square += sum(x * x for x in a[name])
            continue
        changed += 1
        for x, y in zip(a[name], b[name]):  # noqa: B905  (Python 3.9 has no strict)
            square += x * x
            error += (x - y) * (x - y)
            worst = max(worst, abs(x - y))
    relative = math.sqrt(error / square) if square else 0.0
    return {"tensors": len(a), "tensors_that_differ": changed, "relative_rms": relative, "largest": worst}


def compare_runs(first: Path, second: Path) -> dict[str, Any]:
    """Where two runs of one recipe part: the first differing stage, its files, and how far its weights are apart."""
    a, b = run_files(first), run_files(second)
    for stage in RUN_STAGES:
        names = sorted(name for name in a[stage].keys() | b[stage].keys() if a[stage].get(name) != b[stage].get(name))
        if names:
            weights = {
                name: weight_difference(first / stage / name, second / stage / name)
                for name in names
                if name.endswith(".safetensors") and name in a[stage] and name in b[stage]
            }
            return {"same": False, "first_difference": stage, "files": names, "weights": weights}
    return {"same": True}


def _train_on_host(root: Path, runs: Path, assignments: Sequence[str], console: Console) -> None:
    python = root / ".venv" / "bin" / "python"
    if not python.exists():
        raise UserError("training on the host needs its environment: run `make setup`")
    given = [part for value in assignments for part in ("--set", value)]
    command = [str(python), "-m", "pipeline.cli", "export", "configs/tiny.yaml", "--runs", str(runs), *given]
    if subprocess.run(command, cwd=root, check=False).returncode:
        raise UserError(f"training on the host failed: see above (`{' '.join(command)}`)")


def compare_trainings(
    root: Path, engine: Engine, options: Options, console: Console, assignments: Sequence[str]
) -> dict[str, Any]:
    """Train the embedded recipe twice in containers and once on the host; compare all that the runs made."""
    place = folder(root) / "repro"
    shutil.rmtree(place, ignore_errors=True)
    build(root, engine, ["train"], options, console)
    seconds = {}
    for name in ("container-1", "container-2", "host"):
        console.step(f"training: {name}")
        start = time.monotonic()
        if name == "host":
            _train_on_host(root, place / name, assignments, console)
        else:
            run = RunOptions(torch=options.torch, runs=str(place / name), assignments=assignments)
            if run_job(root, engine, "train", run):
                raise UserError("training in the container failed: see above")
        seconds[name] = round(time.monotonic() - start)
    runs = {name: next(path for path in (place / name).iterdir() if not path.name.startswith(".")) for name in seconds}
    ggufs = {
        name: {path.name: sha256_file(path) for path in sorted((run / "bundle").glob("*.gguf"))}
        for name, run in runs.items()
    }
    for name, files in ggufs.items():
        for file, sha256 in files.items():
            console.step(f"{name}: {sha256[:16]}... {file}")
    return {
        "recipe": "configs/tiny.yaml",
        "assignments": list(assignments),
        "seconds": seconds,
        "gguf_sha256": ggufs,
        "containers": compare_runs(runs["container-1"], runs["container-2"]),
        "host": compare_runs(runs["container-1"], runs["host"]),
        "content_digest": content_digest(image_tree([engine.client], image_name("train", options.torch))),
    }


def verdict(result: Mapping[str, Any]) -> list[str]:
    """What was not the same again, in sentences; none where all that must be equal is."""
    said = []
    images = result.get("images")
    if images and not images["same"]:
        differing = [stage for stage, about in images["stages"].items() if about["differences"]]
        said.append(f"the second build differs from the first in {', '.join(differing)}")
    training = result.get("training")
    if training and not training["containers"]["same"]:
        said.append(f"two trainings in containers part at {training['containers']['first_difference']}")
    return said


def reproduce(
    root: Path,
    engine: Engine,
    options: Options,
    console: Console,
    what: str,
    stages: Sequence[str],
    reuse: bool,
    assignments: Sequence[str],
) -> int:
    """Compare images (``what``: all, images, training); writes ``dist/repro.json``; exit code 1 where bytes differ.

    A host that differs from the containers is reported, measured, and no failure: its Python and llama.cpp are its own.
    """
    path = root / "dist" / "repro.json"
    result: dict[str, Any] = {"schema_version": 1, "engine": str(engine), "python": sys.version.split()[0]}
    result["cores"] = os.cpu_count()
    if what in ("all", "images"):
        result["images"] = compare_images(root, engine, options, console, stages or STAGES, reuse)
        write_json(path, result)
    if what in ("all", "training"):
        result["training"] = compare_trainings(root, engine, options, console, assignments)
    write_json(path, result)
    training = result.get("training")
    if training and not training["host"]["same"]:
        ggufs = training["gguf_sha256"]
        equal = "the same" if ggufs["host"] == ggufs["container-1"] else "other"
        parted = training["host"]
        console.step(
            f"note: the host's run differs first in {parted['first_difference']} ({', '.join(parted['files'])}"
            f"{', ' + str(parted['weights']) if parted['weights'] else ''}); its GGUFs are {equal} bytes"
        )
    said = verdict(result)
    for sentence in said:
        print(f"failed: {sentence} (all of it in {path})", file=sys.stderr)
    if not said:
        console.step(f"reproducible: {path}")
    return EXIT_FAIL if said else EXIT_PASS
