"""Recipes: what is refused, and what ``--set`` lays over a file."""

import os
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
        ("name: x\ntrain: {epoch: 3}", ["train.epoch: unknown key; did you mean train.epochs?"]),
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
        ("name: 2001-01-01", ["name: 2001-01-01 is a date: put it in quotes"]),
        ("name: x\ncontract: {labels: [a, 2001-01-01]}", ["contract.labels.1: 2001-01-01 is a date"]),
        ("name: !!set {a, b}", ["name: ", "is a set"]),
        ("name: !!binary eA==", ["name: b'x' is a bytes"]),
        ("name: !!int abc", ["not valid YAML", "'abc'"]),
        ("name: !!bool abc", ["not valid YAML", "tag"]),
        ("name: !!timestamp abc", ["not valid YAML", "tag"]),
        ("name: !!float abc", ["not valid YAML", "'abc'"]),
        ("name: x\nseed: " + "9" * 5000, ["not valid YAML", "4300 digits"]),
        ("name: x\nseed: 0x" + "9" * 5000, ["seed: the number is too large"]),
        ("name: x\nseed: " + "[" * 5000, ["not valid YAML", "nested too deep"]),
        ("name: x\nseed: " + "[" * 60 + "]" * 60, ["nested more than 50 levels deep"]),
        ("name: x\ncontract: {gate: {noise_factor: .inf}}", ["contract.gate.noise_factor: inf is not a finite number"]),
        ("name: x\ntrain: {learning_rate: .nan}", ["train.learning_rate: nan is not a finite number"]),
        ("name: x\ntrain: {learning_rate: .inf}", ["train.learning_rate: inf is not a finite number"]),
        ("name: &a [1, 2]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]", ["not valid YAML", "no aliases"]),
        ("name: &a [*a]", ["not valid YAML", "no aliases"]),
        ("name: x\n1: y", ["the key 1 is not a text"]),
        ("name: x\ncontract: {null: y}", ["contract: the key None is not a text"]),
        ("name: x\n? [a]\n: y", ["not valid YAML", "unhashable"]),
        ("name: " + "x" * 300, ["name", "at most 100 characters"]),
        ("name: x\nexport: {name: " + "x" * 300 + "}", ["export.name", "at most 100 characters"]),
        ('name: "\\ud800"', ["name", "half a character"]),
        ('name: "a\\nb"', ["name", "letters, digits", "not 'a\\nb'"]),
        ("name: x\ntrain: {lora: {r: 1000000000}}", ["train.lora.r", "must be at most 4096"]),
        ("name: x\ndataset: {n_per_class: 1000000000}", ["dataset.n_per_class", "must be at most 1000000"]),
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


@pytest.mark.parametrize(
    "assignment",
    [
        *("train.epochs", "=3", "name.first=x", "contract.labels=[a, b", "name=!!int abc", "name=" + "[" * 5000),
        *("seed=" + "9" * 5000, "name=*a", "name=\udcff"),
    ],
)
def test_a_bad_assignment_is_named(tmp_path: Path, assignment: str) -> None:
    with pytest.raises(UserError, match="--set"):
        load_recipe(write(tmp_path, "name: x"), (assignment,))


@pytest.mark.parametrize("assignment", ["name=2001-01-01", "seed=.inf", ".".join("a" * 5000) + "=1", "\udcff=1"])
def test_an_assignment_of_what_no_recipe_holds_is_refused(tmp_path: Path, assignment: str) -> None:
    path = write(tmp_path, "name: x")
    with pytest.raises(UserError, match=f"^recipe {path}: ") as caught:
        load_recipe(path, (assignment,))
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reason = "it is not a regular file"
    for path, words in (
        (tmp_path / "fifo", reason), (tmp_path, reason), (Path("/dev/zero"), reason),
        (tmp_path / ("x" * 300), "File name too long"), (tmp_path / "nothing", "No such file or directory"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^recipe {path} cannot be read: {words}$"):
            load_recipe(path)
