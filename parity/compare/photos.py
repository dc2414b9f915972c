"""Anybody's pictures, with what is known of them: a folder, class folders, a table, or a `datasets` imagefolder.

A picture is handed to both sides as transformers itself reads it (``transformers.image_utils.load_image``: the EXIF
orientation applied, converted to RGB), or letterboxed where a contract says how.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ImageOps

from pipeline.contract import Contract, ImageContract
from pipeline.core.errors import UserError
from pipeline.core.files import read_regular, sha256_bytes
from pipeline.dataset.photos import NOT_DECODED, PHOTO_SUFFIXES
from pipeline.dataset.records import LeadsOutside, Problems, in_parallel, path_inside
from pipeline.dataset.split import Split
from pipeline.letterbox import letterbox, open_photo

IMAGE_COLUMNS = ("file_name", "image", "image_path", "path", "file", "filename")
"""What the column of the file's path is called; the first is `datasets`'."""
LABEL_COLUMNS = ("label", "element", "class", "category")
TABLES = ("labels.json", "metadata.csv", "metadata.jsonl")
"""In a folder of pictures: the project's own, and an imagefolder's."""


@dataclass(frozen=True)
class Photo:
    """One picture and what is known of it."""

    path: Path
    image_id: str
    truth: str | None
    """A label or the text expected."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """A table's columns, for a prompt with ``{column}`` in it."""
    question: str = ""
    """The prompt, with the picture's own values in it."""
    image: ImageContract | None = None
    """How it is letterboxed; None: as it is."""
    key: str = ""
    """SHA-256 of the picture handed over and, where each has its own, the question."""
    rgb_sha256: str = ""
    """Of width, height and the RGB bytes handed over."""
    size: tuple[int, int] = (0, 0)
    """Width and height of what is handed over."""
    split: Split | None = None

    @property
    def rgb(self) -> npt.NDArray[np.uint8]:
        """What is handed over, [height, width, 3], decoded anew each time. Raises UserError."""
        image = open_photo(self.path)
        if self.image:
            return np.asarray(letterbox(image, Contract(image=self.image)))
        try:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except Exception as error:  # damaged metadata, a mode that cannot be converted
            raise UserError(f"{self.path}: cannot be read: {type(error).__name__}: {error}") from None


def picture_digest(rgb: npt.NDArray[np.uint8]) -> str:
    """SHA-256 of a picture [height, width, 3]: two pictures of other shapes may have the same bytes."""
    height, width, _ = rgb.shape
    return sha256_bytes(f"{width}x{height}\n".encode() + np.ascontiguousarray(rgb).tobytes())


