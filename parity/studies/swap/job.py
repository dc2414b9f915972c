"""The swap matrix: one side's tensors and settings put into the other, to see which part makes which error.

Every row is held against Hugging Face in float32 on the same images. Rows of the recipe's own GGUF types use the
bundle's files, so that a damaged one shows; the other types are exported into ``swap/gguf/`` and kept.

runs/<recipe>/swap/  swap.json  swap.md  rows/<row>.json  gguf/  stages/

A row that is measured is not measured again unless something that it depends on changed, so a killed run goes on.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from parity.compare.ladder import Measured
from parity.compare.measure import measure
from parity.compare.runner import batches, make_row, observe
from parity.compare.samples import Sample, load_samples, spread
from parity.results import Row
from parity.studies.swap.attribution import attribute
from parity.studies.swap.matrix import (
    EXACT,
    EXACT_KV,
    FLOOR,
    SHIPPED,
    SWAPPED,
    SwapMatrix,
    SwapRow,
    Takes,
    Variant,
    kv_name,
    mmproj_row,
    runtime_row,
    text_row,
)
from parity.studies.swap.tables import markdown
from pipeline.contract import ChannelOrder, Contract, Runtime
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_file, write_json, write_text
from pipeline.core.gguf_types import MmprojType, TextType
from pipeline.core.once import once
from pipeline.core.progress import Advance, Reporter
from pipeline.core.provenance import digest, machine, versions
from pipeline.core.settings import validate
from pipeline.export.bundle import mmproj_name, text_name
from pipeline.export.half import Exporter, Half
from pipeline.models.prediction import Taps
from pipeline.workflow.build import Build
from pipeline.workflow.stage import Stage

FOLDER = "swap"
SAMPLES = 64


def variants(contract: Contract, text_type: TextType, mmproj_type: MmprojType) -> list[Variant]:
    """The rows for a shipped pair of these types under the contract's runtime."""
    order = contract.image.channel_order
    other: ChannelOrder = "bgr" if order == "rgb" else "rgb"

    def runtime(k: str, v: str, flash: bool) -> Runtime:
        changed = {"type_k": k, "type_v": v, "flash_attn": flash}
        return Runtime.model_validate(contract.runtime.model_dump() | changed)

    exact = runtime(EXACT_KV, EXACT_KV, False)

    def row(
        name: str,
        title: str,
        takes: Takes = "own",
        text: TextType = "F32",
        mmproj: MmprojType = "F32",
        under: Runtime = exact,
        fed: ChannelOrder = order,
    ) -> Variant:
        return Variant(name=name, title=title, takes=takes, text_type=text, mmproj_type=mmproj, runtime=under, fed=fed)

    rows = [Variant(name=FLOOR, title="HF bfloat16", fed=order)]
    rows += [row(name, "F32 + F32", takes) for name, takes in _swaps(EXACT)]
    texts: tuple[TextType, ...] = ("F16", "Q8_0", text_type)
    rows += [row(text_row(kind), f"text {kind}", "embeddings", text=kind) for kind in texts]
    mmprojs: tuple[MmprojType, ...] = ("F16", "Q8_0", mmproj_type)
    rows += [row(mmproj_row(kind), f"mmproj {kind}", "pixels", mmproj=kind) for kind in mmprojs]
    # llama.cpp takes quantized values with flash attention alone.
    caches = [("f32", "f32", True), ("f16", "f16", False), ("f16", "f16", True), ("q4_0", "f16", False),
              ("q4_0", "q4_0", True)]  # fmt: skip
    for under in (*(runtime(*cache) for cache in caches), contract.runtime):
        title = f"KV {kv_name(under)}{', flash' if under.flash_attn else ''}"
        rows.append(row(runtime_row(under), title, "embeddings", under=under))
    rows.append(row(SWAPPED, f"{other} fed", fed=other))
    rows += [row(name, "shipped", takes, text_type, mmproj_type, contract.runtime) for name, takes in _swaps(SHIPPED)]
    first: dict[str, Variant] = {}
    for variant in rows:
        first.setdefault(variant.name, variant)
    return list(first.values())


def _swaps(name: str) -> Iterator[tuple[str, Takes]]:
    for takes in get_args(Takes):
        yield name if takes == "own" else f"{name}-{takes}", takes


