"""Interrupted at any moment, a run says so, ends with 130, leaves nothing half-made, and goes on the next time."""

import os
import random
import select
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from disturbing import INTERRUPTED, interrupt
from forking import Forks
from going_on import finished, problems
from states import WORKS, States
from tally import tally
from watching import Event

pytestmark = pytest.mark.usefixtures("watchable")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SEED = 12
MOMENTS = 4
"""Of each kind, for each signal and work."""
CONVERTING = "write small/.bundle.*.tmp/.Small-Q8_0.gguf.*.tmp/Small-Q8_0.plain"


@pytest.mark.attack
@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGQUIT])
@pytest.mark.parametrize("name", ["dataset", "base", "train", "merge", "export", "parity", "shard", "shards"])
def test_interrupted_anywhere_it_goes_on(forks: Forks, states: States, tmp_path: Path, name: str, number: int) -> None:
    chance = random.Random(f"{SEED} {name} {number}")
    count = len(states.events(name))
    wrong = []
    for at in sorted(chance.sample(range(1, count + 1), MOMENTS)):
        wrong += interrupt(forks, states, name, tmp_path, number, at)
    for _ in range(MOMENTS):  # between the calls, too: in arithmetic, in callbacks, in the middle of an import
        wrong += interrupt(forks, states, name, tmp_path, number, 0, chance.uniform(0, states.seconds(name)))
    if number == signal.SIGINT:  # an impatient user
        wrong += interrupt(forks, states, name, tmp_path, number, chance.randint(1, count), twice=True)
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


@pytest.mark.attack
@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGQUIT])
def test_interrupted_while_the_converter_runs_it_goes_on(
    forks: Forks, states: States, tmp_path: Path, number: int
) -> None:
    """A terminal's Ctrl-C reaches the converter, a process of the same group, too."""
    at = 1 + next(at for at, event in enumerate(states.events("export")) if event.startswith(CONVERTING))
    assert not interrupt(forks, states, "export", tmp_path, number, at, converter=True)


class Terminal(threading.Thread):
    """A terminal, and who sits at it: reads all that it shows, types, and may go away."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._master, self._slave = os.openpty()
        self.name_of_file = os.ttyname(self._slave)
        self._seen, self._here = b"", True
        self.start()

    def run(self) -> None:
        """Read."""
        while self._here:
            if select.select([self._master], [], [], 0.05)[0]:
                self._seen += os.read(self._master, 1 << 16)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def leave(self) -> str:
        """Hang up, as where a window is closed or a connection breaks; what was shown."""
        if self._here:
            self._here = False
            self.join()
            os.close(self._master)
            os.close(self._slave)
        return self._seen.decode(errors="replace")


@pytest.mark.attack
@pytest.mark.parametrize("name", ["train", "export", "parity"])
@pytest.mark.parametrize(("key", "code"), [(b"\x03", INTERRUPTED), (b"\x1c", -signal.SIGQUIT), (b"", INTERRUPTED)])
def test_keys_of_a_real_terminal_and_its_end(
    forks: Forks, states: States, tmp_path: Path, name: str, key: bytes, code: int
) -> None:
    """Ctrl-C, Ctrl-\\ and the terminal going away, for the foreground of a terminal, with the converter running."""
    work, where = WORKS[name], states.begin(name, tmp_path / "at a terminal")
    half = len(states.events(name)) // 2
    reached, go = threading.Event(), threading.Event()
    seen = 0

    def decide(event: Event) -> int:
        nonlocal seen
        seen += event.counts
        if seen == half and not reached.is_set():
            reached.set()
            go.wait(60)
        return 0

    terminal = Terminal()
    program = forks.start(
        *work.words, cwd=where, watched=where / "runs", decide=decide, terminal=terminal.name_of_file,
        converter=name == "export",
    )  # fmt: skip
    assert reached.wait(120)
    if key:
        terminal.type(key)
    else:
        terminal.leave()
    time.sleep(0.2)
    go.set()
    ended = program.wait(60)
    time.sleep(0.1)  # for its last words
    said = terminal.leave()
    ended = replace(ended, err=said)
    wrong = [] if ended.code == code else [("wrong_codes", f"ends with {ended.code}: {said[-500:]}")]
    if ended.traceback:
        wrong.append(("tracebacks", ended.brief))
    if key == b"\x03" and "interrupted" not in said:
        wrong.append(("wrong_codes", f"does not say that it was interrupted: {said[-300:]}"))
    run = where / "runs" / work.run
    before = finished(run, states.wanted(name), states.found(name))
    wrong += problems(name, forks.run(*work.words, cwd=where), before, run, states)
    tally("interrupted", tried=1, **{count: 1 for count, _ in wrong})
    assert not wrong
