"""How good a model is: accuracy, precision / recall / F1 a class, the confusion matrix, and what it got wrong.

    validation_results.json   all of it, for programs
    validation_results.txt    all of it, for people
    confusion_matrix.png      the matrix as a picture

:func:`evaluate` and the text need scikit-learn and no model; an answer without a label counts as wrong and has a column
of its own in the matrix.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size

from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes, write_json, write_text
from pipeline.core.settings import Frozen
from pipeline.dataset.split import Split

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NO_ANSWER = "-"
"""Head of the column for answers in which no label was found."""


class Answer(Frozen):
    """One image's truth and what the model said."""

    image_id: str
    image_path: str
    truth: str
    label: str | None
    """The label that was read out of ``text``; None where there is none."""
    text: str = ""
    """What the model wrote."""


class ClassScore(Frozen):
    """One label's scores, 0..1; a score that is 0/0 is 0."""

    label: str
    support: int
    """Images whose truth it is."""
    precision: float
    recall: float
    f1: float


class Evaluation(Frozen):
    """A model's scores over a set of images."""

    split: Split
    """Which of the dataset's images these are."""
    n: int
    correct: int
    accuracy: float
    macro_f1: float
    """Mean F1 of the labels that occur as a truth or an answer: a label that the images lack cannot be judged."""
    unanswered: int
    labels: tuple[str, ...]
    per_class: tuple[ClassScore, ...]
    """In the order of ``labels``."""
    confusion: tuple[tuple[int, ...], ...]
    """Rows: truth. Columns: answer, in the order of ``labels``, then no answer."""
    errors: tuple[Answer, ...]
    """Every wrong answer, in the order given."""


def evaluate(answers: Sequence[Answer], labels: Sequence[str], split: Split = "validation") -> Evaluation:
    """Score ``answers``, those of ``split``, under a contract's ``labels``.

    Raises UserError: no answers, or a truth or label that is none of ``labels``.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    index = {label: number for number, label in enumerate(labels)}
    if not answers:
        raise UserError(f"there are no answers to evaluate: the {split} split is empty")
    for answer in answers:
        for label in (answer.truth, answer.label):
            if label is not None and label not in index:
                raise UserError(f"image {answer.image_id}: {label!r} is not one of the labels {', '.join(labels)}")
    columns = len(labels) + 1
    truths = [index[answer.truth] for answer in answers]
    given = [columns - 1 if answer.label is None else index[answer.label] for answer in answers]
    matrix = confusion_matrix(truths, given, labels=range(columns))[:-1].tolist()
    scores = precision_recall_fscore_support(truths, given, labels=range(len(labels)), zero_division=0.0)
    per_class = tuple(
        ClassScore(label=label, precision=float(p), recall=float(r), f1=float(f), support=int(s))
        for label, p, r, f, s in zip(labels, *scores, strict=True)
    )
    occurring = [score.f1 for number, score in enumerate(per_class) if number in {*truths, *given}]
    errors = tuple(answer for answer in answers if answer.label != answer.truth)
    return Evaluation(
        split=split,
        n=len(answers),
        correct=len(answers) - len(errors),
        accuracy=(len(answers) - len(errors)) / len(answers),
        macro_f1=sum(occurring) / len(occurring),
        unanswered=sum(answer.label is None for answer in answers),
        labels=tuple(labels),
        per_class=per_class,
        confusion=tuple(tuple(row) for row in matrix),
        errors=errors,
    )


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write the three files into ``folder``, which may hold others, each atomically. Same evaluation, same bytes."""
    write_json(folder / "validation_results.json", evaluation.model_dump(mode="json"))
    write_text(folder / "validation_results.txt", evaluation_text(evaluation))
    write_bytes(folder / "confusion_matrix.png", confusion_png(evaluation))


