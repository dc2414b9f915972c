"""What both sources of data share: storing pictures, leaving out copies, splitting, writing the records."""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.files import read_regular, sha256_bytes, write_json
from pipeline.dataset.records import (
    SCHEMA_VERSION,
    SPLITS,
    Dataset,
    Problems,
    Record,
    labels_without_images,
    stored_settings,
)
from pipeline.dataset.split import held_out

OWN_NAMES = {"images", "train.json", "val.json", "test.json", "metadata.json"}
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_target(folder: Path) -> None:
    """Raise UserError unless ``folder`` is free, empty or a dataset written here: writing one replaces all in it."""
    try:
        names = set(os.listdir(folder))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UserError(f"{folder} is a file: choose another folder to write the dataset to") from None
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}): choose another folder to write the dataset to"
        ) from None
    try:
        expected = OWN_NAMES - {"test.json"} <= names <= OWN_NAMES
        ours = expected and "schema_version" in json.loads(read_regular(folder / "metadata.json"))
    except (OSError, ValueError, TypeError, RecursionError):
        ours = False
    if names and not ours:
        raise UserError(
            f"{folder} holds other files, which writing a dataset there would delete: choose another folder"
        )


def store_image(folder: Path, image_id: str, image: Image.Image) -> dict[str, str]:
    """Write an RGB image under ``folder``/images; returns the record's image_path, sha256 and rgb_sha256."""
    name = image_id
    if not SAFE_NAME.fullmatch(image_id):
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", image_id)[-60:].lstrip("._-") + "-" + sha256_bytes(image_id.encode())[:8]
    path = f"images/{name}.png"
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # level 4 takes twice the time and saves nothing
    (folder / path).write_bytes(buffer.getvalue())
    return {
        "image_path": path,
        "sha256": sha256_bytes(buffer.getvalue()),
        "rgb_sha256": sha256_bytes(image.tobytes()),
    }


def write_dataset(
    folder: Path,
    contract: Contract,
    records: Sequence[Record],
    *,
    source: Mapping[str, Any],
    val_fraction: float,
    test_fraction: float = 0.0,
    test: Sequence[Record] = (),
    seed: int,
    problems: Problems,
    notes: Sequence[str] = (),
) -> Dataset:
    """Split stored images and write train.json, val.json, test.json (if there are test images) and metadata.json.

    ``test``: images that are for the test whatever their draw; without any, ``test_fraction`` of ``records`` is drawn.
    Of images with equal pixels one is kept. ``source``: how the photos were come by, for metadata.json. The split
    hashes the photo (``source_sha256``), not the letterboxed picture, so that contracts with different letterboxes
    split the same photos alike.

    Raises UserError: ``problems``, if there are any, together with the same pixels under two labels and the same photo
    or pixels in ``test`` and in ``records``; a split that stays empty.
    """
    unique, copies = _without_copies(folder, records, problems)
    apart, more = _without_copies(folder, test, problems)
    copies |= more
    _check_apart(unique, apart, problems)
    problems.raise_any()
    drawn = {record.source_sha256: record.element for record in unique}
    validation, tested = held_out(drawn, val_fraction, test_fraction, seed)
    parts = {
        "train": [record for record in unique if record.source_sha256 not in validation | tested],
        "val": [record for record in unique if record.source_sha256 in validation],
        "test": [*(record for record in unique if record.source_sha256 in tested), *apart],
    }
    for split, part in parts.items():
        if split == "test" and not (test or test_fraction):
            continue
        if not part:
            raise UserError(f"{len(unique)} different images leave {split} empty: add images")
        write_json(folder / f"{split}.json", [record.as_json() for record in part])
    counts = {split: Counter(record.element for record in part) for split, part in parts.items()}
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "source": dict(source),
        "contract": {"name": contract.name, "digest": contract.digest},
        "labels": list(contract.labels),
        "image": stored_settings(contract),
        "split": {
            "method": "source_sha256 drawn below val_fraction, or from 1 - test_fraction on",
            "val_fraction": val_fraction,
            "test_fraction": test_fraction,
            "seed": seed,
            "test_apart": bool(test),
        },
        "counts": {split: {label: counts[split][label] for label in contract.labels} for split in SPLITS},
        "copies": copies,
        "records": [{"split": split} | record.as_json() for split, part in parts.items() for record in part],
    }
    write_json(folder / "metadata.json", metadata)
    said = list(notes)
    if copies:
        said.append(f"{len(copies)} photos are copies of others and were left out (metadata.json, copies)")
    for split, part in parts.items():
        said += labels_without_images(split, part, contract) if part else []
    return Dataset(folder, tuple(parts["train"]), tuple(parts["val"]), tuple(said), tuple(parts["test"]))


def _check_apart(records: Sequence[Record], test: Sequence[Record], problems: Problems) -> None:
    """A picture that was trained on, or that the checkpoint was chosen by, says nothing as a test."""
    known = {content: record for record in records for content in (record.source_sha256, record.rgb_sha256)}
    for record in test:
        other = known.get(record.rgb_sha256) or known.get(record.source_sha256)
        if other:
            problems.add(
                f"test image {record.image_id}",
                f"shows exactly what {other.image_id} shows, which is for training and validation: remove it from one"
                " of them",
            )


def _without_copies(folder: Path, records: Sequence[Record], problems: Problems) -> tuple[list[Record], dict[str, str]]:
    """One record for each content, in the order given, and {id left out: id kept}. Deletes the copies' images.

    The one kept has the smallest hash, so that re-ordering changes nothing.
    """
    first: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: (record.source_sha256, record.image_id)):
        first.setdefault(record.rgb_sha256, record)
    unique: list[Record] = []
    copies: dict[str, str] = {}
    for record in records:
        kept = first[record.rgb_sha256]
        if record is kept:
            unique.append(record)
        elif record.element != kept.element:
            problems.add(
                f"image {record.image_id}",
                f"is labelled {record.element!r} but shows exactly what {kept.image_id} shows, labelled"
                f" {kept.element!r}: remove one of them",
            )
        else:
            copies[record.image_id] = kept.image_id
            (folder / record.image_path).unlink()
    return unique, copies
