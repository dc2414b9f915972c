"""Rows that lie on the disk when a run goes on or puts its shards together: only what was answered there counts."""

import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made import (
    CONTRACT,
    LABELS,
    Line,
    Run,
    edit_header,
    edit_rows,
    headers,
    make_dataset,
    read,
    remake,
    remeasure,
    replace,
    reseal,
    rows,
    write,
    write_files,
)
from rich.console import Console
from trial import FalsePass, Trials, tried

from parity.compare.runner import answer_all
from parity.compare.samples import Sample, load_samples
from parity.compare.shards import merge_shards, shard_folder, shard_keys
from parity.engines import OpenSide
from parity.results import Row, read_results
from pipeline.core.files import sha256_bytes
from pipeline.core.progress import Reporter
from pipeline.models.prediction import Prediction

IMAGES, SHARDS = 30, 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of thirty images without a bundle."""
    run = Run(tmp_path_factory.mktemp("whole") / "run")
    make_dataset(run.dataset, IMAGES)
    samples, digest = load_samples(run.dataset, CONTRACT)
    write_files(run.parity, [sample.record for sample in samples], digest, None, 1)
    return run


# --- a run that goes on ----------------------------------------------------------------------------------------------


class Answers:
    """The candidate's side, which answers from a list."""

    side = "llamacpp"

    def __init__(self, known: Iterable[Row], stop_after: int | None = None) -> None:
        self._known = {row.rgb_sha256: row for row in known}
        self._left = stop_after

    def predict(self, canvases: Iterable[Any]) -> Iterator[Prediction]:
        for canvas in canvases:
            if self._left is not None:
                if self._left == 0:
                    raise InterruptedError("killed")
                self._left -= 1
            row = self._known[sha256_bytes(canvas.tobytes())]
            yield Prediction(
                rgb_sha256=row.rgb_sha256,
                text=row.text,
                generated_ids=row.generated_token_ids,
                stop_reason=row.stop_reason,
                label_logprobs={key: value for key, value in row.label_logprobs.items() if value is not None},
                top_logits=tuple((token, value) for token, value in row.top_logits if value is not None),
                ms=row.ms,
            )


def answer(samples: list[Sample], digest: str, path: Path, stop_after: int | None = None) -> dict[str, Row]:
    """Answer the images, going on with what is at ``path``; what the rows should be."""
    honest = rows([sample.record for sample in samples], 1)[1]
    side = OpenSide(Answers(honest, stop_after), headers(digest, None, len(samples))[1])
    answer_all(side, samples, CONTRACT, path, Reporter(Console(stderr=True), quiet=True))
    return {row.key: row for row in honest}


def unseen(rows: list[Line]) -> list[Line]:
    key = sha256_bytes(b"an image that does not exist")
    return [*rows, rows[0] | {"key": key, "rgb_sha256": key, "image_id": "nowhere"}]


def other_than(label: str) -> str:
    return LABELS[LABELS.index(label) - 1]


def label_of_another(rows: list[Line]) -> list[Line]:
    return [row | {"label": LABELS[0], "text": f" {LABELS[0]}"} for row in rows]


CHANGED: dict[str, Callable[[list[Line]], Iterable[Line] | None]] = {
    "one truth": lambda rows: rows[1].update(truth=other_than(rows[1]["truth"])),
    "every truth made the answer": lambda rows: [row | {"truth": row["label"]} for row in rows],
    "one answer": lambda rows: rows[1].update(label=other_than(rows[1]["label"]), text=" hm"),
    "every answer": label_of_another,
    "the pixels of one": lambda rows: rows[1].update(rgb_sha256="6" * 64),
    "an image that does not exist": unseen,
    "the key of one": lambda rows: rows[1].update(key="7" * 64),
    "one image's id": lambda rows: rows[1].update(image_id="another"),
    "one row twice": lambda rows: [*rows, rows[0]],
    "one row removed": lambda rows: rows[1:],
    "two rows swapped": lambda rows: [rows[1], rows[0], *rows[2:]],
    "the log-probabilities of one": lambda rows: rows[0].update(label_logprobs=dict.fromkeys(LABELS, -1.6)),
    "the time of one": lambda rows: rows[0].update(ms={"encode": 0.001}),
    "the tokens of one": lambda rows: rows[0].update(generated_token_ids=[7]),
    "a row without its key": lambda rows: [{k: v for k, v in row.items() if k != "key"} for row in rows[:1]] + rows[1:],
    "a row that is null": lambda rows: [None, *rows[1:]],  # type: ignore[list-item]
}
SEEN_BY_THE_DATASET = (
    "one truth", "every truth made the answer", "the pixels of one", "an image that does not exist", "the key of one",
)  # fmt: skip


