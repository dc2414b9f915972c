"""Evaluation: scores against scikit-learn's own report, and files that a person and a program can use."""

import io
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, classification_report

from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes, sha256_file
from pipeline.evaluation import (
    Answer,
    Evaluation,
    confusion_lines,
    confusion_png,
    evaluate,
    evaluation_text,
    write_evaluation,
)

FIVE = ("water", "land", "fire", "wood", "metal")
ODD = ("$x^2$", "물고기", "a label of very many words indeed")
FORTY = tuple(f"kind {number:02d}" for number in range(40))
LABELS = pytest.mark.parametrize("labels", [("day", "night"), ODD, FIVE, FORTY], ids=["2", "3", "5", "40"])


def answer(number: int, truth: str, label: str | None) -> Answer:
    return Answer(
        image_id=f"image_{number}", image_path=f"images/{number}.png", truth=truth, label=label, text=f" {label}\n"
    )


def noisy(labels: tuple[str, ...], n: int = 200) -> list[Answer]:
    generator = random.Random(1)
    truths = [labels[number % len(labels)] for number in range(n)]
    options = (*labels, None)
    return [
        answer(number, truth, truth if generator.random() < 0.7 else generator.choice(options))
        for number, truth in enumerate(truths)
    ]


@LABELS
def test_scores_equal_scikit_learns_report(labels: tuple[str, ...]) -> None:
    answers = noisy(labels)
    evaluation = evaluate(answers, labels)
    truths = [one.truth for one in answers]
    given = [one.label or "" for one in answers]
    report = classification_report(truths, given, labels=list(labels), output_dict=True, zero_division=0)
    assert evaluation.accuracy == accuracy_score(truths, given) == evaluation.correct / 200
    assert evaluation.macro_f1 == pytest.approx(report["macro avg"]["f1-score"])
    for score in evaluation.per_class:
        expected = report[score.label]
        ours = (score.precision, score.recall, score.f1, score.support)
        assert ours == pytest.approx(tuple(expected[key] for key in ("precision", "recall", "f1-score", "support")))
    assert evaluation.unanswered == given.count("")


def test_matrix_and_errors() -> None:
    answers = [
        answer(0, "water", "water"),
        answer(1, "water", "fire"),
        answer(2, "fire", None),
        answer(3, "metal", "metal"),
    ]
    evaluation = evaluate(answers, FIVE)
    assert evaluation.confusion == (
        (1, 0, 1, 0, 0, 0),
        (0, 0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0, 1),
        (0, 0, 0, 0, 0, 0),
        (0, 0, 0, 0, 1, 0),
    )
    assert evaluation.errors == (answers[1], answers[2])
    # land and wood occur nowhere and are left out: (2/3 + 0 + 1) / 3
    assert evaluation.macro_f1 == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert (evaluation.n, evaluation.correct, evaluation.accuracy, evaluation.unanswered) == (4, 2, 0.5, 1)


def test_bad_input() -> None:
    with pytest.raises(UserError, match="no answers to evaluate"):
        evaluate([], FIVE)
    with pytest.raises(UserError, match="image image_0: 'stone' is not one of the labels water, land"):
        evaluate([answer(0, "stone", None)], FIVE)
    with pytest.raises(UserError, match="'stone'"):
        evaluate([answer(0, "water", "stone")], FIVE)


@LABELS
def test_the_files(tmp_path: Path, labels: tuple[str, ...]) -> None:
    evaluation = evaluate(noisy(labels), labels)
    (tmp_path / "other.txt").write_text("stays")
    write_evaluation(evaluation, tmp_path)
    names = {"confusion_matrix.png", "validation_results.json", "validation_results.txt", "other.txt"}
    assert {path.name for path in tmp_path.iterdir()} == names
    text = (tmp_path / "validation_results.json").read_text()
    assert Evaluation.model_validate_json(text) == evaluation
    data = json.loads(text)
    assert data["accuracy"] == evaluation.accuracy
    assert data["errors"][0].keys() == {"image_id", "image_path", "truth", "label", "text"}
    shown = (tmp_path / "validation_results.txt").read_text()
    assert shown == evaluation_text(evaluation)
    assert f"accuracy {evaluation.accuracy:.2%} ({evaluation.correct} of 200 validation images)" in shown
    for error in evaluation.errors:
        assert f"{error.image_path}  {error.truth} -> {error.label or 'no answer'}" in shown
    before = sha256_file(tmp_path / "confusion_matrix.png")
    write_evaluation(evaluation, tmp_path)
    assert sha256_file(tmp_path / "confusion_matrix.png") == before


@LABELS
def test_the_picture_shows_the_matrix(labels: tuple[str, ...]) -> None:
    """A dark diagonal on a light ground, at a size that a screen can show."""
    perfect = evaluate([answer(number, label, label) for number, label in enumerate(labels * 3)], labels)
    with Image.open(io.BytesIO(confusion_png(perfect))) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    assert 250 < width < 1800
    assert 250 < height < 1800
    dark = (pixels[..., 2] - pixels[..., 0] > 60) & (pixels[..., 0] < 40)  # matplotlib's darkest blue is 8, 48, 107
    rows, columns = np.nonzero(dark)
    assert np.corrcoef(rows, columns)[0, 1] > 0.7
    silent = evaluate([answer(number, label, None) for number, label in enumerate(labels)], labels)
    assert confusion_png(silent) != confusion_png(perfect)


def test_the_picture_does_not_follow_the_users_matplotlibrc(tmp_path: Path) -> None:
    code = (
        "from pipeline.evaluation import Answer, confusion_png, evaluate;"
        "from pipeline.core.files import sha256_bytes;"
        "one = Answer(image_id='a', image_path='a.png', truth='x', label='y');"
        "print(sha256_bytes(confusion_png(evaluate([one], ('x', 'y')))))"
    )
    (tmp_path / "matplotlibrc").write_text("figure.facecolor: red\nfont.size: 30\nsavefig.dpi: 300\nbackend: Cairo\n")
    root = Path(__file__).parents[2]
    one = Answer(image_id="a", image_path="a.png", truth="x", label="y")
    expected = confusion_png(evaluate([one], ("x", "y")))
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env={"MATPLOTLIBRC": str(tmp_path), "HOME": str(tmp_path), "PATH": ""},
    )
    assert run.stdout.strip() == sha256_bytes(expected)


def test_matrix_lines_are_aligned_and_cut() -> None:
    lines = confusion_lines(ODD, [[10, 0, 0, 0], [0, 9, 1, 0], [0, 0, 123, 0]])
    assert lines == [
        "                      1    2    3",
        "1 $x^2$              10    ·    ·",
        "2 물고기              ·    9    1",
        "3 a label of very…    ·    ·  123",
    ]
    with_silence = confusion_lines(("a", "b"), [[1, 0, 0], [0, 0, 1]])
    assert with_silence == ["     1  2  -", "1 a  1  ·  ·", "2 b  ·  ·  1"]


def test_importing_needs_no_heavy_library() -> None:
    heavy = ["torch", "sklearn", "matplotlib", "numpy", "PIL"]
    code = f"import sys, pipeline.evaluation; print([name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == "[]"
