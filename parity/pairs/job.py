"""The job of ``parity check``: any pair, anybody's pictures, a verdict and its causes.

<out>/  terms.json  photos.json  noise.json  hf.results.jsonl  llamacpp.results.jsonl  ladder.jsonl
        causes.json  verdict.json  verdict.txt  report.html  junit.xml  summary.md
"""

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parity.compare.ladder import Compared, Ladder, Measured, NoiseFloor, read_ladder
from parity.compare.measure import noise_floor
from parity.compare.photos import Photo
from parity.compare.runner import CANDIDATE, LADDER, REFERENCE, batches, keep, kept_by
from parity.compare.samples import spread
from parity.compare.shards import Expected, merge_shards, run_shard
from parity.compare.traces import measure_traces, pictures_of
from parity.engines.pair import file_type, half_sha256
from parity.engines.pixels import token_limits
from parity.engines.sides import Sides
from parity.judge.baseline import BASELINE, Baseline, write_baseline
from parity.judge.causes import CAUSES, Causes, LayerErrors, read_causes, write_causes
from parity.judge.gates.limits import limits_of, parted_at
from parity.judge.goldens import checks_of
from parity.judge.judge import as_judged, judge, write_verdict
from parity.judge.verdict import Limits, Verdict
from parity.pairs.canvases import applies, floor_under, header_under, walk_under
from parity.pairs.conforming import MOST, Conformed, Subject, conform, sum_up
from parity.pairs.layers import layer_errors
from parity.pairs.opening import Opened, model_folder, model_hashes
from parity.pairs.survey import survey
from parity.pairs.weights import Weights, explain, refuse_other_weights
from parity.report.saved import PHOTOS
from parity.results import Header, Row, read_results
from parity.terms import cache_types
from pipeline.contract import Contract
from pipeline.core.closure import code_digest
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_folder, write_json
from pipeline.core.provenance import digest, machine, versions
from pipeline.core.settings import validate
from pipeline.dataset.records import Problems
from pipeline.models.auto import load_model
from pipeline.workflow.stage import Stage

FLOOR_PICTURES = 16
"""Pictures that bfloat16 is held against float32 on."""


@dataclass
class Check:
    """One check of what is opened."""

    opened: Opened
    folder: Path
    layers: bool = False
    """Whether the layers of a half that differs are compared."""
    contract: Contract | None = None
    """An app's: a SmolVLM then runs as the app runs it (:mod:`parity.pairs.canvases`)."""

    def depends(self) -> dict[str, Any]:
        """All that the answers follow from."""
        opened = self.opened
        return {
            "hf": model_hashes(opened.pair.model, opened.pair.adapter),
            "llamacpp": {"model": half_sha256(opened.pair.text), "mmproj": half_sha256(opened.pair.mmproj)},
            "terms": opened.terms.digest,
            "photos": opened.dataset_sha256,
            "versions": versions(),
            "machine": machine(),
            "device": opened.device,
        }

    @property
    def under_contract(self) -> bool:
        """Whether the contract's own engines run."""
        return applies(self.opened.pair.model, self.contract)

    def run(self, baseline: Baseline | None = None) -> Verdict:
        """Do what is out of date, judge, and write the reports."""
        self._write_terms()
        outputs = (REFERENCE, CANDIDATE, LADDER, "noise.json")
        stage = Stage("ladder", self.depends(), partial(_walk, self, self.opened.photos, self.folder), outputs)
        stage.run(self.folder, self.opened.reporter.say)
        return self._judged(baseline)

    def shard(self, shards: int, shard: int) -> Path:
        """Do one shard of a check that is divided among processes or machines; the folder with its files."""
        self._write_terms()
        return run_shard(partial(_walk, self), self.opened.photos, self.folder, shards, shard)

    def merge(self, shards: int, baseline: Baseline | None = None) -> Verdict:
        """Put the shards together and judge."""
        self._write_terms()
        depends = self.depends()
        about = {"contract_sha256": depends["terms"], "dataset_sha256": depends["photos"]}
        expected = Expected(
            reference=about | {"model": depends["hf"]},
            candidate=about | {"model": depends["llamacpp"]},
            ladder=about,
        )
        merge_shards(self.folder, shards, self.opened.photos, expected)
        return self._judged(baseline)

    def _write_terms(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "terms.json", self.opened.terms.model_dump(mode="json"))
        places = {photo.key: os.path.relpath(photo.path, self.folder) for photo in self.opened.photos}
        write_json(self.folder / PHOTOS, places)

    def _judged(self, baseline: Baseline | None) -> Verdict:
        """Find the causes, judge what is there, and write the verdict and the reports."""
        from parity.report.attached import write_ggufs
        from parity.report.files import write_reports

        terms, folder = self.opened.terms, self.folder
        ladder = read_ladder(folder / LADDER)
        if not self.under_contract:
            about = {"ladder": ladder.sha256, "gate": terms.gate.model_dump(mode="json"), "layers": self.layers}
            stage = Stage("causes", self.depends() | about, partial(_conform, self, ladder), (CAUSES,))
            stage.run(folder, self.opened.reporter.say)
        reporter = self.opened.reporter
        with reporter.working("judge", f"comparing the answers to {len(self.opened.photos)} pictures") as done:
            reference, candidate = (read_results(folder / name) for name in (REFERENCE, CANDIDATE))
            causes = read_causes(folder / CAUSES)
            checks = checks_of(terms)
            verdict = judge(reference, candidate, terms, checks, ladder, baseline=baseline, causes=causes)
            if baseline:
                write_baseline(baseline, folder / BASELINE)
            write_verdict(verdict, folder / "verdict.json")
            done(f"{verdict.status}, {verdict.n} pictures")
        with reporter.working("report", "writing the reports"):
            reference, candidate = as_judged(reference, candidate, terms)
            paths = {photo.key: photo.path for photo in self.opened.photos}
            write_ggufs((self.opened.pair.text, self.opened.pair.mmproj), folder)
            parts = (verdict, reference, candidate, ladder, lambda key: paths[key].read_bytes())
            write_reports(*parts, folder, terms)
        return verdict


