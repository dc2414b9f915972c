"""The split: by content alone, stable, usable for small sets."""

import random

import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.dataset.split import draw, held_out

LABELS = ("water", "land", "fire", "wood", "metal")


def images(count: int, first: int = 0) -> dict[str, str]:
    return {sha256_bytes(str(i).encode()): LABELS[i % 5] for i in range(first, first + count)}


def validation_part(labels: dict[str, str], fraction: float, seed: int) -> frozenset[str]:
    validation, test = held_out(labels, fraction, 0.0, seed)
    assert not test
    return validation


def test_order_changes_nothing() -> None:
    labels = images(500)
    shuffled = list(labels.items())
    random.Random(1).shuffle(shuffled)
    assert validation_part(dict(shuffled), 0.2, 0) == validation_part(labels, 0.2, 0)


def test_additions_move_no_image() -> None:
    before = images(300)
    after = before | images(700, first=300)
    assert validation_part(after, 0.2, 0) & before.keys() == validation_part(before, 0.2, 0)


def test_removals_move_no_image() -> None:
    before = images(500)
    after = dict(list(before.items())[150:])
    assert validation_part(before, 0.2, 0) & after.keys() == validation_part(after, 0.2, 0)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_each_class_gets_about_its_share(fraction: float) -> None:
    labels = images(5000)
    chosen = validation_part(labels, fraction, 0)
    for label in LABELS:
        share = sum(labels[content] == label for content in chosen) / 1000
        # four standard deviations of 1000 draws
        assert share == pytest.approx(fraction, abs=4 * (fraction * (1 - fraction) / 1000) ** 0.5)


def test_a_larger_fraction_only_adds() -> None:
    labels = images(500)
    assert validation_part(labels, 0.1, 0) < validation_part(labels, 0.3, 0)


def test_seeds_split_differently() -> None:
    assert validation_part(images(100), 0.2, 0) != validation_part(images(100), 0.2, 1)


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_two_images_of_a_class_go_one_each_way(fraction: float) -> None:
    labels = images(10)
    chosen = validation_part(labels, fraction, 0)
    assert sorted(labels[content] for content in chosen) == sorted(LABELS)


def test_one_image_of_a_class_follows_its_draw() -> None:
    (content,) = labels = images(1)
    for seed in range(20):
        assert (content in validation_part(labels, 0.5, seed)) == (draw(content, seed) < 0.5)


def test_the_draw_is_pinned() -> None:
    # A change here moves images between the splits of everybody's data.
    assert draw("0" * 64, 0) == 0.39027412103198444


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="val_fraction"):
        validation_part(images(10), fraction, 0)


def test_a_test_part_takes_from_training_alone_and_each_class_gives_its_share() -> None:
    labels = images(5000)
    validation, test = held_out(labels, 0.1, 0.2, 0)
    assert validation == validation_part(labels, 0.1, 0)
    assert not validation & test
    for label in LABELS:
        share = sum(labels[content] == label for content in test) / 1000
        assert share == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 1000) ** 0.5)


def test_additions_move_no_test_image() -> None:
    before = images(300)
    after = before | images(700, first=300)
    assert held_out(after, 0.1, 0.2, 0)[1] & before.keys() == held_out(before, 0.1, 0.2, 0)[1]


@pytest.mark.parametrize(("count", "sizes"), [(1, {0, 1}), (2, {0}), (3, {1}), (4, {1})])
def test_a_small_class_trains_and_validates_first_and_tests_with_the_third_image(count: int, sizes: set[int]) -> None:
    for seed in range(20):
        labels = dict.fromkeys(images(count), "water")
        validation, test = held_out(labels, 0.001, 0.001, seed)
        assert len(test) in sizes
        assert len(validation) == (1 if count > 1 else 0)


@pytest.mark.parametrize("fraction", [-0.1, 0.9, 1.0, float("nan")])
def test_a_test_fraction_that_leaves_nothing_to_train_on_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="test_fraction"):
        held_out(images(10), 0.1, fraction, 0)
