"""The dataset on disk: what is in it, and reading it with every check.

    images/         one lossless picture an image, already letterboxed: what the model sees
    train.json      list of records {image_id, image_path, element, reason, confidence, ...}
    val.json        the same
    test.json       the same, where there are test images
    metadata.json   how it was made: contract, letterbox settings, split, counts, and all records once more

Invariants of a :class:`Dataset` that exists: every image is there, inside the folder, decodable, of the contract's
size; ids are unique; no content is in both splits or twice in one. Samples are keyed by ``rgb_sha256`` everywhere.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.files import canonical_json, read_regular, sha256_bytes, shown
from pipeline.core.wording import told
from pipeline.dataset.split import Split

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""

SCHEMA_VERSION = 2
SPLITS = ("train", "val", "test")
PLACES = 3  # told one by one; ten lines for one cause hide the others
SHOWN = 20  # problems printed in full; a folder of the wrong kind has one for each file
STORED_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
HEX = r"^([0-9a-f]{64})?$"


class Record(BaseModel):
    """One labelled image. Keys beyond these (a licence, say) are kept and written back as they are."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    image_id: str = Field(min_length=1)
    image_path: str = Field(min_length=1)
    """Relative to the dataset's folder, with forward slashes."""
    element: str
    """The label: one of the contract's."""
    reason: str = ""
    confidence: float = Field(default=1.0, ge=0, le=1)
    source: str = ""
    """Where the photo came from, in words."""
    source_path: str = ""
    """The photo's path inside the folder that was imported."""
    source_sha256: str = Field(default="", pattern=HEX)
    """SHA-256 of the photo's file; of a generated photo, of its pixels."""
    source_size: tuple[int, int] | None = Field(default=None, strict=False)
    """Width and height of the photo before the letterbox, pixels."""
    flags: tuple[str, ...] = Field(default=(), strict=False)
    """What in the photo the phone may show differently (``pipeline.letterbox.FLAGS``)."""
    sha256: str = Field(default="", pattern=HEX)
    """SHA-256 of the stored image file."""
    rgb_sha256: str = Field(default="", pattern=HEX)
    """SHA-256 of the stored image's RGB bytes, row by row: the sample's key."""

    def as_json(self) -> dict[str, Any]:
        """The record as plain data, in the order in which it is written."""
        return self.model_dump(mode="json", exclude_none=True)


@dataclass(frozen=True)
class Dataset:
    """A dataset that passed every check; each record has ``sha256`` and ``rgb_sha256``."""

    folder: Path
    train: tuple[Record, ...]
    val: tuple[Record, ...]
    """The best checkpoint is chosen on these."""
    notes: tuple[str, ...] = ()
    """What a person should know but nothing has to stop for, one sentence each."""
    test: tuple[Record, ...] = ()
    """No choice has seen these; there may be none."""

    @property
    def judged(self) -> tuple[Split, tuple[Record, ...]]:
        """What a model is judged on: the test images, or the validation images where there are none."""
        return ("test", self.test) if self.test else ("validation", self.val)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all records in order, pixels included. Files that differ only in compression give the same."""
        parts = {split: getattr(self, split) for split in SPLITS if split != "test" or self.test}
        content = {split: [record.as_json() | {"sha256": ""} for record in part] for split, part in parts.items()}
        return sha256_bytes(canonical_json(content))


class LeadsOutside(UserError):
    """A link that leads outside the folder it lies in."""


class Problems:
    """Collects what is wrong with an input, so that all of it is said at once."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._links: list[tuple[str, str]] = []
        """(place, path) of each link that leads outside."""
        self._found: dict[str, list[str]] = {}
        """What is wrong -> where."""

    def add(self, place: str, text: str) -> None:
        """``place``: file, record and key. One line, whatever the names in it are."""
        self._found.setdefault(shown(text), []).append(shown(place))

    def add_link(self, place: str, path: str) -> None:
        """A link that leads outside its folder. A folder of nothing else is one cause, and gets one sentence."""
        self._links.append((place, path))

    def raise_any(self) -> None:
        """Raise UserError if there are any: the first 20 in full, then how many more. What is wrong in more than
        PLACES places has one line."""
        if len(self._links) == 1:
            place, path = self._links[0]
            self.add(place, f"{path!r} is a link that leads outside the folder: copy the file into it")
        elif self._links:
            first = ", ".join(path for _, path in self._links[:PLACES])
            dots = ", ..." if len(self._links) > PLACES else ""
            self.add(
                f"{len(self._links)} links lead outside the folder ({first}{dots})",
                "copy the folder with the files themselves, as `cp -rL FOLDER COPY` does, and give the copy",
            )
        self._links = []
        if not self._found:
            return
        lines: list[str] = []
        for text, places in self._found.items():
            more = len(places) - 1
            if more >= PLACES:
                lines.append(f"{places[0]} and {more} more places: {text}")
            else:
                lines += [f"{place}: {text}" for place in places]
        count = sum(map(len, self._found.values()))
        if count == 1:
            raise UserError(f"{self._where}: {lines[0]}")
        if len(lines) > SHOWN:
            lines = [*lines[:SHOWN], f"... and {len(lines) - SHOWN} more"]
        raise UserError("\n  ".join([f"{self._where} has {count} problems:", *lines]))


