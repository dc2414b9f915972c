"""Runs a sweep: the reference once, each half's conversion once, then pair by pair, each step only if out of date."""

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, get_args

from parity.compare.ladder import Compared, NoiseFloor, read_ladder
from parity.compare.runner import CANDIDATE, LADDER, REFERENCE
from parity.compare.samples import Sample, load_samples, spread
from parity.judge.goldens import letterbox_gate
from parity.judge.judge import judge, write_verdict
from parity.judge.verdict import GateResult
from parity.results import Results, read_results
from parity.run import open_run
from parity.studies.sweep.picture import draw
from parity.studies.sweep.recording import record
from parity.studies.sweep.table import Cost, PairFailed, PairScore, Sweep, fronts, markdown, pair_name, smallest_passing
from parity.studies.sweep.worker import COST, PairJob
from pipeline.contract import Contract
from pipeline.core.errors import EXIT_USAGE, CheckFailed, UserError
from pipeline.core.files import write_bytes, write_json, write_text
from pipeline.core.gguf_types import MmprojType, TextType, canonical
from pipeline.core.progress import Advance, Reporter
from pipeline.core.provenance import digest, folder_hashes, machine, versions, weights_digest
from pipeline.core.settings import validate
from pipeline.core.toolchain import load_gguf
from pipeline.export.half import Exporter, Half
from pipeline.workflow.build import Build
from pipeline.workflow.stage import Stage

FOLDER = "sweep"
TEXT_TYPES: tuple[TextType, ...] = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "F16")
MMPROJ_TYPES: tuple[MmprojType, ...] = ("F16", "Q8_0")


def parse_types(value: str, allowed: Any, option: str) -> tuple[Any, ...]:
    """``Q8_0,Q6_K`` -> the types, each once, in that order, in any case; ``allowed`` is a Literal. Raises UserError."""
    found = tuple(dict.fromkeys(canonical(part.strip(), allowed) for part in value.split(",")))
    for name in found:
        if name not in get_args(allowed):
            raise UserError(f"{option} {value!r}: {name!r} is none of {', '.join(get_args(allowed))}")
    return found


def sweep_build(
    build: Build,
    texts: Sequence[TextType] = TEXT_TYPES,
    mmprojs: Sequence[MmprojType] = MMPROJ_TYPES,
    samples: int | None = None,
    folder: Path | None = None,
) -> Sweep:
    """Sweep a recipe's model into ``folder``, by default the run's own; see :meth:`Job.run`."""
    build.ensure_merge()
    recipe = build.recipe
    with open_run(build) as job:
        floor = job.ensure_floor()
    return Job(
        exporter=Exporter(build.merged_folder, recipe.export.name, recipe.contract, recipe.name, build.threads),
        dataset=build.dataset_folder,
        floor=floor,
        folder=folder or build.root / FOLDER,
        reporter=build.reporter,
    ).run(texts, mmprojs, samples)


