"""A folder of labelled photos of any size becomes a dataset.

The folder holds either ``labels.json``, a list of records {image_id, image_path, element, reason, confidence, ...}, or
one sub-folder for each label with photos anywhere in it. Each photo is letterboxed as the contract says and stored
losslessly; its record keeps the photo's path, hash and size, and whatever else labels.json says of it.
"""

import dataclasses
import json
import os
import re
import shlex
from collections import defaultdict
from pathlib import Path

import yaml

from pipeline.contract import AnswerRule, Contract, check_told_apart, checked_labels
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_folder, sha256_bytes, shown
from pipeline.dataset.records import (
    Dataset,
    Entry,
    LeadsOutside,
    Problems,
    Progress,
    Record,
    in_parallel,
    path_inside,
    read_entries,
)
from pipeline.dataset.writing import check_target, store_image, write_dataset
from pipeline.letterbox import letterbox_file

NOT_DECODED = (".heic", ".heif", ".tif", ".tiff")  # better an error that says so than a photo left out
NAMED, TYPED = 5, 40
"""Sub-folders that a message names, and labels that somebody would have typed."""
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".avif", *NOT_DECODED)


def import_photos(
    photos: Path,
    folder: Path,
    contract: Contract,
    val_fraction: float = 0.1,
    seed: int = 0,
    max_per_class: int | None = None,
    test_fraction: float = 0.0,
    test_photos: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Letterbox the labelled photos in ``photos`` and write them as a dataset, replacing the one in ``folder``.

    ``max_per_class``: take at most that many photos a label, drawn by a hash of the id, for quick runs. Copies of a
    photo under the same label are left out with a note. ``test_photos``: another folder like ``photos``, for the test
    alone; its images' ids begin with ``test/``.

    Raises UserError with all problems together and writes nothing: what ``read_entries`` and ``letterbox_file`` raise,
    a sub-folder that is no label, a photo under two labels, or in ``photos`` and ``test_photos``, a ``folder`` with
    other files in it.
    """
    if max_per_class is not None and max_per_class < 2:
        raise UserError(f"max_per_class is {max_per_class}: training and validation need at least 2")
    for given in filter(None, (photos, test_photos)):
        try:
            os.listdir(given)
        except FileNotFoundError:
            raise UserError(f"photos {given}: there is no such folder") from None
        except OSError as error:
            raise UserError(f"photos {given}: the folder cannot be read: {error.strerror}") from None
        if folder.resolve().is_relative_to(given.resolve()) or given.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"the dataset {folder} and the photos {given} lie inside one another: choose a folder elsewhere"
            )
    check_target(folder)
    problems = Problems(f"photos {photos}" + (f" and {test_photos}" if test_photos else ""))
    notes: list[str] = []
    entries = _entries(photos, contract, max_per_class, problems, notes)
    drawn = len(entries)
    if test_photos:
        for entry in _entries(test_photos, contract, max_per_class, problems, notes):
            record = entry.record.model_copy(update={"image_id": f"test/{entry.record.image_id}"})
            entries.append(Entry(f"test {entry.place}", record, entry.image))

    def store(entry: Entry) -> Record | str:
        try:
            made = letterbox_file(entry.image, contract)
        except UserError as error:
            return str(error).removeprefix(f"{entry.image}: ")
        changes = {
            "source_path": entry.record.image_path,
            "source_sha256": made.source_sha256,
            "source_size": made.source_size,
            "flags": made.flags,
            **store_image(scratch, entry.record.image_id, made.image),
        }
        return entry.record.model_copy(update=changes)

    with atomic_folder(folder) as scratch:
        (scratch / "images").mkdir()
        records: list[Record] = []
        test: list[Record] = []
        for number, (entry, stored) in enumerate(zip(entries, in_parallel(store, entries, progress), strict=True)):
            if isinstance(stored, str):
                problems.add(f"{entry.place}, {entry.record.image_path}", stored)
            else:
                (records if number < drawn else test).append(stored)
        made = write_dataset(
            scratch,
            contract,
            records,
            source={"kind": "photos", "folder": shown(photos.resolve().name), "max_per_class": max_per_class},
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            test=test,
            seed=seed,
            problems=problems,
            notes=notes,
        )
    return dataclasses.replace(made, folder=folder)


def _entries(
    photos: Path, contract: Contract, max_per_class: int | None, problems: Problems, notes: list[str]
) -> list[Entry]:
    """The records of a folder of photos."""
    if os.path.lexists(photos / "labels.json"):
        entries = read_entries(photos / "labels.json", contract, {}, problems)
    else:
        entries = _from_folders(photos, contract, problems, notes)
    return entries if max_per_class is None else _some(entries, max_per_class)


def _from_folders(photos: Path, contract: Contract, problems: Problems, notes: list[str]) -> list[Entry]:
    """Records of the photos in sub-folders named after the labels; the id is the path inside ``photos``."""
    classes = sorted(path for path in photos.iterdir() if os.path.isdir(path) and not path.name.startswith("."))
    labels = ", ".join(contract.labels)
    if not classes:
        raise UserError(
            f"photos {photos}: has neither labels.json nor a sub-folder named after a label ({labels}): sort the photos"
            " into one sub-folder a label"
        )
    names = [path.name for path in classes]
    unknown = [name for name in names if name not in contract.labels]
    if unknown:
        place, text = _no_labels(unknown, names, contract)
        if unknown == names:
            raise UserError(f"photos {photos}: {shown(place)}: {shown(text)}")
        problems.add(place, text)
    entries, skipped = [], 0
    for class_folder in classes:
        if class_folder.name in unknown:
            continue
        if not class_folder.resolve().is_relative_to(photos.resolve()):
            problems.add_link("sub-folders", class_folder.name)
            continue
        for file in _files(class_folder, problems):
            relative = file.relative_to(photos).as_posix()
            if file.suffix.casefold() not in PHOTO_SUFFIXES:
                skipped += 1
                continue
            try:
                image = path_inside(photos, relative)
                relative.encode()
            except LeadsOutside:
                problems.add_link("sub-folders", relative)
            except UserError as error:
                problems.add("sub-folders", str(error))
            except UnicodeEncodeError:
                problems.add("sub-folders", f"{relative} is not a UTF-8 name: rename it")
            else:
                record = Record(image_id=relative, image_path=relative, element=class_folder.name)
                entries.append(Entry(class_folder.name, record, image))
    if skipped:
        notes.append(f"{skipped} files that are not photos by their suffix were left out")
    return entries


def _no_labels(unknown: list[str], names: list[str], contract: Contract) -> tuple[str, str]:
    """(where, what) is wrong with sub-folders, of those called ``names``, that are no labels."""
    several = len(unknown) > 1
    more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    return (
        f"sub-folder{'s' if several else ''} {', '.join(unknown[:NAMED])}{more}",
        f"unknown label{'s' if several else ''}; the contract has {', '.join(contract.labels)}: rename"
        f" {'them' if several else 'it'}{_as_labels(names, contract.answer_rule)}",
    )


def _as_labels(names: list[str], rule: AnswerRule) -> str:
    """What makes the names of all sub-folders the labels; nothing where they can be none."""
    try:
        checked_labels(tuple(names))
    except ValueError:
        return ""
    if len(names) > TYPED:
        return ", or make the sub-folders the labels: contract.labels in a recipe of your own"
    setting = f"contract.labels=[{','.join(map(_in_yaml, names))}]"
    try:
        check_told_apart(names, rule)
    except ValueError:
        setting += " contract.answer_rule=exact"
    for_make = shlex.quote(setting.replace("$", "$$"))
    return f", or make the sub-folders the labels with --set {shlex.quote(setting)} (with make: SET={for_make})"


def _in_yaml(name: str) -> str:
    """A label as it stands in a list of YAML, in quotes where it must."""
    plain = re.fullmatch(r"[^\W\d_][\w -]*", name) and yaml.safe_load(name) == name
    return name if plain else json.dumps(name, ensure_ascii=False)


def _files(folder: Path, problems: Problems) -> list[Path]:
    """Files at any depth, sorted, hidden ones left out. A link to a folder counts as a file: it is not entered.

    A folder that cannot be read goes to ``problems``.
    """

    def unreadable(error: OSError) -> None:
        place = os.path.relpath(error.filename, folder.parent)
        problems.add("sub-folders", f"{place} cannot be read: {error.strerror}, so its photos would be left out")

    found = []
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(found)


def _some(entries: list[Entry], max_per_class: int) -> list[Entry]:
    """At most so many entries a label, those whose ids hash smallest, in the order given."""
    classes: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        classes[entry.record.element].append(sha256_bytes(entry.record.image_id.encode()))
    limits = {label: sorted(hashes)[:max_per_class][-1] for label, hashes in classes.items()}
    return [entry for entry in entries if sha256_bytes(entry.record.image_id.encode()) <= limits[entry.record.element]]