class Entry(NamedTuple):
    """A record whose keys, label and path are good, where it stands, and its image."""

    place: str
    record: Record
    image: Path


def read_dataset(folder: Path, contract: Contract, progress: Progress | None = None) -> Dataset:
    """Read and check a dataset whole: every image is decoded and hashed.

    Accepts the plain format too (no hashes in the records, no metadata.json, JPEG images), as long as the images have
    the contract's size. A copy of an image in the same split is left out with a note.

    Raises UserError with all problems together: a file that is missing or not JSON, a record with a wrong or missing
    key, an unknown label, a duplicate id, an image that is missing, outside the folder, undecodable, changed or of the
    wrong size, one content in two splits or under two labels, letterbox settings other than the contract's.
    """
    if not folder.is_dir():
        raise UserError(f"dataset {folder} is not a folder: make it with `pipeline dataset` or give another path")
    problems = Problems(f"dataset {folder}")
    notes = _check_metadata(folder / "metadata.json", contract, problems)
    ids: dict[str, str] = {}
    splits = [split for split in SPLITS if split != "test" or (folder / "test.json").exists()]
    entries = {split: read_entries(folder / f"{split}.json", contract, ids, problems) for split in splits}
    flat = [(split, entry) for split in splits for entry in entries[split]]
    kept: dict[str, list[Record]] = {split: [] for split in splits}
    seen: dict[str, tuple[str, Entry]] = {}

    def inspect(item: tuple[str, Entry]) -> Record | str:
        return _inspect(item[1], contract.image.size)

    for (split, entry), found in zip(flat, in_parallel(inspect, flat, progress), strict=True):
        if isinstance(found, str):
            problems.add(f"{entry.place}, image_path", found)
            continue
        first_split, first = seen.setdefault(found.rgb_sha256, (split, entry))
        if first is entry:
            kept[split].append(found)
        elif first_split != split:
            problems.add(entry.place, f"shows exactly what {first.place} shows: leave it in one of the splits only")
        elif first.record.element != entry.record.element:
            problems.add(entry.place, _two_labels(entry, first))
        else:
            notes.append(f"{entry.place} is a copy of {first.place} and is left out")
    problems.raise_any()
    for split in splits:
        notes += labels_without_images(split, kept[split], contract)
    return Dataset(folder, tuple(kept["train"]), tuple(kept["val"]), tuple(notes), tuple(kept.get("test", ())))


def labels_without_images(split: str, records: list[Record], contract: Contract) -> list[str]:
    """A note that names the labels of which a split has none, or no note."""
    present = {record.element for record in records}
    missing = [label for label in contract.labels if label not in present]
    return [f"{split}.json has no image of {', '.join(missing)}"] if missing else []


def load_rgb(folder: Path, record: Record) -> npt.NDArray[np.uint8]:
    """The stored image as uint8 [H, W, 3] in R, G, B order.

    Raises UserError where it is gone or no longer the one that was checked.
    """
    try:
        with Image.open(folder / record.image_path, formats=STORED_FORMATS) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # damaged files raise nearly anything
        raise UserError(f"{folder / record.image_path}: cannot be read ({error}): make the dataset again") from None
    if record.rgb_sha256 and sha256_bytes(pixels.tobytes()) != record.rgb_sha256:
        raise UserError(f"{folder / record.image_path}: the image has changed since it was checked: run again")
    return pixels


def stored_settings(contract: Contract) -> dict[str, Any]:
    """The image settings that decide a stored image's bytes. The channel order does not: it is applied when a model is
    fed."""
    return contract.image.model_dump(mode="json", exclude={"channel_order"})


def in_parallel(work: Callable[[Any], Any], items: list[Any], progress: Progress | None) -> Iterable[Any]:
    """``work`` of each item, in order, on all cores. Threads suffice: Pillow and hashlib release the interpreter."""
    # Pillow warns of damaged metadata; filters are the whole process's, so they are set once, outside the threads.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")
        for done, result in enumerate(pool.map(work, items), 1):
            if progress:
                progress(done, len(items))
            yield result


def read_entries(file: Path, contract: Contract, ids: dict[str, str], problems: Problems) -> list[Entry]:
    """The good records of a JSON file; what is wrong with the others goes to ``problems``.

    ``ids``: image id -> place, of the records read before; added to.
    """
    data = read_json(file, problems)
    if data is None:
        return []
    if not isinstance(data, list) or not data:
        problems.add(file.name, "is not a list of records with at least one record in it")
        return []
    entries = []
    for number, raw in enumerate(data, 1):
        name = raw.get("image_id") if isinstance(raw, dict) else None
        place = f"{file.name} record {number}" + (f" (id {name})" if isinstance(name, str) else "")
        entry = _entry(raw, place, file.parent, contract, problems)
        if isinstance(name, str):
            first = ids.setdefault(name, place)
            if first is not place:
                problems.add(f"{place}, image_id", f"duplicate id, already used by {first}")
                entry = None
        if entry:
            entries.append(entry)
    return entries


