"""The main job: build the bundle, run both sides over the test images, judge, report.

runs/<recipe>/parity/  hf.results.jsonl  llamacpp.results.jsonl  ladder.jsonl  noise.json  worst/
                       verdict.json  verdict.txt  report.html  junit.xml  summary.md  ggufs.json  model.cdx.json
runs/<recipe>/parity-bgr/  the same of an app that was imitated, so that the real run's results stay
runs/<recipe>/evaluation/  the reference side's scores
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from parity.compare.ladder import Compared, NoiseFloor, read_ladder
from parity.compare.runner import CANDIDATE, LADDER, REFERENCE, answer_all, keep_worst, measure_floor, walk
from parity.compare.samples import Sample, load_samples, row_check
from parity.engines import OpenSide, SideName
from parity.engines.probe import files_made
from parity.engines.sides import Sides
from parity.judge.baseline import BASELINE, Baseline, write_baseline
from parity.judge.causes import CAUSES, Causes, write_causes
from parity.judge.goldens import checks_of
from parity.judge.judge import judge, write_verdict
from parity.judge.mistakes import prove_pixels
from parity.judge.verdict import Verdict
from parity.results import Results, read_results
from pipeline.contract import ChannelOrder, Contract
from pipeline.core.closure import code_digest
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_file, write_json
from pipeline.core.progress import Reporter
from pipeline.core.provenance import machine, versions, weights_digest
from pipeline.core.settings import validate
from pipeline.evaluation import Answer, evaluate, write_evaluation
from pipeline.export.bundle import MANIFEST, mmproj_name, text_name
from pipeline.export.mlbom import Metric, model_bom
from pipeline.workflow.build import STAGES, Build
from pipeline.workflow.stage import Stage

if TYPE_CHECKING:
    from parity.compare.shards import Expected

FOLDER = "parity"
FILES: dict[SideName, str] = {"hf": REFERENCE, "llamacpp": CANDIDATE}


def results_folder(build: Build, fed_order: ChannelOrder | None = None) -> Path:
    """Where a run keeps its answers, ladder and verdict: ``parity``, or another folder for an app that is imitated."""
    order = build.recipe.contract.image.channel_order
    return build.root / (FOLDER if fed_order in (None, order) else f"{FOLDER}-{fed_order}")


@dataclass(frozen=True)
class Run:
    """One recipe's parity run; made by :func:`open_run`."""

    build: Build
    samples: Sequence[Sample]
    sides: Sides

    @property
    def contract(self) -> Contract:
        """The recipe's."""
        return self.build.recipe.contract

    @property
    def folder(self) -> Path:
        """Where the answers, the ladder and the verdict are kept."""
        return results_folder(self.build, self.sides.fed_order)

    def _depends(self, side: SideName) -> dict[str, Any]:
        build, sides = self.build, self.sides
        return {
            "model": build.ensure_merge() if side == "hf" else build.ensure_export(),
            "dataset": build.ensure_dataset(),
            "contract": self.contract.digest,
            "versions": versions(),
            "machine": machine(),
        } | ({} if side == "hf" else {"fed": sides.fed_order or self.contract.image.channel_order})

    def _stage(self, name: str, depends: dict[str, Any], work: Callable[[], str], outputs: Sequence[str]) -> None:
        folder = self.folder.name
        made = tuple(f"{folder}/{output}" for output in outputs)
        stage = Stage(name, depends, work, made, record=name + folder.removeprefix(FOLDER))
        stage.run(self.build.root, self.build.reporter.say)

    def answer(self, side: SideName) -> Path:
        """Run one side alone over the images, or go on where a killed run stopped; its results file."""
        path = self.folder / FILES[side]
        sides, rest = self.sides, (self.samples, path, self.build.reporter)
        if side == "hf":
            work = partial(_answer_hf, sides.merged, self.contract, sides.dataset_sha256, *rest)
        else:
            pair = (sides.merged, sides.model, sides.mmproj, self.contract, sides.dataset_sha256, sides.fed_order,
                    sides.made)  # fmt: skip
            work = partial(_answer_llamacpp, *pair, *rest)
        self._stage(side, self._depends(side), work, [FILES[side]])
        return path

    def ensure_floor(self) -> NoiseFloor:
        """What bfloat16 alone changes, measured once a model."""
        path, sides = self.build.root / FOLDER / "noise.json", self.sides
        work = partial(
            _floor, sides.reference, sides.merged, self.contract, sides.dataset_sha256, self.samples, path,
            self.build.reporter,
        )  # fmt: skip
        # It is of the model alone, so another run's may be taken; answers and ladders are this run's own.
        self.build.run(Stage("floor", self._depends("hf"), work, (f"{FOLDER}/{path.name}",)))
        return validate(NoiseFloor, json.loads(path.read_text(encoding="utf-8")), str(path))

    def ensure_ladder(self) -> None:
        """Run both sides together and measure every stage of every image."""
        about = self.compared()
        depends = {"hf": self._depends("hf"), "llamacpp": self._depends("llamacpp")}
        work = partial(_climb, self.sides, self.samples, about, self.folder, self.build.reporter)
        self._stage("ladder", depends, work, [*FILES.values(), LADDER])

    def compared(self) -> Compared:
        """What the ladder compares."""
        export, runtime = self.build.recipe.export, self.contract.runtime
        return Compared(
            contract_sha256=self.contract.digest,
            dataset_sha256=self.sides.dataset_sha256,
            text_type=export.text_type,
            mmproj_type=export.mmproj_type,
            kv_type=f"{runtime.type_k}/{runtime.type_v}",
            floor=self.ensure_floor(),
        )

    def shard(self, shards: int, shard: int) -> Path:
        """Do one shard of a run that is divided among processes or machines; the folder with its files.

        The run's folder is given free: the others' processes want it, and each shard has a lock of its own.
        """
        from parity.compare.shards import run_shard

        work = self._divided(threads=None)
        if self.build.held:
            self.build.held.close()
        return run_shard(work, self.samples, self.folder, shards, shard)

    def merge(self, shards: int) -> None:
        """Put the shards together."""
        from parity.compare.shards import merge_shards

        self.build.ensure_export()
        merge_shards(self.folder, shards, self.samples, self._expected())
        self.keep_worst()

    def ray(self, division: "Division") -> None:
        """Do all shards on Ray and put them together."""
        from parity.compare.cluster import run_on_ray

        assert division.workers is not None
        run_on_ray(
            self._divided(threads=division.cpus), self.samples, self.folder, self.build.reporter, division.workers,
            self._expected(), division.shards, division.address, division.cpus, division.gpus,
        )  # fmt: skip
        self.keep_worst()

    def _expected(self) -> "Expected":
        """What a shard of this run says of itself, on whatever machine it was run."""
        from parity.compare.shards import Expected
        from parity.engines.hf import open_hf
        from parity.engines.pair import open_llamacpp

        sides, contract = self.sides, self.contract
        about: dict[str, Any] = {
            "contract_sha256": contract.digest,
            "dataset_sha256": sides.dataset_sha256,
            "split": self.samples[0].split,
            "weights_sha256": weights_digest(sides.merged),
        }
        runner = code_digest(walk)
        order = contract.image.channel_order
        runtime = contract.runtime.model_dump(mode="json", exclude={"n_threads"})
        export = self.build.recipe.export
        return Expected(
            reference=about
            | {"versions": {"code": code_digest(open_hf), "runner": runner}, "runtime": {"fed": order}}
            | {"model": {path.name: sha256_file(path) for path in sorted(sides.merged.glob("*.safetensors"))}},
            candidate=about
            | {"versions": {"code": code_digest(open_llamacpp), "runner": runner}}
            | {"runtime": runtime | {"fed": sides.fed_order or order}}
            | {"model": {"model": sha256_file(sides.model), "mmproj": sha256_file(sides.mmproj)}},
            ladder={
                "contract_sha256": contract.digest,
                "dataset_sha256": sides.dataset_sha256,
                "text_type": export.text_type,
                "mmproj_type": export.mmproj_type,
                "kv_type": f"{contract.runtime.type_k}/{contract.runtime.type_v}",
            },
        )

    def keep_worst(self) -> None:
        """Save the tensors of the images that are farthest apart; see :func:`parity.compare.runner.keep_worst`."""
        _keep_worst(self.sides, self.samples, self.folder)

    def _divided(self, threads: int | None) -> partial[None]:
        """What does a shard's samples; it can be sent to another process."""
        sides = self.sides
        return partial(
            _do_shard, sides.merged, sides.model, sides.mmproj, self.contract, self.compared(), sides.fed_order,
            sides.made, threads,
        )  # fmt: skip

    def judge(self, baseline: Baseline | None = None, with_ladder: bool = True) -> Verdict:
        """Judge what is there, and write the verdict, the reports and the bill of materials."""
        from parity.report.attached import write_ggufs
        from parity.report.files import write_reports

        reporter = self.build.reporter
        with reporter.working("judge", f"comparing the answers to {len(self.samples)} images") as done:
            reference, candidate = (self._read(self.folder / name) for name in FILES.values())
            ladder = read_ladder(self.folder / LADDER) if with_ladder else None
            self._evaluate(reference)
            causes = self._causes(reference, candidate)
            checks = checks_of(self.contract)
            verdict = judge(reference, candidate, self.contract, checks, ladder, baseline=baseline, causes=causes)
            if baseline:
                write_baseline(baseline, self.folder / BASELINE)
            write_verdict(verdict, self.folder / "verdict.json")
            done(f"{verdict.status}, {verdict.n} images")
        with reporter.working("report", "writing the reports") as done:
            paths = {sample.key: sample.path for sample in self.samples}
            write_ggufs((self.sides.model, self.sides.mmproj), self.folder)
            parts = (verdict, reference, candidate, ladder, lambda key: paths[key].read_bytes())
            write_reports(*parts, self.folder, self.contract)
            write_json(self.folder / "model.cdx.json", _bill_of_materials(self.build, verdict))
            done("written")
        return verdict

    def _causes(self, reference: Results, candidate: Results) -> Causes | None:
        """What made the pixels differ; written beside the verdict where that is known."""
        samples = {sample.key: sample for sample in self.samples}
        settings = self.build.recipe.dataset
        photos = settings.test_path or settings.path

        def photo_of(key: str) -> Path | None:
            source = samples[key].record.source_path
            return Path(photos) / source if photos and source else None

        found = prove_pixels(reference, candidate, self.contract, lambda key: samples[key].rgb, photo_of)
        if found:
            write_causes(found, self.folder / CAUSES)
        else:
            (self.folder / CAUSES).unlink(missing_ok=True)
        return found

    def _read(self, path: Path) -> Results:
        """A side's answers, held against the dataset. Raises UserError."""
        results = read_results(path)
        # Under RGB the gate `pixels` knows the bytes, which are the key's, and says more.
        check = row_check(results.header, self.samples, pixels=self.contract.image.channel_order != "rgb")
        if wrong := next(filter(None, map(check, results.rows.values())), None):
            raise UserError(f"{path}: {wrong}; delete the file and run again")
        return results

    def _evaluate(self, reference: Results) -> None:
        """Score the reference side alone; written into ``evaluation/``."""
        paths = {sample.key: sample.record.image_path for sample in self.samples}
        answers = [
            Answer(image_id=row.image_id, image_path=paths[key], truth=row.truth or "", label=row.label, text=row.text)
            for key, row in reference.rows.items()
        ]
        scores = evaluate(answers, self.contract.labels, self.samples[0].split)
        write_evaluation(scores, self.build.root / "evaluation")


