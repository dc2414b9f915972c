"""What must not be passed: a run's folder damaged in one place, judged, reported and gated.

Each case has a name, what it does to a copy of a run's folder, and the commands that must not say PASS afterwards. The
run is ``good`` (it passes) or ``bad`` (it fails, by 9 points); the good one passes every command as it is, which the
first tests show, so that a refusal is the damage's doing. A case is ``careless`` (a file edited or cut, its closing
line left as it was) or ``remade`` (counts, closing lines and the ladder's digests made anew).
"""

import json
import random
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from made import (
    CONTRACT,
    LABELS,
    LOSES,
    Line,
    Run,
    copy_run,
    edit_header,
    edit_rows,
    make_run,
    read,
    remake,
    remake_manifest,
    remeasure,
    replace,
    reseal,
    write,
)
from malformed import SEED
from session import Once
from trial import FalsePass, Trials, WrongCode, tried
from typer.testing import CliRunner, Result

from parity.cli import app
from pipeline.core.errors import CheckFailed, UserError
from pipeline.core.files import sha256_bytes

ALL = ("judge", "report", "gate")
REFUSALS = {"judge": {1, 2, 3, 4}, "report": {1, 2, 4}, "gate": {1, 2, 3, 4}, "verify": {1, 2}}
"""Command -> the exit codes of one that does not pass."""

Damage = Callable[[Run], object]


@dataclass(frozen=True)
class FalsePassCase:
    """One way to be passed by mistake."""

    name: str
    damage: Damage
    commands: tuple[str, ...] = ALL
    base: str = "good"
    code: int | None = None
    """The exit code of ``judge``, where only one is right."""


# --- the runs and the commands ---------------------------------------------------------------------------------------


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def code_of(result: Result) -> int:
    """The exit code that the command line would have."""
    error = result.exception
    if isinstance(error, UserError):
        return 2
    if isinstance(error, CheckFailed):
        return 1
    if error is None or isinstance(error, SystemExit):
        return result.exit_code
    if isinstance(code := getattr(error, "code", None), int):
        return code
    raise error


def command(name: str, run: Run) -> Result:
    """Run one of the commands on a run's folder."""
    if name == "judge":
        return invoke("judge", run.hf, run.llamacpp)
    if name == "verify":
        from pipeline.cli import app as other

        return CliRunner().invoke(other, ["verify", str(run.bundle)])
    return invoke(name, run.root)


def must_not_pass(name: str, run: Run, code: int | None = None) -> None:
    """Raises FalsePass or WrongCode, or what the command should not have raised."""
    result = command(name, run)
    found = code_of(result)
    if found == 0:
        said = next((line for line in result.output.splitlines() if "PASS" in line), "")
        raise FalsePass(f"{name}: {said.strip()}") if said or name != "report" else WrongCode(f"{name} ended with 0")
    if found not in ({code} if code and name == "judge" else REFUSALS[name]):
        words = str(result.exception) if not isinstance(result.exception, SystemExit) else result.output[:200]
        raise WrongCode(f"{name} ended with {found}: {words}")


def finish(run: Run) -> Run:
    """Judge a run as `parity run` does at its end."""
    result = invoke("judge", run.hf, run.llamacpp, "--out", run.verdict)
    assert run.verdict.exists(), result.output
    return run


@pytest.fixture(scope="session")
def runs(once: Once, bundle: Path) -> dict[str, Run]:
    """Name -> a whole run; never changed."""

    def make(folder: Path) -> None:
        finish(make_run(folder / "good", bundle))
        finish(make_run(folder / "bad", bundle, LOSES))

    folder = once("attacked", make)
    return {name: Run(folder / name) for name in ("good", "bad")}


# --- results: careless -----------------------------------------------------------------------------------------------


def on_sides(change: Callable[[list[Line]], Iterable[Line] | None]) -> Damage:
    """Edit both sides' rows."""
    return lambda run: [edit_rows(path, change) for path in run.sides]


def on_files(change: Callable[[list[Line]], Iterable[Line] | None]) -> Damage:
    """Edit the rows of all three files."""
    return lambda run: [edit_rows(path, change) for path in run.files]


def as_hf_says(run: Run) -> None:
    answers = {row["key"]: row["label"] for row in read(run.hf)[1]}
    for path in run.sides:
        edit_rows(path, lambda rows: [row | {"truth": answers[row["key"]]} for row in rows])


def failing_keys(run: Run) -> set[str]:
    right = [{row["key"] for row in read(path)[1] if row["label"] == row["truth"]} for path in run.sides]
    return right[0] - right[1]


def without_failing(run: Run) -> None:
    failing = failing_keys(run)
    for path in run.files:
        edit_rows(path, lambda rows: [row for row in rows if row["key"] not in failing])


