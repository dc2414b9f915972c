"""The main job: build the bundle, run both sides over the validation images, judge, report.

runs/<recipe>/parity/  hf.results.jsonl  llamacpp.results.jsonl  ladder.jsonl  noise.json  worst/
                       verdict.json  verdict.txt  report.html  junit.xml  summary.md  model.cdx.json
runs/<recipe>/evaluation/  the reference side's scores
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from parity.baseline import Baseline
from parity.goldens import letterbox_gate
from parity.judgement import Verdict
from parity.lockstep import CANDIDATE, LADDER, REFERENCE, keep_worst, make_row, measure_floor, walk
from parity.predictors import Predictor
from parity.results import ResultsWriter, read_results
from parity.samples import Sample, load_samples
from parity.sides import CODE, OpenSide, SideName, open_hf, open_llamacpp
from parity.stages import LadderHeader, NoiseFloor, read_ladder
from parity.verdict import judge, write_verdict
from pipeline.build import Build
from pipeline.contract import Contract, validate
from pipeline.evaluation import Answer, evaluate, write_evaluation
from pipeline.export.bundle import MANIFEST, mmproj_name, text_name
from pipeline.export.mlbom import Metric, model_bom
from pipeline.files import write_json
from pipeline.progress import Reporter
from pipeline.provenance import machine, versions
from pipeline.recipe import Recipe
from pipeline.stages import Stage

FOLDER = "parity"
FILES: dict[SideName, str] = {"hf": REFERENCE, "llamacpp": CANDIDATE}
Order = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Run:
    """One recipe's parity run."""

    build: Build
    fed_order: Order | None = None
    """Overrides the contract's channel order in what llama.cpp is handed, and only there: it plays an app that does not
    keep the contract."""

    @property
    def contract(self) -> Contract:
        """The recipe's."""
        return self.build.recipe.contract

    @property
    def folder(self) -> Path:
        """Where the answers, the ladder and the verdict are kept."""
        return self.build.root / FOLDER

    def open(self, side: SideName, stack: ExitStack, dataset_sha256: str, tapped: bool = True) -> OpenSide:
        """Load a side; it is freed with ``stack``."""
        merged, bundle, recipe = self.build.merged_folder, self.build.bundle_folder, self.build.recipe
        if side == "hf":
            return open_hf(merged, self.contract, dataset_sha256)
        pair = (bundle / text_name(recipe), bundle / mmproj_name(recipe))
        return stack.enter_context(
            open_llamacpp(merged, *pair, self.contract, dataset_sha256, self.fed_order, tapped=tapped)
        )

    def _depends(self, side: SideName) -> dict[str, Any]:
        build = self.build
        return {
            "model": build.merge if side == "hf" else build.export,
            "dataset": build.dataset,
            "contract": self.contract.digest,
            "versions": versions(),
            "machine": machine(),
        } | ({} if side == "hf" else {"fed": self.fed_order or self.contract.image.channel_order})

    def side(self, side: SideName) -> Path:
        """Run one side alone over the validation images, or go on where a killed run stopped; its results file."""
        stage = Stage(side, self._depends(side), CODE[side], (f"{FOLDER}/{FILES[side]}",))
        stage.run(self.build.root, lambda: self._answer(side), self.build.reporter.say)
        return self.folder / FILES[side]

    def _answer(self, side: SideName) -> str:
        samples, dataset_sha256 = load_samples(self.build.dataset_folder, self.contract)
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            opened = self.open(side, stack, dataset_sha256, tapped=False)
            writer = stack.enter_context(ResultsWriter(self.folder / FILES[side], opened.header))
            answer_all(opened.predictor, samples, self.contract, writer, self.build.reporter)
        return _score(self.folder / FILES[side])

    def floor(self) -> NoiseFloor:
        """What bfloat16 alone changes, measured once a model."""
        path = self.folder / "noise.json"
        stage = Stage("floor", self._depends("hf"), CODE["hf"], (f"{FOLDER}/{path.name}",))
        stage.run(self.build.root, lambda: self._floor(path), self.build.reporter.say)
        return validate(NoiseFloor, json.loads(path.read_text(encoding="utf-8")), str(path))

    def _floor(self, path: Path) -> str:
        samples, digest = load_samples(self.build.dataset_folder, self.contract)
        merged = self.build.merged_folder
        exact = open_hf(merged, self.contract, digest)
        rounded = open_hf(merged, self.contract, digest, "bfloat16")
        floor = measure_floor(exact.predictor, rounded.predictor, samples, self.contract, self.build.reporter)
        write_json(path, floor.model_dump(mode="json"))
        return f"bfloat16 moves the embeddings by {floor.embeddings_error.median:.2g}, KL {floor.logits_kl.median:.2g}"

    def ladder(self) -> None:
        """Run both sides together and measure every stage of every image."""
        floor = self.floor()
        names = (*FILES.values(), LADDER)
        depends = {"hf": self._depends("hf"), "llamacpp": self._depends("llamacpp")}
        code = tuple(dict.fromkeys((*CODE["hf"], *CODE["llamacpp"])))
        stage = Stage("ladder", depends, code, tuple(f"{FOLDER}/{name}" for name in names))
        stage.run(self.build.root, lambda: self._walk(floor), self.build.reporter.say)

    def about(self, floor: NoiseFloor, dataset_sha256: str) -> LadderHeader:
        """The ladder's header but for the two sides' digests."""
        export, runtime = self.build.recipe.export, self.contract.runtime
        return LadderHeader(
            reference_sha256="0" * 64,
            candidate_sha256="0" * 64,
            contract_sha256=self.contract.digest,
            dataset_sha256=dataset_sha256,
            text_type=export.text_type,
            mmproj_type=export.mmproj_type,
            kv_type=f"{runtime.type_k}/{runtime.type_v}",
            floor=floor,
        )

    def walk(self, floor: NoiseFloor, samples: Sequence[Sample], dataset_sha256: str, folder: Path) -> None:
        """Run both sides over ``samples`` into ``folder``; see :func:`parity.lockstep.walk`."""
        with ExitStack() as stack:
            reference, candidate = (self.open(side, stack, dataset_sha256) for side in FILES)
            about = self.about(floor, dataset_sha256)
            walk(reference, candidate, samples, self.contract, about, folder, self.build.reporter)

    def _walk(self, floor: NoiseFloor) -> str:
        samples, dataset_sha256 = load_samples(self.build.dataset_folder, self.contract)
        self.walk(floor, samples, dataset_sha256, self.folder)
        self.keep_worst(samples, dataset_sha256)
        return "; ".join(f"{side} {_score(self.folder / name)}" for side, name in FILES.items())

    def keep_worst(self, samples: Sequence[Sample], dataset_sha256: str) -> None:
        """Save the tensors of the images that are farthest apart; see :func:`parity.lockstep.keep_worst`."""
        ladder = read_ladder(self.folder / LADDER)
        with ExitStack() as stack:
            reference, candidate = (self.open(side, stack, dataset_sha256).predictor for side in FILES)
            keep_worst(reference, candidate, samples, self.contract, ladder, self.folder / "worst")

    def shard(self, shards: int, shard: int) -> Path:
        """Do one shard of a run that is divided among processes or machines; the folder with its files."""
        from parity.shards import run_shard

        work, samples = self._divided()
        return run_shard(work, samples, self.folder, shards, shard)

    def merge(self, shards: int) -> None:
        """Put the shards together."""
        from parity.shards import merge_shards

        _, samples = self._divided()
        merge_shards(self.folder, shards, [sample.key for sample in samples])

    def ray(self, workers: int, shards: int | None, address: str | None) -> None:
        """Do all shards on Ray and put them together."""
        from parity.cluster import run_on_ray

        work, samples = self._divided()
        run_on_ray(work, samples, self.folder, self.build.reporter, workers, shards, address)

    def _divided(self) -> tuple[partial[None], list[Sample]]:
        """(what does a shard's samples, all samples). Gives the run's folder free: each shard locks its own."""
        build = self.build
        _, floor = build.export, self.floor()
        samples, dataset_sha256 = load_samples(build.dataset_folder, self.contract)
        if build.held:
            build.held.close()
        work = partial(_do_shard, build.recipe, build.root, build.threads, self.fed_order, floor, dataset_sha256)
        return work, samples

    def judge(self, baseline: Baseline | None = None, with_ladder: bool = True) -> Verdict:
        """Judge what is there, and write the verdict, the reports and the bill of materials."""
        from parity.report import write_reports

        reference, candidate = (read_results(self.folder / name) for name in FILES.values())
        ladder = read_ladder(self.folder / LADDER) if with_ladder else None
        _evaluate(self.build, list(reference.rows.values()))
        verdict = judge(reference, candidate, self.contract, [letterbox_gate()], ladder, baseline=baseline)
        write_verdict(verdict, self.folder / "verdict.json")
        dataset = self.build.dataset_folder
        paths = {sample.key: dataset / sample.record.image_path for sample in load_samples(dataset, self.contract)[0]}
        write_reports(verdict, reference, candidate, ladder, lambda key: paths[key].read_bytes(), self.folder)
        write_json(self.folder / "model.cdx.json", _bill_of_materials(self.build, verdict))
        return verdict


