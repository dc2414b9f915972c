"""Reading a dataset: what is accepted, and every problem, named with its place."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import picture, save
from PIL import Image, PngImagePlugin

from pipeline.contract import Contract, ImageContract
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes, sha256_file
from pipeline.dataset.records import load_rgb, read_dataset

Lists = dict[str, list[dict[str, Any]]]


@pytest.fixture
def plain(tmp_path: Path, contract: Contract) -> tuple[Path, Lists]:
    """A dataset in the plain format: six records in train, three in val, nothing but the five keys."""
    folder, lists, number = tmp_path / "data", {}, 0
    for split, count in (("train", 6), ("val", 3)):
        lists[split] = []
        for _ in range(count):
            save(folder / f"images/{number:05d}.png", number, 32, 32)
            lists[split].append(
                {
                    "image_id": f"{number:05d}",
                    "image_path": f"images/{number:05d}.png",
                    "element": contract.labels[number % 3],
                    "reason": "noise",
                    "confidence": 0.95,
                }
            )
            number += 1
    write(folder, lists)
    return folder, lists


def write(folder: Path, lists: Lists) -> None:
    for split, records in lists.items():
        (folder / f"{split}.json").write_text(json.dumps(records))


def message(folder: Path, contract: Contract) -> str:
    with pytest.raises(UserError) as error:
        read_dataset(folder, contract)
    return str(error.value)


def test_the_plain_format_is_read(plain: tuple[Path, Lists], contract: Contract) -> None:
    folder, lists = plain
    dataset = read_dataset(folder, contract)
    assert [record.image_id for record in dataset.train] == [record["image_id"] for record in lists["train"]]
    assert (dataset.val[0].element, dataset.val[0].reason, dataset.val[0].confidence) == ("water", "noise", 0.95)
    for record in dataset.train + dataset.val:
        pixels = load_rgb(folder, record)
        assert np.array_equal(pixels, np.asarray(picture(int(record.image_id))))
        assert record.rgb_sha256 == sha256_bytes(pixels.tobytes())
        assert record.sha256 == sha256_file(folder / record.image_path)
    assert "letterboxed" in dataset.notes[0]  # without metadata.json nobody knows how


def test_reason_and_confidence_may_be_left_out(plain: tuple[Path, Lists], contract: Contract) -> None:
    folder, lists = plain
    del lists["train"][0]["reason"], lists["train"][0]["confidence"]
    write(folder, lists)
    record = read_dataset(folder, contract).train[0]
    assert (record.reason, record.confidence) == ("", 1.0)


def test_other_keys_are_kept(plain: tuple[Path, Lists], contract: Contract) -> None:
    folder, lists = plain
    lists["train"][0] |= {"licence": "CC0", "copy": {"nested": [1, None]}}
    write(folder, lists)
    written = read_dataset(folder, contract).train[0].as_json()
    assert (written["licence"], written["copy"]) == ("CC0", {"nested": [1, None]})


def test_jpeg_and_a_whole_number_as_confidence_are_accepted(plain: tuple[Path, Lists], contract: Contract) -> None:
    folder, lists = plain
    picture(0).save(folder / "images/a.jpg")
    lists["train"][0] |= {"image_path": "images/a.jpg", "confidence": 1}
    write(folder, lists)
    assert read_dataset(folder, contract).train[0].confidence == 1.0


def test_a_link_inside_the_folder_and_the_folder_as_a_link_are_fine(
    plain: tuple[Path, Lists], contract: Contract, tmp_path: Path
) -> None:
    folder, lists = plain
    (folder / "images/link.png").symlink_to("00000.png")
    lists["train"][0]["image_path"] = "images/link.png"
    write(folder, lists)
    (tmp_path / "elsewhere").symlink_to(folder)
    assert len(read_dataset(tmp_path / "elsewhere", contract).train) == 6


def test_a_copy_in_the_same_split_is_left_out_and_noted(plain: tuple[Path, Lists], contract: Contract) -> None:
    folder, _ = plain
    save(folder / "images/00003.png", 0, 32, 32)  # 00000 and 00003 are both water
    dataset = read_dataset(folder, contract)
    assert [record.image_id for record in dataset.train] == ["00000", "00001", "00002", "00004", "00005"]
    assert any("record 4 (id 00003) is a copy of train.json record 1" in note for note in dataset.notes)


def test_a_label_without_images_is_noted(plain: tuple[Path, Lists], contract: Contract) -> None:
    folder, lists = plain
    lists["val"] = lists["val"][:1]
    write(folder, lists)
    assert "val.json has no image of land, fire" in read_dataset(folder, contract).notes


def test_progress_counts_every_image(plain: tuple[Path, Lists], contract: Contract) -> None:
    calls: list[tuple[int, int]] = []
    read_dataset(plain[0], contract, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 9) for i in range(1, 10)]


def test_the_digest_follows_labels_and_pixels_but_not_compression(
    plain: tuple[Path, Lists], contract: Contract
) -> None:
    folder, lists = plain
    first = read_dataset(folder, contract).digest
    assert read_dataset(folder, contract).digest == first
    picture(0).save(folder / "images/00000.png", compress_level=0)
    assert read_dataset(folder, contract).digest == first
    picture(100).save(folder / "images/00000.png")
    changed = read_dataset(folder, contract).digest
    lists["train"][1]["element"] = "fire"
    write(folder, lists)
    assert len({first, changed, read_dataset(folder, contract).digest}) == 3


# --- one problem each ------------------------------------------------------------------------------------------------


def _link_out(folder: Path) -> None:
    outside = save(folder.parent / "outside.png", 50, 32, 32)
    (folder / "images/00000.png").unlink()
    (folder / "images/00000.png").symlink_to(outside)


def _folder_link_out(folder: Path) -> None:
    (folder / "images").rename(folder.parent / "moved")
    (folder / "images").symlink_to(folder.parent / "moved")


def _gray(folder: Path) -> None:
    picture(0).convert("L").save(folder / "images/00000.png")


def _bomb(folder: Path) -> None:
    # A header that claims 60000 x 60000 pixels, and little behind it.
    def chunk(content: bytes) -> bytes:
        return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))

    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = chunk(header) + chunk(b"IDAT" + zlib.compress(bytes(1000)))
    (folder / "images/00000.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def _text_bomb(folder: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 100_000_000, zip=True)
    picture(0).save(folder / "images/00000.png", pnginfo=info)


def _truncated(folder: Path) -> None:
    path = folder / "images/00000.png"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda folder: (folder / "images/00000.png").unlink(), "'images/00000.png' is missing"),
        (lambda folder: (folder / "images/00000.png").write_bytes(b"hello"), "not an image"),
        (lambda folder: (folder / "images/00000.png").write_bytes(b""), "not an image"),
        (_truncated, "cannot be decoded"),
        (_bomb, "decompression bomb"),
        (_text_bomb, "cannot be decoded"),
        (lambda folder: save(folder / "images/00000.png", 0, 32, 31), "32x31 pixels, mode RGB"),
        (_gray, "32x32 pixels, mode L: the contract wants 32x32 RGB"),
        (_link_out, "link that leads outside"),
    ],
)
def test_a_bad_image(plain: tuple[Path, Lists], contract: Contract, spoil: Callable[[Path], object], text: str) -> None:
    folder, _ = plain
    spoil(folder)
    said = message(folder, contract)
    assert "train.json record 1 (id 00000), image_path" in said
    assert text in said


def test_images_behind_a_link_are_one_sentence(plain: tuple[Path, Lists], contract: Contract) -> None:
    folder, lists = plain
    _folder_link_out(folder)
    said = message(folder, contract)
    assert "\n" not in said
    assert f": {sum(map(len, lists.values()))} links lead outside the folder (images/00000.png, " in said


@pytest.mark.parametrize(
    ("change", "key", "text"),
    [
        ({"image_path": "/etc/hostname"}, "image_path", "absolute"),
        ({"image_path": "C:\\photos\\a.png"}, "image_path", "absolute"),
        ({"image_path": "../outside.png"}, "image_path", "outside"),
        ({"image_path": "images/../../outside.png"}, "image_path", "outside"),
        ({"image_path": "images"}, "image_path", "is not a file"),
        ({"image_path": "a\0b"}, "image_path", "cannot be a path"),
        ({"image_path": "a" * 5000}, "image_path", "cannot be a path"),
        ({"image_path": ""}, "image_path", "at least 1 character"),
        ({"image_path": 7}, "image_path", "must be text, not"),
        ({"image_id": ""}, "image_id", "at least 1 character"),
        ({"image_id": 1}, "image_id", "must be text, not"),
        ({"image_id": "00001"}, "image_id", "duplicate id, already used by"),
        ({"element": "earth"}, "element", "unknown label 'earth'; the contract has water, land, fire"),
        ({"element": "Fire"}, "element", "unknown label 'Fire'"),
        ({"element": None}, "element", "must be text, not"),
        ({"confidence": 1.5}, "confidence", "must be at most 1, not 1.5"),
        ({"confidence": "high"}, "confidence", "must be a number, not 'high'"),
        ({"sha256": "abc"}, "sha256", "must be 64 hexadecimal digits, not 'abc'"),
        ({"sha256": "0" * 64}, "image_path", "not the one that the record's sha256"),
        ({"rgb_sha256": "0" * 64}, "image_path", "not the one that the record's sha256"),
    ],
)
def test_a_bad_record(
    plain: tuple[Path, Lists], contract: Contract, change: dict[str, Any], key: str, text: str
) -> None:
    folder, lists = plain
    lists["train"][2] |= change
    write(folder, lists)
    said = message(folder, contract)
    assert f", {key}: " in said
    assert text in said
    assert "train.json record 3" in said or "train.json record 2" in said  # of two equal ids either may be at fault


def test_a_missing_key_is_named(plain: tuple[Path, Lists], contract: Contract) -> None:
    folder, lists = plain
    del lists["val"][1]["element"]
    write(folder, lists)
    assert "val.json record 2 (id 00007), element: this key is missing" in message(folder, contract)


def test_an_id_of_train_may_not_come_again_in_val(plain: tuple[Path, Lists], contract: Contract) -> None:
    folder, lists = plain
    lists["val"][0]["image_id"] = "00002"
    write(folder, lists)
    said = message(folder, contract)
    assert "val.json record 1 (id 00002), image_id: duplicate id, already used by train.json record 3" in said


def test_the_same_picture_in_both_splits_is_found_whatever_its_file(
    plain: tuple[Path, Lists], contract: Contract
) -> None:
    folder, _ = plain
    picture(1).save(folder / "images/00008.png", compress_level=0)  # other bytes, same pixels
    assert "val.json record 3 (id 00008): shows exactly what train.json record 2" in message(folder, contract)


def test_the_same_picture_under_two_labels_is_found(plain: tuple[Path, Lists], contract: Contract) -> None:
    folder, _ = plain
    save(folder / "images/00002.png", 0, 32, 32)
    said = message(folder, contract)
    assert "record 3 (id 00002): is labelled 'fire' but shows exactly what train.json record 1" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('[{"confidence": NaN}]', "NaN is no JSON number"),
        ('[{"reason": "\\ud800"}]', "is not valid JSON"),
        ("{}", "is not a list of records"),
        ("[]", "at least one record"),
        ("[1]", "record 1: is not an object"),
    ],
)
def test_a_file_that_is_no_list_of_records(plain: tuple[Path, Lists], contract: Contract, text: str, said: str) -> None:
    folder, _ = plain
    (folder / "train.json").write_text(text)
    found = message(folder, contract)
    assert "train.json" in found
    assert said in found


def test_a_missing_file_and_a_missing_folder(plain: tuple[Path, Lists], contract: Contract, tmp_path: Path) -> None:
    (plain[0] / "val.json").unlink()
    assert "val.json: cannot be read: No such file" in message(plain[0], contract)
    assert "is not a folder" in message(tmp_path / "nowhere", contract)


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"image": {"resample": "lanczos"}}, "image.resample: the images were made with 'lanczos', the contract says"),
        ({"image": {"size": 256}}, "image.size: the images were made with 256"),
        ({"image": {"pad_color": [1, 0, 0]}}, "image.pad_color"),
        ({"schema_version": 1}, "schema_version: is 1"),
        ([], "is not an object"),
    ],
)
def test_metadata_that_contradicts_the_contract(
    plain: tuple[Path, Lists], contract: Contract, metadata: Any, text: str
) -> None:
    (plain[0] / "metadata.json").write_text(json.dumps(metadata))
    assert text in message(plain[0], contract)


def test_settings_that_change_no_pixel_are_no_contradiction(plain: tuple[Path, Lists], contract: Contract) -> None:
    (plain[0] / "metadata.json").write_text(json.dumps({"image": {"channel_order": "rgb"}}))
    swapped = Contract(labels=contract.labels, image=ImageContract(size=32, channel_order="bgr"), max_new_tokens=4)
    assert read_dataset(plain[0], swapped).notes == ()


# --- many problems ---------------------------------------------------------------------------------------------------


def test_problems_of_all_files_are_reported_together(plain: tuple[Path, Lists], contract: Contract) -> None:
    folder, lists = plain
    lists["train"][0] |= {"element": "earth", "image_path": "images/none.png", "confidence": 2}  # three in one record
    lists["train"][1]["image_id"] = "00003"
    lists["val"][2]["image_path"] = "../x.png"
    write(folder, lists)
    (folder / "images/00002.png").write_bytes(b"no")
    (folder / "metadata.json").write_text('{"image": {"offset": "floor"}}')
    lines = message(folder, contract).splitlines()
    assert lines[0].endswith("has 7 problems:")
    assert len(lines) == 8
    for key in ("element", "image_path", "confidence"):
        assert sum(f"train.json record 1 (id 00000), {key}: " in line for line in lines) == 1


def test_a_flood_of_problems_is_cut(plain: tuple[Path, Lists], contract: Contract) -> None:
    folder, lists = plain
    record = lists["train"][0]
    lists["train"] += [record | {"image_id": f"x{i}", "element": f"earth {i}"} for i in range(50)]
    write(folder, lists)
    lines = message(folder, contract).splitlines()
    assert lines[0].endswith("has 50 problems:")
    assert len(lines) == 22
    assert lines[-1] == "  ... and 30 more"


def test_one_cause_in_many_places_is_one_line(plain: tuple[Path, Lists], contract: Contract) -> None:
    folder, lists = plain
    record = lists["train"][0]
    lists["train"] += [record | {"image_id": f"x{i}", "element": "earth"} for i in range(50)]
    lists["train"] += [record | {"image_id": f"y{i}", "element": "air"} for i in range(3)]
    write(folder, lists)
    first, many, *few = message(folder, contract).splitlines()
    assert first.endswith("has 53 problems:")
    place = f"train.json record {len(lists['train']) - 52} (id x0), element"
    assert many.strip().startswith(f"{place} and 49 more places: unknown label 'earth'")
    assert len(few) == 3


# --- load_rgb --------------------------------------------------------------------------------------------------------


def test_an_image_that_changes_after_the_check_is_refused(plain: tuple[Path, Lists], contract: Contract) -> None:
    folder, _ = plain
    first, second = read_dataset(folder, contract).train[:2]
    picture(77).save(folder / first.image_path)
    (folder / second.image_path).unlink()
    with pytest.raises(UserError, match="has changed"):
        load_rgb(folder, first)
    with pytest.raises(UserError, match="cannot be read"):
        load_rgb(folder, second)


def test_pixels_are_rgb_bytes(plain: tuple[Path, Lists], contract: Contract) -> None:
    folder, _ = plain
    Image.new("RGB", (32, 32), (1, 2, 3)).save(folder / "images/00000.png")
    pixels = load_rgb(folder, read_dataset(folder, contract).train[0])
    assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)
    assert pixels[5, 7].tolist() == [1, 2, 3]