def answers_of_hf(run: Run) -> None:
    ours = {row["key"]: row for row in read(run.hf)[1]}
    taken = ("label", "text", "generated_token_ids")
    edit_rows(run.llamacpp, lambda rows: [row | {key: ours[row["key"]][key] for key in taken} for row in rows])


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    replace(path, data[: int(len(data) * share)])


def cut_to_whole_lines(run: Run) -> None:
    """As a kill leaves a run: the same rows in all files, and no closing line."""
    for path in run.files:
        header, rows, _ = read(path)
        write(path, header, rows[:168])


def last_lines_gone(path: Path, count: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    replace(path, b"".join(lines[:-count]))


def edit_end(path: Path, change: Callable[[list[Line]], Iterable[Line]]) -> None:
    header, rows, end = read(path)
    write(path, header, rows, change(end))


def end_in_the_middle(run: Run) -> None:
    lines = run.llamacpp.read_bytes().splitlines(keepends=True)
    replace(run.llamacpp, b"".join([*lines[:100], lines[-1], *lines[100:-1]]))


def end_of_the_other(run: Run) -> None:
    _, _, end = read(run.hf)
    edit_end(run.llamacpp, lambda _: end)


def spaced(run: Run) -> None:
    replace(run.llamacpp, run.llamacpp.read_bytes().replace(b'"text":', b'"text": ', 1))


CARELESS = [
    FalsePassCase("truths rewritten to the reference's answers", as_hf_says),
    FalsePassCase(
        "truths rewritten to the candidate's answers in a bad run", lambda run: truths_of_candidate(run), base="bad"
    ),
    FalsePassCase("the reference's answers written into the candidate's file", answers_of_hf, base="bad"),
    FalsePassCase("every failing image removed from all files", without_failing, base="bad"),
    FalsePassCase("all files cut to 168 of 300 rows, as a kill leaves them", cut_to_whole_lines),
    FalsePassCase("both results cut in the middle of a row", lambda run: [cut(path, 0.6) for path in run.sides]),
    FalsePassCase("the candidate's file cut in the middle of a row", lambda run: cut(run.llamacpp, 0.6)),
    FalsePassCase("the candidate's closing line removed", lambda run: last_lines_gone(run.llamacpp, 1)),
    FalsePassCase("the reference's closing line removed", lambda run: last_lines_gone(run.hf, 1)),
    FalsePassCase("all closing lines removed", lambda run: [last_lines_gone(path, 1) for path in run.files]),
    FalsePassCase(
        "the last row and the closing line removed from all files",
        lambda run: [last_lines_gone(path, 2) for path in run.files],
    ),
    FalsePassCase("the closing line of the other side", end_of_the_other),
    FalsePassCase("the closing line in the middle", end_in_the_middle),
    FalsePassCase("two closing lines", lambda run: edit_end(run.hf, lambda end: end * 2)),
    FalsePassCase(
        "a closing line with one row fewer",
        lambda run: edit_end(run.hf, lambda end: [line | {"rows": 299} for line in end]),
    ),
    FalsePassCase(
        "a closing line with rows: null",
        lambda run: edit_end(run.hf, lambda end: [line | {"rows": None} for line in end]),
    ),
    FalsePassCase(
        "a closing line with an empty digest",
        lambda run: edit_end(run.hf, lambda end: [line | {"sha256": ""} for line in end]),
    ),
    FalsePassCase(
        "a closing line without a digest", lambda run: edit_end(run.hf, lambda end: [{"kind": "end", "rows": 300}])
    ),
    FalsePassCase(
        "a row behind the closing line",
        lambda run: replace(
            run.hf, run.hf.read_bytes() + json.dumps(read(run.hf)[1][0] | {"key": "9" * 64}).encode() + b"\n"
        ),
    ),
    FalsePassCase("bytes behind the closing line", lambda run: replace(run.hf, run.hf.read_bytes() + b"more")),
    FalsePassCase("rows in another order", lambda run: edit_rows(run.llamacpp, lambda rows: rows[::-1])),
    FalsePassCase("a space more in one row", spaced),
    FalsePassCase(
        "one label changed by hand",
        lambda run: edit_rows(
            run.llamacpp, lambda rows: rows[4].update(label=rows[4]["truth"], text=" " + rows[4]["truth"])
        ),
    ),
    FalsePassCase(
        "the reference's errors made right",
        lambda run: edit_rows(
            run.hf, lambda rows: [row | {"label": row["truth"], "text": " " + row["truth"]} for row in rows]
        ),
    ),
    FalsePassCase(
        "the candidate's header says another feed",
        lambda run: edit_header(run.llamacpp, lambda header: header["runtime"].update(fed="bgr")),
    ),
    FalsePassCase(
        "the headers' count of images lowered",
        lambda run: [edit_header(path, lambda header: header.update(images=168)) for path in run.files],
    ),
    FalsePassCase("both files empty", lambda run: [replace(path, b"") for path in run.sides]),
]


def truths_of_candidate(run: Run) -> None:
    answers = {row["key"]: row["label"] for row in read(run.llamacpp)[1]}
    for path in run.sides:
        edit_rows(path, lambda rows: [row | {"truth": answers[row["key"]]} for row in rows])


# --- results: remade -------------------------------------------------------------------------------------------------


def remade(damage: Damage) -> Damage:
    """The damage, then everything made anew that follows from the lines."""

    def done(run: Run) -> None:
        damage(run)
        remake(run)

    return done


def header_of(which: str, /, **changes: Any) -> Damage:
    """Other values in a side's header, remade; ``both`` are both."""

    def change(run: Run) -> None:
        for path in run.sides if which == "both" else (getattr(run, which),):
            edit_header(path, lambda header: header.update(changes))

    return remade(change)


def runtime_of(which: str, /, **changes: Any) -> Damage:
    return remade(lambda run: edit_header(getattr(run, which), lambda header: header["runtime"].update(changes)))


def rows_of(side: str, change: Callable[[list[Line]], Iterable[Line] | None], again: bool = True) -> Damage:
    """Other rows in one or both sides; ``again``: with a ladder made anew for them."""

    def done(run: Run) -> None:
        for path in run.sides if side == "both" else (getattr(run, side),):
            edit_rows(path, change)
        (remeasure if again else remake)(run)

    return done


def same_twice(which: str) -> Damage:
    return remade(lambda run: shutil.copyfile(getattr(run, which), getattr(run, other_of(which))))


def other_of(side: str) -> str:
    return "llamacpp" if side == "hf" else "hf"


def swapped(run: Run) -> None:
    ours, theirs = run.hf.read_bytes(), run.llamacpp.read_bytes()
    replace(run.hf, theirs)
    replace(run.llamacpp, ours)


def hf_as_candidate(run: Run) -> None:
    """A copy of the reference's file that calls itself llama.cpp's, and keeps its engine."""
    shutil.copyfile(run.hf, run.llamacpp)
    edit_header(run.llamacpp, lambda header: header.update(side="llamacpp"))
    remeasure(run)


def rows_copied(share: float) -> Damage:
    """The reference's rows under the candidate's header."""

    def done(run: Run) -> None:
        ours = {row["key"]: row for row in read(run.hf)[1]}
        count = max(int(share * len(ours)), 1)
        edit_rows(run.llamacpp, lambda rows: [ours[row["key"]] if n < count else row for n, row in enumerate(rows)])
        remeasure(run)

    return done


def failing_copied(run: Run) -> None:
    """The reference's rows in place of those that the candidate got wrong."""
    ours, failing = {row["key"]: row for row in read(run.hf)[1]}, failing_keys(run)
    edit_rows(run.llamacpp, lambda rows: [ours[row["key"]] if row["key"] in failing else row for row in rows])
    remeasure(run)


def cloned(run: Run) -> None:
    """Easy rows under new keys, in both files."""
    failing = failing_keys(run)
    easy = [row["key"] for row in read(run.hf)[1] if row["key"] not in failing][:200]
    for path in run.sides:
        by_key = {row["key"]: row for row in read(path)[1]}
        clones = [
            by_key[key] | {"key": sha256_bytes(f"{copy}{key}".encode()), "image_id": f"copy_{copy}_{n}"}
            for copy in range(5)
            for n, key in enumerate(easy)
        ]
        edit_rows(path, lambda rows, more=clones: rows + more)
    remeasure(run)


def invented(run: Run) -> None:
    """Rows of images that do not exist, in both files, with keys and hashes of their own."""
    for path in run.sides:
        first = read(path)[1][0]
        more = []
        for number in range(1000):
            key = sha256_bytes(f"invented {number}".encode())
            more.append(first | {"key": key, "rgb_sha256": key, "image_id": f"invented_{number}"})
        edit_rows(path, lambda rows, more=more: rows + more)
    remeasure(run)


def same_id(run: Run) -> None:
    for path in run.files:
        edit_rows(path, lambda rows: rows[1].update(image_id=rows[0]["image_id"]))
    remake(run)


def without_labels(count: int) -> Damage:
    """All images of the first labels removed from all files."""

    def done(run: Run) -> None:
        gone = LABELS[:count]
        keys = {row["key"] for row in read(run.hf)[1] if row["truth"] in gone}
        for path in run.files:
            edit_rows(path, lambda rows: [row for row in rows if row["key"] not in keys])
        remake(run)

    return done


def only(count: int) -> Damage:
    """The first images alone."""
    return remade(on_files(lambda rows: rows[:count]))


def set_all(**values: Any) -> Callable[[list[Line]], list[Line]]:
    return lambda rows: [row | values for row in rows]


def logprobs(value: float | None) -> Callable[[list[Line]], list[Line]]:
    return lambda rows: [row | {"label_logprobs": dict.fromkeys(LABELS, value)} for row in rows]


def swapped_channels(rows: list[Line]) -> list[Line]:
    return [row | {"rgb_sha256": sha256_bytes(row["key"].encode())} for row in rows]


REMADE = [
    FalsePassCase("the reference's file twice", same_twice("hf"), code=4),
    FalsePassCase("the candidate's file twice", same_twice("llamacpp"), code=4),
    FalsePassCase("the sides swapped", remade(swapped), code=4),
    FalsePassCase("a copy of the reference that calls itself llamacpp", hf_as_candidate, code=4),
    FalsePassCase("all of the reference's rows under the candidate's header", rows_copied(1.0), base="bad", code=4),
    FalsePassCase("half of the reference's rows under the candidate's header", rows_copied(0.5), base="bad", code=4),
    FalsePassCase("one of the reference's rows under the candidate's header", rows_copied(0.0), code=4),
    FalsePassCase("the reference's rows where the candidate fails", failing_copied, base="bad", code=4),
    FalsePassCase("the same engine on both sides", header_of("hf", engine="llama.cpp"), code=4),
    FalsePassCase("the other engine on both sides", header_of("llamacpp", engine="transformers"), code=4),
    FalsePassCase("an engine without a name", header_of("llamacpp", engine=""), base="bad"),
    FalsePassCase("both sides of one name", header_of("both", side="llamacpp"), code=4),
    FalsePassCase("no weights of the reference", header_of("hf", weights_sha256=None), code=4),
    FalsePassCase("no weights of the candidate", header_of("llamacpp", weights_sha256=None), code=4),
    FalsePassCase("no weights of either side", header_of("both", weights_sha256=None), code=4),
    FalsePassCase("other weights", header_of("llamacpp", weights_sha256="7" * 64), code=4),
    FalsePassCase("no versions of the reference", header_of("hf", versions={}), code=4),
    FalsePassCase("no versions of the candidate", header_of("llamacpp", versions={}), code=4),
    FalsePassCase("no runtime of the reference", header_of("hf", runtime={}), code=4),
    FalsePassCase("no runtime of the candidate", header_of("llamacpp", runtime={}), code=4),
    FalsePassCase("an empty prompt on both sides", header_of("both", prompt_token_ids=[], image_slots=[]), code=4),
    FalsePassCase("no image slots on both sides", header_of("both", image_slots=[]), code=4),
    FalsePassCase(
        "a prompt that is nothing but pictures",
        header_of("both", prompt_token_ids=[-1] * 32, image_slots=[[0, 16], [16, 16]]),
    ),
    FalsePassCase("image slots where the prompt has text", header_of("both", image_slots=[[0, 16], [17, 16]])),
    FalsePassCase("no model of the candidate", header_of("llamacpp", model={})),
    FalsePassCase("another dataset of the candidate", header_of("llamacpp", dataset_sha256="8" * 64), code=4),
    FalsePassCase("another contract of both", header_of("both", contract_sha256="8" * 64), code=4),
    FalsePassCase("the candidate answered the validation images", header_of("llamacpp", split="validation"), code=4),
    FalsePassCase(
        "another llama.cpp of the candidate",
        header_of("llamacpp", versions={"llama-cpp-python": "0.0.1", "torch": "1"}),
        code=4,
    ),
    FalsePassCase("another context window than the contract's", runtime_of("llamacpp", n_ctx=4096)),
    FalsePassCase("another cache than the contract's", runtime_of("llamacpp", type_k="f16", type_v="f16")),
    FalsePassCase("the candidate was fed BGR by its header", runtime_of("llamacpp", fed="bgr")),
    FalsePassCase(
        "both were fed BGR by their headers",
        lambda run: [runtime_of(side, fed="bgr")(run) for side in ("hf", "llamacpp")],
    ),
    FalsePassCase("a language half of another type than exported", runtime_of("llamacpp", text_types="Q4_0")),
    FalsePassCase("a vision half of another type than exported", runtime_of("llamacpp", mmproj_types="Q4_0")),
    FalsePassCase("easy rows cloned under new keys", cloned, base="bad", code=4),
    FalsePassCase("a thousand images that do not exist", invented, commands=("report", "gate"), base="bad"),
    FalsePassCase("one image id twice", same_id, code=4),
    FalsePassCase("two of five labels absent", without_labels(2), code=3),
    FalsePassCase("one of five labels absent", without_labels(1), code=3),
    FalsePassCase("three images", only(3)),
    FalsePassCase("no image", only(0)),
    FalsePassCase("the candidate's pixels are not the canvas", rows_of("llamacpp", swapped_channels)),
    FalsePassCase("no side's pixels are the canvas", rows_of("both", swapped_channels)),
    FalsePassCase("another truth on one side", rows_of("llamacpp", lambda rows: rows[0].update(truth="fire"))),
    FalsePassCase(
        "labels that the texts do not say",
        rows_of("llamacpp", lambda rows: [row | {"label": row["truth"]} for row in rows]),
        base="bad",
    ),
    FalsePassCase(
        "texts rewritten to the truth under other token ids",
        rows_of(
            "llamacpp",
            lambda rows: [row | {"label": row["truth"], "text": " " + row["truth"]} for row in rows],
            again=False,
        ),
        base="bad",
    ),
    FalsePassCase(
        "no log-probabilities of the candidate", rows_of("llamacpp", set_all(label_logprobs={}), again=False)
    ),
    FalsePassCase("no log-probabilities of either side", rows_of("both", set_all(label_logprobs={}), again=False)),
    FalsePassCase("null in every log-probability", rows_of("llamacpp", logprobs(None))),
    FalsePassCase("log-probabilities of 5", rows_of("llamacpp", logprobs(5.0), again=False)),
    FalsePassCase("one log-probability for all labels on both sides", rows_of("both", logprobs(-1.0))),
    FalsePassCase(
        "log-probabilities that the ladder does not bear out",
        rows_of(
            "llamacpp",
            lambda rows: [
                row | {"label_logprobs": {k: v - 0.5 * n for n, (k, v) in enumerate(row["label_logprobs"].items())}}
                for row in rows
            ],
            again=False,
        ),
    ),
]


# --- the ladder ------------------------------------------------------------------------------------------------------


def steps(change: Callable[[list[Line]], Iterable[Line] | None], seal: bool = True) -> Damage:
    """Other lines of the ladder, remade unless ``seal`` is off."""

    def done(run: Run) -> None:
        edit_rows(run.ladder, change)
        if seal:
            reseal(run.ladder)

    return done


def steps_header(**changes: Any) -> Damage:
    def done(run: Run) -> None:
        edit_header(run.ladder, lambda header: header.update(changes))
        reseal(run.ladder)

    return done


def floor(**changes: Any) -> Damage:
    def done(run: Run) -> None:
        edit_header(run.ladder, lambda header: header["floor"].update(changes))
        reseal(run.ladder)

    return done


def spread(median: float, p95: float, largest: float) -> Line:
    return {"median": median, "p95": p95, "largest": largest}


def broken_embeddings(then: Damage) -> Damage:
    """A run whose embeddings are far off, and then the ladder made to look well."""

    def done(run: Run) -> None:
        steps(set_all(embeddings_error=0.9, logits_kl=0.5))(run)
        then(run)

    return done


def bad_steps_gone(run: Run) -> None:
    edit_rows(run.ladder, lambda rows: rows[: len(rows) // 10])
    reseal(run.ladder)


def flip_called_equal(run: Run) -> None:
    edit_rows(run.ladder, lambda rows: [row | {"label_equal": True, "generated_equal": True} for row in rows])
    reseal(run.ladder)


LADDER = [
    FalsePassCase("nine of ten lines of the ladder removed", bad_steps_gone),
    FalsePassCase("all lines of the ladder removed", steps(lambda rows: [])),
    FalsePassCase("one line of the ladder removed", steps(lambda rows: rows[:-1])),
    FalsePassCase("the ladder cut by a kill", lambda run: cut(run.ladder, 0.7)),
    FalsePassCase("the ladder's closing line removed", lambda run: last_lines_gone(run.ladder, 1)),
    FalsePassCase("the ladder deleted", lambda run: run.ladder.unlink(), commands=("report", "gate")),
    FalsePassCase("the ladder an empty file", lambda run: replace(run.ladder, b"")),
    FalsePassCase(
        "the ladder's distances set to 0 by hand", steps(set_all(embeddings_error=0.0, logits_kl=0.0), seal=False)
    ),
    FalsePassCase(
        "lines of other images", steps(lambda rows: [row | {"key": sha256_bytes(row["key"].encode())} for row in rows])
    ),
    FalsePassCase(
        "lines that name other images", steps(lambda rows: [row | {"image_id": "x" + row["image_id"]} for row in rows])
    ),
    FalsePassCase(
        "a floor of 100",
        broken_embeddings(floor(embeddings_error=spread(100, 100, 100), logits_kl=spread(100, 100, 100))),
    ),
    FalsePassCase("a floor below 0", floor(embeddings_error=spread(-1, 0, 1))),
    FalsePassCase("a floor whose median is beyond its largest", floor(logits_kl=spread(3.0, 2.0, 1.0))),
    FalsePassCase("a floor whose p95 is beyond its largest", floor(logits_kl=spread(5e-6, 900.0, 1e-4))),
    FalsePassCase("a floor of no samples", floor(samples=0)),
    FalsePassCase("a floor with more flips than samples", floor(labels_differ=5000)),
    FalsePassCase("a floor with a negative count", floor(generated_differ=-1)),
    FalsePassCase("negative distances", steps(set_all(embeddings_error=-0.5, logits_kl=-1.0, logits_max=-1.0))),
    FalsePassCase("0 tiles", steps(set_all(tiles=[0, 0]))),
    FalsePassCase("fewer tiles than the contract's plan", steps(set_all(tiles=[1, 1]))),
    FalsePassCase("-1 tiles", steps(set_all(tiles=[-1, -1]))),
    FalsePassCase("a byte difference of -1", steps(set_all(tiles_bytes=-1))),
    FalsePassCase("a byte difference of 300", steps(set_all(tiles_bytes=300))),
    FalsePassCase("a share of 2 of the bytes", steps(set_all(tiles_bytes_share=2.0))),
    FalsePassCase("half of the bytes differ by 0", steps(set_all(tiles_bytes_share=0.5))),
    FalsePassCase("a cosine of 2", steps(set_all(embeddings_cosine=2.0))),
    FalsePassCase("another contract in the ladder's header", steps_header(contract_sha256="8" * 64), code=4),
    FalsePassCase("another dataset in the ladder's header", steps_header(dataset_sha256="8" * 64), code=4),
    FalsePassCase(
        "other results in the ladder's header", steps_header(candidate_sha256="8" * 64), commands=("report", "gate")
    ),
    FalsePassCase("a coarser type in the ladder's header", steps_header(text_type="Q4_0")),
    FalsePassCase("a type that nobody knows in the ladder's header", steps_header(text_type="Q1", mmproj_type="Q1")),
    FalsePassCase("another cache in the ladder's header", steps_header(kv_type="f16/f16")),
    FalsePassCase("no label equal", steps(set_all(label_equal=False)), code=4),
    FalsePassCase("every label equal, flips too", flip_called_equal, code=4),
    FalsePassCase("no generation equal", steps(set_all(generated_equal=False))),
    FalsePassCase("no pixels equal", steps(set_all(pixels_equal=False))),
    FalsePassCase(
        "pixels called equal that are not",
        lambda run: (
            rows_of("llamacpp", lambda rows: rows[0].update(rgb_sha256="6" * 64))(run),
            steps(set_all(pixels_equal=True))(run),
        ),
    ),
    FalsePassCase("null for every KL over the labels", steps(set_all(logits_kl_labels=None)), code=4),
    FalsePassCase("another KL over the labels than the rows give", steps(set_all(logits_kl_labels=1e-9)), code=4),
    FalsePassCase("null for every distance", steps(set_all(embeddings_error=None, logits_kl=None, logits_max=None))),
    FalsePassCase("tokens called equal that part at 3", steps(set_all(tokens_first=3))),
]


# --- verdict, limits, bundle -----------------------------------------------------------------------------------------


def edit_verdict(change: Callable[[Line], object]) -> Damage:
    def done(run: Run) -> None:
        verdict = json.loads(run.verdict.read_text())
        change(verdict)
        replace(run.verdict, json.dumps(verdict))

    return done


def called_pass(verdict: Line) -> None:
    """As a forger in a hurry does it."""
    verdict.update(status="PASS", exit_code=0, headline="llama.cpp is as good as Hugging Face, within the margin")
    verdict.update(first_bad_stage=None, cause="", fix="")


def called_pass_with_care(verdict: Line) -> None:
    called_pass(verdict)
    for gate in verdict["gates"]:
        gate.update(status="green", cause="", fix="", value=0.0, beyond=0)
    verdict["difference"].update(points=0.0, low=-1.0, high=1.0, lost=2, won=2)


def verdict_of_the_good(run: Run) -> None:
    """The verdict of a good run beside a bad run's results, with these results' headers."""
    good = json.loads((run.root.parent / "good-verdict.json").read_text())
    bad = json.loads(run.verdict.read_text())
    good.update(reference_header=bad["reference_header"], candidate_header=bad["candidate_header"])
    replace(run.verdict, json.dumps(good))


def judged_by(*options: str) -> Damage:
    """Judged with other limits, and the verdict put in the run's place."""
    return lambda run: invoke("judge", run.hf, run.llamacpp, "--out", run.verdict, *options)


def wide_contract(run: Run) -> None:
    """A contract with a wide margin in the bundle, the manifest remade."""
    contract = json.loads((run.bundle / "contract.json").read_text())
    contract["gate"]["margin_points"] = 30.0
    replace(run.bundle / "contract.json", json.dumps(contract))
    remake_manifest(run.bundle)


def flipped(path: Path, place: float = 0.9) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    replace(path, bytes(data))


def flipped_and_listed(run: Run) -> None:
    flipped(run.text)
    remake_manifest(run.bundle)


def halves_swapped(run: Run) -> None:
    text, mmproj = run.text.read_bytes(), run.mmproj.read_bytes()
    names = run.text, run.mmproj
    replace(names[0], mmproj)
    replace(names[1], text)
    remake_manifest(run.bundle)


def text_twice(run: Run) -> None:
    replace(run.mmproj, run.text.read_bytes())
    remake_manifest(run.bundle)


def mmproj_twice(run: Run) -> None:
    replace(run.text, run.mmproj.read_bytes())
    remake_manifest(run.bundle)


def cut_and_listed(which: str, share: float) -> Damage:
    def done(run: Run) -> None:
        cut(getattr(run, which), share)
        remake_manifest(run.bundle)

    return done


def link_out(which: str) -> Damage:
    def done(run: Run) -> None:
        path = getattr(run, which) if which != "contract" else run.bundle / "contract.json"
        outside = run.root.parent / f"outside-{path.name}"
        shutil.copyfile(path, outside)
        path.unlink()
        path.symlink_to(outside)

    return done


def listed_outside(run: Run) -> None:
    manifest = json.loads((run.bundle / "manifest.json").read_text())
    name = run.text.name
    shutil.move(run.text, run.root / name)
    manifest["outputs"][f"../{name}"] = manifest["outputs"].pop(name)
    replace(run.bundle / "manifest.json", json.dumps(manifest))


def signature_folder(run: Run) -> None:
    (run.bundle / "model.sig").mkdir()
    (run.bundle / "model.sig" / "x.gguf").write_text("x")


def manifest_of(**changes: Any) -> Damage:
    def done(run: Run) -> None:
        path = run.bundle / "manifest.json"
        replace(path, json.dumps(json.loads(path.read_text()) | changes))

    return done


def empty_tensors(run: Run) -> None:
    """A GGUF with all of its metadata and no tensor."""
    from pipeline.core.toolchain import load_gguf

    gguf: Any = load_gguf()
    reader = gguf.GGUFReader(run.text)
    made = run.root / "empty.gguf"
    writer = gguf.GGUFWriter(made, arch=reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=sub)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = made.read_bytes()
    made.unlink()
    replace(run.text, data)
    remake_manifest(run.bundle)


OUTSIDE = ("report", "gate")
BUNDLE = ("verify", "report", "gate")

AROUND = [
    FalsePassCase("a bad run's verdict called PASS", edit_verdict(called_pass), OUTSIDE, base="bad"),
    FalsePassCase(
        "a bad run's verdict called PASS with care", edit_verdict(called_pass_with_care), OUTSIDE, base="bad"
    ),
    FalsePassCase("a good run's verdict in a bad run's folder", verdict_of_the_good, OUTSIDE, base="bad"),
    FalsePassCase(
        "the verdict's exit code alone", edit_verdict(lambda verdict: verdict.update(exit_code=0)), OUTSIDE, base="bad"
    ),
    FalsePassCase(
        "the verdict's accuracy",
        edit_verdict(lambda verdict: verdict["candidate"].update(accuracy=0.99, correct=297)),
        ("report",),
    ),
    FalsePassCase(
        "the verdict's number of images", edit_verdict(lambda verdict: verdict.update(n=30_000)), ("report",)
    ),
    FalsePassCase("the verdict without its gates", edit_verdict(lambda verdict: verdict.update(gates=[])), ("report",)),
    FalsePassCase(
        "the verdict with a header of its own",
        edit_verdict(lambda verdict: verdict["candidate_header"].update(model={"model": "1" * 64})),
        ("report",),
    ),
    FalsePassCase("no verdict", lambda run: run.verdict.unlink(), ("report",)),
    FalsePassCase("judged with a margin of 30 points", judged_by("--margin", "30"), ("gate",), base="bad"),
    FalsePassCase("a good run judged with a margin of 30 points", judged_by("--margin", "30"), ("gate",)),
    FalsePassCase("judged with a noise factor of 1000", judged_by("--noise-factor", "1000"), ("gate",)),
    FalsePassCase("a wide margin in the bundle's contract", wide_contract, ("judge", "verify", "gate"), base="bad"),
    FalsePassCase("one bit of the language half", lambda run: flipped(run.text), BUNDLE),
    FalsePassCase("one bit of the vision half", lambda run: flipped(run.mmproj), BUNDLE),
    FalsePassCase("one bit of the language half, the manifest remade", flipped_and_listed, OUTSIDE),
    FalsePassCase("the halves swapped, the manifest remade", halves_swapped, BUNDLE),
    FalsePassCase("the language half in both places, the manifest remade", text_twice, BUNDLE),
    FalsePassCase("the vision half in both places, the manifest remade", mmproj_twice, BUNDLE),
    FalsePassCase("the language half cut, the manifest remade", cut_and_listed("text", 0.5), BUNDLE),
    FalsePassCase("the vision half cut, the manifest remade", cut_and_listed("mmproj", 0.5), BUNDLE),
    FalsePassCase(
        "the language half short of one byte, the manifest remade", cut_and_listed("text", 0.9999999), BUNDLE
    ),
    FalsePassCase("a language half without tensors, the manifest remade", empty_tensors, BUNDLE),
    FalsePassCase("the vision half missing", lambda run: run.mmproj.unlink(), BUNDLE),
    FalsePassCase("the language half a link out of the bundle", link_out("text"), ("verify", "gate")),
    FalsePassCase("the contract a link out of the bundle", link_out("contract"), ("verify", "gate")),
    FalsePassCase("a language half that is listed outside", listed_outside, ("verify", "gate")),
    FalsePassCase("a folder in the signature's place", signature_folder, ("verify", "gate")),
    FalsePassCase(
        "a file too many in the bundle", lambda run: (run.bundle / "more.txt").write_text("x"), ("verify", "gate")
    ),
    FalsePassCase("no manifest", lambda run: (run.bundle / "manifest.json").unlink(), ("verify", "gate")),
    FalsePassCase("a manifest that lists nothing", manifest_of(outputs={}), ("verify", "gate")),
    FalsePassCase("a manifest of another contract", manifest_of(contract_sha256="8" * 64), ("verify", "gate")),
    FalsePassCase("no bundle", lambda run: shutil.rmtree(run.bundle), ("gate",)),
]

CASES = [*CARELESS, *REMADE, *LADDER, *AROUND]
QUICK = random.Random(SEED).sample(CASES, 24)


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=f"quick: {case.name}") for case in QUICK),
        *(pytest.param(case, id=case.name, marks=pytest.mark.attack) for case in CASES),
    ],
)
def test_it_is_not_passed(case: FalsePassCase, runs: dict[str, Run], tmp_path: Path, trials: Trials) -> None:
    shutil.copyfile(runs["good"].verdict, tmp_path / "good-verdict.json")
    run = copy_run(runs[case.base], tmp_path / "run")
    case.damage(run)
    for name in case.commands:
        outcome = tried(lambda name=name: must_not_pass(name, run, case.code), seconds=60)
        trials.note("false PASS", f"{case.name}: {name}", outcome)


