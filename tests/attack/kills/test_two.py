"""Two processes at once: each ends well or says who is in its way, and neither spoils the other's work.

One is held at a chosen call that changes a file while the other does all of its work, so that what is a race in life
happens here for certain.
"""

import json
import random
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from accounts import account, differences
from forking import Ended, Forks
from states import INCONCLUSIVE, WORKS, States
from tally import tally
from watching import Event

from parity.judge.verdict import Verdict

pytestmark = [pytest.mark.attack, pytest.mark.usefixtures("watchable")]

USAGE = 2
SEED = 12
MOMENTS = 8
SMALL = WORKS["parity"].words[2]


class Held:
    """Holds the caller of the event number ``at`` of those that count until it may go on."""

    def __init__(self, at: int) -> None:
        self.at, self.seen, self.event = at, 0, ""
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self, event: Event) -> int:
        self.seen += event.counts
        if self.seen >= self.at and not self.event:
            self.event = str(event)
            self.reached.set()
            self.go.wait(120)
        return 0


def beside(
    forks: Forks, words: tuple[str, ...], where: Path, at: int, other: Callable[[], Ended]
) -> tuple[Ended, Ended, str]:
    """(how a program ended, how another did that ran while the first was held at an event, that event)."""
    held = Held(at)
    program = forks.start(*words, cwd=where, watched=where / "runs", decide=held)
    while not held.reached.wait(0.05) and program.alive():
        pass
    try:
        second = other()
    finally:
        held.go.set()
    return program.wait(), second, held.event


def moments(states: States, name: str, count: int = MOMENTS) -> list[int]:
    """Some events of a work, seeded, its first and last among them."""
    events = range(1, len(states.events(name)) + 1)
    chosen = random.Random(f"{SEED} {name}").sample(events, min(count, len(events)))
    return sorted({1, *chosen, len(events)})


def bad(ended: Ended, *codes: int) -> list[tuple[str, str]]:
    """(count, what is wrong) with a program that may end with any of ``codes``."""
    if ended.hung:
        return [("hangs", "hangs")]
    if ended.traceback:
        return [("tracebacks", ended.brief)]
    if ended.code not in codes:
        return [("wrong_codes", f"ends with {ended.brief}")]
    if ended.code == USAGE and sum(line.startswith("error:") for line in ended.err.splitlines()) != 1:
        return [("wrong_codes", f"says nothing, or too much: {ended.brief}")]
    return []


def check(wrong: list[tuple[str, str]], tried: int = 1) -> list[str]:
    """Count what is wrong; the words alone."""
    tally("two at once", tried=tried, **{count: sum(one == count for one, _ in wrong) for count, _ in wrong})
    return [text for _, text in wrong]


@pytest.mark.parametrize("name", ["dataset", "train", "export", "parity", "shards"])
def test_the_same_twice(forks: Forks, states: States, tmp_path: Path, name: str) -> None:
    """The second is told so, whatever the first is at."""
    work, wrong = WORKS[name], []
    for at in moments(states, name, 3)[1:]:  # before the first, there is no folder to have
        where = states.begin(name, tmp_path / f"{name} {at}")
        first, second, event = beside(
            forks, work.words, where, at, lambda where=where: forks.run(*work.words, cwd=where)
        )
        found = bad(first, work.code) + bad(second, USAGE)
        if second.code == USAGE and "in use" not in second.err:
            found.append(("wrong_codes", f"does not say that it is in use: {second.err}"))
        found += [("lost", text) for text in differences(account(where / "runs/small"), states.wanted(name))]
        wrong += [f"held before {event}: {text}" for text in check(found)]
        shutil.rmtree(where)
    assert not wrong, "\n".join(wrong)


