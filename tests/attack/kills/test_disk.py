"""A full disk is one sentence and exit code 2 wherever it comes, and with more space the same command goes on."""

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbing import fill, full_badly
from forking import Forks
from going_on import finished, problems
from states import WORKS, States
from tally import tally

SEED = 12
PLACES = 6
"""On a disk, and again of the calls, for each work."""
STAGES = ["dataset", "base", "train", "merge", "export", "parity", "sides", "shard", "shards", "taken"]
LITTLE = ("shard", "taken")
"""What they write fits into the slack that a file system needs; the calls one by one are tried all the same."""


@pytest.mark.attack
@pytest.mark.usefixtures("watchable")
@pytest.mark.parametrize("name", STAGES)
def test_no_space_at_any_call(forks: Forks, states: States, tmp_path: Path, name: str) -> None:
    events = range(1, len(states.events(name)) + 1)
    chosen = random.Random(f"{SEED} {name}").sample(events, min(PLACES, len(events)))
    wrong = [line for at in sorted(chosen) for line in fill(forks, states, name, tmp_path, at)]
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


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
@pytest.mark.parametrize("name", [name for name in STAGES if name not in LITTLE])
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
            found = full_badly(ended)
            before = finished(run, states.wanted(name), states.found(name))
            subprocess.run(["mount", "-o", f"remount,size={4 * ends + (1 << 28)}", mounted], check=True)
            found += problems(name, forks.run(*work.words, cwd=where), before, run, states)
            tried += 1
            tally("disk full", tried=1, **{count: 1 for count, _ in found})
            wrong += [f"{name}, with {size - begins} bytes free at first: {text}" for _, text in found]
    assert tried, "the smallest disk was large enough: nothing was tried"
    assert not wrong, f"{len(wrong)} of {tried}:\n" + "\n".join(wrong)


@pytest.mark.attack
def test_a_disk_that_is_full_when_it_begins(forks: Forks, tmp_path: Path) -> None:
    """Not a byte for the folder of the run."""
    with disk(tmp_path / "disk", 65536) as mounted:
        (mounted / "small.yaml").write_text("name: small\n")
        with open(mounted / "filler", "wb") as file, contextlib.suppress(OSError):
            while os.write(file.fileno(), bytes(4096)):
                pass
        ended = forks.run("pipeline", "dataset", "small.yaml", cwd=mounted)
    assert not full_badly(ended)
