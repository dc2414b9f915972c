"""Killed right before each call that changes a file, a run goes on to what an undisturbed one makes.

The calls are not listed anywhere: they are seen as they come (watching.py), native code's and the converter's too.
"""

import os
import random
import re
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest
from accounts import account, differences
from forking import Forks
from going_on import finished, problems
from states import WORKS, States
from tally import tally
from watching import Event

pytestmark = pytest.mark.usefixtures("watchable")

SEED = 12


class Killed:
    """Kills the program group before the event number ``at`` of those that count, from 1 on."""

    def __init__(self, at: int) -> None:
        self.at, self.seen, self.event = at, 0, ""

    def __call__(self, event: Event) -> int:
        if event.counts and not self.event:
            self.seen += 1
            if self.seen == self.at:
                self.event = str(event)
                os.killpg(event.group, signal.SIGKILL)
        return 0


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