def test_there_are_at_least_60_cases_of_different_names() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("name", [*ALL, "verify"])
def test_what_is_whole_is_passed(name: str, runs: dict[str, Run], tmp_path: Path) -> None:
    run = copy_run(runs["good"], tmp_path / "run")
    result = command(name, run)
    assert code_of(result) == 0, result.output or result.exception


def test_what_is_whole_and_made_anew_is_passed(runs: dict[str, Run], tmp_path: Path) -> None:
    """Else the remade cases would be refused for how they are remade."""
    run = copy_run(runs["good"], tmp_path / "run")
    remeasure(run)
    for path in run.files:
        assert read(path)[1] == read(runs["good"].parity / path.name)[1]
    assert code_of(command("judge", run)) == 0


def test_the_bad_run_fails(runs: dict[str, Run]) -> None:
    assert code_of(command("judge", runs["bad"])) == 1


def test_other_limits_are_named_in_every_report(runs: dict[str, Run], tmp_path: Path) -> None:
    """A margin of 30 points may pass, but nobody who reads it takes it for the contract's 3."""
    run = copy_run(runs["bad"], tmp_path / "run")
    result = invoke("judge", run.hf, run.llamacpp, "--margin", "30", "--out", run.verdict)
    headline = json.loads(run.verdict.read_text())["headline"]
    assert {"30", "3"} <= set(re.findall(r"\d+", headline))
    said = "".join(part for part in result.output if part not in "│╭╮╰╯─")
    assert {"30", "3"} <= set(re.findall(r"\d+", said.partition("Two sides")[0]))


@pytest.mark.parametrize("option", ["--margin", "--noise-factor"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "0", "-1"])
def test_limits_that_are_no_limits_are_refused(option: str, value: str, runs: dict[str, Run], trials: Trials) -> None:
    def judged() -> None:
        found = code_of(invoke("judge", runs["bad"].hf, runs["bad"].llamacpp, f"{option}={value}"))
        if found != 2:
            raise (FalsePass if found == 0 else WrongCode)(f"exit code {found}")

    trials.note("false PASS", f"{option}={value}", tried(judged))


def test_a_wide_contract_given_by_hand_is_refused(runs: dict[str, Run], tmp_path: Path) -> None:
    wide = CONTRACT.model_copy(update={"gate": CONTRACT.gate.model_copy(update={"margin_points": 30.0})})
    (tmp_path / "wide.json").write_text(wide.model_dump_json())
    result = invoke("judge", runs["bad"].hf, runs["bad"].llamacpp, "--contract", tmp_path / "wide.json")
    assert code_of(result) == 4