def answer_all(
    predictor: Predictor, samples: Sequence[Sample], contract: Contract, writer: ResultsWriter, reporter: Reporter
) -> None:
    """Append a row for every sample that ``writer`` has none of yet."""
    waiting = [sample for sample in samples if sample.key not in writer.keys]
    with reporter.progress(predictor.side, "images") as advance:
        done = len(samples) - len(waiting)
        advance(done, len(samples), "")
        predictions = predictor.predict(sample.rgb for sample in waiting)
        for sample, prediction in zip(waiting, predictions, strict=True):
            writer.append(make_row(sample, prediction, contract))
            done += 1
            advance(done, len(samples), "")


def _do_shard(
    recipe: Recipe,
    root: Path,
    threads: int,
    fed_order: Order | None,
    floor: NoiseFloor,
    dataset_sha256: str,
    samples: Sequence[Sample],
    folder: Path,
) -> None:
    """A shard's work from what can be sent to another process."""
    build = Build(recipe, root, Reporter(Console(stderr=True), quiet=True), threads)
    Run(build, fed_order).walk(floor, samples, dataset_sha256, folder)


@dataclass(frozen=True)
class Division:
    """How a large run is divided."""

    shards: int | None = None
    shard: int | None = None
    """Do this one alone; without it, merge what the others did."""
    workers: int | None = None
    """Do all of them on Ray, this many at a time."""
    address: str | None = None
    """Of a running Ray cluster; a local session without it."""