@pytest.mark.parametrize("how", ["unfinished", "unfinished, its notes gone", "finished", "finished and made anew"])
@pytest.mark.parametrize("change", CHANGED)
def test_a_row_that_was_changed_is_answered_again(
    change: str, how: str, whole: Run, tmp_path: Path, trials: Trials
) -> None:
    if how == "finished and made anew" and change not in SEEN_BY_THE_DATASET:
        return  # a forger's work: a signature is against that
    samples, digest = load_samples(whole.dataset, CONTRACT)
    path = tmp_path / "llamacpp.results.jsonl"
    if how.startswith("unfinished"):
        with pytest.raises(InterruptedError):
            answer(samples, digest, path, stop_after=20)
    else:
        answer(samples, digest, path)
    edit_rows(path, CHANGED[change])
    if how == "finished and made anew":
        reseal(path)
    elif how.endswith("gone"):
        for beside in tmp_path.glob(".*"):
            beside.unlink()

    def go_on() -> None:
        honest = answer(samples, digest, path)
        found = read_results(path).rows
        if found != honest:
            wrong = [key for key in {*found, *honest} if found.get(key) != honest.get(key)]
            raise FalsePass(f"{len(wrong)} rows are not what the side answers")

    trials.note("results", f"{change}, {how}", tried(go_on, 30))


def test_what_was_killed_goes_on_with_its_rows(whole: Run, tmp_path: Path) -> None:
    """Else the rows above would be answered again whatever was changed."""
    samples, digest = load_samples(whole.dataset, CONTRACT)
    path = tmp_path / "llamacpp.results.jsonl"
    with pytest.raises(InterruptedError):
        answer(samples, digest, path, stop_after=20)
    assert len(read(path)[1]) == 20
    with pytest.raises(InterruptedError):
        answer(samples, digest, path, stop_after=5)
    assert len(read(path)[1]) == 25
    assert answer(samples, digest, path, stop_after=5) == read_results(path).rows


# --- shards ----------------------------------------------------------------------------------------------------------


def divide(run: Run, folder: Path) -> list[Run]:
    """The run's files as its shards leave them."""
    keys = [row["key"] for row in read(run.hf)[1]]
    made = []
    for number in range(1, SHARDS + 1):
        mine = set(shard_keys(keys, SHARDS, number))
        shard = Shard(shard_folder(folder, SHARDS, number))
        shard.parity.mkdir(parents=True)
        for path in run.files:
            header, lines, _ = read(path)
            write(shard.parity / path.name, header, [line for line in lines if line["key"] in mine])
        remake(shard)
        made.append(shard)
    return made


class Shard(Run):
    """A run whose files lie in its own folder."""

    @property
    def parity(self) -> Path:
        return self.root


def merge(run: Run, folder: Path) -> None:
    """Put the shards together, for the run that they should be of."""
    from parity.compare.shards import Expected

    samples, _ = load_samples(run.dataset, CONTRACT)
    sides = [read(path)[0] for path in run.sides]
    same = ("contract_sha256", "dataset_sha256", "split", "weights_sha256", "model", "versions")
    runtime = [{k: v for k, v in side["runtime"].items() if k != "n_threads"} for side in sides]
    ours, theirs = (
        {key: side[key] for key in same} | {"runtime": own} for side, own in zip(sides, runtime, strict=True)
    )
    steps = read(run.ladder)[0]
    ladder = {key: steps[key] for key in ("contract_sha256", "dataset_sha256", "text_type", "mmproj_type", "kv_type")}
    merge_shards(folder, SHARDS, samples, Expected(ours, theirs, ladder))


def in_all(change: Callable[[Shard], object]) -> Callable[[list[Shard]], None]:
    def done(shards: list[Shard]) -> None:
        for shard in shards:
            change(shard)
            remake(shard)

    return done


def candidate_header(**changes: Any) -> Callable[[list[Shard]], None]:
    return in_all(lambda shard: edit_header(shard.llamacpp, lambda header: header.update(changes)))


def both_headers(**changes: Any) -> Callable[[list[Shard]], None]:
    return in_all(lambda shard: [edit_header(path, lambda header: header.update(changes)) for path in shard.files])