@contextmanager
def open_run(build: Build, fed_order: ChannelOrder | None = None) -> Iterator[Run]:
    """A recipe's run. Nothing is loaded before it is needed, and all of it is freed at the end of the block.

    ``fed_order`` overrides the contract's channel order in what llama.cpp is handed, and only there: it plays an app
    that does not keep the contract.
    """
    build.ensure_dataset()
    recipe = build.recipe
    samples, dataset_sha256 = load_samples(build.dataset_folder, recipe.contract)
    pair = (build.bundle_folder / text_name(recipe), build.bundle_folder / mmproj_name(recipe))
    made = files_made(build.root / "stages" / "export.json")
    with Sides(build.merged_folder, *pair, recipe.contract, dataset_sha256, fed_order, made=made) as sides:
        yield Run(build, samples, sides)


def _answer_hf(
    merged: Path, contract: Contract, dataset_sha256: str, samples: Sequence[Sample], path: Path, reporter: Reporter
) -> str:
    from parity.engines.hf import open_hf

    answer_all(open_hf(merged, contract, dataset_sha256), samples, contract, path, reporter)
    return _score(path)


def _answer_llamacpp(
    merged: Path,
    model: Path,
    mmproj: Path,
    contract: Contract,
    dataset_sha256: str,
    fed_order: ChannelOrder | None,
    made: frozenset[str],
    samples: Sequence[Sample],
    path: Path,
    reporter: Reporter,
) -> str:
    from parity.engines.pair import open_llamacpp

    pair = (merged, model, mmproj, contract, dataset_sha256, fed_order)
    with open_llamacpp(*pair, tapped=False, made=made) as opened:
        answer_all(opened, samples, contract, path, reporter)
    return _score(path)