@dataclass(frozen=True)
class Swaps:
    """A shipped pair, the model it was made from, and the images to try them on."""

    exporter: Exporter
    """Makes the types that the pair has not."""
    merged_sha256: str
    """Of all the merged folder's files."""
    text: Path
    mmproj: Path
    text_type: TextType
    mmproj_type: MmprojType
    samples: Sequence[Sample]
    dataset_sha256: str
    folder: Path
    reporter: Reporter
    done: dict[str, Any] = field(default_factory=dict, init=False)
    """What was loaded, run and found."""

    @property
    def contract(self) -> Contract:
        """The exporter's."""
        return self.exporter.contract

    @property
    def merged(self) -> Path:
        """The exporter's."""
        return self.exporter.merged

    def run(self) -> SwapMatrix:
        """Measure what is not measured yet, and write ``swap.json`` and ``swap.md``.

        Raises UserError where the sides lay the prompt out otherwise, for then nothing fits into the other.
        """
        wanted = variants(self.contract, self.text_type, self.mmproj_type)
        for variant in wanted:
            if variant.runtime:  # all exports first, so that one bar tells of the rows
                text_type, mmproj_type, _ = variant.llama
                self._file("text", text_type)
                self._file("mmproj", mmproj_type)
        rows = {}
        with self.reporter.progress("swap", "images") as advance:
            for number, variant in enumerate(wanted):
                before = number * len(self.samples)

                def tell(done: int, _: int, note: str, before: int = before) -> None:
                    advance(before + done, len(wanted) * len(self.samples), note)

                tell(0, 0, "")
                rows[variant.name] = self._row(variant, tell)
        matrix = SwapMatrix(
            samples=len(self.samples),
            contract_sha256=self.contract.digest,
            dataset_sha256=self.dataset_sha256,
            model={"model": self._file("text", self.text_type)[1], "mmproj": self._file("mmproj", self.mmproj_type)[1]},
            rows=tuple(rows.values()),
            attribution=attribute(rows, self.contract.gate.noise_factor),
        )
        write_json(self.folder / "swap.json", matrix.model_dump(mode="json"))
        write_text(self.folder / "swap.md", markdown(matrix))
        return matrix

    @once
    def _find_files(self) -> dict[tuple[Half, str], tuple[Path, str]]:
        """(half, type) -> (file, SHA-256), those asked for so far."""
        return {
            ("text", self.text_type): (self.text, sha256_file(self.text)),
            ("mmproj", self.mmproj_type): (self.mmproj, sha256_file(self.mmproj)),
        }

    def _file(self, half: Half, kind: TextType | MmprojType) -> tuple[Path, str]:
        """A half in a type: the bundle's own where it has it, else exported, and kept for the next time."""
        if (half, kind) not in self._find_files():
            path = self.folder / "gguf" / self.exporter.file_name(half, kind)
            depends = {
                "merged": self.merged_sha256,
                "contract": self.contract.digest,
                "recipe": self.exporter.recipe,
                "name": self.exporter.name,
                "versions": versions(),
            }
            work = partial(self.exporter.export, half, kind, path)
            Stage(f"{half}-{kind}", depends, work, (f"gguf/{path.name}",)).run(self.folder, self._say)
            self._find_files()[half, kind] = (path, sha256_file(path))
        return self._find_files()[half, kind]

    def _say(self, stage: str, text: str) -> None:
        if not text.startswith("unchanged"):
            self.reporter.say("swap", f"{stage}: {text}")

    def _row(self, variant: Variant, advance: Advance) -> SwapRow:
        path = self.folder / "rows" / f"{variant.name}.json"
        files = {}
        if variant.runtime:
            text_type, mmproj_type, _ = variant.llama
            files = {"text": self._file("text", text_type)[1], "mmproj": self._file("mmproj", mmproj_type)[1]}
        depends = {
            "variant": variant.model_dump(mode="json"),
            "files": files,
            "merged": self.merged_sha256,
            "contract": self.contract.model_dump(mode="json", exclude={"gate", "runtime", "name"}),
            "samples": digest([sample.key for sample in self.samples]),
            "versions": versions(),
            "machine": machine(),
        }
        work = partial(self._write_row, variant, path, advance)
        Stage(f"row-{variant.name}", depends, work, (f"rows/{path.name}",)).run(self.folder, lambda *_: None)
        return validate(SwapRow, json.loads(path.read_text(encoding="utf-8")), str(path))

    def _write_row(self, variant: Variant, path: Path, advance: Advance) -> str:
        write_json(path, self._measure(variant, advance).model_dump(mode="json"))
        return "measured"

    @once
    def _run_reference(self) -> list[tuple[Row, Taps]]:
        """Hugging Face in float32 on every image."""
        from parity.engines.hf import open_hf

        predictor = open_hf(self.merged, self.contract, self.dataset_sha256).predictor
        seen = []
        for batch in batches(self.samples, predictor.batch_size):
            seen += observe(predictor, batch, self.contract)
        return seen

    @once
    def _make_encoder(self) -> Any:
        from parity.engines.header import encoder_of

        return encoder_of(self.merged, self.contract)

    def _measure(self, variant: Variant, advance: Advance) -> SwapRow:
        reference = self._run_reference()
        measured: list[Measured] = []
        squares: list[float] = []
        flips = correct = 0
        with ExitStack() as stack:
            side = self._open(variant, stack)
            if list(side.prompt_ids) != list(reference[0][1].prompt_ids):
                raise UserError(
                    f"llama.cpp lays the prompt out in {len(side.prompt_ids)} tokens and Hugging Face in"
                    f" {len(reference[0][1].prompt_ids)}, or with others, so nothing of one fits into the other: run"
                    " `parity run` and fix what its gate 'tokens' says"
                )
            for batch in batches(self.samples, side.batch_size):
                ours = reference[len(measured) : len(measured) + len(batch)]
                for a, b in zip(ours, self._answers(variant, side, batch, ours), strict=True):
                    measured.append(measure(a, b, None))
                    squares.append(_square(a[1], b[1]))
                    flips += a[0].label != b[0].label
                    correct += b[0].correct
                advance(len(measured), len(self.samples), f"{variant.title} {variant.takes}")
        return _sum_up(variant, measured, squares, flips, correct, sum(row.correct for row, _ in reference))

    def _open(self, variant: Variant, stack: ExitStack) -> Any:
        """The row's predictor, without the header that ``open_llamacpp`` reads seconds for."""
        if variant.runtime is None:
            from parity.engines.hf import open_hf

            return open_hf(self.merged, self.contract, self.dataset_sha256, "bfloat16").predictor
        from parity.engines.llamacpp import LlamaCppPredictor

        text_type, mmproj_type, runtime = variant.llama
        pair = (self._file("text", text_type)[0], self._file("mmproj", mmproj_type)[0])
        image = self.contract.image.model_copy(update={"channel_order": variant.fed})
        contract = self.contract.model_copy(update={"runtime": runtime, "image": image})
        return stack.enter_context(
            LlamaCppPredictor(*pair, replace(self._make_encoder(), contract=contract), tapped=True)
        )

    def _answers(
        self, variant: Variant, side: Any, batch: Sequence[Sample], ours: Sequence[tuple[Row, Taps]]
    ) -> list[tuple[Row, Taps]]:
        canvases = (sample.rgb for sample in batch)
        given: dict[str, Any] = {}
        if variant.takes == "pixels":
            given = {"tiles": (np.asarray(taps.tiles) for _, taps in ours)}
        elif variant.takes == "embeddings":
            given = {"embeddings": (taps.embeddings for _, taps in ours)}
        seen = side.observe(canvases, **given)
        return [
            (make_row(sample, prediction, self.contract), taps)
            for sample, (prediction, taps) in zip(batch, seen, strict=True)
        ]