def _walk(check: Check, photos: Sequence[Photo], folder: Path) -> str:
    """Run both sides over some of the pictures into the files of ``folder``."""
    _weights(check.opened)
    if check.under_contract:
        return _walk_canvases(check, photos, folder)
    opened = check.opened

    def step(batch: list[Photo]) -> Iterator[tuple[Photo, Row, Row, Measured]]:
        found = [opened.hf(photo) for photo in batch]
        for photo, one in zip(batch, found, strict=True):
            answer, trace = opened.llamacpp(photo, one)
            ours, theirs = opened.row(photo, one.answer, one.trace), opened.row(photo, answer, trace)
            decoders = _decoders(opened, photo)
            yield photo, ours, theirs, measure_traces((ours, one.trace), (theirs, trace), photo.size, decoders)

    code = code_digest(_walk)
    theirs = kept_by(opened.llamacpp_header(code), photos, _walk)  # first, as it tells soonest what cannot be run
    _check_decoders(opened, photos)
    ours = kept_by(opened.hf_header(code), photos, _walk)
    about = _compared(check, _floor(check, ours, partial(_measure_floor, opened)))
    keep((ours, theirs), photos, about, folder, opened.reporter, step, opened.together)
    return _equal(folder)


def _weights(opened: Opened) -> list[Weights]:
    """What the text half and the mmproj hold. Raises UserError where it is another model, or another training."""
    pair = opened.pair
    return refuse_other_weights(model_folder(pair.model), (pair.text, pair.mmproj), pair.adapter)


def _compared(check: Check, floor: NoiseFloor) -> Compared:
    opened = check.opened
    return Compared(
        contract_sha256=opened.terms.digest,
        dataset_sha256=opened.dataset_sha256,
        text_type=file_type(opened.pair.text),
        mmproj_type=file_type(opened.pair.mmproj),
        kv_type=cache_types(opened.terms),
        floor=floor,
    )


def _walk_canvases(check: Check, photos: Sequence[Photo], folder: Path) -> str:
    """The same with the contract's own engines."""
    opened, contract = check.opened, check.contract
    assert contract is not None
    pair = opened.pair
    with Sides(_merged(check), pair.text, pair.mmproj, contract, opened.dataset_sha256) as sides:
        header = header_under(sides.reference(), opened.terms, photos, _walk)
        measure = partial(floor_under, sides, opened.photos, contract, opened.reporter)
        about = _compared(check, _floor(check, header, measure))
        walk_under(sides, photos, opened.terms, about, folder, opened.reporter, _walk)
    return _equal(folder)


def _merged(check: Check) -> Path:
    """The model's folder, with the adapter in it where there is one."""
    pair = check.opened.pair
    if pair.adapter is None:
        return Path(pair.model)
    target = check.folder / "merged"
    with atomic_folder(target) as scratch:
        for file in sorted(Path(pair.model).iterdir()):
            if file.is_file() and not file.name.endswith((".safetensors", ".bin")):
                shutil.copy(file, scratch)
        load_model(pair.model, "float32", "cpu", pair.adapter).save_pretrained(scratch)
    return target


def _equal(folder: Path) -> str:
    rows = read_ladder(folder / LADDER).rows.values()
    equal = sum(row.generated_equal for row in rows)
    return f"{equal} of {len(rows)} answers are equal, token for token"


def _check_decoders(opened: Opened, photos: Sequence[Photo]) -> None:
    """Raise UserError, all problems together, where libmtmd cannot decode what Pillow can."""
    problems, side = Problems("photos"), opened.candidate()
    for photo in photos:
        if photo.image is None:
            try:
                side.decoded(photo.path)
            except UserError:
                problems.add(
                    photo.image_id,
                    "libmtmd cannot decode it (it reads JPEG, PNG, BMP, GIF), and Hugging Face can: save it as PNG, or"
                    " give --contract where an app decodes it",
                )
    problems.raise_any()


