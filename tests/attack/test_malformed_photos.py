"""Photos and datasets that no camera and no program wrote: each one is letterboxed, or named with what is wrong."""

import json
import os
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from made import CONTRACT, make_dataset
from malformed import DEPTHS, byte_cases, json_cases, of_bytes, place_cases, some
from photo_cases import cases_of, png_of, png_parts, seeds
from PIL import Image
from test_malformed_texts import edited, explore
from trial import Case, Lost, Trials, tried

from pipeline.core.errors import UserError
from pipeline.dataset.photos import import_photos
from pipeline.dataset.records import Dataset, read_dataset
from pipeline.letterbox import letterbox_file

LIMITS: dict[str, Any] = {"seconds": 20, "memory": 2 << 30}
"""A picture of 179 million pixels is let in, and is 683 MiB."""

photos = cache(seeds)


def letterboxed(path: Path) -> None:
    made = letterbox_file(path, CONTRACT)
    assert made.image.size == (256, 256)
    assert made.image.mode == "RGB"
    assert all(side > 0 for side in made.source_size)


@DEPTHS
@pytest.mark.parametrize("name", photos())
def test_a_photo_is_letterboxed_or_named(name: str, depth: str, tmp_path: Path, trials: Trials) -> None:
    target = tmp_path / name
    target.write_bytes(photos()[name])
    room = trials.room(letterboxed, **LIMITS)
    room.must_read(target)
    cases = some(cases_of(name, photos()[name]), depth, 12)
    if name == "rgb.png":
        cases += place_cases()
    trials.run("photo", room, target, cases)


@DEPTHS
@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "bmp"])
def test_hypothesis_finds_no_photo_that_is_a_traceback(kind: str, depth: str, tmp_path: Path, trials: Trials) -> None:
    known = [data for name, data in photos().items() if name.endswith(kind)]

    @st.composite
    def spliced(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(known))
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, min(len(data), 600)))
            gone = draw(st.integers(0, 8))
            data = data[:at] + draw(st.binary(max_size=8)) + data[at + gone :]
        if kind == "png" and draw(st.booleans()):
            data = with_right_sums(data)
        return data

    room = trials.room(letterboxed, **LIMITS)
    explore(trials, "photo", room, tmp_path / f"photo.{kind}", spliced(), 25 if depth == "quick" else 1000)


def with_right_sums(data: bytes) -> bytes:
    """A PNG with the CRCs of what it has, where its chunks can still be told apart."""
    try:
        return png_of(png_parts(data))
    except Exception:  # not even that
        return data


# --- imports ---------------------------------------------------------------------------------------------------------