def _square(a: Taps, b: Taps) -> float:
    """Mean square of the logits' differences, in variances of ``a``'s; each side's mean is taken off."""
    apart = a.log_probs - b.log_probs
    return float(apart.var() / a.log_probs.var())


def _sum_up(
    variant: Variant, measured: Sequence[Measured], squares: Sequence[float], flips: int, correct: int, reference: int
) -> SwapRow:
    def column(name: str, summary: Callable[[Any], Any]) -> float | None:
        values = [getattr(row, name) for row in measured]
        return None if None in values else float(summary(np.array(values, np.float64)))

    def p95(values: Any) -> Any:
        return np.quantile(values, 0.95)

    return SwapRow(
        variant=variant,
        samples=len(measured),
        tiles_floats=column("tiles_floats", np.max),
        embeddings_error=column("embeddings_error", np.median),
        kl_median=column("logits_kl", np.median),
        kl_mean=column("logits_kl", np.mean),
        kl_p95=column("logits_kl", p95),
        kl_labels_median=column("logits_kl_labels", np.median),
        kl_labels_mean=column("logits_kl_labels", np.mean),
        logits_rms=float(np.sqrt(np.mean(squares))),
        top1_changes=sum(not row.logits_top1_equal for row in measured),
        label_flips=flips,
        correct=correct,
        reference_correct=reference,
    )


def swap(build: Build, count: int = SAMPLES, folder: Path | None = None) -> SwapMatrix:
    """Make the matrix of a recipe's bundle on at most ``count`` of its images, taken evenly over all."""
    build.ensure_export()
    recipe = build.recipe
    samples, dataset_sha256 = load_samples(build.dataset_folder, recipe.contract)
    return Swaps(
        exporter=Exporter(build.merged_folder, recipe.export.name, recipe.contract, recipe.name, build.threads),
        merged_sha256=build.ensure_merge(),
        text=build.bundle_folder / text_name(recipe),
        mmproj=build.bundle_folder / mmproj_name(recipe),
        text_type=recipe.export.text_type,
        mmproj_type=recipe.export.mmproj_type,
        samples=spread(samples, count),
        dataset_sha256=dataset_sha256,
        folder=folder or build.root / FOLDER,
        reporter=build.reporter,
    ).run()