def _floor(
    exact: Callable[[], OpenSide],
    merged: Path,
    contract: Contract,
    dataset_sha256: str,
    samples: Sequence[Sample],
    path: Path,
    reporter: Reporter,
) -> str:
    from parity.engines.hf import open_hf

    rounded = open_hf(merged, contract, dataset_sha256, "bfloat16")
    floor = measure_floor(exact().predictor, rounded.predictor, samples, contract, reporter)
    write_json(path, floor.model_dump(mode="json"))
    return f"bfloat16 moves the embeddings by {floor.embeddings_error.median:.2g}, KL {floor.logits_kl.median:.2g}"


def _climb(sides: Sides, samples: Sequence[Sample], about: Compared, folder: Path, reporter: Reporter) -> str:
    walk(sides.reference(), sides.candidate(), samples, sides.contract, about, folder, reporter)
    _keep_worst(sides, samples, folder)
    return "; ".join(f"{side} {_score(folder / name)}" for side, name in FILES.items())


def _keep_worst(sides: Sides, samples: Sequence[Sample], folder: Path) -> None:
    ladder = read_ladder(folder / LADDER)
    both = sides.reference().predictor, sides.candidate().predictor
    keep_worst(*both, samples, sides.contract, ladder, folder / "worst")


def _do_shard(
    merged: Path,
    model: Path,
    mmproj: Path,
    contract: Contract,
    about: Compared,
    fed_order: ChannelOrder | None,
    made: frozenset[str],
    threads: int | None,
    samples: Sequence[Sample],
    folder: Path,
) -> None:
    """A shard's work from what can be sent to another process."""
    quiet = Reporter(Console(stderr=True), quiet=True)
    with Sides(merged, model, mmproj, contract, about.dataset_sha256, fed_order, threads, made) as sides:
        walk(sides.reference(), sides.candidate(), samples, contract, about, folder, quiet)


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
    cpus: int = 1
    """Cores of a worker on Ray, and threads of each side there."""
    gpus: float = 0
    """GPUs of a worker on Ray."""