def photo_folder(folder: Path) -> Path:
    """Twelve good photos of two labels."""
    for label in ("water", "fire"):
        (folder / label).mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng(number + 10 * (label == "fire")).integers(0, 256, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def imported(folder: Path, out: Path, name: str) -> Dataset:
    """Import a folder: the photo ``name`` is in the dataset, or the list of problems has it; and so are all others."""
    shutil.rmtree(out, ignore_errors=True)
    try:
        made = import_photos(folder, out, CONTRACT, val_fraction=0.3)
    except UserError as error:
        if name not in str(error):
            raise Lost(f"it is not named: {error}") from None
        raise
    sources = [record.source_path for part in (made.train, made.val) for record in part]
    copies = json.loads((out / "metadata.json").read_text())["copies"]
    if len(sources) + len(copies) < 13 or not (name in sources or name in copies):
        raise Lost(f"{13 - len(sources)} photos were left out without a word")
    return made


@DEPTHS
def test_an_import_names_the_bad_photo(depth: str, tmp_path: Path, trials: Trials) -> None:
    folder = photo_folder(tmp_path / "photos")
    target = folder / "water" / "bad.png"
    cases = [
        case for name in ("rgb.png", "palette.png", "rgb.jpg", "lossy.webp") for case in cases_of(name, photos()[name])
    ]
    room = trials.room(lambda path: imported(folder, tmp_path / "out", "water/bad.png"), **LIMITS)
    target.write_bytes(photos()["rgb.png"])
    room.must_read(target)
    there = [case for case in place_cases() if case.name not in ("nothing there", "a folder", "a link to a folder")]
    trials.run("photo", room, target, some(cases, "quick", 20 if depth == "quick" else 500) + there)


NAMES = [
    b"bad\xff.png",
    b"bad\n.png",
    b"bad\x1b[31m.png",
    b"bad .png ",
    b"bad" + b"x" * 248 + b".png",
    b"bad\xed\xa0\x80.png",
    "bäd.png".encode(),
    b"bad'\".png",
    b"bad\\.png",
    b"bad:.png",
    b"C:bad.png",
    b"-bad.png",
    b"bad.PNG",
    b"bad..png",
    b"~bad.png",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_photo_of_an_odd_name_is_imported_or_named(name: bytes, tmp_path: Path, trials: Trials) -> None:
    folder = photo_folder(tmp_path / "photos")
    shutil.copyfile(folder / "water" / "0.png", tmp_path / "seed.png")
    pixels = np.random.default_rng(99).integers(0, 256, (40, 50, 3), np.uint8)
    odd = os.fsencode(folder / "water") + b"/" + name
    Image.fromarray(pixels).save(tmp_path / "odd.png")
    shutil.copyfile(tmp_path / "odd.png", odd)

    def read() -> None:
        try:
            made = import_photos(folder, tmp_path / "out", CONTRACT, val_fraction=0.3)
        except UserError as error:
            if "bad" not in str(error) and "bäd" not in str(error):
                raise Lost(f"it is not named: {error}") from None
        else:
            suffix = os.fsdecode(name).rpartition(".")[2].strip().casefold()
            if len(made.train) + len(made.val) != 13 and suffix == "png" and not name.endswith(b" "):
                raise Lost(f"{len(made.train) + len(made.val)} of 13 photos are there")

    trials.note("photo", f"the name {name!r}", tried(read, 20))


@pytest.mark.parametrize("name", [b".\xff", b".\xff.png", b".hidden", b"notes\xff.txt"], ids=ascii)
def test_a_file_that_is_no_photo_does_not_end_an_import(name: bytes, tmp_path: Path, trials: Trials) -> None:
    folder = photo_folder(tmp_path / "photos")
    Path(os.fsdecode(os.fsencode(folder / "water") + b"/" + name)).write_bytes(b"x")

    def read() -> None:
        try:
            made = import_photos(folder, tmp_path / "out", CONTRACT, val_fraction=0.3)
        except UserError as error:
            if "xff" not in str(error) and "udcff" not in ascii(str(error)):
                raise Lost(f"it is not named: {error}") from None
        else:
            if len(made.train) + len(made.val) != 12:
                raise Lost(f"{len(made.train) + len(made.val)} of 12 photos are there")

    trials.note("photo", f"the name {name!r}", tried(read, 20))


@pytest.mark.parametrize("place", [b"water/more\xff", b"\xff"], ids=ascii)
def test_a_folder_of_an_odd_name_is_imported_or_named(place: bytes, tmp_path: Path, trials: Trials) -> None:
    folder = photo_folder(tmp_path / "photos")
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/" + place))
    odd.mkdir()
    shutil.copyfile(folder / "water" / "0.png", odd / "more.png")

    def read() -> None:
        try:
            import_photos(folder, tmp_path / "out", CONTRACT, val_fraction=0.3)
        except UserError as error:
            if "xff" not in str(error) and "udcff" not in ascii(str(error)):
                raise Lost(f"it is not named: {error}") from None
        else:
            raise Lost("its photo is not in the dataset")

    trials.note("photo", f"the folder {place!r}", tried(read, 20))


def test_photos_in_a_folder_whose_name_is_not_utf_8_are_imported_or_refused(tmp_path: Path, trials: Trials) -> None:
    folder = photo_folder(Path(os.fsdecode(os.fsencode(tmp_path) + b"/photos\xff")))
    imports = partial(import_photos, folder, tmp_path / "out", CONTRACT, val_fraction=0.3)
    trials.note("photo", "the photos' own folder", tried(imports, 20))


@DEPTHS
def test_labels_json_is_read_or_refused(depth: str, tmp_path: Path, trials: Trials) -> None:
    folder = photo_folder(tmp_path / "photos")
    records = [
        {
            "image_id": f"{label}-{n}",
            "image_path": f"{label}/{n}.png",
            "element": label,
            "reason": "r",
            "confidence": 0.5,
        }
        for label in ("water", "fire")
        for n in range(6)
    ]
    target = folder / "labels.json"
    target.write_text(json.dumps(records, indent=1))
    counted = partial(_import_counted, folder, tmp_path / "out")
    room = trials.room(counted, **LIMITS)
    room.must_read(target)
    data = target.read_bytes()
    there = [case for case in place_cases() if case.name != "nothing there"]
    trials.run("dataset", room, target, some(json_cases(data) + byte_cases(data), depth, 40) + there)


def _import_counted(folder: Path, out: Path, labels: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    made = import_photos(folder, out, CONTRACT, val_fraction=0.3)
    copies = json.loads((out / "metadata.json").read_text())["copies"]
    if not labels.exists():
        raise Lost("labels.json is a link that leads nowhere, and was left out without a word")
    stated = json.loads(labels.read_text())
    if len(made.train) + len(made.val) + len(copies) != len(stated):
        raise Lost(f"{len(made.train) + len(made.val)} of {len(stated)} photos are there")


# --- datasets --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset."""
    folder = tmp_path_factory.mktemp("dataset") / "small"
    make_dataset(folder, 6)
    return folder


def read_counted(folder: Path, _: Path) -> None:
    """Read a dataset: as many records as its files have, less the copies that it names."""
    found = read_dataset(folder, CONTRACT)
    assert len(found.digest) == 64
    stated = 0
    for name in ("train", "val", "test"):
        if (folder / f"{name}.json").exists():
            records = json.loads((folder / f"{name}.json").read_text())
            if not isinstance(records, list):
                raise Lost(f"{name}.json holds no list, and its images were left out without a word")
            stated += len(records)
    copies = sum("is a copy of" in note for note in found.notes)
    if len(found.train) + len(found.val) + len(found.test) + copies != stated:
        raise Lost(f"{len(found.train) + len(found.val) + len(found.test)} of {stated} records are there")


def swapped_records(change: Callable[[list[dict[str, Any]]], object], data: bytes) -> bytes:
    records = json.loads(data)
    change(records)
    return json.dumps(records).encode()


RECORDS: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "one record twice": lambda records: records.append(records[0]),
    "one image twice": lambda records: records[1].update(image_path=records[0]["image_path"], rgb_sha256="", sha256=""),
    "one image under two labels": lambda records: records.append(records[0] | {"image_id": "x", "element": "metal"}),
    "hashes of another record": lambda records: records[0].update(rgb_sha256=records[1]["rgb_sha256"]),
    "two records swapped": lambda records: records.reverse(),
    "a link in the path": lambda records: records[0].update(image_path="images/../images/image_0000.png"),
    "a label of another case": lambda records: records[0].update(element="WATER"),
    "100,000 records": lambda records: records.extend(records * 17_000),
}


@DEPTHS
@pytest.mark.parametrize("name", ["train.json", "test.json", "metadata.json", "images/image_0000.png"])
def test_a_dataset_is_read_or_refused(name: str, depth: str, dataset: Path, tmp_path: Path, trials: Trials) -> None:
    folder = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    target = folder / name
    data = target.read_bytes()
    room = trials.room(partial(read_counted, folder), seconds=20)
    room.must_read(target)
    cases = cases_of("rgb.png", data) if name.endswith(".png") else json_cases(data) + byte_cases(data)
    if name == "test.json":
        cases += [of_bytes(what, swapped_records, change, data) for what, change in RECORDS.items()]
    there: list[Case] = place_cases()
    trials.run("dataset", room, target, some(cases, depth, 30) + there)


@DEPTHS
def test_hypothesis_finds_no_dataset_that_is_a_traceback(
    depth: str, dataset: Path, tmp_path: Path, trials: Trials
) -> None:
    folder = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    target = folder / "test.json"
    room = trials.room(partial(read_counted, folder), seconds=20)
    strategy = edited(json.loads(target.read_text()))
    explore(trials, "dataset", room, target, strategy, 25 if depth == "quick" else 700)
