"""What the attacks on running programs share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from session import Once

sys.path.append(str(Path(__file__).parents[1]))  # where tally is

import forking
from states import States
from watching import why_not


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[forking.Forks]:
    """Starts programs that have imported everything."""
    with forking.forks(tmp_path_factory.mktemp("forks")) as made:
        yield made


@pytest.fixture(scope="session")
def states(forks: forking.Forks, once: Once) -> States:
    """The run before and after each of its works."""
    return States(forks, once)


@pytest.fixture(scope="session")
def watchable() -> None:
    """Skips where the kernel's calls cannot be watched."""
    if reason := why_not():
        pytest.skip(reason)