def rows_of(change: Callable[[list[Line]], Iterable[Line] | None], sealed: bool) -> Callable[[list[Shard]], None]:
    """Rows of the second shard's candidate."""

    def done(shards: list[Shard]) -> None:
        edit_rows(shards[1].llamacpp, change)
        if sealed:
            remeasure(shards[1])

    return done


def cut(shards: list[Shard]) -> None:
    data = shards[0].llamacpp.read_bytes()
    replace(shards[0].llamacpp, data[: len(data) * 2 // 3])


def unclosed(shards: list[Shard]) -> None:
    for path in shards[2].files:
        header, lines, _ = read(path)
        write(path, header, lines)


def unclosed_short(shards: list[Shard]) -> None:
    for path in shards[2].files:
        header, lines, _ = read(path)
        write(path, header, lines[:-1])


def other_ladder(shards: list[Shard]) -> None:
    edit_header(shards[0].ladder, lambda header: header.update(candidate_sha256="8" * 64))
    reseal(shards[0].ladder)


def ladder_type(shards: list[Shard]) -> None:
    for shard in shards:
        edit_header(shard.ladder, lambda header: header.update(text_type="Q4_0"))
        reseal(shard.ladder)


def moved(shards: list[Shard]) -> None:
    """A row of the first shard stands in the second, too, with another answer."""
    row = read(shards[0].llamacpp)[1][0]
    row |= {"label": other_than(row["label"]), "text": " " + other_than(row["label"])}
    edit_rows(shards[1].llamacpp, lambda rows: [*rows, row])
    remake(shards[1])


STALE: dict[str, Callable[[list[Shard]], object]] = {
    "of another bundle": candidate_header(model={"model": "1" * 64, "mmproj": "2" * 64}),
    "of another dataset": both_headers(dataset_sha256="8" * 64),
    "of another contract": both_headers(contract_sha256="8" * 64),
    "of another feed": in_all(lambda shard: edit_header(shard.llamacpp, lambda h: h["runtime"].update(fed="bgr"))),
    "of another window": in_all(lambda shard: edit_header(shard.llamacpp, lambda h: h["runtime"].update(n_ctx=4096))),
    "of other weights": candidate_header(weights_sha256="8" * 64),
    "of other code": candidate_header(versions={"code": "0" * 64}),
    "of the validation images": candidate_header(split="validation"),
    "with the reference's file as candidate": lambda shards: shutil.copyfile(shards[0].hf, shards[0].llamacpp),
    "with a ladder of other results": other_ladder,
    "with a ladder of another type": ladder_type,
    "cut": cut,
    "without closing lines": unclosed,
    "without closing lines and the last row": unclosed_short,
    "one missing": lambda shards: shutil.rmtree(shards[1].root),
    "one's candidate missing": lambda shards: shards[1].llamacpp.unlink(),
    "one's ladder missing": lambda shards: shards[1].ladder.unlink(),
    "one's file empty": lambda shards: replace(shards[1].llamacpp, b""),
    "with one row in two of them": moved,
    "truths changed": rows_of(CHANGED["one truth"], sealed=False),
    "truths changed and made anew": rows_of(CHANGED["one truth"], sealed=True),
    "pixels changed and made anew": rows_of(CHANGED["the pixels of one"], sealed=True),
    "answers changed": rows_of(CHANGED["every answer"], sealed=False),
    "an image more, made anew": rows_of(CHANGED["an image that does not exist"], sealed=True),
    "a row removed": rows_of(CHANGED["one row removed"], sealed=False),
    "a row removed and made anew": rows_of(CHANGED["one row removed"], sealed=True),
    "a row twice": rows_of(CHANGED["one row twice"], sealed=False),
    "rows in another order": rows_of(CHANGED["two rows swapped"], sealed=False),
}


@pytest.mark.parametrize("name", STALE)
def test_shards_that_are_not_this_run_s_are_not_merged(name: str, whole: Run, tmp_path: Path, trials: Trials) -> None:
    shards = divide(whole, tmp_path)
    STALE[name](shards)

    def put_together() -> None:
        merge(whole, tmp_path)
        raise FalsePass("they were merged")

    outcome = tried(put_together, 30)
    trials.note("results", f"shards {name}", outcome)
    assert not any((tmp_path / path.name).exists() for path in whole.files) or outcome.count


def test_shards_of_this_run_are_merged(whole: Run, tmp_path: Path) -> None:
    shards = divide(whole, tmp_path)
    random.Random(0).shuffle(shards)
    merge(whole, tmp_path)
    assert read_results(tmp_path / whole.llamacpp.name).rows == read_results(whole.llamacpp).rows
