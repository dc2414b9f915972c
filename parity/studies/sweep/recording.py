"""The reference side run once and kept, so that every pair is held against the same answers.

    hf.results.jsonl   the rows; row i belongs to place i of the arrays
    log_probs.npy      float32 [images, vocabulary]
    embeddings.npy     float32 [images, tiles, tokens, hidden]

The arrays have room for all images and are sparse files: what is not recorded takes no space. 10,000 images
with a vocabulary of 49,280 take 2 GB. They are mapped for a batch at a time, so neither side's memory grows with them.
float32 moves a KL by 1e-7 nats at the most (measured against the live side, log-probabilities down to -60).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from parity.compare.runner import REFERENCE, batches, kept_by, observe, open_rows
from parity.compare.samples import Sample
from parity.engines import OpenSide
from parity.results import Row, read_results
from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.core.progress import Reporter
from pipeline.models.prediction import Prediction, Taps
from pipeline.models.smolvlm.encoding import Encoder, fed_bytes

LOG_PROBS, EMBEDDINGS = "log_probs.npy", "embeddings.npy"


def record(
    side: OpenSide, samples: Sequence[Sample], room: int, contract: Contract, folder: Path, reporter: Reporter
) -> None:
    """Answer the samples that are not recorded yet; ``room`` is the number of all images."""
    folder.mkdir(parents=True, exist_ok=True)
    if not all(_has_room(folder / name, room) for name in (LOG_PROBS, EMBEDDINGS)):
        (folder / REFERENCE).unlink(missing_ok=True)
    with (
        open_rows(folder / REFERENCE, kept_by(side.header, samples), samples, reporter, subset=True) as writer,
        reporter.progress("reference", "images") as advance,
    ):
        waiting = [sample for sample in samples if sample.key not in writer.keys]
        done = len(samples) - len(waiting)
        advance(done, len(samples), "")
        for batch in batches(waiting, side.predictor.batch_size):
            seen = observe(side.predictor, batch, contract)
            place = len(writer.keys)
            _store(folder / LOG_PROBS, room, place, np.stack([taps.log_probs for _, taps in seen]))
            _store(folder / EMBEDDINGS, room, place, np.stack([taps.embeddings for _, taps in seen]))
            for row, _ in seen:  # after the arrays: what has a row is recorded whole
                writer.append(row)
            done += len(batch)
            advance(done, len(samples), "")


def _has_room(path: Path, room: int) -> bool:
    try:
        return len(np.load(path, mmap_mode="r")) == room
    except (OSError, ValueError):
        return False


def _store(path: Path, room: int, place: int, values: npt.NDArray[np.floating]) -> None:
    if place:
        array = np.lib.format.open_memmap(path, mode="r+")
    else:
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(room, *values.shape[1:]))
    array[place : place + len(values)] = values
    array.flush()


class Recorded:
    """Plays the reference side back: canvas in, the recorded prediction and stages out."""

    side = "hf"
    batch_size = 16
    """It answers at once; a step that is seen."""

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self._folder, self._encoder = folder, encoder
        results = read_results(folder / REFERENCE)
        self.header = results.header
        self.prompt_ids = list(results.header.prompt_token_ids)
        self.image_slots = list(results.header.image_slots)
        self._rows = {key: (place, row) for place, (key, row) in enumerate(results.rows.items())}

    def observe(self, canvases: Iterable[npt.NDArray[np.uint8]]) -> Iterator[tuple[Prediction, Taps]]:
        """See :class:`parity.engines.Observer`. Raises UserError for a canvas that was not recorded."""
        log_probs, embeddings = (np.load(self._folder / name, mmap_mode="r") for name in (LOG_PROBS, EMBEDDINGS))
        geometry, contract = self._encoder.geometry, self._encoder.contract
        for canvas in canvases:
            key = sha256_bytes(canvas.tobytes())
            if key not in self._rows:
                raise UserError(f"{self._folder} has no image {key}: delete the folder and run the sweep again")
            place, row = self._rows[key]
            yield (
                _prediction(row),
                Taps(
                    tiles=list(self._encoder.pixel_values(fed_bytes(canvas, contract))),
                    mean=geometry.image_mean,
                    std=geometry.image_std,
                    prompt_ids=self.prompt_ids,
                    embeddings=np.array(embeddings[place]),
                    log_probs=log_probs[place].astype(np.float64),
                ),
            )


def _prediction(row: Row) -> Prediction:
    """What the row was made from; a null becomes NaN, which a row writes as null."""

    def number(value: float | None) -> float:
        return float("nan") if value is None else value

    return Prediction(
        rgb_sha256=row.rgb_sha256,
        text=row.text,
        generated_ids=row.generated_token_ids,
        stop_reason=row.stop_reason,
        label_logprobs={label: number(value) for label, value in row.label_logprobs.items()},
        top_logits=tuple((token, number(value)) for token, value in row.top_logits),
        ms=row.ms,
    )
