"""What the runner is given: canvases and their list."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity.compare.pictures import LIST, write_pictures
from parity.compare.samples import Sample
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.dataset.records import Record
from pipeline.dataset.split import Split

DATASET = "da" * 32


def sample(folder: Path, shade: int, split: Split = "test") -> Sample:
    canvas = np.full((16, 16, 3), shade, np.uint8)
    Image.fromarray(canvas).save(folder / f"{shade}.png")
    key = sha256_bytes(canvas.tobytes())
    record = Record(image_id=f"물 {shade}", image_path=f"{shade}.png", element="water", rgb_sha256=key)
    return Sample(folder, record, split)


def test_the_list_names_every_canvas_in_its_order(tmp_path: Path) -> None:
    samples = [sample(tmp_path, shade) for shade in (9, 3, 7)]
    path = write_pictures(samples, DATASET, tmp_path / "out", plan_sha256="ab" * 32)
    assert path == tmp_path / "out" / LIST
    header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert header == {
        "schema_version": 1, "kind": "pictures", "images": 3, "dataset_sha256": DATASET, "split": "test",
        "plan_sha256": "ab" * 32,
    }  # fmt: skip
    assert [line["image_id"] for line in lines] == ["물 9", "물 3", "물 7"]
    for line, one in zip(lines, samples, strict=True):
        assert (line["key"], line["truth"]) == (one.key, "water")
        assert (path.parent / line["file"]).read_bytes() == one.path.read_bytes()


def test_a_damaged_canvas_is_written_again_and_a_whole_one_is_not(tmp_path: Path) -> None:
    samples = [sample(tmp_path, shade) for shade in (1, 2)]
    first, second = (tmp_path / "out" / f"{one.key}.png" for one in samples)
    write_pictures(samples, DATASET, tmp_path / "out")
    before = second.stat().st_ino
    first.write_bytes(b"cut")
    write_pictures(samples, DATASET, tmp_path / "out")
    assert first.read_bytes() == samples[0].path.read_bytes()
    assert second.stat().st_ino == before


def test_what_cannot_be_a_list_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images of one split, and these are of 0"):
        write_pictures([], DATASET, tmp_path / "out")
    mixed = [sample(tmp_path, 1), sample(tmp_path, 2, "validation")]
    with pytest.raises(UserError, match="images of one split, and these are of 2"):
        write_pictures(mixed, DATASET, tmp_path / "out")
    gone = sample(tmp_path, 3)
    gone.path.unlink()
    with pytest.raises(UserError, match=r"3\.png cannot be read: No such file or directory; make the dataset again"):
        write_pictures([gone], DATASET, tmp_path / "out")