@dataclass(frozen=True)
class Job:
    """What is swept, by what it is judged, and where the work is kept."""

    exporter: Exporter
    """Makes the halves."""
    dataset: Path
    floor: NoiseFloor
    folder: Path
    reporter: Reporter

    @property
    def contract(self) -> Contract:
        """The exporter's."""
        return self.exporter.contract

    @property
    def merged(self) -> Path:
        """The exporter's."""
        return self.exporter.merged

    def run(self, texts: Sequence[TextType], mmprojs: Sequence[MmprojType], count: int | None = None) -> Sweep:
        """Measure and judge every pair, on at most ``count`` images taken evenly over all; write the files.

        A pair that cannot be measured stands in ``failed`` and is tried again next time. Raises UserError: no images,
        or a ``count`` below 1.
        """
        everyone, dataset_sha256 = load_samples(self.dataset, self.contract)
        samples = _choose(everyone, count)
        reference = self._reference(samples, len(everyone), dataset_sha256)
        made = {("text", kind): self._convert("text", kind) for kind in texts}
        made |= {("mmproj", kind): self._convert("mmproj", kind) for kind in mmprojs}
        letterbox = letterbox_gate()
        scores: list[PairScore] = []
        failed: list[PairFailed] = []
        # Text types of one mmproj stand together: both fronts are read along them.
        wanted = [(text, mmproj) for mmproj in mmprojs for text in texts]
        for number, (text, mmproj) in enumerate(wanted):
            try:
                halves = made["text", text], made["mmproj", mmproj]
                for half in halves:
                    if isinstance(half, CheckFailed):
                        raise half
                depends = {"halves": halves, "reference": reference, "floor": self.floor.model_dump(mode="json")}
                self._answer(text, mmproj, samples, dataset_sha256, depends, (number, len(wanted)))
                scores.append(self._score(text, mmproj, samples, letterbox))
            except (UserError, CheckFailed) as error:
                self.reporter.say("sweep", f"{pair_name(text, mmproj)} was not measured: {error}")
                failed.append(PairFailed(text_type=text, mmproj_type=mmproj, error=str(error)))
        right = read_results(self.folder / "reference" / REFERENCE).rows
        front_kl, front_time = fronts(scores)
        found = Sweep(
            recipe=self.exporter.recipe,
            weights_sha256=weights_digest(self.merged),
            contract_sha256=self.contract.digest,
            dataset_sha256=dataset_sha256,
            n=len(samples),
            images=len(everyone),
            split=samples[0].split,
            reference_accuracy=sum(right[sample.key].correct for sample in samples) / len(samples),
            margin_points=self.contract.gate.margin_points,
            machine=machine(),
            pairs=tuple(scores),
            failed=tuple(failed),
            front_kl=front_kl,
            front_time=front_time,
            smallest=smallest_passing(scores),
        )
        with self.reporter.working("sweep", "writing the tables and drawing the picture"):
            write_json(self.folder / "sweep.json", found.model_dump(mode="json"))
            write_text(self.folder / "sweep.md", markdown(found))
            write_bytes(self.folder / "sweep.png", draw(found, "png"))
            write_bytes(self.folder / "sweep.svg", draw(found, "svg"))
        return found

    def _reference(self, samples: Sequence[Sample], room: int, dataset_sha256: str) -> str:
        """Record the Hugging Face side; the digest of what it made."""
        work = partial(
            _record, self.merged, self.contract, dataset_sha256, samples, room, self.folder / "reference", self.reporter
        )
        depends = {
            "merged": folder_hashes(self.merged),
            "dataset": dataset_sha256,
            "samples": digest([sample.key for sample in samples]),
            "contract": self.contract.digest,
            "versions": versions(),
            "machine": machine(),
        }
        return Stage("reference", depends, work, ("reference",)).run(self.folder, self.reporter.say)

    def _gguf(self, half: Half, kind: str) -> Path:
        return self.folder / "gguf" / self.exporter.file_name(half, kind)

    def _convert(self, half: Half, kind: Any) -> str | CheckFailed:
        """Make one half; the digest of what it made, or why it cannot be made."""
        path = self._gguf(half, kind)
        outputs = tuple(one.relative_to(self.folder).as_posix() for one in (path, _tensors(path)))
        depends = {
            "merged": folder_hashes(self.merged),
            "contract": self.contract.digest,
            "recipe": self.exporter.recipe,
            "name": self.exporter.name,
            "versions": versions(),
        }
        try:
            stage = Stage(f"{half}-{kind}", depends, partial(_export, self.exporter, half, kind, path), outputs)
            # The name of this stage is longer than others'.
            return stage.run(self.folder, lambda _, line: self.reporter.say("convert", f"{half} {kind}: {line}"))
        except CheckFailed as error:
            return error

    def _pair(self, text: str, mmproj: str) -> Path:
        return self.folder / "pairs" / f"{text}-{mmproj}"

    def _answer(
        self,
        text: str,
        mmproj: str,
        samples: Sequence[Sample],
        dataset_sha256: str,
        depends: dict[str, Any],
        place: tuple[int, int],
    ) -> None:
        """Let a process of its own answer the images, or go on with them. Raises UserError."""
        out = self._pair(text, mmproj)
        runtime = self.contract.runtime
        job = PairJob(
            merged=self.merged.resolve(),
            model=self._gguf("text", text).resolve(),
            mmproj=self._gguf("mmproj", mmproj).resolve(),
            dataset=self.dataset.resolve(),
            records=tuple(sample.record for sample in samples),
            split=samples[0].split,
            photos=samples[0].photos,
            contract=self.contract,
            about=Compared(
                contract_sha256=self.contract.digest,
                dataset_sha256=dataset_sha256,
                text_type=text,
                mmproj_type=mmproj,
                kv_type=f"{runtime.type_k}/{runtime.type_v}",
                floor=self.floor,
            ),
            reference=(self.folder / "reference").resolve(),
            out=out.resolve(),
        )

        outputs = tuple(f"pairs/{out.name}/{name}" for name in (REFERENCE, CANDIDATE, LADDER, COST))
        depends = depends | {"contract": self.contract.digest, "versions": versions(), "machine": machine()}
        work = partial(_answer, job, pair_name(text, mmproj), place, self.reporter)
        stage = Stage(f"pair-{out.name}", depends, work, outputs)
        stage.run(self.folder, lambda _, line: self.reporter.say("sweep", line))

    def _score(self, text: str, mmproj: str, samples: Sequence[Sample], letterbox: GateResult) -> PairScore:
        """Judge what is there."""
        folder, keys = self._pair(text, mmproj), [sample.key for sample in samples]
        reference, candidate = (_only(read_results(folder / name), keys) for name in (REFERENCE, CANDIDATE))
        ladder = read_ladder(folder / LADDER)
        verdict = judge(reference, candidate, self.contract, [letterbox], ladder)
        write_verdict(verdict, folder / "verdict.json")
        side, gap = verdict.candidate, verdict.difference
        kl = [value for key in keys if (value := ladder.rows[key].logits_kl) is not None]
        return PairScore(
            text_type=text,
            mmproj_type=mmproj,
            text_bytes=self._gguf("text", text).stat().st_size,
            mmproj_bytes=self._gguf("mmproj", mmproj).stat().st_size,
            text_tensors=_read_json(_tensors(self._gguf("text", text))),
            encode_ms=side.ms_median["encode"],
            prefill_ms=side.ms_median["prefill"],
            generate_ms=side.ms_median["generate"],
            total_ms=median(sum(row.ms.values()) for row in candidate.rows.values()),
            images_per_second=side.images_per_second,
            cost=validate(Cost, _read_json(folder / COST), str(folder / COST)),
            accuracy=side.accuracy,
            points=gap.points,
            low=gap.low,
            high=gap.high,
            kl_median=median(kl) if kl else None,
            agreement=verdict.agreement,
            status=verdict.status,
            first_bad_stage=verdict.first_bad_stage,
            headline=verdict.headline,
            needed=gap.needed,
        )


