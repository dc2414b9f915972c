"""What both sources of data share: storing pictures, leaving out copies, splitting, writing the records."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes, write_json
from pipeline.dataset.records import (
    SCHEMA_VERSION,
    SPLITS,
    Dataset,
    Problems,
    Record,
    labels_without_images,
    stored_settings,
)
from pipeline.dataset.split import validation_part

OWN_NAMES = {"images", "train.json", "val.json", "metadata.json"}
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_target(folder: Path) -> None:
    """Raise UserError unless ``folder`` is free, empty or a dataset written here: writing one replaces all in it."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another folder to write the dataset to")
    names = {path.name for path in folder.iterdir()}
    try:
        ours = names == OWN_NAMES and "schema_version" in json.loads((folder / "metadata.json").read_bytes())
    except (OSError, ValueError, TypeError):
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
    seed: int,
    problems: Problems,
    notes: Sequence[str] = (),
) -> Dataset:
    """Split stored images and write train.json, val.json and metadata.json beside them.

    Of images with equal pixels one is kept. ``source``: how the photos were come by, for metadata.json. The split
    hashes the photo (``source_sha256``), not the letterboxed picture, so that contracts with different letterboxes
    split the same photos alike.

    Raises UserError: ``problems``, if there are any, together with the same pixels under two labels; a split that stays
    empty.
    """
    unique, copies = _without_copies(folder, records, problems)
    problems.raise_any()
    held_out = validation_part({record.source_sha256: record.element for record in unique}, val_fraction, seed)
    parts = {
        "train": [record for record in unique if record.source_sha256 not in held_out],
        "val": [record for record in unique if record.source_sha256 in held_out],
    }
    for split, part in parts.items():
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
        "split": {"method": "source_sha256 drawn below val_fraction", "val_fraction": val_fraction, "seed": seed},
        "counts": {split: {label: counts[split][label] for label in contract.labels} for split in SPLITS},
        "copies": copies,
        "records": [{"split": split} | record.as_json() for split, part in parts.items() for record in part],
    }
    write_json(folder / "metadata.json", metadata)
    said = list(notes)
    if copies:
        said.append(f"{len(copies)} photos are copies of others and were left out (metadata.json, copies)")
    for split, part in parts.items():
        said += labels_without_images(split, part, contract)
    return Dataset(folder, tuple(parts["train"]), tuple(parts["val"]), tuple(said))


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
