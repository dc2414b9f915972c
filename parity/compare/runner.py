"""Both sides over the same samples, batch by batch, with the ladder of each image written as it is walked.

Neither side's tensors are kept: what is compared of an image is measured while both are in memory, so that a run of ten
thousand images needs no more than one of a hundred.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from parity.compare.ladder import Compared, Ladder, LadderHeader, LadderWriter, Measured, NoiseFloor, header_digest
from parity.compare.measure import measure, noise_floor, tile_bytes
from parity.compare.samples import Sample, row_check, spread
from parity.engines import Observer, OpenSide
from parity.results import Header, ResultsWriter, Row
from pipeline.contract import Contract
from pipeline.core.closure import code_digest
from pipeline.core.files import atomic_folder, sha256_bytes
from pipeline.core.progress import Reporter
from pipeline.models.prediction import Prediction, Taps

REFERENCE, CANDIDATE, LADDER = "hf.results.jsonl", "llamacpp.results.jsonl", "ladder.jsonl"
FLOOR_SAMPLES = 64
"""Images that the noise floor is measured on: their median is within some percent of that of all."""
KEPT = 5
"""Images whose tensors are kept for study."""


def kept_by(header: Header, samples: Sequence[Any], runner: Callable[..., Any] | None = None) -> Header:
    """A side's header with what is answered and the code that keeps it: rows of other code are no part of a run."""
    about = {
        "split": samples[0].split,
        "photos": getattr(samples[0], "photos", None),
        "versions": header.versions | {"runner": code_digest(runner or walk)},
    }
    return header.model_copy(update=about | {"images": len(samples)})


def open_rows(
    path: Path, header: Header, samples: Sequence[Any], reporter: Reporter, subset: bool = False
) -> ResultsWriter:
    """A side's file, with the rows that an earlier run left in it; those that the dataset contradicts, or that are not
    as they were written, are not kept, and the person waiting is told.

    ``subset``: the file may keep rows of images that are not among ``samples``.
    """
    check = row_check(header, samples, subset)
    writer = ResultsWriter(path, header, [sample.key for sample in samples], check)
    _say_changed(path, writer.changed, reporter)
    return writer


def _say_changed(path: Path, why: str, reporter: Reporter) -> None:
    if why:
        reporter.say(path.name.partition(".")[0], f"{path.name} is answered again: {why}")


def make_row(sample: Any, prediction: Prediction, contract: Contract) -> Row:
    """What is written of an answer."""
    return Row(
        key=sample.key,
        image_id=sample.image_id,
        rgb_sha256=prediction.rgb_sha256,
        truth=sample.truth,
        text=prediction.text,
        label=contract.parse_answer(prediction.text),
        generated_token_ids=prediction.generated_ids,
        label_logprobs=prediction.label_logprobs,
        top_logits=prediction.top_logits,
        ms=prediction.ms,
        stop_reason=prediction.stop_reason,
    )


def observe(side: Observer, samples: Sequence[Any], contract: Contract) -> list[tuple[Row, Taps]]:
    """A side's rows and stages of some samples, all in memory."""
    seen = side.observe(sample.rgb for sample in samples)
    return [
        (make_row(sample, prediction, contract), taps) for sample, (prediction, taps) in zip(samples, seen, strict=True)
    ]


