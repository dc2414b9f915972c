"""The same inputs for every side: the canvases that a dataset has to judge on, keyed by content, never by position."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.dataset.records import Record, load_rgb, read_dataset
from pipeline.dataset.split import Split


@dataclass(frozen=True)
class Sample:
    """One canvas and what is known of it."""

    folder: Path
    record: Record
    split: Split = "validation"
    """The part of the dataset that it is from."""

    @property
    def key(self) -> str:
        """SHA-256 of the decoded canvas, RGB bytes row by row."""
        return self.record.rgb_sha256

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


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
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
    return [Sample(folder, record, split) for record in records], dataset.digest
