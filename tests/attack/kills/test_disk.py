"""A full disk is one sentence and exit code 2 wherever it comes, and with more space the same command goes on."""

import contextlib
import errno
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from forking import Ended, Forks
from going_on import finished, problems
from states import WORKS, States
from tally import tally
from watching import Event

USAGE = 2
SENTENCE = "the disk is full"
SEED = 12
PLACES = 6
"""On a disk, and again of the calls, for each work."""
STAGES = ["dataset", "base", "train", "merge", "export", "parity", "sides", "shard", "shards", "taken"]


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


def bad_end(ended: Ended) -> list[tuple[str, str]]:
    """(count, what is wrong) with the run that found no space."""
    if ended.hung:
        return [("hangs", "hangs")]
    if ended.traceback:
        return [("tracebacks", ended.brief)]
    said = [line for line in ended.err.splitlines() if line.startswith(("error:", "failed:"))]
    if ended.code != USAGE or len(said) != 1 or SENTENCE not in said[0]:
        return [("wrong_codes", f"ends with {ended.brief}")]
    return []


def fill(forks: Forks, states: States, name: str, place: Path, at: int) -> list[str]:
    """Fail for want of space from an event on, then go on; what is wrong, a line each."""
    work, where = WORKS[name], states.begin(name, place / f"{name} {at}")
    run, full = where / "runs" / work.run, Full(at)
    ended = forks.run(*work.words, cwd=where, watched=where / "runs", decide=full)
    found = []
    if full.event:
        found = bad_end(ended)
        before = finished(run, states.wanted(name))
        found += problems(name, forks.run(*work.words, cwd=where), before, run, states)
        tally("disk full", tried=1, **{count: 1 for count, _ in found})
    shutil.rmtree(where)
    return [f"{name}, from event {at} on, {full.event}: {text}" for _, text in found]


@pytest.mark.attack
@pytest.mark.usefixtures("watchable")
@pytest.mark.parametrize("name", STAGES)
def test_no_space_at_any_call(forks: Forks, states: States, tmp_path: Path, name: str) -> None:
    events = range(1, len(states.events(name)) + 1)
    chosen = random.Random(f"{SEED} {name}").sample(events, min(PLACES, len(events)))
    wrong = [line for at in sorted(chosen) for line in fill(forks, states, name, tmp_path, at)]
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


@pytest.mark.usefixtures("watchable")
def test_no_space_for_a_checkpoint(forks: Forks, states: States, tmp_path: Path) -> None:
    """torch's own writer says so in its own words, from the middle of a file."""
    at = 1 + next(at for at, event in enumerate(states.events("train")) if event.endswith("optimizer.pt (write 8)"))
    assert not fill(forks, states, "train", tmp_path, at)


@contextlib.contextmanager
def disk(place: Path, size: int) -> Iterator[Path]:
    """A disk of so many bytes. Skips where none can be had."""
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip() or 'mount failed'}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def used(folder: Path) -> int:
    """Bytes that a folder's files take on a tmpfs, whole pages."""
    pages = sum(-(-path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())
    return pages * 4096


@pytest.mark.attack
@pytest.mark.parametrize("name", STAGES)
def test_a_small_disk(forks: Forks, states: States, tmp_path: Path, name: str) -> None:
    """Six sizes between what is there when the work begins and what is there when it has ended."""
    work, wrong, tried = WORKS[name], [], 0
    begins, ends = used(states.end(work.begins)), used(states.end(name))
    for part in range(PLACES):
        size = begins + 65536 + (max(ends - begins, 65536) * part) // PLACES
        with disk(tmp_path / f"disk {part}", size) as mounted:
            where = mounted / "work"
            shutil.copytree(states.end(work.begins), where)
            run = where / "runs" / work.run
            ended = forks.run(*work.words, cwd=where)
            if ended.code == work.code:
                break  # there was enough
            found = bad_end(ended)
            before = finished(run, states.wanted(name))
            subprocess.run(["mount", "-o", f"remount,size={4 * ends + (1 << 28)}", mounted], check=True)
            found += problems(name, forks.run(*work.words, cwd=where), before, run, states)
            tried += 1
            tally("disk full", tried=1, **{count: 1 for count, _ in found})
            wrong += [f"{name}, with {size - begins} bytes free at first: {text}" for _, text in found]
    assert tried, "the smallest disk was large enough: nothing was tried"
    assert not wrong, f"{len(wrong)} of {tried}:\n" + "\n".join(wrong)


def test_a_disk_that_is_full_when_it_begins(forks: Forks, tmp_path: Path) -> None:
    """Not a byte for the folder of the run."""
    with disk(tmp_path / "disk", 65536) as mounted:
        (mounted / "small.yaml").write_text("name: small\n")
        with open(mounted / "filler", "wb") as file, contextlib.suppress(OSError):
            while os.write(file.fileno(), bytes(4096)):
                pass
        ended = forks.run("pipeline", "dataset", "small.yaml", cwd=mounted)
    assert not bad_end(ended)