def _record(
    merged: Path,
    contract: Contract,
    dataset_sha256: str,
    samples: Sequence[Sample],
    room: int,
    folder: Path,
    reporter: Reporter,
) -> str:
    from parity.engines.hf import open_hf

    record(open_hf(merged, contract, dataset_sha256), samples, room, contract, folder, reporter)
    size = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    return f"{len(samples)} images of Hugging Face's side recorded, {size / 1e6:.0f} MB"


def _export(exporter: Exporter, half: Half, kind: Any, path: Path) -> str:
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed conversion
        shutil.rmtree(left)
    said = exporter.export(half, kind, path)
    # A file need not hold the type that it is named after: K-quants want rows that 256 divides.
    write_json(_tensors(path), Counter(tensor.tensor_type.name for tensor in load_gguf().GGUFReader(path).tensors))
    return said


def _answer(job: PairJob, name: str, place: tuple[int, int], reporter: Reporter) -> str:
    number, count = place
    note = f"pair {number + 1} of {count}: {name}"
    with reporter.progress("sweep", "images") as advance:

        def here(done: int, total: int, _: str) -> None:
            # What remains is counted over all pairs, at the rate of this one.
            advance(number * total + done, count * total, note)

        run_worker(job, here)
    return f"{note}, {len(job.records)} images"


def run_worker(job: PairJob, advance: Advance) -> None:
    """Run :mod:`parity.studies.sweep.worker` to its end. Raises UserError with one sentence where it fails."""
    path, log = job.out / "job.json", job.out / "worker.log"
    write_text(path, job.model_dump_json())
    command = [sys.executable, "-m", "parity.studies.sweep.worker", str(path)]
    with (
        open(log, "wb") as errors,
        # In a session of its own: Ctrl-C stops this process, whose end of stdin stops that one, without a traceback.
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        ) as process,
    ):
        assert process.stdout
        for line in process.stdout:
            done, total = line.split()
            advance(int(done), int(total), "")
        code = process.wait()  # before stdin is closed, which would end it
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = lines[-1] if lines else "it left no message"
        if code == EXIT_USAGE:
            raise UserError(said)
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        if code == -signal.SIGKILL:
            said = "the system does this when memory runs out; run the same command again to go on"
        raise UserError(f"its process was ended {how} ({said}); its log is {log}")


def _choose(samples: Sequence[Sample], count: int | None) -> list[Sample]:
    """At most ``count``, evenly over all, so that every label has its share."""
    if count is not None and count < 1:
        raise UserError(f"--samples {count}: give at least 1")
    return spread(samples, count or len(samples))


def _only(results: Results, keys: Sequence[str]) -> Results:
    """A run on more images may have gone before."""
    return Results(results.header, {key: results.rows[key] for key in keys})


def _tensors(gguf: Path) -> Path:
    """Where the types of a GGUF's tensors are written down: reading them in Python takes seconds."""
    return gguf.with_suffix(".tensors.json")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