OTHERS = {
    "trains again": ("pipeline", "train", SMALL, "--set", "train.learning_rate=1.0e-3"),
    "makes another dataset": ("pipeline", "dataset", SMALL, "--set", "seed=1"),
    "exports another": ("pipeline", "export", SMALL, "--set", "export.text_type=F16"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_taken_from_another_run_may_change_meanwhile(
    forks: Forks, states: States, tmp_path: Path, other: str
) -> None:
    work, wrong = WORKS["taken"], []
    for at in moments(states, "taken"):
        where = states.begin("taken", tmp_path / f"taken {at}")
        taking, changing, event = beside(
            forks, work.words, where, at, lambda where=where: forks.run(*OTHERS[other], cwd=where)
        )
        found = bad(taking, 0) + bad(changing, 0)
        found += [("lost", text) for text in differences(account(where / "runs" / "other"), states.wanted("taken"))]
        wrong += [f"{other}, held before {event}: {text}" for text in check(found)]
        shutil.rmtree(where)
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", ["dataset", "train", "export"])
def test_a_run_that_is_being_written_is_not_taken_from(forks: Forks, states: States, tmp_path: Path, name: str) -> None:
    """The other recipe makes its own, or takes what is done; and so it is where the writer is killed."""
    work, wrong = WORKS[name], []
    words = (*work.words, "--set", "name=other")
    for number, at in enumerate(moments(states, name, 4)):
        where = states.begin(name, tmp_path / f"{name} {at}")
        held = Held(at)
        first = forks.start(*work.words, cwd=where, watched=where / "runs", decide=held)
        held.reached.wait(60)
        if number % 2:
            first.send(signal.SIGKILL)
        second = forks.run(*words, cwd=where)
        held.go.set()
        first.wait()
        if number % 2:
            first_again = forks.run(*work.words, cwd=where)
            found = bad(first_again, work.code) + bad(second, work.code)
        else:
            found = bad(second, work.code)
        wanted = states.wanted(name)
        found += [("lost", f"small: {text}") for text in differences(account(where / "runs/small"), wanted)]
        # The name stands in the GGUFs.
        ours = {path: value for path, value in account(where / "runs/other").items() if not path.startswith("bundle/")}
        same = {path: value for path, value in wanted.items() if not path.startswith("bundle/")}
        found += [("lost", f"other: {text}") for text in differences(ours, same)]
        wrong += [f"{name}, held before {held.event}: {text}" for text in check(found)]
        shutil.rmtree(where)
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


def test_shards_are_merged_while_another_writes(forks: Forks, states: States, tmp_path: Path) -> None:
    wrong, merge = [], WORKS["shards"]
    for at in moments(states, "other shard"):
        where = states.begin("other shard", tmp_path / f"shard {at}")
        shard, merged, event = beside(
            forks, WORKS["other shard"].words, where, at, lambda where=where: forks.run(*merge.words, cwd=where)
        )
        # The last event is the closing of the last file: the rows may all be there.
        found = bad(shard, 0) + bad(merged, USAGE, merge.code)
        found += [("wrong_codes", f"then: {text}") for _, text in bad(forks.run(*merge.words, cwd=where), merge.code)]
        found += [("lost", text) for text in differences(account(where / "runs/small"), states.wanted("shards"))]
        wrong += [f"held before {event}: {text}" for text in check(found)]
        shutil.rmtree(where)
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


def test_a_shard_is_written_again_while_all_are_merged(forks: Forks, states: States, tmp_path: Path) -> None:
    """It waits: the merge has the run's folder."""
    wrong, merge = [], WORKS["shards"]
    for at in moments(states, "shards", 3):
        where = states.begin("shards", tmp_path / f"merge {at}")
        held = Held(at)
        first = forks.start(*merge.words, cwd=where, watched=where / "runs", decide=held)
        held.reached.wait(60)
        second = forks.start(*WORKS["shard"].words, cwd=where)
        held.go.set()
        found = bad(first.wait(), merge.code) + bad(second.wait(), 0)
        found += [("lost", text) for text in differences(account(where / "runs/small"), states.wanted("shards"))]
        wrong += [f"held before {held.event}: {text}" for text in check(found)]
        shutil.rmtree(where)
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


def says(folder: Path) -> dict[str, str]:
    """File -> the verdict that it tells, of all that tell one, and whether it is of the pair in F16."""
    parity = folder / "parity"
    verdict = Verdict.model_validate_json((parity / "verdict.json").read_text())
    found = {"verdict.json": verdict.status}
    for name in ("verdict.txt", "summary.md", "report.html", "junit.xml"):
        text = (parity / name).read_text(encoding="utf-8")
        found[name] = next(
            (status for status in ("PASS", "FAIL", "INCONCLUSIVE", "REFUSED") if _headline(name, text, status)), "none"
        )
    del found["junit.xml"]  # it does not name the files
    return {name: f"{status}{' F16' * ('Small-F16' in (parity / name).read_text())}" for name, status in found.items()}


def _headline(name: str, text: str, status: str) -> bool:
    return {
        "verdict.txt": lambda: f"─ {status} ─" in text,
        "summary.md": lambda: status in text.partition("\n")[0],
        "report.html": lambda: status in text.partition("<title>")[2].partition("</title>")[0],
        "junit.xml": lambda: f'name="verdict" value="{status}"' in text,
    }[name]()


def test_a_report_is_written_while_a_run_writes(forks: Forks, states: States, tmp_path: Path) -> None:
    """The run's verdict becomes that of another pair; the report tells one or the other, and never spoils it."""
    work, wrong = WORKS["parity again"], []
    for at in moments(states, "parity again"):
        where = states.begin("parity again", tmp_path / f"run {at}")
        run, report, event = beside(
            forks, work.words, where, at, lambda where=where: forks.run("parity", "report", "runs/small", cwd=where)
        )
        found = bad(run, work.code) + bad(report, 0, USAGE)
        found += [("lost", text) for text in differences(account(where / "runs/small"), states.wanted("parity again"))]
        told = says(where / "runs/small")
        if set(told.values()) != {"INCONCLUSIVE F16"}:
            found.append(("lost", f"in the end they say {told}"))
        wrong += [f"run held before {event}: {text}" for text in check(found)]
        shutil.rmtree(where)
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


def test_a_run_writes_while_a_report_is_written(forks: Forks, states: States, tmp_path: Path) -> None:
    work, wrong = WORKS["parity again"], []
    for at in (1, 4, 8, 12):
        where = states.begin("parity again", tmp_path / f"report {at}")
        words = ("parity", "report", "runs/small")
        report, run, event = beside(forks, words, where, at, lambda where=where: forks.run(*work.words, cwd=where))
        # Whoever comes second may be told to wait.
        found = bad(report, 0, USAGE) + bad(run, work.code, USAGE)
        if run.code == USAGE:
            found += bad(forks.run(*work.words, cwd=where), work.code)
        told = says(where / "runs/small")
        if set(told.values()) != {"INCONCLUSIVE F16"}:
            found.append(("lost", f"in the end they say {json.dumps(told)}"))
        wrong += [f"report held before {event}: {text}" for text in check(found)]
        shutil.rmtree(where)
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


def test_judged_while_it_is_answered(forks: Forks, states: States, tmp_path: Path) -> None:
    """Half a file of results is no file of results: it may be refused or said to be unfinished, and never passes."""
    wrong = []
    for at in moments(states, "sides"):
        where = states.begin("sides", tmp_path / f"sides {at}")
        words = ("parity", "judge", *(f"runs/small/parity/{side}.results.jsonl" for side in ("hf", "llamacpp")))
        run, judged, event = beside(
            forks, WORKS["sides"].words, where, at, lambda where=where, words=words: forks.run(*words, cwd=where)
        )
        found = bad(run, INCONCLUSIVE) + bad(judged, USAGE, INCONCLUSIVE, 4)
        if judged.code == 0:
            found.append(("false_pass", "half the rows pass"))
        wrong += [f"held before {event}: {text}" for text in check(found)]
        shutil.rmtree(where)
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)
