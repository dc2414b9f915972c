"""Killed right before each call that changes a file, a run goes on to what an undisturbed one makes.

The calls are not listed anywhere: they are seen as they come (watching.py), native code's and the converter's too.
"""

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from accounts import account, differences, rows
from forking import Ended, Forks
from states import IMAGES, STEPS, WORKS, States
from tally import tally
from watching import Event

from pipeline.training.checkpoints import is_complete

pytestmark = pytest.mark.usefixtures("watchable")

SEED = 12
DONE = re.compile(r"(\w+) .*\(\d+\.\d s\)")
"""How a stage says that it has worked."""
ROWS = {"hf.results.jsonl": "ResultsWriter", "llamacpp.results.jsonl": "ResultsWriter", "ladder.jsonl": "LadderWriter"}


class Killed:
    """Kills the program group before the event number ``at`` of those that count, from 1 on."""

    def __init__(self, at: int) -> None:
        self.at, self.seen, self.event = at, 0, ""
        self.pid = 0

    def __call__(self, event: Event) -> int:
        if event.counts and not self.event:
            self.seen += 1
            if self.seen == self.at:
                self.event = str(event)
                os.killpg(_group(event.thread), signal.SIGKILL)
        return 0


def _group(thread: int) -> int:
    """The process group that a thread is of (field 5 of its stat)."""
    return int(Path(f"/proc/{thread}/stat").read_text().rpartition(")")[2].split()[2])


def finished(run: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """What is done in a run's folder as a kill left it, and so must not be done again: stages, steps, rows."""
    adapter = "lora_adapter/adapter_model.safetensors"
    checkpoints = [int(folder.name.partition("-")[2]) for folder in run.glob("checkpoints/checkpoint-*")
                   if is_complete(folder)]  # fmt: skip
    now = account(run) if run.exists() else {}
    trained = {path for path in wanted if path.startswith("lora_adapter/")}
    whole = adapter in wanted and all(now.get(path) == wanted[path] for path in trained)
    return {
        "stages": {path.stem for path in run.glob("stages/*.json") if _is_done(path, wanted)},
        "steps": STEPS if whole else max(checkpoints, default=0),
        "rows": {name: len(rows(run / "parity" / name)) for name in ROWS},
    }


def _is_done(record: Path, wanted: dict[str, Any]) -> bool:
    return {"result": json.loads(record.read_text())["result"]} == wanted.get(f"stages/{record.name}")


def problems(name: str, again: Ended, before: dict[str, Any], run: Path, states: States) -> list[tuple[str, str]]:
    """(count, what is wrong) with the run that went on after a kill."""
    work, wanted = WORKS[name], states.wanted(name)
    if again.hung:
        return [("hangs", "the next run hangs")]
    if again.traceback:
        return [("tracebacks", again.err.strip().splitlines()[-1])]
    if again.code != work.code:
        return [("wrong_codes", f"the next run ends with {again.code}: {again.err.strip()}")]
    found = [("lost", text) for text in differences(account(run), wanted)]
    worked = {match[1] for line in again.err.splitlines() if (match := DONE.fullmatch(line))}
    found += [("lost", f"{stage} is done again") for stage in sorted(before["stages"] & worked)]
    if name in ("train", "train again") and again.counts.get("step", 0) > STEPS - before["steps"]:
        found.append(("lost", f"{again.counts['step']} steps again, of {STEPS} of which {before['steps']} were done"))
    for file, writer in ROWS.items() if name in ("parity", "sides") else ():
        answered = again.counts.get(f"{writer} {file}", 0)
        if answered > IMAGES - before["rows"][file]:
            found.append(("lost", f"{answered} images again in {file}, which had {before['rows'][file]} of {IMAGES}"))
    return found


def kill_at(moments: Iterable[int], forks: Forks, states: States, name: str, place: Path) -> list[str]:
    """Kill at each moment and go on; what is wrong, a line each."""
    work, wrong = WORKS[name], []
    for at in moments:
        where = states.begin(name, place / f"{name} {at}")
        run, killed = where / "runs" / work.run, Killed(at)
        first = forks.run(*work.words, cwd=where, watched=where / "runs", decide=killed)
        if killed.event:  # else that was beyond the last: threads do not always write in one order
            assert first.code == -signal.SIGKILL
            before = finished(run, states.wanted(name))
            found = problems(name, forks.run(*work.words, cwd=where), before, run, states)
            tally("killed: " + name, tried=1, **{count: 1 for count, _ in found})
            wrong += [f"{name}, before event {at}, {killed.event}: {text}" for _, text in found]
        shutil.rmtree(where)
    return wrong


@pytest.mark.attack
@pytest.mark.parametrize("name", [name for name in WORKS if name != "other shard"])
def test_killed_anywhere_it_goes_on_to_the_same_end(forks: Forks, states: States, tmp_path: Path, name: str) -> None:
    again = states.begin(name, tmp_path / "again")
    forks.run(*WORKS[name].words, cwd=again)
    found = differences(account(again / "runs" / WORKS[name].run), states.wanted(name))
    assert not found, f"two undisturbed runs differ, so that nothing can be compared: {found}"
    count = len(states.events(name))
    wrong = kill_at(range(1, count + 1), forks, states, name, tmp_path)
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong)


# A seeded handful: in the saving, around the end of the training, while rows are written, while shards are merged.
@pytest.mark.parametrize(
    ("name", "pattern", "tries"),
    [
        ("train", r"checkpoint-4", 1),
        ("train", r"unlinkat .*/checkpoints/|rename .*/(summary|train).json", 2),
        ("parity", r"write .*\.jsonl \(write", 1),
        ("shards", r"rename .*\.jsonl", 1),
    ],
)
def test_killed_at_a_bad_moment_it_goes_on(
    forks: Forks, states: States, tmp_path: Path, name: str, pattern: str, tries: int
) -> None:
    moments = [at for at, event in enumerate(states.events(name), 1) if re.search(pattern, event)]
    chosen = random.Random(SEED).sample(moments, tries)
    assert not kill_at(chosen, forks, states, name, tmp_path)
