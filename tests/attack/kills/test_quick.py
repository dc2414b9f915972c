"""A handful of each attack on running programs, for every change; the other files here have all of it."""

import os
import random
import re
import shutil
import signal
import tempfile
import threading
from pathlib import Path

import pytest
from disturbing import USAGE, fill, interrupt, kill_at
from forking import Forks
from states import INCONCLUSIVE, States, copy_state
from tally import tally

SEED = 12
NOBODY = 65534
SAVED = "rename small/checkpoints/checkpoint-4/complete.json"


@pytest.mark.usefixtures("watchable")
@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("train", r"(unlinkat|rmdir) .*/checkpoints|rename .*/(summary|train).json"),
        pytest.param(
            "parity", r"write .*\.jsonl \(write", marks=pytest.mark.attack
        ),  # an export of its own comes first
    ],
)
def test_killed_at_a_bad_moment_it_goes_on(
    forks: Forks, states: States, tmp_path: Path, name: str, pattern: str
) -> None:
    """Around the end of a training, where all is done and not all is recorded, and while rows are written."""
    moments = [at for at, event in enumerate(states.events(name), 1) if re.search(pattern, event)]
    assert not kill_at([random.Random(SEED).choice(moments)], forks, states, name, tmp_path)


@pytest.mark.usefixtures("watchable")
def test_hung_up_on_in_training_it_goes_on(forks: Forks, states: States, tmp_path: Path) -> None:
    assert not interrupt(forks, states, "train", tmp_path, signal.SIGHUP, states.events("train").index(SAVED) + 1)


@pytest.mark.usefixtures("watchable")
def test_no_space_for_a_checkpoint(forks: Forks, states: States, tmp_path: Path) -> None:
    """torch's own writer says so in its own words, from the middle of a file."""
    at = 1 + next(at for at, event in enumerate(states.events("train")) if event.endswith("optimizer.pt (write 8)"))
    assert not fill(forks, states, "train", tmp_path, at)


def test_a_run_of_roots_is_a_sentence_to_another_user(forks: Forks) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can run a program as another user")
    base = Path(tempfile.mkdtemp())
    try:
        base.chmod(0o755)
        (base / "small.yaml").write_text("name: small\n")
        (base / "runs" / "small").mkdir(parents=True)
        ended = forks.run("pipeline", "dataset", "small.yaml", cwd=base, user=NOBODY)
    finally:
        shutil.rmtree(base)
    tally("no permission", tried=1, tracebacks=ended.traceback, wrong_codes=ended.code != USAGE)
    assert (ended.code, ended.traceback) == (USAGE, False), ended.brief
    assert len(ended.err.splitlines()) == 1


def test_the_exit_code_stays_the_verdicts_when_its_reader_goes_away(
    forks: Forks, states: States, tmp_path: Path
) -> None:
    """As in ``parity judge ... | head -1``."""
    where = copy_state(states.end("parity"), tmp_path / "here")
    pipe = where / "pipe"
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: pipe.open("rb").close())
    reader.start()
    results = (f"runs/small/parity/{side}.results.jsonl" for side in ("hf", "llamacpp"))
    ended = forks.run("parity", "judge", *results, cwd=where, out=pipe)
    reader.join()
    tally("output", tried=1, tracebacks=ended.traceback, wrong_codes=ended.code != INCONCLUSIVE)
    assert (ended.code, ended.err) == (INCONCLUSIVE, "")