def read_json(file: Path, problems: Problems) -> Any:
    """Content of a JSON file, or None with a problem added."""
    try:
        data = json.loads(read_regular(file).decode(), parse_constant=_no_constant)
        canonical_json(data)  # refuses half surrogates, which could not be written back
        if data is None:
            problems.add(file.name, "is null: make the dataset again")
        return data
    except OSError as error:
        problems.add(file.name, f"cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        problems.add(file.name, f"is not valid JSON: {error}")
    return None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _entry(raw: Any, place: str, folder: Path, contract: Contract, problems: Problems) -> Entry | None:
    """Check one record's keys, label and path, each whatever the others are."""
    if not isinstance(raw, dict):
        problems.add(place, "is not an object of keys and values")
        return None
    record, path, good = None, None, True
    try:
        record = Record.model_validate(raw)
    except ValidationError as error:
        for item in error.errors():
            problems.add(f"{place}, {'.'.join(str(part) for part in item['loc'])}", told(item))
    label, image_path = raw.get("element"), raw.get("image_path")
    if isinstance(label, str) and label not in contract.labels:
        problems.add(f"{place}, element", f"unknown label {label!r}; the contract has {', '.join(contract.labels)}")
        good = False
    if isinstance(image_path, str) and image_path:
        try:
            path = path_inside(folder, image_path)
        except LeadsOutside:
            problems.add_link(f"{place}, image_path", image_path)
        except UserError as error:
            problems.add(f"{place}, image_path", str(error))
    return Entry(place, record, path) if record and path and good else None


def path_inside(folder: Path, relative: str) -> Path:
    """The file at ``relative``, which must lie inside ``folder``, links followed.

    Raises UserError; LeadsOutside where a link leads out of it.
    """
    windows = PureWindowsPath(relative)
    if relative.startswith("/") or windows.drive or windows.root:
        raise UserError(f"{relative!r} is absolute: give it relative to {folder}")
    if ".." in PurePosixPath(relative).parts or ".." in windows.parts:
        raise UserError(f"{relative!r} leads outside the folder")
    try:
        path = (folder / relative).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise LeadsOutside(f"{relative!r} is a link that leads outside the folder: copy the file into it")
        if path.is_file():
            return path
        what = "is not a file" if path.exists() else "is missing"
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long, a zero byte in it
        what = f"cannot be a path ({error})"
    raise UserError(f"{relative!r} {what}")


def _inspect(entry: Entry, size: int) -> Record | str:
    """The record with its hashes, or what is wrong with its image."""
    try:
        data = read_regular(entry.image)
        with Image.open(BytesIO(data), formats=STORED_FORMATS) as image:
            if image.size != (size, size) or image.mode != "RGB":
                found = f"{image.width}x{image.height} pixels, mode {image.mode}"
                return f"{found}: the contract wants {size}x{size} RGB, so import the photos instead of copying them"
            rgb = sha256_bytes(image.tobytes())
    except Image.DecompressionBombError:
        return f"a decompression bomb: far more pixels than {size}x{size}"
    except UnidentifiedImageError:
        return f"not an image ({', '.join(STORED_FORMATS)})"
    except Exception as error:  # damaged files raise anything from struct.error to IndexError
        return f"cannot be decoded ({error or type(error).__name__})"
    file = sha256_bytes(data)
    if entry.record.sha256 not in ("", file) or entry.record.rgb_sha256 not in ("", rgb):
        return "the image is not the one that the record's sha256 and rgb_sha256 state: make the dataset again"
    return entry.record.model_copy(update={"sha256": file, "rgb_sha256": rgb})


def _two_labels(entry: Entry, first: Entry) -> str:
    return (
        f"is labelled {entry.record.element!r} but shows exactly what {first.place} shows, labelled"
        f" {first.record.element!r}: remove one of them"
    )


def _check_metadata(file: Path, contract: Contract, problems: Problems) -> list[str]:
    """Compare how the images were made with the contract; returns notes."""
    unknown = [f"{file.name} does not say how the images were letterboxed: whether the phone makes the same is unknown"]
    if not file.exists():
        return unknown
    data = read_json(file, problems)
    if data is None:
        return []
    if not isinstance(data, dict):
        problems.add(file.name, "is not an object of keys and values")
        return []
    if data.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        problems.add(
            f"{file.name}, schema_version",
            f"is {data['schema_version']!r}, and this version reads {SCHEMA_VERSION}: make the dataset again",
        )
        return []
    stated = data.get("image")
    if not isinstance(stated, dict):
        return unknown
    for key, wanted in stored_settings(contract).items():
        if stated.get(key, wanted) != wanted:
            problems.add(
                f"{file.name}, image.{key}",
                f"the images were made with {stated[key]!r}, the contract says {wanted!r}: import the photos again",
            )
    return []
