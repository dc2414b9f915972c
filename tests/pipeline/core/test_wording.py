"""What is wrong with settings is told in a user's words, and a key that is nearly one in the right spelling."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.recipe import Recipe, load_recipe

PYDANTIC = (
    "Input should",
    "valid tuple",
    "valid dictionary",
    "instance of",
    "valid integer",
    "valid string",
)


def refused(tmp_path: Path, *assignments: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x")
    with pytest.raises(UserError) as error:
        load_recipe(path, assignments)
    said = str(error.value)
    assert "\n" not in said
    assert not any(word in said for word in PYDANTIC)
    return said.removeprefix(f"recipe {path}: ")


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("train.epochs=three", "train.epochs: must be a whole number, not 'three'"),
        ("seed=1.5", "seed: must be a whole number, not 1.5"),
        ("train.learning_rate=x", "train.learning_rate: must be a number, not 'x'"),
        ("train.gradient_checkpointing=maybe", "train.gradient_checkpointing: must be true or false, not 'maybe'"),
        ("name=3", "name: must be text, not 3: put it in quotes"),
        ("name=null", "name: must be text, not null"),
        ("name=a b", "name: must be letters, digits, '.', '_' and '-', with a letter or digit first, not 'a b'"),
        ("train=3", "train: must be a mapping of keys to values, not 3"),
        ("contract.image=[1]", "contract.image: must be a mapping of keys to values, not a list"),
        (
            "contract.gate.recall_floors=[1]",
            "gate.recall_floors: must be a mapping of keys to values, not a list",
        ),
        ("contract.labels=cats", "contract.labels: must be a list, as in [a, b], not 'cats'"),
        ("contract.labels={a: b}", "contract.labels: must be a list, as in [a, b], not a mapping"),
        ("contract.image.pad_color=[1, 2]", "contract.image.pad_color.2: a value is missing"),
        ("train.bf16=on", "train.bf16: must be 'auto', 'on' or 'off', not true: put it in quotes"),
        ("train.epochs=0", "train.epochs: must be at least 1, not 0"),
        ("train.lora.r=5000", "train.lora.r: must be at most 4096, not 5000"),
        ("dataset.val_fraction=0", "dataset.val_fraction: must be more than 0, not 0"),
        ("dataset.val_fraction=1", "dataset.val_fraction: must be less than 1, not 1"),
        ("export.text_type=" + "x" * 99, "not 'xxxx"),
    ],
)
def test_a_wrong_value_is_told_in_plain_words(tmp_path: Path, assignment: str, said: str) -> None:
    found = refused(tmp_path, assignment)
    assert said in found
    assert len(found) < 200


@pytest.mark.parametrize(
    ("assignment", "meant"),
    [
        ("train.epoch=1", "train.epoch: unknown key; did you mean train.epochs?"),
        ("trian.epochs=1", "trian: unknown key; did you mean train?"),
        ("epochs=1", "epochs: unknown key; did you mean train.epochs?"),
        ("train.r=2", "train.r: unknown key; did you mean train.lora.r?"),
        ("train.lora.alfa=2", "train.lora.alfa: unknown key; did you mean train.lora.alpha?"),
        ("contract.label=[a, b]", "contract.label: unknown key; did you mean contract.labels?"),
        ("contract.runtime.n_ctxx=9", "contract.runtime.n_ctxx: unknown key; did you mean contract.runtime.n_ctx?"),
        ("contract.image.colour=rgb", "did you mean contract.image.colour_space?"),
        (
            "export.zzz=1",
            "export.zzz: unknown key; the keys here are export.name, export.text_type, export.mmp",
        ),
    ],
)
def test_an_unknown_key_is_told_the_nearest(tmp_path: Path, assignment: str, meant: str) -> None:
    assert meant in refused(tmp_path, assignment)


def test_photos_for_a_recipe_that_draws_its_own(tmp_path: Path) -> None:
    said = refused(tmp_path, "dataset.path='my photos'")
    assert said.startswith("dataset.path: x draws its own pictures")
    assert "add RECIPE=configs/photos.yaml to `make`, or name configs/photos.yaml in place of" in said
    assert "dataset.test_path: x draws" in refused(tmp_path, "dataset.test_path=here")


@pytest.mark.parametrize(
    ("key", "typed", "kept"),
    [
        ("export.text_type", "q8_0", "Q8_0"),
        ("export.text_type", "q4_k_m", "Q4_K_M"),
        ("export.text_type", "f16", "F16"),
        ("export.mmproj_type", "q8_0", "Q8_0"),
        ("contract.runtime.type_k", "Q8_0", "q8_0"),
        ("contract.runtime.type_v", "F16", "f16"),
    ],
)
def test_types_in_any_case_make_the_same_recipe(tmp_path: Path, key: str, typed: str, kept: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x")
    found: list[Recipe] = [load_recipe(path, (f"{key}={value}",)) for value in (typed, kept)]
    value: Any = found[0]
    for name in key.split("."):
        value = getattr(value, name)
    assert value == kept
    assert found[0] == found[1]
    assert found[0].contract.digest == found[1].contract.digest