def load_photos(
    place: Path,
    prompt: str,
    labels: Sequence[str] = (),
    answers: str | None = None,
    image: ImageContract | None = None,
    limit: int | None = None,
) -> tuple[list[Photo], list[str]]:
    """(the pictures of a folder or a table, notes for the reader).

    ``prompt``: ``{column}`` in it takes a picture's own value.
    ``labels``: each picture has one, by its class folder or its row; others are an error. ``answers``: the column with
    the text expected. ``image``: letterbox each. ``limit``: at most so many, evenly over all.

    Raises UserError with all problems together: what cannot be read, a picture without a label, an unknown label, a
    missing column. Copies of a picture are left out with a note, and are an error where their labels differ.
    """
    problems = Problems(f"photos {place}")
    if place.is_file():
        photos = list(_from_table(place, place.parent, labels, answers, problems))
    elif place.is_dir():
        tables = [place / name for name in TABLES if (place / name).is_file()]
        if tables:
            photos = list(_from_table(tables[0], place, labels, answers, problems))
        elif answers:
            raise UserError(
                f"photos {place}: --answers takes a column, and the folder has no table (labels.json, metadata.csv or"
                " metadata.jsonl)"
            )
        else:
            photos = list(_from_folder(place, labels, problems))
    else:
        raise UserError(f"photos {place}: there is no such file or folder")
    problems.raise_any()
    if not photos:
        raise UserError(f"photos {place}: there is no picture in it ({', '.join(PHOTO_SUFFIXES[:6])}, ...)")
    if limit is not None and limit < len(photos):
        photos = [photos[number * len(photos) // limit] for number in range(limit)]
    return _looked_at(photos, prompt, image, problems)


def _from_folder(folder: Path, labels: Sequence[str], problems: Problems) -> Iterator[Photo]:
    """Pictures at any depth; the label is the folder's that is nearest."""
    for file in _files(folder, problems):
        relative = file.relative_to(folder)
        truth = next((part for part in reversed(relative.parts[:-1]) if part in labels), None) if labels else None
        if labels and truth is None:
            problems.add(relative.as_posix(), f"lies in no folder named after a label ({', '.join(labels)})")
        else:
            yield Photo(file, relative.as_posix(), truth)


def _files(folder: Path, problems: Problems) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        problems.add(os.path.relpath(error.filename, folder), f"cannot be read: {error.strerror}")

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.casefold().endswith((*PHOTO_SUFFIXES, *NOT_DECODED)):
                yield Path(parent, name)


def _from_table(
    table: Path, folder: Path, labels: Sequence[str], answers: str | None, problems: Problems
) -> Iterator[Photo]:
    rows = list(_rows(table))
    if not rows:
        raise UserError(f"{table} has no rows")
    first = rows[0][1]
    column = next((name for name in IMAGE_COLUMNS if name in first), None)
    if column is None:
        raise UserError(
            f"{table} has no column for a picture's path ({', '.join(IMAGE_COLUMNS)}); it has {', '.join(first)}"
        )
    truths = answers or (next((name for name in LABEL_COLUMNS if name in first), None) if labels else None)
    if labels and truths is None:
        raise UserError(f"{table} has no column for the label ({', '.join(LABEL_COLUMNS)}); it has {', '.join(first)}")
    if answers and answers not in first:
        raise UserError(f"{table} has no column {answers!r} for the answers; it has {', '.join(first)}")
    for place, row in rows:
        try:
            path = path_inside(folder, str(row.get(column)))
        except LeadsOutside:
            problems.add_link(place, str(row[column]))
            continue
        except UserError as error:
            problems.add(place, str(error))
            continue
        truth = None if truths is None else row.get(truths)
        if truths is not None and not isinstance(truth, str):
            problems.add(place, f"has no text in column {truths!r}")
        elif labels and truth not in labels:
            problems.add(place, f"has the label {truth!r}, which is none of {', '.join(labels)}")
        else:
            name = row.get("image_id")
            fields = {key: str(value) for key, value in row.items() if value is not None}
            yield Photo(path, name if isinstance(name, str) else str(row[column]), truth, fields)


def _rows(table: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """(where it stands, row) of a CSV, JSON or JSON-lines table."""
    try:
        text = read_regular(table).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{table} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{table} is not UTF-8: save it as UTF-8") from None
    suffix = table.suffix.casefold()
    try:
        if suffix == ".csv":
            reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
            rows: list[Any] = list(reader)
            places = [f"{table.name} row {number}" for number in range(1, len(rows) + 1)]
        elif suffix in (".jsonl", ".ndjson"):
            lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
            rows = [json.loads(line) for _, line in lines]
            places = [f"{table.name} line {number}" for number, _ in lines]
        elif suffix == ".json":
            rows = json.loads(text)
            places = [f"{table.name} record {number}" for number in range(1, len(rows) + 1)]
        else:
            raise UserError(f"{table} is no table: give .csv, .json or .jsonl, or a folder of pictures")
    except (ValueError, RecursionError, csv.Error, TypeError) as error:
        raise UserError(f"{table} cannot be read as {suffix[1:].upper()}: {error}") from None
    if not isinstance(rows, list):
        raise UserError(f"{table} is not a list of records")
    for place, row in zip(places, rows, strict=True):
        if not isinstance(row, dict) or None in row:
            raise UserError(f"{place} is no record of columns")
    return zip(places, rows, strict=True)


def _looked_at(
    photos: Sequence[Photo], prompt: str, image: ImageContract | None, problems: Problems
) -> tuple[list[Photo], list[str]]:
    """The pictures with keys and sizes, copies left out."""
    columns = {name for photo in photos for name in photo.fields if f"{{{name}}}" in prompt}

    def look(photo: Photo) -> Photo | str:
        question = prompt
        for column in columns:
            if column not in photo.fields:
                return f"has no {column!r}, which the prompt wants"
            question = question.replace(f"{{{column}}}", photo.fields[column])
        given = replace(photo, image=image, question=question)
        try:
            rgb = given.rgb
        except UserError as error:
            return str(error).removeprefix(f"{photo.path}: ")
        height, width, _ = rgb.shape
        # A canvas has the contract's size, and the hash that a contract's own runs know it by.
        digest = sha256_bytes(np.ascontiguousarray(rgb).tobytes()) if image else picture_digest(rgb)
        key = sha256_bytes(f"{digest}\n{question}".encode()) if columns else digest
        return replace(given, key=key, rgb_sha256=digest, size=(width, height))

    found: dict[str, Photo] = {}
    ids: dict[str, str] = {}
    copies = 0
    for photo, looked in zip(photos, in_parallel(look, list(photos), None), strict=True):
        if isinstance(looked, str):
            problems.add(photo.image_id, looked)
        elif (there := found.setdefault(looked.key, looked)) is not looked:
            copies += 1
            if there.truth != looked.truth:
                what = f"is the same picture as {there.image_id}, which has {there.truth!r} and not {looked.truth!r}"
                problems.add(looked.image_id, what)
        elif ids.setdefault(looked.image_id, looked.key) != looked.key:
            problems.add(looked.image_id, "is the name of two pictures: give each its own image_id")
    problems.raise_any()
    notes = [f"{copies} copies of pictures were left out"] if copies else []
    return list(found.values()), notes