def evaluation_text(evaluation: Evaluation) -> str:
    """The whole evaluation in plain text, one newline at the end."""
    e = evaluation
    width = max(cell_len(label) for label in (*e.labels, "macro"))
    lines = [
        f"accuracy {e.accuracy:.2%} ({e.correct} of {e.n} {e.split} images), macro F1 {e.macro_f1:.4f},"
        f" no answer {e.unanswered}",
        "",
        f"{'':{width}}  precision  recall      F1  images",
    ]
    lines += [
        f"{set_cell_size(s.label, width)}  {s.precision:9.4f}  {s.recall:6.4f}  {s.f1:6.4f}  {s.support:6d}"
        for s in e.per_class
    ]
    lines += ["", f"confusion matrix (rows: truth, columns: answer, {NO_ANSWER} none)"]
    lines += confusion_lines(e.labels, e.confusion)
    lines += ["", f"errors: {len(e.errors)}"]
    lines += [
        f"{error.image_path}  {error.truth} -> {error.label or 'no answer'}  {error.text!r}" for error in e.errors
    ]
    return "\n".join(lines) + "\n"


def confusion_lines(labels: Sequence[str], matrix: Sequence[Sequence[int]], label_width: int = 16) -> list[str]:
    """A confusion matrix [k][k + 1] as lines of equal width: numbered labels, zeros as dots.

    The column for no answer is left out where it is empty. Labels longer than ``label_width`` cells are cut.
    """
    used = len(labels) + any(row[-1] for row in matrix)
    heads = [*(str(number) for number in range(1, len(labels) + 1)), NO_ANSWER][:used]
    cells = [[str(count) if count else "·" for count in row[:used]] for row in matrix]
    width = max(len(text) for row in (heads, *cells) for text in row)
    digits = len(str(len(labels)))
    name = min(label_width, max(cell_len(label) for label in labels))
    names = [" " * (digits + 1 + name)]
    names += [f"{number:{digits}} {set_cell_size(_cut(label, name), name)}" for number, label in enumerate(labels, 1)]
    rows = zip(names, [heads, *cells], strict=True)
    return [head + "".join(f"  {text:>{width}}" for text in row) for head, row in rows]


def _cut(label: str, width: int) -> str:
    return label if cell_len(label) <= width else set_cell_size(label, width - 1) + "…"


def confusion_png(evaluation: Evaluation) -> bytes:
    """The confusion matrix as a PNG: counts in the cells, shade = share of the row. Same matrix, same bytes.

    A label that matplotlib's own font cannot draw is shown by its number alone; the text file tells its name.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    # The user's matplotlibrc must not change the bytes.
    with matplotlib.style.context("default"):
        k = len(evaluation.labels)
        side = max(3.0, 0.33 * (k + 1))  # inches; 40 labels give a picture of about 16 x 16
        figure = Figure(figsize=(side + 1.6, side + 1.6), dpi=110)
        _draw(figure.add_subplot(), evaluation)
        buffer = BytesIO()
        # matplotlib's version is left out of the file
        figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: "Axes", evaluation: Evaluation) -> None:
    e = evaluation
    k = len(e.labels)
    columns = k + (e.unanswered > 0)
    shares = [[count / max(1, sum(row)) for count in row[:columns]] for row in e.confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 10 if k <= 12 else 7
    for y, row in enumerate(e.confusion):
        for x, count in enumerate(row[:columns]):
            if count:
                axes.text(
                    x, y, str(count), ha="center", va="center", fontsize=size,
                    color="white" if shares[y][x] > 0.5 else "black", fontweight="bold" if x == y else "normal",
                )  # fmt: skip
    names = [_drawable(label, number) for number, label in enumerate(e.labels, 1)]
    axes.set_xticks(range(columns), [*names, "no answer"][:columns], fontsize=size)
    for tick in axes.get_xticklabels():
        tick.set(rotation=45 if k <= 12 else 90, ha="right", va="center", rotation_mode="anchor")
    axes.set_yticks(range(k), names, fontsize=size)
    for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        tick.set_parse_math(False)  # a dollar sign in a label is a dollar sign
    axes.set_xticks([x - 0.5 for x in range(1, columns)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, k)], minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    axes.set_title(f"accuracy {e.accuracy:.1%} ({e.correct} of {e.n})", fontsize=11)


def _drawable(label: str, number: int, longest: int = 20) -> str:
    """The label, cut, or its number where matplotlib's bundled font lacks one of its characters."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    if all(font.get_char_index(ord(character)) for character in label):
        return _cut(label, longest)
    return f"label {number}"