def run(
    build: Build,
    fed_order: Order | None = None,
    with_ladder: bool = True,
    baseline: Baseline | None = None,
    division: Division | None = None,
) -> Verdict | None:
    """Do the whole job; None where ``division`` asks for one shard alone.

    ``with_ladder`` off runs one side after the other, so that only one model is in memory.
    """
    _ = build.export
    job = Run(build, fed_order)
    if division:
        if division.shard is not None and division.shards is not None:
            build.reporter.say("shard", str(job.shard(division.shards, division.shard)))
            return None
        if division.workers is not None:
            job.ray(division.workers, division.shards, division.address)
        elif division.shards is not None:
            job.merge(division.shards)
        job.keep_worst(*load_samples(build.dataset_folder, job.contract))
    elif with_ladder:
        job.ladder()
    else:
        for side in FILES:
            job.side(side)
    return job.judge(baseline, with_ladder)


def _score(path: Path) -> str:
    rows = read_results(path).rows.values()
    right = sum(row.correct for row in rows)
    return f"{right} of {len(rows)} right, {right / len(rows):.1%}"


def _evaluate(build: Build, rows: Sequence[Any]) -> None:
    """Score the reference side alone; written into ``evaluation/``."""
    records = json.loads((build.dataset_folder / "val.json").read_text(encoding="utf-8"))  # checked when it ran
    paths = {record["image_id"]: record["image_path"] for record in records}
    answers = [
        Answer(image_id=row.image_id, image_path=paths[row.image_id], truth=row.truth, label=row.label, text=row.text)
        for row in rows
    ]
    write_evaluation(evaluate(answers, build.recipe.contract.labels), build.root / "evaluation")


def _bill_of_materials(build: Build, verdict: Verdict) -> dict[str, Any]:
    manifest = json.loads((build.bundle_folder / MANIFEST).read_text(encoding="utf-8"))
    config = json.loads((build.merged_folder / "config.json").read_text(encoding="utf-8"))
    return model_bom(
        manifest,
        family=config["model_type"],
        architecture=config["architectures"][0],
        dataset_sha256=verdict.reference_header.dataset_sha256,
        metrics=_metrics(verdict),
        properties={
            "verdict": verdict.status,
            "validation_images": str(verdict.n),
            "margin_points": f"{verdict.difference.margin_points:g}",
            "fed": str(verdict.candidate_header.runtime["fed"]),
        },
    )


def _metrics(verdict: Verdict) -> list[Metric]:
    """Accuracy and recalls of both sides, then their difference as a fraction."""
    found = []
    for side in (verdict.reference, verdict.candidate):
        found.append(Metric("accuracy", side.side, side.accuracy, side.accuracy_low, side.accuracy_high))
        found += [Metric("recall", f"{side.side}, {score.label}", score.recall) for score in side.per_class
                  if score.support]  # fmt: skip
    gap = verdict.difference
    where = f"{verdict.candidate.side} minus {verdict.reference.side}"
    found.append(Metric("accuracy difference", where, gap.points / 100, gap.low / 100, gap.high / 100))
    return found
