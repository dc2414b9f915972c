"""Importing photos, both ways in."""

import json
import os
import re
import shlex
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import picture, save
from PIL import Image
from places import unprivileged
from rich.console import Console

from pipeline.contract import Contract, ImageContract
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_file
from pipeline.core.progress import Reporter
from pipeline.dataset.photos import import_photos
from pipeline.dataset.records import load_rgb, read_dataset
from pipeline.letterbox import letterbox
from pipeline.recipe import DatasetSettings, Recipe, load_recipe
from pipeline.workflow.build import Build


@pytest.fixture
def labelled(tmp_path: Path, contract: Contract) -> Path:
    """Thirty photos of different sizes with labels.json."""
    folder, records = tmp_path / "photos", []
    for number in range(30):
        save(folder / f"pics/{number}.png", number, 40 + number, 60 - number)
        records.append(
            {
                "image_id": f"p{number:02d}",
                "image_path": f"pics/{number}.png",
                "element": contract.labels[number % 3],
                "reason": "noise",
                "confidence": 0.5,
                "licence": "CC0",
            }
        )
    (folder / "labels.json").write_text(json.dumps(records))
    return folder


@pytest.fixture
def folders(tmp_path: Path, contract: Contract) -> Path:
    """Thirty photos in one sub-folder a label."""
    folder = tmp_path / "photos"
    for number in range(30):
        save(folder / contract.labels[number % 3] / f"{number}.png", number)
    return folder


def change(photos: Path, number: int, **keys: object) -> None:
    records = json.loads((photos / "labels.json").read_text())
    records[number] |= keys
    (photos / "labels.json").write_text(json.dumps(records))


