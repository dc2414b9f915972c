"""Recipes: what is refused, and what ``--set`` lays over a file."""

from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.recipe import load_recipe, split_assignments


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_defaults_are_the_documented_ones(tmp_path: Path) -> None:
    train = load_recipe(write(tmp_path, "name: x")).train
    assert (train.learning_rate, train.batch_size, train.gradient_accumulation, train.epochs) == (2e-4, 4, 4, 3)
    assert (train.lora.r, train.lora.alpha) == (16, 32)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: x\ntrain: {epoch: 3}", ["train.epoch", "unknown key"]),
        ("name: x\ncontract: {runtime: {n_ctxx: 3}}", ["contract.runtime.n_ctxx", "unknown key"]),
        ("seed: 1", ["name"]),
        ("name: ../x", ["name"]),
        ("name: x\ndataset: {source: photos}", ["dataset", "path"]),
        ("name: x\ndataset: {path: here}", ["dataset", "embedded"]),
        ("name: x\ndataset: {test_path: here}", ["dataset", "test_path", "embedded"]),
        (
            "name: x\ndataset: {source: photos, path: a, test_path: b, test_fraction: 0.1}",
            ["dataset", "'test_path' or 'test_fraction'"],
        ),
        (
            "name: x\ndataset: {source: photos, path: a, val_fraction: 0.5, test_fraction: 0.5}",
            ["dataset", "no images to train on"],
        ),
        ("name: x\nbase: {model: 'embedded:tiny', revision: abc}", ["revision"]),
        ("name: x\ntrain: {text: frozen, connector: frozen}", ["train", "lora"]),
        ("name: x\ntrain: {epochs: three}", ["train.epochs"]),
        ("name: x\nexport: {text_type: Q3}", ["export.text_type"]),
        ("name: x\ncontract: {labels: [tin, tinfoil]}", ["contract", "tin", "tinfoil"]),
        ("- a list", ["not a group of keys"]),
        ("name: [", ["not valid YAML"]),
    ],
)
def test_a_mistake_names_the_file_and_the_key(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert all(word in message for word in words), message


def test_set_lays_values_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\ntrain: {epochs: 9, learning_rate: 1.0e-3}")
    recipe = load_recipe(path, ("train.epochs=2", "contract.labels=[a1, b2]", "dataset.n_per_class=7", "name=y"))
    assert (recipe.name, recipe.train.epochs, recipe.train.learning_rate) == ("y", 2, 1e-3)
    assert (recipe.contract.labels, recipe.dataset.n_per_class) == (("a1", "b2"), 7)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train.epochs=1 name=quick", ["train.epochs=1", "name=quick"]),
        ("  a=1\n\tb.c=2 ", ["a=1", "b.c=2"]),
        ("contract.labels=[glass, paper, tin can] a=1", ["contract.labels=[glass, paper, tin can]", "a=1"]),
        ("a={b: [1, c=2 d=3]} e=4", ["a={b: [1, c=2 d=3]}", "e=4"]),
        ("a=Which bin is this? b=2", ["a=Which bin is this?", "b=2"]),
        ("a='x y=1' b=2", ["a='x y=1'", "b=2"]),
        ("a='it''s y=1' b=2", ["a='it''s y=1'", "b=2"]),
        ('a="x [ y=1" b=2', ['a="x [ y=1"', "b=2"]),
        ("a=it's b=2", ["a=it's", "b=2"]),
        ("a=x ] b=2", ["a=x ]", "b=2"]),
        ("", []),
    ],
)
def test_several_assignments_in_one_text_are_told_apart(text: str, parts: list[str]) -> None:
    assert split_assignments(text) == tuple(parts)


@pytest.mark.parametrize("assignment", ["train.epochs", "=3", "name.first=x"])
def test_a_bad_assignment_is_named(tmp_path: Path, assignment: str) -> None:
    with pytest.raises(UserError, match="--set"):
        load_recipe(write(tmp_path, "name: x"), (assignment,))