def batches(samples: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """``samples`` in their order, ``size`` at a time: what both sides have in memory together."""
    waiting = iter(samples)
    while batch := list(islice(waiting, size)):
        yield batch


def measure_floor(
    reference: Observer, rounded: Observer, samples: Sequence[Any], contract: Contract, reporter: Reporter
) -> NoiseFloor:
    """The same side in float32 (``reference``) and in bfloat16 (``rounded``), on at most FLOOR_SAMPLES samples.

    They are taken evenly over all, so that every label has its share.
    """
    chosen = spread(samples, FLOOR_SAMPLES)
    measured: list[Measured] = []
    with reporter.progress("floor", "images") as advance:
        for batch in batches(chosen, reference.batch_size):
            pairs = zip(observe(reference, batch, contract), observe(rounded, batch, contract), strict=True)
            measured += [measure(a, b, None) for a, b in pairs]
            advance(len(measured), len(chosen), "")
    return noise_floor(measured)


def answer_all(side: OpenSide, samples: Sequence[Sample], contract: Contract, path: Path, reporter: Reporter) -> None:
    """Run one side alone: append a row to ``path`` for every sample that has none there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        open_rows(path, kept_by(side.header, samples), samples, reporter) as writer,
        reporter.progress(side.predictor.side, "images") as advance,
    ):
        waiting = [sample for sample in samples if sample.key not in writer.keys]
        done = len(samples) - len(waiting)
        advance(done, len(samples), "")
        predictions = side.predictor.predict(sample.rgb for sample in waiting)
        for sample, prediction in zip(waiting, predictions, strict=True):
            writer.append(make_row(sample, prediction, contract))
            done += 1
            advance(done, len(samples), "")


Step = Callable[[list[Any]], Iterator[tuple[Any, Row, Row, Measured]]]
"""Runs both sides over some samples: (sample, reference's row, candidate's row, what was measured), in their order."""


def walk(
    reference: OpenSide,
    candidate: OpenSide,
    samples: Sequence[Sample],
    contract: Contract,
    about: Compared,
    folder: Path,
    reporter: Reporter,
    subset: bool = False,
) -> None:
    """Run both sides over ``samples`` into the three files of ``folder``; images that stand in all three are left out.

    A run that is killed goes on where it stopped. ``subset``: the files may have other images of the dataset, too.
    """

    def step(batch: list[Sample]) -> Iterator[tuple[Sample, Row, Row, Measured]]:
        a_rows = observe(reference.predictor, batch, contract)
        b_rows = observe(candidate.predictor, batch, contract)
        for sample, a, b in zip(batch, a_rows, b_rows, strict=True):
            yield sample, a[0], b[0], measure(a, b, _decodes_alike(candidate.predictor, sample))

    headers = kept_by(reference.header, samples), kept_by(candidate.header, samples)
    keep(headers, samples, about, folder, reporter, step, reference.predictor.batch_size, subset)


def keep(
    headers: tuple[Header, Header],
    samples: Sequence[Any],
    about: Compared,
    folder: Path,
    reporter: Reporter,
    step: Step,
    size: int,
    subset: bool = False,
) -> None:
    """Do ``step`` with the samples that are not in the three files of ``folder``, ``size`` at a time, and append."""
    folder.mkdir(parents=True, exist_ok=True)
    header = LadderHeader(
        **about.model_dump(), reference_sha256=header_digest(headers[0]), candidate_sha256=header_digest(headers[1])
    )
    with ExitStack() as stack:
        ours = stack.enter_context(open_rows(folder / REFERENCE, headers[0], samples, reporter, subset))
        theirs = stack.enter_context(open_rows(folder / CANDIDATE, headers[1], samples, reporter, subset))
        if ours.changed or theirs.changed:
            (folder / LADDER).unlink(missing_ok=True)  # it is of answers that are given anew
        ladder = stack.enter_context(LadderWriter(folder / LADDER, header, [sample.key for sample in samples]))
        _say_changed(folder / LADDER, ladder.changed, reporter)
        advance = stack.enter_context(reporter.progress("ladder", "images"))
        waiting = [sample for sample in samples if sample.key not in ours.keys & theirs.keys & ladder.keys]
        done = len(samples) - len(waiting)
        advance(done, len(samples), "")
        for batch in batches(waiting, size):
            for sample, a, b, measured in step(batch):
                # The ladder's line comes last: an image that has one has all three.
                if sample.key not in ours.keys:
                    ours.append(a)
                if sample.key not in theirs.keys:
                    theirs.append(b)
                if sample.key not in ladder.keys:
                    ladder.append(measured)
                done += 1
            advance(done, len(samples), "")


def _decodes_alike(candidate: Any, sample: Sample) -> bool:
    """Whether the candidate's own decoder makes the sample's bytes of the sample's file."""
    decoded = candidate.decoded(sample.path)
    return sha256_bytes(decoded.tobytes()) == sample.key


def keep_worst(
    reference: Observer,
    candidate: Observer,
    samples: Sequence[Sample],
    contract: Contract,
    ladder: Ladder,
    folder: Path,
) -> None:
    """Save every stage's tensors of the images that are farthest apart, as ``<folder>/<key's first 16>.npz``.

    Each holds, with the prefixes ``reference_`` and ``candidate_``: tiles_u8 [n, 3, tile, tile], tiles, embeddings
    [n, tokens, hidden], log_probs [vocabulary], prompt_ids, generated_ids; and canvas [size, size, 3].
    """

    def badness(row: Measured) -> tuple[bool, float]:
        return row.label_equal, -(row.logits_kl if row.logits_kl is not None else float("inf"))

    worst = {row.key for row in sorted(ladder.rows.values(), key=badness)[:KEPT]}
    chosen = [sample for sample in samples if sample.key in worst]
    sides = (observe(reference, chosen, contract), observe(candidate, chosen, contract))
    with atomic_folder(folder) as out:
        for sample, *both in zip(chosen, *sides, strict=True):
            arrays: dict[str, Any] = {"canvas": sample.rgb}
            for name, (row, taps) in zip(("reference", "candidate"), both, strict=True):
                arrays |= {
                    f"{name}_tiles_u8": tile_bytes(taps),
                    f"{name}_tiles": np.stack(list(taps.tiles)),
                    f"{name}_embeddings": taps.embeddings,
                    f"{name}_log_probs": taps.log_probs,
                    f"{name}_prompt_ids": np.array(taps.prompt_ids, np.int32),
                    f"{name}_generated_ids": np.array(row.generated_token_ids, np.int32),
                }
            np.savez_compressed(out / f"{sample.key[:16]}.npz", **arrays)