def stages(with_ladder: bool, division: Division | None) -> tuple[str, ...]:
    """What a run does, in order."""
    if division and division.shard is not None:
        return *STAGES, "floor", "shard"
    answering: tuple[str, ...] = ("hf", "llamacpp")
    if division:
        answering = ("floor", "ray") if division.workers is not None else ("floor",)
    elif with_ladder:
        answering = ("floor", "ladder")
    return *STAGES, *answering, "judge", "report"


def run(
    build: Build,
    fed_order: ChannelOrder | None = None,
    with_ladder: bool = True,
    baseline: Baseline | None = None,
    division: Division | None = None,
) -> Verdict | None:
    """Do the whole job; None where ``division`` asks for one shard alone.

    ``with_ladder`` off runs one side after the other, so that only one model is in memory.
    """
    build = build.counting(stages(with_ladder, division))
    build.ensure_export()
    with open_run(build, fed_order) as job:
        if division and division.shard is not None and division.shards is not None:
            build.reporter.say("shard", str(job.shard(division.shards, division.shard)))
            return None
        if division and division.workers is not None:
            job.ray(division)
        elif division and division.shards is not None:
            job.merge(division.shards)
        elif with_ladder:
            job.ensure_ladder()
        else:
            for side in FILES:
                job.answer(side)
        return job.judge(baseline, with_ladder)


def _score(path: Path) -> str:
    rows = read_results(path).rows.values()
    right = sum(row.correct for row in rows)
    return f"{right} of {len(rows)} right, {right / len(rows):.1%}"


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
            f"{verdict.split or 'judged'}_images": str(verdict.n),
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
