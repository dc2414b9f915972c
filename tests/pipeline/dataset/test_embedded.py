"""The generated dataset: the same on every machine, labelled as the contract says, neither trivial nor hopeless."""

import json
from pathlib import Path

import pytest

from pipeline.contract import Contract, ImageContract
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.dataset.embedded import DIFFICULTY, make_embedded, photo
from pipeline.dataset.records import Record, load_rgb, read_dataset

ELEMENTS = Contract().labels
# Of photos 0/0 at difficulty 0.5. A machine that gives others would train on other data under the same recipe.
PINNED = {
    "water": "43e7852112456444",
    "land": "47537a544ef7197c",
    "fire": "591b375dc0c3e241",
    "wood": "b4f3c87ff86ab903",
    "metal": "60343fcabe1f83bb",
}


def hashes(records: tuple[Record, ...]) -> dict[str, str]:
    return {record.image_id: record.rgb_sha256 for record in records}


@pytest.mark.parametrize("label", ELEMENTS)
def test_the_pixels_are_pinned(label: str) -> None:
    pixels = photo(ELEMENTS, ELEMENTS.index(label), "0/0", 0.5)
    assert sha256_bytes(pixels.tobytes())[:16] == PINNED[label]


def test_photos_have_a_cameras_variety_of_sizes() -> None:
    shapes = [photo(ELEMENTS, 0, f"0/{number}", 0.5).shape for number in range(20)]
    assert len(set(shapes)) == 20
    assert all(200 <= side <= 420 for shape in shapes for side in shape[:2])


def test_a_dataset_is_made_and_reads_back(tmp_path: Path, contract: Contract) -> None:
    calls: list[tuple[int, int]] = []
    made = make_embedded(tmp_path / "d", contract, 10, seed=3, progress=lambda done, total: calls.append((done, total)))
    assert made == read_dataset(tmp_path / "d", contract)
    assert calls[-1] == (30, 30)
    assert len(made.train) + len(made.val) == 30
    assert {record.element for record in made.val} == set(contract.labels)
    assert load_rgb(made.folder, made.train[0]).shape == (32, 32, 3)
    source = json.loads((tmp_path / "d/metadata.json").read_text())["source"]
    assert source == {"kind": "embedded", "n_per_class": 10, "seed": 3, "difficulty": DIFFICULTY}


def test_the_seed_decides_and_more_photos_change_no_earlier_one(tmp_path: Path, contract: Contract) -> None:
    few = make_embedded(tmp_path / "few", contract, 5)
    again = make_embedded(tmp_path / "again", contract, 5)
    many = make_embedded(tmp_path / "many", contract, 8)
    other = make_embedded(tmp_path / "other", contract, 5, seed=1)
    pictures = hashes(few.train + few.val)
    assert few.digest == again.digest
    assert pictures.items() <= hashes(many.train + many.val).items()
    assert not set(pictures.values()) & set(hashes(other.train + other.val).values())


@pytest.mark.parametrize("labels", [("cat", "dog"), ("fire", "fire truck", "불"), tuple(f"kind{i}" for i in range(40))])
def test_any_labels(tmp_path: Path, labels: tuple[str, ...]) -> None:
    contract = Contract(labels=labels, answer_rule="exact", image=ImageContract(size=32))
    made = make_embedded(tmp_path / "d", contract, 2)
    assert {record.element for record in made.train} == {record.element for record in made.val} == set(labels)
    assert read_dataset(tmp_path / "d", contract) == made


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"n_per_class": 1}, "n_per_class is 1"),
        ({"n_per_class": 2, "difficulty": 1.5}, "difficulty is 1.5"),
        ({"n_per_class": 2, "val_fraction": 1.0}, "val_fraction is 1.0"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, contract: Contract, arguments: dict[str, float], text: str) -> None:
    with pytest.raises(UserError, match=text):
        make_embedded(tmp_path / "d", contract, **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_too_many_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="41 labels"):
        make_embedded(tmp_path / "d", Contract(labels=tuple(f"k{i}" for i in range(100, 141))), 2)


def test_other_files_are_not_replaced(tmp_path: Path, contract: Contract) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="would delete"):
        make_embedded(tmp_path, contract, 2)


def test_test_images_are_extra_and_the_others_stay(tmp_path: Path, contract: Contract) -> None:
    plain = make_embedded(tmp_path / "plain", contract, 5)
    made = make_embedded(tmp_path / "made", contract, 5, test_fraction=0.5)
    assert (made.train, made.val) == (plain.train, plain.val)
    for name in ("train.json", "val.json"):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert [record.image_id for record in made.test] == [
        f"{place:02d}_{label}_{number:04d}" for number in (6, 7) for place, label in enumerate(contract.labels, start=1)
    ]
    assert read_dataset(tmp_path / "made", contract).test == made.test
