"""A finished run on which faults are planted.

The reference's stages of some samples are kept in memory; a fault changes what the candidate is given, runs it on these
samples, and hands over what a real run would have: both sides' results and the ladder of the two.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from parity.compare.ladder import Ladder
from parity.compare.measure import follow, measure
from parity.compare.runner import make_row
from parity.compare.samples import Sample, spread
from parity.judge.baseline import Baseline
from parity.judge.judge import judge
from parity.judge.verdict import GateResult, Verdict
from parity.results import Header, Results, Row
from parity.studies.selftest.forge import Draft, Gguf
from pipeline.contract import Contract
from pipeline.core.files import sha256_bytes, sha256_file
from pipeline.core.once import once
from pipeline.letterbox import letterbox
from pipeline.models.prediction import Taps
from pipeline.models.smolvlm.encoding import Encoder, make_encoder

FEW = 24
"""Samples at most for a fault that changes every image: whether bytes or tokens are equal needs no statistics."""
SIZES = ((427, 320), (320, 427), (641, 480), (3024, 2017))
"""Of the photos, in turn. 427 and 3024 scale to 255 with the phone's Float and to 256 in float64; all leave an odd
margin on the shorter axis, which is halved one way or the other."""

Canvas = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Seen:
    """What one side made of some samples."""

    header: Header
    images: list[tuple[Row, Taps]]
    decoded: list[bool | None] = field(default_factory=list)
    """Whether it decoded the samples' files to the samples' bytes."""

    @property
    def results(self) -> Results:
        """As a results file would have it."""
        return Results(self.header, {row.key: row for row, _ in self.images})


@dataclass(frozen=True)
class Evidence:
    """All that a verdict is made from."""

    reference: Results
    candidate: Results
    ladder: Ladder | None
    contract: Contract
    checks: tuple[GateResult, ...] = ()
    baseline: Baseline | None = None

    def with_candidate(self, rows: Mapping[str, Row]) -> "Evidence":
        """The candidate gave these rows, and the ladder was walked with them: images that have none are left out."""
        kept = {key: row for key, row in self.reference.rows.items() if key in rows}
        ladder = self.ladder
        if ladder:
            lines = {key: follow(ladder.rows[key], row, rows[key]) for key, row in kept.items()}
            ladder = Ladder(ladder.header, lines)
        return replace(
            self,
            reference=Results(self.reference.header, kept),
            candidate=Results(self.candidate.header, dict(rows)),
            ladder=ladder,
        )

    def judged(self) -> Verdict:
        """The verdict on it."""
        return judge(self.reference, self.candidate, self.contract, self.checks, self.ladder, baseline=self.baseline)


@dataclass(frozen=True)
class Bench:
    """A run that passed, or at least parts nowhere."""

    contract: Contract
    merged: Path
    base: Path
    """The model that was fine-tuned."""
    model: Path
    mmproj: Path
    saved: Evidence
    """The run's own results and ladder, all images."""
    samples: Sequence[Sample]
    """Those that the candidate is run on."""
    scratch: Path
    done: dict[str, Any] = field(default_factory=dict, init=False)
    """What was loaded, run and exported."""

    @property
    def few(self) -> Sequence[Sample]:
        """Some of the samples, evenly over all."""
        return spread(self.samples, FEW)

    @once
    def read_text(self) -> Gguf:
        """The language half."""
        return Gguf(self.model)

    @once
    def read_vision(self) -> Gguf:
        """The vision half."""
        return Gguf(self.mmproj)

    @once
    def _load_tokenizer(self) -> Any:
        from pipeline.models.smolvlm.folder import load_tokenizer

        return load_tokenizer(self.merged)

    @once
    def _load_reference(self) -> Any:
        from parity.engines.hf import load_reference

        return load_reference(self.merged)

    def encoder(self, contract: Contract) -> Encoder:
        """A contract's encoder for the merged model."""
        from pipeline.models.smolvlm.folder import read_geometry

        return make_encoder(contract, self._load_tokenizer(), read_geometry(self.merged))

    def run_reference(self, contract: Contract, samples: Sequence[Sample]) -> Seen:
        """Run Hugging Face. The header says what the run's own says but for the prompt's layout."""
        from pipeline.models.smolvlm.inference import HfPredictor

        predictor = HfPredictor(self._load_reference(), self._load_tokenizer(), self.encoder(contract))
        return self._seen(predictor, self.saved.reference.header, samples, [sample.rgb for sample in samples])

    @once
    def answer_reference(self) -> Seen:
        """Hugging Face on the samples."""
        return self.run_reference(self.contract, self.samples)

    @once
    def make_photos(self) -> tuple[list[Any], list[Sample], Seen]:
        """(photos of several sizes, samples of them as the contract letterboxes them, Hugging Face on these)."""
        from PIL import Image

        folder = self.scratch / "photos"
        folder.mkdir()
        pictures, samples = [], []
        for number, sample in enumerate(self.few):
            picture = Image.fromarray(sample.rgb).resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC)
            picture.getexif()[0x0112] = 6  # as a phone held upright writes it; the app ignores it
            canvas = letterbox(picture, self.contract)
            path = f"{number}.png"
            canvas.save(folder / path)
            about = {"image_path": path, "rgb_sha256": sha256_bytes(canvas.tobytes())}
            pictures.append(picture)
            samples.append(Sample(folder, sample.record.model_copy(update=about)))
        return pictures, samples, self.run_reference(self.contract, samples)

    def run_candidate(
        self,
        model: Path | None = None,
        mmproj: Path | None = None,
        contract: Contract | None = None,
        samples: Sequence[Sample] | None = None,
        canvases: Sequence[Canvas] | None = None,
        files: Sequence[Path] | None = None,
        **stated: Any,
    ) -> Seen:
        """Run llama.cpp with what is given in place of the run's own; the header owns up to none of it but the files'
        hashes and types, the prompt's layout, and what is ``stated``."""
        from parity.engines.llamacpp import LlamaCppPredictor
        from parity.engines.pair import tensor_types

        model, mmproj = model or self.model, mmproj or self.mmproj
        samples = self.samples if samples is None else samples
        hashes = {"model": {"model": sha256_file(model), "mmproj": sha256_file(mmproj)}}
        with LlamaCppPredictor(model, mmproj, self.encoder(contract or self.contract), tapped=True) as predictor:
            own = self.saved.candidate.header
            types = {"text_types": tensor_types(model), "mmproj_types": tensor_types(mmproj)}
            header = own.model_copy(update={"runtime": own.runtime | types} | hashes | stated)
            seen = self._seen(predictor, header, samples, canvases or [sample.rgb for sample in samples])
            paths = files or [sample.folder / sample.record.image_path for sample in samples]
            for path, sample in zip(paths, samples, strict=True):
                seen.decoded.append(sha256_bytes(predictor.decoded(path).tobytes()) == sample.key)
        return seen

    def _seen(self, predictor: Any, header: Header, samples: Sequence[Sample], canvases: Sequence[Canvas]) -> Seen:
        layout = {"prompt_token_ids": tuple(predictor.prompt_ids), "image_slots": tuple(predictor.image_slots)}
        observed = predictor.observe(canvases)
        images = [
            (make_row(sample, prediction, self.contract), taps)
            for sample, (prediction, taps) in zip(samples, observed, strict=True)
        ]
        return Seen(header.model_copy(update=layout), images)

    def compared(self, candidate: Seen, reference: Seen | None = None, contract: Contract | None = None) -> Evidence:
        """Hold the candidate against the reference, stage by stage, under ``contract``, which both claim."""
        contract = contract or self.contract
        claimed = {"contract_sha256": contract.digest}
        known = {image[0].key: image for image in (reference or self.answer_reference()).images}
        header = (reference or self.answer_reference()).header
        reference = Seen(header, [known[row.key] for row, _ in candidate.images])
        kv = {"kv_type": f"{contract.runtime.type_k}/{contract.runtime.type_v}"}
        rows = {
            ours[0].key: measure(ours, theirs, decoded)
            for ours, theirs, decoded in zip(reference.images, candidate.images, candidate.decoded, strict=True)
        }
        assert self.saved.ladder is not None
        ladder = Ladder(self.saved.ladder.header.model_copy(update=claimed | kv), rows)
        sides = [Results(seen.header.model_copy(update=claimed), seen.results.rows) for seen in (reference, candidate)]
        return Evidence(sides[0], sides[1], ladder, contract, self.saved.checks)

    def with_text(self, change: Callable[[Draft], None], **given: Any) -> Evidence:
        """Plant ``change`` in the language half."""
        model = self.read_text().forged(self.scratch / self.model.name, change)
        return self.compared(self.run_candidate(model=model, **given))

    def with_vision(self, change: Callable[[Draft], None], **given: Any) -> Evidence:
        """Plant ``change`` in the vision half."""
        mmproj = self.read_vision().forged(self.scratch / self.mmproj.name, change)
        return self.compared(self.run_candidate(mmproj=mmproj, **given))

    @once
    def export_base(self) -> tuple[Path, Path]:
        """The base model's halves, exported in the run's types and with the run's metadata."""
        from pipeline.export.convert import (
            KEY_ADD_BOS,
            KEY_CONTRACT,
            KEY_RECIPE,
            KEY_WEIGHTS,
            convert_mmproj,
            convert_text,
        )

        assert self.saved.ladder is not None
        header: Any = self.saved.ladder.header
        text, mmproj = self.scratch / "base.gguf", self.scratch / "mmproj-base.gguf"
        keys = (KEY_CONTRACT, KEY_RECIPE, KEY_WEIGHTS)
        added = {key: self.read_vision().value(key) for key in keys}
        name, threads = self.read_vision().value("general.name"), os.cpu_count() or 1
        with ThreadPoolExecutor(1) as other:  # each converter is a process of its own
            half = other.submit(convert_mmproj, self.base, mmproj, header.mmproj_type, name, added)
            bos = {KEY_ADD_BOS: self.contract.add_bos}
            convert_text(self.base, text, header.text_type, name, added | bos, threads)
            half.result()
        return text, mmproj
