"""The same inputs for every side: the canvases that a dataset has to judge on, keyed by content, never by position."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from parity.results import Header, Row
from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.dataset.records import Record, load_rgb, read_dataset
from pipeline.dataset.split import Split


@dataclass(frozen=True)
class Sample:
    """One canvas and what is known of it."""

    folder: Path
    record: Record
    split: Split = "validation"
    """The part of the dataset that it is from."""
    photos: int | None = None
    """Labelled photos in the whole dataset; None where its parts are of different folders."""

    @property
    def key(self) -> str:
        """SHA-256 of the decoded canvas, RGB bytes row by row."""
        return self.record.rgb_sha256

    @property
    def rgb_sha256(self) -> str:
        """The same."""
        return self.key

    @property
    def image_id(self) -> str:
        """For people; nothing is matched by it."""
        return self.record.image_id

    @property
    def path(self) -> Path:
        """The canvas's file."""
        return self.folder / self.record.image_path

    @property
    def truth(self) -> str:
        """The label that the record states."""
        return self.record.element

    @property
    def rgb(self) -> npt.NDArray[np.uint8]:
        """The canvas, [size, size, 3], decoded anew each time: ten thousand of them would be 2 GB."""
        return load_rgb(self.folder, self.record)


def spread(samples: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` samples, evenly over the whole list, so that every label has its share."""
    count = min(count, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


def load_samples(folder: Path, contract: Contract) -> tuple[list[Sample], str]:
    """(the test images, or the validation images where there are none; the dataset's digest). Raises UserError where
    the dataset is not valid."""
    dataset = read_dataset(folder, contract)
    split, records = dataset.judged
    if not records:
        raise UserError(f"dataset {folder} has neither test nor validation images: parity needs some")
    photos = (
        None if split == "test" and _tests_apart(folder) else sum(map(len, (dataset.train, dataset.val, dataset.test)))
    )
    return [Sample(folder, record, split, photos) for record in records], dataset.digest


def _tests_apart(folder: Path) -> bool:
    """Whether the test images come from photos of their own, and not from a share of all."""
    try:
        split = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["split"]
        return bool(split["test_apart"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def row_check(
    header: Header, samples: Sequence[Any], subset: bool = False, pixels: bool = True
) -> Callable[[Row], str | None]:
    """What is wrong with a row of a side's file, in a few words, or None: it must be of one of ``samples``, state the
    dataset's ground truth, and be of the picture's own bytes, in the channel order that the header states.

    ``subset``: the file may have other images of the dataset, too. ``pixels`` off leaves the bytes to the judge.
    """
    known = {sample.key: sample for sample in samples}
    fed = header.runtime.get("fed", "rgb")

    def wrong(row: Row) -> str | None:
        sample = known.get(row.key)
        if sample is None:
            return None if subset else f"the dataset has no image {row.image_id} (key {row.key[:16]})"
        if (row.image_id, row.truth) != (sample.image_id, sample.truth):
            return (
                f"its image {row.image_id} with ground truth {row.truth!r} is {sample.image_id} with"
                f" {sample.truth!r} in the dataset"
            )
        if not pixels:
            return None
        expected = sample.rgb_sha256 if fed == "rgb" else sha256_bytes(sample.rgb[..., ::-1].tobytes())
        if row.rgb_sha256 != expected:
            return f"its row of {row.image_id} is not of the dataset's picture as {str(fed).upper()}"
        return None

    return wrong