def _decoders(opened: Opened, photo: Photo) -> tuple[bool, int | None] | None:
    if photo.image:
        return None  # a canvas is made, not decoded
    rgb, decoded = photo.rgb, opened.candidate().decoded(photo.path)
    if decoded.shape != rgb.shape:
        return False, None
    apart = int(np.abs(decoded.astype(np.int16) - rgb).max(initial=0))
    return apart == 0, apart


def _floor(check: Check, header: Header, measure: Callable[[], NoiseFloor]) -> NoiseFloor:
    """The noise floor, measured once a model, a set of pictures and a version of what measures it."""
    of = digest(header.model_copy(update={"images": 0}).model_dump(mode="json"))
    path = check.folder / "noise.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["of"] == of:
            return validate(NoiseFloor, known["floor"], str(path))
    except (OSError, ValueError, KeyError, TypeError, UserError):
        pass
    floor = measure()
    write_json(path, {"of": of, "floor": floor.model_dump(mode="json")})
    return floor


def _measure_floor(opened: Opened) -> NoiseFloor:
    """Hugging Face in bfloat16 against float32, one model after the other."""
    chosen = spread(opened.photos, FLOOR_PICTURES)
    count = 2 * len(chosen)
    with opened.reporter.progress("floor", "pictures") as advance:
        exact = []
        for photo in chosen:
            exact.append(opened.hf(photo))
            advance(len(exact), count, "float32")
        rounded = opened.load("bfloat16")
        measured: list[Measured] = []
        for photo, one in zip(chosen, exact, strict=True):
            answer, trace = rounded.answer(photo.rgb, opened.asked_hf(photo), len(one.chosen), follow=one.chosen)
            rows = opened.row(photo, one.answer, one.trace), opened.row(photo, answer, trace)
            measured.append(measure_traces((rows[0], one.trace), (rows[1], trace), photo.size, None))
            advance(len(chosen) + len(measured), count, "bfloat16")
    del rounded
    gc.collect()
    return noise_floor(measured)


def _conform(check: Check, ladder: Ladder) -> str:
    """Find what the differences hang on."""
    opened = check.opened
    limits = limits_of(ladder.header, opened.terms.gate)
    apart = [photo for photo in opened.photos if parted_at(ladder.rows[photo.key], limits) not in (None, "S0")]
    chosen = spread(apart, MOST)
    found = []
    layers: tuple[LayerErrors, ...] = ()
    with opened.reporter.progress("causes", "pictures") as advance:
        for batch in batches(chosen, opened.together):
            answers = [opened.hf(photo) for photo in batch]
            for photo, one in zip(batch, answers, strict=True):
                answer, trace = opened.llamacpp(photo, one)
                rows = opened.row(photo, one.answer, one.trace), opened.row(photo, answer, trace)
                subject = Subject(
                    photo, opened.asked_llamacpp(photo), one.answer, one.trace, trace, rows,
                    token_limits(opened.processor().image_processor), ladder.rows[photo.key].logits_kl is None,
                )  # fmt: skip
                conformed = conform(opened.candidate(), subject, limits)
                found.append((photo.image_id, conformed.found))
                if check.layers and not layers:
                    layers = _layers(opened, subject, conformed, limits)
                advance(len(found), len(chosen), "")
    about = {"layers": layers, "survey": _surveyed(opened)}
    causes = explain(sum_up(found, len(apart)).model_copy(update=about), *_weights(opened))
    write_causes(causes, check.folder / CAUSES)
    return _told(causes)


def _surveyed(opened: Opened) -> str:
    try:
        return str(survey(opened.processor(), opened.candidate()))
    except Exception:  # a processor that counts in a way of its own, a size that one side refuses: only a help
        return ""


def _layers(opened: Opened, subject: Subject, conformed: Conformed, limits: Limits) -> tuple[LayerErrors, ...]:
    """Those of the half that differs; none where it is neither."""
    kind, given = conformed.found[-1].kind, conformed.given
    if kind not in ("vision", "language"):
        return ()
    if kind == "language" and (rows := pictures_of(subject.reference, subject.candidate)):
        given = replace(given, embeddings=rows[0])
    with ExitStack() as stack:
        if conformed.tokens is not None:
            stack.enter_context(opened.candidate().limited(conformed.tokens, conformed.tokens))
        errors = layer_errors(
            "vision" if kind == "vision" else "language", opened.reference, opened.candidate, subject,
            opened.asked_hf(subject.photo), given, conformed.rgb, limits.embeddings_each,
        )  # fmt: skip
    return (errors,)


def _told(causes: Causes) -> str:
    if not causes.differ:
        return "no picture is beyond a limit"
    kinds = ", ".join(f"{cause.kind} in {cause.pictures}" for cause in causes.found)
    return f"{causes.differ} pictures are beyond a limit; of {causes.tried} conformed: {kinds}"
