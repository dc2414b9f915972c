"""Anybody's pictures: folders, class folders, tables; what is wrong with them is said at once."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity.compare.photos import load_photos, picture_digest
from pipeline.contract import ImageContract
from pipeline.core.errors import UserError

ASK = "What is this?"


def paint(path: Path, seed: int, size: tuple[int, int] = (20, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat/a.png", "cat/b.png", "dog/c.png")):
        paint(tmp_path / "photos" / name, number)
    return tmp_path / "photos"


def test_a_folder_of_pictures_has_no_truths(folder: Path) -> None:
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden.png").write_bytes(b"no picture")
    photos, notes = load_photos(folder, ASK)
    assert [photo.image_id for photo in photos] == ["cat/a.png", "cat/b.png", "dog/c.png"]
    assert {photo.truth for photo in photos} == {None}
    assert {photo.size for photo in photos} == {(20, 10)}
    assert not notes


def test_class_folders_are_the_truth(folder: Path) -> None:
    photos, _ = load_photos(folder, ASK, labels=("cat", "dog"))
    assert [photo.truth for photo in photos] == ["cat", "cat", "dog"]


def test_a_picture_outside_the_class_folders_is_named(folder: Path) -> None:
    paint(folder / "bird" / "d.png", 9)
    with pytest.raises(UserError, match=r"bird/d\.png: lies in no folder named after a label \(cat, dog\)"):
        load_photos(folder, ASK, labels=("cat", "dog"))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "labels.json"])
def test_a_table_in_the_folder(folder: Path, name: str) -> None:
    rows = [{"file_name": "cat/a.png", "label": "cat", "question": "Who?", "answer": "a cat"},
            {"file_name": "dog/c.png", "label": "dog", "question": "Where?", "answer": "a dog"}]  # fmt: skip
    if name.endswith(".csv"):
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        (folder / name).write_text("\n".join(lines), encoding="utf-8-sig")
    elif name.endswith(".jsonl"):
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    else:
        (folder / name).write_text(json.dumps(rows))
    photos, _ = load_photos(folder, "{question} Answer shortly.", answers="answer")
    assert [(photo.image_id, photo.truth, photo.question) for photo in photos] == [
        ("cat/a.png", "a cat", "Who? Answer shortly."),
        ("dog/c.png", "a dog", "Where? Answer shortly."),
    ]
    photos, _ = load_photos(folder / name, ASK, labels=("cat", "dog"))
    assert [photo.truth for photo in photos] == ["cat", "dog"]


def test_one_picture_may_be_asked_twice(folder: Path) -> None:
    rows = [{"image": "cat/a.png", "image_id": str(n), "question": text} for n, text in enumerate(("Who?", "Where?"))]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    photos, notes = load_photos(folder / "q.jsonl", "{question}")
    assert len({photo.key for photo in photos}) == 2
    assert len({photo.rgb_sha256 for photo in photos}) == 1
    assert not notes


def test_copies_are_left_out(folder: Path) -> None:
    (folder / "cat" / "copy.png").write_bytes((folder / "cat" / "a.png").read_bytes())
    photos, notes = load_photos(folder, ASK)
    assert len(photos) == 3
    assert notes == ["1 copies of pictures were left out"]


def test_a_copy_under_another_label_is_an_error(folder: Path) -> None:
    (folder / "dog" / "copy.png").write_bytes((folder / "cat" / "a.png").read_bytes())
    with pytest.raises(UserError, match=r"dog/copy\.png: is the same picture as cat/a\.png, which has 'cat'"):
        load_photos(folder, ASK, labels=("cat", "dog"))


def test_pictures_of_one_colour_and_other_shapes_are_two() -> None:
    grey = np.full((4, 16, 3), 128, np.uint8)
    assert picture_digest(grey) != picture_digest(grey.reshape(8, 8, 3))


def test_the_orientation_tag_is_applied(tmp_path: Path) -> None:
    image = Image.open(paint(tmp_path / "a.png", 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "b.jpg", exif=exif)
    (turned,) = [photo for photo in load_photos(tmp_path, ASK)[0] if photo.image_id == "b.jpg"]
    assert turned.size == (10, 20)


def test_a_contracts_letterbox(folder: Path) -> None:
    photos, _ = load_photos(folder, ASK, image=ImageContract(size=64))
    assert {photo.size for photo in photos} == {(64, 64)}
    assert photos[0].rgb.shape == (64, 64, 3)


def test_a_limit_is_spread_over_all(folder: Path) -> None:
    photos, _ = load_photos(folder, ASK, limit=2)
    assert [photo.image_id for photo in photos] == ["cat/a.png", "cat/b.png"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ("label\ncat\n", {}, "has no column for a picture's path"),
        ("file_name\nnone.png\n", {}, r"row 1: 'none.png' is missing"),
        ("file_name\n../x.png\n", {}, "leads outside"),
        ("file_name\ncat/a.png\n", {"labels": ("cat", "dog")}, "has no column for the label"),
        ("file_name,label\ncat/a.png,cow\n", {"labels": ("cat", "dog")}, "has the label 'cow'"),
        ("file_name\ncat/a.png\n", {"answers": "answer"}, "has no column 'answer' for the answers; it has file_name"),
        ("file_name,image_id\ncat/a.png,x\ndog/c.png,x\n", {}, "is the name of two pictures"),
        ("", {}, "has no rows"),
        ("file_name\n\"cat/a.png\n", {}, "cannot be read as CSV"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table(folder: Path, rows: str, options: dict[str, object], message: str) -> None:
    table = folder / "table.csv"
    table.write_text(rows)
    with pytest.raises(UserError, match=message):
        load_photos(table, ASK, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["{", "3", '["a"]', "[[1, 2]]"])
def test_json_that_is_no_table(folder: Path, text: str) -> None:
    (folder / "table.json").write_text(text)
    with pytest.raises(UserError, match=r"table\.json"):
        load_photos(folder / "table.json", ASK)


def test_a_column_that_the_prompt_wants_and_a_row_lacks(folder: Path) -> None:
    rows = [{"image": "cat/a.png", "q": "Who?"}, {"image": "dog/c.png"}]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"dog/c\.png: has no 'q', which the prompt wants"):
        load_photos(folder / "t.jsonl", "{q}")


def test_damaged_pictures_are_named_together(folder: Path) -> None:
    for name in ("x.png", "y.png"):
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    with pytest.raises(UserError, match=r"has 2 problems:\n"):
        load_photos(folder, ASK)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file or folder"):
        load_photos(tmp_path / "none", ASK)
    with pytest.raises(UserError, match="there is no picture in it"):
        load_photos(tmp_path, ASK)
    with pytest.raises(UserError, match="--answers takes a column"):
        load_photos(tmp_path, ASK, answers="answer")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"is no table: give \.csv, \.json or \.jsonl"):
        load_photos(tmp_path / "a.txt", ASK)
