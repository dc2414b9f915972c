"""Disturbs a work (kills it, interrupts it, fails its calls), lets the same command go on, and says what is wrong."""

import errno
import os
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from accounts import account, differences
from forking import Ended, Forks
from going_on import finished, problems
from states import WORKS, States
from tally import tally
from watching import KILLED, Event

INTERRUPTED, USAGE = 130, 2
"""Exit codes."""
FULL = "the disk is full"


# ---- kills -----------------------------------------------------------------------------------------------------------


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
                return KILLED
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
            before = finished(run, states.wanted(name), states.found(name))
            found = problems(name, forks.run(*work.words, cwd=where), before, run, states)
            tally("killed: " + name, tried=1, **{count: 1 for count, _ in found})
            wrong += [f"{name}, before event {at}, {killed.event}: {text}" for _, text in found]
        shutil.rmtree(where)
    return wrong


# ---- signals ---------------------------------------------------------------------------------------------------------


class Sender:
    """Sends a signal to the program's group when the event number ``at`` is about to be done, which is then done."""

    def __init__(self, at: int, number: int, twice: bool = False) -> None:
        self.at, self.number, self.twice = at, number, twice
        self.seen, self.event = 0, ""
        self.group = 0

    def __call__(self, event: Event) -> int:
        if event.counts and not self.event:
            self.seen += 1
            if self.seen == self.at:
                self.event = str(event)
                os.killpg(event.group, self.number)
                if self.twice:
                    time.sleep(0.02)
                    os.killpg(event.group, self.number)
        return 0


def litter(runs: Path) -> list[str]:
    """What is left half-made; a training's checkpoints are what it goes on from."""
    return [str(path.relative_to(runs)) for path in runs.rglob(".*") if path.suffix in (".tmp", ".old")]


def interrupted_badly(ended: Ended, number: int, runs: Path, twice: bool = False) -> list[tuple[str, str]]:
    """(count, what is wrong) with the run that was interrupted."""
    if ended.hung:
        return [("hangs", "hangs")]
    if ended.traceback or "Exception ignored" in ended.err:
        return [("tracebacks", ended.brief)]
    if number == signal.SIGQUIT:
        return [] if ended.code == -signal.SIGQUIT else [("wrong_codes", f"ends with {ended.code}")]
    found = []
    if ended.code != INTERRUPTED:
        found.append(("wrong_codes", f"ends with {ended.brief}"))
    elif sum("interrupted" in line for line in ended.err.splitlines()) != 1:
        found.append(("wrong_codes", f"does not say once that it was interrupted: {ended.brief}"))
    if not twice:
        found += [("lost", f"leaves {left}") for left in litter(runs)]
    return found


def interrupt(
    forks: Forks, states: States, name: str, place: Path, number: int, at: int, after: float | None = None,
    twice: bool = False, converter: bool = False,
) -> list[str]:  # fmt: skip
    """Interrupt before the event number ``at``, or ``after`` so many seconds, and go on; what is wrong, a line each."""
    work, where = WORKS[name], states.begin(name, place / f"{name} {number} {at} {after} {twice}")
    run, sender = where / "runs" / work.run, Sender(at, number, twice)
    program = forks.start(*work.words, cwd=where, watched=where / "runs", decide=sender, converter=converter)
    sent = True
    if after is not None:
        time.sleep(after)
        sent = program.alive()
        program.send(number)
    ended = program.wait(60)
    found = []
    if (sent and after is not None) or sender.event:
        # A signal that comes when the work is done changes nothing of it.
        done = after is not None and ended.code == work.code and not differences(account(run), states.wanted(name))
        found = [] if done else interrupted_badly(ended, number, where / "runs", twice)
        before = finished(run, states.wanted(name), states.found(name))
        found += problems(name, forks.run(*work.words, cwd=where), before, run, states)
        tally("interrupted", tried=1, **{count: 1 for count, _ in found})
    shutil.rmtree(where)
    moment = f"before event {at}, {sender.event}" if after is None else f"after {after:.2f} s"
    return [f"{name}, {signal.Signals(number).name} {moment}: {text}" for _, text in found]


# ---- a full disk -----------------------------------------------------------------------------------------------------


class Full:
    """A disk that is full from the event number ``at`` on: nothing is written or made, and removing works."""

    def __init__(self, at: int) -> None:
        self.at, self.seen, self.event = at, 0, ""

    def __call__(self, event: Event) -> int:
        self.seen += event.counts
        if self.seen < self.at or not event.needs_space:
            return 0
        self.event = self.event or str(event)
        return errno.ENOSPC


def full_badly(ended: Ended) -> list[tuple[str, str]]:
    """(count, what is wrong) with the run that found no space."""
    if ended.hung:
        return [("hangs", "hangs")]
    if ended.traceback:
        return [("tracebacks", ended.brief)]
    said = [line for line in ended.err.splitlines() if line.startswith(("error:", "failed:"))]
    if ended.code != USAGE or len(said) != 1 or FULL not in said[0]:
        return [("wrong_codes", f"ends with {ended.brief}")]
    return []


def fill(forks: Forks, states: States, name: str, place: Path, at: int) -> list[str]:
    """Fail for want of space from an event on, then go on; what is wrong, a line each."""
    work, where = WORKS[name], states.begin(name, place / f"{name} {at}")
    run, full = where / "runs" / work.run, Full(at)
    ended = forks.run(*work.words, cwd=where, watched=where / "runs", decide=full)
    found = []
    if full.event:
        found = full_badly(ended)
        before = finished(run, states.wanted(name), states.found(name))
        found += problems(name, forks.run(*work.words, cwd=where), before, run, states)
        tally("disk full", tried=1, **{count: 1 for count, _ in found})
    shutil.rmtree(where)
    return [f"{name}, from event {at} on, {full.event}: {text}" for _, text in found]