def refused(photos: Path, out: Path, contract: Contract) -> str:
    """The message of an import that must fail and leave nothing behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(UserError) as error:
        import_photos(photos, out, contract)
    assert sorted(out.parent.iterdir()) == before
    return str(error.value)


def test_labels_json(labelled: Path, contract: Contract, tmp_path: Path) -> None:
    made = import_photos(labelled, tmp_path / "out", contract)
    assert made == read_dataset(tmp_path / "out", contract)
    assert made.digest == read_dataset(tmp_path / "out", contract).digest
    assert len(made.train) + len(made.val) == 30
    for record in made.train + made.val:
        number = int(record.image_id[1:])
        original = picture(number, 40 + number, 60 - number)
        assert np.array_equal(load_rgb(made.folder, record), np.asarray(letterbox(original, contract)))
        assert record.source_size == original.size
        assert record.source_sha256 == sha256_file(labelled / record.source_path)
        assert (record.element, record.confidence) == (contract.labels[number % 3], 0.5)
        assert record.as_json()["licence"] == "CC0"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "images",
        "metadata.json",
        "train.json",
        "val.json",
    ]


def test_sub_folders(folders: Path, contract: Contract, tmp_path: Path) -> None:
    save(folders / "water/deeper/photo.PNG", 90)
    (folders / "water/Thumbs.db").write_bytes(b"x")
    (folders / "land/.hidden.png").write_bytes(b"x")
    made = import_photos(folders, tmp_path / "out", contract)
    assert made.train == read_dataset(tmp_path / "out", contract).train
    records = {record.image_id: record for record in made.train + made.val}
    assert len(records) == 31
    assert records["water/deeper/photo.PNG"].element == "water"
    assert records["fire/2.png"].source_path == "fire/2.png"
    assert made.notes == ("1 files that are not photos by their suffix were left out",)


def test_metadata_says_how_it_was_made(labelled: Path, contract: Contract, tmp_path: Path) -> None:
    made = import_photos(labelled, tmp_path / "out", contract, val_fraction=0.3, seed=5)
    metadata = json.loads((tmp_path / "out/metadata.json").read_text())
    assert metadata["contract"]["digest"] == contract.digest
    assert metadata["image"]["resample"] == "android_bilinear"
    assert metadata["split"]["val_fraction"] == 0.3
    assert metadata["split"]["seed"] == 5
    assert sum(metadata["counts"]["train"].values()) == len(made.train)
    assert {record["image_id"]: record["split"] for record in metadata["records"]} == {
        record.image_id: split for split in ("train", "val") for record in getattr(made, split)
    }


def test_the_same_photos_give_the_same_files(labelled: Path, contract: Contract, tmp_path: Path) -> None:
    import_photos(labelled, tmp_path / "a", contract)
    import_photos(labelled, tmp_path / "b", contract)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 33
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_neither_additions_nor_another_letterbox_move_a_photo(
    labelled: Path, contract: Contract, tmp_path: Path
) -> None:
    before = {record.source_sha256 for record in import_photos(labelled, tmp_path / "a", contract).val}
    lanczos = Contract(labels=contract.labels, image=ImageContract(size=64, resample="lanczos"))
    assert {record.source_sha256 for record in import_photos(labelled, tmp_path / "b", lanczos).val} == before
    records = json.loads((labelled / "labels.json").read_text())
    for number in range(100, 120):
        save(labelled / f"pics/{number}.png", number)
        records.insert(0, {"image_id": f"p{number}", "image_path": f"pics/{number}.png", "element": "fire"})
    (labelled / "labels.json").write_text(json.dumps(records))
    after = import_photos(labelled, tmp_path / "c", contract)
    assert before <= {record.source_sha256 for record in after.val}
    assert not before & {record.source_sha256 for record in after.train}


def test_copies_under_one_label_are_left_out(labelled: Path, contract: Contract, tmp_path: Path) -> None:
    shutil.copy(labelled / "pics/0.png", labelled / "pics/3.png")  # both water
    with Image.open(labelled / "pics/1.png") as image:
        image.save(labelled / "pics/4.png", compress_level=0)  # both land; other bytes, same pixels
    made = import_photos(labelled, tmp_path / "out", contract)
    assert len(made.train) + len(made.val) == 28
    assert "2 photos are copies" in made.notes[0]
    copies = json.loads((tmp_path / "out/metadata.json").read_text())["copies"]
    assert [sorted(pair) for pair in sorted(copies.items())] == [["p00", "p03"], ["p01", "p04"]]
    assert len(list((tmp_path / "out/images").iterdir())) == 28


def test_max_per_class(labelled: Path, contract: Contract, tmp_path: Path) -> None:
    made = import_photos(labelled, tmp_path / "out", contract, max_per_class=4)
    labels = [record.element for record in made.train + made.val]
    assert {label: labels.count(label) for label in contract.labels} == {"water": 4, "land": 4, "fire": 4}
    assert {record.element for record in made.val} == set(contract.labels)


def test_flags_of_the_letterbox_are_kept(labelled: Path, contract: Contract, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(200).save(labelled / "pics/0.jpg", exif=exif)
    change(labelled, 0, image_path="pics/0.jpg")
    made = import_photos(labelled, tmp_path / "out", contract)
    (record,) = [record for record in made.train + made.val if record.image_id == "p00"]
    assert record.flags == ("exif_orientation",)


def test_odd_ids_make_safe_file_names(labelled: Path, contract: Contract, tmp_path: Path) -> None:
    for number, image_id in enumerate(["../../evil", "a/b", "a_b", "불", "x" * 300, ".hidden", "a b?*"]):
        change(labelled, number, image_id=image_id)
    made = import_photos(labelled, tmp_path / "out", contract)
    assert read_dataset(tmp_path / "out", contract) == made
    names = [path.name for path in (tmp_path / "out/images").iterdir()]
    assert len(names) == 30
    assert all(name.isascii() and not name.startswith(".") and len(name) < 120 for name in names)


def test_all_bad_photos_are_reported_together(labelled: Path, contract: Contract, tmp_path: Path) -> None:
    (labelled / "pics/0.png").write_bytes(b"no picture")
    (labelled / "pics/1.png").write_bytes((labelled / "pics/1.png").read_bytes()[:900])
    (labelled / "pics/2.png").unlink()
    picture(5).save(labelled / "pics/3.tiff")
    change(labelled, 3, image_path="pics/3.tiff")
    change(labelled, 4, element="earth")
    shutil.copy(labelled / "pics/6.png", labelled / "pics/8.png")  # water and fire
    said = refused(labelled, tmp_path / "out", contract)
    assert "has 6 problems" in said
    assert "record 1 (id p00), pics/0.png: this is not a picture" in said
    assert re.search(r"record 2 \(id p01\), pics/1.png: .*truncated", said)
    assert "record 3 (id p02), image_path: 'pics/2.png' is missing" in said
    assert "TIFF" in said
    assert "record 5 (id p04), element: unknown label 'earth'" in said
    assert "labelled 'fire' but shows exactly what p06 shows" in said or "what p08 shows, labelled 'fire'" in said


def test_links_out_of_the_folder_are_refused(folders: Path, contract: Contract, tmp_path: Path) -> None:
    outside = save(tmp_path / "elsewhere/secret.png", 99)
    (folders / "water/link.png").symlink_to(outside)
    assert "link that leads outside" in refused(folders, tmp_path / "out", contract)


def test_sub_folders_that_are_no_labels(folders: Path, contract: Contract, tmp_path: Path) -> None:
    save(folders / "earth/1.png", 80)
    said = refused(folders, tmp_path / "out", contract)
    assert "sub-folder earth: unknown label; the contract has water" in said
    assert "rename it, or make the sub-folders the labels with --set 'contract.labels=[earth,fire,land,water]'" in said
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "neither labels.json nor a sub-folder" in refused(empty, tmp_path / "out", contract)
    assert "no such folder" in refused(tmp_path / "nowhere", tmp_path / "out", contract)


@pytest.mark.parametrize(
    "names",
    [
        ["cats", "dogs"],
        ["tin can", "it's", "yes", "1", "a,b", "a=b c=d", "$HOME", "[x]", 'say "x"', "naïve", "x #1", "null", "- y"],
    ],
)
def test_folders_of_other_classes_are_told_the_setting(contract: Contract, tmp_path: Path, names: list[str]) -> None:
    """What is to be typed, as it stands there, makes them the labels."""
    photos = tmp_path / "photos"
    for number in range(6 * len(names)):
        save(photos / names[number % len(names)] / f"{number}.png", number)
    said = refused(photos, tmp_path / "out", contract)
    assert "\n" not in said
    assert ("sub-folders cats, dogs: unknown labels" in said) == (names == ["cats", "dogs"])
    assert ("with --set 'contract.labels=[cats,dogs]' (with make: SET='con" in said) == (names == ["cats", "dogs"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: x\ndataset: {{source: photos, path: {photos}}}")
    _, _, typed = said.partition("with --set ")
    setting, _, for_make = typed.removesuffix(")").partition(" (with make: SET=")
    (given,) = shlex.split(setting)
    assert shlex.split(for_make) == [given.replace("$", "$$")]
    made = load_recipe(recipe, (given,))
    assert sorted(made.contract.labels) == sorted(names)


def test_a_folder_of_links_is_one_sentence(folders: Path, contract: Contract, tmp_path: Path) -> None:
    links = tmp_path / "links"
    for file in sorted(folders.rglob("*.png")):
        (links / file.parent.name).mkdir(parents=True, exist_ok=True)
        (links / file.parent.name / file.name).symlink_to(file)
    said = refused(links, tmp_path / "out", contract)
    assert said == (
        f"photos {links}: 30 links lead outside the folder (fire/11.png, fire/14.png, fire/17.png, ...): copy the"
        " folder with the files themselves, as `cp -rL FOLDER COPY` does, and give the copy"
    )
    (tmp_path / "whole").mkdir()
    for folder in folders.iterdir():
        (tmp_path / "whole" / folder.name).symlink_to(folder)
    said = refused(tmp_path / "whole", tmp_path / "out", contract)
    assert said.startswith(f"photos {tmp_path}/whole: 3 links lead outside the folder (fire, land, water): copy")
    records = [{"image_id": f"{n}", "image_path": f"{n}.png", "element": "fire"} for n in range(4)]
    (tmp_path / "table").mkdir()
    (tmp_path / "table/labels.json").write_text(json.dumps(records))
    for n in range(4):
        (tmp_path / f"table/{n}.png").symlink_to(folders / "water/0.png")
    said = refused(tmp_path / "table", tmp_path / "out", contract)
    assert "table: 4 links lead outside the folder (0.png, 1.png, 2.png, ...): copy" in said


def test_a_name_that_is_not_utf8(folders: Path, contract: Contract, tmp_path: Path) -> None:
    os.rename(os.fsencode(folders / "water/0.png"), os.fsencode(folders / "water") + b"/\xff.png")
    assert "is not a UTF-8 name" in refused(folders, tmp_path / "out", contract)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(photo: Path, name: bytes, data: bytes, before: bytes) -> None:
    """Put a chunk into a PNG."""
    content = photo.read_bytes()
    place = content.index(before) - 4
    photo.write_bytes(content[:place] + chunk(name, data) + content[place:])


def short_exif(photo: Path) -> None:
    with_chunk(photo, b"eXIf", b"II", before=b"IDAT")


def short_exif_webp(photo: Path) -> None:
    with Image.open(photo) as image:
        image.save(photo, "WEBP", exif=b"Exif\0\0II")


def long_transparency(photo: Path) -> None:
    with Image.open(photo) as image:
        image.convert("P").save(photo)
    with_chunk(photo, b"tRNS", bytes(300), before=b"IDAT")


def fifo(photo: Path) -> None:
    photo.unlink()
    os.mkfifo(photo)


def memory_link(photo: Path) -> None:
    photo.unlink()
    photo.symlink_to("/proc/self/mem")


def not_utf8(photo: Path) -> None:
    os.rename(os.fsencode(photo), os.fsencode(photo.parent) + b"/\xff.png")


def folder_not_utf8(photo: Path) -> None:
    folder = os.fsencode(photo.parent) + b"/\xff\n"
    os.mkdir(folder)
    os.rename(os.fsencode(photo), folder + b"/a.png")


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "eXIf of two bytes": (short_exif, "water, water/0.png: truncated or damaged ("),
    "EXIF of two bytes in a WebP": (short_exif_webp, "water, water/0.png: truncated or damaged ("),
    "tRNS of 300 bytes": (long_transparency, "water, water/0.png: truncated or damaged ("),
    "FIFO": (fifo, "sub-folders: 'water/0.png' is not a file"),
    "/proc/self/mem": (memory_link, "sub-folders: 'water/0.png' is a link that leads outside the folder"),
    "a name that is not UTF-8": (not_utf8, r"sub-folders: water/\udcff.png is not a UTF-8 name: rename it"),
    "a folder that is not UTF-8": (
        folder_not_utf8,
        r"sub-folders: water/\udcff\n/a.png is not a UTF-8 name: rename it",
    ),
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_photo_is_one_line_and_the_rest_is_checked(
    folders: Path, contract: Contract, tmp_path: Path, how: str
) -> None:
    spoil, words = BAD[how]
    spoil(folders / "water/0.png")
    (folders / "land/1.png").write_bytes(b"no picture")
    recipe = Recipe(name="x", contract=contract, dataset=DatasetSettings(source="photos", path=str(folders)))
    with pytest.raises(UserError) as error:
        Build(recipe, tmp_path / "run", Reporter(Console(), quiet=True), threads=1).ensure_dataset()
    head, *lines = str(error.value).splitlines()
    assert head.endswith("has 2 problems:")
    assert any(line.strip().startswith(words) for line in lines), lines
    assert "  land, land/1.png: this is not a picture, or not of a known format: leave it out" in lines


def test_what_is_hidden_is_left_alone(folders: Path, contract: Contract, tmp_path: Path) -> None:
    (folders / "water" / os.fsdecode(b".\xff.png")).write_bytes(b"no picture")
    os.mkfifo(folders / "water" / ".fifo.png")
    recipe = Recipe(name="x", contract=contract, dataset=DatasetSettings(source="photos", path=str(folders)))
    Build(recipe, tmp_path / "run", Reporter(Console(), quiet=True), threads=1).ensure_dataset()
    assert len(list((tmp_path / "run/dataset/images").iterdir())) == 30


@pytest.mark.parametrize("what", ["a photo", "a folder", "a folder in a folder", "all of it"])
def test_what_may_not_be_read_is_named(contract: Contract, what: str) -> None:
    names = {"a photo": "water/0.png", "a folder": "fire", "a folder in a folder": "water/deep", "all of it": ""}
    with unprivileged() as place:
        photos, run = place / "photos", place / "run"
        for number in range(30):
            save(photos / contract.labels[number % 3] / f"{number}.png", number)
        save(photos / "water/deep/a.png", 77)
        recipe = Recipe(name="x", contract=contract, dataset=DatasetSettings(source="photos", path=str(photos)))
        (photos / names[what]).chmod(0)
        with pytest.raises(UserError) as error:
            Build(recipe, run, Reporter(Console(), quiet=True), threads=1).ensure_dataset()
        assert not (run / "dataset").exists()
    assert "\n" not in str(error.value)
    assert "cannot be read: Permission denied" in str(error.value)
    assert str(photos) in str(error.value)
    assert names[what] in str(error.value)


@pytest.mark.parametrize("kind", ["FIFO", "a device", "a folder", "a link to nothing"])
def test_labels_that_are_no_file_are_named(labelled: Path, contract: Contract, tmp_path: Path, kind: str) -> None:
    path = labelled / "labels.json"
    path.unlink()
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    reason = "No such file or directory" if kind == "a link to nothing" else "it is not a regular file"
    assert refused(labelled, tmp_path / "out", contract).endswith(f": labels.json: cannot be read: {reason}")


def test_too_few_photos_to_split(tmp_path: Path, contract: Contract) -> None:
    save(tmp_path / "photos/water/1.png", 1)
    assert "empty" in refused(tmp_path / "photos", tmp_path / "out", contract)


def test_a_dataset_is_replaced_but_nothing_else_is(labelled: Path, contract: Contract, tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_photos(labelled, out, contract)
    change(labelled, 0, reason="changed")
    import_photos(labelled, out, contract)
    assert "changed" in (out / "metadata.json").read_text()
    (out / "notes.txt").write_text("mine")
    assert "would delete" in refused(labelled, out, contract)
    assert (out / "notes.txt").read_text() == "mine"
    for nested in (labelled, labelled / "out", labelled.parent):
        assert "inside one another" in refused(labelled, nested, contract)


def test_a_failed_import_leaves_the_old_dataset(labelled: Path, contract: Contract, tmp_path: Path) -> None:
    made = import_photos(labelled, tmp_path / "out", contract)
    (labelled / "pics/0.png").write_bytes(b"broken")
    refused(labelled, tmp_path / "out", contract)
    assert read_dataset(tmp_path / "out", contract) == made


def test_a_share_for_the_test_is_drawn_like_the_others(labelled: Path, contract: Contract, tmp_path: Path) -> None:
    without = import_photos(labelled, tmp_path / "without", contract, 0.2)
    made = import_photos(labelled, tmp_path / "out", contract, 0.2, test_fraction=0.3)
    assert made.val == without.val
    assert {record.element for record in made.test} == set(contract.labels)
    assert {record.image_id for record in (*made.train, *made.test)} == {record.image_id for record in without.train}
    again = read_dataset(tmp_path / "out", contract)
    assert (again.train, again.val, again.test) == (made.train, made.val, made.test)
    assert again.digest == made.digest != without.digest
    assert made.judged == ("test", made.test)
    assert without.judged == ("validation", without.val)
    assert not (tmp_path / "without" / "test.json").exists()
    import_photos(labelled, tmp_path / "out", contract, 0.2)  # replaces the test images with none
    assert not (tmp_path / "out" / "test.json").exists()


def test_a_folder_for_the_test_is_never_trained_on(folders: Path, contract: Contract, tmp_path: Path) -> None:
    apart = tmp_path / "apart"
    for number in range(6):  # the same names as in the other folder
        save(apart / contract.labels[number % 3] / f"{number}.png", 100 + number)
    made = import_photos(folders, tmp_path / "out", contract, 0.2, test_photos=apart)
    plain = import_photos(folders, tmp_path / "plain", contract, 0.2)
    assert (made.train, made.val) == (plain.train, plain.val)
    assert [record.image_id for record in made.test][:2] == ["test/fire/2.png", "test/fire/5.png"]
    assert len(read_dataset(tmp_path / "out", contract).test) == 6


@pytest.mark.parametrize("how", ["the same file", "the same pixels"])
def test_a_test_photo_that_is_trained_on_is_named(folders: Path, contract: Contract, tmp_path: Path, how: str) -> None:
    apart, out = tmp_path / "apart", tmp_path / "out"
    for number in range(3):
        save(apart / contract.labels[number] / f"{number}.png", 100 + number)
    source, copy = folders / "fire" / "8.png", apart / "fire" / "leaked.png"
    if how == "the same file":
        shutil.copy(source, copy)
    else:
        Image.open(source).save(copy, compress_level=0)
        assert sha256_file(copy) != sha256_file(source)
    with pytest.raises(UserError, match=r"test/fire/leaked\.png: shows exactly what fire/8\.png shows") as error:
        import_photos(folders, out, contract, 0.2, test_photos=apart)
    assert "\n" not in str(error.value)
    assert not out.exists()


def test_a_dataset_of_an_older_layout_is_refused(labelled: Path, contract: Contract, tmp_path: Path) -> None:
    import_photos(labelled, tmp_path / "out", contract)
    path = tmp_path / "out" / "metadata.json"
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(UserError, match="is 1, and this version reads 2: make the dataset again"):
        read_dataset(tmp_path / "out", contract)
