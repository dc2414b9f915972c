"""Killed right before each call that changes a file, a run goes on to what an undisturbed one makes.

The calls are not listed anywhere: they are seen as they come (watching.py), native code's and the converter's too.
"""

from pathlib import Path

import pytest
from accounts import account, differences
from disturbing import kill_at
from forking import Forks
from states import WORKS, States

pytestmark = pytest.mark.usefixtures("watchable")


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
